"""Stage `embedding`: one unit vector per example that is used or was learnt; only text not seen before is encoded."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

import tamis.examples.conversations
import tamis.language.embedding
from tamis.examples.conversations import join_texts
from tamis.language.embedding import count_cut, encode_texts
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.row_sets import USED, read_sets
from tasks.artifacts.tables import Provenance, digest_code, digest_inputs, stack, write_table
from tasks.conversations import read_conversation
from tasks.embedding.agreement import measure_rows
from tasks.embedding.costs import count_encoding
from tasks.embedding.settings import EmbeddingSettings
from tasks.folders import Folders
from tasks.settings import RuntimeSettings

BLOCK = 1024  # texts per part of the store: what a crash can lose
CODE = digest_code(tamis.language.embedding, tamis.examples.conversations)  # what a vector depends on, as imported
STORED = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])


def write_embedding(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: EmbeddingSettings,
    runtime: RuntimeSettings,
    wanted: bool = True,
    agreement: bool = False,
) -> Mapping[str, Any]:
    """Encode examples (prompt and response) and write `embedding.parquet`, in the order of their rows.

    They are the used ones, and those of the pool that an earlier version chose, used or not. Where `wanted` is false
    (no stage needs vectors) the table is empty and its record says so. Beside it: `agreement.parquet`, how alike prompt
    and response of each used row of the pool are, without rows where `agreement` is false.

    Returns:
        How many texts this run encoded, how many of those were cut at `max_tokens`, how many were known, the seconds
        that encoding all of them took, now or earlier, and its floating-point operations.
    """
    examples, out, store = folders.here.examples, folders.here.embedding, folders.cache / "embeddings"
    version = folders.here.version
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    parameters = {"model": model.label, "max_tokens": settings.max_tokens}
    parameters |= {"model_digest": models.model_digest(model)} if wanted or agreement else {}
    made, nothing = (Provenance("embedding", version, facts, inputs) for facts in (parameters, {"wanted": False}))
    alike, did = schemas.SCORES.empty_table(), {}
    if agreement:
        alike, did = measure_rows(source, store, model, runtime, settings.max_tokens)
    write_table(alike, out / "agreement.parquet", made if agreement else nothing)
    if not wanted:
        write_table(schemas.embedding(1).empty_table(), out / "embedding.parquet", nothing)
        did = {"scoring_seconds": 0.0, "scoring_flops": 0} | did
        return {"wanted": False, **did, "scoring_seconds": round(did["scoring_seconds"], 3)}
    rows = read_texts(source)
    asked = rows.select(["id"]).cast(pa.schema([STORED.field("id")]))
    folder = store_folder(store, model, settings.max_tokens)
    stores.describe(folder, kind="embeddings", model=model.name, model_digest=models.model_digest(model), code=CODE)
    fresh = rows.filter(pc.is_in(rows["id"], stores.missing(folder, asked)["id"].combine_chunks()))

    cut = encode_missing(fresh, folder, model, runtime.embedding_rows, settings.max_tokens)

    write_table(_table(stores.find(folder, asked)), out / "embedding.parquet", made)
    counts = {"texts_encoded": fresh.num_rows, "texts_cut": cut, "texts_known": rows.num_rows - fresh.num_rows}
    counts["scoring_seconds"] = round(stores.cost(folder, asked), 3)
    counts["scoring_flops"] = count_encoding(rows, model, settings.max_tokens, lambda row: [join_texts(row)])
    return {name: value + did.get(name, 0) for name, value in counts.items()}


def read_texts(source: Path) -> pa.Table:
    """Return the examples to encode: each used one, and each distinct one of the pool that was learnt earlier."""
    return read_sets(source, (*USED, "learnt"))[0]


def encode_missing(rows: pa.Table, folder: Path, model: models.ModelChoice, batch_rows: int, max_tokens: int) -> int:
    """Encode rows block by block, each kept in the store at once, with progress; return how many texts were cut."""
    cut, count = 0, rows.num_rows
    for first in logging.tqdm(range(0, count, BLOCK), desc="embedding", unit_scale=BLOCK, disable=not count):
        block = rows.slice(first, BLOCK).to_pylist()
        texts = [join_texts(read_conversation(row)) for row in block]
        tokenizer, network = models.tokenizer(model), models.embedder(model)
        start = time.perf_counter()
        cut += count_cut(tokenizer, texts, batch_rows, max_tokens)
        vectors = encode_texts(network, tokenizer, texts, batch_rows, max_tokens).numpy()
        seconds = time.perf_counter() - start
        part = pa.table([[row["id"] for row in block], list(vectors)], schema=STORED)
        stores.append(folder, part, stage="embedding", seconds=seconds)
    return cut


def store_folder(store: Path, model: models.ModelChoice, max_tokens: int) -> Path:
    """Return the folder that holds the vectors of one encoder, text length and code."""
    return stores.store_folder(store, models.model_digest(model), max_tokens, CODE)


def _table(found: pa.Table) -> pa.Table:
    """Return stored vectors as the artifact has them, all of one width."""
    if not found.num_rows:
        return schemas.embedding(1).empty_table()
    rows = stack(found["embedding"])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), rows.shape[1])
    return pa.table([found["id"], vectors], schema=schemas.embedding(rows.shape[1]))
