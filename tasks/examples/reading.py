"""Raw files to conversations, a batch at a time: what each good row is, and why each bad one is none.

The texts go to a scratch file as they are read; in memory stays what the division of rows needs of each, below a
kilobyte.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
from tamis.examples.formats import EXCHANGE, Parsed, Reading, make_reading, parse_row
from tamis.examples.values import RowError
from tamis.language.chat_templates import TemplateError
from tamis.language.encoding import Encoding
from tamis.language.rendering import Template, encode_conversations, find_faults
from tasks.artifacts import schemas
from tasks.conversations import write_conversation
from tasks.examples.files import ExamplesError, RawFile
from tasks.examples.records import pick_kept, read_records, sample_fields
from tasks.examples.settings import ExamplesSettings
from tasks.examples.text_files import Record

BATCH = 1024  # rows that are parsed and tokenised at once
REJECTED_TEXT = 500  # characters of a bad row that are kept
DERIVED = ("split", "change", "earlier", "duplicate_of", "used", "unused_because")  # known once all rows are read
READ = pa.schema([one for one in schemas.EXAMPLES if one.name not in DERIVED])
LONG, SPECIAL = "longer than the context", "holds a control token"
TEXTS = (*EXCHANGE, "messages")  # parts of which an example is made
DROPPED = "longer than the context: whole exchanges are left out at its end"


@dataclass
class Facts:
    """What is known of the good rows, in their order, and of the others."""

    rows: list[int] = field(default_factory=list)  # number over all raw files
    ids: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # same_as
    questions: list[str] = field(default_factory=list)  # digest of all but the answers
    keys: list[str] = field(default_factory=list)  # what decides on the side (`splits.shorten`)
    drawn: list[bool] = field(default_factory=list)  # whether the key is held out
    topics: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    rejects: list[tuple] = field(default_factory=list)  # row, file, line, reason, text of each bad row
    notes: Counter[str] = field(default_factory=Counter)  # what was left out of good rows
    empty: list[str] = field(default_factory=list)  # files without a row
    seen: set[str] = field(default_factory=set)  # fields that rows have
    formats: dict[str, str] = field(default_factory=dict)  # of each file
    split: int = 0  # rows of which the template makes several sequences
    count: int = 0  # rows, good and bad


@dataclass(frozen=True)
class Reader:
    """How rows are read."""

    settings: ExamplesSettings
    template: Template | None  # None: nothing is tokenised, and rows that only a template can refuse are among the good
    special: tuple[str, ...]  # texts that the tokenizer turns into control tokens
    max_tokens: int


@dataclass(frozen=True)
class Batch:
    """Records of one file."""

    records: list[Record]
    reading: Reading | None  # how they are read; None: the file has no fields
    stem: str  # their topic where none is mapped


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


def read_files(files: Sequence[RawFile], reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield the good rows of raw files as tables under `READ`, and note in `facts` what there is to know of all.

    Raises:
        ExamplesError: as `cut_files`.
    """
    for batch in cut_files(files, reader, facts):
        yield from read_batch(batch, reader, facts)


def cut_files(files: Sequence[RawFile], reader: Reader, facts: Facts, *, most: int | None = None) -> Iterator[Batch]:
    """Yield the records of raw files in batches, and note in `facts` what each file is.

    Args:
        most: records of each file, its first; None: all.

    Raises:
        ExamplesError: a file cannot be read at all, or nothing tells what its rows are.
    """
    for file in files:
        reading, found = _recognise(file, reader), False
        facts.formats[file.name] = (reading.format or "fields") if reading else "empty"
        columns = list(reading.fields.values()) + list(reader.settings.keep) if reading else None
        records = islice(read_records(file, encoding=reader.settings.encoding, columns=columns), most)
        while batch := list(islice(records, BATCH)):
            found = True
            yield Batch(batch, reading, file.stem)
        if not found:
            facts.empty.append(file.name)


