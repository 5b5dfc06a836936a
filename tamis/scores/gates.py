"""Gates: rows that look wrong leave before anything is chosen, whatever it is chosen by.

A gate is no selector: it takes a fixed share of the rows out by a score in which wrong rows stand at one end, and says
nothing of the others. Symbols: `x_i` what row i asks, `y_i` its response.
"""

from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Float64

GATES = ("ifd", "help", "agreement")
HIGHEST_LEAVE = {"ifd"}  # of these, those whose highest scores are the worst


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


def find_gated(scores: Float[np.ndarray, " row"], by: str, drop: float) -> Bool[np.ndarray, " row"]:
    """Return which rows leave: the share `drop` of all rows whose scores are the worst.

    floor(drop * rows) rows leave, of equal scores the later ones first. A row without a score (NaN) stays: nothing is
    known against it.

    Args:
        scores: of every row.
        by: one of `GATES`; of `ifd` the highest scores are the worst, of the others the lowest.
        drop: in [0, 1).

    Raises:
        ValueError: an unknown gate.

    >>> find_gated(np.array([0.9, 0.2, 0.5, 0.2]), "agreement", 0.5).tolist()
    [False, True, False, True]
    >>> find_gated(np.array([0.9, np.nan, 1.5, 0.2]), "ifd", 0.25).tolist()
    [False, False, True, False]
    """
    if by not in GATES:
        raise ValueError(f"there is no gate {by!r}; known: {', '.join(GATES)}")
    known = np.flatnonzero(~np.isnan(scores))
    worth = -scores[known] if by in HIGHEST_LEAVE else scores[known]
    worst_first = known[np.lexsort((-known, worth))]
    gated = np.zeros(len(scores), bool)
    gated[worst_first[: int(Fraction(str(drop)) * len(scores))]] = True
    return gated
