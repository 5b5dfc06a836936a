"""Arms: which rows a model is trained on, in every epoch, and which of earlier versions are repeated.

Symbols: row = an example of the pool; an *arm* is one way to choose the rows that a model is trained on (`chosen` by
selection; `random`, `balanced` and `fresh`, three forms of chance at equal budget; `full` pool); *replay* adds rows of
earlier versions to every arm alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from tamis.submodular.budgets import Budget, count_by_topic, narrow, rank
from tamis.training.chance import order_balanced, order_fresh

ARMS = ("chosen", "random", "balanced", "fresh", "full")
REPLAYS = {"none": (), "subset": ("learnt",), "all": ("learnt", "offered")}  # sets of earlier rows that are repeated

Order = Callable[[np.ndarray], np.ndarray]  # ascending rows -> their places, the first to be taken first


def pick_rows(
    arm: str,
    chosen: Bool[np.ndarray, " row"],
    *,
    budget: Budget,
    replayed: Int[np.ndarray, " again"],
    groups: Sequence[str] = (),
    seed: int,
) -> Int[np.ndarray, " pick"]:
    """Return the rows that an arm trains on besides replayed ones, ascending; of arm `fresh` in the first epoch.

    Args:
        arm: `chosen`; `random`, `balanced` and `fresh`: rows drawn under the budget, caps and floors of the choice, for
            `balanced` as many of each group; `full`: every row.
        chosen: which rows of the pool selection chose.
        budget: what selection was allowed to spend on these rows; ignored by the other arms.
        replayed: rows that every arm repeats, those from `len(chosen)` on not of the pool; ignored by the other arms.
        groups: of each row, which arm `balanced` draws from alike (`tamis.training.chance.name_groups`).
        seed: of the draw; ignored by the other arms.

    Raises:
        ValueError: unknown arm; nothing is chosen while the arm depends on it.

    >>> from tamis.submodular.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a"] * 3, response_tokens=np.array([1, 1, 1]))
    >>> pick_rows("chosen", np.array([True, False, True]), budget=two, replayed=np.array([0]), seed=0).tolist()
    [0, 2]
    >>> pick_rows("random", np.array([True, True, False]), budget=two, replayed=np.array([0, 2]), seed=0).tolist()
    [0, 1]
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    if arm == "full":
        return np.arange(len(chosen))
    if not chosen.any():
        raise ValueError(
            f"0 of {len(chosen)} rows of the pool are chosen, so arm {arm} has nothing to train on; "
            "raise selection.budget or leave the arm out of finetuning.arms"
        )
    if arm == "chosen":
        return np.flatnonzero(chosen)
    if arm == "balanced":
        return _draw_beside(chosen, budget, replayed, lambda rows: order_balanced([groups[row] for row in rows], seed))
    return _draw_beside(
        chosen, budget, replayed, lambda rows: np.argsort(np.random.default_rng(seed).permutation(len(rows)))
    )


def pick_epochs(
    first: Int[np.ndarray, " pick"],
    chosen: Bool[np.ndarray, " row"],
    *,
    budget: Budget,
    replayed: Int[np.ndarray, " again"],
    epochs: int,
    seed: int,
) -> list[Int[np.ndarray, " _"]]:
    """Return the rows of every epoch of a training that draws them anew, each ascending and besides replayed ones.

    Each epoch spends what the choice may spend, within its caps and floors, on the rows that were taken the fewest
    times. So under a budget of rows there are as many optimiser steps as with one choice, and no row is seen twice
    before every other one was seen, as far as caps and floors allow.

    **Source**: RS2, Okanovic et al. 2023, arXiv 2305.18424, without repetition.

    Args:
        first: rows of the first epoch.
        chosen, budget, replayed: as `pick_rows` has them.
        epochs: at least 1.
        seed: with the number of the epoch, of its draw.

    >>> from tamis.submodular.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a"] * 4, response_tokens=np.ones(4, np.int64))
    >>> one = np.array([True, False, True, False])
    >>> found = pick_epochs(np.array([0, 2]), one, budget=two, replayed=np.array([], int), epochs=2, seed=0)
    >>> [rows.tolist() for rows in found]
    [[0, 2], [1, 3]]
    """
    taken = [first]
    seen = np.zeros(len(chosen), np.int64)
    for epoch in range(1, epochs):
        seen[taken[-1]] += 1
        taken.append(
            _draw_beside(chosen, budget, replayed, lambda rows, epoch=epoch: order_fresh(seen[rows], (seed, epoch)))
        )
    return taken


def _draw_beside(chosen: np.ndarray, budget: Budget, replayed: np.ndarray, order: Order) -> np.ndarray:
    """Return rows of the pool in an order, ascending, so that replay adds as little to them as to the chosen arm.

    A chosen row that is replayed is in every arm: these take it over, with what it costs, and the rest is of
    rows that are not replayed. That the choice has such rows shows that what is left of the budget can be kept.
    """
    shared = np.intersect1d(np.flatnonzero(chosen), replayed)
    outside = np.setdiff1d(np.arange(len(chosen)), replayed)
    if not chosen[outside].any():
        return shared
    spent, taken = int(budget.costs[shared].sum()), count_by_topic(budget, shared.tolist())
    floors, caps = np.maximum(budget.floors - taken, 0), budget.caps - taken
    left = replace(budget, limit=budget.limit - spent, floors=floors, caps=caps)
    return np.union1d(shared, outside[rank(narrow(left, outside), order(outside))])
