"""Norms and sketches of each example's gradient, beside the gradients themselves by autograd."""

import numpy as np
import pytest
import torch
from worlds.small_models import (
    FAMILIES,
    each_gradient,
    inner,
    small_model,
    small_pool,
    widen,
)
from worlds.token_rows import batch_rows

from tamis.gradients.layers import cover
from tamis.gradients.per_example import CHUNK, accumulate, group_parameters
from tamis.gradients.row_sums import RowSums, square_norm

QUERIES, RESPONSES = small_pool()
PACKED = batch_rows(QUERIES, RESPONSES, tokens=24)


def measure(model, batches=PACKED, *, seed=0, names=None, **how) -> RowSums:
    rows = RowSums(model, cover(model), sum(len(one.examples) for one in batches), seed=seed, names=names)
    accumulate(model, batches, keep=names, rows=rows, **how)
    return rows


def products(gradients) -> np.ndarray:
    return np.array([[inner(one, other) for other in gradients] for one in gradients])


def root_mean_square(values) -> float:
    return float(np.sqrt(np.square(values).mean()))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_each_examples_own_gradient(family, tied, monkeypatch):
    widen(monkeypatch)
    model = small_model(family, tied)
    wanted = np.diag(products(each_gradient(model, QUERIES, RESPONSES)))
    assert measure(model).squared.numpy() == pytest.approx(wanted, rel=1e-8)


def test_per_token_norms_are_those_of_the_sum_over_tokens():
    model = small_model("llama")
    mean, total = measure(model).squared, measure(model, loss_per="token").squared
    sizes = torch.tensor([len(response) for response in RESPONSES])
    assert torch.allclose(total, mean * sizes**2, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_inner_products_of_sketches_are_nearly_those_of_gradients(family):
    model = small_model(family)
    exact = products(each_gradient(model, QUERIES, RESPONSES))
    size = np.sqrt(np.diag(exact))
    errors = []
    for seed in range(8):
        sketches = measure(model, seed=seed).sketches.numpy()
        errors.append((sketches @ sketches.T - exact) / np.outer(size, size))
    assert root_mean_square(errors) < 0.08
    assert root_mean_square(np.mean(errors, axis=0)) < root_mean_square(errors) / 2  # seeds differ and cancel: no bias


def test_sketches_of_one_seed_are_the_same_and_of_another_seed_others():
    model = small_model("llama")
    one, again, other = (measure(model, seed=seed).sketches for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_packing_changes_neither_norms_nor_sketches():
    model = small_model("llama")
    together = measure(model, batch_rows(QUERIES, RESPONSES, tokens=10_000))
    alone = measure(model, batch_rows(QUERIES, RESPONSES, tokens=1))
    assert torch.allclose(together.squared, alone.squared, rtol=1e-10)
    assert torch.allclose(together.sketches, alone.sketches, rtol=1e-4, atol=1e-6)


def test_groups_of_parameters_add_up_to_the_whole():
    model = small_model("gpt2")
    whole = measure(model)
    parts = [measure(model, names=names) for names in group_parameters(model, 200)]
    assert len(parts) > 2
    assert torch.allclose(sum(part.squared for part in parts), whole.squared, rtol=1e-10)
    assert torch.allclose(sum(part.sketches for part in parts), whole.sketches, rtol=1e-4, atol=1e-6)


def test_answers_longer_than_a_chunk_of_the_head_have_their_whole_norm():
    model = small_model("llama")
    words = model.get_input_embeddings().weight.shape[0]
    long = [[(3 * place + row) % words for place in range(CHUNK // 2 + 40 * row)] for row in range(4)]
    queries = [[1, 2]] * len(long)
    wanted = np.diag(products(each_gradient(model, queries, long)))
    found = measure(model, batch_rows(queries, long, tokens=10_000)).squared
    assert found.numpy() == pytest.approx(wanted, rel=1e-8)


def test_rows_leave_sums_and_scores_as_they_are():
    model = small_model("llama")
    plain = accumulate(model, PACKED)
    rows = RowSums(model, cover(model), len(QUERIES), seed=0, names=None)
    beside = accumulate(model, PACKED, rows=rows)
    for name, tensor in plain.G.items():
        assert torch.allclose(tensor, beside.G[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_both_ways_to_a_norm_agree(tokens):
    draw = torch.Generator().manual_seed(tokens)
    left, right = (torch.randn(tokens, width, generator=draw, dtype=torch.float64) for width in (6, 8))
    wanted = sum(torch.outer(one, other) for one, other in zip(left, right, strict=True)).square().sum()
    assert square_norm(left, right) == pytest.approx(float(wanted))


def test_a_module_that_runs_twice_in_a_pass_is_refused():
    model = small_model("llama")
    layers = model.base_model.layers
    layers[1] = layers[0]
    with pytest.raises(ValueError, match="used more than once in a pass"):
        measure(model)
