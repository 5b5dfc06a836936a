import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from tamis.language.embedding import encode_texts, nearest, nearest_among


@pytest.fixture(scope="module")
def encoder(toy_folder):
    return AutoModel.from_pretrained(toy_folder).eval(), AutoTokenizer.from_pretrained(toy_folder)


def test_embeddings_have_length_1_and_the_order_of_their_texts(encoder):
    texts = ["a long text about nothing", "b", "c c"]
    vectors = encode_texts(*encoder, texts, batch_rows=2, max_tokens=64)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    alone = encode_texts(*encoder, [texts[2]], batch_rows=2, max_tokens=64)
    assert torch.allclose(vectors[2], alone[0], atol=1e-5)


def test_the_same_texts_give_the_same_bits(encoder):
    first, second = (encode_texts(*encoder, ["one", "two two"], 8, 64) for _ in range(2))
    assert torch.equal(first, second)


def test_no_text_gives_no_row(encoder):
    assert encode_texts(*encoder, [], 8, 64).shape == (0, 32)


@given(st.integers(2, 12), st.integers(1, 14), st.integers(0, 99))
def test_nearest_is_what_sorting_all_rows_gives(rows, count, seed):
    vectors = np.random.default_rng(seed).integers(-2, 3, (rows, 3)).astype(np.float32)
    assert nearest(vectors, count).tolist() == oracles.nearest(vectors, count)


@given(st.integers(0, 6), st.integers(1, 9), st.integers(1, 10), st.integers(0, 99))
def test_nearest_among_others_is_what_sorting_them_gives(rows, others, count, seed):
    generator = np.random.default_rng(seed)
    targets, demos = (generator.integers(-2, 3, (number, 3)).astype(np.float32) for number in (rows, others))
    slow = [sorted(range(others), key=lambda place: (-float(row @ demos[place]), place))[:count] for row in targets]
    assert nearest_among(targets, demos, count).tolist() == slow
