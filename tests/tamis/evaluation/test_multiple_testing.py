"""p-values of many comparisons: each as the slow loop says, and none more certain than it was alone."""

import numpy as np
import oracles
import pytest

from tamis.evaluation.multiple_testing import bootstrap_p, holm


def draw_p(seed=0, count=12):
    return (np.random.default_rng(seed).random(count) ** 3).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_are_those_of_stepping_down_one_at_a_time(seed):
    p = draw_p(seed)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert [one <= level for one in holm(p)] == oracles.holm_rejects(p, level)


def test_adjusting_keeps_the_order_and_makes_nothing_more_certain():
    p = draw_p()
    found = holm(p)
    assert all(one <= other <= 1 for one, other in zip(p, found, strict=True))
    assert [found[place] for place in np.argsort(p)] == sorted(found)
    assert holm(list(reversed(p))) == list(reversed(found))


def test_one_comparison_is_left_as_it_is_and_none_gives_none():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"^2 of 3 p-values are not in \[0, 1\], first \[1.5, nan\]$"):
        holm([0.5, 1.5, float("nan")])


def test_a_bootstrap_p_value_is_that_of_the_slow_loop_and_the_same_of_the_other_sign():
    means = np.random.default_rng(0).normal(0.3, 1, 999)
    assert bootstrap_p(means) == oracles.bootstrap_p(means.tolist())
    assert bootstrap_p(-means) == bootstrap_p(means)


def test_where_no_resample_is_beyond_zero_p_is_the_least_that_can_be_said():
    assert bootstrap_p(np.ones(999)) == 2 / 1000
    assert bootstrap_p(np.zeros(9)) == 1
