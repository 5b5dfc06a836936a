import pytest
import torch
from worlds.small_models import small_model, small_pool

from tamis.language.batches import lay_out, plan_batches, split


def test_every_row_is_in_one_batch_that_is_not_too_large():
    queries, responses = small_pool(20)
    batches = plan_batches(queries, responses, tokens=16)
    assert sorted(row for batch in batches for row in batch.examples) == list(range(20))
    for batch in batches:
        assert sum(map(len, [*batch.queries, *batch.responses])) <= 16


def test_a_row_that_is_longer_than_a_batch_is_a_batch_of_its_own():
    batches = plan_batches([[1] * 9, [2]], [[3] * 9, [4]], tokens=4)
    assert [batch.examples for batch in batches] == [[1], [0]]


def test_no_example_is_refused():
    with pytest.raises(ValueError, match="0 queries and 0 responses"):
        plan_batches([], [], tokens=8)


def test_empty_responses_are_refused_with_their_places():
    with pytest.raises(ValueError, match=r"2 of 3 examples have a response without a token, first places \[0, 2\]"):
        plan_batches([[1], [1], [1]], [[], [2], []], tokens=8)


def test_an_empty_query_is_refused():
    with pytest.raises(ValueError, match="1 of 1 examples have a query without a token"):
        plan_batches([[]], [[2]], tokens=8)


def test_a_sheet_tells_whose_each_token_is():
    (batch,) = plan_batches([[5, 6], [7]], [[8], [9]], tokens=99)
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
    (batch,) = plan_batches([[5, 6], [7]], [[8], [9]], tokens=99)
    assert [(one.examples, one.queries, one.responses) for one in split(batch)] == [
        ([1], [[7]], [[9]]),
        ([0], [[5, 6]], [[8]]),
    ]
