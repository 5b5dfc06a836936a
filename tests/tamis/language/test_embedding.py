import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from tamis.language import embedding
from tamis.language.embedding import count_cut, encode_texts, nearest, nearest_among


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


@pytest.mark.parametrize("longest", [1, 2, 7, 8, 9])
def test_texts_with_more_tokens_than_are_encoded_are_counted(encoder, longest):
    texts = ["a", "ab", "abc de fg", "c" * 8, ""]
    tokens = [len(encoder[1](text).input_ids) for text in texts]
    found = count_cut(encoder[1], texts, 2, longest)
    assert found == sum(count > longest for count in tokens)


@pytest.mark.parametrize("entries", [1, 30, 64])
def test_blocks_of_a_few_rows_give_the_same_neighbours(monkeypatch, entries):
    vectors = np.random.default_rng(0).choice(np.float32([-1, -0.5, 0.5, 1]), (30, 3))
    near, among = nearest(vectors, 4), nearest_among(vectors[:20], vectors[5:], 4)
    monkeypatch.setattr(embedding, "ENTRIES", entries)
    assert np.array_equal(nearest(vectors, 4), near)
    assert np.array_equal(nearest_among(vectors[:20], vectors[5:], 4), among)


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
