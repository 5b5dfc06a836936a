"""A pilot: brief trainings on a choice of rows, on chance and on a mixture, that say which of them to train on.

Symbols: *choice*, the rows that a selector chose; *chance*, random rows under the same budget; *mixture*, half of each;
row = a validation row; seed = of a brief training, and of the rows that it takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tamis.evaluation.bootstrap import percentile_intervals, resample_arms
from tamis.submodular.budgets import Budget, draw, rank

CHOICE, CHANCE, MIXTURE = ARMS = ("choice", "chance", "mixture")
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Verdict:
    """What a pilot found."""

    decision: str  # one of ARMS
    loss: float  # of the choice less that of chance, nats; below 0: the choice is better
    low: float  # of its interval
    high: float

    def explain(self) -> str:
        """Return why it is so, in words."""
        found = f"{self.loss:+.4f} ({self.low:+.4f} to {self.high:+.4f})"
        says = {
            CHOICE: "below chance, so the choice stands",
            CHANCE: "above chance, so random rows take its place",
            MIXTURE: "no clear difference, so half of it is by rank and half random",
        }
        return f"the choice's loss less chance's is {found}: {says[self.decision]}"


def draw_arms(
    order: Int[np.ndarray, " pick"], budget: Budget, count: int, *, seed: int
) -> dict[str, Int[np.ndarray, " row"]]:
    """Return the rows that each arm is briefly trained on, ascending; as many for each, if chance has so many.

    Choice and chance are `count` rows drawn of those that each would train on; the mixture takes half of its rows of
    the choice's, the larger half where they are odd, and the others of chance's.

    Args:
        order: the choice, by rank.
        budget: of the pool, under which chance draws as well.
        count: at least 1, at most the rows of the choice.
        seed: of all that is drawn.

    >>> from tamis.submodular.budgets import resolve
    >>> four = resolve({"count": 4}, topics=["a"] * 9, response_tokens=np.ones(9, np.int64))
    >>> arms = draw_arms(np.arange(4), four, 2, seed=0)
    >>> {name: len(rows) for name, rows in arms.items()}
    {'choice': 2, 'chance': 2, 'mixture': 2}
    """
    generator = np.random.default_rng([seed, 1])
    ours = generator.permutation(order)
    theirs = generator.permutation(draw(budget, seed=int(generator.integers(2**31))))
    half = ours[: (count + 1) // 2]
    others = theirs[~np.isin(theirs, half)]
    mixed = np.concatenate([half, others, ours[len(half) :]])[:count]
    rows = {CHOICE: ours[:count], CHANCE: theirs[:count], MIXTURE: mixed}
    return {name: np.sort(some).astype(np.int64) for name, some in rows.items()}


def decide(losses: Mapping[str, Float[np.ndarray, "seed row"]], *, generator: np.random.Generator) -> Verdict:
    """Return which rows to train on.

    The choice where its loss is below chance's beyond the bootstrap interval, chance where it is above, the mixture
    where the interval holds 0. Resamples draw rows for both, so that the difference is paired, and seeds for each.

    **Source**: ours, on the intervals of `tamis.evaluation.bootstrap.summarise`.

    Args:
        losses: of the validation rows, nats per token, by arm.
        generator: of the resamples.

    >>> same = np.tile(np.random.default_rng(0).normal(size=9), (2, 1))
    >>> decide({"choice": same - 1, "chance": same}, generator=np.random.default_rng(0)).decision
    'choice'
    """
    arms = {name: losses[name][:, :, None] for name in (CHOICE, CHANCE)}
    drawn = resample_arms(arms, RESAMPLES, generator)
    ((low, high),) = percentile_intervals(drawn[CHOICE] - drawn[CHANCE], CONFIDENCE).tolist()
    decision = CHOICE if high < 0 else CHANCE if low > 0 else MIXTURE
    return Verdict(decision, float(losses[CHOICE].mean() - losses[CHANCE].mean()), low, high)


def take_rows(
    decision: str, order: Int[np.ndarray, " pick"], budget: Budget, *, seed: int
) -> Int[np.ndarray, " taken"]:
    """Return the rows to train on, under the budget, its caps and its floors.

    The mixture takes the first rows of the choice while they cost half of the budget at most, then rows at random.

    Args:
        decision: one of `ARMS`.
        order: the choice, by rank.
        budget: of the pool.
        seed: of random rows.

    >>> from tamis.submodular.budgets import resolve
    >>> four = resolve({"count": 4}, topics=["a"] * 9, response_tokens=np.ones(9, np.int64))
    >>> take_rows("mixture", np.array([8, 3, 5, 1]), four, seed=0)[:2].tolist()
    [8, 3]
    """
    if decision == CHOICE:
        return order
    shuffled = np.random.default_rng([seed, 2]).permutation(len(budget.costs))
    if decision == CHANCE:
        return rank(budget, shuffled)
    half = order[2 * np.cumsum(budget.costs[order]) <= budget.limit]
    return rank(budget, np.concatenate([half, shuffled[~np.isin(shuffled, half)]]))


def record(verdict: Verdict, losses: Mapping[str, Float[np.ndarray, "seed row"]]) -> dict[str, Any]:
    """Return what was found, as JSON can keep it: decision and why, the difference, each arm's mean loss by seed."""
    return {
        "decision": verdict.decision,
        "why": verdict.explain(),
        "difference": {"loss": verdict.loss, "low": verdict.low, "high": verdict.high},
        "losses": {name: found.mean(axis=1).tolist() for name, found in losses.items()},
    }
