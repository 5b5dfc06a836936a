import numpy as np
import pytest
import torch
from worlds.small_models import small_model, small_pool
from worlds.token_rows import batch_rows, cut_pair

from tamis.language.batches import lay_out, plan_batches, split
from tamis.language.encoding import TokenSequence, make_sequence


def test_every_row_is_in_one_batch_that_is_not_too_large():
    batches = batch_rows(*small_pool(20), tokens=16)
    assert sorted(row for batch in batches for row in batch.examples) == list(range(20))
    for batch in batches:
        assert sum(len(piece) for row in batch.rows for piece in row) <= 16


def test_a_row_that_is_longer_than_a_batch_is_a_batch_of_its_own():
    batches = batch_rows([[1] * 9, [2]], [[3] * 9, [4]], tokens=4)
    assert [batch.examples for batch in batches] == [[1], [0]]


def test_no_example_is_refused():
    with pytest.raises(ValueError, match="0 rows; give at least one"):
        plan_batches([], tokens=8)


def test_empty_responses_are_refused_with_their_places():
    with pytest.raises(
        ValueError, match=r"2 of 3 examples have a sequence without an answer token.*, first places \[0, 2\]"
    ):
        batch_rows([[1], [1], [1]], [[], [2], []], tokens=8)


def test_an_answer_without_a_token_before_it_is_refused():
    with pytest.raises(ValueError, match=r"1 of 1 examples have .* without a token before it"):
        batch_rows([[]], [[2]], tokens=8)


def test_a_sheet_tells_whose_each_token_is():
    (batch,) = batch_rows([[5, 6], [7]], [[8], [9]], tokens=99)
    sheet = lay_out(batch, small_model("llama"))
    assert batch.examples == [1, 0]
    assert sheet.inputs["input_ids"].tolist() == [[7, 9, 5, 6, 8]]
    assert sheet.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert sheet.owner.tolist() == [0, 0, 1, 1, 1]
    assert sheet.places.tolist() == [0, 3]
    assert sheet.labels.tolist() == [9, 8]
    assert sheet.answers.tolist() == [0, 1]
    assert torch.equal(sheet.sizes, torch.tensor([1, 1]))


def test_a_batch_is_split_into_its_rows():
    (batch,) = batch_rows([[5, 6], [7]], [[8], [9]], tokens=99)
    assert [(one.examples, [cut_pair(row) for row in one.rows]) for one in split(batch)] == [
        ([1], [([7], [9])]),
        ([0], [([5, 6], [8])]),
    ]


def test_a_row_of_several_sequences_and_answers_owns_all_of_its_tokens():
    middle = TokenSequence(np.array([5, 6, 7, 8], np.int32), np.array([False, True, False, True]))
    (batch,) = plan_batches([[middle, make_sequence([1], [2])], [make_sequence([3], [4])]], tokens=99)
    sheet = lay_out(batch, small_model("llama"))
    assert batch.examples == [1, 0]
    assert sheet.inputs["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8, 1, 2]]
    assert sheet.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]]
    assert sheet.owner.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert (sheet.places.tolist(), sheet.labels.tolist()) == ([0, 2, 4, 6], [4, 6, 8, 2])
    assert (sheet.answers.tolist(), sheet.sizes.tolist()) == ([0, 1, 1, 1], [1, 3])
