"""Facility location and its greedy maximisation, on dense and sparse kernels.

Symbols: `s_ij >= 0` similarity of target i and demo j (here utility, scaled); `A` the chosen demos; `c_i` the cover of
target i, `max_{j in A} s_ij`, 0 while A is empty; `g_j` the gain of demo j, `sum_i max(s_ij - c_i, 0)`.

Exactness. Sums run in float64 over similarities rounded to multiples of `q`, a power of two so chosen that no sum over
m targets leaves 53 bits: q <= 4 m max(s) / 2^53. Sums are then exact in any order, so gains can be kept up to date by
subtraction, ties are true ties, and the choice does not depend on the order of the targets. Values above 2^-28 m max(s)
are not changed at all; the objective moves by less than m q / 2, no more than a float64 sum may lose anyway.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import frexp
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int64

from tamis.submodular.budgets import Budget, affordable, fill
from tamis.submodular.kernels import Kernel, KernelError, SparseKernel, scale

THIN = 16  # a dense kernel becomes sparse once at most one entry in so many can still matter
NONE = np.empty(0, np.int64)


class OptimiserError(ValueError):
    """A way of choosing that cannot be followed as asked."""


@dataclass(frozen=True)
class Choice:
    """Chosen demos in the order of choice, and what they cover."""

    order: Int64[np.ndarray, " pick"]  # demos, the first is the first pick
    gain: Float64[np.ndarray, " pick"]  # what each pick added to the objective
    objective: Float64[np.ndarray, " pick"]  # after each pick
    covered_by: Int64[np.ndarray, " target"]  # the chosen demo that covers the target best, the earliest; -1: cover 0
    cover: Float32[np.ndarray, " target"]  # its similarity


def evaluate(kernel: Kernel, chosen: Int64[np.ndarray, " pick"] | None = None) -> float:
    """Return the facility location of chosen demos, or of all.

    f(A) = sum_i max_{j in A} s_ij, 0 where A is empty

    **Source**: methods of DELIFT (arXiv 2411.04425v3), instruction tuning.

    Returns:
        A float64 sum; larger is better.

    >>> evaluate(np.float32([[1, 3], [2, 0]]), np.array([0])), evaluate(np.float32([[1, 3], [2, 0]]))
    (3.0, 5.0)
    """
    if isinstance(kernel, SparseKernel):
        wanted = np.full(kernel.shape[1], chosen is None)
        wanted[NONE if chosen is None else chosen] = True
        best = _best_of_rows(kernel.indptr, kernel.indices, kernel.values, wanted)
    else:
        columns = kernel if chosen is None else kernel[:, chosen]
        best = columns.max(axis=1, initial=0.0)
    return float(best.sum(dtype=np.float64))


def choose(
    kernel: Kernel,
    budget: Budget,
    bonus: Float64[np.ndarray, " demo"] | None = None,
    start: Int64[np.ndarray, " started"] = NONE,
) -> Choice:
    """Choose demos greedily by gain per cost until the budget is spent; ties go to the lowest index.

    next = argmax_j g_j / cost_j over the demos that caps and budget still allow, among topics with an unmet floor first

    Where costs differ, a second run takes the best single affordable demo right after the floors, and the run with the
    larger objective is kept. Once every gain is 0, the lowest indices fill the budget.

    **Source**: Minoux 1978 (lazy queue); Leskovec et al. 2007 (cost-scaled greedy beside the best single element).
    **Differs**: gains are not computed again at the head of the queue. They are kept exact, by one pass over a target's
    row whenever its cover grows; only the keys of the queue are stale, and they are refreshed at its head.

    Args:
        kernel: similarities >= 0.
        budget: resolved for as many rows as the kernel has demos.
        bonus: what each demo adds whatever else is chosen, >= 0 (`objectives`); nothing where absent.
        start: demos that are taken first, in this order, whatever they gain; within the budget.

    Returns:
        The demos, in the order, of plain greedy, which evaluates every demo before every pick.

    Raises:
        KernelError: a similarity or bonus is negative or not finite, or the budget is for another number of demos.

    Cost on m targets and n demos: some passes over the kernel, and in the first picks n for each cover that grows and m
    per pick; then only the entries above their target's cover are left, soon one in thirty and fewer. At m = n = 4,000
    and 30%, about 0.06 CPU s; `benchmarks/selection.py` measures how far that is from the bytes it must read.

    >>> from tamis.submodular.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a", "a", "a"], response_tokens=np.array([1, 1, 1]))
    >>> choose(np.float32([[3, 2, 0], [3, 2, 0], [0, 2, 1]]), two).order
    array([0, 1])
    """
    state = begin(kernel, budget, bonus)
    for demo in start.tolist():
        take(state, demo)
    return spend(state, budget, _best_first, take, _best_single)


@dataclass
class State:
    """A choice in the making: everything but the grid and the bonus changes with the picks."""

    kernel: Kernel  # dense until most of it cannot matter any more
    columns: tuple[np.ndarray, ...]  # of a sparse kernel: where each demo's entries start, their targets, their values
    grid: float  # q
    bonus: Float64[np.ndarray, " demo"]  # on the grid
    cover: Float64[np.ndarray, " target"]  # c
    covered_by: Int64[np.ndarray, " target"]
    gains: Float64[np.ndarray, " demo"]  # g + bonus, kept up to date by `take`
    order: list[int]
    gained: list[float]


Search = Callable[[State, Budget, np.ndarray, np.ndarray], Iterator[int]]  # of quota and rows: `budgets.fill`


def check(kernel: Kernel, budget: Budget, bonus: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Return the bonus, zeros where there is none, and the largest similarity, if kernel, budget and bonus fit."""
    values = kernel.values if isinstance(kernel, SparseKernel) else kernel
    least, largest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if not (least >= 0 and largest < np.inf):
        scale(kernel, "none")  # says which pairs
    bonus = np.zeros(kernel.shape[1]) if bonus is None else bonus
    _refuse_misfit(kernel, budget, bonus)
    return bonus, largest


