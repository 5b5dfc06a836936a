import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from worlds.toy_kernels import EIGHTHS, KERNELS, counted, keeps, random_kernel, same, thin, wishes

from tamis.submodular.budgets import resolve
from tamis.submodular.greedy import OptimiserError, choose, evaluate
from tamis.submodular.kernels import KernelError, take
from tamis.submodular.partition import choose_partitioned, split_partitions


def slow_partitioned(kernel: np.ndarray, picks: int, groups: list[np.ndarray]) -> list[int]:
    """Two rounds of plain greedy, and the better of its outcome and the best partition's."""

    def greedy(rows: list[int]) -> list[int]:
        order, _ = oracles.greedy(kernel[:, rows], counted(len(rows), min(picks, len(rows))))
        return [rows[place] for place in order]

    found = [greedy(group.tolist()) for group in groups]
    second = greedy(sorted(demo for order in found for demo in order))
    return max([*found, second], key=lambda order: oracles.facility_location(kernel, order))


def split_with(rows: list[int], total: int) -> int:
    """Return a seed that puts these rows, and no other, in one of two groups."""
    return next(s for s in range(1000) if any(group.tolist() == rows for group in split_partitions(total, 2, s)))


@pytest.mark.parametrize("partitions", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_greedy_within_each_partition_and_then_among_what_they_chose(seed, partitions):
    kernel, groups = random_kernel(25, 30, seed), split_partitions(30, partitions, seed)
    order = slow_partitioned(kernel, 6, groups)
    for form in (kernel, thin(kernel)):
        assert choose_partitioned(form, counted(30, 6), partitions=partitions, seed=seed).order.tolist() == order


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_partition_gives_greedys_choice(data):
    kernel = data.draw(KERNELS)
    wish = data.draw(wishes(kernel.shape[1]))
    budget = resolve(wish.pop("budget"), **wish)
    bonus = np.array(data.draw(st.lists(st.integers(0, 3), min_size=kernel.shape[1], max_size=kernel.shape[1]))) / 2
    for form in (kernel, thin(kernel)):
        assert same(choose_partitioned(form, budget, bonus, partitions=1, seed=0), choose(form, budget, bonus))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["all", "own"]))
def test_budget_caps_and_floors_hold(data, targets):
    rows = data.draw(st.integers(2, 7))
    kernel = data.draw(arrays(np.float32, (rows, rows), elements=EIGHTHS))
    wish = data.draw(wishes(rows))
    budget = resolve(wish.pop("budget"), **wish)
    partitions = data.draw(st.integers(1, rows))
    for form in (kernel, thin(kernel)):
        choice = choose_partitioned(form, budget, partitions=partitions, seed=0, targets=targets)
        assert keeps(budget, choice.order)


@settings(max_examples=100, deadline=None)
@given(KERNELS, st.data())
def test_it_reaches_its_share_of_the_best_however_the_rows_are_split(kernel, data):
    picks = data.draw(st.integers(1, min(3, kernel.shape[1])))
    partitions = data.draw(st.integers(1, kernel.shape[1]))
    choice = choose_partitioned(kernel, counted(kernel.shape[1], picks), partitions=partitions, seed=0)
    bound = (1 - 1 / math.e) / min(partitions, picks)
    assert choice.objective[-1] >= bound * float(oracles.best_subset(kernel, picks))


@pytest.mark.parametrize("partitions", [2, 5])
def test_random_splits_reach_half_of_greedys_share_of_the_best_on_average(partitions):
    for seed in range(5):
        kernel = random_kernel(12, 12, seed)
        reached = [
            choose_partitioned(kernel, counted(12, 3), partitions=partitions, seed=draw).objective[-1]
            for draw in range(20)
        ]
        assert np.mean(reached) >= (1 - 1 / math.e) / 2 * float(oracles.best_subset(kernel, 3))


@pytest.mark.parametrize("targets", ["all", "own"])
def test_on_clusters_little_of_greedys_objective_is_lost(targets):
    for seed in range(5):
        kernel, budget = random_kernel(200, 200, seed), counted(200, 20)
        choice = choose_partitioned(kernel, budget, partitions=4, seed=seed, targets=targets)
        assert choice.objective[-1] >= 0.97 * choose(kernel, budget).objective[-1]


@pytest.mark.parametrize("form", [np.asarray, thin])
def test_what_the_choice_reports_follows_from_its_order(form):
    kernel, bonus = random_kernel(60, 50), np.arange(50) / 50
    kernel[3] = 0
    choice = choose_partitioned(form(kernel), counted(50, 9), bonus, partitions=3, seed=1)
    assert choice.objective[-1] == pytest.approx(evaluate(kernel, choice.order) + bonus[choice.order].sum())
    assert np.diff(np.append(0, choice.objective)) == pytest.approx(choice.gain)
    assert choice.cover.tolist() == kernel[:, choice.order].max(axis=1).tolist()
    best = choice.order[kernel[:, choice.order].argmax(axis=1)]
    assert choice.covered_by.tolist() == np.where(choice.cover > 0, best, -1).tolist()


