"""A pilot: what its arms train on, how they are compared, and what is trained on then."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.submodular.budgets import rank, resolve
from tamis.training.pilot import ARMS, RESAMPLES, decide, draw_arms, record, take_rows

ROWS = 30
BUDGETS = st.sampled_from([{"count": 9}, {"fraction": 0.5}, {"response_tokens": 40}])


def make_budget(asked, caps=None, floors=None):
    tokens = np.arange(ROWS) % 5 + 1
    return resolve(asked, topics=list("abc") * 10, response_tokens=tokens, caps=caps, floors=floors)


def choose(budget, seed=0):
    return rank(budget, np.random.default_rng([seed, 9]).permutation(ROWS))


@given(BUDGETS, st.integers(0, 5), st.data())
def test_every_arm_trains_on_as_many_different_rows_of_its_own(asked, seed, data):
    budget = make_budget(asked, caps={"a": 4}, floors={"b": 2})
    order = choose(budget, seed)
    count = data.draw(st.integers(1, len(order)))
    arms = draw_arms(order, budget, count, seed=seed)
    assert tuple(arms) == ARMS
    assert set(arms["choice"]) <= set(order.tolist())
    half = (count + 1) // 2
    assert len(set(arms["mixture"]) & set(order.tolist())) >= half
    for rows in (arms["choice"], arms["mixture"]):
        assert len(rows) == count
    for rows in arms.values():
        assert rows.tolist() == sorted(set(rows.tolist()))


def test_arms_are_drawn_by_the_seed_alone():
    budget = make_budget({"count": 9})
    order = choose(budget)
    one, same, other = (draw_arms(order, budget, 5, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in ARMS)
    assert not all(np.array_equal(one[name], other[name]) for name in ARMS)


def slow_interval(choice, chance, seed):
    """The interval of the difference of two arms, a resample at a time: rows for both, then seeds for each."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(choice.shape[1], size=choice.shape[1]) for _ in range(RESAMPLES)]
    ours, theirs = (generator.integers(len(choice), size=(RESAMPLES, len(choice))) for _ in range(2))
    found = []
    for rows, one, other in zip(drawn, ours, theirs, strict=True):
        found.append(
            np.mean([choice[seed][rows].mean() for seed in one])
            - np.mean([chance[seed][rows].mean() for seed in other])
        )
    return np.quantile(found, [0.025, 0.975])


def draw_losses(shift, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=12)
    return {name: rows + 0.1 * generator.normal(size=(3, 12)) + shift * (name == "choice") for name in ARMS}


@pytest.mark.parametrize(("shift", "decision"), [(-0.5, "choice"), (0.5, "chance"), (0.0, "mixture")])
def test_the_interval_of_the_paired_difference_decides(shift, decision):
    losses = draw_losses(shift)
    found = decide(losses, generator=np.random.default_rng(4))
    assert found.decision == decision
    assert [found.low, found.high] == pytest.approx(slow_interval(losses["choice"], losses["chance"], 4))
    assert found.loss == pytest.approx(losses["choice"].mean() - losses["chance"].mean())
    assert found.low <= found.loss <= found.high


@given(st.floats(-1, 1), st.integers(0, 3))
def test_what_is_below_chance_one_way_is_above_it_the_other_way(shift, seed):
    losses = draw_losses(shift, seed)
    swapped = losses | {"choice": losses["chance"], "chance": losses["choice"]}
    one, other = (decide(each, generator=np.random.default_rng(0)) for each in (losses, swapped))
    assert one.loss == pytest.approx(-other.loss)
    opposite = {"choice": "chance", "chance": "choice", "mixture": "mixture"}
    if min(abs(one.low), abs(one.high), abs(other.low), abs(other.high)) > 0.05:
        assert other.decision == opposite[one.decision]


def test_the_same_generator_gives_the_same_verdict():
    losses = draw_losses(0.1)
    assert decide(losses, generator=np.random.default_rng(1)) == decide(losses, generator=np.random.default_rng(1))


@given(BUDGETS, st.integers(0, 5), st.sampled_from(ARMS))
def test_what_is_trained_on_keeps_the_budget_its_caps_and_its_floors(asked, seed, decision):
    budget = make_budget(asked, caps={"a": 4}, floors={"b": 2})
    taken = take_rows(decision, choose(budget, seed), budget, seed=seed)
    assert budget.costs[taken].sum() <= budget.limit
    assert len(set(taken.tolist())) == len(taken)
    topics = np.bincount(taken % 3, minlength=3)
    assert topics[0] <= 4
    assert topics[1] >= 2


def test_a_choice_stands_as_it_is_and_a_mixture_begins_with_half_of_it():
    budget = make_budget({"count": 9})
    order = choose(budget)
    assert take_rows("choice", order, budget, seed=0).tolist() == order.tolist()
    mixed, random = (take_rows(name, order, budget, seed=0) for name in ("mixture", "chance"))
    assert mixed[:4].tolist() == order[:4].tolist()
    assert (len(mixed), len(random)) == (9, 9)
    assert random.tolist() != take_rows("chance", order, budget, seed=1).tolist()
    others = [row for row in random.tolist() if row not in order[:4]]
    assert mixed[4:].tolist()[: len(others)] == others[:5]


@pytest.mark.parametrize(
    ("shift", "text"),
    [
        (-0.5, r"chance's is -0\.\d{4} \(-.* to -.*\): below chance, so the choice stands"),
        (0.5, r"\+0\.\d{4} \(\+.* to \+.*\): above chance, so random rows take its place"),
        (0.0, r"\(-.* to \+.*\): no clear difference, so half of it is by rank and half random"),
    ],
)
def test_the_record_says_why_in_words(shift, text):
    losses = draw_losses(shift)
    verdict = decide(losses, generator=np.random.default_rng(0))
    found = record(verdict, losses)
    assert found["why"].startswith("the choice's loss less chance's is")
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(found["why"])
    assert found["losses"]["choice"] == losses["choice"].mean(axis=1).tolist()
