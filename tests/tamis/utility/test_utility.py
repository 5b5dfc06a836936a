import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.utility.utility import Missed, approximation_error, gain, measure

probabilities = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20)


@given(probabilities)
def test_the_distance_is_the_root_mean_square_of_one_minus_p(drawn):
    found = measure(torch.log(torch.tensor(drawn, dtype=torch.float64)))
    assert found.distance == pytest.approx(oracles.distance(drawn), abs=1e-12)
    assert found.log_likelihood == pytest.approx(sum(map(math.log, drawn)) / len(drawn), abs=1e-9)
    assert found.tokens == len(drawn)


@given(probabilities)
def test_the_distance_lies_between_0_and_1_and_does_not_depend_on_the_order(drawn):
    row = torch.log(torch.tensor(drawn, dtype=torch.float64))
    assert 0 <= measure(row).distance <= 1
    assert measure(row).distance == pytest.approx(measure(row.flip(0)).distance, abs=1e-12)


def test_a_response_known_by_heart_has_distance_0():
    assert measure(torch.zeros(3)).distance == 0


def test_utility_is_positive_where_the_demo_helped():
    assert gain(np.array([0.2]), np.array([0.5]), "probability")[0] == pytest.approx(0.3)
    assert gain(np.array([-1.0]), np.array([-3.0]), "log_likelihood")[0] == pytest.approx(2.0)


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="unknown distance 'cosine'; known: probability, log_likelihood"):
        gain(np.array([0.2]), np.array([0.5]), "cosine")


def test_a_response_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a response without tokens has no distance"):
        measure(torch.zeros(0))


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12))
def test_what_a_kernel_lacks_is_counted_pair_by_pair(pairs):
    found = approximation_error(np.array([value / 4 for value, _ in pairs]), np.array([known for _, known in pairs]))
    similar = [max(value / 4, 0) for value, _ in pairs]
    lost = [0 if known else s for s, (_, known) in zip(similar, pairs, strict=True)]
    assert found.mean_absolute == pytest.approx(sum(lost) / len(pairs))
    assert found.max_absolute == max(lost)
    helpful = [known for value, known in pairs if value > 0]
    assert found.share_of_helpful_missed == pytest.approx(helpful.count(False) / max(1, len(helpful)))
    assert found.mass_missed == pytest.approx(sum(lost) / (sum(similar) or 1))


def test_a_kernel_that_holds_every_pair_misses_nothing():
    found = approximation_error(np.array([0.5, -1.0]), np.array([True, True]))
    assert found == Missed(0.0, 0.0, 0.0, 0.0)


def test_no_pair_tells_no_error():
    with pytest.raises(ValueError, match="no pair was scored exactly, so the error of a kernel is not known"):
        approximation_error(np.zeros(0), np.zeros(0, bool))
