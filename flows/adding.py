"""A data version added: where its raw files will be read from, and what is written so that the next run reads them."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import params
from flows.checks import ParamsError
from flows.graph import dvc_files
from flows.stage_calls import RAW, find_record
from flows.undoing import Undo, undone_unless_ended
from tasks.examples.files import show_name
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
    refused: Collection[str] = (),
) -> Addition:
    """Return how files become a version of the project in the current folder.

    Args:
        path: absolute: a file, a folder, or a pattern.
        versions: those that there are, oldest first.
        version: its name; None: the next free vN.
        previous: what it continues from; None: the newest version that is not refused.
        copy: the files are copied into the project.
        external: they may stay outside of it.
        refused: versions that did not pass their gates.

    Raises:
        AddError: there is no such path, or it holds the project; it lies outside, or is a pattern, and is not to be
            copied; a version reads it already; it is to be copied and to stay where it is.
        ParamsError: a name that is in use or cannot be one; it continues from one that is not there.
    """
    if copy and external:
        raise AddError("--copy and --external are given; --copy copies the files, --external reads them where they are")
    lying = [place.name for place in RAW.glob("v*")] if copy else []
    name = name_next([*versions, *lying]) if version is None else version
    newest = next((one for one in reversed(versions) if one not in refused), params.BASE)
    before = newest if previous is None else previous
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


@contextmanager
def written(addition: Addition, sources: Sequence[Mapping[str, Any]] = ()) -> Iterator[list[str]]:
    """Copy the files where they are to be copied, record what they are, and name the version in params.yaml.

    Call it inside `undoing.adding`, where the addition was planned, too.

    What was written is taken back where a later step or what runs inside fails, is interrupted, or killed.

    Args:
        addition: what is added.
        sources: what `examples.sources` is to say of the files.

    Yields:
        What git is to hold.

    Raises:
        ArtifactError: the copy's place is not empty, or the disk refuses; params.yaml cannot be written.
        StateError: DVC cannot take them.
        ParamsError: params.yaml has been edited meanwhile, and cannot take the version any more.
        AddError: another file cannot be.
    """
    with undone_unless_ended(addition.version) as undo:
        try:
            held = _write(addition, sources, undo)
        except OSError as error:
            named = f"{error.filename or addition.raw} cannot be written: {error.strerror or error}"
            raise AddError(f"{named}; allow it, and add again; what was written is taken back") from error
        yield held


def _write(addition: Addition, sources: Sequence[Mapping[str, Any]], undo: Undo) -> list[str]:
    """Write what `written` says, each path once `undo` has noted what it was."""
    from tasks.first_look.kept_files import copy_files, refuse_filled, write_record

    place, record = Path(addition.raw), find_record(addition.version)
    kept = [addition.raw]
    if addition.copied:
        from flows.graph import dvc_state

        refuse_filled(place)
        for path in (place, place.with_name(f"{place.name}.dvc"), place.with_name(".gitignore")):
            undo.note(path)
        copy_files(addition.found, Path(), place)
        kept = dvc_state.add(addition.raw)
    undo.note(record)
    write_record(place, addition.raw, record)
    home = dvc_files.place(addition.version).parent
    if not home.exists():
        undo.note(home)
    settings = {"raw": addition.raw, "previous": addition.previous}  # of the text as it is once all is copied
    named = params.add_version(PARAMS.read_text(encoding="utf-8"), addition.version, settings, sources)
    undo.note(PARAMS, named)
    params.write(PARAMS, named)
    copies = [path.as_posix() for path in dvc_files.write_copies()]
    return [str(PARAMS), *copies, record.as_posix(), *(one for one in kept if not Path(one).is_absolute())]


def find_path(stood: Path, path: str) -> Path:
    """Return the absolute path that a user means who stands in a folder.

    Raises:
        AddError: nothing is named.
    """
    if not path.strip():
        raise AddError("the path is empty; give a file or a folder with data files")
    return Path(os.path.abspath(stood / path))


def name_paths(paths: Iterable[str], stood: Path) -> str:
    """Return paths from the current folder as one types them in another folder, for a shell.

    >>> name_paths(["params.yaml", "own/my rows.jsonl"], Path.cwd() / "own")
    "../params.yaml 'my rows.jsonl'"
    """
    seen = (os.path.relpath(path, stood) for path in paths)
    return shlex.join(f"./{path}" if path.startswith(("-", ":")) else path for path in seen)


def name_next(versions: Iterable[str]) -> str:
    """Return the next name of the form vN.

    >>> name_next(["v1", "v3", "mine"]), name_next([])
    ('v4', 'v1')
    """
    numbers = [int(found[1]) for name in versions if (found := re.fullmatch(r"v(\d+)", name))]
    return f"v{1 + max(numbers, default=0)}"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise AddError(f"{path} cannot be read: {error.strerror or error}; allow it, or give another path") from error


def _shorten(path: Path) -> Path:
    """Return a path from the current folder on where it leads into it, else as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _refuse_place(path: Path, found: Path, *, copy: bool, external: bool) -> None:
    """Refuse files that are not there, or that a run could not read where they are."""
    there = _is_there(path)
    wild = not there and re.search(r"[*?[]", str(path)) is not None
    if not there and not wild:
        raise AddError(f"there is no {found}; give a file or a folder with data files, or a pattern with --copy")
    if Path.cwd().is_relative_to(path):
        raise AddError(f"{path} is the project's folder, or holds it; give the file or folder with the data alone")
    if copy:
        return
    if show_name(str(found)) != str(found):
        raise AddError(
            f"{show_name(str(found))} is no name in UTF-8, and params.yaml cannot hold it; rename it, or give --copy"
        )
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
