"""A version's raw files when it was added: names, sizes and digests, and a copy of them where that is asked for.

The record is a small file beside the data that git tracks, `data/raw/<version>.files.json`: a later run whose files
differ says so by name, wherever the data lie.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import ArtifactError, digest, name_remedy, write_json
from tasks.examples.files import SAVED, RawFile, find_kind, list_contents, list_files, show_name

BESIDE = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "README*", "CITATION*")  # what tells of data, by any case
DESCRIPTION = "dataset_dict.json"  # of the splits that `datasets` saved


def describe_files(raw: Path) -> dict[str, dict[str, Any]]:
    """Return the size and the digest of every data file of a raw path, by its name inside it.

    Raises:
        ExamplesError: there is no data.
    """
    found = {}
    for file in list_files(raw, {})[0]:
        inside = file.name.partition("/")[2] or file.name
        for path in list_contents(file.path):
            name = inside if path == file.path else f"{inside}/{path.relative_to(file.path).as_posix()}"
            found[show_name(name)] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    return found


def write_record(raw: Path, place: str, out: Path) -> None:
    """Write what the files of a raw path are.

    Args:
        raw: the path.
        place: what params.yaml calls it.
        out: the file to be written, whole or not at all.
    """
    write_json({"raw": place, "files": describe_files(raw)}, out)


def read_record(record: Path) -> dict[str, Any]:
    """Return what `write_record` wrote: `raw`, and `files` with size and digest of each by its name.

    Raises:
        ArtifactError: the record is none.
    """
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return {"raw": str(found["raw"]), "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{record} is no record of raw files ({error}); bring it back with `git checkout {record}`, or delete it"
        ) from error


def list_differences(raw: Path, record: Path) -> list[str]:
    """Return what differs from the record, each with its name: none where nothing does, or nothing was recorded.

    Raises:
        ArtifactError: the record is none.
    """
    if not record.exists():
        return []
    then = read_record(record)["files"]
    now = describe_files(raw)
    told = {name: "has changed" for name in then if name in now and now[name] != then[name]}
    told |= {name: "is gone" for name in then if name not in now}
    told |= {name: "is new" for name in now if name not in then}
    return [f"{name} {what}" for name, what in sorted(told.items())]


def find_beside(raw: Path, root: Path) -> list[Path]:
    """Return the files that tell of a raw path's data: licences, notices, readmes in it, else beside it.

    Args:
        raw: a file, a folder, or a pattern. Beside a folder is what lies in a folder of the project.
        root: of the project, whose own licence is none of the data's.
    """
    above, home = raw.parent.resolve(), root.resolve()
    inside = list(_list_telling(raw))
    if inside or above == home or (raw.is_dir() and home not in above.parents):
        return inside
    return list(_list_telling(raw.parent))


def refuse_filled(out: Path) -> None:
    """Raise ArtifactError where something stands where a copy is to be put, unless that is an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} is there and is not empty; remove it, or give the version another name")


def copy_files(raw: Path, root: Path, out: Path) -> None:
    """Copy the data files of a raw path, and what tells of them, into a folder: whole or not at all.

    Raises:
        ArtifactError: the folder is not empty, a file cannot be read, or the disk refuses.
        ExamplesError: there is no data.
    """
    from tasks.masks.sparse_deltas import replacing_folder

    refuse_filled(out)
    files = list_files(raw, {})[0]
    there = {file.path for file in files}
    try:
        with replacing_folder(out) as part:
            for path in find_beside(raw, root):
                _copy(path, part / path.name)
            for file in files:
                _copy_file(file, part / (file.name.partition("/")[2] or file.name), there)
    except OSError as error:  # before there was a folder to write to
        raise ArtifactError(
            f"{out} could not be written: {error.strerror or error}. {name_remedy(out, error)}"
        ) from error


def _copy_file(file: RawFile, place: Path, there: Collection[Path]) -> None:
    """Copy a file or a saved data set, of which the description of the splits only goes with all of them."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in list_contents(file.path):
        inside = place / path.relative_to(file.path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, inside)
    splits = file.path.with_name(DESCRIPTION)
    if file.kind == SAVED and splits.exists():
        named = json.loads(splits.read_text(encoding="utf-8")).get("splits", [])
        if all(splits.with_name(str(name)) in there for name in named):
            _copy(splits, place.with_name(DESCRIPTION))


def _copy(path: Path, place: Path) -> None:
    try:
        shutil.copyfile(path, place)
    except PermissionError as error:
        if error.filename == str(path):
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror}; allow it, or take it out of the raw folder"
            ) from error
        raise


def _list_telling(folder: Path) -> Iterator[Path]:
    patterns = [pattern.rstrip("*") for pattern in BESIDE]
    if folder.is_dir():
        yield from (
            path
            for path in sorted(folder.iterdir())
            if path.is_file()
            and find_kind(path.name) is None
            and any(path.name.upper().startswith(start) for start in patterns)
        )
