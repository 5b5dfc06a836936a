"""Raw files of text: JSON lines, JSON arrays, CSV and TSV, packed or not, in any encoding.

Lines are read one after another. Of a JSON array the text is held as a whole, and its rows are made one at a time.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

import pyarrow as pa

from tamis.examples.values import ENCODING, ESCAPED, RowError, make_object, parse_json
from tasks.examples.files import ExamplesError, RawFile, list_some, show_name

UTF8 = "utf-8"
MARK = "\ufeff"  # a byte order mark, decoded
BYTE_ORDER_MARKS = {  # the longer ones first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
READ_AS = {  # what an encoding's bytes may be read as
    "utf-32": ("utf-32", "utf-32-le", "utf-32-be"),
    "utf-16": ("utf-16", "utf-16-le", "utf-16-be"),
    "utf-16-le": ("utf-16-le", "utf-16"),
    "utf-16-be": ("utf-16-be",),
}
START = 4  # bytes by which an encoding is told
SHOWN = 5  # names in an error
SEPARATORS = {"csv": ",", "tsv": "\t"}
BLANK = re.compile(r"[ \t\n\r]*")  # between the values of JSON
PLAIN = json.JSONDecoder()
STRICT = json.JSONDecoder(object_pairs_hook=make_object)
LENIENT = json.JSONDecoder(parse_int=str)  # takes numbers of any length
BRACKET = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)  # or a text, in which brackets are none


class Record(NamedTuple):
    """One row as it stands in a file."""

    file: str  # from the raw folder's name on
    line: int  # from 1; the record's number in files without lines
    value: Any  # what is to become an example, or the RowError that says why nothing can be read
    text: str | None = None  # the line, where the format has lines


def read_text_file(file: RawFile, encoding: str) -> Iterator[Record]:
    """Yield the records of a file of text.

    Raises:
        ExamplesError: an unknown encoding, or another one than the first bytes tell; JSON that is no array of rows; CSV
            that is none, or names a column twice.
    """
    with _open_text(file, encoding) as lines:
        if file.kind == "jsonl":
            yield from _read_lines(lines, file, encoding)
        elif file.kind == "json":
            yield from _read_array("".join(lines), file)
        else:
            yield from _read_table(lines, file)


def read_columns(file: RawFile, encoding: str) -> list[str]:
    """Return the names of the columns of CSV or TSV.

    Raises:
        ExamplesError: as `read_text_file`.
    """
    with _open_text(file, encoding) as lines:
        rows = csv.reader(lines, strict=True, delimiter=SEPARATORS[file.kind])
        with _tell_place(rows, file):
            return _read_header(rows, file)


def refuse_twice(names: Sequence[str], file: RawFile) -> None:
    """Check that no two columns have one name, of which one would be lost.

    Raises:
        ExamplesError: naming the column.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExamplesError(f"{file.name} has {names.count(twice)} columns {twice!r}; give each a name of its own")


@contextmanager
def _open_text(file: RawFile, encoding: str) -> Iterator[Iterator[str]]:
    """Open a text, packed or not, and yield its lines with their ends, without a byte order mark.

    Bytes that are none of the encoding are kept as lone surrogates, of which the rows that hold them complain.
    """
    try:
        "".encode(encoding)
    except LookupError:
        raise ExamplesError(
            f"examples.encoding is {encoding!r}, which Python does not know as one of text; set utf-8, utf-16 or cp1252"
        ) from None
    with open_bytes(file) as opened:
        _check_encoding(opened.read(START), file, encoding)
    newline = "" if file.kind in SEPARATORS else "\n"
    with (
        open_bytes(file) as opened,
        io.TextIOWrapper(opened, encoding=encoding, errors="surrogateescape", newline=newline) as text,
    ):
        yield (line if place else line.removeprefix(MARK) for place, line in enumerate(text))


