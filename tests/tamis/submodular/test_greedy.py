import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.toy_kernels import KERNELS, counted, random_kernel, thin, wishes

from tamis.submodular import greedy
from tamis.submodular.budgets import resolve
from tamis.submodular.greedy import choose, evaluate
from tamis.submodular.kernels import KernelError


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_choice_is_plain_greedys_with_ties_caps_floors_and_costs(data):
    kernel = data.draw(KERNELS)
    wish = data.draw(wishes(kernel.shape[1]))
    budget = resolve(wish.pop("budget"), **wish)
    order, gains = oracles.greedy(kernel, budget)
    for form in (kernel, thin(kernel)):
        choice = choose(form, budget)
        assert choice.order.tolist() == order
        assert choice.gain.tolist() == [float(gain) for gain in gains]


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_plain_greedys_on_a_kernel_without_ties(seed):
    kernel, budget = random_kernel(25, 20, seed), counted(20, 12)
    order, gains = oracles.greedy(kernel, budget)
    choice = choose(kernel, budget)
    assert choice.order.tolist() == order
    assert choice.gain == pytest.approx([float(gain) for gain in gains], rel=1e-12)


@pytest.mark.parametrize("levels", [0, 8])
def test_the_choice_does_not_change_when_a_dense_kernel_turns_sparse(levels, monkeypatch):
    kernel = random_kernel(90, 120)
    if levels:  # with ties
        kernel = np.round(kernel / kernel.max() * levels).astype(np.float32)
    turned, sparse = choose(kernel, counted(120, 70)), choose(thin(kernel), counted(120, 70))
    monkeypatch.setattr(greedy, "THIN", kernel.size + 1)
    dense = choose(kernel, counted(120, 70))
    for other in (sparse, dense):
        assert all(getattr(other, name).tobytes() == value.tobytes() for name, value in vars(turned).items())


def test_a_dense_kernel_that_turned_sparse_gives_plain_greedys_choice():
    kernel = random_kernel(20, 30) + np.float32(0.01)
    assert choose(kernel, counted(30, 24)).order.tolist() == oracles.greedy(kernel, counted(30, 24))[0]


def test_true_ties_of_a_symmetric_kernel_go_to_the_lowest_index():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = np.maximum(vectors @ vectors.T, 0).astype(np.float32)
    kernel = np.maximum(kernel, kernel.T)
    np.fill_diagonal(kernel, 1)
    assert choose(kernel, counted(30, 20)).order.tolist() == oracles.greedy(kernel, counted(30, 20))[0]


def test_evaluate_is_the_sum_of_each_targets_best():
    kernel, chosen = random_kernel(9, 7), np.array([4, 0, 6])
    slow = float(oracles.facility_location(kernel, chosen))
    assert evaluate(kernel, chosen) == pytest.approx(slow, rel=1e-12)
    assert evaluate(thin(kernel), chosen) == pytest.approx(slow, rel=1e-12)
    assert evaluate(thin(kernel)) == evaluate(kernel)
    assert evaluate(kernel, chosen[:0]) == evaluate(thin(kernel), chosen[:0]) == 0


def test_what_the_choice_reports_follows_from_its_order():
    kernel = random_kernel(30, 20)
    choice = choose(kernel, counted(20, 5))
    assert choice.objective[-1] == pytest.approx(evaluate(kernel, choice.order), rel=1e-12)
    assert np.diff(np.append(0, choice.objective)) == pytest.approx(choice.gain)
    assert choice.cover.tolist() == kernel[:, choice.order].max(axis=1).tolist()
    best = choice.order[kernel[:, choice.order].argmax(axis=1)]
    assert choice.covered_by.tolist() == np.where(choice.cover > 0, best, -1).tolist()


def test_a_target_that_nothing_covers_is_covered_by_none():
    choice = choose(np.float32([[0, 0, 0], [1, 2, 3]]), counted(3, 1))
    assert choice.covered_by.tolist() == [-1, 2]
    assert choice.cover.tolist() == [0, 3]


@settings(deadline=None)
@given(KERNELS, st.data())
def test_facility_location_is_monotone_and_submodular(kernel, data):
    demos = st.lists(st.integers(0, kernel.shape[1] - 1), unique=True)
    small = data.draw(demos)
    large = list({*small, *data.draw(demos)})
    more = data.draw(st.integers(0, kernel.shape[1] - 1))
    few, many, few_more, many_more = (
        evaluate(kernel, np.array(rows, np.int64)) for rows in (small, large, [*small, more], [*large, more])
    )
    assert few <= many
    assert few_more - few >= many_more - many


@settings(deadline=None)
@given(KERNELS)
def test_gains_fall_and_greedy_reaches_its_share_of_the_best(kernel):
    choice = choose(kernel, counted(kernel.shape[1], 2))
    assert choice.gain[0] >= choice.gain[1] >= 0
    assert choice.objective[-1] >= (1 - 1 / math.e) * oracles.best_subset(kernel, 2)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(24)), st.permutations(range(16)))
