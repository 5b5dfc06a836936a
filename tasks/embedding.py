"""Room `embedding`: one unit vector per used example; only text not seen before is encoded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

import tamis.embedding
from tamis.embedding import encode_texts
from tamis.templates import join_instruction
from tasks import models, schemas
from tasks.artifacts import Provenance, check_part, digest_code, digest_inputs, read_table, write_table

BLOCK = 1024  # texts per part of the store: what a crash can lose
CODE = digest_code(tamis.embedding)  # what a vector depends on, as imported
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
    wanted: bool = True,
) -> Mapping[str, Any]:
    """Encode the used examples (prompt and response) and write `embedding.parquet`, in the order of their rows.

    Where `wanted` is false (no stage needs neighbours) the table is empty and its record says so.

    Returns:
        How many texts this run encoded, how many of those were cut at `max_tokens`, and how many were known.
    """
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    if not wanted:
        nothing = Provenance("embedding", version, {"wanted": False}, inputs)
        write_table(schemas.embedding(1).empty_table(), out / "embedding.parquet", nothing)
        return {"wanted": False}
    table = read_table(source, schemas.EXAMPLES)
    used = table.filter(table["used"]).to_pylist()
    ids = [row["id"] for row in used]
    folder = Path(store) / _key(model, max_tokens)
    known = _load(folder, pa.array(ids, pa.string()))
    fresh = [row for row in used if row["id"] not in known]

    cut = encode_missing(fresh, folder, model, batch_rows, max_tokens)

    parameters = {"model": model.name, "max_tokens": max_tokens, "model_digest": models.model_digest(model)}
    vectors = _table(ids, _load(folder, pa.array(ids, pa.string())))
    write_table(vectors, out / "embedding.parquet", Provenance("embedding", version, parameters, inputs))
    return {"texts_encoded": len(fresh), "texts_cut": cut, "texts_known": len(used) - len(fresh)}


def encode_missing(
    rows: list[dict[str, Any]], folder: Path, model: models.ModelChoice, batch_rows: int, max_tokens: int
) -> int:
    """Encode rows block by block, each kept in the store at once, with progress; return how many texts were cut."""
    cut = 0
    for start in logging.tqdm(range(0, len(rows), BLOCK), desc="embedding", unit_scale=BLOCK, disable=not rows):
        block = rows[start : start + BLOCK]
        texts = [f"{join_instruction(row['instruction'], row['prompt'])}\n{row['response']}" for row in block]
        tokenizer = models.tokenizer(model)
        cut += sum(len(tokens) > max_tokens for tokens in tokenizer(texts, verbose=False).input_ids)
        vectors = encode_texts(models.embedder(model), tokenizer, texts, batch_rows, max_tokens).numpy()
        _append(folder, [row["id"] for row in block], vectors)
    return cut


def _key(model: models.ModelChoice, max_tokens: int) -> str:
    return hashlib.sha256(f"{models.model_digest(model)}\n{max_tokens}\n{CODE}".encode()).hexdigest()[:32]


def _load(folder: Path, wanted: pa.Array) -> dict[str, np.ndarray]:
    """Return the stored vectors of the wanted ids, by id."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        part = pq.read_table(check_part(path))
        part = part.filter(pc.is_in(part["id"], wanted))
        rows = np.asarray(part["embedding"].combine_chunks().flatten()).reshape(part.num_rows, -1)
        known.update(zip(part["id"].to_pylist(), rows, strict=True))
    return known


def _append(folder: Path, ids: list[str], vectors: np.ndarray) -> None:
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
    part = pa.table([pa.array(ids), pa.array(list(vectors), pa.list_(pa.float32()))], schema=STORED)
    write_table(part, folder / f"part-{name}.parquet", Provenance("embedding", "store"))


def _table(ids: list[str], known: Mapping[str, np.ndarray]) -> pa.Table:
    flat = np.concatenate([known[name] for name in ids])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), len(flat) // len(ids))
    return pa.table([pa.array(ids), vectors], schema=schemas.embedding(len(flat) // len(ids)))
