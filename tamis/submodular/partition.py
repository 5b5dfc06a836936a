"""Two-round partition greedy: every partition chooses for itself, then greedy chooses among what they chose.

For ground sets that outgrow one worker: round one needs no more than a partition's share of the kernel at a time, and
its partitions can be worked on side by side.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64

from tamis.submodular.budgets import Budget, count_by_topic, narrow
from tamis.submodular.greedy import Choice, OptimiserError, check, choose, evaluate
from tamis.submodular.kernels import Kernel, take

TARGETS = ("all", "own")


@dataclass(frozen=True)
class Part:
    """What one partition needs in round one; it can be pickled."""

    rows: Int64[np.ndarray, " demo"]  # its demos, as numbered in the whole kernel
    kernel: Kernel  # its demos' similarity to all targets, or to its own
    budget: Budget  # the whole budget, for its demos alone
    bonus: Float64[np.ndarray, " demo"]


Chosen = Int64[np.ndarray, " pick"]
Map = Callable[[Callable[[Part], Chosen], Iterable[Part]], Iterable[Chosen]]


def choose_partitioned(
    kernel: Kernel,
    budget: Budget,
    bonus: Float64[np.ndarray, " demo"] | None = None,
    *,
    partitions: int,
    seed: int,
    targets: str = "all",
    map: Map = map,
) -> Choice:
    """Choose demos in two rounds: a whole budget's worth within each partition, then greedily among all of these.

    A_p = greedy over the demos of partition p; U = union of A_p; the larger of f(greedy over U) and max_p f(A_p)

    Round two and the comparison are on the whole objective. The best A_p counts only if it meets the floors; where its
    partition was too small to spend the budget, greedy goes on from it within U. Ties go to A_p.

    **Source**: GreeDi, Mirzasoleiman et al. 2013 (NIPS) and 2016 (JMLR 17): with `targets: all`, under `count` and
    `fraction`, without caps and floors, at least (1 - 1/e) / min(partitions, k) of the best choice of k, however the
    rows are split; in expectation over random splits at least (1 - 1/e) / 2 (Barbosa et al. 2015, arXiv 1502.02606).
    **Differs**: demos are dealt out in equal numbers, not each at random by itself; caps, floors and costs, for which
    no such bound is claimed.

    Args:
        kernel: similarities >= 0.
        budget: resolved for as many rows as the kernel has demos.
        bonus: what each demo adds whatever else is chosen, >= 0; nothing where absent.
        partitions: at least 1, at most one per demo; 1 gives the choice of `selection.choose`. While partitions times
            budget is at least all that there is, U is everything, and nothing is gained over `choose`.
        seed: of the split.
        targets: all: a part holds its demos' entries, 1/partitions of the kernel, and the bounds hold. own: only those
            to its own targets, 1/partitions^2, the published form for objectives that are sums over rows: good where a
            random part of the rows stands for all, worse the fewer neighbours of a row are left in its partition.
        map: of `choose_within` over an iterator of parts, results in their order. The built-in one holds one part at a
            time. Threads gain nothing: a pick is over too soon to share the interpreter.

    Raises:
        OptimiserError: partitions or targets that cannot be.
        KernelError: as `selection.choose`.

    Cost: as `choose` on each part, and twice on the demos of U: more work than `choose` in all, in less memory a
    worker.

    >>> from tamis.submodular.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a", "a", "a"], response_tokens=np.array([1, 1, 1]))
    >>> choose_partitioned(np.float32([[3, 2, 0], [3, 2, 0], [0, 2, 1]]), two, partitions=2, seed=0).objective
    array([6., 8.])
    """
    _refuse_targets(kernel, targets)
    bonus, _ = check(kernel, budget, bonus)
    groups = split_partitions(kernel.shape[1], partitions, seed)
    found = list(map(choose_within, _parts(kernel, budget, bonus, groups, targets == "own")))
    union = _unite(budget, found)

    smaller, narrowed, extra = take(kernel, None, union), narrow(budget, union), bonus[union]
    best = choose(smaller, narrowed, extra)
    full = [np.searchsorted(union, order) for order in found if _meets_floors(budget, order)]
    if full:
        start = max(full, key=lambda order: evaluate(smaller, order) + float(extra[order].sum()))
        rival = choose(smaller, narrowed, extra, start)
        best = max(rival, best, key=lambda choice: choice.objective[-1])
    covered_by = np.where(best.covered_by < 0, -1, union[best.covered_by])
    return replace(best, order=union[best.order], covered_by=covered_by)


def split_partitions(rows: int, partitions: int, seed: int) -> list[Int64[np.ndarray, " demo"]]:
    """Return a random split of rows in groups of equal size, or one more; each ascending.

    >>> [len(group) for group in split_partitions(7, 3, seed=0)]
    [3, 2, 2]
    """
    if not 1 <= partitions <= rows:
        raise OptimiserError(
            f"selection.partitions is {partitions}; it must be at least 1 and at most the {rows} rows of the ground set"
        )
    return [np.sort(group) for group in np.array_split(np.random.default_rng(seed).permutation(rows), partitions)]


def choose_within(part: Part) -> Chosen:
    """Return the demos that a partition chooses, as numbered in the whole kernel, in the order of choice."""
    return part.rows[choose(part.kernel, part.budget, part.bonus).order]


def _parts(
    kernel: Kernel, budget: Budget, bonus: np.ndarray, groups: Iterable[np.ndarray], own: bool
) -> Iterator[Part]:
    """Yield the partitions, each made when it is asked for."""
    for rows in groups:
        yield Part(rows, take(kernel, rows if own else None, rows), _share(budget, rows), bonus[rows])


def _share(budget: Budget, rows: np.ndarray) -> Budget:
    """Return the whole budget for some rows: floors as far as they have such rows, none if the budget is too small."""
    within = replace(budget, costs=budget.costs[rows], topic_of=budget.topic_of[rows])
    floors = np.minimum(budget.floors, np.bincount(within.topic_of, minlength=len(budget.topics)))
    within = replace(within, floors=floors)
    cheapest = _cheapest_for_floors(within, np.arange(len(rows)))
    return within if within.costs[cheapest].sum() <= budget.limit else replace(within, floors=np.zeros_like(floors))


def _unite(budget: Budget, found: Iterable[np.ndarray]) -> np.ndarray:
    """Return all that was found, ascending, and the rows that meet the floors where these alone cannot."""
    union = np.unique(np.concatenate(list(found)))
    cheapest = _cheapest_for_floors(budget, union)
    if len(cheapest) < budget.floors.sum() or budget.costs[cheapest].sum() > budget.limit:
        union = np.union1d(union, _cheapest_for_floors(budget, np.arange(len(budget.costs))))
    return union


def _cheapest_for_floors(budget: Budget, rows: np.ndarray) -> np.ndarray:
    """Return those of some rows that meet the floors at the least cost, as far as there are such rows."""
    by_cost = rows[np.argsort(budget.costs[rows], kind="stable")]
    topics = np.flatnonzero(budget.floors)
    first = [by_cost[budget.topic_of[by_cost] == topic][: budget.floors[topic]] for topic in topics]
    return np.concatenate([rows[:0], *first])


def _meets_floors(budget: Budget, order: np.ndarray) -> bool:
    return bool((count_by_topic(budget, order.tolist()) >= budget.floors).all())


def _refuse_targets(kernel: Kernel, targets: str) -> None:
    if targets not in TARGETS:
        raise OptimiserError(f"targets is {targets!r}; it must be one of {', '.join(TARGETS)}")
    if targets == "own" and kernel.shape[0] != kernel.shape[1]:
        raise OptimiserError(
            f"the kernel has {kernel.shape[0]} targets and {kernel.shape[1]} demos, so a partition has no targets of "
            "its own; use targets: all"
        )
