"""The gates of a version: what a model's losses on validation rows, and a pilot, allow."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM
from worlds.places import find_artifacts, find_folders
from worlds.token_rows import list_pairs
from worlds.toy_corpus import learn, row, write_examples, write_rows
from worlds.toy_training import CHOSEN, make_world, run, write_subset

from tamis.examples.splits import VALIDATION
from tasks.acceptance.acceptance import judge, pass_gates
from tasks.acceptance.settings import AcceptanceSettings
from tasks.evaluation.inputs import EvaluationError, read_held_out
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice

TRAINING = FinetuningSettings(arms={"chosen": [3], "random": [0]}, epochs=2, learning_rate=1e-2, batch_rows=4)
ANY = AcceptanceSettings(loss=100.0, retention=100.0)
NEW = range(20, 28)


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """Two trained versions; three rows of the first validate, and two others of the second."""
    folder = tmp_path_factory.mktemp("accepted")
    before = run(make_world(folder / "v1"), model, TRAINING)
    write_rows(folder / "v1/base/examples", [])
    rows = [learn(row(place, "pool")) for place in NEW]
    rows += [row(30, "held_out"), row(40, "validation"), row(41, "validation")]
    write_subset(folder / "v2/selection", write_rows(folder / "v2/examples", rows), CHOSEN & set(range(8)))
    run(folder / "v2", model, TRAINING, previous=before)
    return folder


def folders_of(home: Path, version: str = "v2"):
    before = {"before": find_artifacts(home / "v1", "v1", finetuning=home / "v1/out")} if version == "v2" else {}
    return find_folders(home / version, version=version, finetuning=home / version / "out", **before)


def gates(home: Path, settings: AcceptanceSettings, model: ModelChoice, version: str = "v2") -> dict:
    return {gate.name: gate for gate in pass_gates(folders_of(home, version), settings, model=model)}


def plain_losses(examples: Path, adapters: Path | None, model: ModelChoice) -> np.ndarray:
    """Return the loss of each validation row, by whole passes one by one."""
    network = AutoModelForCausalLM.from_pretrained(model.name)
    network = PeftModel.from_pretrained(network, adapters) if adapters else network
    encoding = read_held_out({"v": examples}, model, VALIDATION).prompts.encoding
    return np.array([-np.mean(oracles.plain_log_probs(network, *pair)) for pair in list_pairs(encoding)])


def test_excess_is_that_of_the_first_chosen_arm_over_the_model_that_it_continues_from(home, model):
    found = gates(home, ANY, model)
    arms = [home / f"{version}/out/arms/chosen-3" for version in ("v1", "v2")]
    for name, version, rows in (("loss", "v2", 2), ("retention", "v1", 3)):
        was, now = (plain_losses(home / version / "examples", each, model) for each in arms)
        assert found[name].figures["excess"] == pytest.approx(np.mean(now - was), rel=1e-4)
        assert found[name].figures["rows"] == rows
        assert found[name].figures["low"] <= found[name].figures["excess"] <= found[name].figures["high"]


def test_a_first_version_is_held_against_the_base_and_forgets_nothing(home, model):
    found = gates(home, ANY, model, "v1")
    examples = home / "v1/examples"
    was, now = (plain_losses(examples, each, model) for each in (None, home / "v1/out/arms/chosen-3"))
    assert found["loss"].figures["excess"] == pytest.approx(np.mean(now - was), rel=1e-4)
    assert (found["retention"].passed, found["retention"].told) == (True, "retention: no row to compare on")


def test_a_gate_closes_above_its_limit_alone(home, model):
    excess = gates(home, ANY, model)["retention"].figures["excess"]
    assert excess > 0, "this training forgets"
    for limit, passed in ((excess * 1.01, True), (excess * 0.99, False), (0.0, False)):
        assert gates(home, AcceptanceSettings(retention=limit), model)["retention"].passed is passed


def test_no_gate_that_is_not_set_is_asked(home, model, monkeypatch):
    monkeypatch.setattr("tasks.acceptance.acceptance.measure_excess", lambda *_: pytest.fail("asked"))
    assert gates(home, AcceptanceSettings(), model) == {}


@pytest.mark.parametrize(
    ("decision", "least", "passed"),
    [
        ("choice", "choice", True),
        ("mixture", "choice", False),
        ("mixture", "mixture", True),
        ("chance", "mixture", False),
        ("chance", "chance", True),
    ],
)
def test_the_pilots_word_is_asked_where_one_is_on(home, model, decision, least, passed):
    path = home / "v2/selection/selection.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"pilot": {"decision": decision, "why": "so"}}))
        found = gates(home, AcceptanceSettings(pilot=least), model)["pilot"]
    finally:
        path.write_text(before)
    assert (found.passed, found.told) == (passed, f"pilot: so; asked is {least} at least")


def test_a_version_without_validation_rows_cannot_be_asked(tmp_path, model):
    write_examples(tmp_path / "v1/examples", pool=8, held_out=2)
    write_rows(tmp_path / "v1/base/examples", [])
    with pytest.raises(EvaluationError, match=r"no used row of .* validates, .*; set examples\.validation_every: 10"):
        pass_gates(folders_of(tmp_path, "v1"), ANY, model=model)


def test_interval_holds_the_mean_and_decides_nothing():
    excess = np.array([0.4, -0.5, 0.3])
    found = judge("loss", 0.1, excess)
    assert found.passed
    assert found.figures["low"] < 0 < 0.1 < found.figures["high"]
    assert judge("loss", 0.1, excess) == found
