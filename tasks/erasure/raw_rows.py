"""Raw files that hold a row: which, on which lines, and a file of JSON lines without these."""

import codecs
import errno
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.examples.adapting import drop_exchange
from tamis.examples.conversations import Conversation, identify, identify_folded
from tasks.artifacts.tables import ArtifactError, replacing
from tasks.erasure.search import Wanted, says
from tasks.examples.division import name_apart
from tasks.examples.files import PACKED, ExamplesError, RawFile, find_kind, list_files
from tasks.examples.reading import Facts, Reader, cut_files, parse
from tasks.examples.records import read_records
from tasks.examples.settings import ExamplesSettings, Source, choose_settings, find_source, list_sources


@dataclass(frozen=True)
class RawRow:
    """A row where it stands."""

    path: Path
    line: int  # from 1; the record's number in files without lines
    id: str  # of all of it, also where the stage keeps its beginning alone
    same_as: str
    conversation: Conversation
    lines: bool  # whether the file is one of JSON lines, of which one can be taken out


def list_raw_rows(raw: Path, version: str, settings: ExamplesSettings, **asked: Any) -> Iterator[RawRow]:
    """Yield the rows that a version's raw files have, in all files of rows that lie there.

    Args:
        raw: the version's raw path.
        version: whose settings for some files hold.
        settings: how rows are read.
        asked: which rows, as `list_file_rows` takes it.

    Raises:
        ExamplesError: a file cannot be read.
    """
    files, _ = list_files(raw, name_apart(settings))
    yield from list_file_rows(files, settings, list_sources(settings, version), **asked)


def list_file_rows(
    files: Sequence[RawFile],
    settings: ExamplesSettings,
    sources: Sequence[Source] = (),
    *,
    id: str | None = None,
    same: Collection[str] = (),
    cut: Collection[tuple[str, int]] = (),
) -> Iterator[RawRow]:
    """Yield the rows of raw files that have an id or a `same_as`.

    Args:
        files: what `list_files` found.
        settings: how rows are read.
        sources: what a version says of some of its files.
        id: of a row.
        same: `same_as` of rows.
        cut: files and lines of which the stage may have kept the beginning alone, by which they are found, too.

    Raises:
        ExamplesError: a file cannot be read.
    """
    places = {file.name: file for file in files}
    reader = Reader(settings, None, (), 0, tuple(sources))
    for batch in cut_files(files, reader, Facts()):
        for record in batch.records:
            row = parse(record, batch, reader, Facts())
            if row and (
                identify(row.conversation) == id
                or identify_folded(row.conversation) in same
                or ((record.file, record.line) in cut and _begins(row.conversation, same))
            ):
                file = places[record.file]
                encoding = choose_settings(find_source(file, sources), settings).encoding
                digests = identify(row.conversation), identify_folded(row.conversation)
                yield RawRow(file.path, record.line, *digests, row.conversation, _has_lines(file, encoding))


def find_in_file(
    path: Path,
    name: str,
    settings: ExamplesSettings,
    wanted: Wanted,
    sources: Sequence[Source] = (),
    *,
    cut: bool = False,
) -> bool:
    """Return whether a raw file of another time holds the row.

    Args:
        path: of the file, whose name ends as its format wants it.
        name: that it had, inside the raw folder.
        settings: how rows are read.
        wanted: the row.
        sources: what a version says of some of its files.
        cut: what begins as the row does counts as the row, of which the beginning alone is known.
    """
    kind = find_kind(name)
    if kind is None:
        return False
    file = RawFile(f"raw/{name}", path, kind, None, "raw")
    try:
        reader = Reader(settings, None, (), 0, tuple(sources))
        for batch in cut_files([file], reader, Facts()):
            rows = (parse(record, batch, reader, Facts()) for record in batch.records)
            said = [row.conversation for row in rows if row]
            if any(identify_folded(one) in wanted.same or (cut and _begins(one, wanted.same)) for one in said):
                return True
    except ExamplesError:  # today's settings do not fit it: each record is held against the texts instead
        return any(says(record.value, wanted) for record in _read_what_can_be(file, settings))
    return False


def drop_lines(path: Path, lines: Sequence[int], drafts: Path) -> None:
    """Write a file of JSON lines without some of its lines, counted from 1: whole or not at all.

    Args:
        path: of the file.
        lines: those that go.
        drafts: the folder in which it is written, as git and DVC would take in what a kill leaves beside the file; one
            on another file system cannot be used, and it is written beside the file after all.

    Raises:
        ArtifactError: the disk is full or refuses the write.
    """
    try:
        _write_without(set(lines), path, drafts)
    except ArtifactError as error:
        if getattr(error.__cause__, "errno", None) != errno.EXDEV:
            raise
        _write_without(set(lines), path, path.parent)


def _write_without(gone: Collection[int], path: Path, drafts: Path) -> None:
    with replacing(path, drafts) as part, open(path, "rb") as source, open(part, "wb") as target:
        target.writelines(line for number, line in enumerate(source, start=1) if number not in gone)


def _begins(conversation: Conversation, same: Collection[str]) -> bool:
    """Return whether a conversation without some of its last exchanges is a row with a `same_as`."""
    shorter = drop_exchange(conversation)
    while shorter is not None and identify_folded(shorter) not in same:
        shorter = drop_exchange(shorter)
    return shorter is not None


def _has_lines(file: RawFile, encoding: str) -> bool:
    """Return whether a file is one of JSON lines as they stand, whose lines end where their bytes say so."""
    plain = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    return file.kind == "jsonl" and plain and not file.path.name.lower().endswith(PACKED)


def _read_what_can_be(file: RawFile, settings: ExamplesSettings) -> Iterator:
    """Yield the records of a file up to the first place that cannot be read."""
    try:
        yield from read_records(file, encoding=settings.encoding)
    except ExamplesError:
        return
