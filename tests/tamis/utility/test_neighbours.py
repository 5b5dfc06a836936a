"""Nearest neighbours above the limit: measured, ordered exactly, the same bits in every run; below it, exact."""

import subprocess
import sys

import faiss
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.language.embedding import nearest, nearest_among
from tamis.utility import neighbours
from tamis.utility.neighbours import find_neighbours, find_neighbours_among


def draw_clusters(rows: int, width: int = 32, each: int = 100, seed: int = 0) -> np.ndarray:
    """Unit vectors around random centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(-(-rows // each), width))
    vectors = centres[generator.permutation(np.arange(rows) % len(centres))]
    vectors = vectors + generator.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def limited(monkeypatch):
    """Every search is one by lists."""
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 0)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return draw_clusters(10_000)


@pytest.fixture(scope="module")
def found(large) -> neighbours.Neighbours:
    """The nearest ten of each, by lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "EXACT_PAIRS", 0)
        return find_neighbours(large, 10)


def share_found(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbours that are found, a row at a time."""
    shares = [len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def test_above_the_limit_the_recall_is_reached_and_is_what_it_says(large, found):
    assert 0.98 <= found.recall < 1
    true = share_found(found.indices.tolist(), nearest(large, 10).tolist())
    assert true == pytest.approx(found.recall, abs=0.01)


def test_among_others_the_recall_is_reached_too(large, limited):
    targets, demos = large[:3000], large[1000:]
    found = find_neighbours_among(targets, demos, 10)
    assert found.recall >= 0.98
    assert share_found(found.indices.tolist(), nearest_among(targets, demos, 10).tolist()) >= 0.97
    assert found.indices[1000:, 0].tolist() == list(range(2000))  # each its own nearest


def test_no_row_is_its_own_neighbour_and_none_comes_twice(large, found):
    assert not (found.indices == np.arange(len(large))[:, None]).any()
    assert (np.diff(np.sort(found.indices, axis=1), axis=1) > 0).all()
    assert found.indices.min() >= 0


def test_neighbours_stand_in_the_order_of_their_exact_similarity_ties_by_index(limited):
    vectors = np.round(draw_clusters(4000, width=8) * 64) / 64  # whose products are exact
    vectors[2000:] = vectors[:2000]
    found = find_neighbours(vectors, 8).indices
    similar = (vectors[:, None].astype(np.float64) * vectors[found]).sum(axis=2).astype(np.float32)
    steps, later = np.diff(similar, axis=1), np.diff(found, axis=1) > 0
    assert (steps == 0).sum() > 4000
    assert ((steps < 0) | later).all()


def test_of_many_equal_vectors_a_rows_neighbours_are_some(limited):
    vectors = np.repeat(draw_clusters(40, each=1), 60, axis=0)
    found = find_neighbours(vectors, 3)
    assert (found.indices // 60 == np.arange(2400)[:, None] // 60).all()
    assert found.recall == 1


def test_the_same_vectors_give_the_same_bits(large, limited, found):
    again = find_neighbours(large, 10)
    assert again.indices.tobytes() == found.indices.tobytes()
    assert again.recall == found.recall


def test_how_many_threads_search_plays_no_part(large, limited, found, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 1500)
    before = torch.get_num_threads()
    assert before == 1
    try:
        torch.set_num_threads(3)
        others = find_neighbours(large, 10)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert others.indices.tobytes() == found.indices.tobytes()


def test_where_lists_do_not_pay_every_pair_is_compared(limited):
    vectors = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = find_neighbours(vectors, 10)
    assert found.recall == 1
    assert np.array_equal(found.indices, nearest(vectors, 10))


def test_rows_whose_lists_hold_too_few_are_compared_with_all(large, monkeypatch):
    few = np.array([[1, -1], [0, 2]])
    found = neighbours._fill(few, large[:50], large[:50], own=True)
    assert found.tolist() == [nearest(large[:50], 2)[0].tolist(), [0, 2]]


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(1, 14), st.integers(0, 99))
def test_up_to_the_limit_neighbours_are_what_sorting_all_rows_gives(rows, count, seed):
    vectors = np.random.default_rng(seed).integers(-2, 3, (rows, 3)).astype(np.float32)
    found = find_neighbours(vectors, count)
    assert found.indices.tolist() == oracles.nearest(vectors, count)
    assert found.recall == 1


def test_the_number_of_threads_is_put_back(large, limited):
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    find_neighbours(large[:4000], 5)
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_torch_and_faiss_live_in_one_process(order):
    code = (
        f"import {order}; import numpy as np; x = np.random.default_rng(0).normal(size=(3000, 64)).astype('f');"
        "t = torch.from_numpy(x); index = faiss.IndexFlatIP(64); index.add(x);"
        "assert all(((t @ t.T).argmax(1).numpy() == index.search(x, 1)[1][:, 0]).mean() > 0.9 for _ in range(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
