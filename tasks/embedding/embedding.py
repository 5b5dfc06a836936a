"""Stage `embedding`: one unit vector per example that is used or was learnt; only text not seen before is encoded."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

import tamis.language.embedding
from tamis.language.embedding import encode_texts
from tamis.language.templates import join_instruction
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import USED, read_sets
from tasks.artifacts.stores import describe
from tasks.artifacts.tables import (
    Provenance,
    check_part,
    digest_code,
    digest_inputs,
    provenance,
    write_table,
)
from tasks.embedding.settings import EmbeddingSettings
from tasks.settings import RuntimeSettings

BLOCK = 1024  # texts per part of the store: what a crash can lose
CODE = digest_code(tamis.language.embedding)  # what a vector depends on, as imported
STORED = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])


def write_embedding(
    *,
    examples: Path,
    out: Path,
    store: Path,
    version: str,
    model: models.ModelChoice,
    settings: EmbeddingSettings,
    runtime: RuntimeSettings,
    wanted: bool = True,
) -> Mapping[str, Any]:
    """Encode examples (prompt and response) and write `embedding.parquet`, in the order of their rows.

    They are the used ones, and those of the pool that an earlier version chose, used or not. Where `wanted` is false
    (no stage needs vectors) the table is empty and its record says so.

    Returns:
        How many texts this run encoded, how many of those were cut at `max_tokens`, how many were known, and the
        seconds that encoding all of them took, now or earlier.
    """
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    if not wanted:
        nothing = Provenance("embedding", version, {"wanted": False}, inputs)
        write_table(schemas.embedding(1).empty_table(), out / "embedding.parquet", nothing)
        return {"wanted": False, "scoring_seconds": 0.0}
    rows = read_texts(source)
    ids = [row["id"] for row in rows]
    folder = store_folder(store, model, settings.max_tokens)
    describe(folder, kind="embeddings", model=model.name, model_digest=models.model_digest(model), code=CODE)
    known = _load(folder, pa.array(ids, pa.string()))
    fresh = [row for row in rows if row["id"] not in known]

    cut = encode_missing(fresh, folder, model, runtime.embedding_rows, settings.max_tokens)

    parameters = {"model": model.name, "max_tokens": settings.max_tokens, "model_digest": models.model_digest(model)}
    vectors = _table(ids, _load(folder, pa.array(ids, pa.string())))
    write_table(vectors, out / "embedding.parquet", Provenance("embedding", version, parameters, inputs))
    counts = {"texts_encoded": len(fresh), "texts_cut": cut, "texts_known": len(rows) - len(fresh)}
    return counts | {"scoring_seconds": round(cost(folder, pa.array(ids, pa.string())), 3)}


def read_texts(source: Path) -> list[dict[str, Any]]:
    """Return the examples to encode: each used one, and each distinct one of the pool that was learnt earlier."""
    return read_sets(source, (*USED, "learnt"))[0].to_pylist()


def encode_missing(
    rows: list[dict[str, Any]], folder: Path, model: models.ModelChoice, batch_rows: int, max_tokens: int
) -> int:
    """Encode rows block by block, each kept in the store at once, with progress; return how many texts were cut."""
    cut = 0
    for first in logging.tqdm(range(0, len(rows), BLOCK), desc="embedding", unit_scale=BLOCK, disable=not rows):
        block = rows[first : first + BLOCK]
        texts = [f"{join_instruction(row['instruction'], row['prompt'])}\n{row['response']}" for row in block]
        tokenizer, network = models.tokenizer(model), models.embedder(model)
        start = time.perf_counter()
        cut += sum(len(tokens) > max_tokens for tokens in tokenizer(texts, verbose=False).input_ids)
        vectors = encode_texts(network, tokenizer, texts, batch_rows, max_tokens).numpy()
        _append(folder, [row["id"] for row in block], vectors, time.perf_counter() - start)
    return cut


def store_folder(store: Path, model: models.ModelChoice, max_tokens: int) -> Path:
    """Return the folder that holds the vectors of one encoder, text length and code."""
    key = f"{models.model_digest(model)}\n{max_tokens}\n{CODE}"
    return Path(store) / hashlib.sha256(key.encode()).hexdigest()[:32]


def _load(folder: Path, wanted: pa.Array) -> dict[str, np.ndarray]:
    """Return the stored vectors of the wanted ids, by id."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        part = pq.read_table(check_part(path))
        part = part.filter(pc.is_in(part["id"], wanted))
        rows = np.asarray(part["embedding"].combine_chunks().flatten()).reshape(part.num_rows, -1)
        known.update(zip(part["id"].to_pylist(), rows, strict=True))
    return known


def cost(folder: Path, wanted: pa.Array) -> float:
    """Return the seconds that the wanted texts took when they were encoded: of each part, its share of them."""
    total, left = 0.0, set(wanted.to_pylist())
    for path in sorted(folder.glob("part-*.parquet")):
        record, ids = provenance(path), set(pq.read_table(path, columns=["id"])["id"].to_pylist())
        total += record["parameters"]["seconds"] * len(ids & left) / record["rows"]
        left -= ids
    return total


def _append(folder: Path, ids: list[str], vectors: np.ndarray, seconds: float) -> None:
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
    part = pa.table([pa.array(ids), pa.array(list(vectors), pa.list_(pa.float32()))], schema=STORED)
    write_table(part, folder / f"part-{name}.parquet", Provenance("embedding", "store", {"seconds": seconds}))


def _table(ids: list[str], known: Mapping[str, np.ndarray]) -> pa.Table:
    flat = np.concatenate([known[name] for name in ids])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), len(flat) // len(ids))
    return pa.table([pa.array(ids), vectors], schema=schemas.embedding(len(flat) // len(ids)))
