"""Gates: rows that look wrong leave before anything is chosen, whatever it is chosen by.

A gate is no selector: it takes rows out by a score in which wrong rows stand at one end, and says nothing of the
others. Symbols: `x_i` what row i asks, `y_i` its response.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Float64

GATES = ("ifd", "help", "agreement")
HIGHEST_LEAVE = {"ifd"}  # of these, those whose highest scores are the worst
FEW = 4  # rows that all others count for in what is usual in a group
UPPER = 0.75  # quantile of the better rows, by which a group is known
DEVIATION = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation


def measure_agreement(
    asked: Float[np.ndarray, "row width"], said: Float[np.ndarray, "row width"]
) -> Float64[np.ndarray, " row"]:
    """Return how alike what a row asks and its response are: the cosine of their embeddings.

    a_i = <e(x_i), e(y_i)>

    **Source**: ours. A response of another row is about something else.

    Args:
        asked: unit vectors of what stands before the response.
        said: unit vectors of the responses, row by row.

    Returns:
        In [-1, 1]; the lowest look wrong.

    >>> measure_agreement(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return np.einsum("rw,rw->r", asked.astype(np.float64), said.astype(np.float64)).clip(-1, 1)


def level(worth: Float[np.ndarray, " row"], groups: Sequence[str]) -> Float64[np.ndarray, " row"]:
    """Return by how much each row's worth differs from what is usual in its group.

    An answer of one number is less like its question than a sentence is, in every row of such a task: held against all
    rows, the whole task would look wrong.

    **Source**: ours.

    Args:
        worth: of every row, the larger the better; NaN: not known, and so is what is returned.
        groups: of every row, such as its topic.

    >>> level(np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0]), list("aaaabbbb")).tolist()
    [-2.0, -2.0, -2.0, -2.0, 0.0, 0.0, 0.0, 0.0]
    """
    return worth.astype(np.float64) - _find_usual(worth, groups)


def find_usual(scores: Float[np.ndarray, " row"], groups: Sequence[str], by: str) -> Float64[np.ndarray, " row"]:
    """Return the score that is usual among the better rows of each row's group.

    u_i = (n_g q_g + FEW q) / (n_g + FEW)

    with the upper quartile q_g of the n_g rows of its group g whose score is known, and q of all rows; where the
    highest scores are the worst, with the lower quartiles. Wrong rows move the median of their group, half of them as
    far as they lie themselves, and hardly this quartile. Of a group of few rows that says little, so that q counts for
    some rows in it.

    **Source**: ours.

    Args:
        scores: of every row; NaN: not known.
        groups: of every row, such as its topic.
        by: one of `GATES`.

    Returns:
        In the unit of the scores; 0 where none is known.

    >>> find_usual(np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0]), list("aaaabbbb"), "agreement").tolist()
    [3.0, 3.0, 3.0, 3.0, 5.0, 5.0, 5.0, 5.0]
    """
    sign = -1 if by in HIGHEST_LEAVE else 1
    return sign * _find_usual(sign * scores, groups)


def _find_usual(worth: Float[np.ndarray, " row"], groups: Sequence[str]) -> Float64[np.ndarray, " row"]:
    known, usual = ~np.isnan(worth), np.zeros(len(worth))
    names, own = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    overall = np.quantile(worth[known], UPPER) if known.any() else 0.0
    for group in range(len(names)):
        there = worth[known & (own == group)]
        total = len(there) * np.quantile(there, UPPER) if len(there) else 0.0
        usual[own == group] = (total + FEW * overall) / (len(there) + FEW)
    return usual


def find_gated(
    scores: Float[np.ndarray, " row"], groups: Sequence[str], by: str, drop: float, beyond: float | int | None = None
) -> Bool[np.ndarray, " row"]:
    """Return which rows leave: the share `drop` of all rows whose scores are the worst, or what of it stands out.

    Scores are held against what is usual in a row's group (`level`). floor(drop * rows) rows leave, of equal ones the
    later rows first. With `beyond`, only those of them that are worse than the median by more than so many standard
    deviations, as the median absolute deviation estimates one: of a pool in which nothing is wrong few leave. A row
    without a score (NaN) stays: nothing is known against it.

    **Source**: ours; the rule of outliers is that of Iglewicz and Hoaglin 1993, "How to detect and handle outliers",
    on one side.

    Args:
        scores: of every row.
        groups: of every row, such as its topic.
        by: one of `GATES`; of `ifd` the highest scores are the worst, of the others the lowest.
        drop: in [0, 1).
        beyond: standard deviations; None: the share leaves whatever its scores. Where half of the scores are equal,
            none stands out.

    Raises:
        ValueError: an unknown gate.

    >>> find_gated(np.array([0.9, 0.2, 0.5, 0.2]), "aaaa", "agreement", 0.5).tolist()
    [False, True, False, True]
    >>> find_gated(np.array([0.9, np.nan, 1.5, 0.2]), "aaaa", "ifd", 0.25).tolist()
    [False, False, True, False]
    >>> find_gated(np.array([0.9, 0.8, 0.7, 0.1]), "aaaa", "agreement", 0.5, beyond=2).tolist()
    [False, False, False, True]
    """
    if by not in GATES:
        raise ValueError(f"there is no gate {by!r}; known: {', '.join(GATES)}")
    known = np.flatnonzero(~np.isnan(scores))
    worth = level(-scores if by in HIGHEST_LEAVE else scores, groups)[known]
    worst_first = np.lexsort((-known, worth))[: int(Fraction(str(drop)) * len(scores))]
    if beyond is not None and len(known):
        below = np.median(worth) - worth[worst_first]
        deviation = DEVIATION * np.median(np.abs(worth - np.median(worth)))
        worst_first = worst_first[(below > beyond * deviation) & (deviation > 0)]
    gated = np.zeros(len(scores), bool)
    gated[known[worst_first]] = True
    return gated