def open_bytes(file: RawFile) -> BinaryIO:
    """Open a file, packed or not, as what it holds."""
    name = file.path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(file.path, "rb"))
    if name.endswith(".bz2"):
        return bz2.open(file.path, "rb")
    return pa.input_stream(str(file.path), compression="zstd") if name.endswith(".zst") else open(file.path, "rb")


def _check_encoding(start: bytes, file: RawFile, encoding: str) -> None:
    """Check that the first bytes of a text do not belie its encoding."""
    found = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    zeros = [byte == 0 for byte in start]
    if zeros == [False, True, False, True]:
        found = "utf-16-le"
    elif zeros == [True, False, True, False]:
        found = "utf-16-be"
    if found is not None and codecs.lookup(encoding).name not in READ_AS[found]:
        raise ExamplesError(
            f"{file.name} is {found} by its first bytes and is read as {encoding}; set examples.encoding: {found}, or "
            f"save the file as {encoding}"
        )


def _read_lines(lines: Iterable[str], file: RawFile, encoding: str) -> Iterator[Record]:
    """Yield one record per line of JSON; blank lines are none.

    Raises:
        ExamplesError: the lines are those of one array.
    """
    filled = ((line, content.rstrip("\r\n")) for line, content in enumerate(lines, start=1) if content.strip())
    first = list(islice(filled, 2))
    if first and _is_array([content for _, content in first]):
        raise ExamplesError(f"{file.name} is a JSON array and has not one object per line; name it .json")
    for line, content in chain(first, filled):
        yield Record(file.name, line, _parse_line(content, encoding), show_name(content))


def _is_array(first: Sequence[str]) -> bool:
    """Return whether a file whose first lines these are, at most two, is one array: it ends there, or later."""
    if not first[0].lstrip().startswith("["):
        return False
    try:
        found = PLAIN.decode(first[0].strip())
    except (ValueError, RecursionError):
        return True
    return len(first) == 1 and (not found or _are_rows(found))


def _parse_line(content: str, encoding: str) -> Any:
    bad = ESCAPED.search(content)
    if bad is not None:
        byte = ord(bad[0]) & 0xFF
        return RowError(
            f"not {encoding.upper()}: byte 0x{byte:02x} at column {bad.start() + 1}; {_name_encoding(encoding)}"
        )
    try:
        return parse_json(content)
    except RowError as error:
        return error


def _name_encoding(encoding: str) -> str:
    """Return the way out where bytes are none of an encoding."""
    return ENCODING if codecs.lookup(encoding).name.startswith(UTF8) else "set examples.encoding to that of the file"


def _read_array(text: str, file: RawFile) -> Iterator[Record]:
    """Yield one record per value of a JSON array; a blank file has none."""
    try:
        for number, (value, shown) in enumerate(_decode_array(text, file), start=1):
            yield Record(file.name, number, value, shown)
    except json.JSONDecodeError as error:
        hint = "; a file with one object per line is named .jsonl" if error.msg == "Extra data" else "; mend the file"
        raise ExamplesError(
            f"{file.name}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}{hint}"
        ) from error
    except ExamplesError:
        raise
    except ValueError as error:
        raise ExamplesError(f"{file.name}: invalid JSON: {error}; mend the file") from error


def _decode_array(text: str, file: RawFile) -> Iterator[tuple[Any, str | None]]:
    """Yield the values of a JSON array, each decoded when it is asked for; one that cannot be with its text."""
    place = _skip(text, 0)
    if place == len(text):
        return
    if text[place] != "[":
        _refuse_object(PLAIN.decode(text), file)
    place = _skip(text, place + 1)
    more = text[place : place + 1] != "]"
    while more:
        value, end = _decode_row(text, place)
        yield value, text[place:end] if isinstance(value, RowError) else None
        place = end
        place = _skip(text, place)
        more = text[place : place + 1] == ","
        place = _skip(text, place + 1) if more else place
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    if _skip(text, place + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, place + 1))


