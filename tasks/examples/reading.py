"""Raw files to conversations, a batch at a time: what each good row is, and why each bad one is none.

The texts go to a scratch file as they are read; in memory stays what the division of rows needs of each, below a
kilobyte.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.examples import adapting, splits
from tamis.examples.conversations import (
    Conversation,
    identify,
    identify_folded,
    identify_question,
    split_key,
)
from tamis.examples.formats import Parsed, Reading, list_unread, make_reading, parse_row
from tamis.examples.values import RowError
from tamis.language.chat_templates import Template, TemplateError, list_left_out
from tamis.language.encoding import Encoding
from tamis.language.rendering import encode_conversations, find_faults
from tasks.artifacts import schemas
from tasks.conversations import write_conversation
from tasks.examples.files import LISTS_DATA, ExamplesError, RawFile, find_list, list_some
from tasks.examples.records import pick_kept, read_records, sample_fields
from tasks.examples.settings import ExamplesSettings, Source, choose_settings, find_source
from tasks.examples.text_files import Record

BATCH = 1024  # rows that are parsed and tokenised at once
REJECTED_TEXT = 500  # characters of a bad row that are kept
DERIVED = (  # columns that are known once all rows are read
    "split",
    "change",
    "earlier",
    "duplicate_of",
    "near_duplicate_of",
    "cluster_size",
    "weight",
    "used",
    "unused_because",
)
READ = pa.schema([one for one in schemas.EXAMPLES if one.name not in DERIVED])
LONG, SPECIAL = "longer than the context", "holds a control token"
CUT = "left out at its end"  # ends the note of a row that is kept by its beginning alone
DROPPED = f"longer than the context: whole exchanges are {CUT}"
FIELDLESS = "no fields"  # what a file is called whose rows have none
SHOWN = 20  # fields that an error names


@dataclass
class Facts:
    """What is known of the good rows, in their order, and of the others."""

    rows: list[int] = field(default_factory=list)  # number over all raw files
    ids: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # same_as
    questions: list[str] = field(default_factory=list)  # digest of all but the answers
    keys: list[str] = field(default_factory=list)  # what decides on the side (`splits.shorten`)
    drawn: list[bool] = field(default_factory=list)  # whether the key is held out
    validating: list[bool] = field(default_factory=list)  # whether the key is drawn as one of validation rows
    planted: list[str | None] = field(default_factory=list)  # what is known to be wrong with a row
    topics: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    rejects: list[tuple] = field(default_factory=list)  # row, file, line, reason, text of each bad row
    notes: Counter[str] = field(default_factory=Counter)  # what was left out of good rows -> of how many
    dropped: int = 0  # exchanges that were left out
    empty: list[str] = field(default_factory=list)  # files without a row
    seen: set[str] = field(default_factory=set)  # fields of the first rows, and of those asked for what any row has
    formats: dict[str, str] = field(default_factory=dict)  # of each file
    splits: dict[str, str | None] = field(default_factory=dict)  # likewise
    unread: dict[str, list[str]] = field(default_factory=dict)  # of each file, fields that nothing is read from
    split: int = 0  # rows of which the template makes several sequences
    erased: int = 0  # rows that are left out because they were erased
    count: int = 0  # rows, good, bad and erased


@dataclass(frozen=True)
class Reader:
    """How rows are read."""

    settings: ExamplesSettings
    template: Template | None  # None: nothing is tokenised, and rows that only a template can refuse are among the good
    special: tuple[str, ...]  # texts of control tokens that no message may hold
    max_tokens: int
    sources: tuple[Source, ...] = ()  # what is said of some files
    left_out: frozenset[str] = frozenset()  # what the template does not write (`find_left_out`)
    erased: Collection[str] = ()  # `same_as` of rows that are left out, wherever they come from


@dataclass(frozen=True)
class Batch:
    """Records of one file."""

    records: list[Record]
    stem: str  # their topic where none is mapped
    reading: Reading | None  # how they are read; None: the file has no fields
    source: Source  # what is said of the file


@dataclass(frozen=True)
class Row:
    """A row that was parsed."""

    number: int
    record: Record
    parsed: Parsed
    conversation: Conversation
    kept: str | None


@dataclass(frozen=True)
class Good:
    """A row that becomes an example."""

    row: Row
    conversation: Conversation  # that is kept of it
    tokens: int  # of all its sequences
    answers: int  # of these, answer tokens
    sequences: int
    dropped: int = 0  # exchanges that were left out at its end


def read_files(files: Sequence[RawFile], reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield the good rows of raw files as tables under `READ`, and note in `facts` what there is to know of all.

    Raises:
        ExamplesError: as `cut_files`; a field that no row has.
    """
    for batch in cut_files(files, reader, facts):
        yield from read_batch(batch, reader, facts)
    refuse_unknown(files, reader, facts)


