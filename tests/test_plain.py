"""The published recipe of `benchmarks/plain.py` and our own path give the same numbers, so that they may be timed."""

import pytest
import torch
from worlds.small_models import distance, each_gradient, inner, random_direction, small_model, small_pool
from worlds.token_rows import batch_rows

from benchmarks import plain
from tamis.gradients.per_example import accumulate

QUERIES, RESPONSES = small_pool(rows=11)
PADDED = plain.pad_batches(list(zip(QUERIES, RESPONSES, strict=True)), pad=0)
PACKED = batch_rows(QUERIES, RESPONSES, tokens=24)


@pytest.fixture(params=["tied", "untied"])
def model(request):
    """A small Llama in float32, as the recipe's flat vectors are; untied, it has biases."""
    return small_model("llama", request.param == "tied", dtype=torch.float32)


def test_rows_stand_in_batches_of_eight_sorted_by_length():
    assert [len(batch.places) for batch in PADDED] == [8, 3]
    lengths = [len(QUERIES[place] + RESPONSES[place]) for batch in PADDED for place in batch.places]
    assert lengths == sorted(lengths)


def test_the_flat_sum_of_gradients_is_ours(model):
    G = accumulate(model, PACKED).G
    assert distance(plain.sum_gradients(model, PADDED), plain.flatten(model, G)) <= 1e-5


def test_exact_scores_are_our_phi_data(model):
    u = random_direction(model)
    exact = plain.score_exact(model, PADDED, plain.flatten(model, u))
    assert distance(exact, accumulate(model, PACKED, u).phi_data) <= 1e-5


def test_scores_of_linear_layers_are_our_phi_data_where_u_has_their_parameters_only(model):
    u = random_direction(model)
    flat = plain.flatten(model, u)
    names = {f"{home}.{key}" for home in plain.find_linear(model, flat) for key in ("weight", "bias")} & set(u)
    wanted = accumulate(model, PACKED, {name: u[name] for name in names}).phi_data
    assert 0 < len(names) < len(u)
    assert distance(plain.score_linear(model, PADDED, flat), wanted) <= 1e-5


def test_scores_of_linear_layers_are_those_of_each_rows_own_gradient():
    model = small_model("llama", tied=False, dtype=torch.float32)
    u = random_direction(model)
    flat = plain.flatten(model, u)
    names = {f"{home}.{key}" for home in plain.find_linear(model, flat) for key in ("weight", "bias")} & set(u)
    part = {name: u[name] for name in names}
    wanted = torch.tensor([inner(part, one) for one in each_gradient(model, QUERIES, RESPONSES)])
    assert distance(plain.score_linear(model, PADDED, flat), wanted) <= 1e-5


@pytest.mark.parametrize("find", [plain.find_losses, plain.find_losses_alone])
def test_a_training_pass_has_our_losses_and_adds_up_our_sum_of_gradients(model, find):
    found = accumulate(model, PACKED)
    plain.train(model, PADDED, find)
    for name, weight in model.named_parameters():
        assert distance(weight.grad, found.G[name]) <= 1e-5, name
    losses = torch.cat([find(model, batch).detach() for batch in PADDED])
    assert distance(losses, found.losses[[place for batch in PADDED for place in batch.places]]) <= 1e-6
