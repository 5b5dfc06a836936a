"""The stage `evaluation`: losses, answers, similarity, metrics."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from worlds.places import find_folders
from worlds.token_rows import list_pairs
from worlds.toy_corpus import write_examples, write_rows
from worlds.toy_training import write_subset

from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.evaluation import answers, evaluation
from tasks.evaluation.answers import Answers
from tasks.evaluation.evaluation import Conditions, measure, measure_losses, write_evaluation
from tasks.evaluation.inputs import EvaluationError, HeldOut, Run, read_faults, read_held_out, read_runs
from tasks.evaluation.networks import generate
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.finetuning import write_finetuning
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice
from tasks.settings import RuntimeSettings

HELD_OUT = 5
SETTINGS = EvaluationSettings(new_tokens=6, demos=0, bootstrap=200)
TRAINING = FinetuningSettings(
    arms={"random": [0, 1], "chosen": [0], "full": [0]}, epochs=3, learning_rate=1e-2, batch_rows=4
)


@pytest.fixture(scope="module")
def toy(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    """Upstream artifacts with trained arms, and the evaluation of them."""
    folder = tmp_path_factory.mktemp("evaluated")
    train(folder, toy, TRAINING)
    run(folder, toy)
    return folder


@pytest.fixture
def copy(world, tmp_path) -> Path:
    """The same, to be damaged, without what the stores know of it."""
    return shutil.copytree(world, tmp_path / "copy", ignore=shutil.ignore_patterns("store"))


def train(folder: Path, model: ModelChoice, settings: FinetuningSettings) -> None:
    ids = write_examples(folder / "examples", pool=8, held_out=HELD_OUT)
    write_subset(folder / "selection", ids, set(range(0, 8, 2)))
    write_rows(folder / "base/examples", [])
    (folder / "base/finetuning/arms").mkdir(parents=True)
    write_finetuning(
        find_folders(folder),
        model=model,
        settings=settings,
        runtime=RuntimeSettings(),
    )


def run(folder: Path, model: ModelChoice, out: str = "evaluation", store: Path | None = None) -> Path:
    folders = find_folders(folder, evaluation=folder / out, cache=store or folder / "store")
    write_evaluation(folders, model=model, embedding_model=model, settings=SETTINGS)
    return folder / out


def held_out_of(folder: Path, model: ModelChoice) -> HeldOut:
    return read_held_out({"v1": folder / "examples", "base": folder / "base/examples"}, model)


def table_of(folder: Path) -> pa.Table:
    return read_table(folder / "evaluation/evaluation.parquet", schemas.EVALUATION)


def network_of(folder: Path, toy_folder: Path, label: str):
    base = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64).eval()
    if label == "base":
        return base
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
        return PeftModel.from_pretrained(base, folder / "finetuning/arms" / label).double().eval()


def rows_of(table: pa.Table, label: str) -> list[dict]:
    name, _, seed = label.partition("-")
    return [row for row in table.to_pylist() if row["arm"] == name and (not seed or row["seed"] == int(seed))]


def answer(said: list[str]) -> Answers:
    return Answers(Run("base"), [1.0] * HELD_OUT, said, [False] * HELD_OUT)


def tabulate(said: list[str], held_out: HeldOut, model: ModelChoice, store: Path) -> pa.Table:
    """Return what becomes of one run's answers."""
    conditions = Conditions(model, model, SETTINGS, store)
    return measure([answer(said)], [None] * HELD_OUT, held_out, held_out.of, conditions)


def test_table_has_a_row_per_run_and_held_out_row(world):
    table = table_of(world)
    runs = list(dict.fromkeys((row["arm"], row["seed"]) for row in table.to_pylist()))
    assert runs == [("base", None), ("chosen", 0), ("random", 0), ("random", 1), ("full", 0)]
    assert table.num_rows == len(runs) * HELD_OUT