def begin(kernel: Kernel, budget: Budget, bonus: np.ndarray | None) -> State:
    """Check the kernel and return the state before the first pick."""
    (bonus, largest), sparse = check(kernel, budget, bonus), isinstance(kernel, SparseKernel)
    targets, demos = kernel.shape
    kernel = kernel if sparse else np.ascontiguousarray(kernel)
    grid = _grid(max(largest, float(bonus.max(initial=0.0))), targets + 1)
    bonus = np.rint(bonus / grid) * grid
    gains = bonus + (_sum_sparse(kernel.indices, kernel.values, grid, demos) if sparse else _sum_columns(kernel, grid))
    columns = _columns(kernel.indptr, kernel.indices, kernel.values, demos) if sparse else ()
    cover, covered_by = np.zeros(targets), np.full(targets, -1)
    return State(kernel, columns, grid, bonus, cover, covered_by, gains, [], [])


def spend(
    state: State,
    budget: Budget,
    search: Search,
    take: Callable[[State, int], None],
    best_single: Callable[[State, np.ndarray], int],
) -> Choice:
    """Spend what is left of a budget: floors first, then the rest, beside a rival that takes the best single demo.

    Args:
        state: as `begin` or `take` left it; it is used up.
        search: yields rows, the best first.
        take: adds a demo to the state.
        best_single: returns the demo of the largest gain among some.
    """
    run = partial(_run, budget=budget, search=search, take=take)
    run(state, quota=budget.floors)
    rival, rows = None, affordable(budget, state.order)
    if len(rows) and budget.costs.min() < budget.costs.max():
        rival = _copy(state)
        take(rival, best_single(rival, rows))
    run(state, quota=budget.caps)
    if rival is not None:
        run(rival, quota=budget.caps)
        state = state if sum(state.gained) >= sum(rival.gained) else rival
    order, gain = np.array(state.order, np.int64), np.array(state.gained, np.float64)
    return Choice(order, gain, np.cumsum(gain), state.covered_by, state.cover.astype(np.float32))


