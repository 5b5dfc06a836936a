"""Gradients as Adam sees them, their projection, and influence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds.token_rows import encode_pairs, list_pairs

from tamis.language.packing import packed_attention
from tamis.scores import less
from tamis.scores.less import (
    Checkpoint,
    Moments,
    adam_direction,
    features,
    gradient,
    influence,
    normalise,
    pack,
    pick_warmup,
    project,
    read_moments,
    trained,
    unpack,
    warm_up,
)
from tamis.training.steps import step_loss

DIMENSIONS = 24
NAMES = ["one", "longer", "x", "two"]


@pytest.fixture
def network(toy_folder):
    """The toy model in float64, with 2,048 trained weights: its keys and values."""
    network = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64).eval()
    for name, weight in network.named_parameters():
        weight.requires_grad_("k_proj" in name or "v_proj" in name)
    return network


@pytest.fixture
def rows(toy_folder):
    prompts, responses = ["one", "a longer prompt", "x", "two words"], ["yes", "no, never ever", "abc", "z"]
    return encode_pairs(AutoTokenizer.from_pretrained(toy_folder), "delift", prompts, responses)


def slow_gradients(network, rows):
    """The gradient of transformers' own loss of each row, run alone and unpacked."""
    found = []
    for before, answer in list_pairs(rows):
        tokens = torch.tensor([before + answer])
        labels = torch.tensor([[-100] * (tokens.shape[1] - len(answer)) + answer])
        network.zero_grad()
        network(input_ids=tokens, labels=labels).loss.backward()
        found.append(torch.cat([weight.grad.flatten() for weight in trained(network)]))
    network.zero_grad()
    return torch.stack(found)


def dense_matrix(weights, dimensions, seed):
    """The projection as one matrix: what it makes of the unit vectors."""
    return project(torch.eye(weights, dtype=torch.float64), dimensions, seed)


def moments_of(weights, step=3):
    made = torch.Generator().manual_seed(1)
    mean = torch.randn(weights, generator=made, dtype=torch.float64) * 1e-3
    return Moments(mean, torch.rand(weights, generator=made, dtype=torch.float64) * 1e-5, step)


def checkpoint_of(network, moments=None):
    """The network as it stands, with some moments."""
    weights = parameters_to_vector(trained(network)).detach().clone()
    return Checkpoint(weights, moments or moments_of(len(weights)), rate=1e-4)


def random_vectors(rows, weights, seed=0):
    return torch.randn(rows, weights, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(network, rows, places):
    with packed_attention(network), torch.no_grad():
        return float(step_loss(network, rows.pick(places)))


# warm-up


def test_a_warm_up_is_drawn_by_its_seed():
    assert pick_warmup(500, 0.05, 8, seed=4).tolist() == pick_warmup(500, 0.05, 8, seed=4).tolist()
    assert pick_warmup(500, 0.05, 8, seed=4).tolist() != pick_warmup(500, 0.05, 8, seed=5).tolist()


def test_a_warm_up_draws_each_row_once_in_order():
    found = pick_warmup(200, 0.5, 8, seed=0)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == 100


def test_a_warm_up_lowers_the_loss_of_its_rows(network, rows):
    before = loss(network, rows, range(4))
    warm_up(network, rows, epochs=4, batch_rows=1, rate=1e-2, seed=0)
    assert loss(network, rows, range(4)) < before


def test_a_warm_up_yields_each_epoch_with_its_mean_rate(network, rows):
    found = warm_up(network, rows, epochs=2, batch_rows=3, rate=1.0, seed=0)
    # 4 steps, no warm-up (a tenth of 4 rounds to 0): rates 1, 3/4, 1/2, 1/4
    assert [checkpoint.rate for checkpoint in found] == [0.875, 0.375]
    assert [checkpoint.moments.step for checkpoint in found] == [2, 4]


def test_a_checkpoint_does_not_change_with_the_network(network, rows):
    first, last = warm_up(network, rows, epochs=2, batch_rows=3, rate=1e-2, seed=0)
    assert not torch.equal(first.weights, last.weights)
    assert not torch.equal(first.moments.mean, last.moments.mean)


def test_a_warm_up_is_the_same_bits_by_its_seed(toy_folder, rows):
    def last():
        network = AutoModelForCausalLM.from_pretrained(toy_folder)
        return warm_up(network, rows, epochs=1, batch_rows=2, rate=1e-3, seed=3)[-1]

    one, other = last(), last()
    assert torch.equal(one.weights, other.weights)
    assert torch.equal(one.moments.square, other.moments.square)


def test_a_warm_up_without_rows_is_refused(network, rows):
    nothing = rows.pick([])
    with pytest.raises(ValueError, match="needs 1 row at least, and there are 0"):
        warm_up(network, nothing, epochs=1, batch_rows=2, rate=1e-3, seed=3)


def test_a_warm_up_whose_loss_is_not_finite_says_where(network, rows):
    with torch.no_grad():
        trained(network)[0].fill_(torch.nan)
    with pytest.raises(ValueError, match="loss is nan at step 1 of 2; lower its learning rate"):
        warm_up(network, rows, epochs=1, batch_rows=2, rate=1e-3, seed=3)


def test_weights_that_adam_never_updated_have_no_moments(network):
    optimizer = torch.optim.AdamW(trained(network))
    count = len(trained(network))
    with pytest.raises(ValueError, match=rf"{count} of {count} trained tensors were updated by Adam fewer times"):
        read_moments(network, optimizer)
    trained(network)[0].grad = torch.ones_like(trained(network)[0])
    optimizer.step()
    with pytest.raises(ValueError, match=rf"{count - 1} of {count} .* first places \[1, 2, 3\]"):
        read_moments(network, optimizer)


def test_checkpoints_are_unpacked_as_they_were_packed(network, rows):
    made = warm_up(network, rows, epochs=2, batch_rows=3, rate=1e-2, seed=0)
    tensors, facts = pack(made)
    found = unpack(tensors, json.loads(json.dumps(facts)))
    for one, other in zip(made, found, strict=True):
        assert (one.rate, one.moments.step, one.moments.betas, one.moments.eps) == (
            (other.rate, other.moments.step, other.moments.betas, other.moments.eps)
        )
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.moments.mean, other.moments.mean)
        assert torch.equal(one.moments.square, other.moments.square)


