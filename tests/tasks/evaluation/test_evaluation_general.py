"""The stage `evaluation` with general rows and a task metric: what is kept, and what is answered right."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM
from worlds.token_rows import list_pairs
from worlds.toy_corpus import row, write_examples, write_rows
from worlds.toy_training import HELD_OUT, ROWS, evaluate, make_world, rows_of, run

from tamis.masks.sparse_adamw import Delta
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.evaluation import answers, evaluation, inputs, sandbox
from tasks.evaluation.evaluation import measure_losses
from tasks.evaluation.inputs import EvaluationError, Run, read_held_out
from tasks.evaluation.networks import loaded, score
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.masks import sparse_deltas
from tasks.model_files import write_base
from tasks.models import ModelChoice

SETTINGS = EvaluationSettings(new_tokens=4, demos=1, bootstrap=50)
TRAINING = FinetuningSettings(arms={"chosen": [0], "random": [0, 1]}, epochs=1, learning_rate=1e-2, batch_rows=4)
LABELS = [("base", None), ("chosen", 0), ("random", 0), ("random", 1)]
GENERAL = 2
TESTS = "assert double(2) == 4"


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """A first version with general rows, trained arms, and the evaluation of it."""
    folder = tmp_path_factory.mktemp("general")
    make_world(folder / "v1")
    write_examples(folder / "v1/examples", pool=ROWS, held_out=HELD_OUT, general=GENERAL)
    write_examples(folder / "base/examples", pool=0, held_out=0)
    (folder / "base/out/arms").mkdir(parents=True)
    run(folder / "v1", model, TRAINING)
    ask(folder, model)
    return folder


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """The same, to be changed, without what the stores know of it."""
    return shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("store"))


def ask(home: Path, model, version: str = "v1", **changes) -> dict:
    """Evaluate the version and return its metrics."""
    settings = replace(SETTINGS, **changes)
    evaluate(home / "v1", home / "base", model, settings, version=version, previous="base")
    return metrics_of(home)


def table_of(home: Path) -> pa.Table:
    return read_table(home / "v1/evaluation/evaluation.parquet", schemas.EVALUATION)


def metrics_of(home: Path) -> dict:
    return json.loads((home / "v1/evaluation/metrics.json").read_text())


def losses_of(home: Path, held_out_of: str) -> dict[str, np.ndarray]:
    """Losses of every arm, [seed, row, 1]."""
    found: dict[str, list] = {}
    for arm, seed in LABELS:
        learner = "none" if arm == "base" else "finetuning"
        rows = rows_of(table_of(home), arm=arm, seed=seed, learner=learner, held_out_of=held_out_of)
        found.setdefault(arm, []).append([[row["loss"]] for row in rows])
    return {arm: np.array(losses) for arm, losses in found.items()}


def test_every_trained_model_and_the_base_answer_the_general_rows(home):
    rows = rows_of(table_of(home), held_out_of="general")
    assert [(one["arm"], one["seed"]) for one in rows] == [label for label in LABELS for _ in range(GENERAL)]
    assert {one["learner"] for one in rows} == {"none", "finetuning"}
    assert {one["id"] for one in rows} == {row(ROWS + HELD_OUT + place, "general")["id"] for place in range(GENERAL)}


def test_losses_on_general_rows_are_those_of_whole_float64_passes(home, model, toy_folder):
    network = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64).eval()
    pairs = list_pairs(read_held_out({"v1": home / "v1/examples"}, model).prompts.encoding)
    for place, one in enumerate(rows_of(table_of(home), held_out_of="general", arm="base"), start=HELD_OUT):
        assert one["loss"] == pytest.approx(-np.mean(oracles.plain_log_probs(network, *pairs[place])))


@pytest.mark.parametrize(("name", "version"), [("plasticity", "v1"), ("stability", "general")])
def test_gains_against_the_base_are_those_of_the_slow_computation(home, name, version):
    losses, found = losses_of(home, version), metrics_of(home)["general"]
    drawn = oracles.resampled_arms(losses, SETTINGS.bootstrap, SETTINGS.seed)
    assert list(found[name]) == ["chosen", "random"]
    for arm, gain in found[name].items():
        assert gain["loss"] == pytest.approx(losses["base"].mean() - losses[arm].mean(), abs=1e-6)
        changes = [before[0] - after[0] for before, after in zip(drawn["base"], drawn[arm], strict=True)]
        assert gain["low"] == pytest.approx(oracles.percentile(changes, 0.025), abs=1e-6)
        assert gain["high"] == pytest.approx(oracles.percentile(changes, 0.975), abs=1e-6)


def test_metrics_count_general_rows_and_give_the_losses_there(home):
    found = metrics_of(home)
    assert (found["general"]["rows"], found["held_out_rows"]) == (GENERAL, HELD_OUT)
    losses = {arm: values.mean() for arm, values in losses_of(home, "general").items()}
    assert found["general"]["losses"] == pytest.approx(losses, rel=1e-6)


def test_general_rows_leave_all_other_figures_alone(home, copy, model):
    write_examples(copy / "v1/examples", pool=ROWS, held_out=HELD_OUT)
    found = ask(copy, model)
    kept = {name: value for name, value in metrics_of(home).items() if name != "general"}
    for part in ("arms", "differences"):
        for name, numbers in found[part].items():
            plain = {key: value for key, value in numbers.items() if key not in ("loss_by_seed", "faults")}
            assert plain == pytest.approx({key: kept[part][name][key] for key in plain}, rel=1e-5, abs=1e-5)
            assert numbers.keys() == kept[part][name].keys()
    assert found.keys() == kept.keys()


def test_losses_alone_are_those_of_the_evaluation_with_those_on_general_rows_apart(home, model, tmp_path):
    places = {"examples": home / "v1/examples", "store": tmp_path, "model": model, "new_tokens": 4}
    found = measure_losses(arms=home / "v1/out", **places)
    assert list(found["losses"]) == list(found["general_losses"]) == ["chosen-0", "random-0", "random-1"]
    for prefix, version in (("", "v1"), ("general_", "general")):
        for label, losses in found[f"{prefix}losses"].items():
            arm, seed = label.split("-")
            rows = rows_of(table_of(home), arm=arm, seed=int(seed), learner="finetuning", held_out_of=version)
            assert found[f"{prefix}ids"] == [one["id"] for one in rows]
            assert losses == pytest.approx([one["loss"] for one in rows], rel=1e-6)


def test_losses_alone_have_none_on_general_rows_where_there_are_none(copy, model):
    write_examples(copy / "v1/examples", pool=ROWS, held_out=HELD_OUT)
    places = {"examples": copy / "v1/examples", "store": copy / "v1/store", "model": model, "new_tokens": 4}
    found = measure_losses(arms=None, **places)
    assert (found["general_ids"], found["general_losses"]) == ([], {})
    assert len(found["losses"]["base"]) == HELD_OUT


def test_a_version_with_the_name_of_the_general_set_is_refused(home, model):
    with pytest.raises(
        EvaluationError, match=r"a data version is called 'general', as is the set of examples.retention_set"
    ):
        read_held_out({"general": home / "v1/examples"}, model)


def test_without_a_task_metric_nothing_is_right_or_wrong(home):
    assert set(table_of(home)["correct"].to_pylist()) == {None}
    found = metrics_of(home)
    assert "floor" not in found
    for part in (found["arms"]["base"], found["differences"]["chosen-random"], found["general"]):
        assert "correct" not in part


def say(monkeypatch, texts: list[str]) -> None:
    """Let every model give these answers, of which the second is cut."""

    def generate(network, tokenizer, questions, ends, new_tokens):
        asked = [tokenizer.decode(question).rpartition("what is ")[2] for question in questions]
        places = [int(text.split(" + ")[0]) - ROWS for text in asked]  # rows go on from those of the pool
        return [(texts[place], place == 1) for place in places]

    monkeypatch.setattr(answers, "generate", generate)


def answers_of(home: Path, model) -> list[str]:
    """Reference answers of the held-out rows, then of the general ones, said in other words."""
    rows = read_held_out({"v1": home / "v1/examples"}, model).rows
    return [f"1 + 1 #### {one['response'].rstrip('!')}.0" for one in rows]


def test_answers_with_the_number_of_the_reference_are_right(copy, model, monkeypatch):
    say(monkeypatch, [*answers_of(copy, model)[:2], "none", "none", answers_of(copy, model)[-1]])
    found, table = ask(copy, model, task_metric="exact_match"), table_of(copy)
    for arm, seed in LABELS:
        for version, expected in (("v1", [True, True, False]), ("general", [False, True])):
            rows = rows_of(table, arm=arm, seed=seed, held_out_of=version)[: len(expected)]
            assert [one["correct"] for one in rows] == expected
    for part in (found, found["in_context"]):
        assert (part["task_metric"], part["floor"]) == ("exact_match", False)
        for arm in part["arms"].values():
            assert (arm["correct"], arm["cut_answers"]) == pytest.approx((2 / 3, 1 / 3))
            assert 0 <= arm["correct_low"] < arm["correct"] < arm["correct_high"] <= 1
        assert part["differences"]["chosen-random"]["correct_high"] == 0
    assert found["general"]["correct"] == dict.fromkeys(("base", "chosen", "random"), 0.5)


def test_a_floor_of_zero_is_reported(copy, model, monkeypatch):
    say(monkeypatch, ["none"] * (HELD_OUT + GENERAL))
    found = ask(copy, model, task_metric="exact_match")
    assert found["floor"]
    assert found["in_context"]["floor"]
    assert {arm["correct"] for arm in found["arms"].values()} == {0}


def test_rows_of_another_kind_beside_the_held_out_ones_are_not_judged(copy, model, monkeypatch):
    rows = [row(place, "pool") for place in range(ROWS)]
    rows += [row(ROWS + place, "held_out") | {"tests": TESTS} for place in range(HELD_OUT)]
    write_rows(copy / "v1/examples", [*rows, row(50, "general")])
    say(monkeypatch, ["```python\ndef double(x): return 2 * x\n```", "def double(x): return x", "double", "100"])
    if refused():
        pytest.skip("this system refuses user or network namespaces")
    found = ask(copy, model, task_metric="pass_at_1", demos=0)
    assert [one["correct"] for one in rows_of(table_of(copy), arm="base")] == [True, False, False, None]
    assert (found["arms"]["base"]["correct"], found["floor"]) == (pytest.approx(1 / 3), False)
    assert "correct" not in found["general"]


def refused() -> bool:
    try:
        sandbox.refuse_open()
    except sandbox.SandboxError:
        return True
    return False


def test_held_out_rows_that_a_metric_cannot_judge_are_refused_before_any_model_runs(copy, model, monkeypatch):
    monkeypatch.setattr(evaluation, "answer_all", lambda *_: pytest.fail("asked"))
    with pytest.raises(EvaluationError, match="3 of 3 held-out rows have no tests"):
        ask(copy, model, task_metric="pass_at_1")


def test_a_run_with_a_delta_is_its_base_with_other_entries_for_as_long_as_it_is_asked(home, model, tmp_path):
    base = models.language_model.__wrapped__(model)
    named = dict(base.named_parameters())
    (name, weight), *_ = named.items()
    before, places = weight.detach().clone(), torch.arange(0, weight.numel(), 3)
    values = before.flatten()[places] + 1
    shapes = {each: tuple(one.shape) for each, one in named.items()}
    sparse_deltas.write_delta(Delta(shapes, {name: places}, {name: values}), tmp_path, model, {})
    write_base(tmp_path, model.name, model.revision)
    held_out = read_held_out({"v1": home / "v1/examples"}, model)
    arm = Run("chosen", 0, inputs.TRAINED, 1, tmp_path)
    with loaded(arm, base, model) as network:
        assert network is base
        found = score(network, held_out.prompts.encoding, held_out.rows, arm)
        expected = before.clone().flatten()
        expected[places] = values
        assert torch.equal(weight.flatten(), expected)
    assert torch.equal(weight, before)
    assert found != score(base, held_out.prompts.encoding, held_out.rows, arm)
