"""Stochastic greedy: each pick is the best of a random sample, and only the sample is looked at.

Symbols as in `selection`: `c_i` the cover of target i, `g_j` the gain of demo j.
"""

from collections.abc import Iterator
from functools import partial
from math import ceil, log
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float64, Int64

from tamis.submodular.budgets import Budget, count_by_topic
from tamis.submodular.greedy import Choice, OptimiserError, State, begin, spend, take
from tamis.submodular.kernels import Kernel, SparseKernel

NO_COLUMNS = np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)


def choose_stochastic(
    kernel: Kernel, budget: Budget, bonus: Float64[np.ndarray, " demo"] | None = None, *, epsilon: float, seed: int
) -> Choice:
    """Choose demos until the budget is spent, each the best by gain per cost of a random sample of those still allowed.

    sample size = ceil(n/k * log(1/epsilon))

    n demos may still be taken and k is the fewest picks that can spend what is left (`size_sample`), both counted anew
    once the floors are met. A demo that caps or budget no longer allow is in no sample.

    **Source**: Mirzasoleiman et al. 2015, arXiv 1409.7938, algorithm 1: under `count` and `fraction`, without caps and
    floors, at least (1 - 1/e - epsilon) of the best in expectation.
    **Differs**: caps, floors and costs, for which no such bound is published; where costs differ, a second run starts
    with the best single demo of all, as in `selection.choose`. In a sample only those demos are evaluated whose last
    known gain, an upper bound, is above the best so far.

    Args:
        kernel: similarities >= 0.
        budget: resolved for as many rows as the kernel has demos.
        bonus: what each demo adds whatever else is chosen, >= 0; nothing where absent.
        epsilon: in (0, 1); smaller samples more. A sample that holds all gives the choice of `selection.choose`.
        seed: of the samples.

    Raises:
        OptimiserError: epsilon is not in (0, 1).
        KernelError: as `selection.choose`.

    Cost: on a sparse kernel one pass over it, and per pick the sample's bounds and the columns of the few demos that
    are evaluated, where `choose` walks a row for each cover that grows. On a dense kernel gains are kept as in
    `choose`, at the same price, until it turns sparse: up to there sampling saves only the search. Since `choose` keeps
    its gains up to date so cheaply, little is saved either way; `benchmarks/selection.py --curve` measures it.

    >>> from tamis.submodular.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a", "a", "a"], response_tokens=np.array([1, 1, 1]))
    >>> choose_stochastic(np.float32([[3, 2, 0], [3, 2, 0], [0, 2, 1]]), two, epsilon=0.01, seed=0).order
    array([0, 1])
    """
    if not 0 < epsilon < 1:
        raise OptimiserError(f"selection.epsilon is {epsilon}; it must be above 0 and below 1, for example 0.01")
    search = partial(_best_of_samples, epsilon=epsilon, generator=np.random.default_rng(seed))
    return spend(begin(kernel, budget, bonus), budget, search, _take, _best_single)


def size_sample(
    budget: Budget,
    order: list[int],
    quota: Int64[np.ndarray, " topic"],
    rows: Int64[np.ndarray, " candidate"],
    epsilon: float,
) -> int:
    """Return ceil(n/k * log(1/epsilon)), at most n: n candidates, k the fewest picks after which none fits any more.

    k = as many of the dearest candidates as fit together, or as many as the topics have room for, whichever is less:
    any fewer leave room for one more. Under `count` and `fraction` that is the number of picks still to come.

    Args:
        budget: what may be spent.
        order: the rows taken so far.
        quota: how many rows of each topic may be taken in all.
        rows: those that may still be taken.
        epsilon: how likely a sample may miss all that the best choice would still take.

    >>> from tamis.submodular.budgets import resolve
    >>> ten = resolve({"count": 10}, topics=["a"] * 100, response_tokens=np.ones(100, np.int64))
    >>> size_sample(ten, [], ten.caps, np.arange(100), 0.01)
    47
    """
    costs, sizes = budget.costs[rows], np.bincount(budget.topic_of[rows], minlength=len(quota))
    dearest_first = np.cumsum(np.sort(costs)[::-1])
    fit = int(np.searchsorted(dearest_first, _left(budget, order), side="right"))
    room = int(np.clip(quota - count_by_topic(budget, order), 0, sizes).sum())
    return min(len(rows), ceil(len(rows) / max(1, min(fit, room)) * log(1 / epsilon)))


