"""Near-duplicates among the rows of a version: what becomes of them, and of rows like a held-out or validation row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tamis.examples.near_duplicates import find_near_duplicates, match_marked
from tamis.examples.splits import HELD_OUT, POOL, VALIDATION
from tasks.examples.settings import ExamplesSettings

HELD_OUT_ASKS, NEAR_HELD_OUT = "held out", "near held out"  # why a row is not used
NEAR_VALIDATION, PLANTED, VETOED = "near validation", "planted", "vetoed"


@dataclass(frozen=True, eq=False)
class Likeness:
    """What the near-duplicates of a version's rows are, in the rows' order."""

    first: np.ndarray  # int64, place of the first row of its cluster; -1 at that row itself
    sizes: np.ndarray  # int64, rows of its cluster, itself counted
    near_held_out: np.ndarray  # bool, rows of the pool or for validation that are near-duplicates of a held-out row
    near_validation: np.ndarray  # bool, rows of the pool that are near-duplicates of a validation row


def find_likeness(texts: Iterable[str], sides: Sequence[str], *, settings: ExamplesSettings) -> Likeness:
    """Return the near-duplicates of rows, given as the texts that they are compared by, in their order."""
    found = find_near_duplicates(texts, jaccard=settings.near_duplicate_jaccard)
    side = np.asarray(sides)
    near_held_out = match_marked(found, side == HELD_OUT) & np.isin(side, (POOL, VALIDATION))
    near_validation = match_marked(found, side == VALIDATION) & (side == POOL)
    return Likeness(found.near_duplicate_of, found.cluster_sizes, near_held_out, near_validation)


def bar_rows(
    asked_elsewhere: Sequence[bool],
    likeness: Likeness | None,
    settings: ExamplesSettings,
    *,
    planted: Sequence[bool],
    vetoed: Sequence[bool],
) -> list[str | None]:
    """Return for each row why it must not be used: what it shares with a row outside the pool, or is itself; else None.

    Args:
        asked_elsewhere: rows of the pool that ask what a held-out row asks.
        likeness: of all rows; None: it was not looked for.
        settings: of the stage.
        planted: planted rows outside the pool.
        vetoed: rows that a person does not want to be used.
    """
    reasons = {VETOED: vetoed, HELD_OUT_ASKS: asked_elsewhere, PLANTED: planted}
    if likeness is not None and settings.drop_near_held_out:
        reasons |= {NEAR_HELD_OUT: likeness.near_held_out.tolist(), NEAR_VALIDATION: likeness.near_validation.tolist()}
    each = zip(*reasons.values(), strict=True)
    return [next((reason for reason, here in zip(reasons, marks, strict=True) if here), None) for marks in each]


def name_clusters(likeness: Likeness | None, settings: ExamplesSettings) -> list[int] | None:
    """Return the cluster of each row, of which one row of the pool is to be used; None where all may be."""
    if likeness is None or settings.near_duplicates == "keep":
        return None
    return np.where(likeness.first < 0, np.arange(len(likeness.first)), likeness.first).tolist()


def weigh_rows(
    likeness: Likeness, sides: Sequence[str], used: Sequence[bool], settings: ExamplesSettings
) -> list[float]:
    """Return what each row weighs in the objective: one, or the pool's rows of its cluster where it stands for all."""
    clusters = name_clusters(likeness, settings)
    if clusters is None or settings.near_duplicates != "weight":
        return [1.0] * len(sides)
    counted = Counter(cluster for cluster, side in zip(clusters, sides, strict=True) if side == POOL)
    return [
        float(counted[cluster]) if here and side == POOL else 1.0
        for cluster, side, here in zip(clusters, sides, used, strict=True)
    ]
