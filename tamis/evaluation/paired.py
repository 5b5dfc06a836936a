"""A choice beside chance where both saw the same pools: differences paired by seed and by held-out row.

Symbols: seed = a draw of the pool's rows and of training; row = a held-out example, the same for all seeds; d[s, r] =
the loss of the choice less that of chance, nats per response token, below 0: the choice is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from tamis.evaluation.bootstrap import percentile_intervals, resample_arms
from tamis.evaluation.multiple_testing import bootstrap_p

POWER = 0.8  # with which a difference of `detectable` would have been seen


@dataclass(frozen=True)
class Difference:
    """A mean difference and how well it is known."""

    mean: float
    low: float  # of the bootstrap interval
    high: float
    p: float  # two-sided, of no difference; of this comparison alone
    detectable: float  # the smallest true difference that such data show as one in 4 of 5 cases

    @property
    def half_width(self) -> float:
        """Return half the interval's width."""
        return (self.high - self.low) / 2


def compare_paired(
    differences: Mapping[str, Float[np.ndarray, "seed row"]],
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, Difference]:
    """Return the mean of each difference, its interval over seeds and rows, and what could have been seen.

    mean = (1 / SR) sum_s sum_r d[s, r]. Every resample draws rows, the same for all comparisons, and then seeds of
    each; a seed brings its pool, its choice and its chance along, so what all share in it does not widen the interval.
    detectable = (z_{(1 + c) / 2} + z_power) x the standard deviation of the resampled means.

    **Source**: rows and seeds are drawn independently, as in Owen 2007, "The pigeonhole bootstrap"; the smallest
    effect as in Bloom 1995, "Minimum detectable effects", Evaluation Review 19. Differs: its standard error is the
    bootstrap's.

    Args:
        differences: by name; all of the same rows.
        resamples: bootstrap resamples.
        confidence: c, of the intervals, in (0, 1).
        generator: draws the rows of all resamples, then the seeds of one comparison after the other.

    >>> drawn = {"resamples": 9, "confidence": 0.9, "generator": np.random.default_rng(0)}
    >>> found = compare_paired({"a": np.full((2, 3), -1.0)}, **drawn)
    >>> found["a"].mean, found["a"].low, found["a"].high, found["a"].p, found["a"].detectable
    (-1.0, -1.0, -1.0, 0.2, 0.0)
    """
    if not differences:
        return {}
    arms = {name: each[:, :, None] for name, each in differences.items()}
    drawn = resample_arms(arms, resamples, generator)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(POWER)
    found = {}
    for name, each in differences.items():
        means = drawn[name][:, 0]
        ((low, high),) = percentile_intervals(means[:, None], confidence).tolist()
        found[name] = Difference(float(each.mean()), low, high, bootstrap_p(means), reach * float(means.std()))
    return found


def mean_jaccard(choices: Sequence[set[str]]) -> float | None:
    """Return how alike choices are: the mean over all pairs of |A and B| / |A or B|, in [0, 1]; None for one choice.

    >>> mean_jaccard([{"a", "b"}, {"b", "c"}])
    0.333...
    """
    shares = [len(one & other) / len(one | other) for one, other in combinations(choices, 2) if one | other]
    return float(np.mean(shares)) if shares else None
