"""Comparison of selectors and masks: held-out loss over budget, beside what chance does with the same budget.

Symbols: cell = rows chosen by a selector, parameters chosen by a mask, and a budget; run = a cell and a seed; loss =
mean negative log-likelihood of a row's response, nats per token; base = the model before training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tamis.evaluation.bootstrap import percentile_intervals, resample_arms

RANDOM, ALL, NONE = "random", "all", "none"


class Cell(NamedTuple):
    """What is compared."""

    selector: str  # all: every row of the pool
    mask: str  # none: every parameter
    budget: str

    @property
    def chance(self) -> "Cell":
        """Return the cell that chooses at random what this one chooses.

        >>> Cell("delift", "none", "0.1").chance.selector, Cell("all", "fisher", "0.1").chance[:2]
        ('random', ('all', 'random'))
        """
        rows = ALL if self.selector == ALL else RANDOM
        return Cell(rows, NONE if self.mask == NONE else RANDOM, self.budget)


@dataclass(frozen=True)
class Measured:
    """Losses of all runs on some rows, the same ones everywhere."""

    losses: Mapping[Cell, Float[np.ndarray, "seed row"]]
    base: Float[np.ndarray, " row"]


@dataclass(frozen=True)
class Standing:
    """How a cell did; losses in nats per response token, lower is better."""

    loss: float  # mean over seeds and held-out rows
    low: float  # of the bootstrap interval
    high: float
    minus_random: float  # the same less that of chance at the same budget; below 0: better
    minus_random_low: float
    minus_random_high: float
    plasticity: float  # how much lower than the base's; above 0: learnt
    plasticity_low: float
    plasticity_high: float
    stability: float | None  # the same on general rows; below 0: forgotten; None where there are none
    stability_low: float | None
    stability_high: float | None
    correct: float | None  # share of held-out rows that are answered right; None without a task metric
    correct_low: float | None
    correct_high: float | None


def compare(
    held_out: Measured,
    general: Measured | None = None,
    correct: Mapping[Cell, Float[np.ndarray, "seed row"]] | None = None,
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[Cell, Standing]:
    """Return every cell's loss, its difference to chance at its budget, and its gains, with bootstrap intervals.

    All cells share the resampled rows, and each draws its own seeds, so differences are paired by row
    (`evaluation.resample_arms`). Intervals are of one comparison: of twenty, one excludes 0 by chance at 95%. Gains are
    those of `evaluation.measure_gains`, with the base as the start.

    Args:
        held_out: of the target task.
        general: of what must not be forgotten; None where it is not asked.
        correct: 1 where a held-out row is answered right, else 0; None without a task metric.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        generator: draws rows, then each cell's seeds; those of `general` and `correct` come last.

    Raises:
        ValueError: a cell without chance beside it.

    >>> one, chance = Cell("longest", "none", "0.1"), Cell("random", "none", "0.1")
    >>> losses = Measured({chance: np.ones((1, 2)), one: np.zeros((1, 2))}, np.ones(2))
    >>> compare(losses, resamples=9, confidence=0.9, generator=np.random.default_rng(0))[one].minus_random
    -1.0
    """
    alone = [cell for cell in held_out.losses if cell.chance not in held_out.losses]
    if alone:
        first = ["/".join(cell) for cell in alone[:3]]
        raise ValueError(f"{len(alone)} of {len(held_out.losses)} cells have no random one beside them, first {first}")
    drawn, base = _draw(held_out, resamples, generator)
    kept = _gain(general, resamples, confidence, generator) if general else {}
    right = _share(correct, resamples, confidence, generator) if correct else {}
    unknown = (None,) * 3
    found = {}
    for cell, runs in held_out.losses.items():
        own, chance = drawn[cell], drawn[cell.chance]
        bounds = percentile_intervals(np.stack([own, own - chance, base - own], axis=1), confidence).tolist()
        mean = float(runs.mean())
        gain = float(held_out.base.mean()) - mean
        beside = mean - float(held_out.losses[cell.chance].mean())
        more = (*kept.get(cell, unknown), *right.get(cell, unknown))
        found[cell] = Standing(mean, *bounds[0], beside, *bounds[1], gain, *bounds[2], *more)
    return found


def _draw(
    measured: Measured, resamples: int, generator: np.random.Generator
) -> tuple[dict[Cell, np.ndarray], np.ndarray]:
    """Return the mean loss of every cell and of the base in every resample."""
    arms = {"/".join(cell): runs[:, :, None] for cell, runs in measured.losses.items()}
    drawn = resample_arms({**arms, "base": measured.base[None, :, None]}, resamples, generator)
    return {cell: drawn["/".join(cell)][:, 0] for cell in measured.losses}, drawn["base"][:, 0]


def _gain(
    general: Measured, resamples: int, confidence: float, generator: np.random.Generator
) -> dict[Cell, tuple[float, float, float]]:
    """Return every cell's gain on general rows and its interval."""
    (drawn, base), found = _draw(general, resamples, generator), {}
    for cell, runs in general.losses.items():
        ((low, high),) = percentile_intervals((base - drawn[cell])[:, None], confidence).tolist()
        found[cell] = float(general.base.mean() - runs.mean()), low, high
    return found


def _share(
    correct: Mapping[Cell, np.ndarray], resamples: int, confidence: float, generator: np.random.Generator
) -> dict[Cell, tuple[float, float, float]]:
    """Return every cell's share of right answers and its interval."""
    arms = {"/".join(cell): runs[:, :, None] for cell, runs in correct.items()}
    drawn, found = resample_arms(arms, resamples, generator), {}
    for cell, runs in correct.items():
        ((low, high),) = percentile_intervals(drawn["/".join(cell)][:, :1], confidence).tolist()
        found[cell] = float(runs.mean()), low, high
    return found
