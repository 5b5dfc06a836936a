"""Sentence embeddings and nearest neighbours among them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.memory import fitting

ROWS = 1024  # rows of a similarity block, at most
ENTRIES = 1 << 26  # similarities of a block, at most: 256 MB


def encode_texts(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_rows: int, max_tokens: int
) -> Float[Tensor, "text width"]:
    """Return the unit embedding of each text: the mean of its last hidden states over real tokens, normalised.

    Texts are run in order of length, so that batches need little padding; each text's vector does not depend on its
    batch but for rounding.

    **Source**: Sentence-BERT, arXiv 1908.10084, section 3 (mean pooling); the model card of all-MiniLM-L6-v2.

    Args:
        model: a text encoder in eval mode.
        tokenizer: its tokenizer, with a padding token.
        texts: an empty text has the embedding of its special tokens.
        batch_rows: texts per forward pass, fewer where memory is short.
        max_tokens: longer texts are cut at the right.

    Returns:
        float32 on the CPU, one row per text in the order given, of Euclidean length 1.
    """
    if not texts:
        return torch.empty(0, model.config.hidden_size)
    return fitting("embedding_rows", batch_rows, partial(_encode, model, tokenizer, texts, max_tokens=max_tokens))


def _encode(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_rows: int, *, max_tokens: int
) -> Float[Tensor, "text width"]:
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
    out = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), batch_rows):
        places = order[start : start + batch_rows]
        batch = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            out[places] = pool(model(**batch).last_hidden_state.float(), batch["attention_mask"]).cpu()
    return out


def count_cut(tokenizer: Any, texts: Sequence[str], batch_rows: int, max_tokens: int) -> int:
    """Return how many texts have more than `max_tokens` tokens; of a longer one no more than these are kept."""
    limits = {"truncation": True, "max_length": max_tokens + 1, "verbose": False}
    batches = (list(texts[start : start + batch_rows]) for start in range(0, len(texts), batch_rows))
    return sum(len(tokens) > max_tokens for batch in batches for tokens in tokenizer(batch, **limits).input_ids)


def pool(hidden: Float[Tensor, "text token width"], mask: Int[Tensor, "text token"]) -> Float[Tensor, "text width"]:
    """Return the mean over real tokens (mask 1), scaled to length 1.

    >>> pool(torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[0.6000, 0.8000]])
    """
    weights = mask[:, :, None].to(hidden.dtype)
    return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=1)


def nearest(vectors: Float[np.ndarray, "row width"], count: int) -> Int[np.ndarray, "row neighbour"]:
    """Return each row's nearest other rows by cosine, nearest first; ties go to the lower index.

    Time rows^2 x width; memory a block of `ENTRIES` similarities.

    Args:
        vectors: unit vectors.
        count: neighbours per row; all others where there are fewer.

    >>> nearest(np.eye(3)[[0, 0, 1]], 1).ravel().tolist()
    [1, 0, 0]
    """
    found = max(0, min(count, len(vectors) - 1))
    out = np.empty((len(vectors), found), dtype=np.int64)
    size = _size_block(len(vectors))
    for start in range(0, len(vectors), size):
        similar = vectors[start : start + size] @ vectors.T
        similar[np.arange(len(similar)), start + np.arange(len(similar))] = -np.inf
        out[start : start + size] = _largest(similar, found)
    return out


def nearest_among(
    targets: Float[np.ndarray, "target width"], demos: Float[np.ndarray, "demo width"], count: int
) -> Int[np.ndarray, "target neighbour"]:
    """Return the demos nearest to each target by cosine, nearest first; ties go to the lower index.

    A target that is itself a demo is its own nearest. Time targets x demos x width; memory a block of `ENTRIES`
    similarities.

    Args:
        targets, demos: unit vectors.
        count: neighbours per target; all demos where there are fewer.

    >>> nearest_among(np.eye(2), np.eye(2)[[1, 0, 0]], 2).tolist()
    [[1, 2], [0, 1]]
    """
    found, size = min(count, len(demos)), _size_block(len(demos))
    blocks = (targets[start : start + size] @ demos.T for start in range(0, len(targets), size))
    return np.concatenate([np.empty((0, found), np.int64), *(_largest(block, found) for block in blocks)])


def _size_block(columns: int) -> int:
    """Return how many rows a block of similarities has."""
    return max(1, min(ROWS, ENTRIES // max(1, columns)))


def _largest(values: Float[np.ndarray, "row column"], count: int) -> Int[np.ndarray, "row place"]:
    """Return the places of each row's largest values, largest first; ties go to the lower place."""
    if not count:
        return np.empty((len(values), 0), dtype=np.int64)
    found = torch.topk(torch.from_numpy(values), min(count + 1, values.shape[1]), dim=1)
    best, places = found.values.numpy(), found.indices.numpy()
    tied = np.flatnonzero(best[:, count - 1] == best[:, -1]) if best.shape[1] > count else []
    order = np.lexsort((places[:, :count], -best[:, :count]), axis=1)
    places = np.take_along_axis(places, order, axis=1)
    for row in tied:  # the last value stands further on, too, and any of its places may be here
        good = np.flatnonzero(values[row] >= best[row, -1])
        places[row] = good[np.argsort(-values[row, good], kind="stable")][:count]
    return places
