"""Kernels: what is known about pairs of a target and a demo, dense or sparse, and how a utility becomes a similarity.

Symbols: `U_ij` utility of demo j for target i, any sign; `s_ij >= 0` similarity. Rows are targets, columns demos.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Int32, Int64

SCALINGS = ("relu", "minmax", "none")


class KernelError(ValueError):
    """A kernel that facility location is not defined on."""


@dataclass(frozen=True)
class SparseKernel:
    """A kernel of which only some pairs are known, row by row of its targets; an absent pair has similarity 0."""

    indptr: Int64[np.ndarray, " boundary"]  # target i's entries are indptr[i]:indptr[i + 1]
    indices: Int32[np.ndarray, " entry"]  # the demo of each entry
    values: Float32[np.ndarray, " entry"]  # the similarity, or the utility, of each entry
    shape: tuple[int, int]  # targets, demos


Kernel = Float32[np.ndarray, "target demo"] | SparseKernel
Other = Float32[np.ndarray, "_ _"] | SparseKernel  # a second kernel in one signature: of other targets or demos


def gather(
    targets: Int64[np.ndarray, " entry"],
    demos: Int64[np.ndarray, " entry"],
    values: Float32[np.ndarray, " entry"],
    shape: tuple[int, int],
) -> Kernel:
    """Return the kernel of scored pairs: dense where every pair is there, else sparse.

    Args:
        targets, demos: the pair of each value, in any order.
        values: utilities or similarities.
        shape: how many targets and demos there are.

    Raises:
        KernelError: a pair comes twice.

    >>> gather(np.array([1, 0]), np.array([0, 1]), np.float32([3, 4]), (2, 2)).indices
    array([1, 0], dtype=int32)
    """
    place = targets * shape[1] + demos
    order = np.argsort(place, kind="stable")
    place, values = place[order], values[order]
    twice = np.flatnonzero(place[1:] == place[:-1])
    if len(twice):
        first = [divmod(int(pair), shape[1]) for pair in place[twice[:3]]]
        raise KernelError(
            f"{len(twice)} of {len(place)} pairs come twice, first pairs (target, demo) {first}; keep one"
        )
    if len(place) == shape[0] * shape[1]:
        return values.reshape(shape)
    indptr = np.searchsorted(place, np.arange(shape[0] + 1) * shape[1]).astype(np.int64)
    return SparseKernel(indptr, (place % shape[1]).astype(np.int32), values, shape)


def take(
    kernel: Other, targets: Int64[np.ndarray, " some_target"] | None, demos: Int64[np.ndarray, " some_demo"] | None
) -> Other:
    """Return the kernel of some targets and some demos, each numbered anew in the order given; None: all of them.

    Args:
        targets, demos: positions, each once.

    Cost: one pass over the entries of these targets, and the memory of what is returned.

    >>> take(np.float32([[1, 2, 3], [4, 5, 6]]), None, np.array([2, 0])).tolist()
    [[3.0, 1.0], [6.0, 4.0]]
    """
    if not isinstance(kernel, SparseKernel):
        some = kernel if targets is None else kernel[targets]
        return some if demos is None else np.take(some, demos, axis=1)
    rows, columns = (np.arange(kernel.shape[axis]) if one is None else one for axis, one in enumerate((targets, demos)))
    place = np.full(kernel.shape[1], -1, np.int32)
    place[columns] = np.arange(len(columns))
    entries = _take_sparse(kernel.indptr, kernel.indices, kernel.values, rows, place)
    return SparseKernel(*entries, (len(rows), len(columns)))


def repeat(
    kernel: Other, targets: Int64[np.ndarray, " copied_target"] | None, demos: Int64[np.ndarray, " copied_demo"] | None
) -> Other:
    """Return the kernel in which targets and demos stand in the order given, and as often; None: as they are.

    Args:
        targets, demos: positions; one that is not given is left out.

    >>> repeat(np.float32([[1, 2], [3, 4]]), np.array([1, 0, 1]), np.array([0, 0])).tolist()
    [[3.0, 3.0], [1.0, 1.0], [3.0, 3.0]]
    """
    found = take(kernel, targets, None)
    if demos is None or not isinstance(found, SparseKernel):
        return found if demos is None else take(found, None, demos)
    order, counts = np.argsort(demos, kind="stable"), np.bincount(demos, minlength=kernel.shape[1])
    each = counts[found.indices]  # copies of every entry
    ends = np.cumsum(each)
    number = np.arange(each.sum()) - np.repeat(ends - each, each)  # of the copy, among those of its entry
    columns = order[np.repeat((np.cumsum(counts) - counts)[found.indices], each) + number]
    sorted_ = np.lexsort((columns, np.repeat(list_targets(found), each)))
    indptr = np.concatenate([np.zeros(1, np.int64), ends])[found.indptr]
    values = np.repeat(found.values, each)[sorted_]
    return SparseKernel(indptr, columns[sorted_].astype(np.int32), values, (found.shape[0], len(demos)))


def list_targets(kernel: SparseKernel) -> Int64[np.ndarray, " entry"]:
    """Return the target of each entry of a sparse kernel."""
    return np.repeat(np.arange(kernel.shape[0]), np.diff(kernel.indptr))


def scale(utility: Kernel, scaling: str, names: tuple[Sequence[str], Sequence[str]] | None = None) -> Kernel:
    """Return the similarities that a utility stands for.

    relu: `s = max(U, 0)`; minmax: `s = (U - min U) / (max U - min U)`; none: `s = U`.

    **Source**: relu DELIFT (arXiv 2411.04425v3), minmax its published code.
    **Differs**: in a sparse kernel minimum and maximum run over the pairs that are there, and an absent pair stays 0.

    Args:
        utility: U, any sign.
        scaling: relu, minmax or none.
        names: what errors call the targets and the demos; their positions where absent.

    Returns:
        A kernel of the same kind, every value >= 0, larger is more similar.

    Raises:
        KernelError: a value is not finite; none and a value is negative; minmax and all values are equal.

    >>> scale(np.float32([[0.5, -1.0]]), "relu").tolist(), scale(np.float32([[0.5, -1.0]]), "minmax").tolist()
    ([[0.5, 0.0]], [[1.0, 0.0]])
    """
    (similarity,) = scale_together([utility], scaling, [names])
    return similarity


def scale_together(utilities: Sequence[Other], scaling: str, names: Sequence[tuple | None]) -> list[Other]:
    """Return the similarities of kernels that meet in one objective, on one scale.

    As `scale`, but minmax takes minimum and maximum over all of the kernels: scaled one by one, the best pair of a
    weak kernel would count as much as that of a strong one.

    Args:
        utilities: kernels of any shapes.
        names: for each kernel, what errors call its targets and demos, or None.

    >>> [s.tolist() for s in scale_together([np.float32([[0.0, 4.0]]), np.float32([[1.0]])], "minmax", [None, None])]
    [[[0.0, 1.0]], [[0.25]]]
    """
    if scaling not in SCALINGS:
        raise KernelError(f"selection.scaling is {scaling!r}; it must be one of {', '.join(SCALINGS)}")
    several = [utility.values if isinstance(utility, SparseKernel) else utility for utility in utilities]
    for values, utility, called in zip(several, utilities, names, strict=True):
        again = "score these pairs again or leave them out"
        _refuse(~np.isfinite(values), utility, called, "utilities are not finite", again)
        if scaling == "none":
            _refuse(values < 0, utility, called, "similarities are negative", "set selection.scaling to relu or minmax")
    if scaling == "relu":
        several = [np.maximum(values, np.float32(0)) for values in several]
    elif scaling == "minmax":
        several = _stretch(several)
    return [
        replace(utility, values=values) if isinstance(utility, SparseKernel) else values
        for utility, values in zip(utilities, several, strict=True)
    ]


def _refuse(bad: np.ndarray, kernel: Kernel, names: tuple | None, what: str, way_out: str) -> None:
    """Refuse a kernel with bad entries, naming the first pairs."""
    places = np.argwhere(bad) if bad.any() else ()
    if not len(places):
        return
    first = places[:3]
    if isinstance(kernel, SparseKernel):
        entry = first[:, 0]
        first = np.stack([np.searchsorted(kernel.indptr, entry, side="right") - 1, kernel.indices[entry]], axis=1)
    pairs = [(int(i), int(j)) if names is None else (names[0][i], names[1][j]) for i, j in first]
    raise KernelError(f"{len(places)} of {bad.size} {what}, first pairs (target, demo) {pairs}; {way_out}")


def _stretch(several: Sequence[np.ndarray]) -> list[np.ndarray]:
    low = min(float(values.min(initial=np.inf)) for values in several)
    high = max(float(values.max(initial=-np.inf)) for values in several)
    if not low < high:
        count = sum(values.size for values in several)
        raise KernelError(
            f"all {count} utilities are {low if count else 'absent'}, a constant kernel that minmax "
            "cannot scale; set selection.scaling to relu"
        )
    return [((values - low) / (high - low)).astype(np.float32) for values in several]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _take_sparse(indptr, indices, values, rows, place):
    """Return the entries of some rows whose demo has a place, as a sparse kernel's arrays."""
    taken = np.zeros(len(rows) + 1, np.int64)
    for row in range(len(rows)):
        taken[row + 1] = taken[row]
        for entry in range(indptr[rows[row]], indptr[rows[row] + 1]):
            taken[row + 1] += place[indices[entry]] >= 0
    demos, similarities, free = np.empty(taken[-1], np.int32), np.empty(taken[-1], np.float32), 0
    for row in rows:
        for entry in range(indptr[row], indptr[row + 1]):
            if place[indices[entry]] >= 0:
                demos[free], similarities[free] = place[indices[entry]], values[entry]
                free += 1
    return taken, demos, similarities