# gradient and direction


def test_a_gradient_is_that_of_the_row_run_alone_and_unpacked(network, rows):
    expected = slow_gradients(network, rows)
    with packed_attention(network):
        found = torch.stack([gradient(network, rows, row) for row in range(4)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # the loss itself is taken in float32


def test_a_gradient_leaves_the_network_as_it_was(network, rows):
    with packed_attention(network):
        gradient(network, rows, 0)
    assert all(weight.grad is None for weight in network.parameters())


def test_a_weight_that_the_loss_does_not_reach_has_gradient_0(network, rows):
    network.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    with packed_attention(network):
        found = gradient(network, rows, 0)
    (place,) = [place for place, weight in enumerate(trained(network)) if weight is network.idle]
    start = sum(weight.numel() for weight in trained(network)[:place])
    assert found[start : start + 3].tolist() == [0.0, 0.0, 0.0]


@settings(deadline=None, max_examples=25)
@given(updates=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_direction_is_the_step_that_torchs_adam_takes(updates, seed):
    gradients = random_vectors(updates + 1, 7, seed)
    network = torch.nn.Linear(7, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0, betas=(0.8, 0.9), eps=1e-3)
    for one in gradients[:-1]:
        network.weight.grad = one[None].clone()
        optimizer.step()
    expected = adam_direction(gradients[-1], read_moments(network, optimizer))
    before = network.weight.detach().clone()
    network.weight.grad = gradients[-1:].clone()
    optimizer.step()
    torch.testing.assert_close(before[0] - network.weight.detach()[0], expected)


def test_without_its_eps_the_direction_is_the_published_codes_but_for_a_factor():
    moments, found = replace(moments_of(50), eps=0.0), random_vectors(3, 50) * 1e-3
    published = (0.9 * moments.mean + 0.1 * found) / (0.999 * moments.square + 0.001 * found**2).sqrt()
    torch.testing.assert_close(normalise(adam_direction(found, moments)), normalise(published))


def test_a_vector_of_zeros_keeps_length_0():
    assert normalise(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


# features


def test_features_are_the_slow_gradients_by_the_dense_matrix(network, rows):
    checkpoint = checkpoint_of(network)
    plain = slow_gradients(network, rows)
    adam = torch.stack([adam_direction(one, checkpoint.moments) for one in plain])
    matrix = dense_matrix(plain.shape[1], DIMENSIONS, seed=1)
    found = features(network, checkpoint, rows, NAMES, dimensions=DIMENSIONS, seed=1)
    for one, expected in zip(found, (adam @ matrix, plain @ matrix), strict=True):
        torch.testing.assert_close(one, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_features_are_those_of_the_checkpoint_wherever_the_network_is(network, rows):
    first, _ = warm_up(network, rows, epochs=2, batch_rows=3, rate=1e-2, seed=0)
    found = features(network, first, rows, NAMES, dimensions=DIMENSIONS, seed=1)
    assert torch.equal(parameters_to_vector(trained(network)), first.weights)
    again = features(network, checkpoint_of(network, first.moments), rows, NAMES, dimensions=DIMENSIONS, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_features_have_length_1(network, rows):
    for found in features(network, checkpoint_of(network), rows, NAMES, dimensions=DIMENSIONS, seed=1):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_a_row_has_the_same_features_whatever_the_rows_beside_it(network, rows):
    alone = rows.pick([2])
    every, one = (
        features(network, checkpoint_of(network), rows, names, dimensions=DIMENSIONS, seed=1)
        for rows, names in ((rows, NAMES), (alone, ["x"]))
    )
    for some, other in zip(every, one, strict=True):
        torch.testing.assert_close(some[2], other[0])


def test_features_do_not_depend_on_how_many_rows_are_projected_together(network, rows, monkeypatch):
    whole = features(network, checkpoint_of(network), rows, NAMES, dimensions=DIMENSIONS, seed=1)
    monkeypatch.setattr(less, "ROWS", 3)
    cut = features(network, checkpoint_of(network), rows, NAMES, dimensions=DIMENSIONS, seed=1)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_that_is_not_finite_names_its_rows(network, rows):
    with torch.no_grad():
        trained(network)[0].fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"4 of 4 rows have a gradient that is not finite, first \['one', 'longer', 'x'\]"
    ):
        features(network, checkpoint_of(network), rows, NAMES, dimensions=DIMENSIONS, seed=1)


# influence


def unit(rows, seed):
    return normalise(random_vectors(rows, 6, seed))


def slow_influence(pool, queries, topics, rates):
    found = []
    for row in range(len(pool[0])):
        best = -np.inf
        for topic in set(topics):
            total = 0.0
            for some, asked, rate in zip(pool, queries, rates, strict=True):
                those = [float(some[row] @ asked[place]) for place, name in enumerate(topics) if name == topic]
                total += rate * sum(those) / len(those)
            best = max(best, total / sum(rates))
        found.append(best)
    return found


def test_influence_is_that_of_the_slow_loop():
    pool, queries = [unit(5, 0), unit(5, 1)], [unit(4, 2), unit(4, 3)]
    topics, rates = ["b", "a", "b", "c"], [2e-4, 5e-5]
    assert influence(pool, queries, topics, rates).tolist() == pytest.approx(
        slow_influence(pool, queries, topics, rates)
    )


def test_influence_does_not_change_with_the_scale_of_the_rates():
    pool, queries, topics = [unit(5, 0), unit(5, 1)], [unit(2, 2), unit(2, 3)], ["a", "b"]
    torch.testing.assert_close(
        influence(pool, queries, topics, [2.0, 1.0]), influence(pool, queries, topics, [4.0, 2.0])
    )


@settings(deadline=None, max_examples=20)
@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_influence_does_not_change_with_the_scale_of_a_targets_gradient(scales):
    gradients, pool = random_vectors(4, 30), unit(5, 0)
    scaled = gradients * torch.tensor(scales, dtype=torch.float64)[:, None]
    first, second = (
        influence([pool], [normalise(project(one, 6, seed=0))], ["a", "a", "b", "b"], [1.0])
        for one in (gradients, scaled)
    )
    torch.testing.assert_close(first, second)


def test_influence_lies_between_minus_1_and_1():
    found = influence([unit(50, 0)], [unit(9, 1)], list("aabbccdde"), [1e-4])
    assert float(found.abs().max()) <= 1.0


def test_a_topic_of_many_queries_weighs_no_more_than_another():
    pool, (few, many) = unit(5, 0), unit(2, 1)
    queries = torch.stack([few, *[many] * 9])
    expected = (pool @ torch.stack([few, many]).T).amax(1)
    torch.testing.assert_close(influence([pool], [queries], ["few", *["many"] * 9], [1.0]), expected)


def test_a_step_along_a_rows_direction_lowers_the_loss_that_its_influence_says(network, rows):
    """The sign: of all rows, the query itself helps the query most, and the step that Adam takes on it helps."""
    nothing = torch.zeros(sum(weight.numel() for weight in trained(network)), dtype=torch.float64)
    checkpoint = checkpoint_of(network, Moments(nothing, nothing, step=0))
    pool, queries = features(network, checkpoint, rows, NAMES, dimensions=512, seed=0)
    found = influence([pool], [queries[1:2]], ["a"], [1.0])
    assert int(found.argmax()) == 1
    assert float(found[1]) > 0
    before = loss(network, rows, [1])
    with packed_attention(network):
        step = adam_direction(gradient(network, rows, 1), checkpoint.moments)
    vector_to_parameters(checkpoint.weights - 1e-4 * step, trained(network))
    assert loss(network, rows, [1]) < before


def test_influence_on_nothing_is_refused():
    with pytest.raises(ValueError, match="there are 0 queries"):
        influence([unit(5, 0)], [unit(0, 1)], [], [1.0])
