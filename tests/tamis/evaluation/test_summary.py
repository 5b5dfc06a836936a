"""What a run amounts to, in a few lines."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.evaluation.summary import NO_CHANCE, limit_spending, spread_caps, summarise

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
    assert summary.pairs_scored == 12


def test_where_chance_is_left_out_nothing_is_known_about_it():
    arms = {"base": ARM | {"rows": 0}, "chosen": ARM}
    assert summarise({"arms": arms}, {"pairs_scored": 0}, {}).notes == [NO_CHANCE]
    assert summarise({"arms": arms | {"random": ARM}}, {"pairs_scored": 0}, {}).notes == []


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
        (0.0, 0.0, "no clear difference"),
        (-0.1, -0.1, "too few held-out rows for a verdict"),
    ],
)
def test_a_difference_is_clear_only_where_its_interval_leaves_out_zero(low, high, verdict):
    differences = {"chosen-full": {"loss": 0.05, "low": low, "high": high}, "random-full": {}}
    (note,) = summarise({"arms": {}, "differences": differences}, {"pairs_scored": 0}, {}).notes
    assert note == f"loss of chosen minus full: +0.0500 ({low:+.4f} to {high:+.4f}): {verdict}"


def test_the_in_context_learner_has_notes_of_its_own():
    difference = {"loss": -0.05, "low": -0.1, "high": -0.01}
    found = {"demos": 2, "differences": {"chosen-random": difference, "chosen-base": difference, "chosen-full": {}}}
    notes = summarise({"arms": {}, "in_context": found}, {"pairs_scored": 0}, {}).notes
    assert notes == [
        f"in context, 2 demos: loss of chosen minus {other}: -0.0500 (-0.1000 to -0.0100): lower"
        for other in ("random", "base")
    ]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((-0.012, -0.02, -0.004), "+0.0120 (+0.0040 to +0.0200): forgotten"),
        ((0.05, 0.04, 0.06), "-0.0500 (-0.0600 to -0.0400): learnt"),
        ((0.0, -0.01, 0.02), "+0.0000 (-0.0200 to +0.0100): no clear change"),
    ],
)
def test_what_was_learnt_and_forgotten_is_told_as_a_change_of_loss(gain, said):
    change = dict(zip(("loss", "low", "high"), gain, strict=True))
    continual = {"previous": "v1", "stability": {"chosen": change}, "plasticity": {"full": change}}
    assert summarise({"arms": {}, "continual": continual}, {"pairs_scored": 0}, {}).notes == [
        f"v1's held-out rows: loss of chosen since v1 {said}",
        f"its own held-out rows: loss of full since v1 {said}",
    ]


def test_what_was_forgotten_of_general_rows_is_told():
    change = {"loss": -0.012, "low": -0.02, "high": -0.004}
    general = {"rows": 25, "stability": {"chosen": change}, "plasticity": {"chosen": change}}
    assert summarise({"arms": {}, "general": general}, {"pairs_scored": 0}, {}).notes == [
        "25 general rows: loss of chosen since the base +0.0120 (+0.0040 to +0.0200): forgotten"
    ]


def make_arm(correct, cut=0.0):
    shares = {"correct": correct, "correct_low": correct - 0.125, "correct_high": correct + 0.125}
    return (
        {"rows": 3, "loss": 1.0, "loss_low": 0.9, "loss_high": 1.1, "seeds": 1, "loss_by_seed": {}}
        | shares
        | {"cut_answers": cut}
    )


def test_how_many_answers_are_right_is_told_per_arm_with_those_that_were_cut():
    arms = {"base": make_arm(0.125), "chosen": make_arm(0.25, 0.5)}
    metrics = {"arms": arms, "task_metric": "exact_match", "floor": False, "held_out_rows": 8}
    assert summarise(metrics, {"pairs_scored": 0}, {}).notes == [
        NO_CHANCE,
        "exact_match of base: 0.125 (0.000 to 0.250)",
        "exact_match of chosen: 0.250 (0.125 to 0.375); 50% of its answers were cut at evaluation.new_tokens",
    ]


def test_a_floor_of_zero_is_told_as_such():
    metrics = {"arms": {"base": make_arm(0.0)}, "task_metric": "pass_at_1", "floor": True, "held_out_rows": 40}
    assert summarise(metrics, {"pairs_scored": 0}, {}).notes == [
        "pass_at_1: no arm answered any of 40 held-out rows right (a floor of 0), so it tells nothing of the arms"
    ]


def test_a_floor_of_zero_counts_the_rows_that_were_answered():
    metrics = {"arms": {"base": make_arm(0.0)}, "task_metric": "pass_at_1", "floor": True, "held_out_rows": 40}
    (note,) = summarise(metrics | {"generated_rows": 12}, {"pairs_scored": 0}, {}).notes
    assert "any of 12 held-out rows right" in note


def test_what_a_version_changed_and_withdrew_is_told():
    counts = {"kept": {"rows": 1400, "used": 0}, "new": {"rows": 3, "used": 2}, "withdrawn": {"rows": 1, "used": 0}}
    audit = {"changes": counts, "withdrawn_learnt": ["ab12 (food): 'why?'"]}
    assert summarise({"arms": {}}, {"pairs_scored": 0}, audit).notes == [
        "distinct rows: 1,400 kept, 3 new, 1 withdrawn",
        "1 row that earlier versions trained on is withdrawn or edited, first ab12 (food): 'why?'",
    ]


def test_a_first_version_has_changed_nothing():
    audit = {"changes": {"kept": {"rows": 0, "used": 0}, "new": {"rows": 3, "used": 2}}, "withdrawn_learnt": []}
    assert summarise({"arms": {}}, {"pairs_scored": 0}, audit).notes == []


def test_many_topics_are_cut_short():
    audit = {"coverage": [f"t{k}" for k in range(9)], "held_out_share": ["health: 0.000"]}
    assert summarise({"arms": {}}, {"pairs_scored": 0, "why": "rows are random"}, audit).notes == [
        "no pairs: rows are random",
        "9 topics without a chosen row: t0, t1, t2, t3, t4, t5, t6, t7, ...",
        "1 topic with a low held-out share: health: 0.000",
    ]


def test_rows_that_are_known_to_be_wrong_are_told_beside_chance():
    pool = {"planted": {"cut": 4, "exchanged": 10}, "repeats": 6}
    faults = {"pool": pool, "chosen": {"planted": {"exchanged": 1}, "repeats": 0}}
    drawn = [{"planted": {"exchanged": 3, "cut": 1}, "repeats": 2}, {"planted": {"exchanged": 2}, "repeats": 1}]
    arms = {"chosen": ARM, "random": ARM | {"faults": drawn}}
    assert summarise({"arms": arms}, {"pairs_scored": 0}, {}, {"faults": faults}).notes == [
        "planted cut: 4 rows of the pool, 0 of the choice, 0.5 of the random choice",
        "planted exchanged: 10 rows of the pool, 1 of the choice, 2.5 of the random choice",
        "repeats of other rows: 6 rows of the pool, 0 of the choice, 1.5 of the random choice",
    ]


def test_without_random_rows_no_chance_is_told():
    faults = {"pool": {"planted": {"cut": 4}, "repeats": 0}, "chosen": {"planted": {}, "repeats": 0}}
    notes = summarise({"arms": {"chosen": ARM}}, {"pairs_scored": 0}, {}, {"faults": faults}).notes
    assert notes[1:] == ["planted cut: 4 rows of the pool, 0 of the choice"]


@pytest.mark.parametrize(
    ("planted", "wrong"), [({}, ""), ({"cut": 2, "exchanged": 1}, " (2 planted cut, 1 planted exchanged)")]
)
def test_a_gate_says_how_many_rows_left(planted, wrong):
    gate = {"by": "ifd", "gated_rows": 1200, "faults": {"planted": planted, "repeats": 0}}
    notes = summarise({"arms": {"chosen": ARM, "random": ARM}}, {"pairs_scored": 0}, {}, {"gate": gate}).notes
    assert notes == [f"gate by ifd: 1,200 rows of the pool left before the choice{wrong}"]


def test_a_pilot_says_what_it_found_and_what_became_of_the_choice():
    pilot = {"why": "it is worse", "validation": {"rows": 1200, "of": "target"}, "seconds": 12.34}
    notes = summarise({"arms": {"chosen": ARM, "random": ARM}}, {"pairs_scored": 0}, {}, {"pilot": pilot}).notes
    assert notes == ["pilot on 1,200 target rows, 12.3 s: it is worse"]


def test_what_a_choice_was_not_told_is_noted_and_nothing_where_it_was():
    metrics = {"arms": {"base": ARM}}
    told = {"rows_without_quality": 1037, "zero_gain_picks": 4}
    notes = summarise(metrics, {"pairs_scored": 0}, {}, told).notes
    assert [note.partition(":")[0] for note in notes] == [
        "no help was measured for 1,037 rows of the pool that may be chosen",
        "nothing was left to gain for 4 chosen rows",
    ]
    for known in (dict.fromkeys(told, 0), dict.fromkeys(told)):
        assert summarise(metrics, {"pairs_scored": 0}, {}, known).notes == []


@pytest.mark.parametrize(
    ("targets", "end"), [(15, "random rows 52%; fewer than 16 say little"), (16, "random rows 52%")]
)
def test_what_a_choice_covers_of_checked_targets_is_noted_and_whether_they_are_too_few(targets, end):
    checked = {"targets": targets, "facility_location_share": 0.913, "random_share": 0.52}
    (note,) = summarise({"arms": {"base": ARM}}, {"pairs_scored": 0}, {}, {"checked": checked}).notes
    assert note.startswith(f"of {targets} checked targets the choice covers 91% of what can be")
    assert note.endswith(end)
