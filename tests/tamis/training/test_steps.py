"""Order, rate, packing and loss."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds.token_rows import encode_pairs, list_pairs

from tamis import memory
from tamis.language.packing import packed_attention
from tamis.training import steps
from tamis.training.steps import (
    backward,
    collate,
    describe,
    final_loss,
    optimise,
    plan_epochs,
    plan_steps,
    scale_rate,
    step_loss,
    tabulate_curve,
)

CPU = torch.device("cpu")


@pytest.fixture
def network(toy_folder):
    return AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64)


@pytest.fixture
def encoding(toy_folder):
    prompts, responses = ["one", "a longer prompt", "x", "two words"], ["yes", "no, never ever", "abc", "z"]
    return encode_pairs(AutoTokenizer.from_pretrained(toy_folder), "chat", prompts, responses)


def packed_loss(network, encoding, loss_per="row"):
    with packed_attention(network):
        return step_loss(network, encoding, loss_per)


def padded_gradient(network, encoding):
    """The gradient of transformers' own loss over right-padded rows."""
    rows = [before + answer for before, answer in list_pairs(encoding)]
    width = max(map(len, rows))
    ids, mask, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width), []
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        answer = int(encoding.answer_tokens[place])
        labels.append([-100] * (len(row) - answer) + row[-answer:] + [-100] * (width - len(row)))
    network.zero_grad()
    network(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels)).loss.backward()
    return [weight.grad.clone() for weight in network.parameters()]


@pytest.mark.parametrize("loss_per", ["row", "token"])
def test_loss_of_a_packed_step_is_that_of_whole_rows_run_one_by_one(network, encoding, loss_per):
    expected = oracles.training_loss(network, list_pairs(encoding), loss_per)
    # the loss itself is taken in float32
    found = float(packed_loss(network, encoding, loss_per).detach())
    assert found == pytest.approx(expected, rel=1e-6)


def test_gradient_of_a_packed_step_per_token_is_that_of_padded_rows(network, encoding):
    expected = padded_gradient(network, encoding)
    network.zero_grad()
    packed_loss(network, encoding, "token").backward()
    for weight, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-7)


def test_gradient_of_a_packed_step_per_row_is_the_mean_of_those_of_single_rows(network, encoding):
    expected = [torch.zeros_like(weight) for weight in network.parameters()]
    for place in range(len(encoding)):
        for total, gradient in zip(expected, padded_gradient(network, encoding.pick([place])), strict=True):
            total += gradient / len(encoding)
    network.zero_grad()
    packed_loss(network, encoding, "row").backward()
    for weight, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-7)


def test_loss_does_not_depend_on_the_order_of_rows_in_a_step(network, encoding):
    forth = packed_loss(network, encoding)
    back = packed_loss(network, encoding.pick(range(len(encoding))[::-1]))
    torch.testing.assert_close(forth, back)


def test_same_step_gives_the_same_bits(network, encoding):
    losses = [packed_loss(network, encoding) for _ in range(2)]
    assert torch.equal(*losses)


def test_labels_are_the_response_tokens_and_no_others(encoding):
    batch = collate(encoding, CPU)
    tokens, kept = batch["input_ids"][0], batch["logits_to_keep"]
    labelled = sorted(tokens[kept + 1].tolist())
    assert batch["labels"][0].tolist() == tokens[kept + 1].tolist()
    assert labelled == sorted(encoding.tokens[encoding.answers].tolist())
    assert len(set(kept.tolist())) == len(kept)
    assert sorted(batch["labels"][1].bincount().tolist()) == sorted(encoding.answer_tokens.tolist())


def test_every_row_is_trained_to_end_its_turn(encoding):
    end = encoding.row(0)[0].last_answer
    labels = collate(encoding, CPU)["labels"][0].tolist()
    assert labels.count(end) == len(encoding)


def test_a_head_is_laid_down_once(encoding):
    tokens = collate(encoding, CPU)["input_ids"][0]
    assert len(tokens) == len(encoding.head(0)) + encoding.own_tokens.sum()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_takes_every_row_once(rows, batch_rows, epochs, seed):
    steps = plan_steps(rows, batch_rows, epochs, seed)
    per_epoch = -(-rows // batch_rows)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        taken = np.concatenate(steps[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(taken.tolist()) == list(range(rows))


def test_order_of_rows_is_fixed_by_the_seed_and_differs_between_epochs():
    one, again, other = (np.concatenate(plan_steps(30, 8, 2, seed)).tolist() for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert one[:30] != one[30:]


def test_first_epoch_is_the_same_whatever_follows():
    short, long = plan_steps(10, 4, 1, seed=0), plan_steps(10, 4, 3, seed=0)
    assert [step.tolist() for step in short] == [step.tolist() for step in long[: len(short)]]


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.1), (6, 0.1), (20, 0.1), (7, 0.0), (5, 1.0)])
def test_learning_rate_is_the_slow_one(steps, fraction):
    expected = oracles.learning_rates(steps, min(round(fraction * steps), steps - 1))
    assert [scale_rate(step, steps, fraction) for step in range(steps)] == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1))
