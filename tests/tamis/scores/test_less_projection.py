"""The sparse random projection of gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Philox

from tamis.scores.less import normalise, project

DIMENSIONS = 24


def random_vectors(rows, weights):
    return torch.randn(rows, weights, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_matrix(weights, dimensions, seed):
    """The projection as one dense matrix, entry by entry: weight w takes the w-th four words of a generator."""
    parts = min(4, dimensions)
    words = [int(word) for word in Philox(key=seed).random_raw(4 * weights)]
    matrix = torch.zeros(weights, dimensions, dtype=torch.float64)
    for weight in range(weights):
        for part in range(parts):
            start, stop = part * dimensions // parts, (part + 1) * dimensions // parts
            place, word = start, words[4 * weight + part]
            while place + 1 < stop and (place + 1 - start) / (stop - start) <= (word >> 33) / 2**31:
                place += 1
            matrix[weight, place] = (-1) ** (word & 1) / parts**0.5
    return matrix


@pytest.mark.parametrize("dimensions", [1, 3, 4, 22, DIMENSIONS])
def test_a_projection_is_the_product_with_its_dense_matrix(dimensions):
    vectors = random_vectors(5, 40)
    expected = vectors @ slow_matrix(40, dimensions, seed=2)
    torch.testing.assert_close(project(vectors, dimensions, seed=2), expected)


def test_every_weight_goes_to_one_bucket_in_each_part_of_the_dimensions():
    parts = project(torch.eye(300), DIMENSIONS, seed=2).reshape(300, 4, -1)
    assert torch.equal((parts != 0).sum(2), torch.ones(300, 4, dtype=torch.int64))
    assert set(parts[parts != 0].tolist()) == {-0.5, 0.5}


def test_buckets_and_signs_are_taken_alike_often():
    parts = 2 * project(torch.eye(6000), DIMENSIONS, seed=2).reshape(6000, 4, -1)
    assert float((parts.abs().mean(0) - 1 / 6).abs().max()) < 0.02  # 4 standard deviations
    assert float(parts.mean(0).abs().max()) < 0.02


@settings(deadline=None, max_examples=25)
@given(block=st.integers(1, 70), dimensions=st.integers(1, 600))
def test_a_projection_is_the_same_bits_whatever_the_block(block, dimensions):
    vectors = random_vectors(2, 60)
    assert torch.equal(project(vectors, dimensions, 7, block=block), project(vectors, dimensions, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_has_the_dtype_of_its_vectors(dtype):
    vectors = random_vectors(3, 50).to(dtype)
    found = project(vectors, DIMENSIONS, seed=2)
    assert torch.equal(found, project(vectors.double(), DIMENSIONS, seed=2).to(dtype))


def test_a_projection_is_the_same_bits_by_its_seed():
    vectors = random_vectors(3, 700)
    assert torch.equal(project(vectors, DIMENSIONS, seed=5), project(vectors, DIMENSIONS, seed=5))
    assert not torch.equal(project(vectors, DIMENSIONS, seed=5), project(vectors, DIMENSIONS, seed=6))


def test_a_projection_keeps_inner_products_about():
    vectors = normalise(random_vectors(12, 3000))
    found = project(vectors, 1024, seed=0)
    assert float((found @ found.T - vectors @ vectors.T).abs().max()) < 5 / 1024**0.5


def test_over_seeds_inner_products_are_kept_with_the_variance_that_is_stated():
    x, y = normalise(random_vectors(2, 12))
    product = float(x @ y)
    expected = (1 + product**2 - 2 * float((x**2 * y**2).sum())) / 16
    pairs = (project(torch.stack([x, y]), 16, seed) for seed in range(2000))
    found = torch.stack([one @ other for one, other in pairs])
    assert abs(float(found.mean()) - product) < 4 * (expected / 2000) ** 0.5
    assert float(found.var()) == pytest.approx(expected, rel=0.15)