def test_row_order_does_not_matter(targets, demos):
    kernel = random_kernel(24, 16)
    plain, moved = choose(kernel, counted(16, 8)), choose(kernel[targets][:, demos], counted(16, 8))
    assert np.array(demos)[moved.order].tolist() == plain.order.tolist()
    assert moved.gain.tolist() == plain.gain.tolist()
    assert moved.cover.tolist() == plain.cover[targets].tolist()


def test_a_larger_budget_goes_on_where_a_smaller_one_ends():
    kernel = random_kernel(40, 30)
    assert choose(kernel, counted(30, 20)).order[:9].tolist() == choose(kernel, counted(30, 9)).order.tolist()


def test_the_whole_budget_takes_every_row_once():
    assert sorted(choose(random_kernel(9, 7), counted(7, 7)).order.tolist()) == list(range(7))


def test_the_same_kernel_gives_the_same_bits_in_every_layout():
    kernel, budget = random_kernel(50, 50), counted(50, 20)
    frozen = kernel.copy()
    frozen.setflags(write=False)
    first = choose(kernel, budget)
    for again in (choose(kernel, budget), choose(np.asfortranarray(kernel), budget), choose(frozen, budget)):
        assert all(getattr(again, name).tobytes() == value.tobytes() for name, value in vars(first).items())


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e30])
def test_the_unit_of_the_kernel_does_not_matter(size):
    kernel, unit = random_kernel(30, 20), np.float32(2.0 ** round(math.log2(size)))
    plain = choose(kernel, counted(20, 10))
    for scaled in (kernel * unit, thin(kernel * unit)):
        choice = choose(scaled, counted(20, 10))
        assert choice.order.tolist() == plain.order.tolist()
        assert choice.gain == pytest.approx(plain.gain * float(unit), rel=1e-5)


def test_similarities_far_below_the_largest_lose_less_than_a_sum_does():
    kernel = random_kernel(30, 20)
    kernel[:, 3] *= np.float32(1e-9)
    choice = choose(kernel, counted(20, 20))
    assert choice.objective[-1] == pytest.approx(evaluate(kernel), rel=1e-14)


def test_identical_rows_leave_gains_of_zero_and_the_lowest_indices():
    choice = choose(np.ones((5, 5), np.float32), counted(5, 3))
    assert choice.order.tolist() == [0, 1, 2]
    assert choice.gain.tolist() == [5, 0, 0]


def test_a_kernel_of_zeros_covers_nothing():
    choice = choose(np.zeros((4, 4), np.float32), counted(4, 2))
    assert choice.order.tolist() == [0, 1]
    assert choice.covered_by.tolist() == [-1] * 4


def test_a_token_budget_prefers_gain_per_token():
    kernel = np.float32([[4, 0, 0], [0, 3, 0], [0, 0, 3]])
    budget = resolve({"response_tokens": 4}, topics=["a"] * 3, response_tokens=np.array([4, 2, 2]))
    assert choose(kernel, budget).order.tolist() == [1, 2]


def test_a_token_budget_is_not_wasted_on_a_cheap_row_where_one_dear_row_is_worth_more():
    kernel = np.float32([[2, 0], [0, 9]])
    budget = resolve({"response_tokens": 9}, topics=["a"] * 2, response_tokens=np.array([1, 9]))
    assert choose(kernel, budget).order.tolist() == [1]


@pytest.mark.parametrize("form", [np.asarray, thin])
@pytest.mark.parametrize(("value", "text"), [(-2, "similarities are negative"), (math.nan, "utilities are not finite")])
def test_a_value_that_is_no_similarity_is_named(form, value, text):
    kernel = random_kernel(3, 3) + np.float32(1)
    kernel[2, 1] = value
    with pytest.raises(KernelError, match=rf"1 of 9 {text}, first pairs \(target, demo\) \[\(2, 1\)\]; s"):
        choose(form(kernel), counted(3, 1))


def test_a_budget_for_other_rows_is_refused():
    with pytest.raises(KernelError, match="the kernel has 5 demos and the budget 7 rows; resolve it again"):
        choose(random_kernel(5, 5), counted(7, 2))


def test_a_sparse_kernel_with_entries_outside_its_shape_is_refused():
    sparse = thin(np.ones((3, 3), np.float32) - np.eye(3, dtype=np.float32))
    with pytest.raises(KernelError, match=r"do not fit its shape \(3, 2\); use kernels.gather"):
        choose(replace(sparse, shape=(3, 2)), counted(2, 1))


def test_a_choice_goes_on_from_demos_that_are_taken_first():
    kernel = random_kernel(40, 30)
    plain = choose(kernel, counted(30, 12))
    for form in (kernel, thin(kernel)):
        again = choose(form, counted(30, 12), start=plain.order[:5])
        assert again.order.tolist() == plain.order.tolist()
        assert again.gain.tolist() == plain.gain.tolist()
    worst = np.array([int(kernel.sum(axis=0).argmin())])
    assert choose(kernel, counted(30, 12), start=worst).order[0] == worst[0]
