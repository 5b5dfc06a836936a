"""Comparison of selectors: held-out loss over budget, beside random rows at the same budget.

Symbols: cell = a selector at a budget; run = a cell and a seed; loss = mean negative log-likelihood of a held-out row's
response, nats per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tamis.evaluation import percentile_intervals, resample_arms

Cell = tuple[str, str]  # selector, budget
RANDOM = "random"


@dataclass(frozen=True)
class Standing:
    """How a cell did; losses in nats per response token, lower is better."""

    loss: float  # mean over seeds and held-out rows
    low: float  # of the bootstrap interval
    high: float
    minus_random: float  # the same less that of random rows at the same budget; below 0: better
    minus_random_low: float
    minus_random_high: float


def compare(
    losses: Mapping[Cell, Float[np.ndarray, "seed row"]],
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[Cell, Standing]:
    """Return every cell's loss and its difference to random rows at its budget, with bootstrap intervals.

    All cells share the resampled rows, and each draws its own seeds, so differences are paired by row
    (`evaluation.resample_arms`). Intervals are of one comparison: of twenty, one excludes 0 by chance at 95%.

    Args:
        losses: per cell, of each seed's run on each held-out row, rows in the same order everywhere.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        generator: draws rows, then each cell's seeds.

    Raises:
        ValueError: a budget without random rows.

    >>> same = {("random", "0.1"): np.ones((1, 2)), ("longest", "0.1"): np.zeros((1, 2))}
    >>> found = compare(same, resamples=9, confidence=0.9, generator=np.random.default_rng(0))
    >>> found["longest", "0.1"].minus_random
    -1.0
    """
    missing = sorted({budget for _, budget in losses} - {budget for selector, budget in losses if selector == RANDOM})
    if missing:
        raise ValueError(f"{len(missing)} budgets have no random rows beside them, first {missing[:3]}; run them, too")
    named = {f"{selector}@{budget}": runs[:, :, None] for (selector, budget), runs in losses.items()}
    drawn = {name: means[:, 0] for name, means in resample_arms(named, resamples, generator).items()}
    found = {}
    for (selector, budget), runs in losses.items():
        own, other = drawn[f"{selector}@{budget}"], drawn[f"{RANDOM}@{budget}"]
        bounds = percentile_intervals(np.stack([own, own - other], axis=1), confidence)
        mean, beside = float(runs.mean()), float(losses[RANDOM, budget].mean())
        (low, high), (less, more) = bounds.tolist()
        found[selector, budget] = Standing(mean, low, high, mean - beside, less, more)
    return found
