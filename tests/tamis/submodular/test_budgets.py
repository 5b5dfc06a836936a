import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.toy_kernels import wishes

from tamis.submodular.budgets import BudgetError, count_by_topic, draw, narrow, rank, record, resolve, restore, stratify

TOPICS = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
TOKENS = np.array([9, 2, 5, 7, 4, 3, 8, 6, 1, 5])


def ask(budget, caps=None, floors=None, topics=TOPICS, tokens=TOKENS):
    return resolve(budget, topics=topics, response_tokens=tokens, caps=caps, floors=floors)


@given(st.integers(1, 100), st.integers(2, 60))
def test_a_fraction_is_rounded_down_to_whole_rows_in_decimals(hundredths, rows):
    if hundredths * rows < 100:
        with pytest.raises(BudgetError, match=r"is less than one row; give \{count: 1\} or more"):
            ask({"fraction": hundredths / 100}, topics=["a"] * rows, tokens=np.ones(rows, np.int64))
    else:
        budget = ask({"fraction": hundredths / 100}, topics=["a"] * rows, tokens=np.ones(rows, np.int64))
        assert budget.limit == hundredths * rows // 100


def test_a_star_caps_every_topic_that_is_not_named():
    assert ask({"count": 4}, caps={"*": 1, "b": 2}).caps.tolist() == [1, 2, 1]


def test_a_cap_above_a_topics_size_is_its_size():
    assert ask({"count": 4}, caps={"a": 90}).caps.tolist() == [5, 3, 2]


def test_a_cap_of_zero_shuts_a_topic_out():
    assert 8 not in draw(ask({"count": 8}, caps={"c": 0}), seed=0)


@given(st.integers(0, 5), st.sampled_from(["count", "response_tokens"]))
def test_a_draw_keeps_budget_caps_and_floors(seed, kind):
    budget = ask({kind: 7}, caps={"a": 3}, floors={"b": 1, "c": 1})
    order = draw(budget, seed=seed)
    taken = count_by_topic(budget, order.tolist())
    assert (taken <= budget.caps).all()
    assert (taken >= budget.floors).all()
    assert len(set(order.tolist())) == len(order)
    assert budget.costs[order].sum() <= 7
    assert kind == "response_tokens" or len(order) == 7


def test_the_same_seed_draws_the_same_rows():
    budget = ask({"count": 6})
    assert draw(budget, seed=3).tobytes() == draw(budget, seed=3).tobytes()
    assert draw(budget, seed=3).tolist() != draw(budget, seed=4).tolist()


def test_a_larger_draw_goes_on_where_a_smaller_one_ends():
    assert draw(ask({"count": 8}), seed=1)[:5].tolist() == draw(ask({"count": 5}), seed=1).tolist()


def test_every_row_is_drawn_equally_often():
    rows = np.concatenate([draw(ask({"count": 3}), seed=seed) for seed in range(2000)])
    assert np.bincount(rows) == pytest.approx(np.full(10, 600), abs=5 * math.sqrt(2000 * 0.3 * 0.7))


def test_a_dear_row_never_makes_a_floor_unaffordable():
    tokens = np.array([9, 1, 1, 5, 9])
    budget = ask({"response_tokens": 7}, floors={"a": 2, "b": 1}, topics=["a", "a", "a", "b", "b"], tokens=tokens)
    for seed in range(20):
        assert sorted(draw(budget, seed=seed).tolist()) == [1, 2, 3]


def test_an_order_fills_floors_first_and_then_what_budget_and_caps_allow():
    budget = ask({"count": 5}, caps={"a": 2}, floors={"c": 1, "b": 1})
    assert rank(budget, np.arange(10)).tolist() == [5, 8, 0, 1, 6]


def test_an_order_passes_over_a_row_that_no_longer_fits():
    assert rank(ask({"response_tokens": 14}), np.arange(10)).tolist() == [0, 1, 5]  # 9 + 2, then 3 alone fits


@given(st.permutations(range(10)), st.integers(1, 9), st.booleans())
def test_a_smaller_budget_of_rows_is_the_beginning_of_a_larger_one(order, count, with_floors):
    more = {"caps": {"a": 4}, "floors": {"c": 1} if with_floors else {}}
    large, small = (rank(ask({"count": rows}, **more), np.array(order)) for rows in (9, count))
    assert large[:count].tolist() == small.tolist()


