import math

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.toy_kernels import KERNELS, counted, keeps, random_kernel, same, thin, wishes

from tamis.submodular import greedy
from tamis.submodular.budgets import affordable, resolve
from tamis.submodular.greedy import OptimiserError, choose, evaluate
from tamis.submodular.kernels import KernelError
from tamis.submodular.stochastic import choose_stochastic, size_sample

EVERYTHING = 1e-30  # an epsilon whose sample holds all of some tens of demos


def slow_stochastic(kernel: np.ndarray, picks: int, epsilon: float, seed: int) -> list[int]:
    """Draw the same samples, and evaluate every demo of each from scratch."""
    generator, pool, order = np.random.default_rng(seed), list(range(kernel.shape[1])), []
    size = math.ceil(len(pool) / picks * math.log(1 / epsilon))
    while len(order) < picks:
        for place, draw in enumerate(generator.random(size) if size < len(pool) else []):
            other = place + int(draw * (len(pool) - place))
            pool[place], pool[other] = pool[other], pool[place]
        sample = pool[:size]
        best = max(sample, key=lambda demo: (oracles.facility_location(kernel, [*order, demo]), -demo))
        pool[pool.index(best)] = pool[-1]
        pool.pop()
        order.append(best)
    return order


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_each_pick_is_the_best_of_its_sample(seed, levels):
    kernel = random_kernel(25, 30, seed)
    if levels:  # with ties
        kernel = np.round(kernel / kernel.max() * levels).astype(np.float32)
    order = slow_stochastic(kernel, 12, 0.2, seed)
    for form in (kernel, thin(kernel)):
        assert choose_stochastic(form, counted(30, 12), epsilon=0.2, seed=seed).order.tolist() == order


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_sample_that_holds_all_gives_plain_greedys_choice(data):
    kernel = data.draw(KERNELS)
    wish = data.draw(wishes(kernel.shape[1]))
    budget = resolve(wish.pop("budget"), **wish)
    bonus = np.array(data.draw(st.lists(st.integers(0, 3), min_size=kernel.shape[1], max_size=kernel.shape[1]))) / 2
    for form in (kernel, thin(kernel)):
        whole = choose_stochastic(form, budget, bonus, epsilon=EVERYTHING, seed=0)
        assert same(whole, choose(form, budget, bonus))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_budget_caps_and_floors_hold(data, epsilon, seed):
    kernel = data.draw(KERNELS)
    wish = data.draw(wishes(kernel.shape[1]))
    budget = resolve(wish.pop("budget"), **wish)
    choice = choose_stochastic(thin(kernel), budget, epsilon=epsilon, seed=seed)
    assert keeps(budget, choice.order)
    assert not len(affordable(budget, choice.order.tolist()))


def test_it_reaches_its_share_of_the_best_on_average():
    for seed in range(5):
        kernel = random_kernel(12, 10, seed)
        reached = [
            choose_stochastic(kernel, counted(10, 3), epsilon=0.3, seed=draw).objective[-1] for draw in range(30)
        ]
        assert np.mean(reached) >= (1 - 1 / math.e - 0.3) * float(oracles.best_subset(kernel, 3))


@pytest.mark.parametrize("form", [np.asarray, thin])
def test_what_the_choice_reports_follows_from_its_order(form):
    kernel, bonus = random_kernel(60, 50), np.arange(50) / 50
    choice = choose_stochastic(form(kernel), counted(50, 20), bonus, epsilon=0.5, seed=1)
    assert choice.objective[-1] == pytest.approx(evaluate(kernel, choice.order) + bonus[choice.order].sum())
    assert np.diff(np.append(0, choice.objective)) == pytest.approx(choice.gain)
    assert choice.cover.tolist() == kernel[:, choice.order].max(axis=1).tolist()
    best = choice.order[kernel[:, choice.order].argmax(axis=1)]
    assert choice.covered_by.tolist() == np.where(choice.cover > 0, best, -1).tolist()


def test_the_choice_does_not_change_when_a_dense_kernel_turns_sparse(monkeypatch):
    kernel, wish = random_kernel(90, 120), {"epsilon": 0.1, "seed": 3}
    turned, sparse = (choose_stochastic(form, counted(120, 70), **wish) for form in (kernel, thin(kernel)))
    monkeypatch.setattr(greedy, "THIN", kernel.size + 1)
    assert same(turned, sparse)
    assert same(turned, choose_stochastic(kernel, counted(120, 70), **wish))


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_choice():
    kernel = random_kernel(50, 50)
    first, again, other = (choose_stochastic(kernel, counted(50, 20), epsilon=0.5, seed=seed) for seed in (4, 4, 5))
    assert same(first, again)
    assert first.order.tolist() != other.order.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_topic_that_is_full_takes_no_place_in_a_sample(seed):
    kernel = np.diag(np.float32([9] * 100 + [1, 2, 3]))
    topics = ["a"] * 100 + ["b"] * 3
    budget = resolve({"count": 2}, topics=topics, response_tokens=np.ones(103, np.int64), caps={"a": 1})
    assert choose_stochastic(kernel, budget, epsilon=0.5, seed=seed).order[1] == 102


@pytest.mark.parametrize("seed", range(5))
def test_the_best_single_row_is_found_without_sampling(seed):
    kernel = np.diag(np.float32([2] * 60 + [99]))
    budget = resolve({"response_tokens": 90}, topics=["a"] * 61, response_tokens=np.array([1] * 60 + [90]))
    assert choose_stochastic(thin(kernel), budget, epsilon=0.9, seed=seed).order.tolist() != [60]
    budget = resolve({"response_tokens": 40}, topics=["a"] * 61, response_tokens=np.array([1] * 60 + [40]))
    assert choose_stochastic(thin(kernel), budget, epsilon=0.9, seed=seed).order.tolist() == [60]


@pytest.mark.parametrize(
    ("wish", "caps", "size"),
    [
        ({"count": 10}, {}, 14),  # 20/10 * log(1000), rounded up
        ({"fraction": 0.25}, {}, 20),  # all: 20/5 * 6.9
        ({"response_tokens": 50}, {}, 14),  # ten of the dearest
        ({"count": 10}, {"a": 4, "b": 6}, 14),
        ({"response_tokens": 60}, {"a": 4, "b": 5}, 16),  # no more than nine picks
    ],
)
def test_the_sample_grows_as_the_picks_get_fewer(wish, caps, size):
    tokens = np.array([5] * 11 + [1] * 9)
    budget = resolve(wish, topics=["a", "b"] * 10, response_tokens=tokens, caps=caps)
    assert size_sample(budget, [], budget.caps, np.arange(20), 0.001) == size


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_an_epsilon_that_is_no_share_is_refused(epsilon):
    with pytest.raises(OptimiserError, match=r"selection.epsilon is .*; it must be above 0 and below 1, for example"):
        choose_stochastic(random_kernel(4, 4), counted(4, 2), epsilon=epsilon, seed=0)


def test_a_value_that_is_no_similarity_is_named():
    kernel = np.float32([[1, 1], [1, -2]])
    with pytest.raises(KernelError, match=r"1 of 4 similarities are negative, first pairs \(target, demo\) \[\(1, 1\)"):
        choose_stochastic(kernel, counted(2, 1), epsilon=0.1, seed=0)
