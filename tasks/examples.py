"""The room `examples`: raw files in, one table of examples out, and nothing dropped without a reason.

JSONL, JSON arrays and CSV (each also as .gz), Parquet, and folders saved by `datasets`; text is UTF-8.
"""

import codecs
import csv
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import examples as rules
from tamis.examples import PARTS, RowError, Split, check_fields, parse_line, parse_row, split_rows
from tamis.templates import count_overhead, join_instruction
from tasks import artifacts, models, schemas

TEXT_FORMATS = (".jsonl", ".json", ".csv")
FORMATS = (*TEXT_FORMATS, *(f"{name}.gz" for name in TEXT_FORMATS), ".parquet")
SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")
READ = ("row", "file", "line", *PARTS)  # columns known once the rows are read
BATCH = 1024  # rows per call of the tokenizer, and per batch of a columnar file
SHOWN = 3  # bad rows that an error names
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


def write_examples(
    *,
    raw: Path,
    out: Path,
    version: str,
    model: models.ModelChoice,
    template: str,
    fields: Mapping[str, str],
    on_bad_row: str,
    held_out_in: int,
    seed: int,
    pool_rows: int | None,
    held_out_rows: int | None,
    held_out_share: float,
) -> None:
    """Read a version's raw files and write examples.parquet, rejects.parquet and examples.json.

    Args:
        raw: one file, or a folder whose data files are read by name.
        model: its tokenizer counts; prompt and response must fit its `max_tokens`, in the template.
        template: chat or delift.
        fields: part of an example -> field of the files (`tamis.examples.parse_row`).
        on_bad_row: `stop` names bad rows and writes nothing; `reject` writes them to rejects.parquet.
        held_out_share: topics whose held-out share is lower are named; the other values are of `split_rows`.

    Raises:
        ExamplesError: no data, an unknown field, bad rows under `stop`, an empty side, a single example.
    """
    check_fields(fields)
    files, ignored = list_files(raw)
    reading = read_rows(files, fields)
    tokens = count_tokens(reading, model, template)
    refuse_bad_rows(reading, on_bad_row)

    sizes = {"held_out_in": held_out_in, "pool_rows": pool_rows, "held_out_rows": held_out_rows}
    split = split_rows({part: reading.columns[part] for part in PARTS}, seed=seed, **sizes)
    refuse_empty_sides(split, reading)
    made = _trace(files, version, model, seed, fields=dict(fields), template=template, **sizes)
    artifacts.write_table(make_table(reading.columns | tokens, split), out / "examples.parquet", made)
    artifacts.write_table(make_rejects(reading), out / "rejects.parquet", made)
    artifacts.write_json(measure(split, reading, held_out_share) | {"ignored_files": ignored}, out / "examples.json")


