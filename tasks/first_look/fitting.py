"""How the files of a new version are read where `examples.fields` and `examples.format` do not fit them.

These settings hold for every version, and rows that come later need not have the fields of those before.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis.examples.formats import EXCHANGE, make_reading
from tasks.examples.examples import choose_files
from tasks.examples.files import RawFile
from tasks.examples.records import sample_fields
from tasks.examples.settings import ExamplesSettings

TEXTS = (*EXCHANGE, "messages")  # parts of which an example is made
AUTO, EVERY = "auto", "*"


def find_sources(raw: Path, settings: ExamplesSettings) -> list[dict[str, Any]]:
    """Return what `examples.sources` must say of a version's files; nothing where the settings fit all of them.

    A file that the settings do not fit is recognised by itself, and of `examples.fields` holds what it has; one that
    cannot be recognised is left to the settings, which will say why.

    Raises:
        ExamplesError: there is no data, or a file cannot be read at all.
    """
    said = {file.name: _fit(file, settings) for file in choose_files(raw, settings)[0]}
    others = [one for one in said.values() if one is not None]
    if others and all(one == others[0] for one in said.values()):
        return [{"path": EVERY} | others[0]]
    return [{"path": name.partition("/")[2] or name} | one for name, one in said.items() if one is not None]


def _fit(file: RawFile, settings: ExamplesSettings) -> dict[str, Any] | None:
    """Return how a file is read, if not by the settings."""
    names, sample = sample_fields(file, encoding=settings.encoding)
    if not names or _is_read(names, sample, settings.format, settings.fields):
        return None
    for format, fields in _list_ways(names, settings):
        if _is_read(names, sample, format, fields):
            return {"fields": dict(fields)} | ({"format": format} if format != settings.format else {})
    return None


def _list_ways(names: Sequence[str], settings: ExamplesSettings) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield formats and fields that may fit, those that are nearest to the settings first."""
    there = {part: field for part, field in settings.fields.items() if field in names}
    yield settings.format, there
    yield AUTO, there
    yield AUTO, {part: field for part, field in there.items() if part not in TEXTS}


def _is_read(names: Sequence[str], sample: Mapping[str, Any], format: str, fields: Mapping[str, str]) -> bool:
    """Return whether rows with some fields can be read in a way, and have all fields that it names."""
    try:
        make_reading(names, sample, format=None if format == AUTO else format, fields=fields)
    except ValueError:
        return False
    return {field for field in fields.values() if field} <= set(names)
