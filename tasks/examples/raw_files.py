"""Raw files, read: every row as columns, or with the reason why it cannot become an example.

JSONL, JSON arrays and CSV (each also as .gz), Parquet, and folders saved by `datasets`; text is UTF-8.
"""

import codecs
import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.examples.parsing import PARTS, RowError, parse_line, parse_row

TEXT_FORMATS = (".jsonl", ".json", ".csv")
FORMATS = (*TEXT_FORMATS, *(f"{name}.gz" for name in TEXT_FORMATS), ".parquet")
SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")
READ = ("row", "file", "line", *PARTS)  # columns known once the rows are read
BATCH = 1024  # rows per batch of a columnar file
SHOWN = 3  # files that an error names
REJECTED_TEXT = 500  # characters of a bad row that are kept


class ExamplesError(ValueError):
    """Raw data cannot be read, or gives no usable examples."""


class Record(NamedTuple):
    """One row as it stands in a file."""

    file: str  # from the raw folder's name on
    line: int  # from 1; the record's number in files without lines
    value: Any  # what is to become an example, or the RowError that says why nothing can be read
    text: str | None = None  # the line, where the format has lines


@dataclass
class Reading:
    """What the raw files hold, column by column."""

    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in READ})
    rejects: list[tuple] = field(default_factory=list)  # row, file, line, reason, text of each bad row
    names: set[str] = field(default_factory=set)  # fields that the files have
    rows: int = 0  # good and bad


def list_files(raw: Path, apart: Mapping[str, str]) -> tuple[dict[str, Path], list[str]]:
    """Return the data files and `datasets` folders of a raw path by their names in artifacts, and what else is there.

    Args:
        raw: one file, or a folder whose data files are read by name.
        apart: parameter -> the file or folder inside `raw` that it names (`name_apart`); these files come first.

    Raises:
        ExamplesError: a path does not exist, or holds no data; two parameters name the same file.
    """
    raw = Path(raw)
    if not raw.exists():
        raise ExamplesError(f"{raw} does not exist; set versions.<version>.raw to a file or a folder with data files")
    named = {parameter: _list_apart(raw, parameter, name) for parameter, name in apart.items()}
    given = {name: path for files in named.values() for name, path in files.items()}
    twice = sorted(name for name in given if sum(name in files for files in named.values()) > 1)
    if twice:
        raise ExamplesError(
            f"{len(twice)} of {len(given)} files are named by {' and '.join(apart)}, first {twice[0]}; a row is of one"
        )
    if _is_data(raw):
        return {raw.name: raw}, []
    inside = sorted(path for path in raw.iterdir() if not path.name.startswith(".")) if raw.is_dir() else [raw]
    found = {f"{raw.name}/{path.name}": path for path in inside if _is_data(path)}
    others = [path.name for path in inside if not _is_data(path) and path.name not in apart.values()]
    if not found:
        holds = f"only {', '.join(others[:SHOWN])}" if others else "nothing"
        raise ExamplesError(f"{raw} holds {holds}; read are {', '.join(FORMATS)} and folders saved by `datasets`")
    return given | found, others


def is_inside(file: str, raw: Path, name: str) -> bool:
    """Return whether a file, by its name in artifacts, is what a parameter names in the raw folder, or lies in it.

    >>> is_inside("v1/task/git.jsonl", Path("data/raw/v1"), "task")
    True
    """
    place = f"{Path(raw).name}/{name}"
    return file == place or file.startswith(f"{place}/")


def _list_apart(raw: Path, parameter: str, name: str) -> dict[str, Path]:
    place = raw / name
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not place.exists():
        raise ExamplesError(
            f"{parameter} is {name!r} and {raw} has no such file or folder; put its rows there, or set it to null"
        )
    inside = [place] if _is_data(place) else sorted(place.iterdir()) if place.is_dir() else []
    found = {f"{raw.name}/{path.relative_to(raw)}": path for path in inside if _is_data(path)}
    if not found:
        raise ExamplesError(f"{place} holds no rows for {parameter}; read are {', '.join(FORMATS)}")
    return found


def read_rows(files: Mapping[str, Path], fields: Mapping[str, str]) -> Reading:
    """Read every row of every file, good ones as columns and bad ones with their reasons.

    Raises:
        ExamplesError: a file cannot be read at all; a mapped field that no row has.
    """
    reading = Reading()
    for name, path in files.items():
        stem = path.name.split(".")[0]
        for record in _read_file(path, name, set(fields.values()), reading.names):
            _take(reading, record, fields, stem)
    unknown = {part: name for part, name in fields.items() if name not in reading.names}
    if unknown and reading.names:
        part, name = next(iter(unknown.items()))
        raise ExamplesError(
            f"0 of {reading.rows} rows have the field {name!r} that examples.fields maps to {part}; "
            f"there are {', '.join(sorted(reading.names)[:20])}"
        )
    return reading


