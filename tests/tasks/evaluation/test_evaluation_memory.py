"""The stage `evaluation` remembers: what a model said once it is not asked again, and only what is needed is asked."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pyarrow.compute as pc
import pytest
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel
from worlds.toy_corpus import row, write_rows
from worlds.toy_training import HELD_OUT, content, make_next, make_world, remember, rows_of, run

from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import provenance, read_table
from tasks.evaluation import answers, networks
from tasks.evaluation.answers import digest_weights
from tasks.evaluation.evaluation import MEASURES, choose_answered
from tasks.evaluation.inputs import Run, read_held_out
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice

SETTINGS = EvaluationSettings(new_tokens=4, demos=1, bootstrap=50)
TRAINING = FinetuningSettings(arms={"chosen": [0], "random": [0, 1]}, epochs=1, learning_rate=1e-2, batch_rows=4)
TRAINED, ASKED = 5, 5 + 1  # base, previous and three runs; rows held out in two versions, and a general one


@pytest.fixture(scope="module")
def model(toy_folder) -> ModelChoice:
    return ModelChoice(str(toy_folder), device="cpu", max_tokens=256)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    """A version that continues from another, with a general row, and its evaluation."""
    folder = tmp_path_factory.mktemp("remembered")
    make_world(folder / "v1")
    run(folder / "v1", model, TRAINING)
    make_next(folder / "v2")
    path = folder / "v2/examples/examples.parquet"
    write_rows(path.parent, [*read_table(path, schemas.EXAMPLES).to_pylist(), row(50, "general")])
    run(folder / "v2", model, TRAINING, previous=folder / "v1/out")
    ask(folder, model)
    return folder


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(home, tmp_path / "copy")


def ask(home: Path, model, out: str = "evaluation", **changes) -> dict:
    """Evaluate the second version and return what the run says of itself."""
    return remember(home / "v2", home / "v1", model, replace(SETTINGS, **changes), out=home / "v2" / out)


@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """Yield a list that holds, in the end, a 1 for every forward pass of a whole model of any kind."""
    passes = []
    hook = register_module_forward_hook(
        lambda module, *_: passes.append(1) if isinstance(module, PreTrainedModel) else None
    )
    try:
        yield passes
    finally:
        hook.remove()


def table_of(home: Path, out: str = "evaluation"):
    return read_table(home / "v2" / out / "evaluation.parquet", schemas.EVALUATION)


def metrics_of(home: Path, out: str = "evaluation") -> dict:
    return json.loads((home / "v2" / out / "metrics.json").read_text())


def test_a_second_run_makes_no_forward_pass_and_the_same_artifact(home, model):
    with counted_passes() as passes:
        did = ask(home, model, "again")
    assert passes == []
    assert (did["losses_computed"], did["answers_generated"]) == (0, 0)
    assert content(home / "v2/again") == content(home / "v2/evaluation")


def test_the_counter_of_passes_counts_those_of_a_run_without_stores(copy, model):
    shutil.rmtree(copy / "v2/store")
    with counted_passes() as passes:
        did = ask(copy, model, "again")
    assert len(passes) > TRAINED
    shared = did["losses_known"]  # rows to which both arms show the same demonstration
    assert shared == did["answers_known"] == count_shared(copy)
    assert did["losses_computed"] == TRAINED * ASKED + 2 * HELD_OUT - shared
    assert did["answers_generated"] == TRAINED * HELD_OUT + 2 * HELD_OUT - shared
    assert content(copy / "v2/again") == content(copy / "v2/evaluation")


def count_shared(home: Path) -> int:
    """Return how many held-out rows have the same loss, bit for bit, with the demonstrations of both arms."""
    one, other = (
        [each["loss"] for each in rows_of(table_of(home), learner="in_context", arm=arm)]
        for arm in ("chosen", "random")
    )
    return sum(loss == again for loss, again in zip(one, other, strict=True))


@pytest.mark.parametrize("changes", [{"bootstrap": 60}, {"confidence": 0.9}])
def test_other_intervals_ask_no_model(home, model, changes):
    with counted_passes() as passes:
        ask(home, model, "again", **changes)
    assert passes == []
    assert table_of(home, "again").equals(table_of(home))
    assert metrics_of(home, "again") != metrics_of(home)


def test_another_length_of_answers_finds_every_loss_and_no_answer(copy, model):
    did = ask(copy, model, "again", new_tokens=5, demos=0)
    assert (did["losses_computed"], did["losses_known"]) == (0, TRAINED * ASKED)
    assert (did["answers_generated"], did["answers_known"]) == (TRAINED * HELD_OUT, 0)


def test_an_arm_with_other_weights_is_asked_anew_and_alone(copy, model):
    path = copy / "v2/out/arms/random-1/adapter_model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
    did = ask(copy, model, "again")
    assert (did["losses_computed"], did["answers_generated"]) == (ASKED, HELD_OUT)
    same, other = (rows_of(table_of(copy, out), arm="random", seed=1) for out in ("evaluation", "again"))
    assert [one["loss"] for one in same] != [one["loss"] for one in other]


@pytest.mark.parametrize("change", [{"template": "delift"}, {"dtype": "bfloat16"}])
def test_another_template_or_dtype_finds_nothing(copy, model, change):
    did = ask(copy, replace(model, **change), "again", demos=0)
    assert (did["losses_known"], did["answers_known"]) == (0, 0)


def test_the_weights_of_a_run_are_all_its_files_but_the_list_of_its_rows(copy):
    folder = copy / "v2/out/arms/chosen-0"
    before = digest_weights(Run("chosen", 0, folder=folder))
    (folder / "rows.json").write_text("[]")
    assert digest_weights(Run("random", 1, folder=folder)) == before
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 32', '"lora_alpha": 16'))
    assert digest_weights(Run("chosen", 0, folder=folder)) != before
    assert digest_weights(Run("base")) == ""


def test_a_crash_loses_one_batch(copy, model, monkeypatch):
    """The third batch of one row breaks down; the next run generates that and what follows."""
    shutil.rmtree(copy / "v2/store")
    calls, plain = [], networks.generate

    def breaking(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise RuntimeError("out of power")
        return plain(*asked)

    monkeypatch.setattr(answers, "ANSWER_TOKENS", 1)
    monkeypatch.setattr(answers, "generate", breaking)
    with pytest.raises(RuntimeError, match="out of power"):
        ask(copy, model, "again", demos=0)
    monkeypatch.setattr(answers, "generate", plain)
    did = ask(copy, model, "again", demos=0)
    assert (did["answers_known"], did["answers_generated"]) == (2, TRAINED * HELD_OUT - 2)
    assert (did["losses_known"], did["losses_computed"]) == (ASKED, (TRAINED - 1) * ASKED)
    monkeypatch.undo()
    assert table_of(copy, "again")["generated"].equals(
        table_of(copy).filter(pc.field("learner") != "in_context")["generated"]
    )


def test_losses_come_in_parts_of_some_rows(copy, model, monkeypatch):
    shutil.rmtree(copy / "v2/store")
    monkeypatch.setattr(answers, "LOSS_ROWS", 4)
    ask(copy, model, "again", demos=0)
    (folder,) = (copy / "v2/store/losses").iterdir()
    assert sorted(provenance(path)["rows"] for path in folder.glob("part-*.parquet")) == [2] * TRAINED + [4] * TRAINED
    again, whole = table_of(copy, "again"), table_of(copy).filter(pc.field("learner") != "in_context")
    assert again["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), abs=1e-5)


def test_seconds_are_those_of_the_first_computation(home, model):
    first, again = ask(home, model, "again"), ask(home, model, "again")
    assert first["loss_seconds"] == again["loss_seconds"] > 0
    assert first["answer_seconds"] == again["answer_seconds"] > 0


def test_the_stores_say_what_they_hold_and_what_is_not_named_is_pruned(copy, model):
    found = {row.kind: row for row in stores.survey(copy / "v2/store", {networks.CODE, models.model_digest(model)})}
    assert list(found) == ["answers", "losses", "texts"]
    assert found["losses"].rows == TRAINED * ASKED + 2 * HELD_OUT - count_shared(copy)
    assert (found["losses"].current, found["answers"].current, found["texts"].current) == (True, True, False)
    assert stores.prune(copy / "v2/store", set()).unknown == []
    assert not list((copy / "v2/store").glob("*/*"))


def test_compacted_stores_are_read_as_before(copy, model):
    for folder in stores.list_folders(copy / "v2/store"):
        stores.compact(folder)
    with counted_passes() as passes:
        ask(copy, model, "again")
    assert passes == []
    assert content(copy / "v2/again") == content(copy / "v2/evaluation")


def test_what_a_damaged_part_held_is_computed_again(copy, model):
    path = next((copy / "v2/store/answers").rglob("part-*.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="a part of a store, was damaged and stands aside"), counted_passes() as passes:
        ask(copy, model, "again")
    assert passes != []
    assert content(copy / "v2/again") == content(copy / "v2/evaluation")


TOLD = ("rouge_l", "similarity", "cut", "generated")


def is_told(one: dict) -> bool:
    """Return whether a row has an answer, of which it has everything or nothing."""
    (told,) = {one[name] is not None for name in TOLD}
    return told


def test_rows_of_the_version_before_and_general_ones_have_losses_alone(home):
    for one in table_of(home).to_pylist():
        assert is_told(one) == (one["held_out_of"] == "v2")
        assert one["loss"] > 0


def test_with_a_task_metric_that_judges_them_they_are_answered_and_nothing_else_moves(copy, model):
    ask(copy, model, "judged", task_metric="exact_match")
    judged, plain = table_of(copy, "judged").to_pylist(), table_of(copy).to_pylist()
    assert all(map(is_told, judged))
    for one, other in zip(judged, plain, strict=True):
        assert one["loss"] == other["loss"]
        if is_told(other):
            assert other | {"correct": one["correct"]} == one


def test_answers_are_generated_for_judged_rows_alone(copy, model):
    path = copy / "v1/examples/examples.parquet"
    rows = read_table(path, schemas.EXAMPLES).to_pylist()
    (first, *_) = (one for one in rows if one["split"] == "held_out")
    first["response"] = "no number"
    write_rows(path.parent, rows)
    ask(copy, model, "judged", task_metric="exact_match")
    before = [one for one in table_of(copy, "judged").to_pylist() if one["held_out_of"] == "v1"]
    assert [is_told(one) for one in before] == [False, True, True] * TRAINED
    assert [one["correct"] is None for one in before] == [True, False, False] * TRAINED


def test_the_in_context_learner_is_asked_for_arm_chosen_and_one_seed_of_random(home):
    rows = rows_of(table_of(home), learner="in_context")
    assert [(one["arm"], one["seed"]) for one in rows] == [("chosen", 0)] * HELD_OUT + [("random", 0)] * HELD_OUT


def test_fewer_rows_are_generated_and_have_the_figures_that_they_have_among_all(home, copy, model):
    did = ask(copy, model, "fewer", generated_rows=2)
    assert did["answers_generated"] == 0
    fewer, all_of_them = table_of(copy, "fewer").to_pylist(), table_of(copy).to_pylist()
    for one, other in zip(fewer, all_of_them, strict=True):
        assert one["loss"] == other["loss"]
        assert not is_told(one) or one == other
    told = [(one["arm"], one["seed"], one["learner"], one["id"]) for one in fewer if is_told(one)]
    assert len(told) == 2 * (TRAINED + 2)
    assert len({id for *_, id in told}) == 2
    shutil.rmtree(copy / "v2/store")
    assert ask(copy, model, "fewer", generated_rows=2)["answers_generated"] == 2 * (TRAINED + 2)
    assert table_of(copy, "fewer").to_pylist() == fewer


def test_measures_of_fewer_rows_are_those_rows_means_with_intervals_of_their_own(home, copy, model):
    for out, rows in (("judged", None), ("fewer", 2)):
        ask(copy, model, out, generated_rows=rows, task_metric="exact_match")
    whole, found = metrics_of(copy, "judged"), metrics_of(copy, "fewer")
    assert (whole["generated_rows"], found["generated_rows"], found["held_out_rows"]) == (HELD_OUT, 2, HELD_OUT)
    assert found["in_context"]["generated_rows"] == 2
    table = [one for one in table_of(copy, "fewer").to_pylist() if is_told(one) and one["held_out_of"] == "v2"]
    for name, arm in found["arms"].items():
        of_losses = {key for key in arm if key.startswith("loss") or key in ("perplexity", "rows", "seeds")}
        assert {key: arm[key] for key in of_losses} == {key: whole["arms"][name][key] for key in of_losses}
        ours = [one for one in table if one["arm"] == name and one["learner"] != "in_context"]
        for measure in (*MEASURES[1:], "correct"):
            assert arm[measure] == pytest.approx(np.mean([one[measure] for one in ours]), abs=1e-6)
            assert arm[f"{measure}_low"] <= arm[measure] <= arm[f"{measure}_high"]
        assert arm["cut_answers"] == pytest.approx(np.mean([one["cut"] for one in ours]))
    for name, change in found["differences"].items():
        same = ("loss", "low", "high")
        assert {key: change[key] for key in same} == {key: whole["differences"][name][key] for key in same}
        assert change["correct_low"] <= change["correct"] <= change["correct_high"]


def test_intervals_of_fewer_rows_are_those_of_a_slow_bootstrap_over_these_rows(copy, model):
    ask(copy, model, "fewer", generated_rows=2)
    rows = [one for one in table_of(copy, "fewer").to_pylist() if is_told(one) and one["learner"] != "in_context"]
    arms: dict[str, list] = {}
    for arm, seed in dict.fromkeys((one["arm"], one["seed"]) for one in rows):
        ours = [one for one in rows if (one["arm"], one["seed"]) == (arm, seed)]
        arms.setdefault(arm, []).append([[one[name] for name in MEASURES] for one in ours])
    values = {arm: np.array(each) for arm, each in arms.items()}
    drawn = oracles.resampled_arms(values, SETTINGS.bootstrap, SETTINGS.seed)
    for name, arm in metrics_of(copy, "fewer")["arms"].items():
        for place, measure in ((1, "rouge_l"), (2, "similarity")):
            found = [each[place] for each in drawn[name]]
            assert arm[f"{measure}_low"] == pytest.approx(oracles.percentile(found, 0.025), abs=1e-6)
            assert arm[f"{measure}_high"] == pytest.approx(oracles.percentile(found, 0.975), abs=1e-6)


def test_more_generated_rows_hold_the_fewer_and_the_seed_draws_others(tmp_path, model):
    write_rows(
        tmp_path, [row(place, "pool") for place in range(2)] + [row(place, "held_out") for place in range(2, 32)]
    )
    held_out = read_held_out({"v1": tmp_path}, model)

    def draw(rows: int | None, seed: int = 0) -> set[int]:
        settings = replace(SETTINGS, generated_rows=rows, seed=seed)
        return set(choose_answered(held_out, [None] * len(held_out.rows), settings)["v1"])

    assert draw(6) < draw(12) < draw(None) == set(range(30))
    assert (len(draw(6)), len(draw(12)), len(draw(99))) == (6, 12, 30)
    assert draw(6) != draw(6, seed=1)
    assert {held_out.rows[place]["topic"] for place in draw(6)} == {one["topic"] for one in held_out.rows}
