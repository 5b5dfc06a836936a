"""A version's raw files when it was added: names, sizes and digests, and a copy of them where that is asked for.

The record is a small file beside the data that git tracks, `data/raw/<version>.files.json`: a later run whose files
differ says so by name, wherever the data lie.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import ArtifactError, digest, write_json
from tasks.examples.files import SAVED, RawFile, list_contents, list_files

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
            found[name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    return found


def write_record(raw: Path, place: str, out: Path) -> None:
    """Write what the files of a raw path are.

    Args:
        raw: the path.
        place: what params.yaml calls it.
        out: the file to be written, whole or not at all.
    """
    write_json({"raw": place, "files": describe_files(raw)}, out)


def list_differences(raw: Path, record: Path) -> list[str]:
    """Return what differs from the record, each with its name: none where nothing does, or nothing was recorded.

    Raises:
        ArtifactError: the record is none.
    """
    if not record.exists():
        return []
    try:
        then = dict(json.loads(record.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{record} is no record of raw files ({error}); bring it back with `git checkout {record}`, or delete it"
        ) from error
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


def copy_files(raw: Path, root: Path, out: Path) -> None:
    """Copy the data files of a raw path, and what tells of them, into a folder: whole or not at all.

    Raises:
        ArtifactError: the folder is not empty, or the disk refuses.
        ExamplesError: there is no data.
    """
    from tasks.masks.sparse_deltas import replacing_folder

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} is there and is not empty; remove it, or give the version another name")
    files = list_files(raw, {})[0]
    with replacing_folder(out) as part:
        for path in find_beside(raw, root):
            shutil.copyfile(path, part / path.name)
        for file in files:
            _copy_file(file, part / (file.name.partition("/")[2] or file.name))


def _copy_file(file: RawFile, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.path.is_dir():
        shutil.copytree(file.path, place, dirs_exist_ok=True)
    else:
        shutil.copyfile(file.path, place)
    splits = file.path.with_name(DESCRIPTION)
    if file.kind == SAVED and splits.exists():
        shutil.copyfile(splits, place.with_name(DESCRIPTION))


def _list_telling(folder: Path) -> Iterator[Path]:
    patterns = [pattern.rstrip("*") for pattern in BESIDE]
    if folder.is_dir():
        yield from (
            path
            for path in sorted(folder.iterdir())
            if path.is_file() and any(path.name.upper().startswith(start) for start in patterns)
        )