@pytest.mark.parametrize("label", ["base", "chosen-0", "random-1"])
def test_loss_is_that_of_whole_float64_passes_one_by_one(world, toy, toy_folder, label):
    network = network_of(world, toy_folder, label)
    pairs = list_pairs(held_out_of(world, toy).prompts.encoding)
    for (before, response), row in zip(pairs, rows_of(table_of(world), label), strict=True):
        expected = -np.mean(oracles.plain_log_probs(network, before, response))
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
        assert row["response_tokens"] == len(response)


@pytest.mark.parametrize("label", ["base", "full-0"])
def test_answers_are_the_most_likely_tokens_one_by_one(world, toy, toy_folder, label):
    network, tokenizer = network_of(world, toy_folder, label), AutoTokenizer.from_pretrained(toy_folder)
    pairs = list_pairs(held_out_of(world, toy).prompts.encoding)
    end = pairs[0][1][-1]
    for (before, _), row in zip(pairs, rows_of(table_of(world), label), strict=True):
        ids = oracles.greedy_answer(network, before, SETTINGS.new_tokens, end)
        assert row["generated"] == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert row["cut"] is (ids[-1] != end)


@pytest.fixture
def bars():
    """Bars are shown, as they are to a person."""
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not before:
        logging.disable_progress_bar()


def test_every_run_has_a_bar_of_its_own(copy, toy, bars, monkeypatch, capfd):
    monkeypatch.setattr(answers, "ANSWER_TOKENS", 1)
    run(copy, toy)
    said = capfd.readouterr()
    for label in ("base", "chosen-0", "random-0", "random-1", "full-0"):
        assert re.search(rf"evaluation of {label}: 100%.* {HELD_OUT + 1}/{HELD_OUT + 1} ", said.err)
    assert said.out == ""


@pytest.mark.parametrize("most_tokens", [1, 80, 10_000])
def test_answers_do_not_depend_on_what_is_generated_at_once(copy, toy, world, monkeypatch, most_tokens):
    monkeypatch.setattr(answers, "ANSWER_TOKENS", most_tokens)
    run(copy, toy)
    assert table_of(copy)["generated"].equals(table_of(world)["generated"])


def test_a_batch_of_answers_keeps_within_its_tokens(copy, toy, monkeypatch):
    asked = []

    def counting(network, tokenizer, questions, ends, new_tokens):
        asked.append(len(questions) * (max(map(len, questions)) + new_tokens))
        return generate(network, tokenizer, questions, ends, new_tokens)

    monkeypatch.setattr(answers, "ANSWER_TOKENS", 60)
    monkeypatch.setattr(answers, "generate", counting)
    run(copy, toy)
    assert max(asked) <= 60
    assert len(asked) == 5 * 3  # runs x batches of two rows


def test_training_lowers_the_held_out_loss_of_the_toy_world(world):
    arms = json.loads((world / "evaluation/metrics.json").read_text())["arms"]
    assert arms["full"]["loss"] < arms["base"]["loss"]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(world, toy, tmp_path):
    held_out = held_out_of(world, toy)
    said = ["8! what 16", "", "10", "Is it 20!", "24"]
    table = tabulate(said, held_out, toy, tmp_path)
    for row, reference, text in zip(table.to_pylist(), held_out.rows, said, strict=True):
        one, other = (re.findall(r"[a-z0-9]+", part.lower()) for part in (reference["response"], text))
        common = oracles.longest_common(one, other)
        assert row["rouge_l"] == pytest.approx(2 * common / (len(one) + len(other)) if common else 0)


def test_reference_as_an_answer_is_perfect_and_silence_is_nothing(world, toy, tmp_path):
    held_out = held_out_of(world, toy)
    said = [row["response"] for row in held_out.rows[:-1]] + [""]
    table = tabulate(said, held_out, toy, tmp_path).to_pydict()
    assert table["similarity"] == pytest.approx([1.0] * (HELD_OUT - 1) + [0.0])
    assert table["rouge_l"] == pytest.approx([1.0] * (HELD_OUT - 1) + [0.0])