def _grid(largest: float, targets: int) -> float:
    """Return q: sums of so many multiples of q, each at most `largest`, are exact in float64."""
    return 2.0 ** (frexp(largest or 1.0)[1] + max((targets - 1).bit_length() - 53, -51))


def _run(state: State, *, budget: Budget, search: Search, take: Callable, quota: np.ndarray) -> None:
    """Choose, best first, until a quota per topic is filled or the budget is spent."""
    order = list(state.order)
    fill(budget, order, quota, partial(search, state, budget, quota), partial(take, state))


def _copy(state: State) -> State:
    names = ("cover", "covered_by", "gains", "order", "gained")
    return replace(state, **{name: getattr(state, name).copy() for name in names})


def _best_single(state: State, rows: np.ndarray) -> int:
    return int(rows[np.argmax(state.gains[rows])])


def _best_first(state: State, budget: Budget, quota: np.ndarray, rows: np.ndarray) -> Iterator[int]:
    """Yield demos by gain per cost at the time of asking, ties by index; `fill` keeps the quota."""
    costs = budget.costs.astype(np.float64)
    scores = state.gains[rows] / costs[rows]
    best = np.lexsort((rows, -scores))
    keys, items = scores[best], rows[best]  # sorted, so a heap
    for size in range(len(rows), 0, -1):
        yield _pop(keys, items, size, state.gains, costs)


def take(state: State, demo: int) -> None:
    """Add a demo: note it and its gain, raise the cover, lower the gains."""
    state.order.append(demo)
    state.gained.append(float(state.gains[demo]))
    running, picks = (state.cover, state.covered_by, state.gains), len(state.gained)
    if isinstance(state.kernel, SparseKernel):
        rows = (state.kernel.indptr, state.kernel.indices, state.kernel.values)
        _take_sparse(rows, state.columns, demo, state.grid, running)
    else:
        _take_dense(state.kernel, demo, state.grid, running)
        if picks >= 16 and picks & (picks - 1) == 0:  # after 16 picks, 32, 64, ...
            _thin(state)


