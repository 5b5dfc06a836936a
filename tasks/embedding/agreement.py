"""How alike what a row asks and its response are, for the gate `agreement`; only rows not seen before are encoded."""

import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

import tamis.examples.conversations
import tamis.language.embedding
import tamis.scores.gates
from tamis.examples.conversations import transcribe
from tamis.language.embedding import count_cut, encode_texts
from tamis.scores.gates import measure_agreement
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.row_sets import read_set
from tasks.artifacts.tables import digest_code
from tasks.conversations import read_conversation
from tasks.embedding.costs import count_encoding
from tasks.settings import RuntimeSettings

BLOCK = 1024  # rows per part of the store: what a crash can lose
LIBRARY = (tamis.language.embedding, tamis.examples.conversations, tamis.scores.gates)
CODE = digest_code(*LIBRARY, sys.modules[__name__])  # what a figure depends on, as imported
STORED = pa.schema([("id", pa.string()), ("score", pa.float64())])


def measure_rows(
    source: Path, store: Path, model: models.ModelChoice, runtime: RuntimeSettings, max_tokens: int
) -> tuple[pa.Table, dict[str, float]]:
    """Return a score for each used row of the pool, by row; how many texts this run encoded, how many were cut, how
    many were known, the seconds that encoding all of them took, now or earlier, and its operations.

    Args:
        source: `examples.parquet`.
        store: root of the stores of embeddings; a score is kept under its row's id, apart from vectors.
        model: the text encoder.
        runtime: how many texts are encoded at once.
        max_tokens: longest text encoded; longer ones are cut.
    """
    rows = read_set(source, "ground")
    asked = rows.select(["id"]).cast(pa.schema([STORED.field("id")]))
    digest = models.model_digest(model)
    folder = stores.store_folder(store, digest, max_tokens, "agreement", CODE)
    stores.describe(folder, kind="embeddings", model=model.name, model_digest=digest, code=CODE)
    fresh = rows.filter(pc.is_in(rows["id"], stores.missing(folder, asked)["id"].combine_chunks()))
    count, cut = fresh.num_rows, 0
    for first in logging.tqdm(range(0, count, BLOCK), desc="agreement", unit_scale=BLOCK, disable=not count):
        block, start = fresh.slice(first, BLOCK).to_pylist(), time.perf_counter()
        texts = [transcribe(read_conversation(row)) for row in block]
        tokenizer, network = models.tokenizer(model), models.embedder(model)
        sides = [list(side) for side in zip(*texts, strict=True)]
        cut += sum(count_cut(tokenizer, side, runtime.embedding_rows, max_tokens) for side in sides)
        vectors = [encode_texts(network, tokenizer, side, runtime.embedding_rows, max_tokens).numpy() for side in sides]
        part = pa.table([[row["id"] for row in block], measure_agreement(*vectors)], schema=STORED)
        stores.append(folder, part, stage="embedding", seconds=time.perf_counter() - start)
    found = stores.find(folder, asked) if rows.num_rows else asked.append_column("score", pa.array([], pa.float64()))
    did = {"texts_encoded": 2 * count, "texts_cut": cut, "texts_known": 2 * (rows.num_rows - count)}
    did |= {"scoring_flops": count_encoding(rows, model, max_tokens, transcribe)}
    return found.select(STORED.names).cast(schemas.SCORES), did | {"scoring_seconds": stores.cost(folder, asked)}
