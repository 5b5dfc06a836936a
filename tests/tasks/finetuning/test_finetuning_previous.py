"""The stage `finetuning` where a version continues from another: the model that it starts from, and replay."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import oracles
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from worlds.token_rows import list_pairs
from worlds.toy_training import CHOSEN, ROWS, content, interrupt, make_next, make_world, run, write

from tamis.training.steps import plan_steps
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.finetuning import trainer
from tasks.finetuning.finetuning import plan_arms, read_pool
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import ArmProgress, Recipe, TrainingError
from tasks.models import ModelChoice

FIRST = FinetuningSettings(arms={"chosen": [3], "full": [0]}, epochs=2, learning_rate=1e-2, batch_rows=2, save_steps=2)
NEXT = replace(FIRST, arms={"chosen": [3, 4], "random": [0], "full": [0]}, epochs=1)
ONE = replace(NEXT, arms={"chosen": [3]}, epochs=3)  # 6 steps
FULL = {"method": "full", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def before(tmp_path_factory, model) -> dict[str, Path]:
    """The artifact of the version before, by method."""
    lora = run(make_world(tmp_path_factory.mktemp("lora")), model, FIRST)
    full = run(make_world(tmp_path_factory.mktemp("full")), model, replace(FIRST, arms={"chosen": [3]}, **FULL))
    return {"lora": lora, "full": full}


@pytest.fixture
def world(tmp_path) -> Path:
    """Upstream artifacts of a version that continues."""
    return make_next(tmp_path / "next")


def load(toy_folder: Path, folder: Path):
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    base = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
        return PeftModel.from_pretrained(base, folder).double().eval()


def numbers(out: Path) -> dict:
    return json.loads((out / "finetuning.json").read_text())


def settings_of(method: str, settings: FinetuningSettings) -> FinetuningSettings:
    return settings if method == "lora" else replace(settings, **FULL)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_arm_starts_from_the_first_chosen_model_of_the_version_before(world, model, before, toy_folder, method):
    settings = settings_of(method, NEXT)
    out = run(world, model, settings, previous=before[method])
    network = load(toy_folder, before[method] / "arms/chosen-3")
    pool = read_pool(world / "examples", world / "selection", model, settings)
    lines = [line.split(",") for line in (out / "curve.csv").read_text().splitlines()[1:]]
    for arm in plan_arms(pool, Recipe(model, settings)):
        taken = arm.rows[plan_steps(len(arm.rows), 2, 1, arm.seed)[0]]
        pairs = list_pairs(pool.encoding.pick(taken))
        (first,) = [float(line[4]) for line in lines if line[:3] == [arm.name, str(arm.seed), "1"]]
        assert first == pytest.approx(oracles.training_loss(network, pairs, "row"), rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_interrupted_arm_that_continues_resumes_bit_for_bit(world, model, before, monkeypatch, method):
    settings = settings_of(method, ONE)
    whole = content(run(world, model, settings, "whole", before[method]))
    shutil.rmtree(world / "scratch")
    counting = ArmProgress
    interrupt(monkeypatch, "chosen-3", 5)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, model, settings, previous=before[method])
    assert len(list((world / "scratch").glob("*/checkpoints/checkpoint-4"))) == 1
    monkeypatch.setattr(trainer, "ArmProgress", counting)
    assert content(run(world, model, settings, previous=before[method])) == whole


def test_the_same_adapter_goes_on_being_trained_on_the_base_model(world, model, before):
    out = run(world, model, ONE, previous=before["lora"])
    old, new = (folder / "arms/chosen-3" for folder in (before["lora"], out))
    assert (old / "adapter_config.json").read_bytes() == (new / "adapter_config.json").read_bytes()
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (old, new))
    assert one.keys() == other.keys()
    assert all(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_at_no_rate_leaves_the_model_of_the_version_before(world, model, before, method):
    out = run(world, model, replace(settings_of(method, ONE), learning_rate=1e-30), previous=before[method])
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    old, new = (load_file(folder / "arms/chosen-3" / name) for folder in (before[method], out))
    for key in old:
        torch.testing.assert_close(old[key], new[key], rtol=0, atol=1e-20)


def test_a_merged_model_is_the_base_with_the_continued_adapter(world, model, before, toy_folder):
    folder = run(world, model, replace(ONE, whole_model=True), previous=before["lora"]) / "arms/chosen-3"
    ids = torch.arange(9)[None]
    merged = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64).eval()
    torch.testing.assert_close(merged(ids).logits, load(toy_folder, folder)(ids).logits, rtol=1e-4, atol=1e-5)


def test_continued_adapters_stay_float32_beside_half_weights(world, model, before):
    out = run(world, replace(model, dtype="bfloat16"), ONE, previous=before["lora"])
    weights = load_file(out / "arms/chosen-3/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_finetuning_json_names_the_model_that_training_started_from(world, model, before):
    found = numbers(run(world, model, ONE, previous=before["lora"]))
    assert found["continues_from"] == "chosen-3"
    (path,) = found["continues_from_digest"]
    assert path == "arms/chosen-3/adapter_model.safetensors"
    first = numbers(before["lora"])
    assert (first["continues_from"], first["continues_from_digest"]) == (None, None)


def test_another_model_before_starts_an_arm_anew(world, model, before, tmp_path):
    assert {"arms_trained": 1, "arms_found": 0}.items() <= write(world, model, ONE, previous=before["lora"]).items()
    assert {"arms_trained": 0, "arms_found": 1}.items() <= write(world, model, ONE, previous=before["lora"]).items()
    other = run(make_world(tmp_path / "other"), model, replace(FIRST, learning_rate=2e-3))
    assert {"arms_trained": 1, "arms_found": 0}.items() <= write(world, model, ONE, previous=other).items()


@pytest.mark.parametrize(("replay", "added"), [("none", 0), ("subset", len(CHOSEN)), ("all", ROWS)])
def test_replay_adds_kept_rows_to_every_arm_once(world, model, before, replay, added):
    out = run(world, model, replace(NEXT, replay=replay), previous=before["lora"])
    drawn = {"chosen-3": 4, "chosen-4": 4, "random-0": 4, "full-0": 8}
    found = numbers(out)
    assert found["replay"] == replay
    assert {label: (arm["rows"], arm["replayed"]) for label, arm in found["arms"].items()} == {
        label: (rows + added, added) for label, rows in drawn.items()
    }


@pytest.mark.parametrize("replay", ["none", "subset", "all"])
def test_rows_json_lists_what_an_arm_was_trained_on(world, model, before, replay):
    out = run(world, model, replace(NEXT, replay=replay), previous=before["lora"])
    old = json.loads((before["lora"] / "arms/full-0/rows.json").read_text())
    repeated = {"none": set(), "subset": {old[place] for place in CHOSEN}, "all": set(old)}[replay]
    for label in ("chosen-3", "random-0", "full-0"):
        ids = json.loads((out / "arms" / label / "rows.json").read_text())
        assert len(ids) == len(set(ids))
        assert set(ids) & set(old) == repeated


@pytest.mark.parametrize("known", [0, 2])
def test_rows_that_the_model_before_was_trained_on_are_not_measured_on(world, model, before, tmp_path, known):
    previous = Path(shutil.copytree(before["lora"], tmp_path / "before"))
    rows = read_table(world / "examples/examples.parquet").to_pylist()
    held_out = [row["id"] for row in rows if row["split"] == "held_out"]
    place = previous / "arms/chosen-3/rows.json"  # as replay of all that was offered writes it
    place.write_text(json.dumps(json.loads(place.read_text()) + held_out[:known]))
    if not known:
        assert run(world, model, ONE, out="apart", previous=previous).exists()
        return
    told = rf"chosen-3, from which .*, was trained on 2 of {len(held_out)} held-out rows, first {min(held_out[:2])}: "
    with pytest.raises(TrainingError, match=told):
        run(world, model, ONE, out="apart", previous=previous)
    assert not (world / "apart").exists()


def test_rows_that_an_arm_has_already_are_not_repeated(tmp_path, model, before):
    world = make_next(tmp_path / "next", ground_set="all")
    arms = numbers(run(world, model, replace(NEXT, replay="subset"), previous=before["lora"]))["arms"]
    assert (arms["full-0"]["rows"], arms["full-0"]["replayed"]) == (ROWS + 8, 0)
    assert (arms["chosen-3"]["rows"], arms["chosen-3"]["replayed"]) == (4 + len(CHOSEN), len(CHOSEN))


def test_unknown_replay_is_refused():
    with pytest.raises(ValidationError, match=r"(?m)^replay\n  Input should be 'none', 'subset' or 'all' "):
        replace(ONE, replay="some")


@pytest.mark.parametrize(("method", "kind"), [("lora", "an adapter"), ("full", "a whole model")])
def test_another_method_than_before_names_both_and_the_way_out(world, model, before, method, kind):
    other = "full" if method == "lora" else "lora"
    text = rf"chosen-3 is {kind} and finetuning.method is {other}; .*set finetuning.method: {method}, or .*tamis run"
    with pytest.raises(TrainingError, match=text):
        run(world, model, replace(ONE, method=other), previous=before[method])


def test_another_width_of_the_adapter_names_both(world, model, before):
    text = (
        r"chosen-3 was trained with finetuning.lora_rank: 16, not 8, finetuning.lora_alpha: 32, not 4; .* set this back"
    )
    with pytest.raises(TrainingError, match=text):
        run(world, model, replace(ONE, lora_rank=8, lora_alpha=4), previous=before["lora"])


def test_another_base_model_than_the_adapters_is_named(world, model, before, toy_folder, tmp_path):
    moved = shutil.copytree(toy_folder, tmp_path / "moved")
    with pytest.raises(
        TrainingError, match=rf"was trained with models.language: {model.label}, not folder:{moved.name}; "
    ):
        run(world, replace(model, name=str(moved)), ONE, previous=before["lora"])


def test_a_version_before_without_a_chosen_arm_is_refused_with_those_that_it_has(world, model, before, tmp_path):
    partial = shutil.copytree(before["lora"], tmp_path / "partial")
    shutil.rmtree(partial / "arms/chosen-3")
    with pytest.raises(ArtifactError, match=r"arms has no chosen arm, from which training goes on; it has full-0"):
        run(world, model, ONE, previous=partial)


def test_whatever_the_seeds_are_training_goes_on_from_the_lowest_one_before(world, model, before):
    settings = replace(ONE, arms={"chosen": [9]})
    out = run(world, model, settings, previous=before["lora"])
    assert json.loads((out / "finetuning.json").read_text())["continues_from"] == "chosen-3"


def test_arms_that_were_not_checked_out_are_not_taken_for_none(world, model, tmp_path):
    with pytest.raises(ArtifactError, match=r"gone/arms is missing; restore it with `dvc checkout`"):
        run(world, model, ONE, previous=tmp_path / "gone")


def test_an_arm_without_weights_is_refused(world, model, before, tmp_path):
    damaged = shutil.copytree(before["lora"], tmp_path / "damaged")
    (damaged / "arms/chosen-3/adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"arms/chosen-3 holds no weights; restore it with `dvc checkout`"):
        run(world, model, ONE, previous=damaged)
