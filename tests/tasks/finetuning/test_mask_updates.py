"""The mask cut anew in training: what scores it, what is carried over, and that an interruption changes no bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from worlds.small_models import distance, each_gradient
from worlds.token_rows import list_pairs
from worlds.toy_training import SMALL_RUNTIME, content, interrupt, make_world, run, write, write_mask

from tamis.language import packing
from tamis.language.encoding import Encoding
from tasks import models
from tasks.finetuning import mask_updates, trainer
from tasks.finetuning.mask_updates import Rescorer, load_mask, restrict_model, score, unite
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import ArmProgress
from tasks.gradients.settings import GradientsSettings
from tasks.masks import sparse_deltas
from tasks.models import ModelChoice

ONE = FinetuningSettings(
    arms={"chosen": [3]}, method="masked", epochs=2, learning_rate=1e-2, batch_rows=2, save_steps=2
)  # 6 steps
SMALL = GradientsSettings(order="second", lambda_prior=0.5, anchor_share=0.3, batch_rows=3, temperature=1.5)
CUT = {"update_steps": 2, "gradients": SMALL}  # steps 2 and 4 are followed by a cut


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def source(tmp_path_factory, model) -> Path:
    """Upstream artifacts with a mask by dualsft of a tenth."""
    world = make_world(tmp_path_factory.mktemp("source"))
    write_mask(world, model, "dualsft")
    return world


@pytest.fixture
def world(source, tmp_path) -> Path:
    return shutil.copytree(source, tmp_path / "world")


@pytest.fixture(scope="module")
def trained(source, model, tmp_path_factory) -> Path:
    """The artifact of an arm whose mask was cut anew."""
    return run(shutil.copytree(source, tmp_path_factory.mktemp("trained") / "world"), model, ONE, **CUT)


def read(world: Path, model: ModelChoice):
    """What `score` reads: how the mask is cut anew, and the rows of an arm."""
    source = world / "examples/examples.parquet"
    how = {"every": 2, "settings": SMALL, "runtime": SMALL_RUNTIME, "loss_per": "row"}
    scoring = mask_updates.read_restriction(source, world / "selection", model, **how).scoring
    places = scoring.sets.pool[:5]
    return scoring, scoring.sets.encoding.pick(places), [scoring.sets.ids[place] for place in places]


def move(network, size: float = 0.02):
    """Return a network after a made-up training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator).to(weight.dtype))
    return network


def fresh(model: ModelChoice, dtype: torch.dtype = torch.float32):
    return models.language_model.__wrapped__(model).to(dtype)


def whole(rows: Encoding) -> tuple[list, list]:
    before, answers = zip(*list_pairs(rows), strict=True)
    return list(before), list(answers)


def slow_distillation(network, teacher, rows: Encoding, tau: float) -> torch.Tensor:
    """L_CWSD with confidence max_prob, a row at a time."""
    total, weights = 0.0, 0.0
    for query, response in zip(*whole(rows), strict=True):
        told, found = (
            (one(input_ids=torch.tensor([query + response]), use_cache=False).logits[0] / tau).log_softmax(-1)
            for one in (teacher, network)
        )
        q, p = (logs[len(query) - 1 : -1] for logs in (told.detach(), found))
        weight = q.exp().amax(-1).mean()
        total, weights = total + weight * (q.exp() * (q - p)).sum(-1).mean(), weights + weight
    return tau**2 * total / weights


def slow_scores(model: ModelChoice, scoring, rows: Encoding) -> dict[str, torch.Tensor]:
    """phi_param in float64, a gradient at a time."""
    network, teacher = move(fresh(model, torch.float64)), fresh(model, torch.float64)
    validation, anchors = (scoring.sets.encoding.pick(getattr(scoring.sets, n)) for n in ("validation", "anchors"))
    new, pool = (each_gradient(network, *whole(some)) for some in (validation, rows))
    loss = slow_distillation(network, teacher, anchors, scoring.settings.temperature)
    prior = dict(zip(new[0], torch.autograd.grad(loss, list(network.parameters())), strict=True))
    return {
        name: (sum(one[name] for one in new) / len(new) + 0.5 * prior[name]) * sum(one[name] for one in pool)
        for name in prior
    }


def test_scores_are_those_of_the_slow_loop_at_the_weights_as_they_are(source, model):
    scoring, rows, ids = read(source, model)
    found, wanted = score(move(fresh(model)), scoring, rows, ids), slow_scores(model, scoring, rows)
    assert list(found) == list(wanted)
    assert max(distance(found[name], wanted[name]) for name in wanted) < 1e-3


