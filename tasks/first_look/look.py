"""A first look at raw files: what a run would read of them. From a sample at first, then exactly.

The sample is drawn from the first rows of each file, so that it is there within seconds however much there is; what it
says of a file's later rows, it guesses. The exact look reads as the stage `examples` does, and stops at nothing.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, compress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from tamis.examples.splits import SplitError, link_duplicates
from tasks import models
from tasks.artifacts.tables import ArtifactError
from tasks.conversations import read_conversation
from tasks.examples import examples
from tasks.examples.division import Division, divide, make_earlier, read_before
from tasks.examples.files import ExamplesError, NotRead, RawFile
from tasks.examples.near import find_likeness
from tasks.examples.reading import (
    BATCH,
    Batch,
    Facts,
    Reader,
    cut_files,
    dump,
    read_batch,
    refuse_unknown,
    tell_notes,
)
from tasks.examples.settings import ExamplesSettings
from tasks.examples.text_files import Record
from tasks.first_look.figures import (
    FileRows,
    Kind,
    Spread,
    Tally,
    TopicRows,
    count_files,
    group_rejects,
    rank_topics,
    spread,
)
from tasks.first_look.marked import Marked, mark_conversation
from tasks.first_look.processes import read_in_processes
from tasks.folders import Artifacts

SAMPLE = 2_000  # rows of a sample
FIRST = 20_000  # rows that it is drawn from, the first of each file in equal parts
FILES = 100  # files that it is drawn from
READ_CHARACTERS = 64_000_000  # at which no further rows are drawn from
SAMPLE_CHARACTERS = 4_000_000  # at which the sample has no further rows
SHOWN = 3  # examples
ALONE = 8 * BATCH  # rows that one process reads before others are started, which takes them seconds


@dataclass(frozen=True)
class Source:
    """Raw files that are looked at."""

    raw: Path
    files: Sequence[RawFile]
    not_read: Sequence[NotRead]
    reader: Reader


@dataclass(frozen=True)
class Sampled:
    """What a sample is of."""

    rows: int
    of: int
    whole: bool  # `of` are all the rows that there are; else the first of each file


@dataclass(frozen=True)
class Foreseen:
    """What a run would make of the rows."""

    used: Mapping[str, int] | None  # pool | target | validation | held_out | general -> rows
    changes: Mapping[str, int] | None  # kept | edited | new -> distinct rows; None: what was before is not made
    stops: str | None  # why it would stop


@dataclass(frozen=True)
class Look:
    """What raw files hold."""

    sample: Sampled | None  # None: the figures are exact
    files: tuple[FileRows, ...]
    not_read: tuple[NotRead, ...]
    examples: tuple[Marked, ...]
    rows: int
    rejected: int
    erased: int  # rows that are left out because they were erased
    turns: Spread  # of good rows, as what follows
    tokens: Spread
    learnt_tokens: Spread
    topics: tuple[TopicRows, ...]  # the largest first
    rejects: tuple[Kind, ...]
    notes: Mapping[str, int]  # what was left out of good rows -> rows
    split_rows: int  # of which the template makes several sequences
    duplicates: int | None = None  # rows with the text of an earlier one; None where a sample cannot say it
    near_duplicates: int | None = None  # other rows that are similar to an earlier one; None: likewise
    near_held_out: int | None = None  # rows that are similar to a held-out one; None: likewise
    near_validation: int | None = None  # rows of the pool that are similar to a validation row; None: likewise
    planted: Mapping[str, int] | None = None  # word -> used rows of the pool; None: likewise
    foreseen: Foreseen | None = None


def open_source(
    raw: Path,
    version: str,
    *,
    model: models.ModelChoice,
    settings: ExamplesSettings,
    erased: Collection[str] = (),
) -> Source:
    """Return the files of a version's raw path, and how they are read: as the stage does, without erased rows.

    Raises:
        ExamplesError: there is no data; a parameter names what is not there.
        TemplateError: nothing can be written for the model.
    """
    files, ignored = examples.choose_files(raw, settings)
    return Source(raw, files, ignored, examples.open_reader(model, settings, version, erased))


def look_at_sample(source: Source) -> Look | None:
    """Return what a sample says; None where there are no more rows than it would have.

    Raises:
        ExamplesError: a file cannot be read at all, or nothing tells what its rows are.
    """
    facts, random = Facts(), Random(source.reader.settings.seed)
    batches, whole = _draw_from(source, facts, random)
    there = sum(len(batch.records) for batch in batches)
    if whole and there <= SAMPLE:
        return None
    tables = [table for batch in _draw(batches, random) for table in read_batch(batch, source.reader, facts)]
    tally = Tally()
    for table in tables:
        tally.add(table)
    look = _conclude(source, facts, tally, mark_some(source, facts, tables))
    return replace(look, sample=Sampled(facts.count, there, whole))


def look_at_all(
    source: Source, before: Artifacts, cache: Path, *, shown: Sequence[Marked] = (), tell: Callable[[int], None]
) -> Look:
    """Return exactly what there is, and what a run would make of it.

    Args:
        before: the artifacts of the version that this one continues from.
        cache: where rows lie meanwhile.
        shown: examples that were rendered already.
        tell: called with the number of rows read so far.

    Raises:
        ExamplesError: as `look_at_sample`.
    """
    facts, tally = Facts(), Tally()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".look-") as scratch:
        kept = Path(scratch) / "read.arrow"
        examples.spill(_count(read_all(source, facts), facts, tally, tell), kept)
        marked = tuple(shown) or mark_some(source, facts, examples.stream(kept))
        division, foreseen = foresee(facts, source, before, examples.Texts(kept))
    same = [link is not None for link in link_duplicates(facts.same)]
    likeness = division.likeness if division is not None else None
    near = None if likeness is None else zip(likeness.first >= 0, same, strict=True)
    return replace(
        _conclude(source, facts, tally, marked),
        duplicates=sum(same),
        near_duplicates=None if near is None else sum(bool(like) and not repeated for like, repeated in near),
        near_held_out=None if likeness is None else int(likeness.near_held_out.sum()),
        near_validation=None if likeness is None else int(likeness.near_validation.sum()),
        planted=None if division is None else examples.count_planted(division, facts),
        foreseen=foreseen,
    )


def read_all(source: Source, facts: Facts) -> Iterator[pa.Table]:
    """Yield all good rows as the stage does, by several processes where there are many."""
    batches = cut_files(source.files, source.reader, facts)
    for batch in batches:
        yield from read_batch(batch, source.reader, facts)
        if facts.count >= ALONE:
            break
    following = next(batches, None)
    if following is not None:
        yield from read_in_processes(chain([following], batches), source.reader, facts)


def mark_some(source: Source, facts: Facts, tables: Iterator[pa.Table] | list[pa.Table]) -> tuple[Marked, ...]:
    """Return a few examples as they will be rendered, of different files where there are several."""
    places, start, marked = pick_places(facts.files, source.reader.settings.seed), 0, []
    for table in tables:
        inside = [place - start for place in places if start <= place < start + table.num_rows]
        marked += [_mark(row, source.reader) for row in table.take(pa.array(inside, pa.int64())).to_pylist()]
        start += table.num_rows
    return tuple(marked)


def pick_places(files: Sequence[str], seed: int) -> list[int]:
    """Return the places of a few rows, ascending: of different files first, drawn with a seed.

    >>> pick_places(["a", "a", "a", "a", "b"], 0)[-1]
    4
    """
    order = list(range(len(files)))
    Random(seed).shuffle(order)
    first: dict[str, int] = {}
    for place in order:
        first.setdefault(files[place], place)
    picked = dict.fromkeys([*first.values(), *order])
    return sorted(list(picked)[:SHOWN])


def foresee(facts: Facts, source: Source, before: Artifacts, texts: examples.Texts) -> tuple[Division | None, Foreseen]:
    """Return how a run would divide the rows, and what that comes to; None where it would stop before.

    Args:
        facts: what is known of the rows.
        source: where they come from.
        before: the artifacts of the version before.
        texts: what rows are compared by.
    """
    settings = source.reader.settings
    try:
        earlier, known = read_before(before.examples, before.selection), True
    except ArtifactError:
        earlier, known = make_earlier([], []), False
    bad = _find_stop(refuse_unknown, source.files, source.reader, facts)
    bad = bad or _find_stop(examples.refuse_bad_rows, facts, settings)
    try:
        division = divide(facts, earlier, settings, source.raw, partial(find_likeness, texts, settings=settings))
    except (ExamplesError, SplitError) as error:
        return None, Foreseen(None, None, bad or str(error))
    distinct = [link is None for link in division.first]
    changes = Counter(compress(division.changes, distinct))
    return division, Foreseen(
        {side: count for side in examples.SIDES if (count := division.count(side))},
        {name: changes[name] for name in ("new", "edited", "kept")} if known else None,
        bad or _find_stop(examples.refuse_empty_sides, division, settings),
    )


def _find_stop(refuse: Callable[..., None], *arguments: Any) -> str | None:
    """Return why a run would stop at a check; None where it would not."""
    try:
        refuse(*arguments)
    except ExamplesError as error:
        return str(error)
    return None


def _conclude(source: Source, facts: Facts, tally: Tally, marked: tuple[Marked, ...]) -> Look:
    return Look(
        sample=None,
        files=count_files(facts),
        not_read=tuple(source.not_read),
        examples=marked,
        rows=facts.count,
        rejected=len(facts.rejects),
        erased=facts.erased,
        turns=spread(tally.turns),
        tokens=spread(tally.tokens),
        learnt_tokens=spread(tally.learnt),
        topics=rank_topics(facts.topics),
        rejects=group_rejects(facts),
        notes=tell_notes(facts),
        split_rows=facts.split,
    )


def _count(tables: Iterator[pa.Table], facts: Facts, tally: Tally, tell: Callable[[int], None]) -> Iterator[pa.Table]:
    for table in tables:
        tally.add(table)
        tell(facts.count)
        yield table


def _mark(row: Mapping[str, Any], reader: Reader) -> Marked:
    sequences = mark_conversation(reader.template, read_conversation(row)) if reader.template else ()
    return Marked(row["file"], row["line"], row["tokens"], row["response_tokens"], sequences)


def _draw_from(source: Source, facts: Facts, random: Random) -> tuple[list[Batch], bool]:
    """Return the rows that a sample is drawn from, and whether these are all."""
    picked = sorted(random.sample(range(len(source.files)), min(FILES, len(source.files))))
    files = [source.files[place] for place in picked]
    most, size, whole = max(1, FIRST // len(files)), 0, len(files) == len(source.files)
    rows: Counter[str] = Counter()
    batches = []
    for batch in cut_files(files, source.reader, facts, most=most):
        batches.append(batch)
        rows[batch.records[0].file] += len(batch.records)
        size += sum(map(_measure, batch.records))
        if size > READ_CHARACTERS:
            return batches, False
    return batches, whole and all(count < most for count in rows.values())


def _draw(batches: Sequence[Batch], random: Random) -> Iterator[Batch]:
    """Yield the rows of a sample, in their order."""
    every = [(number, place) for number, batch in enumerate(batches) for place in range(len(batch.records))]
    drawn, size = [], 0
    for number, place in random.sample(every, min(SAMPLE, len(every))):
        drawn.append((number, place))
        size += _measure(batches[number].records[place])
        if size > SAMPLE_CHARACTERS:
            break
    places: dict[int, list[int]] = {}
    for number, place in sorted(drawn):
        places.setdefault(number, []).append(place)
    for number, inside in places.items():
        yield replace(batches[number], records=[batches[number].records[place] for place in inside])


def _measure(record: Record) -> int:
    """Return about how many characters a record has."""
    return len(record.text if record.text is not None else dump(record.value))
