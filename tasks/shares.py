"""Shares of a stage's work, for processes on several machines that fill one project's stores together.

Who computes a row, a pair or a sum is known by its name alone: whenever a process begins, and whatever the others have
done by then, it takes its own share and no other's.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Unfinished(Exception):  # noqa: N818
    """What a share's next step reads is not whole yet: other shares have theirs to do."""

    def __init__(self, what: str, lacking: int, of: int) -> None:
        super().__init__(f"{lacking:,} of {of:,} {what} are left to the other shares")


@dataclass(frozen=True)
class Share:
    """A `map` of one process among several: it is handed its own share of each step."""

    run: Map
    number: int  # from 1
    of: int

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        """Run a function over items, in order."""
        return self.run(function, items)

    def owns(self, name: str) -> bool:
        """Return whether what has this name is of this share."""
        found = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(found, "big") % self.of == self.number - 1


def own(map: Map, names: Sequence[str]) -> np.ndarray:
    """Return which of these a process computes: all, but where its `map` is a share.

    >>> share = Share(map, 1, 2)
    >>> own(map, ["a", "b"]).tolist(), own(share, ["a", "b"]).tolist(), own(Share(map, 2, 2), ["a", "b"]).tolist()
    ([True, True], [False, False], [True, True])
    """
    if not isinstance(map, Share):
        return np.ones(len(names), bool)
    return np.array([map.owns(name) for name in names], bool)


def refuse_unfinished(map: Map, what: str, lacking: int, of: int) -> None:
    """Raise Unfinished where other shares have not done theirs; without shares nothing is left to others."""
    if lacking and isinstance(map, Share):
        raise Unfinished(what, lacking, of)
