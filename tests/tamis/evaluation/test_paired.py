"""Differences that are paired by seed and row: their means, intervals, and what could have been seen."""

import numpy as np
import oracles
import pytest

from tamis.evaluation.paired import compare_paired, mean_jaccard


def make(seed=0, seeds=5, rows=40, shift=-0.3, spread=0.4):
    generator = np.random.default_rng(seed)
    return shift + generator.normal(0, 0.1, (seeds, 1)) + generator.normal(0, spread, (seeds, rows))


def compare(differences, seed=0, resamples=400):
    return compare_paired(differences, resamples=resamples, confidence=0.95, generator=np.random.default_rng(seed))


@pytest.mark.parametrize("seeds", [1, 5])
def test_mean_interval_and_p_are_those_of_the_slow_loop(seeds):
    table = make(seeds=seeds)
    found, means = compare({"a": table})["a"], oracles.crossed_means(table, 400, 0)
    assert found.mean == pytest.approx(sum(map(sum, table.tolist())) / table.size)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist())
    assert found.p == oracles.bootstrap_p(means)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * np.std(means), rel=1e-5)


def test_a_difference_turned_round_has_the_other_sign_and_what_chance_shares_with_it_is_nothing():
    table = make()
    there, back = (compare({"a": each})["a"] for each in (table, -table))
    assert [back.mean, back.low, back.high] == pytest.approx([-there.mean, -there.high, -there.low])
    assert back.p == there.p
    same = compare({"a": table - table})["a"]
    assert (same.mean, same.half_width, same.p, same.detectable) == (0, 0, 1, 0)


def test_more_seeds_and_rows_show_smaller_differences():
    few, many = (compare({"a": make(seeds=seeds, rows=rows)})["a"] for seeds, rows in ((3, 20), (12, 200)))
    assert many.detectable < few.detectable
    assert many.half_width < few.half_width


def test_the_same_seed_gives_the_same_bits():
    tables = {"a": make(), "b": make(seed=1)}
    assert compare(tables, seed=3) == compare(tables, seed=3) != compare(tables, seed=4)
    assert compare({}) == {}


def test_likeness_of_choices_is_that_of_every_pair():
    choices = [{"a", "b", "c"}, {"a", "b", "d"}, {"e"}]
    assert mean_jaccard(choices) == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert mean_jaccard([{"a"}, {"a"}]) == 1
    assert mean_jaccard([{"a"}]) is None
