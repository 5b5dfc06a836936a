"""Locks on files, which processes of one machine hold against each other and which the kernel frees when they end.

They hold between threads, too, as each opens the file anew. A lock whose process was killed (`kill -9`) is free.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    refusal: Exception | None = None,
    waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold a file, which is made where it is missing, for as long as the context lasts.

    Args:
        path: the file; what it holds plays no part.
        shared: hold it together with others that share it; else alone.
        refusal: raised at once where others hold it; None: wait for them.
        waiting: called once before waiting.

    Raises:
        ArtifactError: a folder stands in the file's place, or a link that leads nowhere.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if refusal is not None:
                raise refusal from error
            if waiting is not None:
                waiting()
            fcntl.flock(file, kind)
        yield


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "ab")
    except (IsADirectoryError, FileNotFoundError) as error:
        if not os.path.lexists(path):
            raise
        from tasks.artifacts.tables import ArtifactError, tell_folder  # which is slow to import

        raise ArtifactError(tell_folder(path)) from error


def is_held(path: Path) -> bool:
    """Return whether somebody holds a file that may be missing."""
    try:
        with locked(path, refusal=BlockingIOError()):
            return False
    except BlockingIOError:
        return True
