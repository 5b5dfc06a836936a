"""The in-context learner of the stage `evaluation`: the nearest rows of an arm, shown before each held-out row."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds.token_rows import list_pairs
from worlds.toy_corpus import write_examples
from worlds.toy_training import evaluate, make_world, rows_of, run

from tamis.examples.conversations import make_exchange
from tamis.language.chat_templates import Template
from tamis.language.embedding import encode_texts
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations, encode_shown
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.evaluation.evaluation import Conditions, show_rows
from tasks.evaluation.inputs import Run, read_held_out, read_runs
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice

SETTINGS = EvaluationSettings(new_tokens=4, demos=2, bootstrap=50)
TRAINING = FinetuningSettings(arms={"chosen": [0, 1], "random": [0, 1], "full": [0]}, epochs=1, batch_rows=8)
SHOWN = [("chosen", 0), ("random", 0)]  # of arm random the lowest seed, of arm full none
HELD_OUT = 3


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """A first version with trained arms, and the evaluation of it."""
    folder = tmp_path_factory.mktemp("shown")
    make_world(folder / "v1")
    write_examples(folder / "base/examples", pool=0, held_out=0)
    (folder / "base/out/arms").mkdir(parents=True)
    run(folder / "v1", model, TRAINING)
    evaluate(folder / "v1", folder / "base", model, SETTINGS, version="v1", previous="base")
    return folder


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """The same, to be changed, without what the stores know of it."""
    return shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("store"))


def table_of(home: Path) -> pa.Table:
    return read_table(home / "v1/evaluation/evaluation.parquet", schemas.EVALUATION)


def metrics_of(home: Path) -> dict:
    return json.loads((home / "v1/evaluation/metrics.json").read_text())


def flatten(value, path: str = "") -> dict:
    """Return the numbers and names in nested dicts and lists, each under its path."""
    if not isinstance(value, dict | list):
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, inner in parts for name, leaf in flatten(inner, f"{path}/{key}").items()}


def prompts_of(home: Path, model, settings: EvaluationSettings = SETTINGS) -> list[Run]:
    held_out = read_held_out({"v1": home / "v1/examples", "base": home / "base/examples"}, model)
    conditions = Conditions(model, model, settings, home / "v1/store")
    return show_rows(read_runs(home / "v1/out", home / "base/out"), home / "v1/examples", held_out, conditions)


def slow_prompts(home: Path, model, label: str, demos: int) -> list[list[int]]:
    """What stands before each held-out row's answer: an embedding per text, all rows of the arm sorted."""
    table = read_table(home / "v1/examples/examples.parquet", schemas.EXAMPLES).to_pylist()
    ids = json.loads((home / "v1/out/arms" / label / "rows.json").read_text())
    known = [next(row for row in table if row["id"] == name) for name in ids]
    tokenizer, encoder = models.tokenizer(model), models.embedder(model)

    def embed(text: str) -> np.ndarray:
        return encode_texts(encoder, tokenizer, [text], 1, model.max_tokens)[0].double().numpy()

    found = []
    for row in (row for row in table if row["split"] == "held_out"):
        asked = embed(row["prompt"])
        near = sorted(known, key=lambda other: -float(asked @ embed(other["prompt"])))[:demos]
        template, target = Template(tokenizer, model.template), make_exchange(row["prompt"], "x")
        prefix = encode_prefix(template, [make_exchange(one["prompt"], one["response"]) for one in near[::-1]], target)
        shown = encode_shown(template, [target], encode_conversations(template, [target]))
        ((before, _),) = list_pairs(shown)
        found.append(prefix.tolist() + before[shown.heads[0] :])
    return found


@pytest.mark.parametrize("template", ["chat", "delift"])
@pytest.mark.parametrize("demos", [1, 3])
def test_prompts_show_the_nearest_rows_of_the_arm_the_nearest_last(home, model, template, demos):
    model = replace(model, max_tokens=1000, template=template)
    runs = prompts_of(home, model, replace(SETTINGS, demos=demos))
    assert [(one.arm, one.seed) for one in runs] == SHOWN
    for one in runs:
        wanted = slow_prompts(home, model, f"{one.arm}-{one.seed}", demos)
        assert [question.tolist() for question in one.prompts.questions] == wanted
        assert [before for before, _ in list_pairs(one.prompts.encoding)] == wanted


def test_an_arm_of_few_rows_shows_all_of_them(home, model):
    settings = replace(SETTINGS, demos=99)
    chosen, *_ = prompts_of(home, replace(model, max_tokens=10_000), settings=settings)
    assert chosen.fewer_demos == 0
    assert [question.tolist() for question in chosen.prompts.questions] == slow_prompts(home, model, "chosen-0", 5)


