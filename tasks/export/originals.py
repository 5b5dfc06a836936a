"""The records that examples were made of, as they stand in the raw files, found by file and line.

They are the ones that were read only where the files are what they were; else they are refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import digest, provenance
from tasks.examples.files import RawFile, list_contents, list_files, name_inputs
from tasks.examples.records import pick_kept, read_records
from tasks.examples.text_files import Record


class ExportError(ValueError):
    """What was chosen cannot be exported."""


def read_originals(places: Sequence[tuple[str, int]], raw: Path, examples: Path) -> list[str]:
    """Return the records at some places as lines of JSON, in the order of the places.

    Of a file of JSON lines a record is the line itself, of any other kind its values as one object.

    Args:
        places: file and line, as the table of examples has them.
        raw: the version's raw path.
        examples: `examples.parquet`, whose record says what the files were.

    Raises:
        ExportError: a file is gone or has changed since, or lacks a line.
    """
    made = provenance(examples)
    files, wanted = {file.name: file for file in list_files(raw, {})[0]}, _group(places)
    _refuse_changed({name: files.get(name) for name in wanted}, raw, made["inputs"], made["version"])
    encoding, found = made["parameters"].get("encoding", "utf-8"), {}
    for name, lines in wanted.items():
        for record in read_records(files[name], encoding=encoding):
            if record.line in lines:
                found[name, record.line] = _write(record, files[name])
            if record.line >= max(lines):
                break
    missing = [f"{name}:{line}" for name, line in places if (name, line) not in found]
    if missing:
        raise ExportError(f"{len(missing)} of {len(places)} records are not found, first {', '.join(missing[:3])}")
    return [found[place] for place in places]


def tell_inputs(examples: Path) -> dict[str, str]:
    """Return the digests of the raw files that examples were made of, by the names that provenance has for them."""
    inputs: Mapping[str, str] = provenance(examples)["inputs"]
    made = ("examples.parquet", "subset.parquet")
    return {path: digest for path, digest in inputs.items() if not path.endswith(made)}


def _group(places: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, line in places:
        found.setdefault(name, set()).add(line)
    return found


def _refuse_changed(wanted: Mapping[str, RawFile | None], raw: Path, inputs: Mapping[str, str], version: str) -> None:
    told = list(_list_changed(wanted, raw, inputs))
    if told:
        raise ExportError(
            f"{len(told)} of {len(wanted)} raw files with chosen rows of {version} are not what its examples were made "
            f"of, first {', '.join(told[:3])}; bring them back, or make the version again: `tamis run {version}`"
        )


def _list_changed(wanted: Mapping[str, RawFile | None], raw: Path, inputs: Mapping[str, str]) -> Iterator[str]:
    for name, file in wanted.items():
        if file is None:
            yield f"{name} (gone)"
            continue
        now = name_inputs(raw, list_contents(file.path))
        if any(inputs.get(key) != digest(path) for key, path in now.items()):
            yield f"{name} (its digest differs)"


def _write(record: Record, file: RawFile) -> str:
    if file.kind == "jsonl" and record.text is not None:
        return record.text
    value: Any = record.value
    return json.dumps(pick_kept(value, list(value)), ensure_ascii=False)
