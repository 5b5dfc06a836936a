"""Near-duplicates among the rows of a version: what becomes of them, and of rows of the pool like a held-out row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tamis.examples.near_duplicates import NearDuplicates, find_near_duplicates
from tamis.examples.splits import HELD_OUT, POOL
from tasks.examples.settings import ExamplesSettings

NEAR, NEAR_HELD_OUT = "near duplicate", "near held out"  # why a row is not used


@dataclass(frozen=True, eq=False)
class Likeness:
    """What the near-duplicates of a version's rows are, in the rows' order."""

    first: np.ndarray  # int64, place of the first row of its cluster; -1 at that row itself
    sizes: np.ndarray  # int64, rows of its cluster, itself counted
    near_held_out: np.ndarray  # bool, rows of the pool that are near-duplicates of a held-out row


def find_likeness(texts: Iterable[str], sides: Sequence[str], settings: ExamplesSettings) -> Likeness:
    """Return the near-duplicates of rows, given as the texts that they are compared by, in their order."""
    found = find_near_duplicates(texts, jaccard=settings.near_duplicate_jaccard)
    return Likeness(found.near_duplicate_of, found.cluster_sizes, find_near_held_out(found, np.asarray(sides)))


def find_near_held_out(found: NearDuplicates, sides: np.ndarray) -> np.ndarray:
    """Return which rows of the pool are near-duplicates of a held-out row, repeats of such rows among them."""
    same = np.arange(len(sides))
    repeats = found.jaccards == 1
    same[found.pairs[repeats, 1]] = found.pairs[repeats, 0]
    asked = np.zeros(len(sides), bool)
    asked[same[sides == HELD_OUT]] = True
    near = asked.copy()
    one, other = same[found.pairs[~repeats]].T
    np.logical_or.at(near, one, asked[other])
    np.logical_or.at(near, other, asked[one])
    return near[same] & (sides == POOL)


def bar_rows(likeness: Likeness, sides: Sequence[str], settings: ExamplesSettings) -> list[str | None]:
    """Return for each row why its likeness to another keeps it from being used; None: it does not.

    Of a cluster the first row of the pool stays, with `near_duplicates: drop` or `weight`.
    """
    because: list[str | None] = [None] * len(sides)
    if settings.near_duplicates != "keep":
        seen: set[int] = set()
        for place, side in enumerate(sides):
            cluster = int(likeness.first[place]) if likeness.first[place] >= 0 else place
            if side == POOL and likeness.sizes[place] > 1:
                because[place] = NEAR if cluster in seen else None
                seen.add(cluster)
    if settings.drop_near_held_out:
        because = [
            NEAR_HELD_OUT if near else reason
            for near, reason in zip(likeness.near_held_out.tolist(), because, strict=True)
        ]
    return because
