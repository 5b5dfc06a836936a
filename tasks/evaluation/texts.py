"""Unit embeddings of texts (answers and prompts), each computed once and kept in a store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa

import tamis.language.embedding
from tamis.language.embedding import encode_texts
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.tables import digest_code, stack

TEXT_ROWS = 64  # texts embedded at once
BLOCK = 1024  # texts per part of the store: what a crash can lose
CODE = digest_code(tamis.language.embedding)  # what a vector depends on, as imported
STORED = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])  # id: digest of the text


def embed_texts(texts: Sequence[str], model: models.ModelChoice, root: Path) -> np.ndarray:
    """Return the unit embeddings of texts, float32, in the order given; of no text, an array of width 0.

    Args:
        texts: any, also several times.
        model: the encoder.
        root: of all stores.
    """
    if not texts:
        return np.empty((0, 0), np.float32)
    digest = models.model_digest(model)
    folder = stores.store_folder(root / "texts", digest, model.max_tokens, CODE)
    stores.describe(folder, kind="texts", model=model.name, model_digest=digest, code=CODE)
    ids = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
    asked = pa.table({"id": ids}, schema=pa.schema([STORED.field("id")]))
    said = dict(zip(ids, texts, strict=True))
    lacking = list(dict.fromkeys(stores.missing(folder, asked)["id"].to_pylist()))
    for first in range(0, len(lacking), BLOCK):
        block, start = lacking[first : first + BLOCK], perf_counter()
        network, tokenizer = models.embedder(model), models.tokenizer(model)
        vectors = encode_texts(network, tokenizer, [said[id] for id in block], TEXT_ROWS, model.max_tokens).numpy()
        part = pa.table([block, list(vectors)], schema=STORED)
        stores.append(folder, part, stage="evaluation", seconds=perf_counter() - start)
    return np.array(stack(stores.find(folder, asked)["embedding"]))
