"""Which rows the help of a row is measured on."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.toy_selection import draw_vectors

from tamis.scores.baselines import cluster
from tamis.utility.probes import pairs_of_probes, pick_probes


def pick_slowly(vectors, difficulty, clusters, count, seed) -> list[int]:
    """Of every cluster its rows by difficulty; a row of each in turn, the hardest of a round first."""
    labels = cluster(vectors, clusters, seed)[0].tolist()
    queues = [
        sorted((row for row in range(len(vectors)) if labels[row] == label), key=lambda row: (-difficulty[row], row))
        for label in sorted(set(labels))
    ]
    picked: list[int] = []
    while any(queues):
        heads = [queue.pop(0) for queue in queues if queue]
        picked += sorted(heads, key=lambda row: (-difficulty[row], row))
    return picked[:count]


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 20), st.integers(0, 50))
@settings(deadline=None)
def test_probes_are_those_of_the_slow_loop(rows, clusters, count, seed):
    vectors = draw_vectors(rows, 4, seed)
    difficulty = np.random.default_rng(seed).integers(0, 4, rows) / 4  # with ties
    assert pick_probes(vectors, difficulty, clusters, count, 3).tolist() == pick_slowly(
        vectors, difficulty, clusters, count, 3
    )


def test_the_first_probes_are_the_hardest_of_every_cluster():
    kinds = np.repeat(np.eye(3, dtype=np.float32), [6, 3, 1], axis=0)
    difficulty = np.arange(10.0)
    assert pick_probes(kinds, difficulty, 3, 3, 0).tolist() == [9, 8, 5]
    assert pick_probes(kinds, difficulty, 3, 6, 0).tolist() == [9, 8, 5, 7, 4, 6]


def test_more_probes_go_on_where_fewer_end():
    vectors, difficulty = draw_vectors(20), np.random.default_rng(1).random(20)
    few, many = (pick_probes(vectors, difficulty, 5, count, 0).tolist() for count in (5, 12))
    assert many[:5] == few
    assert len(set(many)) == 12


def pair_slowly(ground, vectors, difficulty, nearest, clusters, probes, seed) -> list[list[int]]:
    near = oracles.nearest(vectors, nearest)
    pairs = []
    for demo, places in enumerate(near):
        picked = pick_slowly(vectors[places], difficulty[places], clusters, probes, seed)
        pairs += [[int(ground[places[one]]), int(ground[demo])] for one in picked]
    return sorted(pairs)


@pytest.mark.parametrize(("nearest", "probes"), [(6, 4), (3, 9), (50, 5)])
def test_pairs_are_each_row_with_its_probes_as_the_slow_loop_finds_them(nearest, probes):
    ground, vectors = np.arange(100, 112), draw_vectors(12)
    difficulty = np.random.default_rng(2).random(12)
    how = {"nearest": nearest, "clusters": 3, "probes": probes, "seed": 1}
    pairs, recall = pairs_of_probes(ground, vectors, difficulty, **how)
    assert pairs.tolist() == pair_slowly(ground, vectors, difficulty, **how)
    assert recall == 1
    assert np.bincount(pairs[:, 1] - 100).tolist() == [min(nearest, probes, 11)] * 12
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_pairs_are_the_same_for_the_same_seed():
    vectors, difficulty = draw_vectors(40), np.random.default_rng(0).random(40)
    how = {"nearest": 16, "clusters": 5, "probes": 4}
    one, again = (pairs_of_probes(np.arange(40), vectors, difficulty, **how, seed=0)[0] for _ in range(2))
    assert np.array_equal(one, again)


def test_one_row_alone_has_no_probes():
    pairs, _ = pairs_of_probes(np.arange(1), draw_vectors(1), np.ones(1), nearest=2, clusters=1, probes=1, seed=0)
    assert pairs.shape == (0, 2)