def cut_files(files: Sequence[RawFile], reader: Reader, facts: Facts, *, most: int | None = None) -> Iterator[Batch]:
    """Yield the records of raw files in batches, and note in `facts` what each file is.

    Args:
        most: records of each file, its first; None: all.

    Raises:
        ExamplesError: a file cannot be read at all, or nothing tells what its rows are; a source names no file.
    """
    _refuse_unfit(files, reader.sources)
    for file in files:
        source = find_source(file, reader.sources)
        settings = choose_settings(source, reader.settings)
        reading, found = _recognise(file, settings, facts), False
        facts.formats[file.name] = (reading.format or "fields") if reading else "empty"
        facts.splits[file.name] = file.split
        columns = [*reading.fields.values(), *settings.keep] if reading else None
        records = islice(read_records(file, encoding=settings.encoding, columns=columns), most)
        while batch := list(islice(records, BATCH)):
            if reading is None:
                facts.formats[file.name] = FIELDLESS
            found = True
            yield Batch(batch, file.stem, reading, source)
        if not found:
            facts.empty.append(file.name)


def read_batch(batch: Batch, reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield the good rows of a batch as a table under `READ`, and note in `facts` what there is to know of all."""
    settings = choose_settings(batch.source, reader.settings)
    facts.seen |= _find_fields(batch.records, {*settings.fields.values(), *settings.keep} - facts.seen)
    rows = [row for record in batch.records if (row := parse(record, batch, reader, facts))]
    yield from _encode([label(row, batch.source) for row in rows], reader, facts)


def label(row: Row, source: Source) -> Row:
    """Return a row with the topic of its source, and the source's label where it has none."""
    parsed = row.parsed
    told = replace(parsed, topic=source.topic or parsed.topic, source=parsed.source or source.source)
    return replace(row, parsed=told)


def _refuse_unfit(files: Sequence[RawFile], sources: Sequence[Source]) -> None:
    unfit = [one.path for one in sources if not any(one.fits(file) for file in files)]
    if unfit:
        there = list_some([file.name.partition("/")[2] or file.name for file in files], SHOWN)
        raise ExamplesError(
            f"{len(unfit)} of {len(sources)} sources name no file that is read, first {unfit[0]!r}; there are {there}"
        )


def _find_fields(batch: Sequence[Record], wanted: set[str]) -> set[str]:
    """Return those of some fields that a row of a batch has."""
    if not wanted:
        return wanted
    return {name for record in batch if isinstance(record.value, Mapping) for name in wanted & record.value.keys()}


def refuse_unknown(files: Sequence[RawFile], reader: Reader, facts: Facts) -> None:
    """Check that some row has each field that the settings name, or the sources where these say it.

    Raises:
        ExamplesError: naming the field, and those that there are.
    """
    asked = dict.fromkeys(reader.settings.keep, "examples.keep names")
    for file in files:
        source = find_source(file, reader.sources)
        whose = "examples.fields maps to" if source.fields is None else "a source maps to"
        fields = choose_settings(source, reader.settings).fields
        asked |= {name: f"{whose} {part}" for part, name in fields.items() if name}
    unknown = [name for name in asked if name not in facts.seen]
    if unknown and facts.seen:
        there = list_some(sorted(facts.seen), SHOWN)
        raise ExamplesError(
            f"0 of {facts.count} rows have the field {unknown[0]!r} that {asked[unknown[0]]}; there are {there}"
        )


def _recognise(file: RawFile, settings: ExamplesSettings, facts: Facts) -> Reading | None:
    """Return how a file's rows are read; None: it has none."""
    names, sample = sample_fields(file, encoding=settings.encoding)
    facts.seen.update(names)
    if not names:
        return None
    try:
        format = None if settings.format == "auto" else settings.format
        reading = make_reading(names, sample, format=format, fields=settings.fields, learn=settings.learn)
    except ValueError as error:
        listed = find_list(file)
        beside = f"; {listed} is {LISTS_DATA}" if listed else ""
        raise ExamplesError(f"{file.name}: {error}{beside}") from None
    facts.unread[file.name] = [name for name in list_unread(names, reading) if name not in settings.keep]
    return reading


def parse(record: Record, batch: Batch, reader: Reader, facts: Facts) -> Row | None:
    """Return a record of a batch as a row; None where it is bad, which is noted in `facts`, or was erased."""
    number, facts.count = facts.count, facts.count + 1
    try:
        if isinstance(record.value, RowError):
            raise record.value
        if batch.reading is None:
            what = "it is empty" if isinstance(record.value, Mapping) else type(record.value).__name__
            raise RowError(f"not an object: {what}")
        parsed = parse_row(record.value, batch.reading, batch.stem)
        conversation = adapting.place_system(parsed.conversation, reader.settings.system)
        if _leave_out(conversation, reader, facts):  # before anything could make a reject of it, with its text
            return None
        special = adapting.find_special(conversation, reader.special)
        if special is not None:
            way_out = "set examples.on_special_tokens: as_text to read it as text"
            raise RowError(f"{SPECIAL}: {special!r} would end or open a turn inside the text; {way_out}")
    except RowError as error:
        reject(facts, number, record, str(error))
        return None
    keep = reader.settings.keep
    kept = dump(pick_kept(record.value, keep)) if keep else None
    return Row(number, record, parsed, conversation, kept)


def _leave_out(conversation: Conversation, reader: Reader, facts: Facts) -> bool:
    """Return whether a conversation was erased, and count it."""
    found = bool(reader.erased) and identify_folded(conversation) in reader.erased
    facts.erased += found
    return found


def _encode(rows: Sequence[Row], reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield a batch as a table, but for rows that the template refuses or that are too long."""
    if not rows:
        return
    if reader.template is None:
        good = [Good(row, row.conversation, 0, 0, 1) for row in rows]
    else:
        good = list(_measure(rows, reader.template, reader, facts))
        good = [one for one in good if not one.dropped or not _leave_out(one.conversation, reader, facts)]
    if good:
        yield _tabulate(good, reader, facts)


def _measure(rows: Sequence[Row], template: Template, reader: Reader, facts: Facts) -> Iterator[Good]:
    """Yield the rows that the template writes and that fit, with their tokens."""
    kept, coded = _write(rows, template, facts)
    pieces = np.diff(coded.rows)
    sizes = zip(coded.longest.tolist(), coded.sizes.tolist(), coded.answer_tokens.tolist(), pieces, strict=True)
    for row, (longest, tokens, answers, sequences) in zip(kept, sizes, strict=True):
        if longest <= reader.max_tokens:
            yield Good(row, row.conversation, tokens, answers, int(sequences))
        elif shorter := _shorten(row, template, reader):
            yield shorter
        else:
            whole = " and no beginning of it does" if reader.settings.on_long_row == "drop_turns" else ""
            fit = f"{reader.max_tokens} fit (models.max_tokens){whole}"
            reject(facts, row.number, row.record, f"{LONG}: {longest} tokens with the template's, {fit}")


def _write(rows: Sequence[Row], template: Template, facts: Facts) -> tuple[list[Row], Encoding]:
    """Return the rows that the template writes, and their tokens; the others become rejects."""
    try:
        return list(rows), encode_conversations(template, [row.conversation for row in rows], heads=False)
    except TemplateError:
        faults = find_faults(template, [row.conversation for row in rows])
    for row, fault in zip(rows, faults, strict=True):
        if fault:
            way_out = _find_way_out(row.conversation, template)
            reject(facts, row.number, row.record, f"not written by the template: {fault}{way_out}")
    kept = [row for row, fault in zip(rows, faults, strict=True) if not fault]
    return kept, encode_conversations(template, [row.conversation for row in kept], heads=False)


def _find_way_out(conversation: Conversation, template: Template) -> str:
    """Return which setting lets a template write a conversation that it refuses; "" where none does."""
    plain = adapting.place_system(conversation, "drop")
    helps = plain != conversation and find_faults(template, [plain]) == [None]
    return "; set examples.system: first_user, or drop, for a template without system messages" if helps else ""


def _shorten(row: Row, template: Template, reader: Reader) -> Good | None:
    """Return a row without as many of its last exchanges as must go, where that is asked for and helps."""
    shorter = row.conversation if reader.settings.on_long_row == "drop_turns" else None
    for dropped in count(1):
        shorter = adapting.drop_exchange(shorter) if shorter else None
        if shorter is None:
            return None
        if find_faults(template, [shorter]) == [None]:
            coded = encode_conversations(template, [shorter], heads=False)
            if coded.longest[0] <= reader.max_tokens:
                sizes = int(coded.sizes[0]), int(coded.answer_tokens[0]), int(coded.rows[1])
                return Good(row, shorter, *sizes, dropped)
    return None


def _note(good: Good, reader: Reader, facts: Facts) -> str | None:
    """Return what was left out of a row, and count it."""
    notes = [good.row.parsed.note] if good.row.parsed.note else []
    notes += list_left_out(good.conversation, reader.left_out)
    facts.notes.update(notes)
    if good.dropped:
        facts.notes[DROPPED] += 1
        facts.dropped += good.dropped
        notes.append(f"too long: {good.dropped} exchange{'s' * (good.dropped > 1)} {CUT}")
    return "; ".join(notes) or None


def _tabulate(good: Sequence[Good], reader: Reader, facts: Facts) -> pa.Table:
    records, settings = [], reader.settings
    for one in good:
        row, conversation = one.row, one.conversation
        records.append(
            {
                "row": row.number,
                "id": identify(conversation),
                "same_as": identify_folded(conversation),
                "topic": row.parsed.topic,
                "source": row.parsed.source,
                "planted": row.parsed.planted,
                **write_conversation(conversation),
                "tests": row.parsed.tests,
                "kept": row.kept,
                "tokens": one.tokens,
                "response_tokens": one.answers,
                "note": _note(one, reader, facts),
                "file": row.record.file,
                "line": row.record.line,
            }
        )
        key = split_key(conversation)
        facts.questions.append(identify_question(conversation, row.parsed.topic))
        facts.keys.append(splits.shorten(key))
        facts.drawn.append(splits.is_held_out(key, seed=settings.seed, held_out_every=settings.held_out_every))
        facts.validating.append(splits.validates(key, seed=settings.seed, validation_every=settings.validation_every))
        facts.split += one.sequences > 1
    columns = {"row": facts.rows, "id": facts.ids, "same_as": facts.same, "topic": facts.topics}
    columns |= {"planted": facts.planted, "file": facts.files}
    for name, column in columns.items():
        column.extend(record[name] for record in records)
    return pa.Table.from_pylist(records, schema=READ)


def tell_notes(facts: Facts) -> dict[str, int]:
    """Return what was left out of how many rows; of exchanges, how many in all, too.

    >>> tell_notes(Facts(notes=Counter({DROPPED: 2}), dropped=5))
    {'longer than the context: whole exchanges are left out at its end, 5 in all': 2}
    """
    return {f"{note}, {facts.dropped:,} in all" if note == DROPPED else note: n for note, n in facts.notes.items()}


def dump(value: Any) -> str:
    """Return a value as JSON, whatever it holds."""
    return json.dumps(value, ensure_ascii=False, default=str)


def reject(facts: Facts, number: int, record: Record, reason: str) -> None:
    """Note a bad row: its number, file and line, why it is bad, and how its text begins."""
    text = dump(record.value) if record.text is None else record.text
    clean = text[:REJECTED_TEXT].encode("utf-8", "backslashreplace").decode()
    facts.rejects.append((number, record.file, record.line, reason, clean))
