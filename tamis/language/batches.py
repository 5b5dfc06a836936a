"""Batches of whole sequences for forward-backward passes, packed without padding.

A row is query + response, the template's prefix being part of the query: a prefix that rows share would mix their
gradients. In a pack each row is blind to the others (`tamis.language.packing`): its gradients are those of rows that
are run one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tamis.language.packing import Span, bucket_spans, ready


@dataclass(frozen=True)
class Batch:
    """Rows of one forward-backward pass."""

    examples: list[int]  # places of the rows in the pool
    queries: list[list[int]]  # whole: with the template's prefix
    responses: list[list[int]]


@dataclass(frozen=True)
class BatchTensors:
    """A batch as tensors on the model's device."""

    inputs: dict[str, Any]  # of the model's base
    owner: Int[Tensor, " token"]  # each token's row in the batch
    places: Int[Tensor, " kept"]  # tokens that predict a response token
    labels: Int[Tensor, " kept"]  # what they predict
    answers: Int[Tensor, " kept"]  # each one's row in the batch
    sizes: Int[Tensor, " row"]  # response tokens of each row


def plan_batches(queries: Sequence[list[int]], responses: Sequence[list[int]], tokens: int) -> list[Batch]:
    """Return batches that hold every row once, shortest first, so that neighbours are of about equal length.

    Args:
        queries: per row, with the template's prefix, at least one token each.
        responses: per row, ending with the end-of-turn token, at least one token each.
        tokens: that a batch may have; a longer row is a batch of its own.

    Raises:
        ValueError: no row; an empty query or response, with the first places.

    >>> [batch.examples for batch in plan_batches([[5], [5, 6], [7]], [[1, 2], [3], [4]], tokens=5)]
    [[2, 0], [1]]
    """
    _check(queries, responses)
    lengths = [len(query) + len(response) for query, response in zip(queries, responses, strict=True)]
    found: list[list[int]] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if not found or filled + lengths[row] > tokens:
            found.append([])
            filled = 0
        found[-1].append(row)
        filled += lengths[row]
    return [Batch(rows, [queries[row] for row in rows], [responses[row] for row in rows]) for rows in found]


def _check(queries: Sequence[list[int]], responses: Sequence[list[int]]) -> None:
    if len(queries) != len(responses) or not queries:
        raise ValueError(f"{len(queries)} queries and {len(responses)} responses; give at least one, and one for one")
    for name, rows in (("query", queries), ("response", responses)):
        empty = [row for row, ids in enumerate(rows) if not ids]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} examples have a {name} without a token, first places {empty[:3]}; "
                "leave them out"
            )


def split(batch: Batch) -> list[Batch]:
    """Return a batch's rows as batches of one."""
    rows = zip(batch.examples, batch.queries, batch.responses, strict=True)
    return [Batch([example], [query], [response]) for example, query, response in rows]


def lay_out(batch: Batch, model: nn.Module) -> BatchTensors:
    """Return a batch as a model's arguments, the tokens that enter the loss, and whose each token is."""
    rows = [query + response for query, response in zip(batch.queries, batch.responses, strict=True)]
    lengths = [len(row) for row in rows]
    starts = [sum(lengths[:row]) for row in range(len(rows))]
    tokens = torch.tensor([token for row in rows for token in row])
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    sizes = torch.tensor([len(response) for response in batch.responses])
    ends = torch.tensor([start + length for start, length in zip(starts, lengths, strict=True)])
    places = torch.cat([torch.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]) - 1
    device = next(model.parameters()).device
    spans = [Span(start, length, 0, 0) for start, length in zip(starts, lengths, strict=True)]
    inputs: dict[str, Any] = {"input_ids": tokens[None].to(device), "position_ids": positions[None].to(device)}
    inputs["pack"] = [ready(bucket, model) for bucket in bucket_spans(spans, device)]
    answers = torch.arange(len(rows)).repeat_interleave(sizes)
    kept = (places, tokens[places + 1], answers, sizes)
    return BatchTensors({**inputs, "use_cache": False}, owner.to(device), *(one.to(device) for one in kept))