def test_scores_of_a_group_of_parameters_at_a_time_are_the_same(source, model):
    scoring, rows, ids = read(source, model)
    blocks = replace(scoring, runtime=replace(SMALL_RUNTIME, block_parameters=4000))
    one, other = (score(move(fresh(model)), how, rows, ids) for how in (scoring, blocks))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_cut_is_recorded_and_keeps_the_budget(trained):
    arm = json.loads((trained / "finetuning.json").read_text())["arms"]["chosen-3"]
    assert [cut["step"] for cut in arm["rescored"]] == [2, 4]
    assert {cut["kept"] + cut["new"] for cut in arm["rescored"]} == {arm["trained_parameters"]}
    assert arm["rescored"][0]["kept"] < arm["rescored"][1]["kept"] / 2  # the first mask was random
    assert all(cut["new"] > 0 for cut in arm["rescored"])
    assert arm["delta_entries"] > 1.5 * arm["trained_parameters"]


def test_no_mask_is_cut_after_the_last_step(world, model):
    out = run(world, model, ONE, update_steps=3, gradients=SMALL)
    cuts = json.loads((out / "finetuning.json").read_text())["arms"]["chosen-3"]["rescored"]
    assert [cut["step"] for cut in cuts] == [3]


def test_an_arm_that_is_too_short_for_a_new_cut_is_named(world, model):
    text = r"mask.update_steps is 3 and arm chosen-3 takes 3 optimiser steps, so its mask is never .*update_steps: null"
    with pytest.warns(UserWarning, match=text):
        run(world, model, replace(ONE, epochs=1), update_steps=3, gradients=SMALL)


def test_the_mask_is_digested_once_for_all_arms(source, model):
    mask = mask_updates.read_mask(source / "selection", model)
    one, other = mask_updates.Restriction(mask), mask_updates.Restriction(dict(list(mask.items())[1:]))
    assert one.describe() == mask_updates.Restriction(dict(reversed(mask.items()))).describe() != other.describe()
    mask.clear()
    assert one.describe() != mask_updates.Restriction(mask).describe()


def test_the_same_seed_gives_the_same_bytes(world, model, trained):
    assert content(run(world, model, ONE, **CUT)) == content(trained)


@pytest.mark.parametrize(
    ("dtype", "every", "after"), [("float32", 2, 5), ("bfloat16", 3, 4)], ids=["a cut at a checkpoint", "between two"]
)
def test_an_interrupted_arm_resumes_bit_for_bit(world, model, trained, monkeypatch, dtype, every, after):
    model, how = replace(model, dtype=dtype), CUT | {"update_steps": every}
    if how == CUT:
        wanted = content(trained)
    else:
        write_mask(world, model, "dualsft")
        wanted = content(run(world, model, ONE, "whole", **how))
        shutil.rmtree(world / "scratch")
    interrupt(monkeypatch, "chosen-3", after)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, model, ONE, **how)
    (checkpoints,) = (world / "scratch").glob("*/checkpoints")
    assert [path.name for path in mask_updates.list_kept(checkpoints)] == [f"mask-{4 if every == 2 else 3}.safetensors"]
    monkeypatch.setattr(trainer, "ArmProgress", ArmProgress)
    assert content(run(world, model, ONE, **how)) == wanted


def test_a_mask_of_everything_that_is_cut_anew_changes_no_bit(world, model):
    write_mask(world, model, "dualsft", fraction=1.0)
    one = run(world, model, replace(ONE, epochs=1), "one", **CUT)
    other = run(world, model, replace(ONE, epochs=1), "other")
    first, second = (sparse_deltas.read_delta(out / "arms/chosen-3")[0] for out in (one, other))
    assert all(torch.equal(first.values[name], second.values[name]) for name in second.values)


def step(inside) -> None:
    """Take an optimiser step along made-up gradients."""
    for place, weight in enumerate(inside.network.parameters()):
        if weight.requires_grad:
            (weight * (1 + torch.arange(weight.numel()).view(weight.shape) % (3 + place))).sum().backward()
    inside.optimizer.step()
    inside.network.zero_grad()


def test_entries_that_leave_the_mask_keep_their_value_and_those_that_stay_their_state(source, model):
    network, name = fresh(model), "model.norm.weight"
    weight, inside = dict(network.named_parameters())[name], None
    inside = restrict_model(network, {name: torch.tensor([1, 2, 3])}, 0.1, None)
    start = weight.detach().clone()
    step(inside)
    once = weight.detach().clone()
    moments = inside.optimizer.state[weight]["exp_avg"].clone()
    inside.change({name: torch.tensor([2, 3, 5]), "model.embed_tokens.weight": torch.tensor([9])}, 1, 0.0)
    state = inside.optimizer.state[weight]
    assert torch.equal(state["exp_avg"][:2], moments[1:])
    assert (state["exp_avg"][2], state["step"].tolist()) == (0, [1, 1, 0])
    step(inside)
    assert (weight != start).nonzero().flatten().tolist() == [1, 2, 3, 5]
    assert weight[1] == once[1] != start[1]
    assert {name: places.tolist() for name, places in inside.trained.items()} == {
        name: [1, 2, 3, 5],
        "model.embed_tokens.weight": [9],
    }
    assert inside.rescored == [{"step": 1, "kept": 2, "new": 2, "ties": 0.0}]


