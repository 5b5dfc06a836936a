"""The stage `evaluation` where a version continues from another: what the arms have learnt and forgotten since."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from worlds.token_rows import list_pairs
from worlds.toy_training import evaluate, make_next, make_world, rows_of, run

from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, provenance, read_table
from tasks.evaluation import networks
from tasks.evaluation.inputs import read_held_out
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice

SETTINGS = EvaluationSettings(new_tokens=4, demos=0, bootstrap=50)
TRAINING = FinetuningSettings(arms={"chosen": [3]}, epochs=2, learning_rate=1e-2, batch_rows=4)
NEXT = replace(TRAINING, arms={"chosen": [3], "random": [0, 1], "full": [0]})
LABELS = [("base", None), ("previous", None), ("chosen", 3), ("random", 0), ("random", 1), ("full", 0)]


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """Two versions, `v1` and `v2`, with trained arms, and the evaluation of the second."""
    folder = tmp_path_factory.mktemp("versions")
    before = run(make_world(folder / "v1"), model, TRAINING)
    run(make_next(folder / "v2"), model, NEXT, previous=before)
    evaluate(folder / "v2", folder / "v1", model, SETTINGS)
    return folder


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """The same, to be changed, without what the stores know of it."""
    return shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("store"))


def table_of(home: Path) -> pa.Table:
    return read_table(home / "v2/evaluation/evaluation.parquet", schemas.EVALUATION)


def metrics_of(home: Path) -> dict:
    return json.loads((home / "v2/evaluation/metrics.json").read_text())


def losses_of(table: pa.Table, version: str) -> dict[str, np.ndarray]:
    """Losses of every arm on a version's held-out rows, [seed, row]."""
    found: dict[str, list] = {}
    for arm, seed in LABELS:
        rows = rows_of(table, arm=arm, seed=seed, held_out_of=version)
        found.setdefault(arm, []).append([row["loss"] for row in rows])
    return {arm: np.array(losses) for arm, losses in found.items()}


def test_every_model_answers_the_held_out_rows_of_both_versions(home):
    table = table_of(home)
    assert list(dict.fromkeys((row["arm"], row["seed"]) for row in table.to_pylist())) == LABELS
    for version, ids in (("v2", 3), ("v1", 3)):
        for arm, seed in LABELS:
            rows = rows_of(table, arm=arm, seed=seed, held_out_of=version)
            assert len({row["id"] for row in rows}) == len(rows) == ids
            assert {row["learner"] for row in rows} == {"none" if arm == "base" else "finetuning"}


@pytest.mark.parametrize(("arm", "place"), [("previous", "v1/out/arms/chosen-3"), ("full", "v2/out/arms/full-0")])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_losses_are_those_of_whole_float64_passes_one_by_one(home, model, toy_folder, arm, place, version):
    base = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
        network = PeftModel.from_pretrained(base, home / place).double().eval()
    folders = {version: home / version / "examples", "base": home / "v1/examples"}
    pairs = list_pairs(read_held_out(folders, model).prompts.encoding)
    rows = rows_of(table_of(home), arm=arm, held_out_of=version)
    assert len(rows) == 3
    for number, row in enumerate(rows):
        expected = -np.mean(oracles.plain_log_probs(network, *pairs[number]))
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_row_held_out_in_both_versions_is_computed_once_and_stands_under_both(copy, model, monkeypatch):
    asked, plain = [], networks.score_rows

    def counting(network, rows, pack_tokens):
        asked.append(len(rows))
        return plain(network, rows, pack_tokens)

    monkeypatch.setattr(networks, "score_rows", counting)
    evaluate(copy / "v2", copy / "v1", model, replace(SETTINGS, task_metric="exact_match"))
    assert asked == [5] * len(LABELS)
    table = table_of(copy)
    (both,) = {row["id"] for row in rows_of(table, held_out_of="v1")} & {
        row["id"] for row in rows_of(table, held_out_of="v2")
    }
    for arm, seed in LABELS:
        one, other = (rows_of(table, arm=arm, seed=seed, id=both, held_out_of=version)[0] for version in ("v1", "v2"))
        assert one | {"held_out_of": "v2"} == other