def reject(reading: Reading, place: tuple[int, str, int], reason: str, text: str) -> None:
    """Note a bad row: its number, file and line, why it is bad, and how its text begins."""
    clean = text[:REJECTED_TEXT].encode("utf-8", "backslashreplace").decode()
    reading.rejects.append((*place, reason, clean))


def show(value: Any) -> str:
    """Return a row as it is kept among the rejects."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _take(reading: Reading, record: Record, fields: Mapping[str, str], stem: str) -> None:
    row, reading.rows = reading.rows, reading.rows + 1
    try:
        if isinstance(record.value, RowError):
            raise record.value
        parts = parse_row(record.value, fields, stem)
    except RowError as error:
        text = show(record.value) if record.text is None else record.text
        reject(reading, (row, record.file, record.line), str(error), text)
        return
    for name, value in {"row": row, "file": record.file, "line": record.line, **parts}.items():
        reading.columns[name].append(value)


def _is_data(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).exists() for name in SAVED_BY_DATASETS)
    return path.name.lower().endswith(FORMATS)


def _read_file(path: Path, name: str, wanted: set[str], names: set[str]) -> Iterator[Record]:
    """Yield a file's records; rows of columnar files hold the wanted fields only. Adds the fields seen to `names`."""
    try:
        if path.is_dir():
            yield from _read_saved(path, name, wanted, names)
        elif path.name.lower().endswith(".parquet"):
            with pq.ParquetFile(path) as file:
                kept = _keep(file.schema_arrow.names, wanted, names)
                yield from _number(name, file.iter_batches(batch_size=BATCH, columns=kept))
        else:
            yield from _read_text(path, name, names)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, RecursionError, pa.ArrowException) as error:
        raise ExamplesError(f"{name} cannot be read: {error}; mend it or take it out of the raw folder") from error


def _read_saved(path: Path, name: str, wanted: set[str], names: set[str]) -> Iterator[Record]:
    from datasets import Dataset, load_from_disk  # a second to import, so only where there is such a folder

    saved = load_from_disk(str(path))
    parts = {name: saved} if isinstance(saved, Dataset) else {f"{name}/{part}": saved[part] for part in saved}
    for place, part in parts.items():
        kept = part.select_columns(_keep(part.column_names, wanted, names)).with_format("arrow")
        yield from _number(place, kept.iter(batch_size=BATCH))


def _keep(columns: Iterable[str], wanted: set[str], names: set[str]) -> list[str]:
    names.update(columns)
    return [name for name in columns if name in wanted]


def _number(name: str, batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Record]:
    values = (value for batch in batches for value in batch.to_pylist())
    return (Record(name, line, value) for line, value in enumerate(values, start=1))


def _read_text(path: Path, name: str, names: set[str]) -> Iterator[Record]:
    kind = path.name.lower().removesuffix(".gz")
    packed = gzip.open if path.name.lower().endswith(".gz") else open
    if kind.endswith(".csv"):  # bytes that do not decode are kept as lone surrogates, which parse_row refuses
        with packed(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _read_csv(file, name, names)
        return
    with packed(path, "rb") as file:
        for record in _read_lines(file, name) if kind.endswith(".jsonl") else _read_array(file, name):
            names.update(record.value if isinstance(record.value, dict) else ())
            yield record


def _read_lines(file: Iterable[bytes], name: str) -> Iterator[Record]:
    """Yield one record per line of JSON; blank lines are none."""
    for line, content in enumerate(file, start=1):
        content = (content.removeprefix(codecs.BOM_UTF8) if line == 1 else content).rstrip(b"\r\n")
        if content.strip():
            yield Record(name, line, _parse(content), content.decode("utf-8", "backslashreplace"))


def _parse(line: bytes) -> Any:
    try:
        return parse_line(line)
    except RowError as error:
        return error


def _read_array(file: BinaryIO, name: str) -> Iterator[Record]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; a file with one object per line is named .jsonl" if error.msg == "Extra data" else "; mend the file"
        raise ExamplesError(
            f"{name}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}{hint}"
        ) from error
    if not isinstance(rows, list):
        raise ExamplesError(f"{name} holds one JSON {type(rows).__name__}, not an array of objects; put it into [ ]")
    return (Record(name, line, row) for line, row in enumerate(rows, start=1))


def _read_csv(file: TextIO, name: str, names: set[str]) -> Iterator[Record]:
    """Yield one record per row after the header, by the number of its first line."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(file, strict=True)
    try:
        header = next(rows, [])
        names.update(header)
        start = rows.line_num + 1
        for row in rows:
            count = f"wrong number of fields: {len(row)} where the header has {len(header)}"
            if row:
                fits = len(row) == len(header)
                value = dict(zip(header, row, strict=True)) if fits else RowError(count)
                yield Record(name, start, value, None if fits else ",".join(row))
            start = rows.line_num + 1
    except csv.Error as error:
        raise ExamplesError(f"{name}:{rows.line_num}: invalid CSV: {error}; mend the file") from error
