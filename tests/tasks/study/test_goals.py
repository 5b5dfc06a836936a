"""Goals are met, missed or undecided by the interval and the picks, and a wide interval shows nothing."""

from dataclasses import replace

import pytest
from worlds.study_cells import make_cell

from tamis.evaluation.paired import Difference
from tasks.study import goals
from tasks.study.analysis import Comparison, Group, summarise

OWN = summarise(Group("p", "default", "0.3", "none"), {0: make_cell()})


def difference(low, high):
    return Difference((low + high) / 2, low, high, 0.01, 0.1)


@pytest.mark.parametrize(
    ("low", "high", "below", "not_above"),
    [
        (-0.2, -0.1, "met", "met"),
        (-0.03, 0.02, "missed", "met"),
        (-0.2, 0.1, "undecided", "undecided"),
        (0.01, 0.2, "missed", "missed"),
        (-0.04, 0.04, "missed", "met"),
        (-0.05, 0.05, "undecided", "undecided"),
    ],
)
def test_no_difference_counts_only_where_the_interval_is_narrow(low, high, below, not_above):
    assert goals.judge_below(difference(low, high)) == below
    assert goals.judge_not_above(difference(low, high)) == not_above


def judge(pool, own=None, chance=None, low=-0.2, high=-0.1, seeds=5):
    one = replace(OWN, group=Group(pool, "default", "0.3", "none"), **(own or {}))
    return goals.judge_pool(one, replace(one, **(chance or {})), comparison(pool, low, high, seeds=seeds)).verdict


@pytest.mark.parametrize(
    ("pool", "own", "chance", "verdict"),
    [
        ("noisy-across-20", {"corrupted": 0.05}, {}, "met"),
        ("noisy-across-20", {"corrupted": 0.06}, {}, "missed"),
        ("noisy-within-20", {"corrupted": 0.1}, {"corrupted": 0.2}, "met"),
        ("noisy-within-20", {"corrupted": 0.11}, {"corrupted": 0.2}, "missed"),
        ("confirm-tldr", {"corrupted": 0.2}, {"corrupted": 0.3}, "missed"),
        ("redundant-tldr", {"repeats": 0.1}, {"repeats": 0.3}, "met"),
        ("redundant-tldr", {"repeats": 0.2}, {"repeats": 0.3}, "missed"),
        ("rare-svamp", {"target": 0.8}, {}, "met"),
        ("rare-svamp", {"target": 0.79}, {}, "missed"),
        ("clean-tldr", {}, {}, "met"),
        ("noisy-cut-20", {"corrupted": 0.9}, {}, "met"),
        ("noisy-across-50", {"corrupted": 0.9}, {}, "met"),
    ],
)
def test_picks_are_held_to_what_is_asked_of_the_kind_of_pool(pool, own, chance, verdict):
    assert judge(pool, own, chance) == verdict


@pytest.mark.parametrize(
    ("pool", "verdict"),
    [("noisy-cut-20", "missed"), ("redundant-tldr", "met"), ("clean-tldr", "met"), ("versions-a-b", "met")],
)
def test_equal_to_chance_is_enough_but_where_below_is_asked(pool, verdict):
    assert judge(pool, low=-0.03, high=0.03) == verdict


@pytest.mark.parametrize("pool", ["noisy-cut-20", "clean-tldr", "redundant-tldr"])
def test_an_interval_of_few_seeds_decides_nothing_and_what_was_picked_may(pool):
    assert [judge(pool, seeds=seeds) for seeds in (1, 2, 3)] == ["undecided", "undecided", "met"]
    assert judge("noisy-across-20", {"corrupted": 0.06}, seeds=1) == "missed"
    few = comparison(pool, -0.2, -0.1, seeds=2)
    assert few.verdict == "too few seeds"
    assert replace(few, seeds=3).verdict != few.verdict
    assert goals.judge_versions([replace(few, group=few.group._replace(pool="versions-a"))]).verdict == "undecided"


def test_a_rare_target_is_judged_at_the_budget_of_its_size_and_others_at_the_largest():
    budgets = {name: replace(OWN, rows=rows, pool_rows=640.0, pool_target=0.05) for name, rows in SIZES.items()}
    assert goals.choose_budget(budgets, "rare-svamp") == "0.05"
    assert goals.choose_budget(budgets, "clean-tldr") == "0.3"


def test_no_harm_is_asked_of_clean_pools_at_every_budget_and_of_others_at_the_largest():
    def judge_at(pool, *highs):
        groups = {name: Group(pool, "default", name, "none") for name in ("0.1", "0.3")}
        both = [replace(OWN, group=group, rows=rows) for group, rows in zip(groups.values(), (10.0, 30.0), strict=True)]
        summaries = {one.group: one for one in both}
        summaries |= {group._replace(selector="random"): summaries[group] for group in groups.values()}
        found = [
            replace(comparison(pool, high - 0.04, high), group=group, against=group._replace(selector="random"))
            for group, high in zip(groups.values(), highs, strict=True)
        ]
        ((group, (goal, beside)),) = goals.judge_pools(summaries, found, "random").items()
        assert goal.budget == group.budget == beside.group.budget
        return goal.budget, goal.verdict

    assert judge_at("clean-tldr", 0.06, 0.02) == ("0.1", "missed")
    assert judge_at("clean-tldr", 0.02, 0.06) == ("0.3", "missed")
    assert judge_at("clean-tldr", 0.02, 0.02) == ("0.3", "met")
    assert judge_at("versions-a", 0.06, 0.02) == ("0.1", "missed")
    assert judge_at("noisy-cut-20", 0.06, -0.02) == ("0.3", "met")


SIZES = {"0.05": 32.0, "0.1": 64.0, "0.3": 192.0}


def comparison(pool, low, high, against="random", seeds=5):
    group = Group(pool, "default", "0.3", "none")
    return Comparison(group, group._replace(selector=against), "design", seeds, difference(low, high), 0.1, None)


def test_of_two_versions_one_must_be_below_chance():
    two = [comparison("versions-a", -0.1, 0.2), comparison("versions-b", -0.2, -0.1)]
    assert goals.judge_versions(two).verdict == "met"
    assert goals.judge_versions(two[:1]).verdict == "undecided"
    assert goals.judge_versions([comparison("clean-a", -0.2, -0.1)]) is None


def test_scoring_may_cost_an_epoch_on_all_rows_on_every_pool():
    flops = {"scoring_flops": 6e9, "training_flops": 8e9, "full_flops": 24e9, "epochs": 2}
    cheap = replace(OWN, **flops, scoring=30.0, training=20.0)  # an epoch on all rows: 12e9 operations, 30 seconds
    assert (cheap.scoring_epochs, cheap.scoring_epochs_seconds) == (0.5, 1.0)
    dear = replace(cheap, scoring=31.0)
    assert goals.judge_costs([cheap, replace(OWN, full_flops=None)]).verdict == "met"
    found = goals.judge_costs([dear, cheap])
    assert (found.verdict, found.found) == (
        "missed",
        "1.00 to 1.03 epochs of seconds, 0.50 to 0.50 epochs of operations",
    )
    assert goals.judge_costs([replace(OWN, full_flops=None)]) is None


def test_a_mask_must_be_below_both_on_one_pool():
    both = [comparison("a", -0.2, -0.1, "everything"), comparison("a", -0.2, 0.2)]
    other = [comparison("b", -0.2, -0.1, "everything"), comparison("b", -0.3, -0.2)]
    assert goals.judge_masks(both).verdict == "undecided"
    assert goals.judge_masks([*both, *other]).verdict == "met"
    assert goals.judge_masks(both[:1]) is None