def _thin(state: State) -> None:
    """Go on with the entries above their target's cover, once they are few: the others never matter again."""
    dense = state.kernel
    indptr, indices, values = _keep_above(dense, state.cover, dense.size // THIN)
    if len(indptr):
        state.kernel = SparseKernel(indptr, indices, values, dense.shape)
        state.columns = _columns(indptr, indices, values, dense.shape[1])


def _refuse_misfit(kernel: Kernel, budget: Budget, bonus: np.ndarray) -> None:
    targets, demos = kernel.shape
    if demos != len(budget.costs):
        raise KernelError(f"the kernel has {demos} demos and the budget {len(budget.costs)} rows; resolve it again")
    if bonus.shape != (demos,) or not (bonus.min(initial=0.0) >= 0 and bonus.max(initial=0.0) < np.inf):
        raise KernelError(f"the bonus must be {demos} finite numbers >= 0, one per demo; it is {bonus[:3]}...")
    if isinstance(kernel, SparseKernel) and (
        len(kernel.indptr) != targets + 1 or kernel.indices.max(initial=0) >= demos
    ):
        raise KernelError(f"the entries of the sparse kernel do not fit its shape {kernel.shape}; use kernels.gather")


@numba.njit(cache=True, nogil=True)
@no_type_check
def _pop(keys, items, size, gains, costs):
    """Remove and return the head of a heap of demos whose keys are upper bounds of gain per cost."""
    while True:
        item = items[0]
        key = gains[item] / costs[item]
        if key == keys[0]:
            break
        keys[0] = key
        _sift(keys, items, size)
    keys[0], items[0] = keys[size - 1], items[size - 1]
    _sift(keys, items, size - 1)
    return item


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sift(keys, items, size):
    """Move the head of a heap down to where it belongs: larger keys first, then smaller items."""
    key, item, place = keys[0], items[0], 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        other = child + 1
        if other < size and (keys[other] > keys[child] or (keys[other] == keys[child] and items[other] < items[child])):
            child = other
        if key > keys[child] or (key == keys[child] and item < items[child]):
            break
        keys[place], items[place] = keys[child], items[child]
        place = child
    keys[place], items[place] = key, item


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sum_columns(kernel, grid):
    """Return the gains before the first pick."""
    shift = 1.5 * 2.0**52 * grid  # adding and subtracting it rounds to a multiple of the grid
    gains = np.zeros(kernel.shape[1])
    for i in range(kernel.shape[0]):
        row = kernel[i]
        for j in range(row.shape[0]):
            gains[j] += (np.float64(row[j]) + shift) - shift
    return gains


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sum_sparse(indices, values, grid, demos):
    """The same on a sparse kernel."""
    shift, gains = 1.5 * 2.0**52 * grid, np.zeros(demos)
    for entry in range(len(indices)):
        gains[indices[entry]] += (np.float64(values[entry]) + shift) - shift
    return gains


@numba.njit(cache=True, nogil=True)
@no_type_check
def _best_of_rows(indptr, indices, values, wanted):
    """Return the largest value among the wanted demos of each target."""
    best = np.zeros(len(indptr) - 1, np.float32)
    for i in range(len(best)):
        for entry in range(indptr[i], indptr[i + 1]):
            if wanted[indices[entry]]:
                best[i] = max(best[i], values[entry])
    return best


@numba.njit(cache=True, nogil=True)
@no_type_check
def _take_dense(kernel, demo, grid, running):
    """Raise the cover to what a demo gives, and lower the gains by what they lose: one pass per target it improves."""
    shift, (cover, covered_by, gains) = 1.5 * 2.0**52 * grid, running
    for i in range(kernel.shape[0]):
        new, old = (np.float64(kernel[i, demo]) + shift) - shift, cover[i]
        if new > old:
            row = kernel[i]
            for j in range(row.shape[0]):
                gains[j] -= max(min((np.float64(row[j]) + shift) - shift, new), old) - old
            cover[i], covered_by[i] = new, demo


@numba.njit(cache=True, nogil=True)
@no_type_check
def _take_sparse(rows, columns, demo, grid, running):
    """The same on a sparse kernel."""
    (indptr, indices, values), (starts, targets, similarities) = rows, columns
    shift, (cover, covered_by, gains) = 1.5 * 2.0**52 * grid, running
    for entry in range(starts[demo], starts[demo + 1]):
        i = targets[entry]
        new, old = (np.float64(similarities[entry]) + shift) - shift, cover[i]
        if new > old:
            for other in range(indptr[i], indptr[i + 1]):
                gains[indices[other]] -= max(min((np.float64(values[other]) + shift) - shift, new), old) - old
            cover[i], covered_by[i] = new, demo


@numba.njit(cache=True, nogil=True)
@no_type_check
def _keep_above(kernel, cover, room):
    """Return the entries above their target's cover, as a sparse kernel's arrays; nothing if they exceed `room`."""
    targets, demos = kernel.shape
    indptr = np.zeros(targets + 1, np.int64)
    indices, values, place = np.empty(room + demos, np.int32), np.empty(room + demos, np.float32), 0
    for i in range(targets):
        row, floor = kernel[i], np.float32(cover[i])  # exactly: covers are float32 values on the grid
        for j in range(demos):
            if row[j] > floor:
                indices[place], values[place] = j, row[j]
                place += 1
        indptr[i + 1] = place
        if place > room:
            return indptr[:0], indices[:0], values[:0]
    return indptr, indices[:place], values[:place]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _columns(indptr, indices, values, demos):
    """Return a sparse kernel by columns: where each demo's entries start, their targets, their values."""
    starts = np.zeros(demos + 1, np.int64)
    for j in indices:
        starts[j + 1] += 1
    starts = np.cumsum(starts)
    free, targets, similarities = starts.copy(), np.empty(len(indices), np.int32), np.empty_like(values)
    for i in range(len(indptr) - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            place = free[indices[entry]]
            targets[place], similarities[place] = i, values[entry]
            free[indices[entry]] = place + 1
    return starts, targets, similarities
