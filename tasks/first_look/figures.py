"""Counts over rows while they are read, a number or two per row, and what they come to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from tasks.examples.reading import Facts

OWN = "examples.fields"  # what a file is said to be whose fields the settings name
FIRST = 3  # places that are named of each kind of reject


@dataclass(frozen=True)
class Spread:
    """Of how many something is, over rows."""

    total: int
    median: int
    p95: int  # 95 of 100 rows have at most so many
    longest: int


@dataclass(frozen=True)
class Place:
    """A row that is none, and why."""

    file: str
    line: int
    reason: str

    def tell(self) -> str:
        """Return it in a line."""
        return f"{self.file}:{self.line}: {self.reason}"

    @property
    def detail(self) -> str:
        """What the reason says beside its kind; the kind where that is all."""
        return self.reason.partition(": ")[2] or self.reason


@dataclass(frozen=True)
class Kind:
    """A kind of reason for which rows are rejected."""

    kind: str
    rows: int
    first: tuple[Place, ...]


@dataclass(frozen=True)
class FileRows:
    """What a file was recognised as, and the rows read of it."""

    file: str  # from the raw folder's name on
    format: (
        str  # one of the known ones; examples.fields: as that says; empty: it has no rows; no fields: they have none
    )
    rows: int
    rejected: int
    unread: tuple[str, ...] = ()  # fields that nothing is read from


@dataclass(frozen=True)
class TopicRows:
    """A topic, and the good rows that have it."""

    topic: str
    rows: int


@dataclass
class Tally:
    """Numbers of good rows, in their order."""

    turns: list[np.ndarray] = field(default_factory=list)  # messages but for system messages
    tokens: list[np.ndarray] = field(default_factory=list)
    learnt: list[np.ndarray] = field(default_factory=list)  # tokens of learnt turns

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self.turns.append(count_turns(table))
        self.tokens.append(table["tokens"].to_numpy())
        self.learnt.append(table["response_tokens"].to_numpy())


def count_turns(table: pa.Table) -> np.ndarray:
    """Return of each row how many messages it has but for system messages."""
    messages = table["messages"].combine_chunks()
    offsets = messages.offsets.to_numpy()
    roles = messages.values.field("role").to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(roles != "system")])
    return np.diff(ends[offsets])


def spread(parts: Sequence[np.ndarray]) -> Spread:
    """Return of how many something is; percentiles are numbers that some row has.

    >>> spread([np.array([1, 2]), np.array([3, 100])])
    Spread(total=106, median=2, p95=100, longest=100)
    """
    every = np.concatenate([np.empty(0, np.int64), *parts])
    if not len(every):
        return Spread(0, 0, 0, 0)
    median, p95 = np.percentile(every, [50, 95], method="inverted_cdf")
    return Spread(int(every.sum()), int(median), int(p95), int(every.max()))


def rank_topics(topics: Sequence[str]) -> tuple[TopicRows, ...]:
    """Return topics with their rows, the largest first, equal ones by name.

    >>> [one.topic for one in rank_topics(["food", "ai", "money", "ai"])]
    ['ai', 'food', 'money']
    """
    ranked = sorted(Counter(topics).items(), key=lambda one: (-one[1], one[0]))
    return tuple(TopicRows(topic, rows) for topic, rows in ranked)


def group_rejects(facts: Facts) -> tuple[Kind, ...]:
    """Return rejected rows by kind of reason, what stands before its colon; the commonest first."""
    found: dict[str, list[Place]] = {}
    for _, file, line, reason, _ in sorted(facts.rejects, key=lambda row: row[0]):
        found.setdefault(reason.partition(":")[0], []).append(Place(file, line, reason))
    kinds = [Kind(kind, len(places), tuple(places[:FIRST])) for kind, places in found.items()]
    return tuple(sorted(kinds, key=lambda kind: -kind.rows))


def count_files(facts: Facts) -> tuple[FileRows, ...]:
    """Return what each file was recognised as, with its rows."""
    good, bad = Counter(facts.files), Counter(file for _, file, *_ in facts.rejects)
    return tuple(
        FileRows(
            file,
            OWN if format == "fields" else format,
            good[file] + bad[file],
            bad[file],
            tuple(facts.unread.get(file, ())),
        )
        for file, format in facts.formats.items()
    )


def merge_facts(facts: Facts, part: Facts) -> None:
    """Add what is known of rows that follow."""
    for name in (each.name for each in fields(Facts)):
        mine, theirs = getattr(facts, name), getattr(part, name)
        if isinstance(mine, list):
            mine.extend(theirs)
        elif isinstance(mine, Counter | set | dict):
            mine.update(theirs)
    facts.split += part.split
    facts.dropped += part.dropped
    facts.erased += part.erased
    facts.count = part.count
