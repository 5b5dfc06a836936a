"""What surrounds every command: the project's folder, its parameters read first, an error said once, a quiet end."""

import contextlib
import errno
import os
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from flows import params
from flows.stage import format_error, say

MARKS = ("params.yaml", "dvc.yaml")  # what a project's folder holds
KEPT = (".cache", ".dvc", ".dvc/cache", "data", "data/models", "data/raw", "versions")  # folders that commands write in
# Where commands read and write files of their own, and whether in the sub-folders too. Raw data are read with care
# of their own, and the stores and DVC's cache hold what was found by a listing of regular files.
READ = {".": False, ".cache": False, ".dvc": False, ".dvc/tmp": False, "data": True, "versions": True}
PASSED = Path("data/raw")


@dataclass(frozen=True)
class Setting:
    """What holds for every command."""

    debug: bool  # show the traceback of an error
    stood: Path  # the folder in which the user called


def spoken(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that runs in the project's folder, and says an error as one message with exit status 1.

    It reads params.yaml before all else, so that what is wrong there is said in the same words by every command.
    """

    @wraps(command)
    def guarded(context: typer.Context, **arguments: Any) -> None:
        try:
            with contextlib.chdir(find_project(context.obj.stood)):
                params.read(bare=True)  # whoever needs a version refuses a file without one
                refuse_in_way()
                command(context, **arguments)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            _tell(error, context)
            raise typer.Exit(1) from error

    return guarded


def find_project(place: Path) -> Path:
    """Return the folder of the project that a folder lies in, or that folder itself, where it lies in none."""
    return next((one for one in (place, *place.parents) if all((one / mark).is_file() for mark in MARKS)), place)


def refuse_in_way() -> None:
    """Raise ParamsError where something else stands in the place of a folder or of a file of the project.

    A folder's place may hold a file, or a link that leads nowhere. A file's may hold a named pipe, a socket or a
    device, which a command that reads it would wait for without end.
    """
    for place in map(Path, KEPT):
        if os.path.lexists(place) and not place.is_dir():
            what = "is a link that leads to no folder" if place.is_symlink() else "is no folder"
            raise params.ParamsError(
                f"{place} {what}, and the project keeps a folder there; move it away, then run again"
            )
    for folder, deep in READ.items():
        for place, what in _find_special(Path(folder), deep=deep):
            raise params.ParamsError(f"{place} {what}, no file; move it away, then run again")


def _find_special(folder: Path, *, deep: bool) -> Iterator[tuple[Path, str]]:
    """Yield what no command can read in a folder, where deep in its sub-folders too, and what it is.

    A link that leads nowhere is left to whoever needs the file: DVC, told to link, leaves such where its cache is
    gone, and a run brings the file back.
    """
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if deep and Path(entry.path) != PASSED:
                yield from _find_special(Path(entry.path), deep=True)
            continue
        try:
            mode = entry.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            yield Path(entry.path), "is a link that leads to itself"
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            yield Path(entry.path), "is a named pipe, a socket or a device"


def _tell(error: Exception, context: typer.Context) -> None:
    if context.obj.debug:
        say("".join(traceback.format_exception(error)))
    say(f"error: {format_error(error)}")
    if not isinstance(error, ValueError) and not context.obj.debug:
        say(f"`tamis --debug {context.info_name} ...` shows where")
