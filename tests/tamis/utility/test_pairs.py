"""Which pairs are scored, and which demos stand for all."""

import math
from itertools import pairwise, product

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.utility.pairs import (
    pairs_of_all,
    pairs_of_help,
    pairs_of_landmarks,
    pairs_of_neighbours,
    plan_rounds,
    representatives,
    top_demos,
)

places = st.sets(st.integers(0, 11)).map(sorted)


def sets(ground, task, learnt) -> dict:
    named = {"ground": ground, "task": task, "learnt": learnt}
    return {name: np.array(list(some), np.int64) for name, some in named.items()}


def blocks(ground, task, learnt) -> list:
    """The targets and the demos of each block, that of the pool with itself first."""
    return [(ground, ground), (ground, learnt), (ground, task), (task, ground)]


def halves(rows: int, seed: int) -> np.ndarray:
    """Vectors of halves, whose products are exact in any order."""
    return np.random.default_rng(seed).choice(np.float32([-1, -0.5, 0, 0.5, 1]), (rows, 3))


@given(places, places, places)
def test_all_pairs_are_those_of_four_blocks_each_once(ground, task, learnt):
    found = pairs_of_all(sets(ground, task, learnt))
    slow = blocks(ground, task, learnt)
    assert found.tolist() == sorted(map(list, {pair for ones, others in slow for pair in product(ones, others)}))


@given(places, places, places, st.integers(1, 5), st.integers(0, 9))
def test_neighbour_pairs_are_the_nearest_demos_of_every_block_and_each_target_itself(ground, task, learnt, count, seed):
    vectors = halves(12, seed)
    near = {(place, place) for place in ground}
    for number, (ones, others) in enumerate(blocks(ground, task, learnt)):
        for target in ones:
            left = [demo for demo in others if number > 0 or demo != target]
            left.sort(key=lambda demo: (-float(vectors[target] @ vectors[demo]), demo))
            near |= {(target, demo) for demo in left[:count]}
    found, recall = pairs_of_neighbours(sets(ground, task, learnt), vectors, count)
    assert found.tolist() == sorted(map(list, near))
    assert recall == 1


@given(places, places, places, st.integers(1, 5), st.integers(0, 9))
def test_for_help_alone_each_demo_has_the_nearest_rows_of_the_task_or_of_the_others(ground, task, learnt, count, seed):
    vectors, near = halves(12, seed), []
    for demo in ground:
        left = task or [target for target in ground if target != demo]
        left = sorted(left, key=lambda target: (-float(vectors[demo] @ vectors[target]), target))
        near += [[target, demo] for target in left[:count]]
    found, recall = pairs_of_neighbours(sets(ground, task, learnt), vectors, count, "help")
    assert found.tolist() == sorted(near)
    assert recall == 1


@settings(deadline=None)  # numba compiles at the first call
@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_rows_are_spread_by_plain_greedy_on_facility_location_of_cosines(rows, count, seed):
    vectors = halves(rows, seed)
    cosines = np.maximum(vectors.astype(np.float64) @ vectors.T, 0)

    def covered(chosen):
        return cosines[:, chosen].max(axis=1, initial=0.0).sum()

    slow = oracles.greedy_of(covered, rows, count) if count < rows else list(range(rows))
    assert representatives(vectors, count).tolist() == slow


def test_one_row_of_each_cluster_is_spread_first():
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    assert representatives(vectors, 3).tolist() == [0, 3, 5]


@pytest.mark.parametrize("rows", [0, 1])
def test_so_few_rows_stand_for_themselves(rows):
    assert representatives(np.ones((rows, 1), np.float32), 4).tolist() == list(range(rows))


def test_the_same_rows_are_spread_again():
    assert np.array_equal(representatives(halves(12, 3), 5), representatives(halves(12, 3), 5))


@given(places, places, places, st.integers(1, 4), st.integers(1, 4))
def test_landmark_pairs_are_those_of_the_blocks_and_each_landmark_with_itself(ground, task, learnt, demos, targets):
    shown = [some[:demos] for some in (ground, task, learnt)]
    answered = [ground[-targets:], task, learnt]
    slow = {(place, place) for place in shown[0]}
    for (ones, _), (_, others) in zip(blocks(*answered), blocks(*shown), strict=True):
        slow |= set(product(ones, others))
    found = pairs_of_landmarks(sets(*shown), sets(*answered))
    assert found.tolist() == sorted(map(list, slow))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 300))
def test_rounds_halve_the_demos_down_to_the_landmarks_on_ever_more_targets(demos, landmarks, targets):
    rounds = plan_rounds(demos, landmarks, targets)
    assert rounds[-1] == (min(demos, landmarks), targets)
    assert all(one[0] > other[0] and one[1] <= other[1] for one, other in pairwise(rounds))
    assert all(tried in (demos, 2 * landmarks, 4 * landmarks) for tried, _ in rounds[:-1])


def test_rounds_score_about_the_same_number_of_pairs():
    rounds = plan_rounds(1000, 50, 700)
    before = [0, *(answered for _, answered in rounds)]
    scored = [demos * (answered - earlier) for (demos, answered), earlier in zip(rounds, before, strict=False)]
    assert scored == [20_000, 20_000, 20_000]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_favourites_have_the_largest_mean_over_the_targets_with_a_score(targets, demos, count, seed):
    generator = np.random.default_rng(seed)
    similar = generator.choice([0.0, 0.25, 0.5, np.nan], (targets, demos))
    means = []
    for column in similar.T:
        known = [float(value) for value in column if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else 0.0)
    slow = sorted(range(demos), key=lambda demo: (-means[demo], demo))[:count]
    assert top_demos(similar, count).tolist() == slow


@given(places.filter(len), places, st.integers(0, 9), st.integers(0, 99))
def test_help_is_scored_on_the_same_drawn_targets_for_every_demo_but_itself(targets, demos, count, seed):
    targets, demos = np.array(targets), np.array(demos, np.int64)
    found = list(map(tuple, pairs_of_help(targets, demos, count, seed).tolist()))
    drawn = {target for target, _ in found}
    assert found == sorted((target, demo) for target in drawn for demo in demos if target != demo)
    assert drawn <= set(targets.tolist())
    assert len(demos) < 2 or len(drawn) == min(count, len(targets))
    assert set(found) <= set(map(tuple, pairs_of_help(targets, demos, count + 1, seed).tolist()))
    assert found == list(map(tuple, pairs_of_help(targets, demos, count, seed).tolist()))


def test_no_target_is_drawn_where_none_is_asked_for():
    assert pairs_of_help(np.arange(3), np.arange(3), 0, 0).shape == (0, 2)
