"""Training inside a mask, against torch's AdamW; through transformers' Trainer in test_restricted_trainer.py."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tamis.masks import sparse_adamw
from tamis.masks.sparse_adamw import RestrictedAdamW
from tamis.masks.tensor_layout import MaskError

HOW = {"lr": 1e-2, "weight_decay": 0.1}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4)).to(dtype)


def draw_mask(model, share, seed=0):
    """A random mask; of every third tensor nothing is chosen."""
    generator = np.random.default_rng(seed)
    found = {}
    for number, (name, weight) in enumerate(model.named_parameters()):
        count = 0 if number % 3 == 2 else max(1, round(share * weight.numel()))
        found[name] = np.sort(generator.choice(weight.numel(), count, replace=False)).astype(np.int32)
    return {name: places for name, places in found.items() if len(places)}


def everything(model):
    return {name: np.arange(weight.numel(), dtype=np.int32) for name, weight in model.named_parameters()}


def backward(model, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    weight = next(model.parameters())
    inputs = torch.randn(5, 6, generator=generator).to(weight)
    (scale * model(inputs).float().sin().square().mean()).backward()


def run(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def outside(model, mask):
    """The entries of every tensor that a mask does not choose, as bytes."""
    found = {}
    for name, weight in model.named_parameters():
        free = np.ones(weight.numel(), bool)
        free[mask.get(name, [])] = False
        found[name] = weight.detach().view(-1)[torch.from_numpy(free)].view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_every_entry_chosen_a_step_is_that_of_torch_adamw_to_the_bit(dtype):
    ours, theirs = network(dtype), network(dtype)
    run(ours, RestrictedAdamW(ours.named_parameters(), everything(ours), **HOW), 10)
    run(theirs, torch.optim.AdamW(theirs.parameters(), foreach=False, **HOW), 10)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_chosen_entries_move_as_in_dense_adamw_on_masked_gradients():
    ours, theirs = network(), network()
    mask = draw_mask(ours, 0.3)
    run(ours, RestrictedAdamW(ours.named_parameters(), mask, lr=1e-2), 10)
    sparse_adamw.mask_gradients(theirs, mask)
    dense = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0, foreach=False)
    for step in range(10):
        dense.zero_grad()
        backward(theirs, step)
        for name, weight in theirs.named_parameters():
            weight.grad = weight.grad if name in mask else None
        dense.step()
    for name, places in mask.items():
        one, other = (
            dict(model.named_parameters())[name].view(-1)[torch.from_numpy(places)] for model in (ours, theirs)
        )
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_a_step_is_that_of_a_loop_over_entries():
    model = network(torch.float64)
    mask = draw_mask(model, 0.3)
    optimizer = RestrictedAdamW(model.named_parameters(), mask, **HOW)
    slow, moments = weights(model), {}
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        gradients = {name: weight.grad.flatten().tolist() for name, weight in model.named_parameters()}
        optimizer.step()
        for name, places in mask.items():
            for place in places.tolist():
                m, v = moments.get((name, place), (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * gradients[name][place], 0.999 * v + 0.001 * gradients[name][place] ** 2
                moments[name, place] = m, v
                w = float(slow[name].view(-1)[place]) * (1 - 1e-2 * 0.1)
                w -= 1e-2 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))) ** 0.5 + 1e-8)
                slow[name].view(-1)[place] = w
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), slow[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unchosen_entries_keep_their_bits_also_with_weight_decay(dtype):
    model = network(dtype)
    mask = draw_mask(model, 0.3)
    before, all_before = outside(model, mask), weights(model)
    run(model, RestrictedAdamW(model.named_parameters(), mask, lr=0.1, weight_decay=0.5), 5)
    assert outside(model, mask) == before
    assert all(not torch.equal(weight, all_before[name]) for name, weight in model.named_parameters() if name in mask)


def test_bfloat16_weights_are_their_master_values_rounded_and_small_steps_add_up():
    model = network(torch.bfloat16)
    mask, before = everything(model), weights(model)
    optimizer = RestrictedAdamW(model.named_parameters(), mask, lr=1e-5)
    run(model, optimizer, 200)
    for name, weight in model.named_parameters():
        master = optimizer.state[weight]["master"]
        assert master.dtype == torch.float32
        assert torch.equal(weight.detach().view(-1), master.bfloat16())
        assert not torch.equal(master, before[name].float().view(-1))
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_freezing_leaves_gradients_to_tensors_with_chosen_entries():
    model = network()
    mask = {"0.weight": np.int32([3]), "2.bias": np.int32([])}
    assert sparse_adamw.freeze(model, mask) == ["0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    backward(model, 0)
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == ["0.weight"]


def test_masked_gradients_are_zero_outside_and_clipped_by_the_norm_of_chosen_entries():
    model, whole = network(), network()
    mask = draw_mask(model, 0.3)
    sparse_adamw.freeze(model, mask)
    sparse_adamw.mask_gradients(model, mask)
    backward(model, 0)
    backward(whole, 0)
    dense = {name: weight.grad.view(-1) for name, weight in whole.named_parameters()}
    chosen = torch.cat([dense[name][torch.from_numpy(places)] for name, places in mask.items()])
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)) == pytest.approx(float(chosen.norm()), rel=1e-6)
    for name, weight in model.named_parameters():
        if name in mask:
            assert set(weight.grad.view(-1).nonzero().view(-1).tolist()) <= set(mask[name].tolist())


def test_masking_after_every_backward_pass_is_masking_the_sum():
    model, whole = network(torch.float64), network(torch.float64)
    mask = draw_mask(model, 0.3)
    sparse_adamw.mask_gradients(model, mask)
    for step in range(3):
        backward(model, step, 1 / 3)
        backward(whole, step, 1 / 3)
    for name, weight in whole.named_parameters():
        places = torch.from_numpy(mask.get(name, np.arange(weight.numel())))
        ours = dict(model.named_parameters())[name].grad.view(-1)
        torch.testing.assert_close(ours[places], weight.grad.view(-1)[places], rtol=1e-12, atol=1e-15)


def test_removing_the_hooks_brings_whole_gradients_back():
    model = network()
    for handle in sparse_adamw.mask_gradients(model, {"0.weight": np.int32([3])}):
        handle.remove()
    backward(model, 0)
    assert int((model[0].weight.grad != 0).sum()) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_going_on_from_a_saved_state_gives_the_same_bits(dtype, tmp_path):
    whole, parts = network(dtype), network(dtype)
    mask = draw_mask(whole, 0.3)
    run(whole, RestrictedAdamW(whole.named_parameters(), mask, **HOW), 6)
    first = RestrictedAdamW(parts.named_parameters(), mask, **HOW)
    run(parts, first, 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    again = RestrictedAdamW(parts.named_parameters(), mask, lr=1.0)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(parts, again, 3, first=3)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_a_saved_state_loads_to_the_same_bits_and_shares_nothing():
    model = network(torch.bfloat16)
    optimizer = RestrictedAdamW(model.named_parameters(), draw_mask(model, 0.3), **HOW)
    run(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert value.dtype == saved["state"][number][key].dtype
            assert torch.equal(value, saved["state"][number][key])
            assert value.data_ptr() != saved["state"][number][key].data_ptr()


def test_a_state_of_another_mask_is_refused():
    model = network()
    saved = RestrictedAdamW(model.named_parameters(), draw_mask(model, 0.3, seed=1)).state_dict()
    with pytest.raises(
        MaskError, match=r"another mask: 4 of 6 tensors differ, first \['0.weight', '0.bias', '2.bias'\]"
    ):
        RestrictedAdamW(model.named_parameters(), draw_mask(model, 0.3)).load_state_dict(saved)


def test_a_schedule_changes_the_rate_of_every_group():
    model, plain = network(), network()
    mask = everything(model)
    named, others = list(model.named_parameters()), list(plain.parameters())
    groups = [{"params": named[:2], "weight_decay": 0.3}, {"params": named[2:]}]
    ours = RestrictedAdamW(groups, mask, **HOW)
    theirs = torch.optim.AdamW([{"params": others[:2], "weight_decay": 0.3}, {"params": others[2:]}], **HOW)
    for module, optimizer in ((model, ours), (plain, theirs)):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(4):
            run(module, optimizer, 1, step)
            schedule.step()
    for one, other in zip(model.parameters(), others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_state_of_a_twentieth_of_the_entries_is_a_tenth_of_dense_adamws_at_most():
    model = nn.Linear(400, 500, bias=False)
    mask = {"weight": np.arange(0, 200_000, 20, dtype=np.int32)}
    optimizer = RestrictedAdamW(model.named_parameters(), mask)
    run_once = model(torch.ones(400)).sum()
    run_once.backward()
    optimizer.step()
    assert sparse_adamw.count_state_bytes(optimizer) == 12 * 10_000 + 4  # index and two moments each; one step
    assert sparse_adamw.count_state_bytes(optimizer) <= 0.1 * 8 * model.weight.numel()
    half = nn.Linear(400, 500, bias=False).bfloat16()
    assert sparse_adamw.count_state_bytes(RestrictedAdamW(half.named_parameters(), mask)) == 16 * 10_000 + 4


def test_remasking_keeps_moments_of_entries_that_stay_and_starts_new_ones_afresh():
    moved, fixed = network(torch.float64), network(torch.float64)
    first, second = draw_mask(moved, 0.5), draw_mask(moved, 0.5, seed=1)
    optimizer = RestrictedAdamW(moved.named_parameters(), first, **HOW)
    steady = RestrictedAdamW(fixed.named_parameters(), first, **HOW)
    run(moved, optimizer, 3)
    run(fixed, steady, 3)
    optimizer.remask(second)
    afresh = RestrictedAdamW(copy.deepcopy(moved).named_parameters(), second, **HOW)
    gradients = draw_gradients(moved)
    for model, one in ((moved, optimizer), (fixed, steady)):
        set_gradients(model, gradients)
        one.step()
    set_gradients(afresh, gradients)
    afresh.step()
    stayed = 0
    for name, places in second.items():
        stays = np.isin(places, first[name])
        stayed += int(stays.sum())
        now, old, new = (tensors(one)[name].detach().view(-1) for one in (moved, fixed, afresh))
        torch.testing.assert_close(now[places[stays]], old[places[stays]], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(now[places[~stays]], new[places[~stays]], rtol=1e-12, atol=1e-14)
    assert 0 < stayed < sum(map(len, second.values()))


def tensors(owner):
    return owner.named() if isinstance(owner, RestrictedAdamW) else dict(owner.named_parameters())


def draw_gradients(model):
    generator = torch.Generator().manual_seed(9)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def set_gradients(owner, gradients):
    for name, weight in tensors(owner).items():
        weight.grad = gradients[name].clone()


def test_remasking_with_the_same_mask_changes_nothing():
    ours, fixed = network(torch.bfloat16), network(torch.bfloat16)
    mask = draw_mask(ours, 0.5)
    one, other = (RestrictedAdamW(model.named_parameters(), mask, **HOW) for model in (ours, fixed))
    run(ours, one, 2)
    one.remask({name: places.copy() for name, places in mask.items()})
    run(ours, one, 2, first=2)
    run(fixed, other, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), fixed.parameters(), strict=True))


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    model = network()
    optimizer = RestrictedAdamW(model.named_parameters(), everything(model))

    def closure():
        loss = model(torch.ones(6)).square().sum()
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) > 0


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ({"9.weight": np.int32([0])}, r"1 of its 1 tensors are unknown here, first \['9.weight'\]"),
        ({"0.weight": np.int32([48])}, r"indices of 1 of 1 tensors are not ascending or lie beyond .* \['0.weight'\]"),
        ({"0.weight": np.int32([-1, 2])}, "not ascending or lie beyond"),
        ({"0.weight": np.int32([2, 2])}, "not ascending or lie beyond"),
        ({"0.weight": np.int32([])}, "the mask has 0 entries, so nothing would be trained"),
        ({}, "the mask has 0 entries"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, text):
    model = network()
    for use in (
        sparse_adamw.freeze,
        sparse_adamw.mask_gradients,
        lambda model, mask: RestrictedAdamW(model.named_parameters(), mask),
    ):
        with pytest.raises(MaskError, match=text):
            use(model, mask)


def test_parameters_without_names_are_refused():
    model = network()
    with pytest.raises(MaskError, match=r"give it model\.named_parameters\(\)"):
        RestrictedAdamW(model.parameters(), everything(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_delta_on_its_base_is_the_trained_model_bit_for_bit(dtype):
    model = network(dtype)
    mask, before = draw_mask(model, 0.3), weights(model)
    run(model, RestrictedAdamW(model.named_parameters(), mask, **HOW), 4)
    delta = sparse_adamw.extract_delta(model, before, mask)
    assert {name: places.tolist() for name, places in delta.indices.items()} == {n: p.tolist() for n, p in mask.items()}
    merged = {name: weight.clone() for name, weight in before.items()}
    for name, places in delta.indices.items():
        merged[name].view(-1)[places] = delta.values[name]
    assert all(torch.equal(merged[name], weight) for name, weight in model.named_parameters())
    assert not torch.equal(merged["0.weight"], before["0.weight"])


def test_a_change_outside_of_the_mask_is_refused():
    model = network()
    mask, before = draw_mask(model, 0.3), weights(model)
    with torch.no_grad():
        model[2].weight[0, 0] *= 1.001
    with pytest.raises(MaskError, match=r"1 of 6 tensors changed outside of the mask, first \['2.weight'\]"):
        sparse_adamw.extract_delta(model, before, mask)


def test_a_delta_beside_the_weights_of_another_model_is_refused():
    model = network()
    mask, before = draw_mask(model, 0.3), weights(model)
    other = {**before, "0.weight": torch.zeros(8, 7), "4.bias": torch.zeros(2)}
    text = r"state before training belongs to another model: 2 of 7 tensors differ, first 0.weight: "
    with pytest.raises(MaskError, match=text):
        sparse_adamw.extract_delta(model, other, mask)


def test_a_delta_beside_weights_of_another_type_is_refused():
    model = network()
    mask, before = draw_mask(model, 0.3), weights(model)
    half = {name: weight.bfloat16() for name, weight in before.items()}
    text = r"state before training has another type in 6 of 6 tensors, first 0.weight: torch\.float32 here, torch\.bf"
    with pytest.raises(MaskError, match=text):
        sparse_adamw.extract_delta(model, half, mask)


def test_after_a_saved_state_is_loaded_hooks_and_optimiser_share_the_indices():
    model = network()
    chosen = sparse_adamw.indices(dict(model.named_parameters()), draw_mask(model, 0.3))
    optimizer = RestrictedAdamW(model.named_parameters(), chosen)
    run(model, optimizer, 1)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    named = dict(model.named_parameters())
    for name, indices in chosen.items():
        assert optimizer.state[named[name]]["indices"].data_ptr() == indices.data_ptr()
        assert float(optimizer.state[named[name]]["exp_avg"].abs().max()) > 0


def test_after_an_equal_mask_is_cut_hooks_and_optimiser_share_the_indices():
    model = network()
    mask = draw_mask(model, 0.3)
    optimizer = RestrictedAdamW(model.named_parameters(), mask)
    named = dict(model.named_parameters())
    again = sparse_adamw.indices(named, {name: places.copy() for name, places in mask.items()})
    optimizer.remask(again)
    for name, indices in again.items():
        assert optimizer.state[named[name]]["indices"].data_ptr() == indices.data_ptr()
