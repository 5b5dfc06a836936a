import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.utility import fits, gain, measure, pairs_of_all, pairs_of_neighbours

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


@given(st.integers(1, 6))
def test_all_pairs_are_each_target_with_each_demo(count):
    assert pairs_of_all(count).tolist() == [[i, j] for i in range(count) for j in range(count)]


def test_neighbour_pairs_hold_each_target_with_itself_once():
    pairs = pairs_of_neighbours(np.array([[2, 1], [0, 2], [1, 0]])).tolist()
    assert pairs == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]


def test_a_pair_fits_up_to_the_last_token():
    assert fits([5], [3], np.array([[0, 0]]), 8).tolist() == [True]
    assert fits([5], [3], np.array([[0, 0]]), 7).tolist() == [False]