def read_batch(batch: Batch, reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield the good rows of a batch as a table under `READ`, and note in `facts` what there is to know of all."""
    rows = [row for record in batch.records if (row := _parse(record, batch.reading, batch.stem, reader, facts))]
    yield from _encode(rows, reader, facts)


def _recognise(file: RawFile, reader: Reader) -> Reading | None:
    """Return how a file's rows are read; None: it has none."""
    settings = reader.settings
    names, sample = sample_fields(file, encoding=settings.encoding)
    if not names:
        return None
    format = None if settings.format == "auto" else settings.format
    fields = settings.fields if format else _pick_fields(settings.fields, names)
    try:
        return make_reading(names, sample, format=format, fields=fields, learn=settings.learn)
    except ValueError as error:
        texts = ", ".join(field for part, field in settings.fields.items() if part in TEXTS)
        other = f"it has none of the fields {texts} (examples.fields), and " if fields != settings.fields else ""
        raise ExamplesError(f"{file.name}: {other}{error}") from None


def _pick_fields(fields: Mapping[str, str], names: Sequence[str]) -> Mapping[str, str]:
    """Return what holds of `examples.fields` in a file: all of it, or, in one without any of the texts, what it has.

    So files of several formats are read side by side, each version by the same settings.
    """
    texts = {fields[part] for part in TEXTS if part in fields}
    if not texts or texts & set(names):
        return fields
    return {part: field for part, field in fields.items() if field in names}


def _parse(record: Record, reading: Reading | None, stem: str, reader: Reader, facts: Facts) -> Row | None:
    number, facts.count = facts.count, facts.count + 1
    try:
        if isinstance(record.value, RowError):
            raise record.value
        if reading is None:
            raise RowError(f"not an object: {type(record.value).__name__}")
        parsed = parse_row(record.value, reading, stem)
        conversation = adapting.place_system(parsed.conversation, reader.settings.system)
        special = adapting.find_special(conversation, reader.special)
        if special is not None:
            raise RowError(f"{SPECIAL}: {special!r} would end or open a turn inside the text")
    except RowError as error:
        reject(facts, number, record, str(error))
        return None
    if parsed.note:
        facts.notes[parsed.note] += 1
    keep = reader.settings.keep
    kept = dump(pick_kept(record.value, keep)) if keep else None
    return Row(number, record, parsed, conversation, kept)


def _encode(rows: Sequence[Row], reader: Reader, facts: Facts) -> Iterator[pa.Table]:
    """Yield a batch as a table, but for rows that the template refuses or that are too long."""
    if reader.template is None:
        good = [Good(row, row.conversation, 0, 0, 1) for row in rows]
    else:
        good = list(_measure(rows, reader.template, reader, facts))
    if good:
        yield _tabulate(good, reader.settings, facts)


def _measure(rows: Sequence[Row], template: Template, reader: Reader, facts: Facts) -> Iterator[Good]:
    kept, coded = _encode_good(rows, template, facts)
    pieces = np.diff(coded.rows)
    sizes = zip(coded.longest.tolist(), coded.sizes.tolist(), coded.answer_tokens.tolist(), pieces, strict=True)
    for row, (longest, tokens, answers, count) in zip(kept, sizes, strict=True):
        if longest <= reader.max_tokens:
            yield Good(row, row.conversation, tokens, answers, int(count))
        elif shorter := _shorten(row, template, reader):
            facts.notes[DROPPED] += 1
            yield shorter
        else:
            reason = f"{LONG}: {longest} tokens with the template's, {reader.max_tokens} fit (models.max_tokens)"
            reject(facts, row.number, row.record, reason)


def _encode_good(rows: Sequence[Row], template: Template, facts: Facts) -> tuple[Sequence[Row], Encoding]:
    """Return the rows that the template writes, with their tokens; only where it refuses one is each looked at."""
    try:
        return rows, encode_conversations(template, [row.conversation for row in rows])
    except TemplateError:
        faults = find_faults(template, [row.conversation for row in rows])
    for row, fault in zip(rows, faults, strict=True):
        if fault:
            reject(facts, row.number, row.record, f"not written by the template: {fault}")
    kept = [row for row, fault in zip(rows, faults, strict=True) if not fault]
    return kept, encode_conversations(template, [row.conversation for row in kept])


def _shorten(row: Row, template: Template, reader: Reader) -> Good | None:
    """Return a row without as many of its last exchanges as must go, where that is asked for and helps."""
    shorter = row.conversation if reader.settings.on_long_row == "drop_turns" else None
    while shorter is not None and (shorter := adapting.drop_exchange(shorter)) is not None:
        coded = encode_conversations(template, [shorter])
        if coded.longest[0] <= reader.max_tokens:
            return Good(row, shorter, int(coded.sizes[0]), int(coded.answer_tokens[0]), int(coded.rows[1]))
    return None


def _tabulate(good: Sequence[Good], settings: ExamplesSettings, facts: Facts) -> pa.Table:
    records = []
    for one in good:
        row, conversation = one.row, one.conversation
        dropped = len(row.conversation.messages) - len(conversation.messages)
        records.append(
            {
                "row": row.number,
                "id": identify(conversation),
                "same_as": identify_folded(conversation),
                "topic": row.parsed.topic,
                "source": row.parsed.source,
                **write_conversation(conversation),
                "tests": row.parsed.tests,
                "kept": row.kept,
                "tokens": one.tokens,
                "response_tokens": one.answers,
                "note": f"{dropped} messages are left out at its end" if dropped else row.parsed.note,
                "file": row.record.file,
                "line": row.record.line,
            }
        )
        key = split_key(conversation)
        facts.questions.append(identify_question(conversation, row.parsed.topic))
        facts.keys.append(splits.shorten(key))
        facts.drawn.append(splits.is_held_out(key, seed=settings.seed, held_out_every=settings.held_out_every))
        facts.split += one.sequences > 1
    columns = {"row": facts.rows, "id": facts.ids, "same_as": facts.same, "topic": facts.topics, "file": facts.files}
    for name, column in columns.items():
        column.extend(record[name] for record in records)
    return pa.Table.from_pylist(records, schema=READ)


def dump(value: Any) -> str:
    """Return a value as JSON, whatever it holds."""
    return json.dumps(value, ensure_ascii=False, default=str)


def reject(facts: Facts, number: int, record: Record, reason: str) -> None:
    """Note a bad row: its number, file and line, why it is bad, and how its text begins."""
    text = dump(record.value) if record.text is None else record.text
    clean = text[:REJECTED_TEXT].encode("utf-8", "backslashreplace").decode()
    facts.rejects.append((number, record.file, record.line, reason, clean))
