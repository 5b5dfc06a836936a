"""Bootstrap intervals and what is brought together per arm."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tamis.evaluation.bootstrap import (
    CORRECT,
    MEASURES,
    bootstrap_means,
    cosines,
    measure_gains,
    percentile_intervals,
    perplexity,
    plan_batches,
    resample_arm,
    resample_arms,
    summarise,
)

VALUES = np.random.default_rng(7).normal(size=(9, 3))
columns = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.floats(-100, 100))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_arms(shift: float = 0.0) -> dict[str, np.ndarray]:
    """Two arms of one seed and 20 rows."""
    made = {name: generator(place).uniform(size=(1, 20, 3)) for place, name in enumerate(("base", "chosen"))}
    made["chosen"][:, :, 0] += shift
    return made


def arms_of_seeds(base: int = 1, chosen: int = 3) -> dict[str, np.ndarray]:
    """Two arms whose seeds are further apart than their rows' means."""
    made = {"base": generator(1).uniform(size=(base, 7, 3)), "chosen": generator(2).uniform(size=(chosen, 7, 3))}
    made["chosen"] += np.arange(chosen)[:, None, None]
    return made


def summary(arms, seed: int = 0, confidence: float = 0.9):
    tokens = np.ones(arms["base"].shape[1])
    return summarise(arms, tokens, resamples=300, confidence=confidence, generator=generator(seed))


def test_resampled_means_are_those_of_the_slow_loop():
    found = bootstrap_means(VALUES, 5, generator(3))
    np.testing.assert_allclose(found, oracles.bootstrap_means(VALUES, 5, 3), rtol=1e-12)


@given(columns, st.integers(0, 9))
def test_resampled_means_lie_between_the_extremes(values, seed):
    found = bootstrap_means(values, 4, generator(seed))
    assert (found >= values.min(axis=0) - 1e-9).all()
    assert (found <= values.max(axis=0) + 1e-9).all()


def test_series_share_their_resampled_rows():
    both = np.column_stack([VALUES[:, 0], VALUES[:, 0] + 2])
    found = bootstrap_means(both, 50, generator())
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 2, rtol=1e-12)