def test_a_smaller_budget_of_tokens_need_not_be():
    order = np.arange(10)[::-1]
    large, small = (rank(ask({"response_tokens": tokens}), order).tolist() for tokens in (9, 7))
    assert (large, small) == ([9, 8, 5], [9, 8])
    assert rank(ask({"response_tokens": 4}), order).tolist() == [8, 5]  # 1 + 3: the first row has 5


@pytest.mark.parametrize("order", [[0, 1, 2], [*range(9), 8]])
def test_an_order_must_hold_every_row_once(order):
    with pytest.raises(BudgetError, match=f"an order of 10 rows must hold each of them once; .* {len(order)} places"):
        rank(ask({"count": 3}), np.array(order))


def test_a_narrowed_budget_has_the_costs_and_caps_of_its_rows():
    budget = narrow(ask({"response_tokens": 12}, caps={"a": 4}, floors={"b": 1}), np.array([1, 2, 7, 6]))
    assert budget.costs.tolist() == [2, 5, 6, 8]
    assert budget.topic_of.tolist() == [0, 0, 1, 1]
    assert (budget.floors.tolist(), budget.caps.tolist(), budget.limit) == ([0, 1, 0], [2, 2, 0], 12)


def test_a_narrowed_budget_says_which_floors_it_cannot_meet():
    text = r"1 of 3 topics have a floor above their share of the 2 rows of 10 that may be chosen, first \['b'\]; lower"
    with pytest.raises(BudgetError, match=text):
        narrow(ask({"count": 4}, floors={"b": 2}), np.array([0, 5]))


def test_a_narrowed_budget_of_more_rows_than_there_are_is_refused():
    with pytest.raises(BudgetError, match=r"^there are 2 rows, fewer than the 4 of selection.budget.count; lower"):
        narrow(ask({"count": 4}), np.array([0, 5]))


@pytest.mark.parametrize(
    ("budget", "caps", "floors", "text"),
    [
        ({"count": 0}, {}, {}, "selection.budget.count is 0, which chooses nothing; it must be above 0"),
        ({"fraction": 0.0}, {}, {}, "selection.budget.fraction is 0.0, which chooses nothing"),
        ({"response_tokens": -3}, {}, {}, "selection.budget.response_tokens is -3, which chooses nothing"),
        ({"fraction": 1.2}, {}, {}, "fraction is 1.2, above 1; it is a share of the 10 rows, at most 1"),
        ({"fraction": 0.05}, {}, {}, "fraction 0.05 of 10 rows is less than one row; give {count: 1} or more"),
        ({"count": 11}, {}, {}, "count is 11, but the ground set holds 10 rows; give at most 10, or {fract"),
        ({"response_tokens": 51}, {}, {}, "is 51, but the ground set holds 50 response tokens in 10 rows; give at mo"),
        ({}, {}, {}, "selection.budget names nothing; give exactly one of count, fraction, response_tokens"),
        ({"count": 1, "fraction": 1}, {}, {}, r"names \['count', 'fraction'\]; give exactly one of"),
        ({"rows": 1}, {}, {}, r"names \['rows'\]; give exactly one of"),
        ({"count": 2.5}, {}, {}, "selection.budget.count is 2.5; it must be a whole number, or a fraction"),
        ({"count": True}, {}, {}, "selection.budget.count is True; it must be"),
        ({"fraction": "half"}, {}, {}, "selection.budget.fraction is 'half'; it must be"),
        ({"fraction": math.nan}, {}, {}, "selection.budget.fraction is nan; it must be"),
        (
            {"count": 2},
            {},
            {"a": 2, "b": 1},
            "floors of 2 topics need at least 3 rows, but .*count allows 2; raise it or",
        ),
        ({"response_tokens": 7}, {}, {"a": 2, "c": 2}, "need at least 12 response tokens, but .* allows 7; raise it"),
        (
            {"count": 5},
            {"a": 1},
            {"a": 2},
            r"1 of 3 topics have a floor above their cap \(a: floor 2, cap 1\); change one",
        ),
        ({"count": 5}, {"*": 1}, {"b": 3}, r"floor above their cap \(b: floor 3, cap 1\)"),
        (
            {"count": 9},
            {},
            {"b": 4},
            r"1 of 1 floors ask for more rows than the topic has \(b: 4 of 3 rows\); lower them",
        ),
        (
            {"count": 5},
            {"x": 1, "*": 3},
            {},
            r"caps name 1 of 1 topics that no row has, first \['x'\]; the topics are \['a'",
        ),
        (
            {"count": 5},
            {},
            {"x": 1, "a": 1},
            r"floors name 1 of 2 topics that no row has, first \['x'\]; the topics are",
        ),
        (
            {"count": 5},
            {"a": -1},
            {},
            r"1 of 1 selection.caps are not whole numbers of rows, first {'a': -1}; give 0 or",
        ),
        ({"count": 5}, {"*": 1.5}, {}, r"selection.caps are not whole numbers of rows, first {'\*': 1.5}"),
        ({"count": 5}, {}, {"b": True}, "selection.floors are not whole numbers of rows, first {'b': True}"),
        (
            {"count": 7},
            {"*": 2},
            {},
            "caps leave 6 of 10 rows, fewer than the 7 of selection.budget.count; raise a cap",
        ),
        ({"response_tokens": 1}, {"c": 0}, {}, "no row under its topic's cap costs at most the 1 response tokens"),
    ],
)
def test_a_budget_that_cannot_be_kept_says_why(budget, caps, floors, text):
    with pytest.raises(BudgetError, match=text):
        ask(budget, caps, floors)


