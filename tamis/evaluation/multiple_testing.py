"""Many comparisons at once: p-values that stay honest when the best of them is looked at.

Symbols: p_i, the p-value of comparison i of m; a family is all comparisons that are looked at together.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def bootstrap_p(means: Float[np.ndarray, " resample"]) -> float:
    """Return the two-sided p-value of a mean that might be 0, by its bootstrap resamples.

    p = min(1, 2 (1 + min(#{m_r <= 0}, #{m_r >= 0})) / (1 + R))

    The 1 is the sample itself, so p is never 0: the least that R resamples can say is 2 / (1 + R). It agrees with the
    percentile interval: where that excludes 0 at 95%, p is below 0.05, up to the steps of R.

    **Source**: Davison and Hinkley 1997, "Bootstrap methods and their application", section 4.4 (bootstrap tests) and
    equation 4.11 (the 1 in both counts).

    Args:
        means: of a difference, in every resample.

    >>> bootstrap_p(np.array([1.0, 2.0, 3.0])), bootstrap_p(np.array([-1.0, 1.0]))
    (0.5, 1.0)
    """
    least = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (1 + least) / (1 + len(means)))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for looking at all of them; at most alpha: it stands at family level alpha.

    With p sorted, p'_(i) = max_{k <= i} min(1, (m - k + 1) p_(k)). Whatever the dependence among the comparisons, the
    chance of calling any difference that is none is at most alpha.

    **Source**: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6.

    Raises:
        ValueError: a value that is no probability.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        odd = [one for one in p if not 0 <= one <= 1]
        raise ValueError(f"{len(odd)} of {len(p)} p-values are not in [0, 1], first {odd[:3]}")
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()
