"""The records of a raw file, one after another, and what each holds or why nothing of it can be read.

JSON lines, CSV, TSV, Parquet and saved data sets are read batch by batch, so memory does not grow with the file. A JSON
array is held as text as a whole, and its rows are made one at a time. Packed Parquet, whose end is read first, is
unpacked to a temporary file.
"""

import math
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.examples.files import PACKED, SAVED, ExamplesError, RawFile
from tasks.examples.text_files import SEPARATORS, UTF8, Record, open_bytes, read_columns, read_text_file, refuse_twice

BATCH = 1024  # rows per batch of a columnar file
SAMPLE = 100  # records with fields from which those of a file are known
START = 64  # bytes by which a file is told
POINTER = b"version https://git-lfs.github.com/spec/"  # what Git LFS leaves where a file's data is not fetched
UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError, RecursionError, pa.ArrowException)


def read_records(file: RawFile, *, encoding: str = UTF8, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Yield the records of a file, in its order. A file without rows has none.

    Args:
        file: what `list_files` found.
        encoding: of text; a byte order mark of UTF-8 is no part of it.
        columns: of columnar files, the fields that are read; None for all. Other files are read as a whole.

    Raises:
        ExamplesError: the file cannot be read at all, is of another encoding, or its columns are no rows; with the
            place and the way out.
    """
    rows = 0
    try:
        for record in _open_records(file, encoding, columns):
            rows += 1
            yield record
    except UNREADABLE as error:
        after = f" after row {rows}" if rows else ""
        way_out = "allow" if isinstance(error, PermissionError) else "mend"
        raise ExamplesError(
            f"{file.name} cannot be read{after}: {_explain(error, encoding)}; {way_out} it or take it out of the raw "
            "folder"
        ) from error


def sample_fields(file: RawFile, *, encoding: str = UTF8) -> tuple[list[str], dict[str, Any]]:
    """Return the fields of a file, and of each the first value that is not null, as one row.

    The fields are those of its columns or, where rows have fields of their own, of the first records that have any.

    Raises:
        ExamplesError: as `read_records`.
    """
    try:
        row: dict[str, Any] = dict.fromkeys(_list_columns(file, encoding))
    except UNREADABLE:
        row = {}  # of which the records complain
    values = (record.value for record in read_records(file, encoding=encoding))
    for found in islice((value for value in values if isinstance(value, Mapping) and value), SAMPLE):
        row |= {name: value for name, value in found.items() if row.get(name) is None}
    return list(row), row


def pick_kept(value: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row that are carried through, as plain JSON; null where the row has none.

    Dates are their ISO text, floats that are no number null, bytes their hexadecimal digits, other things their text;
    what is no Unicode in a text is written as escapes.

    >>> pick_kept({"id": 3, "day": date(2024, 1, 31), "prompt": "Hi"}, ["id", "day", "url"])
    {'id': 3, 'day': '2024-01-31', 'url': None}
    """
    return {name: _make_plain(value.get(name)) for name in keep}


def _make_plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_make_plain(str(key)): _make_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(inner) for inner in value]
    if isinstance(value, date | time):
        return value.isoformat()
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text.encode(UTF8, "backslashreplace").decode(UTF8)


def _explain(error: Exception, encoding: str) -> str:
    if isinstance(error, UnicodeError):
        return f"it is not {encoding}, which examples.encoding is: {error}"
    return getattr(error, "strerror", None) or str(error)


def _open_records(file: RawFile, encoding: str, columns: Sequence[str] | None) -> Iterator[Record]:
    if file.kind == SAVED:
        return _read_saved(file, columns)
    with open(file.path, "rb") as opened:
        start = opened.read(START)
    if start.startswith(POINTER):
        raise ExamplesError(f"{file.name} is a pointer of Git LFS and not the data; fetch it with `git lfs pull`")
    if not start and file.path.name.lower().endswith(PACKED):
        raise EOFError("it has no bytes, and a packed file has some even where it holds nothing")
    return _read_parquet(file, columns) if file.kind == "parquet" else read_text_file(file, encoding)


def _list_columns(file: RawFile, encoding: str) -> list[str]:
    """Return the columns of a file that says them before its rows."""
    if file.kind == SAVED:
        return _load_saved(file).column_names
    if file.kind == "parquet":
        with _open_parquet(file) as opened:
            return opened.schema_arrow.names
    return read_columns(file, encoding) if file.kind in SEPARATORS else []


def _read_saved(file: RawFile, columns: Sequence[str] | None) -> Iterator[Record]:
    saved = _load_saved(file)
    kept = saved.select_columns(_keep(saved.column_names, columns, file)).with_format("arrow")
    yield from _number(file, kept.iter(batch_size=BATCH))


def _load_saved(file: RawFile) -> Any:
    from datasets import load_from_disk  # a second to import, so only where there is such a folder

    try:
        return load_from_disk(str(file.path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _open_parquet(file: RawFile) -> Iterator[pq.ParquetFile]:
    """Open a file of Parquet, packed or not."""
    if not file.path.name.lower().endswith(PACKED):
        with pq.ParquetFile(file.path) as opened:
            yield opened
        return
    with tempfile.TemporaryFile() as plain:
        with open_bytes(file) as packed:
            shutil.copyfileobj(packed, plain)
        plain.seek(0)
        with pq.ParquetFile(plain) as opened:
            yield opened


def _read_parquet(file: RawFile, columns: Sequence[str] | None) -> Iterator[Record]:
    with _open_parquet(file) as opened:
        kept = _keep(opened.schema_arrow.names, columns, file)
        yield from _number(file, opened.iter_batches(batch_size=BATCH, columns=kept))


def _keep(names: Sequence[str], columns: Sequence[str] | None, file: RawFile) -> list[str]:
    refuse_twice(names, file)
    return [name for name in names if columns is None or name in columns]


def _number(file: RawFile, batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Record]:
    values = (value for batch in batches for value in batch.to_pylist())
    return (Record(file.name, line, value) for line, value in enumerate(values, start=1))
