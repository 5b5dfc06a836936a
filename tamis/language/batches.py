"""Batches of whole sequences for forward-backward passes, packed without padding.

A row is one or more whole sequences, heads included: a head that rows share would mix their gradients. In a pack each
sequence is blind to the others (`tamis.language.packing`): a row's gradients are those of rows that are run one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from tamis.language.encoding import TokenSequence
from tamis.language.packing import Span, bucket_spans, ready


@dataclass(frozen=True)
class Batch:
    """Rows of one forward-backward pass."""

    examples: list[int]  # places of the rows in the pool
    rows: list[Sequence[TokenSequence]]  # the whole sequences of each


@dataclass(frozen=True)
class BatchTensors:
    """A batch as tensors on the model's device."""

    inputs: dict[str, Any]  # of the model's base
    owner: Int[Tensor, " token"]  # each token's row in the batch
    places: Int[Tensor, " kept"]  # tokens that predict an answer token
    labels: Int[Tensor, " kept"]  # what they predict
    answers: Int[Tensor, " kept"]  # each one's row in the batch
    sizes: Int[Tensor, " row"]  # answer tokens of each row


def plan_batches(rows: Sequence[Sequence[TokenSequence]], tokens: int) -> list[Batch]:
    """Return batches that hold every row once, shortest first, so that neighbours are of about equal length.

    Args:
        rows: the whole sequences of each, at least one with an answer and a token before it.
        tokens: that a batch may have; a longer row is a batch of its own.

    Raises:
        ValueError: no row; a sequence without an answer, or without a token before it, with the first places.

    >>> from tamis.language.encoding import make_sequence
    >>> rows = [[make_sequence([5], [1, 2])], [make_sequence([5, 6], [3])], [make_sequence([7], [4])]]
    >>> [batch.examples for batch in plan_batches(rows, tokens=5)]
    [[2, 0], [1]]
    """
    _check(rows)
    lengths = [sum(map(len, row)) for row in rows]
    found: list[list[int]] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if not found or filled + lengths[row] > tokens:
            found.append([])
            filled = 0
        found[-1].append(row)
        filled += lengths[row]
    return [Batch(places, [rows[place] for place in places]) for places in found]


def _check(rows: Sequence[Sequence[TokenSequence]]) -> None:
    if not rows:
        raise ValueError("0 rows; give at least one")
    wrong = [place for place, row in enumerate(rows) if not row or not all(map(_is_sound, row))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(rows)} examples have a sequence without an answer token, or without a token before "
            f"it, first places {wrong[:3]}; leave them out"
        )


def _is_sound(sequence: TokenSequence) -> bool:
    return bool(sequence.answers.any()) and not sequence.answers[0]


def split(batch: Batch) -> list[Batch]:
    """Return a batch's rows as batches of one."""
    return [Batch([example], [row]) for example, row in zip(batch.examples, batch.rows, strict=True)]


def lay_out(batch: Batch, model: nn.Module) -> BatchTensors:
    """Return a batch as a model's arguments, the tokens that enter the loss, and whose each token is."""
    pieces = [piece for row in batch.rows for piece in row]
    rows = np.repeat(np.arange(len(batch.rows)), [len(row) for row in batch.rows])  # each piece's row
    lengths = np.array([len(piece) for piece in pieces])
    tokens = torch.from_numpy(np.concatenate([piece.tokens for piece in pieces])).long()
    owner = torch.from_numpy(np.repeat(rows, lengths))
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    places = torch.from_numpy(np.flatnonzero(np.concatenate([piece.answers for piece in pieces])) - 1)
    answers = owner[places + 1]
    kept = (places, tokens[places + 1], answers, answers.bincount(minlength=len(batch.rows)))
    device = next(model.parameters()).device
    starts = np.cumsum(lengths) - lengths
    spans = [Span(start, length, 0, 0) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    inputs: dict[str, Any] = {"input_ids": tokens[None].to(device), "position_ids": positions[None].to(device)}
    inputs["pack"] = [ready(bucket, model) for bucket in bucket_spans(spans, device)]
    return BatchTensors({**inputs, "use_cache": False}, owner.to(device), *(one.to(device) for one in kept))