def list_files(raw: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the data files and `datasets` folders of a raw path by their names in artifacts, and what else is there.

    Raises:
        ExamplesError: the path does not exist, or holds no data.
    """
    raw = Path(raw)
    if not raw.exists():
        raise ExamplesError(f"{raw} does not exist; set versions.<version>.raw to a file or a folder with data files")
    if _is_data(raw):
        return {raw.name: raw}, []
    inside = sorted(path for path in raw.iterdir() if not path.name.startswith(".")) if raw.is_dir() else [raw]
    found = {f"{raw.name}/{path.name}": path for path in inside if _is_data(path)}
    others = [path.name for path in inside if not _is_data(path)]
    if not found:
        holds = f"only {', '.join(others[:SHOWN])}" if others else "nothing"
        raise ExamplesError(f"{raw} holds {holds}; read are {', '.join(FORMATS)} and folders saved by `datasets`")
    return found, others


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


def count_tokens(reading: Reading, model: models.ModelChoice, template: str) -> dict[str, list[int]]:
    """Return prompt_tokens (instruction and prompt) and response_tokens (with the end-of-turn token) of the good rows.

    Rows that the model's context cannot hold, or that hold a control token's text, are moved to the rejects first.
    """
    tokenizer, columns = models.tokenizer(model), reading.columns
    queries = [join_instruction(*pair) for pair in zip(columns["instruction"], columns["prompt"], strict=True)]
    prompts = _count(tokenizer, queries)
    responses = [tokens + 1 for tokens in _count(tokenizer, columns["response"])]
    models.check_context(model)
    room = model.max_tokens - count_overhead(tokenizer, template)
    texts = (f"{query} {response}" for query, response in zip(queries, columns["response"], strict=True))
    control = sorted(set(tokenizer.all_special_tokens))
    rows = zip(prompts, responses, texts, strict=True)
    reasons = [rules.find_fault((prompt, response), text, room, control) for prompt, response, text in rows]
    fits = [reason is None for reason in reasons]
    for place in (place for place, fit in enumerate(fits) if not fit):
        row, file, line, *parts = (columns[name][place] for name in READ)
        text = _show({part: value for part, value in zip(PARTS, parts, strict=True) if value is not None})
        _reject(reading, (row, file, line), str(reasons[place]), text)
    for name in READ:
        columns[name] = list(compress(columns[name], fits))
    return {"prompt_tokens": list(compress(prompts, fits)), "response_tokens": list(compress(responses, fits))}


def refuse_bad_rows(reading: Reading, on_bad_row: str) -> None:
    """Stop at bad rows, unless they are to be rejected.

    Raises:
        ExamplesError: how many of how many rows are bad, the first of them, and the way out; or no good row at all.
    """
    if on_bad_row not in ("stop", "reject"):
        raise ExamplesError(f"examples.on_bad_row is {on_bad_row!r}; give stop or reject")
    bad = sorted(reading.rejects)
    if not reading.rows:
        raise ExamplesError("the raw files hold no rows; an example has at least a prompt and a response")
    if not bad or (on_bad_row == "reject" and len(bad) < reading.rows):
        return
    kinds = Counter(reason.split(":")[0] for _, _, _, reason, _ in bad)
    first = "; ".join(f"{file}:{line}: {reason}" for _, file, line, reason, _ in bad[:SHOWN])
    way_out = "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    raise ExamplesError(
        f"{len(bad)} of {reading.rows} rows are bad ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); "
        f"first {first}; {way_out if len(bad) < reading.rows else 'no example is left, so mend the files'}"
    )


def refuse_empty_sides(split: Split, reading: Reading) -> None:
    """Check that there is something to choose from, and something to measure on.

    Raises:
        ExamplesError: fewer than two used examples in the pool, or none held out.
    """
    held_out = sum(compress(split.held_out, split.used))
    pool = sum(split.used) - held_out
    found = f"{len(reading.columns['row'])} rows, {len(set(split.ids))} distinct"
    if pool < 2:
        raise ExamplesError(
            f"the pool has {pool} usable example{'' if pool == 1 else 's'} ({found}, {held_out} used held-out); "
            "choosing needs 2 or more: give more rows, or raise examples.held_out_in or examples.pool_rows"
        )
    if not held_out:
        raise ExamplesError(
            f"no row is held out ({found}), so nothing could be measured; "
            "give more rows, lower examples.held_out_in, or raise examples.held_out_rows"
        )


def measure(split: Split, reading: Reading, held_out_share: float) -> dict[str, Any]:
    """Return the counts that examples.json holds; shares are of distinct examples, before sampling."""
    distinct = [link is None for link in split.first]
    topics = list(compress(reading.columns["topic"], distinct))
    shares = rules.share_held_out(zip(topics, compress(split.held_out, distinct), strict=True))
    held_out = sum(compress(split.held_out, split.used))
    return {
        "rows": reading.rows,
        "rejects": len(reading.rejects),
        "distinct": len(topics),
        "duplicates": len(split.ids) - len(topics),
        "used": {"pool": sum(split.used) - held_out, "held_out": held_out},
        "topics": dict(sorted(Counter(topics).items())),
        "held_out_share": shares,
        "topics_below": [topic for topic, share in shares.items() if share < held_out_share],
    }


def make_table(columns: Mapping[str, list], split: Split) -> pa.Table:
    """Return the examples as a table; `duplicate_of` names rows by their number, not by their place in the table."""
    rows = columns["row"]
    reasons = [
        None if used else "not sampled" if link is None else "duplicate"
        for used, link in zip(split.used, split.first, strict=True)
    ]
    derived = {
        "id": split.ids,
        "split": ["held_out" if held_out else "pool" for held_out in split.held_out],
        "duplicate_of": [None if link is None else rows[link] for link in split.first],
        "used": split.used,
        "unused_because": reasons,
    }
    return pa.table(dict(columns) | derived, schema=schemas.EXAMPLES)


def make_rejects(reading: Reading) -> pa.Table:
    """Return the bad rows as a table, in the order of the files."""
    rows = [dict(zip(schemas.REJECTS.names, place, strict=True)) for _, *place in sorted(reading.rejects)]
    return pa.Table.from_pylist(rows, schema=schemas.REJECTS)


def _trace(
    files: Mapping[str, Path], version: str, model: models.ModelChoice, seed: int, **asked: Any
) -> artifacts.Provenance:
    asked |= {"model": Path(model.name).name, "max_tokens": model.max_tokens}
    inputs = artifacts.digest_inputs(*(path for file in files.values() for path in _contents(file)))
    return artifacts.Provenance("examples", version, asked, inputs, seed)


def _take(reading: Reading, record: Record, fields: Mapping[str, str], stem: str) -> None:
    row, reading.rows = reading.rows, reading.rows + 1
    try:
        if isinstance(record.value, RowError):
            raise record.value
        parts = parse_row(record.value, fields, stem)
    except RowError as error:
        text = _show(record.value) if record.text is None else record.text
        _reject(reading, (row, record.file, record.line), str(error), text)
        return
    for name, value in {"row": row, "file": record.file, "line": record.line, **parts}.items():
        reading.columns[name].append(value)


def _reject(reading: Reading, place: tuple[int, str, int], reason: str, text: str) -> None:
    clean = text[:REJECTED_TEXT].encode("utf-8", "backslashreplace").decode()
    reading.rejects.append((*place, reason, clean))


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _count(tokenizer: Any, texts: list[str]) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(texts), BATCH):
        ids = tokenizer(texts[start : start + BATCH], add_special_tokens=False, verbose=False).input_ids
        counts += [len(each) for each in ids]
    return counts


def _is_data(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).exists() for name in SAVED_BY_DATASETS)
    return path.name.lower().endswith(FORMATS)


def _contents(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(inside for inside in path.rglob("*") if inside.is_file())


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
