"""What a run amounts to, in a few lines."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.audit import limit_spending, spread_caps, summarise

ARM = {"rows": 2, "loss": 1.5, "loss_low": 1.0, "loss_high": 2.0, "seeds": 1, "loss_by_seed": {"0": 1.5}}


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_a_fraction_is_rounded_down_to_whole_rows_exactly(percent, rows):
    unit, most = limit_spending({"fraction": percent / 100}, rows)
    assert unit == "rows"
    assert Fraction(most) <= Fraction(percent, 100) * rows < most + 1


@pytest.mark.parametrize(
    ("budget", "limit"), [({"count": 7}, ("rows", 7)), ({"response_tokens": 90}, ("response tokens", 90))]
)
def test_counts_and_tokens_are_limits_as_they_stand(budget, limit):
    assert limit_spending(budget, 3) == limit


def test_a_cap_for_all_others_leaves_named_topics_alone():
    assert spread_caps({"*": 1, "ai": 3}, ["ai", "food"]) == {"ai": 3, "food": 1}
    assert spread_caps({"ai": 0}, ["ai", "food"]) == {"ai": 0}


def test_arms_are_listed_by_their_rows():
    metrics = {"arms": {"chosen": ARM, "base": ARM | {"rows": 0, "loss": 1.7}}}
    summary = summarise(metrics, {"pairs_scored": 12}, {})
    assert summary.arms == [("base", 0, 1.7, 1.0, 2.0, 1), ("chosen", 2, 1.5, 1.0, 2.0, 1)]
    assert (summary.pairs_scored, summary.notes) == (12, [])


def test_losses_of_several_seeds_are_shown_apart():
    metrics = {"arms": {"random": ARM | {"loss_by_seed": {"0": 1.25, "1": 1.75}}}}
    assert summarise(metrics, {"pairs_scored": 0}, {}).notes == ["loss of random by seed: 1.2500, 1.7500"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, -0.1, "lower"),
        (0.1, 0.2, "higher"),
        (-0.1, 0.1, "no clear difference"),
        (-0.1, 0.0, "no clear difference"),
    ],
)
def test_a_difference_is_clear_only_where_its_interval_leaves_out_zero(low, high, verdict):
    differences = {"chosen-full": {"loss": 0.05, "low": low, "high": high}, "random-full": {}}
    (note,) = summarise({"arms": {}, "differences": differences}, {"pairs_scored": 0}, {}).notes
    assert note == f"loss of chosen minus full: +0.0500 ({low:+.4f} to {high:+.4f}): {verdict}"


def test_many_topics_are_cut_short():
    audit = {"coverage": [f"t{k}" for k in range(9)], "held_out_share": ["health: 0.000"]}
    assert summarise({"arms": {}}, {"pairs_scored": 0, "why": "rows are random"}, audit).notes == [
        "no pairs: rows are random",
        "9 topics without a chosen row: t0, t1, t2, t3, t4, t5, t6, t7, ...",
        "1 topics with a low held-out share: health: 0.000",
    ]
