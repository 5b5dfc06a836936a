"""Room `embedding`: one unit vector per used example; only text not seen before is encoded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.embedding import encode_texts
from tamis.templates import join_instruction
from tasks import models, schemas
from tasks.artifacts import Provenance, digest_inputs, read_table, replacing, write_table

STORED = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])


def write_embedding(
    *,
    examples: Path,
    out: Path,
    store: Path,
    version: str,
    model: models.ModelChoice,
    batch_rows: int,
    max_tokens: int,
) -> Mapping[str, Any]:
    """Encode the used examples (prompt and response) and write `embedding.parquet`, in the order of their rows."""
    source = examples / "examples.parquet"
    table = read_table(source, schemas.EXAMPLES)
    used = table.filter(table["used"]).to_pylist()
    folder = Path(store) / _key(model, max_tokens)
    known = _load(folder, pa.array([row["id"] for row in used], pa.string()))
    fresh = [row for row in used if row["id"] not in known]

    texts = [f"{join_instruction(row['instruction'], row['prompt'])}\n{row['response']}" for row in fresh]
    vectors = encode_texts(models.embedder(model), models.tokenizer(model), texts, batch_rows, max_tokens).numpy()

    _append(folder, [row["id"] for row in fresh], vectors)
    known.update(zip((row["id"] for row in fresh), vectors, strict=True))
    parameters = {"model": model.name, "max_tokens": max_tokens, "model_digest": models.model_digest(model)}
    provenance = Provenance("embedding", version, parameters, digest_inputs(source))
    write_table(_table([row["id"] for row in used], known), out / "embedding.parquet", provenance)
    return {"texts_encoded": len(fresh), "texts_known": len(used) - len(fresh)}


def _key(model: models.ModelChoice, max_tokens: int) -> str:
    return hashlib.sha256(f"{models.model_digest(model)}\n{max_tokens}".encode()).hexdigest()[:32]


def _load(folder: Path, wanted: pa.Array) -> dict[str, np.ndarray]:
    """Return the stored vectors of the wanted ids, by id."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        part = pq.read_table(path)
        part = part.filter(pc.is_in(part["id"], wanted))
        rows = np.asarray(part["embedding"].combine_chunks().flatten()).reshape(part.num_rows, -1)
        known.update(zip(part["id"].to_pylist(), rows, strict=True))
    return known


def _append(folder: Path, ids: list[str], vectors: np.ndarray) -> None:
    if not ids:
        return
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
    with replacing(folder / f"part-{name}.parquet") as part:
        pq.write_table(pa.table([pa.array(ids), pa.array(list(vectors), pa.list_(pa.float32()))], schema=STORED), part)


def _table(ids: list[str], known: Mapping[str, np.ndarray]) -> pa.Table:
    flat = np.concatenate([known[name] for name in ids])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), len(flat) // len(ids))
    return pa.table([pa.array(ids), vectors], schema=schemas.embedding(len(flat) // len(ids)))
