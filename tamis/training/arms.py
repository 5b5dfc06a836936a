"""Arms: which rows a model is trained on, and which of earlier versions are repeated.

Symbols: row = an example of the pool; an *arm* is one way to choose the rows that a model is trained on (`chosen` by
selection, `random` at equal budget, `full` pool); *replay* adds rows of earlier versions to every arm alike.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from tamis.submodular.budgets import Budget, count_by_topic, draw, narrow

ARMS = ("chosen", "random", "full")
REPLAYS = {"none": (), "subset": ("learnt",), "all": ("learnt", "offered")}  # sets of earlier rows that are repeated


def pick_rows(
    arm: str, chosen: Bool[np.ndarray, " row"], *, budget: Budget, replayed: Int[np.ndarray, " again"], seed: int
) -> Int[np.ndarray, " pick"]:
    """Return the rows that an arm trains on besides replayed ones, ascending.

    Args:
        arm: `chosen`; `random`: rows drawn under the same budget, caps and floors as the choice; `full`: every row.
        chosen: which rows of the pool selection chose.
        budget: what selection was allowed to spend on these rows; ignored by the other arms.
        replayed: rows that every arm repeats, those from `len(chosen)` on not of the pool; ignored by the other arms.
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
    return _draw_beside(chosen, budget, replayed, seed)


def _draw_beside(chosen: np.ndarray, budget: Budget, replayed: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of arm random, ascending, so that replay adds as little to it as to the chosen arm.

    A chosen row that is replayed is in every arm: this one takes it over, with what it costs, and draws the rest from
    rows that are not replayed. That the choice has such rows shows that what is left of the budget can be kept.
    """
    shared = np.intersect1d(np.flatnonzero(chosen), replayed)
    outside = np.setdiff1d(np.arange(len(chosen)), replayed)
    if not chosen[outside].any():
        return shared
    spent, taken = int(budget.costs[shared].sum()), count_by_topic(budget, shared.tolist())
    floors, caps = np.maximum(budget.floors - taken, 0), budget.caps - taken
    left = replace(budget, limit=budget.limit - spent, floors=floors, caps=caps)
    return np.union1d(shared, outside[draw(narrow(left, outside), seed=seed)])
