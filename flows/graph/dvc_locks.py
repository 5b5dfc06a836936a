"""The project as DVC opens it, and its locks: waiting with a line that names who holds them, and mending them.

The repository's lock is a file that the kernel frees. The list of locked paths (`.dvc/tmp/rwlock`) is JSON, in which a
process that was killed stays; DVC removes it once no process has its number, which another one may have been given.
What git and DVC refuse while the lock is held is said here in words, too.
"""

import atexit
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from dvc.config import Config, ConfigError
from dvc.exceptions import DvcException
from dvc.lock import LockError as Busy
from dvc.lock import make_lock
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
from dvc.scm import SCMError
from dvc_data.hashfile.build import IgnoreInCollectedDirError
from fsspec.implementations.memory import MemoryFileSystem
from voluptuous import Invalid

from flows.stage import say

CONFIG = Path(".dvc/config")
CONFIGS = (CONFIG, Path(".dvc/config.local"))
OURS = ("dvc", "tamis", "flows", "prefect", "pytest", "python")  # of which one is in the command of who locks paths
OWN = (".dvc/", "versions/", "data/models/", "data/erased.json")  # files of DVC and of ours, and no raw data
LISTING = re.compile(r"/\.[\w-]+\.tmp(\.with_meta)?")  # as DVC names what it digests of a folder
UNREADABLE = (  # of what DVC digests, or is to write
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
    IgnoreInCollectedDirError,
)
_open = threading.local()


def open_project() -> Repo:
    """Return the project in the current folder; it is opened once per thread, and anew where its settings have changed.

    What DVC has read of the project's files it forgets whenever its lock is taken.
    """
    settings = tuple(path.read_bytes() for path in CONFIGS if path.exists())
    if getattr(_open, "key", None) != (os.getcwd(), settings):
        close_project()
        _open.repo = Repo(".", _wait_for_lock=True)
        atexit.register(_open.repo.close)  # else git's open files complain once Python is half gone
        _open.key = (os.getcwd(), settings)
    return _open.repo


def close_project() -> None:
    """Close the project where this thread has it open: what git remembers of its files grows with the versions."""
    repo = getattr(_open, "repo", None)
    if repo is not None:
        repo.close()
        atexit.unregister(repo.close)
    _open.__dict__.clear()


@contextmanager
def held(repo: Repo) -> Iterator[Repo]:
    """Hold the repository's lock, saying who has it where it waits, with a list of locked paths that is mended."""
    lock = lock_repo(repo)
    repo.lock._wait = False  # but for three seconds
    try:
        lock.__enter__()
    except Busy:
        say(f"DVC is at work in this project ({name_holder(repo)}): waiting for it")
        repo.lock._wait = True
        lock = lock_repo(repo)
        lock.__enter__()
    try:
        mend(repo)
        yield repo
    finally:
        forget_folders()
        lock.__exit__(None, None, None)


def forget_folders() -> None:
    """Drop the listings of folders that DVC digested, each of which it leaves in a store of the whole process.

    What reads that store looks at all that is in it, so that a process of many versions would grow and slow down.
    """
    store = MemoryFileSystem.store
    for name in [name for name in store if LISTING.fullmatch(name)]:
        store.pop(name, None)


def name_holder(repo: Repo) -> str:
    """Return the process that holds the repository's lock, in words."""
    with suppress(OSError, ValueError, AttributeError):
        number = int(Path(repo.lock.lockfile).read_text().split()[0])
        with suppress(psutil.Error):
            return f"process {number}: {' '.join(psutil.Process(number).cmdline())[:80]}"
        return f"process {number}"
    return "another process"


def mend(repo: Repo) -> None:
    """Delete DVC's list of locked paths where it cannot be read, and from it those who are gone."""
    path = Path(repo.tmp_dir, RWLOCK_FILE)
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(path.with_name(RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
        if not os.path.lexists(path):
            return
        try:
            listed = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            path.unlink()
            say(f"{path} could not be read, as a kill or another DVC leaves it, and was deleted")
            return
        written = path.stat().st_mtime
        left = {kind: _drop_gone(listed[kind], written) for kind in ("read", "write")}
        if left != listed:
            path.write_text(json.dumps(left), encoding="utf-8")


def _drop_gone(paths: dict[str, Any], written: float) -> dict[str, Any]:
    """Return locked paths without those whose process is gone."""
    found = {}
    for path, holders in paths.items():
        several = holders if isinstance(holders, list) else [holders]
        alive = [one for one in several if one and _is_alive(one, written)]
        if alive:
            found[path] = alive if isinstance(holders, list) else alive[0]
    return found


def _is_alive(holder: dict[str, Any], written: float) -> bool:
    """Return whether a process still holds what it has locked: it lives, is older than the list, and is of our kind.

    Args:
        holder: its number and command, as the list has them.
        written: when the list was written, seconds since 1970.
    """
    try:
        process = psutil.Process(holder["pid"])
        words = " ".join(process.cmdline()).lower()
        return process.create_time() <= written + 1 and any(name in words for name in OURS)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def explain(error: Exception) -> str:
    """Return what git or DVC refuses, in words; of a file that DVC cannot digest, where it was named, or write."""
    from tasks.artifacts.tables import may_read, tell_folder, tell_refused  # which is slow to import

    if isinstance(error, ConfigError):
        return f"DVC: {str(error).rstrip('.')}; {_name_config()}"
    if isinstance(error, FileNotFoundError | IsADirectoryError) and (path := _find_own(error)) is not None:
        return tell_folder(path)
    if isinstance(error, PermissionError) and error.filename and (error.filename2 or may_read(Path(error.filename))):
        return tell_refused(error)
    if isinstance(error, UNREADABLE):
        return f"DVC cannot read what a stage depends on: {error}; mend it, or name other versions.<version>.raw"
    return f"{'git' if isinstance(error, SCMError) else 'DVC'}: {error}"


def _name_config() -> str:
    """Return which file of DVC's settings cannot be read, and the way out."""
    others = [Path(Config.get_dir(level), Config.CONFIG) for level in ("global", "system")]
    damaged = [path for path in (*CONFIGS, *others) if path.exists() and not _is_config(path)]
    named = damaged[0] if damaged else CONFIG
    return f"mend {named}" + (f", or `git checkout {named}` brings back what git has" if named == CONFIG else "")


def _is_config(path: Path) -> bool:
    """Return whether a file holds settings that DVC knows."""
    try:
        Config.validate(Config.load_file(str(path)))
    except (DvcException, OSError):
        return False
    return True


def _find_own(error: OSError) -> Path | None:
    """Return the file of DVC or of a stage in whose place a folder or a link stands that leads nowhere.

    None: it is something else, above all raw data, which may be a link to where a person keeps them.
    """
    if not error.filename or not os.path.lexists(error.filename):
        return None
    path = Path(os.path.relpath(error.filename))
    ours = path.as_posix().startswith(OWN) or any(part.startswith("version=") for part in path.parts)
    return path if ours and not path.is_file() else None
