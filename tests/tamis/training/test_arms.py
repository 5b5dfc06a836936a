"""Which rows an arm trains on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.submodular.budgets import rank, resolve
from tamis.training.arms import pick_epochs, pick_rows
from tamis.training.chance import order_balanced

CHOSEN = np.array([True, False, True, False, False, True])
SIX = resolve({"count": 3}, topics=["a"] * 6, response_tokens=np.ones(6, np.int64))
NONE = np.array([], np.int64)
ROWS, TOPICS = 30, ("a", "b", "c")
TOKENS = np.random.default_rng(0).integers(1, 10, ROWS)


def ask(budget, rows=ROWS, **bounds):
    """A budget over rows of three topics in turn whose responses have 1 to 9 tokens."""
    topics = [TOPICS[row % 3] for row in range(rows)]
    return resolve(budget, topics=topics, response_tokens=TOKENS[:rows], **bounds)


def choose(budget):
    """The rows that a choice takes that likes short responses."""
    chosen = np.zeros(len(budget.costs), dtype=bool)
    chosen[rank(budget, np.argsort(TOKENS[: len(budget.costs)], kind="stable"))] = True
    return chosen


def draw_random(budget, seed, replayed=()):
    chosen = choose(budget)
    return pick_rows("random", chosen, budget=budget, replayed=np.array(replayed, np.int64), seed=seed)


def count(budget, rows):
    return [sum(budget.topic_of[row] == topic for row in rows) for topic in range(len(budget.topics))]


@pytest.mark.parametrize("seed", range(20))
def test_random_arm_spends_a_budget_of_tokens_up_to_its_longest_row(seed):
    budget = ask({"response_tokens": 50})
    spent = TOKENS[draw_random(budget, seed)].sum()
    assert 50 - TOKENS.max() <= spent <= 50


@pytest.mark.parametrize("asked", [{"fraction": 0.4}, {"count": 12}, {"response_tokens": 60}])
@pytest.mark.parametrize("seed", range(5))
def test_random_arm_keeps_caps_and_floors(asked, seed):
    budget = ask(asked, caps={"*": 5}, floors={"b": 4, "c": 1})
    taken = count(budget, draw_random(budget, seed))
    assert max(taken) <= 5
    assert taken[1] >= 4
    assert taken[2] >= 1


@pytest.mark.parametrize("seed", range(5))
def test_random_arm_has_as_many_rows_as_are_chosen_under_a_fraction(seed):
    picked = draw_random(ask({"fraction": 0.3}), seed).tolist()
    assert picked == sorted(set(picked))
    assert len(picked) == int(0.3 * ROWS)


def slowly_drawn(budget, seed, replayed):
    """The random arm without floors: replayed rows of the choice, then others in a random order while they fit."""
    chosen = choose(budget)
    taken = [row for row in range(ROWS) if chosen[row] and row in replayed]
    outside = [row for row in range(ROWS) if row not in replayed]
    place = np.random.default_rng(seed).permutation(len(outside))
    for row in (outside[one] for one in np.argsort(place)):
        grown = [*taken, row]
        within = all(have <= cap for have, cap in zip(count(budget, grown), budget.caps, strict=True))
        if within and sum(budget.costs[one] for one in grown) <= budget.limit:
            taken = grown
    return sorted(taken)


@given(
    st.sampled_from([{"fraction": 0.3}, {"count": 12}, {"response_tokens": 40}]),
    st.sets(st.integers(0, ROWS + 5), max_size=10),
    st.integers(0, 9),
)
def test_random_arm_is_that_of_the_slow_loop(asked, replayed, seed):
    budget = ask(asked, caps={"a": 4})
    assert draw_random(budget, seed, sorted(replayed)).tolist() == slowly_drawn(budget, seed, replayed)


@given(st.sets(st.integers(0, ROWS + 5)), st.integers(0, 9))
def test_replay_leaves_the_random_arm_as_many_rows_as_the_chosen_one(replayed, seed):
    budget = ask({"count": 12}, caps={"*": 5}, floors={"b": 4})
    picked = draw_random(budget, seed, sorted(replayed))
    assert len(picked) == 12
    assert len(replayed.union(picked.tolist())) == len(replayed.union(np.flatnonzero(choose(budget)).tolist()))
    assert count(budget, picked)[1] >= 4
    assert max(count(budget, picked)) <= 5


@given(st.sets(st.integers(0, ROWS - 1)), st.integers(0, 9))
def test_replay_leaves_the_random_arm_the_budget_of_tokens(replayed, seed):
    picked = draw_random(ask({"response_tokens": 50}, floors={"c": 2}), seed, sorted(replayed))
    assert TOKENS[picked].sum() <= 50
    assert sum(picked % 3 == 2) >= 2


def test_a_choice_that_is_replayed_as_a_whole_leaves_nothing_to_draw():
    budget = ask({"response_tokens": 10}, rows=6)
    again = np.flatnonzero(choose(budget))
    assert draw_random(budget, 0, again).tolist() == again.tolist()


@pytest.mark.parametrize("replayed", [[], [0, 3, 7]])
def test_random_arm_is_fixed_by_its_seed(replayed):
    budget = ask({"count": 12})
    one, again, other = (draw_random(budget, seed, replayed).tolist() for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_chosen_and_full_arms_ignore_seed_and_replay():
    for seed, replayed in ((0, []), (9, [1, 2])):
        drawn = {"budget": SIX, "replayed": np.array(replayed, np.int64), "seed": seed}
        assert pick_rows("chosen", CHOSEN, **drawn).tolist() == [0, 2, 5]
        assert pick_rows("full", CHOSEN, **drawn).tolist() == [0, 1, 2, 3, 4, 5]


def test_unknown_arm_is_refused():
    with pytest.raises(ValueError, match=r"unknown arm 'best'; known: chosen, random, balanced, fresh, full"):
        pick_rows("best", CHOSEN, budget=SIX, replayed=NONE, seed=0)


@pytest.mark.parametrize("arm", ["chosen", "random"])
def test_arm_without_chosen_rows_is_refused(arm):
    with pytest.raises(
        ValueError, match=rf"0 of 6 rows of the pool are chosen, so arm {arm} .* raise selection.budget"
    ):
        pick_rows(arm, np.zeros(6, dtype=bool), budget=SIX, replayed=NONE, seed=0)


def draw_balanced(budget, seed, replayed=()):
    groups = [f"g{row // 20}" for row in range(len(budget.costs))]  # 20 rows of one, 10 of another
    asked = {"budget": budget, "replayed": np.array(replayed, np.int64), "groups": groups, "seed": seed}
    return pick_rows("balanced", choose(budget), **asked)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_arm_holds_as_many_rows_of_every_group(seed):
    picked = draw_balanced(ask({"count": 12}), seed)
    assert sorted(picked.tolist()) == picked.tolist()
    assert np.bincount(picked // 20).tolist() == [6, 6]
    assert np.bincount(draw_balanced(ask({"count": 25}), seed) // 20).tolist() == [15, 10]  # as far as they go


@pytest.mark.parametrize("seed", range(3))
def test_balanced_arm_is_the_balanced_order_cut_at_the_budget(seed):
    groups = [f"g{row // 20}" for row in range(ROWS)]
    assert draw_balanced(ask({"count": 9}), seed).tolist() == sorted(order_balanced(groups, seed)[:9].tolist())


def test_balanced_arm_keeps_floors_and_takes_over_what_is_replayed():
    budget = ask({"count": 12}, caps={"*": 5}, floors={"b": 4})
    again = np.flatnonzero(choose(budget))[:4].tolist()
    picked = draw_balanced(budget, 0, [*again, 29])
    assert set(again) <= set(picked.tolist())
    assert 29 not in picked
    assert len(picked) == 12
    assert count(budget, picked)[1] >= 4


def draw_epochs(budget, seed, epochs, replayed=()):
    asked = {"budget": budget, "replayed": np.array(replayed, np.int64), "seed": seed}
    first = pick_rows("fresh", choose(budget), **asked)
    return pick_epochs(first, choose(budget), epochs=epochs, **asked)


def test_the_first_epoch_of_arm_fresh_is_arm_random():
    budget = ask({"count": 7})
    assert draw_epochs(budget, 3, 2)[0].tolist() == draw_random(budget, 3).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_every_epoch_has_as_many_rows_and_none_is_seen_twice_before_all_were_seen(seed):
    epochs = draw_epochs(ask({"count": 10}), seed, 5)
    assert [len(rows) for rows in epochs] == [10] * 5
    assert sorted(np.concatenate(epochs[:3]).tolist()) == list(range(ROWS))
    assert len(set(np.concatenate(epochs[3:]).tolist())) == 20


@pytest.mark.parametrize("asked", [{"fraction": 0.4}, {"response_tokens": 60}])
def test_every_epoch_keeps_the_budget_its_caps_and_its_floors(asked):
    budget = ask(asked, caps={"*": 5}, floors={"b": 4, "c": 1})
    for rows in draw_epochs(budget, 0, 4):
        taken = count(budget, rows)
        assert budget.costs[rows].sum() <= budget.limit
        assert max(taken) <= 5
        assert taken[1] >= 4


def test_chosen_rows_that_are_replayed_are_in_every_epoch_and_the_others_are_drawn_beside_them():
    budget = ask({"count": 8})
    again = np.flatnonzero(choose(budget))[:3].tolist()
    epochs = draw_epochs(budget, 0, 3, again)
    assert all(set(again) <= set(rows.tolist()) for rows in epochs)
    drawn = [set(rows.tolist()) - set(again) for rows in epochs]
    assert [len(rows) for rows in drawn] == [5] * 3
    assert len(set.union(*drawn)) == 15


def test_epochs_are_fixed_by_their_seed():
    budget = ask({"count": 6})
    one, again, other = ([rows.tolist() for rows in draw_epochs(budget, seed, 3)] for seed in (0, 0, 1))
    assert one == again != other


def test_a_budget_of_all_rows_takes_them_in_every_epoch():
    assert [rows.tolist() for rows in draw_epochs(ask({"count": 30}), 0, 2)] == [list(range(30))] * 2
