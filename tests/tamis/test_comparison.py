"""A comparison says how far each selector is from random rows."""

import numpy as np
import pytest

from tamis.comparison import compare

BUDGETS = ("0.1", "0.3")


def make_losses(seed=0, seeds=3, rows=40):
    generator = np.random.default_rng(seed)
    rows_alone = generator.normal(3, 1, rows)
    shift = {"random": 0.0, "good": -0.5, "equal": 0.0}
    return {
        (name, budget): rows_alone + effect + generator.normal(0, 0.05, (seeds, rows))
        for name, effect in shift.items()
        for budget in BUDGETS
    }


def standings(losses, seed=0):
    return compare(losses, resamples=400, confidence=0.95, generator=np.random.default_rng(seed))


def test_means_and_differences_are_those_of_the_slow_loop():
    losses = make_losses()
    for (name, budget), found in standings(losses).items():
        runs, beside = losses[name, budget], losses["random", budget]
        mean = sum(sum(run) / len(run) for run in runs) / len(runs)
        other = sum(sum(run) / len(run) for run in beside) / len(beside)
        assert found.loss == pytest.approx(mean)
        assert found.minus_random == pytest.approx(mean - other)
        assert found.low < found.loss < found.high
        assert found.minus_random_low <= found.minus_random <= found.minus_random_high


def test_a_paired_difference_is_known_better_than_the_losses_themselves():
    found = standings(make_losses())["good", "0.1"]
    assert found.minus_random_high < -0.4
    assert found.high - found.low > 5 * (found.minus_random_high - found.minus_random_low)


def test_random_rows_differ_from_themselves_by_nothing():
    found = standings(make_losses())["random", "0.3"]
    assert (found.minus_random, found.minus_random_low, found.minus_random_high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_bits():
    assert standings(make_losses(), seed=4) == standings(make_losses(), seed=4)
    assert standings(make_losses(), seed=4) != standings(make_losses(), seed=5)


def test_a_budget_without_random_rows_is_refused():
    losses = {cell: runs for cell, runs in make_losses().items() if cell != ("random", "0.3")}
    with pytest.raises(ValueError, match=r"1 budgets have no random rows beside them, first \['0.3'\]"):
        standings(losses)