@pytest.mark.parametrize(("name", "version"), [("plasticity", "v2"), ("stability", "v1")])
def test_gains_are_those_of_the_slow_computation(home, name, version):
    losses = losses_of(table_of(home), version)
    found = metrics_of(home)["continual"][name]
    assert list(found) == ["chosen", "full", "random"]  # as JSON sorts them
    series = {arm: values[:, :, None].astype(float) for arm, values in losses.items()}
    drawn = oracles.resampled_arms(series, SETTINGS.bootstrap, SETTINGS.seed)
    for arm, gain in found.items():
        assert gain["loss"] == pytest.approx(losses["previous"].mean() - losses[arm].mean(), abs=1e-6)
        changes = [before[0] - after[0] for before, after in zip(drawn["previous"], drawn[arm], strict=True)]
        assert gain["low"] == pytest.approx(oracles.percentile(changes, 0.025), abs=1e-6)
        assert gain["high"] == pytest.approx(oracles.percentile(changes, 0.975), abs=1e-6)


def test_metrics_name_the_version_before_and_the_losses_there(home):
    found, losses = metrics_of(home)["continual"], losses_of(table_of(home), "v1")
    assert (found["previous"], found["rows"]) == ("v1", 3)
    assert found["losses"] == pytest.approx({arm: values.mean() for arm, values in losses.items()}, rel=1e-6)


def test_arms_are_compared_on_the_held_out_rows_of_their_own_version(home):
    found, losses = metrics_of(home), losses_of(table_of(home), "v2")
    assert found["held_out_rows"] == 3
    assert {name: arm["loss"] for name, arm in found["arms"].items()} == pytest.approx(
        {arm: values.mean() for arm, values in losses.items()}, rel=1e-6
    )
    assert (found["arms"]["previous"]["rows"], found["arms"]["previous"]["seeds"]) == (0, 1)
    assert "chosen-previous" in found["differences"]


def test_training_on_new_rows_lowers_the_loss_on_them_in_the_toy_world(home):
    assert metrics_of(home)["continual"]["plasticity"]["full"]["loss"] > 0


def test_evaluation_names_the_examples_of_both_versions_as_its_inputs(home):
    inputs = provenance(home / "v2/evaluation/evaluation.parquet")["inputs"]
    names = ["v1/examples/examples.parquet", "v2/examples/examples.parquet", "v2/out/finetuning.json"]
    assert sorted(inputs) == names


def test_without_a_model_before_the_base_is_what_arms_started_from(copy, model):
    shutil.rmtree(copy / "v2")
    (copy / "none/arms").mkdir(parents=True)
    run(make_next(copy / "v2"), model, TRAINING, previous=copy / "none")
    evaluate(copy / "v2", copy / "v1", model, SETTINGS)
    table, found = table_of(copy), metrics_of(copy)["continual"]
    base, chosen = ([row["loss"] for row in rows_of(table, arm=arm, held_out_of="v1")] for arm in ("base", "chosen"))
    assert found["stability"]["chosen"]["loss"] == pytest.approx(np.mean(base) - np.mean(chosen), abs=1e-6)
    assert list(found["losses"]) == ["base", "chosen"]


def test_whole_models_that_continue_are_evaluated(tmp_path, model):
    full = replace(TRAINING, method="full", learning_rate=1e-3)
    before = run(make_world(tmp_path / "v1"), model, full)
    run(make_next(tmp_path / "v2"), model, full, previous=before)
    evaluate(tmp_path / "v2", tmp_path / "v1", model, SETTINGS)
    arms = metrics_of(tmp_path)["arms"]
    assert len({arm["loss"] for arm in arms.values()}) == 3


def test_a_model_before_that_is_not_the_one_trained_on_is_refused(copy, model):
    path = copy / "v1/out/arms/chosen-3/adapter_model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
    text = r"arms/chosen-3 does not hold the weights that the arms were trained on from.*dvc checkout.*tamis run"
    with pytest.raises(ArtifactError, match=text):
        evaluate(copy / "v2", copy / "v1", model, SETTINGS)


def test_same_inputs_give_the_same_bytes(home, copy, model):
    again = evaluate(copy / "v2", copy / "v1", model, SETTINGS, out=copy / "again")
    assert (again / "metrics.json").read_bytes() == (home / "v2/evaluation/metrics.json").read_bytes()
    table = read_table(again / "evaluation.parquet", schemas.EVALUATION)
    assert table.equals(table_of(home))
