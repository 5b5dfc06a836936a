"""New data versions out of a landing folder: each whole sub-folder is copied, looked at, added and committed.

for each sub-folder of landing.url that is no version yet, by name:
    whole (its marker stands there, or its newest file is old enough) -> copy it -> look at its rows -> add -> commit
    what cannot be added is told of at each look, and reported once, until a file of it is another one
so is the landing folder itself where it cannot be read, until it can
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from flows import adding, params, undoing
from flows.graph import versions as recorded
from flows.looks import take_looks, tell_commonest
from flows.stage import format_error, say, show_plain
from flows.stage_calls import CACHE
from flows.told import count, hide
from flows.unattended import acceptance, reports
from tasks.artifacts.tables import ArtifactError, read_json, write_json
from tasks.settings import LandingSettings, VersionSettings

FETCHED = CACHE / "landing"  # copies that are being added
REPORTED = CACHE / "landing.json"  # sub-folder -> the digest of its files when its report was taken
FACTS = ("size", "mtime", "LastModified", "last_modified", "updated", "created", "ETag")  # by which files differ


class LandingError(ValueError):
    """The landing folder cannot be read, or one of its sub-folders cannot be added."""


@dataclass(frozen=True)
class Landed:
    """A sub-folder of the landing folder."""

    place: str  # its path there
    files: dict[str, Any]  # path -> what its file system says of it
    system: Any  # of fsspec
    fault: Exception | None = None  # why not all of its files can be listed


def read_settings() -> LandingSettings:
    """Return what params.yaml says of the landing folder, whatever its other sections hold."""
    return params.check_section(LandingSettings, params.load(Path("params.yaml")).get("landing") or {}, "landing")


def take_landed(
    refused: set[str], tell: Callable[[dict[str, Any]], None] | None = None
) -> tuple[list[str], list[LandingError]]:
    """Add every sub-folder that is whole and no version yet; returns the new versions, and why others are none.

    Args:
        refused: versions that nothing continues from.
        tell: is given what becomes of each one that is not added, as `acceptance.report` is.

    Raises:
        LandingError: the landing folder cannot be read, which is reported by then.
        RecordError: something can be added, and a tracked file has changes that are not committed.
    """
    asked = read_settings()
    if asked.url is None:
        return [], []
    with undoing.adding():
        shutil.rmtree(FETCHED, ignore_errors=True)  # what a kill left
        return _take(asked, refused, tell)


def _take(
    asked: LandingSettings, refused: set[str], tell: Callable[[dict[str, Any]], None] | None
) -> tuple[list[str], list[LandingError]]:
    """Do what `take_landed` does, while nobody else adds a version."""
    report = acceptance.read_settings().report
    taken, failed = [], []
    for name, landed in _list_or_report(asked, report, tell):
        shown, why = show_plain(name), "" if landed.fault else tell_unfinished(landed, asked)
        if why:
            say(f"{shown} is not taken yet: {why}")
            continue
        recorded.refuse_foreign_changes()
        try:
            if landed.fault is not None:
                raise landed.fault
            with _fetched(landed, name, asked.marker) as folder:
                _add(name, folder, refused)
        except Exception as error:  # one folder's fault keeps no other one out
            way = "" if isinstance(error, recorded.RecordError) else "; mend it there, or take it out"
            failed.append(LandingError(hide(f"{shown} in {asked.url} is not added: {format_error(error)}{way}")))
            say(str(failed[-1]))
            outcome = {"version": shown, "state": "not added", "why": str(failed[-1]), "gates": []}
            _report_once(report, outcome, landed.place, digest_files(landed.files))
            if tell:
                tell(outcome)
            continue
        taken.append(name)
    return taken, failed


def _list_or_report(
    asked: LandingSettings, report: str | None, tell: Callable[[dict[str, Any]], None] | None
) -> list[tuple[str, Landed]]:
    """Return what `list_waiting` does; where the landing folder cannot be read, that is reported first."""
    shown = hide(str(asked.url))
    try:
        found = list_waiting(asked, params.read_versions())
    except LandingError as error:
        outcome = {"version": shown, "state": "not added", "why": str(error), "gates": []}
        _report_once(report, outcome, shown, str(error))
        if tell:
            tell(outcome)
        raise
    if shown in (known := _read_reported()):
        _note_reported({place: state for place, state in known.items() if place != shown}, shown)
    return found


def _report_once(report: str | None, outcome: dict[str, Any], place: str, state: str) -> None:
    """Report what is not added, unless a report of it in the state that it is in was taken already."""
    known = _read_reported()
    if known.get(place) != state and reports.send(report, outcome):
        _note_reported({**known, place: state}, outcome["version"])


def _read_reported() -> dict[str, Any]:
    try:
        return read_json(REPORTED)
    except (ArtifactError, OSError):
        return {}  # no more than a memory: it is reported again


def _note_reported(known: Mapping[str, Any], name: str) -> None:
    try:
        write_json(known, REPORTED)
    except (ArtifactError, OSError) as error:  # likewise
        say(f"{name} is reported again by the next look: {format_error(error)}")


def digest_files(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a digest of files' names, and of what their file system says of them without reading them.

    >>> files = {"in/a/rows.jsonl": {"size": 3, "mtime": 1.5}}
    >>> digest_files(files) == digest_files({"in/a/rows.jsonl": {"size": 4, "mtime": 1.5}})
    False
    """
    told = [[path, *(str(facts.get(name)) for name in FACTS)] for path, facts in sorted(files.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def list_waiting(asked: LandingSettings, versions: dict[str, VersionSettings]) -> list[tuple[str, Landed]]:
    """Return the sub-folders that are no version yet, by name; those that a dot hides are of programs, and none.

    Raises:
        LandingError: the folder cannot be read, or is none.
    """
    try:
        system, root = fsspec.core.url_to_fs(asked.url)
        system.invalidate_cache()
        found = system.ls(root, detail=True)
        if any(one["name"] == root and one["type"] == "file" for one in found):
            raise NotADirectoryError("it is a file, and no folder")
        places = {PurePosixPath(one["name"]).name: one["name"].rstrip("/") for one in found if _is_folder(one)}
        return [(name, _look_into(places[name], system)) for name in sorted(places.keys() - versions.keys())]
    except Exception as error:  # each file system has its own kinds of errors
        told = f"landing.url is {asked.url}, which cannot be read ({format_error(error)}); mend it, or set it to null"
        raise LandingError(hide(told)) from error


def _is_folder(one: Mapping[str, Any]) -> bool:
    return one["type"] == "directory" and not PurePosixPath(one["name"]).name.startswith(".")


def _look_into(place: str, system: Any) -> Landed:
    """Return a sub-folder with all of its files; a part of it that cannot be read is its fault, and no empty one."""
    try:
        return Landed(place, {one["name"]: one for one in _list_files(place, system)}, system)
    except Exception as error:
        return Landed(place, {}, system, error)


def _list_files(place: str, system: Any) -> Iterator[dict[str, Any]]:
    """Yield the files of a folder and all that it holds; `find` of fsspec passes over what cannot be read."""
    for one in system.ls(place, detail=True):
        if one["type"] != "directory":
            yield one
        elif one["name"].rstrip("/") != place:  # which some list in itself
            yield from _list_files(one["name"].rstrip("/"), system)


def tell_unfinished(landed: Landed, asked: LandingSettings) -> str:
    """Return why a sub-folder is not known to be whole; "" where it is.

    A marker in a folder inside it is of that part: writers in parallel put one into each.

    >>> settings = LandingSettings(marker="_DONE")
    >>> [tell_unfinished(Landed("in/a", {path: {}}, None), settings) for path in ("in/a/_DONE", "in/a/b/_DONE")]
    ['', 'it has no _DONE']
    """
    if asked.marker is not None:
        marker = PurePosixPath(landed.place, asked.marker)
        there = any(PurePosixPath(path) == marker for path in landed.files)
        return "" if there else f"it has no {asked.marker}"
    if not landed.files:
        return "it is empty"
    age = time.time() - max(map(_read_time, landed.files.values()))
    quiet = asked.quiet_seconds
    return "" if age >= quiet else f"a file of it is {age:.0f} s old, and landing.quiet_seconds is {quiet}"


def _read_time(facts: dict[str, Any]) -> float:
    """Return when a file was last written; file systems say it under different names, as a time or in seconds."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if (found := facts.get(name)) is not None:
            if isinstance(found, datetime):
                return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
            return float(found)
    raise LandingError("its file system does not say when a file was written; set landing.marker")


def refuse_special(path: str, facts: Mapping[str, Any]) -> None:
    """Raise LandingError where something is a link, which would bring what lies elsewhere, or no plain file.

    >>> refuse_special("in/a/rows.jsonl", {"type": "file", "islink": False})
    """
    if facts.get("islink") or facts.get("type", "file") != "file":
        raise LandingError(f"{path!r} is a link, or no plain file; put the file itself there")


def find_inside(path: str, place: str) -> PurePosixPath:
    """Return where a file lies within a sub-folder.

    Raises:
        LandingError: it would lie outside, as the name of an object in a bucket may say.

    >>> find_inside("bucket/in/in/part/rows.jsonl", "bucket/in/in").as_posix()
    'part/rows.jsonl'
    """
    inside = PurePosixPath(path.removeprefix(place).lstrip("/"))
    if not path.startswith(f"{place}/") or ".." in inside.parts or not inside.parts:
        raise LandingError(f"{path!r} does not lie within its folder; rename it")
    return inside


@contextmanager
def _fetched(landed: Landed, name: str, marker: str | None) -> Iterator[Path]:
    """Copy a sub-folder's files, but for the marker, to a folder of ours, which is removed afterwards."""
    home = FETCHED / "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
    shutil.rmtree(home, ignore_errors=True)
    try:
        for path in landed.files:
            refuse_special(path, landed.files[path])
            inside = find_inside(path, landed.place)
            if inside.name != marker:
                (home / inside).parent.mkdir(parents=True, exist_ok=True)
                landed.system.get_file(path, str(home / inside))
        if not home.exists():
            raise LandingError(f"it holds no file{'' if marker is None else f' beside {marker}'}")
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _add(name: str, folder: Path, refused: set[str]) -> None:
    """Add a folder as a version of its name, which continues from the newest one that is not refused; commit that."""
    from tasks.first_look.fitting import find_sources

    values = params.read(bare=True)
    planned = adding.plan_addition(folder.absolute(), values.versions, version=name, copy=True, refused=refused)
    sources = find_sources(planned.found, values.examples)
    settings = replace(values.examples, sources={**values.examples.sources, name: sources})
    *_, look = take_looks(name, planned.found, planned.previous, settings)
    if look.rows == look.rejected + look.erased:
        raise LandingError(f"none of its {count(look.rows, 'row')} can be used{tell_commonest(look)}")
    if look.foreseen is not None and look.foreseen.stops is not None:
        raise LandingError(f"a run would stop: {look.foreseen.stops}")
    with adding.written(planned, sources) as held:
        recorded.commit(held, f"Add data version {name}")
    used = look.rows - look.rejected - look.erased
    say(f"{name} is added: {used:,} rows, {look.rejected:,} rejected; it continues from {planned.previous}")
