"""The store of scored pairs: an append-only folder of Parquet parts, outside every DVC output.

A pair is known by target id, demo id ("" where nothing is shown), model digest and template; each scoring holds both
distances. Parts of one model and template share a folder. A part is written whole, named by what it holds, and never
changed: a crash loses at most the part in hand, and another version or another run asks here before it scores.
"""

import hashlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import schemas
from tasks.artifacts import replacing


def place(store: Path, model_digest: str, template: str) -> Path:
    """Return the folder that holds the parts of one model and template."""
    key = hashlib.sha256(f"{model_digest}\n{template}".encode()).hexdigest()
    return Path(store) / key[:32]


def append(folder: Path, scores: pa.Table) -> Path:
    """Add a part with these scores (schema PAIRS) and return its path."""
    scores = scores.cast(schemas.PAIRS).combine_chunks()
    total = hashlib.sha256()
    for target, demo in zip(scores["target_id"].to_pylist(), scores["demo_id"].to_pylist(), strict=True):
        total.update(f"{target} {demo}\n".encode())
    path = folder / f"part-{total.hexdigest()[:32]}.parquet"
    with replacing(path) as part:
        pq.write_table(scores, part, compression="zstd")
    return path


def find(folder: Path, wanted: pa.Table) -> pa.Table:
    """Return the scores of the wanted pairs (columns target_id, demo_id) that the store holds, in the order wanted.

    Returns:
        A table of schema PAIRS, one row per known wanted pair; of a pair that was scored twice, the smaller figures.
    """
    parts = sorted(str(path) for path in folder.glob("part-*.parquet"))
    if not parts or not wanted.num_rows:
        return schemas.PAIRS.empty_table()
    numbered = wanted.append_column("place", pa.array(range(wanted.num_rows), pa.int64()))
    with duckdb.connect() as connection:
        connection.register("numbered", numbered)
        found = connection.sql(
            """
            SELECT target_id, demo_id, min(tokens) tokens, min(distance) distance,
                   min(log_likelihood) log_likelihood
            FROM numbered JOIN read_parquet($parts) USING (target_id, demo_id)
            GROUP BY target_id, demo_id ORDER BY min(place)
            """,
            params={"parts": parts},
        ).to_arrow_table()
    return found.cast(schemas.PAIRS)


def missing(wanted: pa.Table, found: pa.Table) -> pa.Table:
    """Return the wanted pairs that are not among the found ones, in the order wanted."""
    known = set(zip(found["target_id"].to_pylist(), found["demo_id"].to_pylist(), strict=True))
    pairs = zip(wanted["target_id"].to_pylist(), wanted["demo_id"].to_pylist(), strict=True)
    return wanted.filter(pa.array([pair not in known for pair in pairs], pa.bool_()))