def test_the_union_of_masks_has_each_entry_once():
    one, other = (
        {"a": torch.tensor([1, 4]), "b": torch.tensor([0])},
        {"a": torch.tensor([2, 4]), "c": torch.tensor([7])},
    )
    found = {name: places.tolist() for name, places in unite(one, other).items()}
    assert found == {"a": [1, 2, 4], "b": [0], "c": [7]}


def test_the_union_of_masks_can_be_saved_beside_a_mask_with_a_tensor_that_is_new(tmp_path):
    now = {"a": torch.tensor([1]), "b": torch.tensor([2])}
    trained = unite({"a": torch.tensor([0])}, now)
    inside = SimpleNamespace(mask=now, trained=trained, rescored=[])
    mask_updates.save_mask(inside, tmp_path, 3)
    assert {name: places.tolist() for name, places in load_mask(tmp_path, 3).trained.items()} == {"a": [0, 1], "b": [2]}


def cut_anew(network, source: Path, model: ModelChoice, checkpoints: Path):
    """Let a rescorer cut the mask of a network in training, after step 2; return what is trained then."""
    scoring, rows, ids = read(source, model)
    mask = mask_updates.read_mask(source / "selection", model)
    inside = restrict_model(network, mask, 0.1, None)
    rescorer = Rescorer(inside, scoring, label="chosen-3", rows=rows, ids=ids, checkpoints=checkpoints)
    network.train()
    with packing.packed_attention(network):
        packed = network.config._attn_implementation
        rescorer.on_step_end(None, SimpleNamespace(global_step=2, max_steps=9), None)
        assert network.training
        assert network.config._attn_implementation == packed
    return inside, rescorer


def test_after_a_cut_the_model_is_in_training_again_and_the_new_mask_alone_has_gradients(source, model, tmp_path):
    network = move(fresh(model))
    inside, _ = cut_anew(network, source, model, tmp_path)
    assert all(weight.grad is None for weight in network.parameters())
    network(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    for name, weight in network.named_parameters():
        assert weight.requires_grad == (name in inside.mask)
        if name in inside.mask:
            moved = weight.grad.view(-1).nonzero().flatten()
            assert set(moved.tolist()) <= set(inside.mask[name].tolist())
            assert moved.numel() > 0


def test_a_checkpoint_goes_on_with_the_last_mask_that_was_cut_before_it(source, model, tmp_path):
    inside, rescorer = cut_anew(fresh(model), source, model, tmp_path)
    mask_updates.save_mask(inside, tmp_path, 10)
    assert load_mask(tmp_path, 1) is None
    kept = load_mask(tmp_path, 9)
    assert kept.rescored == inside.rescored
    for found, wanted in ((kept.mask, inside.mask), (kept.trained, inside.trained)):
        assert {name: places.tolist() for name, places in found.items()} == {
            name: places.tolist() for name, places in wanted.items()
        }
    rescorer.on_save(None, None, None)
    assert [path.name for path in mask_updates.list_kept(tmp_path)] == ["mask-10.safetensors"]


def test_settings_that_do_not_enter_a_new_cut_train_nothing_anew(world, model):
    settings = replace(ONE, epochs=1)
    assert write(world, model, settings, **CUT)["arms_trained"] == 1
    for unread in ({"warmup_share": 0.4}, {"learning_rate": 1e-3}, {"fisher_rows": 3}):
        assert write(world, model, settings, **CUT | {"gradients": replace(SMALL, **unread)})["arms_trained"] == 0
    for unread in ({"shard_rows": 7}, {"pack_tokens": 90}, {"block_parameters": 4000}):
        assert write(world, model, settings, **CUT, runtime=replace(SMALL_RUNTIME, **unread))["arms_trained"] == 0
    assert write(world, model, settings, **CUT | {"gradients": replace(SMALL, lambda_prior=0.7)})["arms_trained"] == 1


def test_a_mask_that_gradients_did_not_choose_is_not_cut_anew(world, model):
    write_mask(world, model, "random")
    text = (
        r"mask.update_steps is 2 and .*selection holds a mask by random; only a mask by dualsft is .*update_steps: null"
    )
    with pytest.raises(ValueError, match=text):
        run(world, model, ONE, **CUT)


def test_a_gradient_that_is_not_finite_names_its_rows(source, model):
    scoring, rows, ids = read(source, model)
    network = fresh(model)
    with torch.no_grad():
        network.get_input_embeddings().weight[rows.row(3, headless=True)[0].tokens[0]] = torch.nan
    text = r"rows have a gradient that is not finite when the mask is cut anew, first ids \['\w+'.*learning_rate"
    with pytest.raises(ValueError, match=text):
        score(network, scoring, rows, ids)
