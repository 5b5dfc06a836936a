"""What stage `scores` hands from place to place: rows, a shard of them, and how a selector scores them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.evaluation.costs import count_flops, count_rows
from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import TemplateError
from tamis.language.encoding import Encoding
from tasks import models
from tasks.artifacts.row_sets import read_set
from tasks.conversations import read_conversation
from tasks.scores.settings import ScoresSettings
from tasks.scoring_model import scoring_model
from tasks.settings import RuntimeSettings
from tasks.tokens import open_template


@dataclass(frozen=True)
class Row:
    """A row of the ground set or a reference row."""

    id: str
    conversation: Conversation
    topic: str
    split: str  # pool | target | validation


@dataclass(frozen=True)
class Shard:
    """A part's worth of rows; small enough to travel to another process."""

    selector: str
    folder: Path  # of the store
    model: models.ModelChoice
    settings: ScoresSettings
    runtime: RuntimeSettings
    rows: Sequence[Row]
    reference: Sequence[Row] = ()  # what rows are scored beside: the demos of `ica`, the queries of `rds`


@dataclass(frozen=True)
class Prepared:
    """All the rows that are measured, and what was done for them before."""

    work: Shard
    seconds: float = 0.0  # of that, now or in an earlier run
    flops: int = 0  # of that
    described: Mapping[str, Any] | None = None  # what figures are made with, besides


def count_forward(work: Shard, asked: Encoding) -> int:
    """Return the operations of one forward pass over all that is asked."""
    return count_flops(count_rows(asked), models.count_parameters(work.model))


@dataclass(frozen=True)
class Method:
    """How a selector scores rows."""

    ask: Callable[[Shard], Encoding]  # what the model reads, as many rows of each; the longest must fit in its context
    measure: Callable[[Shard, Encoding], np.ndarray]  # row x figure: what the store keeps
    score: Callable[[Shard, np.ndarray], np.ndarray]  # all rows, their figures -> a score per row of the ground set
    code: str  # digest of the code that figures depend on
    load: Callable[[Shard], Any] = lambda shard: scoring_model(shard.model)  # what is measured with, once per process
    prepare: Callable[[Shard, Path], Prepared] = lambda work, source: Prepared(
        work
    )  # the ground set, `examples.parquet`
    count: Callable[[Shard, Encoding], int] = count_forward  # all rows, what is asked -> floating-point operations


def read_rows(source: Path, name: str) -> list[Row]:
    """Return the rows of a set, by row."""
    return list_rows(read_set(source, name))


def list_rows(table: pa.Table) -> list[Row]:
    """Return examples as rows."""
    return [Row(row["id"], read_conversation(row), row["topic"], row["split"]) for row in table.to_pylist()]


def ask_each(question: Callable[..., Encoding]) -> Callable[[Shard], Encoding]:
    """Return what asks the model one of `tamis.scores.scoring_prompts` about a shard's rows.

    That raises a TemplateError which names a row by its id.
    """

    def ask(shard: Shard) -> Encoding:
        try:
            return question(open_template(shard.model), [row.conversation for row in shard.rows])
        except TemplateError as fault:
            if fault.place is None:
                raise
            raise TemplateError(f"row {shard.rows[fault.place].id} of these: {fault}", fault.place) from fault

    return ask


def refuse_long(shards: Sequence[Shard], ask: Callable[[Shard], Encoding]) -> None:
    """Refuse rows of which something that is asked does not fit in the context whole.

    Raises:
        ValueError: their count, the first ids and the ways out.
    """
    long = [name for shard in shards for name in _too_long(shard, ask(shard))]
    if long:
        rows, first = sum(len(shard.rows) for shard in shards), shards[0]
        raise ValueError(
            f"{len(long)} of {rows} rows to be scored are longer than models.max_tokens = {first.model.max_tokens} as "
            f"{first.selector} shows them, first ids {long[:3]}; raise it, take these rows out of the raw data, or "
            "choose by another selector"
        )


def _too_long(shard: Shard, asked: Encoding) -> list[str]:
    longest = asked.longest.reshape(len(shard.rows), -1).max(axis=1)
    return [row.id for row, tokens in zip(shard.rows, longest, strict=True) if tokens > shard.model.max_tokens]
