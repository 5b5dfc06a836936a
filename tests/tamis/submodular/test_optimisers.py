import numpy as np
import pytest

from tamis.submodular.budgets import BudgetError, draw, resolve
from tamis.submodular.greedy import OptimiserError, choose
from tamis.submodular.objectives import Objective, facility_location
from tamis.submodular.optimisers import maximise, restrict, share_of_all, share_of_random
from tamis.submodular.partition import choose_partitioned
from tamis.submodular.stochastic import choose_stochastic

KERNEL = np.random.default_rng(0).random((30, 20)).astype(np.float32)
BONUS = np.random.default_rng(1).random(20)
TOPICS = ["a", "b"] * 10
TOKENS = np.arange(1, 21)


def ask(budget, **more):
    return resolve(budget, topics=TOPICS, response_tokens=TOKENS, **more)


@pytest.mark.parametrize("optimiser", ["lazy", "stochastic", "partition"])
def test_an_optimiser_is_called_by_its_name_with_what_it_needs(optimiser):
    budget = ask({"count": 7})
    known = {
        "lazy": lambda: choose(KERNEL, budget, BONUS),
        "stochastic": lambda: choose_stochastic(KERNEL, budget, BONUS, epsilon=0.3, seed=5),
        "partition": lambda: choose_partitioned(KERNEL, budget, BONUS, partitions=3, seed=5),
    }
    made = maximise(Objective(KERNEL, BONUS), budget, optimiser, epsilon=0.3, partitions=3, seed=5)
    assert all(getattr(made, name).tobytes() == value.tobytes() for name, value in vars(known[optimiser]()).items())


def test_an_unknown_optimiser_is_named_with_those_known():
    with pytest.raises(OptimiserError, match=r"optimiser is 'plain'; it must be one of lazy, stochastic, partition"):
        maximise(facility_location(KERNEL), ask({"count": 7}), "plain", epsilon=0.3, partitions=3, seed=5)


def test_a_budget_for_all_rows_is_not_changed_where_all_are_scored():
    budget = ask({"count": 7})
    assert restrict(budget, np.arange(20)) is budget


def test_a_budget_is_restricted_to_the_rows_that_are_scored():
    budget = restrict(ask({"response_tokens": 12}, caps={"b": 1}), np.array([3, 4, 9, 11]))
    assert budget.costs.tolist() == [4, 5, 10, 12]
    assert budget.caps.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            {"count": 4},
            r"budget.count allows 4 rows, but only 3 landmarks of 20 rows .* \(3 rows\); raise utility",
        ),
        ({"fraction": 0.2}, r"budget.fraction allows 4 rows, but only 3 landmarks .* or lower the budget to 3 rows"),
        ({"response_tokens": 7}, r"allows 7 response tokens, but only 3 landmarks .* \(6 response tokens\); raise"),
    ],
)
def test_a_budget_above_what_is_scored_says_how_much_that_is(budget, text):
    with pytest.raises(BudgetError, match=text):
        restrict(ask(budget), np.array([0, 1, 2]))


def test_the_share_of_a_choice_is_its_cover_over_that_of_all():
    picks = np.array([3, 8])
    slow = sum(max(row[3], row[8]) for row in KERNEL.tolist()) / sum(max(row) for row in KERNEL.tolist())
    assert share_of_all(KERNEL, picks) == pytest.approx(slow, rel=1e-6)
    assert share_of_all(KERNEL, np.arange(20)) == 1


def test_the_share_of_random_choices_is_the_mean_over_seeded_draws():
    budget = ask({"response_tokens": 30})
    shares = [share_of_all(KERNEL, draw(budget, seed=seed)) for seed in (0, 1, 2)]
    assert share_of_random(KERNEL, budget, draws=3) == pytest.approx(sum(shares) / 3, rel=1e-12)
    assert share_of_random(KERNEL, budget, draws=3) == share_of_random(KERNEL, budget, draws=3)


def test_a_kernel_of_zeros_has_no_shares():
    nothing = np.zeros((3, 20), np.float32)
    assert share_of_all(nothing, np.array([0])) is None
    assert share_of_random(nothing, ask({"count": 2}), draws=2) is None
