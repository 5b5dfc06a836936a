import numpy as np
import pytest

from tamis.language.embedding import nearest
from tamis.submodular import cosines
from tamis.submodular.cosines import compare, compare_best, compare_nearest
from tamis.submodular.kernels import SparseKernel


def draw_vectors(rows: int, width: int = 4, seed: int = 0) -> np.ndarray:
    """Unit vectors in all directions."""
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def slow(targets: np.ndarray, demos: np.ndarray) -> list[list[float]]:
    """Each cosine by itself, 0 where it is negative."""
    return [[max(sum(float(a) * float(b) for a, b in zip(i, j, strict=True)), 0.0) for j in demos] for i in targets]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that a few rows do not fill evenly."""
    monkeypatch.setattr(cosines, "ROWS", 4)


def test_a_similarity_is_the_cosine_clipped_at_zero():
    targets, demos = draw_vectors(7), draw_vectors(9, seed=1)
    assert compare(targets, demos) == pytest.approx(np.array(slow(targets, demos)), abs=1e-7)
    assert compare(targets, demos).min() == 0


def test_similarity_is_symmetric_to_the_bit():
    vectors = draw_vectors(11)
    assert compare(vectors, vectors).tolist() == compare(vectors, vectors).T.tolist()


def test_rows_with_equal_vectors_are_equally_similar_to_all():
    vectors = draw_vectors(40, width=384)[[*range(40), 3, 3]]
    kernel = compare(vectors, vectors)
    assert kernel[:, 3].tobytes() == kernel[:, 40].tobytes() == kernel[:, 41].tobytes()


def test_the_sparse_kernel_holds_each_row_and_its_nearest_as_the_dense_one_does():
    vectors = draw_vectors(13)
    dense, sparse = compare(vectors, vectors), compare_nearest(vectors, nearest(vectors, 5))
    assert isinstance(sparse, SparseKernel)
    for row in range(13):
        some = slice(sparse.indptr[row], sparse.indptr[row + 1])
        others = sorted((j for j in range(13) if j != row), key=lambda j: -float(vectors[row] @ vectors[j]))[:5]
        assert sorted(sparse.indices[some].tolist()) == sorted([row, *others])
        assert sparse.values[some].tolist() == dense[row, sparse.indices[some]].tolist()


def test_the_nearest_of_a_few_rows_are_all_of_them():
    vectors = draw_vectors(6)
    assert compare_nearest(vectors, nearest(vectors, 64)).tolist() == compare(vectors, vectors).tolist()


def test_the_best_is_the_largest_of_the_kernels_row():
    targets, demos = draw_vectors(7), draw_vectors(9, seed=1)
    assert compare_best(targets, demos).tolist() == compare(targets, demos).max(axis=1).tolist()


def test_without_a_demo_the_best_is_zero():
    assert compare_best(draw_vectors(3), draw_vectors(3)[:0]).tolist() == [0, 0, 0]