def test_metrics_are_means_over_rows_with_seeds_averaged_first(world):
    found = json.loads((world / "evaluation/metrics.json").read_text())
    table = table_of(world)
    for arm, measures in found["arms"].items():
        part = table.filter(pc.field("arm") == arm)
        for name in ("loss", "rouge_l", "similarity"):
            assert measures[name] == pytest.approx(pc.mean(part[name]).as_py(), rel=1e-5)
            assert measures[f"{name}_low"] <= measures[name] <= measures[f"{name}_high"]
    assert {arm: (one["rows"], one["seeds"]) for arm, one in found["arms"].items()} == {
        "base": (0, 1),
        "chosen": (4, 1),
        "random": (4, 2),
        "full": (8, 1),
    }
    assert found["held_out_rows"] == HELD_OUT


def test_faults_of_each_seeds_rows_are_counted(world, toy, copy):
    table = read_table(copy / "examples/examples.parquet").to_pylist()
    write_rows(copy / "examples", [row | {"planted": "cut" if row["row"] < 3 else None} for row in table])
    runs = read_runs(copy / "finetuning", None)
    trained = {run.label: json.loads((run.folder / "rows.json").read_text()) for run in runs if run.folder}
    found, planted = read_faults(copy / "examples", runs), {row["id"] for row in table if row["row"] < 3}
    assert found["full"] == [{"planted": {"cut": 3}, "repeats": 0}]
    assert [one["planted"].get("cut", 0) for one in found["random"]] == [
        len(planted & set(trained[f"random-{seed}"])) for seed in (0, 1)
    ]


def test_metrics_say_how_many_answers_were_cut(world):
    found, table = json.loads((world / "evaluation/metrics.json").read_text()), table_of(world)
    for arm, measures in found["arms"].items():
        cut = table.filter(pc.field("arm") == arm)["cut"].to_pylist()
        assert measures["cut_answers"] == pytest.approx(sum(cut) / len(cut))


def test_intervals_of_an_arm_with_several_seeds_cover_the_seeds(world, toy):
    """Two seeds far apart, each with one loss for all rows: only drawing seeds gives the interval any width."""
    table = table_of(world).to_pydict()
    table["loss"] = [{None: 3.0, 0: 1.0, 1: 2.0}[seed] for seed in table["seed"]]
    runs = evaluation.read_runs(world / "finetuning", world / "base/finetuning")
    found = evaluation.summarise(pa.table(table, schema=schemas.EVALUATION), runs, held_out_of(world, toy), SETTINGS)
    ends = [found["arms"]["random"][name] for name in ("loss_low", "loss", "loss_high")]
    assert ends == [1.0, 1.5, 2.0]
    assert found["arms"]["chosen"]["loss_low"] == found["arms"]["chosen"]["loss_high"] == 1.0
    assert found["differences"]["chosen-random"] == {"loss": -0.5, "low": -1.0, "high": 0.0}


def test_differences_are_those_of_the_arms(world):
    found = json.loads((world / "evaluation/metrics.json").read_text())
    loss = {arm: measures["loss"] for arm, measures in found["arms"].items()}
    assert len(found["differences"]) == 6
    for pair, difference in found["differences"].items():
        one, other = pair.split("-")
        assert difference["loss"] == pytest.approx(loss[one] - loss[other], abs=1e-12)
        assert difference["low"] <= difference["loss"] <= difference["high"]


def test_same_inputs_give_the_same_bytes(world, toy, tmp_path):
    again = run(world, toy, "again", tmp_path)
    for name in ("evaluation.parquet", "metrics.json"):
        assert (again / name).read_bytes() == (world / "evaluation" / name).read_bytes()