def _best_of_samples(
    state: State, budget: Budget, quota: np.ndarray, rows: np.ndarray, *, epsilon: float, generator: np.random.Generator
) -> Iterator[int]:
    """Yield the best of a sample of what may still be taken, again and again."""
    costs, topic_of = budget.costs, budget.topic_of
    left, room = _left(budget, state.order), quota - count_by_topic(budget, state.order)
    pool = rows[(costs[rows] <= left) & (room[topic_of[rows]] > 0)]
    size = size_sample(budget, state.order, quota, pool, epsilon)
    dearest = costs[pool].max(initial=0)
    while len(pool):
        taken = len(state.order)
        demo, pool = _draw(state, pool, size, costs, generator)
        yield demo
        if len(state.order) == taken:  # passed over
            continue
        left, room[topic_of[demo]] = left - costs[demo], room[topic_of[demo]] - 1
        if left < dearest or not room[topic_of[demo]]:
            pool = pool[(costs[pool] <= left) & (room[topic_of[pool]] > 0)]
            dearest = costs[pool].max(initial=0)


def _draw(
    state: State, pool: np.ndarray, size: int, costs: np.ndarray, generator: np.random.Generator
) -> tuple[int, np.ndarray]:
    """Return the best of a sample of the pool, and the pool without it."""
    if size < len(pool):
        _bring_forward(pool, generator.random(size))
    place = _place_of_best(state, pool[:size], costs)
    demo, pool[place] = int(pool[place]), pool[-1]
    return demo, pool[:-1]


def _place_of_best(state: State, rows: np.ndarray, costs: np.ndarray) -> int:
    """Return where the row of the largest gain per cost stands, ties by index; its gain is then up to date."""
    columns = state.columns or NO_COLUMNS
    return _find_best(rows, costs, columns, state.grid, (state.cover, state.gains, state.bonus))


def _best_single(state: State, rows: np.ndarray) -> int:
    return int(rows[_place_of_best(state, rows, np.ones(len(state.gains), np.int64))])


def _take(state: State, demo: int) -> None:
    """Add a demo: note it and its gain and raise the cover; on a sparse kernel the gains of others become bounds."""
    if not isinstance(state.kernel, SparseKernel):
        take(state, demo)
        return
    gain = _raise_cover(state.columns, demo, state.grid, (state.cover, state.covered_by))
    state.order.append(demo)
    state.gained.append(float(state.bonus[demo] + gain))


def _left(budget: Budget, order: list[int]) -> int:
    """Return what of the budget is not yet spent."""
    return budget.limit - int(budget.costs[np.array(order, np.int64)].sum())


@numba.njit(cache=True, nogil=True)
@no_type_check
def _bring_forward(pool, uniforms):
    """Move a random sample of the pool, without repetition, to its front: as many as there are random numbers."""
    for place in range(len(uniforms)):
        other = place + int(uniforms[place] * (len(pool) - place))
        pool[place], pool[other] = pool[other], pool[place]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _find_best(rows, costs, columns, grid, running):
    """Return the place of the best row; gains are bounds, and refreshed where they are above the best so far."""
    gains, best, key = running[1], 0, -1.0
    for place in range(len(rows)):
        if gains[rows[place]] / costs[rows[place]] > key:
            best, key = place, gains[rows[place]] / costs[rows[place]]
    _refresh(rows[best], columns, grid, running)
    key = gains[rows[best]] / costs[rows[best]]
    for place in range(len(rows)):
        row, bound = rows[place], gains[rows[place]] / costs[rows[place]]
        if bound > key or (bound == key and row < rows[best]):
            _refresh(row, columns, grid, running)
            now = gains[row] / costs[row]
            if now > key or (now == key and row < rows[best]):
                best, key = place, now
    return best


@numba.njit(cache=True, nogil=True)
@no_type_check
def _refresh(demo, columns, grid, running):
    """Compute a demo's gain from its column; without columns gains are up to date."""
    (starts, targets, similarities), (cover, gains, bonus) = columns, running
    if len(starts):
        shift, gain = 1.5 * 2.0**52 * grid, bonus[demo]
        for entry in range(starts[demo], starts[demo + 1]):
            gain += max((np.float64(similarities[entry]) + shift) - shift - cover[targets[entry]], 0.0)
        gains[demo] = gain


@numba.njit(cache=True, nogil=True)
@no_type_check
def _raise_cover(columns, demo, grid, running):
    """Raise the cover to what a demo gives; return by how much in all."""
    (starts, targets, similarities), (cover, covered_by) = columns, running
    shift, gain = 1.5 * 2.0**52 * grid, 0.0
    for entry in range(starts[demo], starts[demo + 1]):
        i = targets[entry]
        new = (np.float64(similarities[entry]) + shift) - shift
        if new > cover[i]:
            gain += new - cover[i]
            cover[i], covered_by[i] = new, demo
    return gain