def test_losses_and_answers_are_those_of_the_base_model_asked_one_by_one(home, model, toy_folder):
    network = AutoModelForCausalLM.from_pretrained(toy_folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    for one in prompts_of(home, model):
        rows = rows_of(table_of(home), arm=one.arm, seed=one.seed, learner="in_context")
        assert len(rows) == HELD_OUT
        for row, (prompt, response) in zip(rows, list_pairs(one.prompts.encoding), strict=True):
            expected = -np.mean(oracles.plain_log_probs(network, prompt, response))
            assert row["loss"] == pytest.approx(expected, rel=1e-5)
            ids = oracles.greedy_answer(network, prompt, SETTINGS.new_tokens, response[-1])
            assert row["generated"] == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_runs_that_learn_from_the_same_rows_are_asked_once(home):
    rows = rows_of(table_of(home), learner="in_context")
    assert list(dict.fromkeys((row["arm"], row["seed"]) for row in rows)) == SHOWN
    trained = rows_of(table_of(home), learner="finetuning")
    assert {row["seed"] for row in trained if row["arm"] == "chosen"} == {0, 1}


def test_metrics_of_the_in_context_learner_stand_apart(home):
    found, table = metrics_of(home), table_of(home)
    shown = found["in_context"]
    assert (shown["demos"], shown["held_out_rows"]) == (2, HELD_OUT)
    assert shown["arms"]["base"] == found["arms"]["base"]
    assert list(shown["arms"]) == ["base", "chosen", "random"]
    for arm in ("chosen", "random"):
        part = table.filter((pc.field("arm") == arm) & (pc.field("learner") == "in_context"))
        numbers = shown["arms"][arm]
        assert (numbers["seeds"], numbers["fewer_demos"], numbers["rows"]) == (1, 0, 5)
        for measure in ("loss", "rouge_l", "similarity"):
            assert numbers[measure] == pytest.approx(pc.mean(part[measure]).as_py(), rel=1e-5)
            assert numbers[f"{measure}_low"] <= numbers[measure] <= numbers[f"{measure}_high"]


def test_difference_of_chosen_and_random_demonstrations_has_an_interval(home):
    shown = metrics_of(home)["in_context"]
    loss = {arm: numbers["loss"] for arm, numbers in shown["arms"].items()}
    difference = shown["differences"]["chosen-random"]
    assert difference["loss"] == pytest.approx(loss["chosen"] - loss["random"], abs=1e-12)
    assert difference["low"] <= difference["loss"] <= difference["high"]


def test_demonstrations_leave_the_trained_learners_figures_alone(home, copy, model):
    others = {"version": "v1", "previous": "base", "store": home / "v1/store"}
    evaluate(copy / "v1", copy / "base", model, replace(SETTINGS, demos=0), **others)
    found, before = metrics_of(copy), metrics_of(home)
    assert "in_context" not in found
    # Texts that are embedded beside others have vectors that may differ in their last bits.
    wanted = {name: value for name, value in before.items() if name != "in_context"}
    assert flatten(found) == pytest.approx(flatten(wanted), rel=1e-6)
    assert set(table_of(copy)["learner"].to_pylist()) == {"none", "finetuning"}


def test_rows_without_room_for_all_demonstrations_are_counted(copy, model):
    longest = max(len(question) for one in prompts_of(copy, model) for question in one.prompts.questions)
    evaluate(copy / "v1", copy / "base", replace(model, max_tokens=longest), SETTINGS, version="v1", previous="base")
    arms = metrics_of(copy)["in_context"]["arms"]
    assert sum(arms[arm]["fewer_demos"] for arm in ("chosen", "random")) > 0
    assert "fewer_demos" not in arms["base"]


def test_without_a_version_before_nothing_is_said_of_learning_and_forgetting(home):
    assert "continual" not in metrics_of(home)
    assert set(table_of(home)["held_out_of"].to_pylist()) == {"v1"}


def test_rows_of_arms_that_are_not_among_the_examples_are_refused(copy, model):
    path = copy / "v1/out/arms/random-0/rows.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), "elsewhere"]))
    text = r"1 of \d+ rows that arms were trained on are not among the examples, first \['elsewhere'\]; .*tamis run"
    with pytest.raises(ArtifactError, match=text):
        evaluate(copy / "v1", copy / "base", model, SETTINGS, version="v1", previous="base")
