"""Work that is cut smaller where memory is short: the same sums and scores, in more and smaller passes.

How much memory a pass takes is known only by trying, so a size that did not fit is halved, until it fits or is 1; for
the rest of a stage the process begins at the size that fitted. What was halved is kept for the stage's record.
"""

import ctypes
import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

SHORT = ("out of memory", "std::bad_alloc", "could not create a memory object")  # as libraries below PyTorch say it

R = TypeVar("R")


class MemoryShort(ValueError):  # noqa: N818
    """Memory does not suffice for the smallest pass."""


@dataclass(frozen=True)
class Halving:
    """A size that was halved, once or several times."""

    what: str  # the setting, or what the size is of
    asked: int
    used: int


_used: dict[str, Halving] = {}


def fitting(what: str, size: int, run: Callable[[int], R]) -> R:
    """Return what work gives at a size, or at half of it, a quarter ..., the first that fits in memory.

    Args:
        what: the size is of: the name of a setting, or words.
        size: that is tried first, from 1.
        run: the work; called again from its beginning with a smaller size where memory was short.

    Raises:
        MemoryShort: size 1 does not fit.

    >>> def run(size):
    ...     if size > 3:
    ...         raise MemoryError
    ...     return size
    >>> fitting("doctest_rows", 16, run), fitting("doctest_rows", 16, run), take_halvings()
    (2, 2, [Halving(what='doctest_rows', asked=16, used=2)])
    """
    known = _used.get(what)
    now = min(size, known.used) if known else size
    while True:
        try:
            found = run(now)
            if what in _used:
                _free()  # for whom else memory is short: tables, files that are mapped
            return found
        except (MemoryError, RuntimeError) as error:
            if not is_short(error):
                raise
            told = " ".join(str(error).split())[:200] or "MemoryError"
        _free()  # outside of the handler, which holds the frames of what failed
        if now <= 1:
            raise MemoryShort(
                f"memory is short for the smallest pass ({what} 1 of {size}): {told}; lower models.max_tokens, set "
                "runtime.block_parameters or models.dtype: bfloat16, or use a machine or device with more memory"
            )
        now //= 2
        _used[what] = Halving(what, max(size, known.asked) if known else size, now)


def is_short(error: BaseException) -> bool:
    """Return whether an error says that memory, a device's or the machine's, did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(words in str(error) for words in SHORT)
    )


def take_halvings() -> list[Halving]:
    """Return what was halved since the last call, and begin at full sizes again."""
    found = list(_used.values())
    _used.clear()
    return found


def add_halvings(halvings: list[Halving]) -> None:
    """Add what another process halved in this one's work."""
    for one in halvings:
        known = _used.get(one.what, one)
        _used[one.what] = Halving(one.what, max(one.asked, known.asked), min(one.used, known.used))


def _free() -> None:
    """Give memory back that nothing is in: objects in cycles, what a device caches, and what glibc keeps for later."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
