"""A data version's addition, taken back where it does not come to its end: failed, interrupted, or killed.

What a path was is noted before it is written, in a file that outlives the process; the next addition after a kill finds
the notes, and puts everything back first.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flows.graph import dvc_files
from flows.interrupts import cleaning
from flows.stage import say
from flows.stage_calls import CACHE, find_record
from tasks.artifacts.locks import locked
from tasks.artifacts.tables import ArtifactError, read_json, write_json

NOTES = CACHE / "adding.json"
LOCK = CACHE / "adding.lock"


@dataclass(frozen=True)
class Undo:
    """What an addition has noted so far."""

    version: str
    head: str  # git's last commit when it began; "" without one
    unstaged: bool  # nothing was staged then: what is staged of noted paths is ours
    lock: str | None  # the version's dvc.lock then; None: there was none
    notes: list[dict[str, Any]] = field(default_factory=list)  # path, before, after; in the order of writing

    def note(self, path: Path, after: str | None = None) -> None:
        """Note what a path is that is written next: a text file, or a folder that is not there or empty.

        Args:
            path: from the project's folder on.
            after: what it will hold, of a file that people edit, too.
        """
        self.notes.append({"path": str(path), "before": _read(path), "after": after})
        write_json(asdict(self), NOTES)


@contextmanager
def adding() -> Iterator[None]:
    """Let nobody else add a version to the project meanwhile, waiting for who does; what a kill left is taken back.

    Whoever adds a version reads inside of it what versions there are, and writes there what it adds.
    """

    def tell() -> None:
        who = LOCK.read_text(encoding="utf-8", errors="replace")
        say(f"the project's data versions are being written ({who}): waiting for it")

    with locked(LOCK, waiting=tell):
        LOCK.write_text(f"process {os.getpid()}: {' '.join(sys.argv[:2])[:80]}", encoding="utf-8")
        _take_back_aloud()
        yield


@contextmanager
def undone_unless_ended(version: str) -> Iterator[Undo]:
    """Yield what takes notes; unless what runs inside ends, or git has committed it, all noted paths are as before.

    Call it inside `adding`.
    """
    head, unstaged = _ask_git("rev-parse", "HEAD") or "", _ask_git("diff", "--cached", "--quiet") is not None
    undo = Undo(version, head, unstaged, _read(dvc_files.place_lock(version)))
    with cleaning(_take_back):
        try:
            yield undo
        except BaseException:
            _take_back()
            raise
        NOTES.unlink(missing_ok=True)


def take_back_killed() -> None:
    """Take back what an addition left that was killed, and say so; nothing where none was, or one is at work."""
    if NOTES.exists():
        with suppress(BlockingIOError), locked(LOCK, refusal=BlockingIOError()):
            _take_back_aloud()


def _take_back_aloud() -> None:
    version = _take_back()
    if version:
        say(f"adding {version} was broken off: what was written for it is taken back")


def _take_back() -> str:
    """Put back what is noted, the last first; returns the version, "" where nothing was put back.

    What git has committed stays, and so does everything where a person has edited a noted file since, or where stages
    of the version have been run.

    Raises:
        ArtifactError: the notes are damaged.
    """
    undo = read_notes()
    if undo is None:
        return ""
    asked = [one for one in undo.notes if one["after"] is not None]
    edited = [
        one["path"]
        for one in asked
        if _lines(_read(Path(one["path"]))) not in (_lines(one["before"]), _lines(one["after"]))
    ]
    run = _read(dvc_files.place_lock(undo.version)) != undo.lock
    back = not edited and not run and not _is_committed(undo)
    if back:
        if undo.unstaged:
            _ask_git("reset", "--quiet", "--", *(one["path"] for one in undo.notes))  # what a failed commit has staged
        for one in reversed(undo.notes):
            _restore(Path(one["path"]), one["before"])
        with suppress(OSError, ValueError):  # DVC's copies of the graph follow params.yaml; else by the next command
            dvc_files.write_copies()
    if edited or run:
        since = f"{', '.join(edited)} was edited" if edited else "it has been run"
        say(f"adding {undo.version} was broken off, and {since} since: what was written stays")
    NOTES.unlink(missing_ok=True)
    return undo.version if back else ""


def read_notes() -> Undo | None:
    """Return what an addition has noted that was broken off or is at work; None: there is none.

    Raises:
        ArtifactError: the notes are damaged.
    """
    names = [field.name for field in fields(Undo)]
    try:
        found = read_json(NOTES, names) if os.path.lexists(NOTES) else {}
    except ArtifactError as error:
        raise ArtifactError(
            f"{NOTES} does not tell what an addition has written that was broken off; take that back by hand, as "
            f"`git status` shows it, then delete {NOTES}"
        ) from error
    return Undo(**{name: found[name] for name in names}) if found else None


def _restore(path: Path, before: str | None) -> None:
    """Give a path the text that it had; None: there was nothing. What cannot be restored was not written either."""
    with suppress(OSError):
        if before is not None and _read(path) != before:
            path.write_bytes(before.encode())
        drafts = path.parent.glob(f".{path.name}.*.part")  # a kill leaves files in the making, too
        for part in drafts if before is not None else (path, *drafts):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    return path.read_bytes().decode() if path.is_file() else None


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines()


def _is_committed(undo: Undo) -> bool:
    """Return whether there is a commit since the addition began, and it has the version's record."""
    record = f"HEAD:./{find_record(undo.version).as_posix()}"
    return _ask_git("rev-parse", "HEAD") != undo.head and _ask_git("cat-file", "-e", record) is not None


def _ask_git(*words: str) -> str | None:
    """Return what git prints; None: it does not do it, or there is none."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