def test_same_seed_gives_the_same_resamples():
    one, again, other = (bootstrap_means(VALUES, 20, generator(seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_bootstrap_spread_is_the_standard_error():
    values = generator(5).normal(size=(200, 1))
    means = bootstrap_means(values, 4000, generator())
    assert means.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.05)


@given(columns, st.floats(0.05, 0.99))
def test_interval_is_that_of_the_sorted_list(means, confidence):
    found = percentile_intervals(means, confidence)
    for series, (low, high) in enumerate(found):
        values = means[:, series].tolist()
        assert low == pytest.approx(oracles.percentile(values, (1 - confidence) / 2), abs=1e-9)
        assert high == pytest.approx(oracles.percentile(values, (1 + confidence) / 2), abs=1e-9)


@given(columns)
def test_more_confidence_gives_a_wider_interval(means):
    narrow, wide = (percentile_intervals(means, confidence) for confidence in (0.5, 0.9))
    assert (wide[:, 0] <= narrow[:, 0]).all()
    assert (wide[:, 1] >= narrow[:, 1]).all()


def test_interval_of_one_row_is_that_row():
    means = bootstrap_means(np.array([[2.5]]), 10, generator())
    assert percentile_intervals(means, 0.95).tolist() == [[2.5, 2.5]]


@pytest.mark.parametrize(("base", "chosen"), [(1, 1), (1, 3), (2, 4)])
def test_resampled_arms_are_those_of_the_slow_loop(base, chosen):
    arms = arms_of_seeds(base, chosen)
    found, expected = resample_arms(arms, 6, generator(3)), oracles.resampled_arms(arms, 6, 3)
    assert list(found) == list(expected)
    for name in arms:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_arms_of_one_seed_are_resampled_by_rows_alone():
    arms = some_arms()
    found = resample_arms(arms, 50, generator(4))
    for name, runs in arms.items():
        np.testing.assert_allclose(found[name], bootstrap_means(runs[0], 50, generator(4)), rtol=1e-12)


def test_identical_seeds_count_as_one():
    once = some_arms()
    thrice = {name: np.repeat(runs, 3, axis=0) for name, runs in once.items()}
    one, other = summary(once), summary(thrice)
    for part in ("arms", "differences"):
        for name, numbers in one[part].items():
            assert other[part][name] == pytest.approx(numbers, abs=1e-12)


def test_drawn_seeds_lie_between_the_extremes():
    means = generator(6).normal(size=(40, 3, 2))
    found = resample_arm(means, generator())
    assert (found >= means.min(axis=1) - 1e-12).all()
    assert (found <= means.max(axis=1) + 1e-12).all()


def test_seeds_are_drawn_by_the_generator_alone():
    means = generator(6).normal(size=(40, 3, 2))
    one, again, other = (resample_arm(means, generator(seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_seeds_that_disagree_widen_the_intervals_of_their_arm_and_its_differences():
    wide, narrow = arms_of_seeds(), arms_of_seeds()
    narrow["chosen"] = narrow["chosen"].mean(axis=0, keepdims=True)
    for part, name, low in (("arms", "chosen", "loss_low"), ("differences", "chosen-base", "low")):
        one, other = summary(wide)[part][name], summary(narrow)[part][name]
        assert one["loss"] == pytest.approx(other["loss"])
        assert one["loss"] - one[low] > 2 * (other["loss"] - other[low])


def test_spread_of_drawn_seeds_is_the_standard_error_over_seeds():
    means = np.broadcast_to(generator(5).normal(size=(1, 30, 1)), (4000, 30, 1))
    found = resample_arm(means, generator())
    assert found.std() == pytest.approx(means[0].std() / np.sqrt(30), rel=0.05)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 9), st.integers(1, 200))
def test_batches_hold_every_text_once_within_their_tokens(tokens, new_tokens, most_tokens):
    batches = plan_batches(tokens, new_tokens, most_tokens)
    assert batches == oracles.batches(tokens, new_tokens, most_tokens)
    assert sorted(place for batch in batches for place in batch) == list(range(len(tokens)))
    for batch in batches:
        held = len(batch) * (max(tokens[place] for place in batch) + new_tokens)
        assert held <= most_tokens or len(batch) == 1


def test_batches_are_filled_from_short_to_long():
    assert plan_batches([5, 1, 5, 1], 1, 12) == [[1, 3], [0, 2]]
    assert plan_batches([], 1, 12) == []


def test_cosine_is_one_for_equal_texts_and_zero_for_silence():
    vectors = torch.nn.functional.normalize(torch.arange(1.0, 10.0).view(3, 3), dim=1)
    found = cosines(vectors, vectors, ["words", "", " \n"])
    assert found.tolist() == pytest.approx([1, 0, 0])
    assert found.max() <= 1


def test_cosine_is_symmetric():
    torch.manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(5, 4), dim=1) for _ in range(2))
    texts = ["x"] * 5
    assert (cosines(one, other, texts) == cosines(other, one, texts)).all()


def test_perplexity_weighs_rows_by_their_tokens():
    loss = np.array([0.5, 1.5])
    assert perplexity(loss, np.array([3.0, 1.0])) == pytest.approx(np.exp(3 / 4))
    assert perplexity(loss, np.ones(2)) == pytest.approx(np.exp(loss.mean()))


def test_summary_holds_each_measure_with_its_interval():
    arms = some_arms()
    found = summary(arms)["arms"]["chosen"]
    assert [found[name] for name in ("loss", "rouge_l", "similarity")] == pytest.approx(
        arms["chosen"].mean((0, 1)).tolist()
    )
    assert found["loss_low"] < found["loss"] < found["loss_high"]
    assert found["rouge_l_low"] < found["rouge_l"] < found["rouge_l_high"]


def test_difference_moves_with_the_arm_and_keeps_its_width():
    before, after = (summary(some_arms(shift))["differences"]["chosen-base"] for shift in (0.0, 0.25))
    for key in ("loss", "low", "high"):
        assert after[key] - before[key] == pytest.approx(0.25)


def test_difference_of_an_arm_with_itself_is_exactly_nothing():
    arms = some_arms()
    arms["random"] = arms["chosen"]
    assert summary(arms)["differences"]["chosen-random"] == {"loss": 0, "low": 0, "high": 0}


def test_paired_interval_is_narrower_than_unpaired_ones_for_arms_that_agree_on_hard_rows():
    arms = some_arms()
    arms["random"] = arms["chosen"] + generator(1).normal(scale=0.01, size=(1, 20, 3))
    found = summary(arms)
    difference, arm = found["differences"]["chosen-random"], found["arms"]["chosen"]
    assert difference["high"] - difference["low"] < 0.1 * (arm["loss_high"] - arm["loss_low"])


def test_summary_names_the_pairs_that_are_there():
    arms = some_arms() | {"full": some_arms()["base"]}
    assert list(summary(arms)["differences"]) == ["chosen-full", "chosen-base", "full-base"]


def gains(arms, seed: int = 0, start: str = "base"):
    return measure_gains(arms, start, resamples=40, confidence=0.9, generator=generator(seed))


@pytest.mark.parametrize("start", ["previous", "base"])
def test_gains_are_those_of_the_slow_loop(start):
    arms = arms_of_seeds() | ({"previous": generator(8).uniform(size=(1, 7, 3))} if start == "previous" else {})
    drawn = oracles.resampled_arms(arms, 40, 5)
    changes = [before[0] - after[0] for before, after in zip(drawn[start], drawn["chosen"], strict=True)]
    found = gains(arms, 5, start)
    assert list(found) == ["chosen"]
    assert found["chosen"]["loss"] == pytest.approx(arms[start][0, :, 0].mean() - arms["chosen"][:, :, 0].mean())
    assert found["chosen"]["low"] == pytest.approx(oracles.percentile(changes, 0.05))
    assert found["chosen"]["high"] == pytest.approx(oracles.percentile(changes, 0.95))


def test_gain_is_the_difference_of_the_start_and_the_arm():
    arms = arms_of_seeds()
    difference = summarise(arms, np.ones(7), resamples=40, confidence=0.9, generator=generator(3))["differences"]
    assert gains(arms, 3)["chosen"] == pytest.approx(
        {"loss": -difference["chosen-base"]["loss"]}
        | {"low": -difference["chosen-base"]["high"], "high": -difference["chosen-base"]["low"]}
    )


def test_an_arm_that_has_not_moved_gains_exactly_nothing():
    arms = some_arms()
    assert gains(arms | {"previous": arms["chosen"]}, start="previous")["chosen"] == {"loss": 0, "low": 0, "high": 0}


def test_the_model_before_may_be_measured_against_the_base_like_any_arm():
    arms = arms_of_seeds() | {"previous": generator(8).uniform(size=(1, 7, 3))}
    found = gains(arms)
    assert list(found) == ["chosen", "previous"]
    assert found["previous"]["loss"] == pytest.approx((arms["base"] - arms["previous"])[0, :, 0].mean())


def judged_arms() -> dict[str, np.ndarray]:
    """Arms with a fourth measure, which is 0 or 1."""
    arms = arms_of_seeds() | {"random": generator(9).uniform(size=(2, 7, 3))}
    right = {
        name: generator(place).integers(2, size=(*runs.shape[:2], 1)) for place, (name, runs) in enumerate(arms.items())
    }
    return {name: np.concatenate([runs, right[name]], axis=2) for name, runs in arms.items()}


def judged_summary(arms, seed: int = 0):
    measures = (*MEASURES, CORRECT)
    return summarise(arms, np.ones(7), measures, resamples=40, confidence=0.9, generator=generator(seed))


def test_right_answers_are_a_share_with_the_interval_of_the_slow_loop():
    arms = judged_arms()
    found, drawn = judged_summary(arms, 5), oracles.resampled_arms(arms, 40, 5)
    for name, runs in arms.items():
        shares = [one[3] for one in drawn[name]]
        assert found["arms"][name]["correct"] == pytest.approx(runs[:, :, 3].mean())
        assert found["arms"][name]["correct_low"] == pytest.approx(oracles.percentile(shares, 0.05))
        assert found["arms"][name]["correct_high"] == pytest.approx(oracles.percentile(shares, 0.95))
    changes = [one[3] - other[3] for one, other in zip(drawn["chosen"], drawn["random"], strict=True)]
    difference = found["differences"]["chosen-random"]
    assert difference["correct"] == pytest.approx(arms["chosen"][:, :, 3].mean() - arms["random"][:, :, 3].mean())
    assert difference["correct_low"] == pytest.approx(oracles.percentile(changes, 0.05))
    assert difference["correct_high"] == pytest.approx(oracles.percentile(changes, 0.95))


def test_another_measure_leaves_the_figures_of_the_others_alone():
    arms = judged_arms()
    plain = {name: runs[:, :, :3] for name, runs in arms.items()}
    more = judged_summary(arms)
    less = summarise(plain, np.ones(7), resamples=40, confidence=0.9, generator=generator())
    for part, found in less.items():
        for name, numbers in found.items():
            assert numbers == {key: value for key, value in more[part][name].items() if "correct" not in key}


def test_gains_are_fixed_by_their_seed():
    assert gains(some_arms(), 4) == gains(some_arms(), 4) != gains(some_arms(), 5)


def test_summary_is_fixed_by_its_seed():
    assert summary(some_arms(), seed=4) == summary(some_arms(), seed=4)
    assert summary(some_arms(), seed=4) != summary(some_arms(), seed=5)
