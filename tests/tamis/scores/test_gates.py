"""Gates: the worst rows leave, as many as asked for; what is not known stays."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.scores.baselines import measure_ifd
from tamis.scores.gates import FEW, GATES, find_gated, level, measure_agreement

SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(float("nan"))), min_size=1, max_size=15)


@given(SCORES, st.sampled_from(GATES), st.integers(1, 9))
def test_the_worst_rows_leave_as_the_slow_rule_says(scores, by, tenths):
    left, allowed = set(), len(scores) * tenths // 10
    while len(left) < allowed:
        there = [place for place, score in enumerate(scores) if score == score and place not in left]
        if not there:
            break
        worst = (max if by == "ifd" else min)(scores[place] for place in there)
        left.add(max(place for place in there if scores[place] == worst))
    found = find_gated(np.array(scores), ["a"] * len(scores), by, tenths / 10)
    assert set(np.flatnonzero(found)) == left


@given(SCORES, st.sampled_from(GATES))
def test_a_larger_share_takes_the_rows_of_a_smaller_one_and_more(scores, by):
    few, many = (find_gated(np.array(scores), ["a"] * len(scores), by, drop) for drop in (0.2, 0.6))
    assert not (few & ~many).any()


@given(SCORES, st.sampled_from(GATES), st.sampled_from([0.5, 1.0, 2.0]))
def test_of_the_worst_those_leave_that_stand_out(scores, by, beyond):
    worth = [-score if by == "ifd" else score for score in scores if score == score]
    there = [place for place, score in enumerate(scores) if score == score]
    middle = statistics.median(worth) if worth else 0.0
    spread = 1.4826 * statistics.median([abs(each - middle) for each in worth]) if worth else 0.0
    out = {place for place, each in zip(there, worth, strict=True) if spread and middle - each > beyond * spread}
    share = set(np.flatnonzero(find_gated(np.array(scores), ["a"] * len(scores), by, 0.4)))
    assert set(np.flatnonzero(find_gated(np.array(scores), ["a"] * len(scores), by, 0.4, beyond))) == out & share


def test_of_normal_scores_few_stand_out_and_wrong_rows_beside_them_do():
    draw = np.random.default_rng(0)
    good, wrong = draw.normal(0.7, 0.1, 400), draw.normal(0.1, 0.1, 100)
    assert find_gated(good, ["a"] * 400, "agreement", 0.5, beyond=2).mean() < 0.06
    found = find_gated(np.concatenate([good, wrong]), ["a"] * 500, "agreement", 0.5, beyond=2)
    assert found[400:].mean() > 0.98
    assert found[:400].mean() < 0.03


def slow_quartile(values: list[float]) -> float:
    """Three quarters of the way from the least to the largest, between two neighbours in proportion."""
    ordered, place = sorted(values), 3 * (len(values) - 1) / 4
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(st.lists(st.tuples(st.sampled_from("abc"), SCORES.map(lambda some: some[0])), min_size=1, max_size=15))
def test_what_is_usual_is_the_groups_upper_quartile_and_of_few_rows_mostly_that_of_all(rows):
    known = [score for _, score in rows if score == score]
    found = level(np.array([score for _, score in rows]), [group for group, _ in rows])
    for (group, score), difference in zip(rows, found.tolist(), strict=True):
        own = [other for name, other in rows if name == group and other == other]
        if score != score:
            assert difference != difference
            continue
        usual = (len(own) * slow_quartile(own) + FEW * slow_quartile(known)) / (len(own) + FEW)
        assert difference == pytest.approx(score - usual)


@pytest.mark.parametrize("beyond", [None, 2.0])
@pytest.mark.parametrize("by", GATES)
def test_a_task_whose_answers_are_of_another_kind_is_not_taken_for_wrong_rows(by, beyond):
    draw, worse = np.random.default_rng(1), -1 if by != "ifd" else 1
    usual, other = draw.normal(0, 0.1, 400), draw.normal(0.5 * worse, 0.1, 40)
    usual[:20] += 1.0 * worse  # wrong rows of the usual task
    found = find_gated(np.concatenate([usual, other]), ["a"] * 400 + ["b"] * 40, by, 0.07, beyond)
    assert found[:20].mean() > 0.9
    assert found[20:400].mean() < 0.03
    assert found[400:].mean() < 0.15


def test_a_topic_of_which_half_is_wrong_does_not_hide_it():
    draw = np.random.default_rng(2)
    usual, wrong, right = draw.normal(0.6, 0.1, 300), draw.normal(0.0, 0.05, 12), draw.normal(0.5, 0.1, 12)
    scores, topics = np.concatenate([usual, wrong, right]), ["a"] * 300 + ["b"] * 24
    found = find_gated(scores, topics, "agreement", 0.5, beyond=2)
    assert found[300:312].all()
    assert found[312:].mean() < 0.1


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValueError, match="there is no gate 'loss'; known: ifd, help, agreement"):
        find_gated(np.zeros(3), "abc", "loss", 0.2)


def test_agreement_is_the_cosine_of_each_pair():
    asked, said = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    asked, said = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (asked, said))
    slow = [
        sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
        for one, other in zip(asked, said, strict=True)
    ]
    assert measure_agreement(asked, said) == pytest.approx(slow, abs=1e-6)
    assert measure_agreement(asked, said) == pytest.approx(measure_agreement(said, asked))
    assert measure_agreement(asked, asked) == pytest.approx(np.ones(7), abs=1e-6)


def test_a_prompt_that_does_not_help_has_a_difficulty_of_one():
    losses = np.array([0.5, 2.0])
    assert measure_ifd(losses, losses).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"1 of 2 responses have a loss of 0 without their prompt, first places \[1\]"):
        measure_ifd(losses, np.array([1.0, 0.0]))