def test_learning_rate_rises_to_its_peak_and_falls_and_never_rests(steps, fraction):
    rates = [scale_rate(step, steps, fraction) for step in range(steps)]
    peak = int(np.argmax(rates))
    assert max(rates) == 1
    assert min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_schedule_of_the_optimiser_is_the_slow_one():
    optimizer, schedule = optimise(torch.nn.Linear(2, 2), 6, 0.5, 0.2)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * rate for rate in oracles.learning_rates(6, 1)])


def test_optimiser_trains_what_asks_for_it_and_lets_no_weight_decay():
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    optimizer, _ = optimise(network, 6, 0.5, 0.2)
    (group,) = optimizer.param_groups
    assert [weight is network.weight for weight in group["params"]] == [True]
    assert group["weight_decay"] == 0


def test_numbers_of_an_arm_count_its_tokens_over_all_epochs(encoding):
    found = describe(encoding, [np.array([0, 2])] * 2, [3.0, 2.0, 1.0, 1.0])
    pairs, head = list_pairs(encoding), len(encoding.head(0))
    answers = 2 * (len(pairs[0][1]) + len(pairs[2][1]))
    contexts = 2 * (len(pairs[0][0]) + len(pairs[2][0]) - 2 * head)
    assert found == {
        "rows": 2,
        "epochs": 2,
        "steps": 4,
        "losses": [3.0, 2.0, 1.0, 1.0],
        "tokens": contexts + answers,
        "response_tokens": answers,
        "final_loss": 1.0,
    }


def test_curve_has_a_line_per_run_and_step():
    logs = {f"random-{seed}": {"epochs": 2, "steps": 4, "losses": [2.0, 1.0, 0.5, seed]} for seed in (0, 1)}
    lines = tabulate_curve(logs).splitlines()
    assert lines[1] == "random,0,1,0.5,2"
    assert lines[-1] == "random,1,4,2,1"
    assert len(lines) == 1 + 2 * 4


def test_final_loss_takes_one_step_at_least():
    assert final_loss([3.0, 2.0]) == 2.0
    assert final_loss([0.0] * 8 + [1.0, 3.0]) == 2.0


def test_steps_of_epochs_take_the_rows_of_each_in_an_order_of_its_own():
    taken = [np.array([0, 2, 4, 6, 8]), np.array([1, 3, 5])]
    steps = plan_epochs(taken, batch_rows=2, seed=3)
    assert [step.size for step in steps] == [2, 2, 1, 2, 1]
    assert sorted(np.concatenate(steps[:3]).tolist()) == [0, 2, 4, 6, 8]
    assert sorted(np.concatenate(steps[3:]).tolist()) == [1, 3, 5]
    slow = [taken[1][place] for place in np.random.default_rng([3, 1]).permutation(3)]
    assert np.concatenate(steps[3:]).tolist() == slow


def test_epochs_of_all_rows_are_those_of_one_choice():
    every, again = plan_epochs([np.arange(7)] * 3, 2, 5), plan_steps(7, 2, 3, 5)
    assert [step.tolist() for step in every] == [step.tolist() for step in again]


def test_numbers_of_an_arm_that_draws_anew_count_each_row_once_and_its_tokens_as_often_as_it_was_seen(encoding):
    found = describe(encoding, [np.array([0, 2]), np.array([1, 2])], [3.0, 2.0])
    tokens = encoding.own_tokens
    assert (found["rows"], found["epochs"], found["steps"]) == (3, 2, 2)
    assert found["tokens"] == tokens[0] + tokens[1] + 2 * tokens[2]


def gradients_of(network, encoding, loss_per, **how) -> tuple[float, list[torch.Tensor]]:
    with packed_attention(network):
        loss = backward(network, encoding, loss_per, **how)
    return float(loss), [weight.grad.clone() for weight in network.parameters()]


@pytest.mark.parametrize("loss_per", ["row", "token"])
@pytest.mark.parametrize("largest", [1, 2, 3])
def test_a_step_in_parts_has_the_gradient_of_the_whole(network, encoding, monkeypatch, loss_per, largest):
    whole, expected = gradients_of(network, encoding, loss_per)
    passed, real = [], steps.step_loss

    def short(network, rows, loss_per):
        if len(rows) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        passed.append(len(rows))
        return real(network, rows, loss_per)

    monkeypatch.setattr(steps, "step_loss", short)
    loss, found = gradients_of(network, encoding, loss_per)
    assert max(passed) < len(encoding) == sum(passed)
    assert loss == pytest.approx(whole, rel=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    (halving,) = memory.take_halvings()
    assert (halving.what, halving.asked, halving.used) == (steps.PASSED, 4, {1: 1, 2: 2, 3: 2}[largest])


@pytest.mark.parametrize("loss_per", ["row", "token"])
@pytest.mark.parametrize("of", [2, 3, 5])
def test_the_mean_over_processes_is_the_gradient_of_one(network, encoding, loss_per, of):
    whole, expected = gradients_of(network, encoding, loss_per)
    each = [gradients_of(network, encoding, loss_per, rank=rank, of=of) for rank in range(of)]
    assert np.mean([loss for loss, _ in each]) == pytest.approx(whole, rel=1e-6)
    for place, gradient in enumerate(expected):
        mean = sum(found[place] for _, found in each) / of
        torch.testing.assert_close(mean, gradient, rtol=1e-5, atol=1e-6)
