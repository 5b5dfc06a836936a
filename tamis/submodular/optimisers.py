"""The ways to maximise an objective under a budget, by name, and what a choice is worth beside random ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from tamis.submodular.budgets import Budget, BudgetError, draw, measure_room, narrow
from tamis.submodular.greedy import Choice, OptimiserError, choose, evaluate
from tamis.submodular.kernels import Kernel
from tamis.submodular.objectives import Objective
from tamis.submodular.partition import choose_partitioned
from tamis.submodular.stochastic import choose_stochastic

OPTIMISERS = ("lazy", "stochastic", "partition")
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Any]


def maximise(
    objective: Objective,
    budget: Budget,
    optimiser: str,
    *,
    epsilon: float,
    partitions: int,
    seed: int,
    map: Map = map,
) -> Choice:
    """Choose demos for which the objective is large.

    Args:
        objective: what is maximised.
        budget: resolved for as many rows as the objective has demos.
        optimiser: lazy (`selection.choose`), stochastic (`stochastic.choose_stochastic`) or partition
            (`partition.choose_partitioned`).
        epsilon: of stochastic.
        partitions: of partition.
        seed: of stochastic and of partition.
        map: runs the partitions.

    Raises:
        OptimiserError: unknown optimiser, or one that cannot be followed as asked.
    """
    kernel, bonus = objective.kernel, objective.bonus
    if optimiser == "lazy":
        return choose(kernel, budget, bonus)
    if optimiser == "stochastic":
        return choose_stochastic(kernel, budget, bonus, epsilon=epsilon, seed=seed)
    if optimiser == "partition":
        return choose_partitioned(kernel, budget, bonus, partitions=partitions, seed=seed, map=map)
    raise OptimiserError(f"selection.optimiser is {optimiser!r}; it must be one of {', '.join(OPTIMISERS)}")


def restrict(budget: Budget, demos: Int64[np.ndarray, " demo"]) -> Budget:
    """Return the budget for the rows that are scored as demos, where only some are (`landmarks`).

    Raises:
        BudgetError: it is larger than all of them, or they cannot meet the floors.
    """
    if len(demos) == len(budget.costs):
        return budget
    room, unit = measure_room(budget, demos)
    if budget.limit > room:
        raise BudgetError(
            f"selection.budget.{budget.kind} allows {budget.limit} {unit}, but only {len(demos)} landmarks of "
            f"{len(budget.costs)} rows are scored as demos and may be chosen ({room} {unit}); raise utility.landmarks, "
            f"or lower the budget to {room} {unit}"
        )
    return narrow(budget, demos)


def share_of_all(kernel: Kernel, chosen: Int64[np.ndarray, " pick"]) -> float | None:
    """Return which part of what all demos cover the chosen ones cover; None where no demo covers anything.

    share = sum_i max_{j in chosen} s_ij / sum_i max_j s_ij, in [0, 1]

    >>> share_of_all(np.float32([[1, 3], [2, 0]]), np.array([0]))
    0.6
    """
    full = evaluate(kernel)
    return evaluate(kernel, chosen) / full if full else None


def share_of_random(kernel: Kernel, budget: Budget, *, draws: int) -> float | None:
    """Return the mean of `share_of_all` over random choices under the same budget, drawn with seeds 0, 1, 2, ..."""
    shares = [share_of_all(kernel, draw(budget, seed=seed)) for seed in range(draws)]
    return None if shares[0] is None else float(np.mean(shares))
