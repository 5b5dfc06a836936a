"""The diagonal under a ceiling, and the quality of demos, against plain loops over scored pairs."""

import math
from statistics import fmean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.submodular.kernels import SparseKernel, gather
from tamis.utility.quality import (
    cap_diagonal,
    fill_by_topic,
    find_ceiling,
    measure_help,
    measure_nearby_help,
    weigh_demos,
)

WORLDS = st.tuples(st.integers(2, 6), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([1.0, 0.6, 0.2]))


def make(targets: int, demos: int, seed: int, known: float):
    """A utility of which some pairs are known, as a kernel and by pair, and the place of each demo among targets."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(targets, demos)).astype(np.float32)
    places = generator.permutation(np.arange(targets))[:demos]
    places = np.concatenate([places, np.full(demos - len(places), -1)])
    there = generator.random((targets, demos)) < known
    there[0, 0] = True
    rows, columns = np.nonzero(there)
    pairs = {(int(i), int(j)): float(values[i, j]) for i, j in zip(rows, columns, strict=True)}
    return gather(rows, columns, values[rows, columns], (targets, demos)), pairs, places


def as_pairs(kernel) -> dict[tuple[int, int], float]:
    """The entries of a kernel by target and demo."""
    if not isinstance(kernel, SparseKernel):
        return {place: float(value) for place, value in np.ndenumerate(kernel)}
    targets = np.repeat(np.arange(kernel.shape[0]), np.diff(kernel.indptr))
    return dict(zip(zip(targets.tolist(), kernel.indices.tolist(), strict=True), kernel.values.tolist(), strict=True))


def mean(values) -> float:
    """NaN for no value."""
    values = list(values)
    return fmean(values) if values else float("nan")


@given(WORLDS)
def test_a_row_covers_itself_by_no_more_than_the_best_other_demo(world):
    kernel, pairs, places = make(*world)
    ceiling = find_ceiling(kernel, places)
    for target in range(world[0]):
        others = [value for (i, j), value in pairs.items() if i == target != places[j]]
        assert ceiling[target] == max([0.0, *others])
    capped = as_pairs(cap_diagonal(kernel, places, ceiling))
    assert capped == {
        (i, j): min(value, float(ceiling[i])) if places[j] == i else value for (i, j), value in pairs.items()
    }


@given(WORLDS)
def test_help_is_the_mean_over_the_other_rows_that_were_scored(world):
    kernel, pairs, places = make(*world)
    expected = [
        mean(value for (i, j), value in pairs.items() if j == demo and places[j] != i) for demo in range(world[1])
    ]
    np.testing.assert_allclose(measure_help(kernel, places), expected, rtol=1e-6)


@given(WORLDS, st.sampled_from([0, 0.5, 3]))
def test_a_prior_adds_so_many_pairs_of_the_median_to_what_each_demo_says(world, prior):
    kernel, pairs, places = make(*world)
    known = [[value for (i, j), value in pairs.items() if j == demo and places[j] != i] for demo in range(world[1])]
    middle = median([fmean(own) for own in known if own] or [0.0])
    expected = [(sum(own) + prior * middle) / (len(own) + prior) if own else math.nan for own in known]
    np.testing.assert_allclose(measure_help(kernel, places, prior), expected, rtol=1e-5, atol=1e-6)


def test_what_one_pair_says_is_drawn_further_than_what_many_say():
    usual, often, once = [(i, 0, 1.0) for i in range(9)], [(i, 1, 5.0) for i in range(9)], [(0, 2, 5.0)]
    rows, columns, values = zip(*usual, *often, *once, (0, 3, 1.0), (0, 4, 1.0), strict=True)
    scored = gather(np.array(rows), np.array(columns), np.float32(values), (9, 5))
    worth = measure_help(scored, np.full(5, -1), prior=2)
    assert worth[0] == 1.0 < worth[2] < worth[1] < 5.0


@given(WORLDS)
def test_nearby_help_is_the_mean_of_both_directions_over_the_demos_that_a_row_was_shown(world):
    kernel, pairs, places = make(world[0], min(world[0], world[1]), *world[2:])
    place_of = {int(place): demo for demo, place in enumerate(places)}
    expected = []
    for demo, row in enumerate(places):
        near = [i for (target, i) in pairs if target == row and i != demo]
        there = [(row, i) for i in near] + [(places[i], demo) for i in near]
        expected.append(mean(pairs[pair] for pair in there if pair in pairs))
    assert len(place_of) == len(places)
    np.testing.assert_allclose(measure_nearby_help(kernel, places), expected, rtol=1e-6)


@given(WORLDS)
def test_similarities_are_multiplied_by_what_a_demo_is_worth(world):
    kernel, pairs, places = make(*world)
    worth = np.nan_to_num(measure_help(kernel, places))
    weighed = as_pairs(weigh_demos(kernel, worth))
    assert weighed == pytest.approx({(i, j): value * max(float(worth[j]), 0) for (i, j), value in pairs.items()})


def test_a_demo_that_no_pair_tells_of_has_the_median_of_its_topic_else_of_all():
    nan = np.nan
    quality, unknown = fill_by_topic(np.array([1.0, nan, 4.0, 9.0, nan]), ["a", "a", "a", "b", "c"])
    assert quality.tolist() == [1.0, 2.5, 4.0, 9.0, 4.0]
    assert unknown.tolist() == [False, True, False, False, True]
    assert fill_by_topic(np.array([nan, nan]))[0].tolist() == [0.0, 0.0]


def test_a_row_that_is_copied_well_and_helps_nobody_is_no_longer_the_first_choice():
    utility = np.float32([[0.9, 0.0, 0.0], [-0.1, 0.3, 0.2], [-0.1, 0.2, 0.3]])
    places = np.arange(3)
    assert utility.clip(0).sum(axis=0).argmax() == 0
    capped = cap_diagonal(utility.clip(0), places, find_ceiling(utility.clip(0), places))
    assert capped.sum(axis=0).argmax() > 0
    assert measure_help(utility, places).argmin() == 0
