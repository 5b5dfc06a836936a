"""Orders of rows that are drawn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.training.chance import name_groups, order_balanced, order_fresh

GROUPS = st.lists(st.sampled_from("abc"), max_size=30)


def test_groups_are_topics_or_sources_where_there_is_one_topic():
    assert name_groups(["a", "b", "a"], ["x", "y", None]) == ["a", "b", "a"]
    assert name_groups(["a", "a", "a"], ["x", "y", None]) == ["x", "y", ""]
    assert name_groups([], []) == []


@given(GROUPS, st.integers(0, 5))
def test_every_beginning_holds_as_many_of_each_group_as_filling_the_emptiest_gives(groups, seed):
    order = order_balanced(groups, seed).tolist()
    assert sorted(order) == list(range(len(groups)))
    left, taken = Counter(groups), Counter()
    for row in order:
        emptiest = min(taken[name] for name in left if left[name])
        assert taken[groups[row]] == emptiest
        left[groups[row]] -= 1
        taken[groups[row]] += 1


def test_within_a_group_and_a_round_every_row_may_be_first():
    groups = ["a", "a", "a", "b"]
    first = Counter(int(order_balanced(groups, seed)[0]) for seed in range(600))
    assert first[3] == pytest.approx(300, abs=75)
    assert [first[row] for row in range(3)] == pytest.approx([100] * 3, abs=50)


def test_one_group_is_a_permutation():
    assert sorted(order_balanced(["a"] * 9, 0).tolist()) == list(range(9))
    assert order_balanced(["a"] * 9, 0).tolist() != order_balanced(["a"] * 9, 1).tolist()


def test_a_balanced_order_is_fixed_by_its_seed():
    groups = list("abcabcaab")
    one, again, other = (order_balanced(groups, seed).tolist() for seed in (0, 0, 1))
    assert one == again != other


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(0, 5))
def test_rows_seen_less_often_come_first(seen, seed):
    order = order_fresh(np.array(seen, int), (seed, 1)).tolist()
    assert sorted(order) == list(range(len(seen)))
    assert [seen[row] for row in order] == sorted(seen)


def test_rows_seen_alike_come_in_a_random_order_that_the_seed_fixes():
    seen = np.zeros(20, int)
    orders = [order_fresh(seen, seed).tolist() for seed in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