def test_a_budget_below_the_shortest_response_says_how_short_that_is():
    with pytest.raises(BudgetError, match="is 2, but the shortest of 3 responses has 5 tokens; give at least 5"):
        ask({"response_tokens": 2}, topics=["a"] * 3, tokens=np.array([7, 5, 6]))


def test_a_response_without_tokens_is_named():
    with pytest.raises(BudgetError, match=r"1 of 2 rows have no response tokens, first rows \[1\]; make the examples"):
        ask({"response_tokens": 2}, topics=["a"] * 2, tokens=np.array([7, 0]))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_single_example_leaves_nothing_to_choose(rows):
    with pytest.raises(
        BudgetError, match=f"the ground set holds {rows} of the 2 rows that a choice needs; add examples"
    ):
        ask({"fraction": 1.0}, topics=["a"] * rows, tokens=np.ones(rows, np.int64))


@pytest.mark.parametrize("asked", [{"fraction": 0.4}, {"count": 6}, {"response_tokens": 30}])
def test_a_resolved_budget_is_restored_from_what_json_keeps_of_it(asked):
    budget = ask(asked, caps={"*": 2, "a": 4}, floors={"b": 1})
    again = restore(json.loads(json.dumps(record(budget))), topics=TOPICS, response_tokens=TOKENS)
    for name, value in vars(budget).items():
        assert np.array_equal(getattr(again, name), value), name


def test_a_budget_of_other_topics_is_refused():
    kept = record(ask({"count": 4}))
    with pytest.raises(BudgetError, match=r"resolved for 3 topics and these rows have 3, first \['c', 'd'\]"):
        restore(kept, topics=[*TOPICS[:8], "d", "d"], response_tokens=TOKENS)


@given(wishes(12), st.sets(st.integers(0, 11), min_size=1))
def test_a_topic_has_at_most_its_share_rounded_up_where_no_bound_says_otherwise(asked, counted):
    budget = resolve(**asked | {"budget": {"count": max(1, sum(asked["floors"].values()))}})
    found, sizes = stratify(budget, np.array(sorted(counted))), count_by_topic(budget, sorted(counted))
    shares = [math.ceil(budget.limit * size / len(counted)) for size in sizes.tolist()]
    wanted = [min(max(*both), cap) for *both, cap in zip(budget.floors, shares, budget.caps, strict=True)]
    assert (found.caps >= budget.floors).all()
    assert (found.caps <= budget.caps).all()
    assert budget.limit <= found.caps.sum()
    assert (found.caps >= wanted).all()
    assert sum(wanted) < budget.limit or found.caps.tolist() == wanted


def test_what_a_cap_leaves_is_shared_by_the_other_topics():
    assert stratify(ask({"count": 4}), np.arange(10)).caps.tolist() == [2, 2, 1]
    assert stratify(ask({"count": 6}, caps={"a": 1}), np.arange(10)).caps.tolist() == [1, 3, 2]


def test_rows_that_are_not_counted_make_no_topic_larger():
    repeated = np.array([0, 5, 6, 7, 8, 9])  # the first topic is one text five times
    assert stratify(ask({"count": 6}), repeated).caps.tolist() == [1, 3, 2]
    assert stratify(ask({"count": 8}), repeated).caps.tolist() == [3, 3, 2]
