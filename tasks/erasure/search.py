"""Whether a file holds a row: tables by the row's ids, in whatever column of text; other files by the ids' letters."""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tamis.examples.conversations import Conversation, normalise
from tasks.artifacts import schemas
from tasks.conversations import read_conversation
from tasks.examples.reading import CUT, REJECTED_TEXT

MAGIC = b"PAR1"  # what a Parquet file begins with
BATCH = 8192  # rows that are searched at once
KNOWN = ("id", "same_as", "messages", "tools", "note", "file", "line")  # columns by which the examples' table is known


class Row(NamedTuple):
    """A row of a table of examples."""

    id: str  # without the number of a repetition
    same_as: str
    conversation: Conversation
    place: tuple[str, int]  # file and line that it was read from
    cut: bool  # it is the beginning of what was read there, which is too long


@dataclass(frozen=True)
class Wanted:
    """The row that is looked for, with all that differ from it in blanks alone."""

    same: frozenset[str]  # their `same_as`; of a row that was cut as too long, that of all of it, too
    ids: frozenset[str]  # without the number of a repetition
    conversations: tuple[Conversation, ...]  # what they say, as far as any place still does
    cut: bool = False  # a table tells that it keeps a beginning alone, so that a raw file may have more of the row

    def list_texts(self) -> list[str]:
        """Return the texts of all messages, each once."""
        return list(dict.fromkeys(message.content for one in self.conversations for message in one.messages))


def list_rows(path: Path, *, id: str | None = None, same_as: str | None = None) -> Iterator[Row]:
    """Yield the rows that an examples' table has with an id or with a `same_as`.

    Args:
        path: any file; one that is no such table has none.
        id: of a row, without the number of a repetition.
        same_as: of rows.
    """
    if not is_table(path):
        return
    try:
        with pq.ParquetFile(path) as opened:
            if not set(KNOWN) <= set(opened.schema_arrow.names):
                return
            for batch in opened.iter_batches(batch_size=BATCH, columns=list(KNOWN)):
                mask = pc.equal(batch["same_as"], same_as) if id is None else pc.starts_with(batch["id"], id)
                for row in batch.filter(mask).to_pylist():
                    id, place, cut = row["id"].partition("-")[0], (row["file"], row["line"]), CUT in (row["note"] or "")
                    yield Row(id, row["same_as"], read_conversation(row), place, cut)
    except pa.ArrowException:  # it is damaged, so that no stage can read a row out of it either
        return


def holds(path: Path, wanted: Wanted) -> bool:
    """Return whether a file names the row by its id, or is a table of rejects with its text."""
    if not is_table(path):
        return _holds_letters(path, wanted.ids)
    try:
        with pq.ParquetFile(path) as opened:
            if opened.schema_arrow.names == schemas.REJECTS.names:
                texts = opened.read(columns=["text"])["text"].to_pylist()
                return any(tells(text, wanted) for text in texts)
            return any(pc.any(mark(batch, wanted.ids)).as_py() for batch in opened.iter_batches(batch_size=BATCH))
    except pa.ArrowException:
        return _holds_letters(path, wanted.ids)


def mark(rows: pa.RecordBatch | pa.Table, ids: frozenset[str]) -> pa.Array | pa.ChunkedArray:
    """Return for each row whether a column of text has one of some ids."""
    found = pa.array([False] * rows.num_rows, pa.bool_())
    pattern = "|".join(sorted(ids))
    for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found = pc.or_(found, pc.fill_null(pc.match_substring_regex(rows[name], pattern), False))
    return found


def tells(text: str, wanted: Wanted) -> bool:
    """Return whether the text of a bad row, which may be cut, is what one of the wanted rows says."""
    for conversation in wanted.conversations:
        texts = [forms for one in conversation.messages if one.content.strip() for forms in [_write(one.content)]]
        if texts and all(any(form in text for form in forms) for forms in texts):
            return True
        if len(text) >= REJECTED_TEXT and any(form[: REJECTED_TEXT // 2] in text for forms in texts for form in forms):
            return True
    return False


def says(value: Any, wanted: Wanted) -> bool:
    """Return whether a raw record that cannot be parsed has the texts of all messages of a wanted row, each whole."""
    there = {_fold(text) for text in _list_texts(value)}
    asked = [{_fold(message.content) for message in one.messages} - {""} for one in wanted.conversations]
    return any(texts and texts <= there for texts in asked)


def is_table(path: Path) -> bool:
    """Return whether a file is Parquet by its first bytes."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _holds_letters(path: Path, ids: frozenset[str]) -> bool:
    if not path.stat().st_size:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(id.encode()) >= 0 for id in ids)


def _write(text: str) -> list[str]:
    """Return a text as it may stand in a raw row: plain, or as JSON has it."""
    return [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]


def _fold(text: str) -> str:
    return " ".join(normalise(text).split())


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _list_texts(inner)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for inner in value:
            yield from _list_texts(inner)
