"""What a demo is worth: the diagonal of a kernel, which measures copying, and how much a demo helps other rows.

Symbols: `U_ij` utility of demo j for target i, any sign; `s_ij >= 0` similarity, the utility scaled; `U_ii`, a row that
is shown before itself, is a pair like any other and says how well the row is copied. `q_j` is the quality of demo j,
`n_j` the number of scored pairs that tell it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from tamis.submodular.kernels import Kernel, Other, SparseKernel, list_targets
from tamis.submodular.objectives import best_per_target


def find_ceiling(kernel: Kernel, demos: Int64[np.ndarray, " demo"]) -> Float32[np.ndarray, " target"]:
    """Return for each target the largest similarity of a demo that is not the target itself, 0 where there is none.

    Args:
        kernel: similarities >= 0.
        demos: the place of each demo among the targets; -1 where it is none of them.

    >>> find_ceiling(np.float32([[9, 2], [1, 0]]), np.array([0, 1])).tolist()
    [2.0, 1.0]
    """
    return best_per_target(cap_diagonal(kernel, demos, np.zeros(kernel.shape[0], np.float32)))


def cap_diagonal(kernel: Other, demos: Int64[np.ndarray, " demo"], ceiling: Float32[np.ndarray, " target"]) -> Other:
    """Return a kernel in which a row covers itself by no more than a ceiling: s_ii = min(s_ii, ceiling_i).

    With `find_ceiling`, a row that covers itself counts for no more than what may stand for it. Where the diagonal
    counts in full, the largest entries of a utility are those of rows that are copied well, and greedy sorts by them:
    it collects rows that no other row resembles. Under a ceiling of 0 such a row is never taken, but both copies of a
    near-duplicate are, as each is covered by the other alone.

    **Source**: ours; DELIFT (arXiv 2411.04425v3) takes the diagonal as it is scored.

    Args:
        kernel: similarities >= 0.
        demos: as `find_ceiling`.
        ceiling: of the targets.

    >>> cap_diagonal(np.float32([[9, 2], [1, 0]]), np.array([0, 1]), np.float32([2, 1])).tolist()
    [[2.0, 2.0], [1.0, 0.0]]
    """
    if isinstance(kernel, SparseKernel):
        values, targets, _, own = _list_entries(kernel, demos)
        return replace(kernel, values=np.where(own, np.minimum(values, ceiling[targets]), values))
    columns = np.flatnonzero(demos >= 0)
    targets, capped = demos[columns], kernel.copy()
    capped[targets, columns] = np.minimum(kernel[targets, columns], ceiling[targets])
    return capped


def measure_help(
    utility: Other, demos: Int64[np.ndarray, " demo"], prior: float | int = 0
) -> Float64[np.ndarray, " demo"]:
    """Return how much each demo helps the rows that it was shown to, itself not among them.

    q_j = (sum over i != j of the scored U_ij + prior * median of all means) / (n_j + prior)

    Without a prior it is the mean. A mean of one or two pairs is mostly chance, and a greedy choice takes those rows
    whose chance was good; with a prior, what few pairs say is drawn towards what is usual.

    **Source**: ours. Rows with a wrong response help nobody. The prior is that of an empirical Bayes mean.

    Args:
        utility: U, of which any pairs are scored.
        demos: as `find_ceiling`.
        prior: pairs that the median counts for, >= 0.

    Returns:
        NaN for a demo without such a pair.

    >>> measure_help(np.float32([[9, 2], [1, 8], [3, 4]]), np.array([0, 1])).tolist()
    [2.0, 3.0]
    >>> measure_help(np.float32([[9, 2], [1, 8], [3, 4]]), np.array([0, 1]), prior=2).tolist()
    [2.25, 2.75]
    """
    values, _, columns, own = _list_entries(utility, demos)
    return _average(values[~own], columns[~own], utility.shape[1], prior)


def measure_nearby_help(
    utility: Kernel, demos: Int64[np.ndarray, " demo"], prior: float | int = 0
) -> Float64[np.ndarray, " demo"]:
    """Return how much each demo and the rows nearest to it help each other.

    q_j = mean over the demos i that were shown to row j, itself not among them, of the scored U_ij and U_ji

    Those demos are the rows nearest to j where pairs are scored by kernel `neighbours`.

    **Source**: ours, as `measure_help`.

    Args:
        utility: U, of which any pairs are scored.
        demos: as `find_ceiling`; each is a target.
        prior: as of `measure_help`.

    Returns:
        NaN for a demo without such a pair.

    >>> measure_nearby_help(np.float32([[9, 2], [4, 8]]), np.array([0, 1])).tolist()
    [3.0, 3.0]
    """
    values, targets, helped, own = _list_entries(utility, demos)  # helped: the demo that is shown to a target
    column_of = np.full(utility.shape[0], -1)
    column_of[demos] = np.arange(len(demos))
    helping = column_of[targets]  # the demo that a target is
    kept = ~own & (helping >= 0)
    values, helping, helped = values[kept], helping[kept], helped[kept]
    shown = np.unique(helping * len(demos) + helped)  # (j, i) where demo i was shown to row j
    back = np.isin(helped * len(demos) + helping, shown)  # U_ij of which U_ji is scored, too
    both = np.concatenate([values, values[back]])
    return _average(both, np.concatenate([helping, helped[back]]), len(demos), prior)


def fill_by_topic(
    quality: Float64[np.ndarray, " demo"], topics: Sequence[str] = ()
) -> tuple[Float64[np.ndarray, " demo"], Bool[np.ndarray, " demo"]]:
    """Return the quality with the median of its topic where there is none, and where that was.

    A topic without any has the median of all, as have all where no topics are given; 0 where no demo has a quality.

    >>> fill_by_topic(np.array([1.0, 3.0, np.nan]), ["a", "a", "a"])[0].tolist()
    [1.0, 3.0, 2.0]
    """
    there, topic = ~np.isnan(quality), np.asarray(topics or [""] * len(quality))
    overall = float(np.median(quality[there])) if there.any() else 0.0
    filled = quality.copy()
    for name in np.unique(topic[~there]):
        known = quality[there & (topic == name)]
        filled[~there & (topic == name)] = np.median(known) if len(known) else overall
    return filled, ~there


def weigh_demos(kernel: Other, quality: Float64[np.ndarray, " demo"]) -> Other:
    """Return similarities in which a demo counts by its quality: s'_ij = s_ij * max(q_j, 0).

    >>> weigh_demos(np.float32([[1, 3], [2, 4]]), np.array([2.0, -1.0])).tolist()
    [[2.0, 0.0], [4.0, 0.0]]
    """
    worth = np.maximum(quality, 0).astype(np.float32)
    if not isinstance(kernel, SparseKernel):
        return kernel * worth
    return replace(kernel, values=kernel.values * worth[kernel.indices])


def _list_entries(kernel: Other, demos: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return value, target and demo of every entry, and whether the target is the demo itself."""
    if isinstance(kernel, SparseKernel):
        values, targets, columns = kernel.values, list_targets(kernel), kernel.indices.astype(np.int64)
    else:
        values, (targets, columns) = kernel.ravel(), np.indices(kernel.shape).reshape(2, -1)
    return values, targets, columns, demos[columns] == targets


def _average(values: np.ndarray, groups: np.ndarray, count: int, prior: float | int) -> np.ndarray:
    """Return the mean of each group's values, drawn to the median of all means; NaN for a group without a value."""
    sums, sizes = np.bincount(groups, values, count), np.bincount(groups, minlength=count)
    there = sizes > 0
    means = np.divide(sums, sizes, out=np.full(count, np.nan), where=there)
    if prior and there.any():
        means[there] = (sums[there] + prior * np.median(means[there])) / (sizes[there] + prior)
    return means