def test_rows_of_an_arm_do_not_depend_on_the_other_arms(copy, toy, world):
    listing = copy / "finetuning/finetuning.json"
    found = json.loads(listing.read_text())
    listing.write_text(json.dumps(found | {"arms": {"full-0": found["arms"]["full-0"]}}))
    run(copy, toy)
    for label in ("base", "full"):
        for alone, among in zip(rows_of(table_of(copy), label), rows_of(table_of(world), label), strict=True):
            assert alone.pop("similarity") == pytest.approx(among.pop("similarity"), abs=1e-6)
            assert alone == among


def test_fully_trained_arms_and_the_delift_template_are_evaluated(tmp_path, toy):
    toy = replace(toy, template="delift")
    train(tmp_path, toy, replace(TRAINING, arms={"chosen": [0], "full": [0]}, method="full", learning_rate=1e-3))
    arms = json.loads((run(tmp_path, toy) / "metrics.json").read_text())["arms"]
    assert arms["full"]["loss"] < arms["base"]["loss"]


def test_losses_alone_are_those_of_the_evaluation(world, toy, tmp_path):
    table = table_of(world)
    places = {"examples": world / "examples", "store": tmp_path, "model": toy, "new_tokens": 4}
    found = measure_losses(arms=world / "finetuning", **places) | {"base": measure_losses(arms=None, **places)}
    assert list(found["losses"]) == ["chosen-0", "random-0", "random-1", "full-0"]
    for label, losses in {**found["losses"], **found["base"]["losses"]}.items():
        rows = rows_of(table, label)
        assert [row["id"] for row in rows] == found["ids"] == found["base"]["ids"]
        assert losses == pytest.approx([row["loss"] for row in rows], rel=1e-6)


def test_right_answers_alone_are_told_where_a_task_metric_is_asked(world, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "generate", lambda *asked: [("it is 18", False)] * len(asked[2]))
    places = {"examples": world / "examples", "store": tmp_path, "model": toy, "new_tokens": 4}
    found = measure_losses(arms=None, **places, metric="exact_match")
    assert found["correct"] == {"base": [False, True, False, False, False]}  # 8 + 8, 9 + 9, ...
    assert measure_losses(arms=None, **places)["correct"] == {}


def test_no_held_out_rows_is_an_error(copy, toy):
    write_examples(copy / "examples", pool=8, held_out=0)
    with pytest.raises(
        EvaluationError, match=r"no used row of .*examples.parquet is held out, .*lower examples.held_out_e"
    ):
        run(copy, toy)


def test_missing_arm_is_named(copy, toy):
    shutil.rmtree(copy / "finetuning/arms/random-1")
    with pytest.raises(ArtifactError, match=r"1 of 4 arms have no folder in .*first \['random-1'\]; .*dvc checkout"):
        run(copy, toy)


def test_missing_listing_of_arms_is_named(copy, toy):
    (copy / "finetuning/finetuning.json").unlink()
    with pytest.raises(ArtifactError, match=r"finetuning.json is missing; run `tamis run`"):
        run(copy, toy)


def test_loss_that_is_not_finite_names_the_example_and_the_run(copy, toy):
    path = copy / "finetuning/arms/chosen-0/adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weight * float("nan") for name, weight in weights.items()}, path, {"format": "pt"})
    with pytest.raises(
        EvaluationError, match=r"run chosen-0: the loss of example \w+ \(row \d+\) is not finite; check"
    ):
        run(copy, toy)


def test_held_out_rows_over_the_token_limit_are_named(copy, toy):
    with pytest.raises(ValueError, match=r"5 of 5 rows are longer than models.max_tokens \(9; "):
        run(copy, replace(toy, max_tokens=9))


def test_adapters_without_their_configuration_are_named(copy, toy):
    (copy / "finetuning/arms/chosen-0/adapter_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"arms/chosen-0/adapter_config.json is missing; run `tamis run`"):
        run(copy, toy)
