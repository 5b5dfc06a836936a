"""A data version added: where its raw files will be read from, and what is written so that the next run reads them."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import params
from flows.checks import ParamsError
from flows.stage_calls import RAW, find_record
from tasks.settings import VersionSettings, hint

PARAMS = Path("params.yaml")


class AddError(ValueError):
    """Files cannot be added as asked."""


@dataclass(frozen=True)
class Addition:
    """A version that is to be added."""

    version: str
    previous: str  # what it continues from
    found: Path  # the files as they lie now, from the project's folder on where they lie in it
    raw: str  # where params.yaml will say that they are
    copied: bool  # they go there first


def plan_addition(
    path: Path,
    versions: Mapping[str, VersionSettings],
    *,
    version: str | None = None,
    previous: str | None = None,
    copy: bool = False,
    external: bool = False,
) -> Addition:
    """Return how files become a version of the project in the current folder.

    Args:
        path: absolute: a file, a folder, or a pattern.
        versions: those that there are, oldest first.
        version: its name; None: the next free vN.
        previous: what it continues from; None: the newest version.
        copy: the files are copied into the project.
        external: they may stay outside of it.

    Raises:
        AddError: there is no such path; it lies outside, or is a pattern, and is not to be copied; a version reads it
            already.
        ParamsError: a name that is in use or cannot be one; it continues from one that is not there.
    """
    lying = [place.name for place in RAW.glob("v*")] if copy else []
    name = version or name_next([*versions, *lying])
    before = previous or next(reversed(versions), params.BASE)
    if name in versions:
        raise ParamsError(f"there is a data version {name!r} already ({versions[name].raw}); give another name")
    if before not in (*versions, params.BASE):
        known = (*versions, params.BASE)
        raise ParamsError(f"there is no data version {before!r}{hint(before, known)}; there are {', '.join(known)}")
    found = _shorten(path)
    _refuse_place(path, found, copy=copy, external=external)
    raw = (RAW / name).as_posix() if copy else found.as_posix()
    taken = next((each for each, one in versions.items() if Path(one.raw) == Path(raw)), None)
    if taken is not None:
        raise AddError(f"{raw} is what {taken} reads; `tamis check {taken}` shows it")
    params.add_version(PARAMS.read_text(encoding="utf-8"), name, {"raw": raw, "previous": before})
    return Addition(name, before, found, raw, copy)


def write_addition(addition: Addition, sources: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Copy the files where they are to be copied, record what they are, and name the version in params.yaml.

    Args:
        addition: what is added.
        sources: what `examples.sources` is to say of the files.

    Returns:
        What git is to hold.

    Raises:
        ArtifactError: the copy's place is not empty, or the disk refuses.
        StateError: DVC cannot take them.
    """
    from tasks.first_look.kept_files import copy_files, write_record

    kept = [addition.raw]
    place = Path(addition.raw)
    if addition.copied:
        from flows.graph import dvc_state

        copy_files(addition.found, Path(), place)
        kept = dvc_state.add(addition.raw)
    record = find_record(addition.version)
    write_record(place, addition.raw, record)
    settings = {"raw": addition.raw, "previous": addition.previous}
    params.write(PARAMS, params.add_version(PARAMS.read_text(encoding="utf-8"), addition.version, settings, sources))
    return [str(PARAMS), record.as_posix(), *(one for one in kept if not Path(one).is_absolute())]


def name_next(versions: Iterable[str]) -> str:
    """Return the next name of the form vN.

    >>> name_next(["v1", "v3", "mine"]), name_next([])
    ('v4', 'v1')
    """
    numbers = [int(found[1]) for name in versions if (found := re.fullmatch(r"v(\d+)", name))]
    return f"v{1 + max(numbers, default=0)}"


def _shorten(path: Path) -> Path:
    """Return a path from the current folder on where it leads into it, else as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _refuse_place(path: Path, found: Path, *, copy: bool, external: bool) -> None:
    """Refuse files that are not there, or that a run could not read where they are."""
    wild = not path.exists() and re.search(r"[*?[]", str(path)) is not None
    if not path.exists() and not wild:
        raise AddError(f"there is no {found}; give a file or a folder with data files, or a pattern with --copy")
    if copy:
        return
    if wild:
        raise AddError(
            f"{found} is a pattern, and DVC follows files and folders; give the folder, or --copy, which copies what "
            f"it matches to {RAW.as_posix()}/<version>"
        )
    outside = not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(Path.cwd()))
    if outside and not external:
        raise AddError(
            f"{found} lies outside of the project, where neither git nor DVC keeps it; --copy copies it to "
            f"{RAW.as_posix()}/<version> and into DVC, so that others have it, too; --external reads it where it is, "
            "on this machine alone"
        )