def _decode_row(text: str, place: int) -> tuple[Any, int]:
    """Return the value that begins at a place, or why it cannot be one, and the place after it.

    Raises:
        ValueError: no JSON.
        RecursionError: it is too deep, and does not end.
    """
    try:
        return STRICT.raw_decode(text, place)
    except RowError as error:
        return error, LENIENT.raw_decode(text, place)[1]
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number of too many digits
        return RowError(f"invalid JSON: {error}"), LENIENT.raw_decode(text, place)[1]
    except RecursionError as error:
        end = _find_end(text, place)
        if end is None:
            raise
        return RowError(f"invalid JSON: {error}"), end


def _find_end(text: str, place: int) -> int | None:
    """Return the place after an object or array, however deep; None where it does not end."""
    depth = 0
    for found in BRACKET.finditer(text, place):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return None


def _skip(text: str, place: int) -> int:
    return cast(re.Match, BLANK.match(text, place)).end()


def _refuse_object(found: Any, file: RawFile) -> NoReturn:
    """Say why a file of JSON that is no array holds no rows.

    Raises:
        ExamplesError: always.
    """
    values = list(found.values()) if isinstance(found, dict) else []
    rows = [name for name, value in found.items() if _are_rows(value)] if values else []
    if len(rows) > 1:
        raise ExamplesError(
            f"{file.name} holds lists of rows ({list_some(rows, SHOWN)}), such as splits of a data set, in one object; "
            f"write each list to a file of its own in a folder: {list_some([f'{name}.json' for name in rows], SHOWN)}"
        )
    if _are_columns(values):
        raise ExamplesError(
            f"{file.name} holds columns ({list_some(list(found), SHOWN)}), not rows; write an array with one object "
            "per row, in pandas with to_json(orient='records')"
        )
    if rows:
        raise ExamplesError(
            f"{file.name} holds one JSON object whose field {rows[0]!r} has the rows; write that array alone"
        )
    raise ExamplesError(
        f"{file.name} holds one JSON {type(found).__name__}, not an array of objects; put it into [ ], or take it out "
        "of the raw folder"
    )


def _are_columns(values: Sequence[Any]) -> bool:
    """Return whether values are columns: lists of one length, or objects by the number of the row."""
    lists = [len(value) for value in values if isinstance(value, list)]
    objects = [value for value in values if isinstance(value, dict)]
    return bool(values) and (len(objects) == len(values) or (len(lists) == len(values) and len(set(lists)) == 1))


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _read_table(lines: Iterable[str], file: RawFile) -> Iterator[Record]:
    """Yield one record per row after the header, by the number of its first line."""
    separator = SEPARATORS[file.kind]
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(lines, strict=True, delimiter=separator)
    with _tell_place(rows, file):
        header = _read_header(rows, file)
        start = rows.line_num + 1
        for row in rows:
            count = f"wrong number of fields: {len(row)} where the header has {len(header)}"
            if row:
                fits = len(row) == len(header)
                value = dict(zip(header, row, strict=True)) if fits else RowError(count)
                yield Record(file.name, start, value, None if fits else separator.join(row))
            start = rows.line_num + 1


@contextmanager
def _tell_place(rows: Any, file: RawFile) -> Iterator[None]:
    """Say where CSV is none."""
    try:
        yield
    except csv.Error as error:
        raise ExamplesError(f"{file.name}:{rows.line_num}: invalid CSV: {error}; mend the file") from error


def _read_header(rows: Any, file: RawFile) -> list[str]:
    """Return the names of the columns, which the first line that is not blank has."""
    header = next((row for row in rows if row), [])
    if len(header) == 1 and re.search(r"[;,|\t]", header[0]):
        raise ExamplesError(
            f"{file.name} has one column {header[0]!r}; columns are separated by commas in .csv, by tabs in .tsv"
        )
    bad = next((name for name in header if ESCAPED.search(name)), None)
    if bad is not None:
        raise ExamplesError(f"{file.name} has a column {show_name(bad)} that is of another encoding; {ENCODING}")
    refuse_twice(header, file)
    return header