def test_one_partitions_choice_is_returned_where_it_is_better():
    # Demos 0 and 1 cover all six targets; 2 covers four of them, so greedy among all begins with it.
    kernel = np.float32([[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
    choice = choose_partitioned(kernel, counted(4, 2), partitions=2, seed=split_with([0, 1], 4))
    assert (choice.order.tolist(), choice.objective[-1]) == ([0, 1], 6)
    assert choose(kernel, counted(4, 2)).objective[-1] == 5


def test_one_partitions_better_choice_goes_on_until_the_budget_is_spent():
    kernel = np.float32([[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]])
    kernel = np.vstack([kernel, np.float32([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0.5]])])
    choice = choose_partitioned(kernel, counted(5, 3), partitions=2, seed=split_with([0, 1], 5))
    assert (choice.order.tolist(), choice.objective[-1]) == ([0, 1, 4], 6.5)


def test_a_floor_that_no_partition_affords_alone_is_met():
    tokens, topics = np.array([4, 1, 4, 4, 1, 4]), ["a", "b", "a", "a", "b", "a"]
    budget = resolve({"response_tokens": 2}, topics=topics, response_tokens=tokens, floors={"b": 2})
    choice = choose_partitioned(np.ones((6, 6), np.float32), budget, partitions=6, seed=0)
    assert sorted(choice.order.tolist()) == [1, 4]


@pytest.mark.parametrize("seed", range(5))
def test_dear_rows_of_a_floor_leave_room_for_the_cheap_ones(seed):
    tokens = np.array([1, 1, 6, 6, 6, 6])  # within a partition a dear row gains more per token, two are too many
    kernel = np.diag(np.float32([1, 1, 60, 60, 60, 60]))
    budget = resolve({"response_tokens": 7}, topics=["a"] * 6, response_tokens=tokens, floors={"a": 2})
    assert keeps(budget, choose_partitioned(kernel, budget, partitions=3, seed=seed).order)


def test_own_targets_show_a_partition_its_own_rows_alone():
    kernel, seen = random_kernel(12, 12), []

    def watch(function, parts):
        parts = list(parts)
        seen.extend(parts)
        return [function(part) for part in parts]

    for targets in ("all", "own"):
        choose_partitioned(kernel, counted(12, 2), partitions=3, seed=0, targets=targets, map=watch)
    for part in seen[:3]:
        assert part.kernel.tolist() == kernel[:, part.rows].tolist()
    for part in seen[3:]:
        assert part.kernel.tolist() == take(kernel, part.rows, part.rows).tolist()
    assert sorted(row for part in seen[:3] for row in part.rows) == list(range(12))


@pytest.mark.parametrize("form", [np.asarray, thin])
def test_any_map_gives_the_same_bits(form):
    kernel, budget = form(random_kernel(40, 40)), counted(40, 6)
    first = choose_partitioned(kernel, budget, partitions=4, seed=2)
    with ThreadPoolExecutor(2) as threads:
        assert same(first, choose_partitioned(kernel, budget, partitions=4, seed=2, map=threads.map))

    def ship(function, parts):
        function, parts = pickle.loads(pickle.dumps((function, list(parts))))  # noqa: S301
        return [function(part) for part in parts]

    assert same(first, choose_partitioned(kernel, budget, partitions=4, seed=2, map=ship))


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_split():
    first, again, other = ([group.tolist() for group in split_partitions(50, 4, seed)] for seed in (1, 1, 2))
    assert first == again != other
    kernel = random_kernel(50, 50)
    one, two = (choose_partitioned(kernel, counted(50, 9), partitions=4, seed=1) for _ in range(2))
    assert same(one, two)


def test_a_split_holds_every_row_once_in_groups_of_equal_size():
    groups = split_partitions(11, 3, 0)
    assert sorted(np.concatenate(groups).tolist()) == list(range(11))
    assert [len(group) for group in groups] == [4, 4, 3]


@pytest.mark.parametrize("partitions", [0, -1, 6])
def test_partitions_that_cannot_be_are_refused(partitions):
    with pytest.raises(OptimiserError, match=rf"selection.partitions is {partitions}; .* at most the 5 rows"):
        choose_partitioned(random_kernel(5, 5), counted(5, 2), partitions=partitions, seed=0)


def test_own_targets_need_as_many_targets_as_demos():
    with pytest.raises(OptimiserError, match=r"the kernel has 4 targets and 5 demos, so .*; use targets: all"):
        choose_partitioned(random_kernel(4, 5), counted(5, 2), partitions=2, seed=0, targets="own")
    with pytest.raises(OptimiserError, match="targets is 'some'; it must be one of all, own"):
        choose_partitioned(random_kernel(4, 4), counted(4, 2), partitions=2, seed=0, targets="some")


def test_a_value_that_is_no_similarity_is_named_by_its_place_in_the_whole_kernel():
    kernel = random_kernel(6, 6) + np.float32(1)
    kernel[2, 5] = math.nan
    with pytest.raises(KernelError, match=r"1 of 36 utilities are not finite, .* \[\(2, 5\)\]"):
        choose_partitioned(kernel, counted(6, 2), partitions=2, seed=0)
    with pytest.raises(KernelError, match="the kernel has 6 demos and the budget 7 rows"):
        choose_partitioned(random_kernel(6, 6), counted(7, 2), partitions=2, seed=0)
