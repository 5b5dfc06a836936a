"""The stage `finetuning`, method masked: what moves, what does not, the delta, resuming and continuing."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import oracles
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from worlds.token_rows import list_pairs
from worlds.toy_training import content, interrupt, make_next, make_world, run, write, write_mask

from tamis.masks.tensor_layout import MaskError
from tamis.training.steps import plan_steps
from tasks.artifacts.tables import digest
from tasks.finetuning import mask_updates, trainer
from tasks.finetuning.finetuning import plan_arms, read_pool
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import ArmProgress, Recipe, TrainingError
from tasks.masks import sparse_deltas
from tasks.models import ModelChoice

ONE = FinetuningSettings(
    arms={"chosen": [3]}, method="masked", epochs=2, learning_rate=1e-2, batch_rows=2, save_steps=2
)  # 6 steps
IDS = torch.arange(9)[None]


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def before(tmp_path_factory, model) -> Path:
    """A first version, trained inside a mask, as a whole model, too."""
    world = make_world(tmp_path_factory.mktemp("before"))
    write_mask(world, model)
    run(world, model, replace(ONE, whole_model=True))
    return world


@pytest.fixture
def world(tmp_path, model) -> Path:
    """Upstream artifacts with a mask of a tenth."""
    write_mask(make_world(tmp_path), model)
    return tmp_path


def weights_of(folder: Path, **how) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach() for name, weight in AutoModelForCausalLM.from_pretrained(folder, **how).named_parameters()
    }


def entries_of(folder: Path) -> dict[str, set[int]]:
    return {name: set(places.tolist()) for name, places in sparse_deltas.read_delta(folder)[0].indices.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_entries_outside_the_mask_keep_their_bits_for_three_epochs_with_decay(
    world, model, toy_folder, monkeypatch, dtype
):
    monkeypatch.setattr(mask_updates, "RestrictedAdamW", partial(mask_updates.RestrictedAdamW, weight_decay=0.1))
    model = replace(model, dtype=dtype)
    mask = write_mask(world, model)
    folder = run(world, model, replace(ONE, epochs=3, whole_model=True)) / "arms/chosen-3/model"
    old, new = (weights_of(place, dtype=getattr(torch, dtype)) for place in (toy_folder, folder))
    moved = 0
    for name in old:
        outside = torch.ones(old[name].numel(), dtype=torch.bool)
        outside[mask.get(name, torch.empty(0, dtype=torch.int32))] = False
        assert torch.equal(old[name].view(-1)[outside], new[name].view(-1)[outside])
        moved += int((old[name] != new[name]).sum())
    assert moved > 0.9 * sum(map(len, mask.values()))


def test_the_delta_on_the_base_has_the_logits_of_the_trained_model(before, model, toy_folder):
    folder = before / "out/arms/chosen-3"
    assert sorted(path.name for path in folder.iterdir()) == ["base.json", "delta.safetensors", "model", "rows.json"]
    whole = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(toy_folder).eval()
    plain = base(IDS).logits
    with sparse_deltas.patched(base, folder, model) as network:
        assert torch.equal(network(IDS).logits, whole(IDS).logits)
    assert torch.equal(base(IDS).logits, plain)
    assert not torch.equal(whole(IDS).logits, plain)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_delta(world, model):
    settings = replace(ONE, arms={"chosen": [0, 1]}, epochs=1)
    one = content(run(world, model, settings))
    shutil.rmtree(world / "scratch")
    assert content(run(world, model, settings, "again")) == one
    first, second = (sparse_deltas.read_delta(world / f"out/arms/chosen-{seed}")[0] for seed in (0, 1))
    assert all(torch.equal(first.indices[name], second.indices[name]) for name in first.indices)
    assert any(not torch.equal(first.values[name], second.values[name]) for name in first.values)


@pytest.mark.parametrize(("dtype", "after"), [("float32", 3), ("bfloat16", 5)])
def test_an_interrupted_arm_resumes_bit_for_bit(world, model, monkeypatch, dtype, after):
    model = replace(model, dtype=dtype)
    write_mask(world, model)
    whole = content(run(world, model, ONE, "whole"))
    shutil.rmtree(world / "scratch")
    interrupt(monkeypatch, "chosen-3", after)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, model, ONE)
    monkeypatch.setattr(trainer, "ArmProgress", ArmProgress)
    assert content(run(world, model, ONE)) == whole


def test_bfloat16_weights_have_a_bfloat16_delta_and_float32_state(world, model):
    model = replace(model, dtype="bfloat16")
    mask = write_mask(world, model)
    out = run(world, model, replace(ONE, epochs=1))
    assert {values.dtype for values in sparse_deltas.read_delta(out / "arms/chosen-3")[0].values.values()} == {
        torch.bfloat16
    }
    entries, steps = sum(map(len, mask.values())), 4 * len(mask)
    assert json.loads((out / "finetuning.json").read_text())["arms"]["chosen-3"]["state_bytes"] == 16 * entries + steps


def test_a_mask_of_everything_trains_what_method_full_trains(world, model):
    write_mask(world, model, fraction=1.0)
    settings = replace(ONE, learning_rate=1e-3, whole_model=True)
    masked = weights_of(run(world, model, settings, "masked") / "arms/chosen-3/model")
    full = weights_of(run(world, model, replace(settings, method="full"), "full") / "arms/chosen-3")
    for name in full:
        torch.testing.assert_close(masked[name], full[name], rtol=1e-4, atol=1e-5)


def test_finetuning_json_records_what_was_trained_and_what_it_took(before, model):
    found = json.loads((before / "out/finetuning.json").read_text())
    size = (before / "out/arms/chosen-3/delta.safetensors").stat().st_size
    entries = {name: len(places) for name, places in entries_of(before / "out/arms/chosen-3").items()}
    arm, parameters = found["arms"]["chosen-3"], sum(map(torch.numel, weights_of(Path(model.name)).values()))
    assert (arm["trained_parameters"], arm["delta_entries"], arm["delta_bytes"]) == (*[sum(entries.values())] * 2, size)
    assert arm["state_bytes"] == 12 * sum(entries.values()) + 4 * len(entries)  # a step of 4 bytes per tensor
    assert arm["state_share"] == pytest.approx(arm["state_bytes"] / (8 * parameters), abs=1e-6)
    assert arm["rescored"] == []
    assert digest(before / "selection/mask.parquet") in found["inputs"].values()


def test_a_mask_that_is_written_again_is_found_trained_and_another_is_not(world, model):
    assert {"arms_trained": 1, "arms_found": 0}.items() <= write(world, model, ONE).items()
    write_mask(world, model)
    assert {"arms_trained": 0, "arms_found": 1}.items() <= write(world, model, ONE).items()
    write_mask(world, model, seed=1)
    assert {"arms_trained": 1, "arms_found": 0}.items() <= write(world, model, ONE).items()


def test_a_mask_of_another_model_is_refused(world, model):
    with pytest.raises(MaskError, match=r"belongs to another model"):
        run(world, replace(model, dtype="bfloat16"), ONE)


def test_float16_weights_are_not_trained_inside_a_mask(world, model):
    model = replace(model, dtype="float16")
    write_mask(world, model)
    with pytest.raises(TrainingError, match=r"float16 weights cannot be trained inside a mask .*dtype: bfloat16"):
        run(world, model, ONE)


@pytest.fixture
def after(tmp_path, model) -> Path:
    """Upstream artifacts of a version that continues, with a mask of its own."""
    write_mask(make_next(tmp_path / "next"), model, seed=1)
    return tmp_path / "next"


def test_a_version_trains_on_from_the_delta_of_the_version_before(after, model, before):
    out = run(after, model, ONE, previous=before / "out")
    pool = read_pool(after / "examples", after / "selection", model, ONE)
    (arm,) = plan_arms(pool, Recipe(model, ONE))
    taken = arm.rows[plan_steps(len(arm.rows), 2, 2, 3)[0]]
    network = AutoModelForCausalLM.from_pretrained(before / "out/arms/chosen-3/model", dtype=torch.float64).eval()
    wanted = oracles.training_loss(network, list_pairs(pool.encoding.pick(taken)), "row")
    first = (out / "curve.csv").read_text().splitlines()[1]
    assert float(first.rpartition(",")[2]) == pytest.approx(wanted, rel=1e-4)
    assert json.loads((out / "finetuning.json").read_text())["continues_from"] == "chosen-3"


def test_a_continued_delta_stands_on_the_base_and_holds_the_entries_of_both_masks(after, model, before):
    folder = run(after, model, ONE, previous=before / "out") / "arms/chosen-3"
    old, new = (sparse_deltas.read_delta(place)[0] for place in (before / "out/arms/chosen-3", folder))
    first, both = entries_of(before / "out/arms/chosen-3"), entries_of(folder)
    mask = {name: set(places.tolist()) for name, places in write_mask(after, model, seed=1).items()}
    assert both == {name: first.get(name, set()) | mask.get(name, set()) for name in both}
    kept = 0
    for name in first:
        theirs = dict(zip(new.indices[name].tolist(), new.values[name].tolist(), strict=True))
        for place, value in zip(old.indices[name].tolist(), old.values[name].tolist(), strict=True):
            if place not in mask[name]:
                assert theirs[place] == value
                kept += 1
    assert 0 < kept < sum(map(len, first.values()))


def test_method_full_goes_on_from_the_base_with_the_delta_of_the_version_before(after, model, before):
    full = replace(ONE, method="full", epochs=1, learning_rate=1e-30)
    out = run(after, model, full, previous=before / "out")
    old, new = weights_of(before / "out/arms/chosen-3/model"), weights_of(out / "arms/chosen-3")
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-20)
    assert json.loads((out / "finetuning.json").read_text())["continues_from"] == "chosen-3"


def test_method_full_that_goes_on_from_a_delta_trains_entries_outside_of_the_mask(after, model, before):
    out = run(after, model, replace(ONE, method="full", epochs=1), previous=before / "out")
    old, new = weights_of(before / "out/arms/chosen-3/model"), weights_of(out / "arms/chosen-3")
    moved = sum(int((old[name] != new[name]).sum()) for name in old)
    assert moved > 5 * sum(map(len, entries_of(before / "out/arms/chosen-3").values()))


def test_a_mask_is_not_trained_in_a_whole_model_of_the_version_before(model, toy_folder):
    with pytest.raises(TrainingError, match=r"is a whole model and finetuning.method is masked; .*method: full, or"):
        trainer.refuse_other(toy_folder, model, ONE)


def test_an_interrupted_arm_that_continues_resumes_bit_for_bit(after, model, before, monkeypatch):
    whole = content(run(after, model, ONE, "whole", before / "out"))
    shutil.rmtree(after / "scratch")
    interrupt(monkeypatch, "chosen-3", 3)
    with pytest.raises(RuntimeError, match="out of power"):
        run(after, model, ONE, previous=before / "out")
    monkeypatch.setattr(trainer, "ArmProgress", ArmProgress)
    assert content(run(after, model, ONE, previous=before / "out")) == whole


def test_another_method_than_before_names_both(after, model, before):
    text = r"chosen-3 is a delta and finetuning.method is lora; .*set finetuning.method: masked, or .*tamis run"
    with pytest.raises(TrainingError, match=text):
        run(after, model, replace(ONE, method="lora"), previous=before / "out")


@pytest.mark.parametrize("method", ["masked", "full"])
def test_another_base_than_that_of_the_delta_before_is_named(after, model, before, method):
    other = replace(model, dtype="bfloat16")
    write_mask(after, other)
    text = r"chosen-3 was trained with models.dtype: float32, not bfloat16, its digest: .*base's parameters are trained"
    with pytest.raises(TrainingError, match=text):
        run(after, other, replace(ONE, method=method), previous=before / "out")


def test_a_package_names_the_base_in_the_delta_and_no_place_on_this_machine(world, model, toy_folder, monkeypatch):
    monkeypatch.setattr("tasks.model_files._package_folder", lambda name: toy_folder)
    model = replace(model, name="package:toy")
    write_mask(world, model)
    out = run(world, model, replace(ONE, epochs=1))
    assert all(str(toy_folder).encode() not in text for text in content(out).values())
    assert sparse_deltas.read_delta(out / "arms/chosen-3")[1]["base"]["name"] == "package:toy"
    assert load_file(out / "arms/chosen-3/delta.safetensors")
