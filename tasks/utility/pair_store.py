"""The store of scored pairs: an append-only folder of Parquet parts, outside every DVC output.

A pair is known by target id, demo id ("" where nothing is shown), model digest, template and the code that scores; each
scoring holds both distances. Parts of one model, template and code share a folder. A part is written whole, named by
what it holds, and never changed: a crash loses at most the part in hand, and another version or another run asks here
before it scores.
"""

import hashlib
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, check_part, provenance, write_table


def store_folder(store: Path, model_digest: str, template: str, code: str) -> Path:
    """Return the folder that holds the parts of one model, template and scoring code (`artifacts.digest_code`)."""
    key = hashlib.sha256(f"{model_digest}\n{template}\n{code}".encode()).hexdigest()
    return Path(store) / key[:32]


def append(folder: Path, scores: pa.Table, *, seconds: float) -> Path:
    """Add a part with these scores (schema PAIRS) and the seconds that they took, and return its path."""
    scores = scores.cast(schemas.PAIRS).combine_chunks()
    total = hashlib.sha256()
    for target, demo in zip(scores["target_id"].to_pylist(), scores["demo_id"].to_pylist(), strict=True):
        total.update(f"{target} {demo}\n".encode())
    path = folder / f"part-{total.hexdigest()[:32]}.parquet"
    write_table(scores, path, Provenance("utility", "store", {"seconds": seconds}))
    return path


def find(folder: Path, wanted: pa.Table) -> pa.Table:
    """Return the wanted pairs that the store holds, in the order wanted, with their scores.

    Args:
        folder: of one model and template (`place`).
        wanted: columns target_id and demo_id, and any others, which are kept.

    Returns:
        The columns of `wanted`, then tokens, distance and log_likelihood; of a pair that was scored twice, the smaller
        figures.
    """
    return _join(
        folder,
        wanted,
        """
        SELECT numbered.*, tokens, distance, log_likelihood FROM numbered JOIN (
            SELECT target_id, demo_id, min(tokens) tokens, min(distance) distance, min(log_likelihood) log_likelihood
            FROM read_parquet($parts) GROUP BY target_id, demo_id
        ) USING (target_id, demo_id) ORDER BY numbered.place
        """,
    )


def missing(folder: Path, wanted: pa.Table) -> pa.Table:
    """Return the wanted pairs that the store does not hold, in the order wanted."""
    return _join(
        folder,
        wanted,
        "SELECT * FROM numbered ANTI JOIN read_parquet($parts) USING (target_id, demo_id) ORDER BY numbered.place",
    )


def cost(folder: Path, wanted: pa.Table) -> float:
    """Return the seconds that the wanted pairs took when they were scored.

    sum over parts of seconds x (wanted pairs in it / pairs in it); a pair that stands in two parts counts in one.

    Args:
        folder: of one model and template (`place`).
        wanted: columns target_id and demo_id; pairs that the store does not hold add nothing.
    """
    if not _parts(folder):
        return 0.0
    found = _join(
        folder,
        wanted,
        """
        SELECT filename, count(*) AS pairs, 0 AS place FROM (
            SELECT target_id, demo_id, min(filename) AS filename
            FROM read_parquet($parts, filename = true) SEMI JOIN numbered USING (target_id, demo_id)
            GROUP BY target_id, demo_id
        ) GROUP BY filename ORDER BY filename
        """,
    )
    return float(sum(_seconds_per_pair(Path(part["filename"])) * part["pairs"] for part in found.to_pylist()))


def _seconds_per_pair(part: Path) -> float:
    record = provenance(part)
    return record["parameters"]["seconds"] / record["rows"]


def _join(folder: Path, wanted: pa.Table, query: str) -> pa.Table:
    """Run a query over the wanted pairs, numbered, and the parts of the store; without parts, over an empty one."""
    numbered = wanted.append_column("place", pa.array(np.arange(wanted.num_rows)))
    parts = [str(check_part(path)) for path in _parts(folder)]
    with duckdb.connect() as connection:
        connection.register("numbered", numbered)
        connection.register("nothing", schemas.PAIRS.empty_table())
        if not parts:
            query = query.replace("read_parquet($parts)", "nothing")
        return connection.sql(query, params={"parts": parts} if parts else {}).to_arrow_table().drop_columns(["place"])


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))
