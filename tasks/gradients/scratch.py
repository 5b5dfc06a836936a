"""The scratch folder of stage `gradients`, in which several processes may be at work."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.artifacts.locks import locked

IN_USE = "lock"  # who works in the folder shares it


def clear_others(scratch: Path, kept: Collection[str]) -> None:
    """Delete what the scratch folder holds besides files whose names begin so, where no other process is at work."""
    with suppress(BlockingIOError), locked(scratch / IN_USE, refusal=BlockingIOError()):
        for path in scratch.glob("*"):
            if path.name.partition(".")[0] not in (IN_USE, *kept):
                path.unlink()


@contextmanager
def at_work(scratch: Path, ends: Callable[[], None]) -> Iterator[None]:
    """Keep others from clearing the scratch folder; afterwards call what drops the caches of this process."""
    try:
        with locked(scratch / IN_USE, shared=True):
            yield
    finally:
        ends()
