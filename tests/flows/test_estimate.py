"""The estimate of a run, held against the run; the clock of a run; what an estimate costs and when it is refused."""

import contextlib
import json
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from worlds.projects import copy_real, run_stages, start_project

from flows import drive, estimate, stage
from flows.estimate import Clock, Estimate, Line
from flows.graph import dvc_state
from tamis.language.packing import group_rows, plan_packs
from tamis.submodular.budgets import BudgetError
from tasks.estimate import rows
from tasks.selection.settings import SelectionSettings

KERNELS = {
    "exact": {"utility": {"kernel": "exact"}},
    "neighbours": {
        "examples": {"target": {"topic": "sums", "rows": 3}},
        "selection": {"gate": {"by": "ifd", "drop": 0.2}},
        "utility": {"help_targets": 2, "answer_tokens": 2},
    },
    "landmarks": {
        "utility": {"kernel": "landmarks", "landmarks": 8, "landmark_targets": 12},
        "finetuning": {"method": "masked", "epochs": 3, "batch_rows": 2, "arms": {"chosen": [0, 1]}},
        "mask": {"selector": "dualsft", "budget": {"fraction": 0.1}, "update_steps": 2},
        "examples": {"validation_every": 5},
        "selection": {
            "gate": {"by": "agreement", "drop": 0.2},
            "pilot": {"steps": 1, "seeds": 1, "rows": 0.5},
        },
    },
    "ifd": {
        "selection": {"selector": "ifd"},
        "gradients": {"fisher_rows": 5},
        "finetuning": {"method": "masked"},
        "mask": {"selector": "fisher"},
    },
}

DAILY = ("neighbours",)  # the others are slow
PARAMS = [kernel if kernel in DAILY else pytest.param(kernel, marks=pytest.mark.slow) for kernel in KERNELS]


def start(root: Path, model: Path, changes: dict) -> None:
    """Make a project with the toy model and some settings changed."""
    copy_real(root, str(model))
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["versions"]["v2"] = {"raw": "data/raw/v2", "previous": "v1"}
    values["gradients"] = {**values["gradients"], "batch_rows": 2}
    for section, settings in changes.items():
        values[section] |= settings
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    start_project(root)


@pytest.fixture(scope="module", params=PARAMS)
def ran(request, toy_folder, tmp_path_factory):
    """A project, what was expected of its two versions before any run, and the tokens that they then scored."""
    root, scored = tmp_path_factory.mktemp(request.param) / "project", {}
    start(root, toy_folder, KERNELS[request.param])
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        expected = {line.address: line for line in estimate.make_estimate(dvc_state.plan()).lines}
        watch(patch, scored)
        run_stages("v1")
        run_stages("v2")
        yield expected, scored


def watch(patch: pytest.MonkeyPatch, scored: dict[str, int]) -> None:
    """Count the tokens of the packs that stages utility, scores and evaluation run; keep version and stage apart."""
    from tasks.evaluation import networks
    from tasks.scores import answers
    from tasks.utility import utility

    run, current = stage.run, []

    def note(name, version, **rest):
        current[:] = [f"{name}@{version}"]
        return run(name, version, **rest)

    patch.setattr(stage, "run", note)

    def count(plain, group, model, rows, pack_tokens):
        tokens = sum(len(pack.tokens) for pack in plan_packs(group(rows), pack_tokens))
        scored[current[0]] = scored.get(current[0], 0) + tokens
        return plain(model, rows, pack_tokens)

    patch.setattr(utility, "score_responses", partial(count, utility.score_responses, list))
    for module in (answers, networks):
        patch.setattr(module, "score_rows", partial(count, module.score_rows, group_rows))


def known_metrics(name: str, version: str) -> dict:
    return json.loads((stage.folder(name, version) / f"{name}.json").read_text())


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_estimated_pairs_texts_and_rows_are_those_that_the_stages_compute(ran, version):
    expected, _ = ran
    run = {name: stage.last_run(f"{name}@{version}") for name in ("embedding", "utility", "scores", "gradients")}
    work = {name: expected[f"{name}@{version}"].work for name in run}
    pairs = run["utility"]["pairs_scored"] + run["utility"]["pairs_known"]
    landmarks = known_metrics("utility", version).get("kernel") == "landmarks"  # some pairs depend on which demos win
    assert work["utility"].pairs == (pytest.approx(pairs, rel=0.02) if landmarks else pairs)
    assert work["utility"].rows == run["utility"]["alone_scored"] + run["utility"]["alone_known"]
    assert work["embedding"].texts == run["embedding"].get("texts_encoded", 0) + run["embedding"].get("texts_known", 0)
    assert work["scores"].rows == run["scores"]["rows_scored"] + run["scores"]["rows_known"]
    assert (
        work["gradients"].rows
        == sum(run["gradients"][name] for name in ("rows_summed", "rows_scored")) + (run["gradients"]["rows_squared"])
    )
    examples = known_metrics("examples", version)
    assert expected[f"examples@{version}"].work.rows == examples["rows"]


def test_estimated_tokens_are_those_of_the_packs_that_are_run(ran):
    expected, scored = ran
    for name in ("utility", "scores"):
        assert expected[f"{name}@v1"].work.forward == pytest.approx(scored.get(f"{name}@v1", 0), rel=0.05)
    asked = expected["evaluation@v1"].work
    assert scored["evaluation@v1"] < asked.forward < 3 * scored["evaluation@v1"]  # prompts are run again to go on


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_estimated_trainings_of_a_pilot_are_those_that_are_run(ran, version):
    expected, _ = ran
    work, piloted = expected[f"selection@{version}"].work, known_metrics("selection", version)["pilot"]
    trainings = sum(map(len, piloted["losses"].values())) if piloted else 0
    assert work.loads == trainings
    assert (work.backward > 0, work.forward > 0) == (trainings > 0, trainings > 0)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_estimated_training_is_that_of_the_arms(ran, version):
    expected, _ = ran
    work, arms = expected[f"finetuning@{version}"].work, known_metrics("finetuning", version)["arms"]
    assert work.arms == len(arms)
    assert work.rows == sum(arm["rows"] * arm["epochs"] for arm in arms.values())
    trained = sum(arm["tokens"] for arm in arms.values())
    cut = any(arm.get("rescored") for arm in arms.values())
    assert work.backward > 2 * trained if cut else work.backward == pytest.approx(trained, rel=0.1)  # other rows, drawn


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_estimated_answers_are_those_of_all_runs(ran, version):
    expected, _ = ran
    table = pq.read_table(stage.folder("evaluation", version) / "evaluation.parquet", partitioning=None)
    work = expected[f"evaluation@{version}"].work
    runs = table.group_by(["arm", "learner", "seed", "id"]).aggregate([])  # a row of two versions is computed once
    assert work.rows == runs.num_rows
    assert work.at_most


def test_after_a_run_nothing_is_left_and_its_seconds_are_known(ran, monkeypatch):
    from tasks.estimate import calibration, rates

    for name in ("calibrate_language", "calibrate_encoder"):
        monkeypatch.setattr(calibration, name, lambda choice: pytest.fail("everything has run"))
    found = estimate.make_estimate(dvc_state.plan())
    assert found.seconds == 0
    assert {line.state for line in found.lines} == {"fresh"}
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("bootstrap: 50", "bootstrap: 51"))
    found = estimate.make_estimate(dvc_state.plan())
    assert {line.address for line in found.lines if line.work} == {
        f"{name}@{version}" for name in ("evaluation", "audit") for version in ("v1", "v2")
    }
    kept = rates.read_rates(estimate.RATES).entries
    assert {name.partition(" |")[0] for name, one in kept.items() if one["run"]} >= {"examples", "selection"}
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("bootstrap: 51", "bootstrap: 50"))


def test_pairs_that_the_store_holds_are_not_counted_again(ran):
    before = Path("params.yaml").read_text()
    if "kernel: neighbours" not in before or "selector: ifd" in before:
        pytest.skip("of kernel neighbours")
    Path("params.yaml").write_text(before.replace("neighbours: 3", "neighbours: 5"))
    (found,) = (line for line in estimate.make_estimate(dvc_state.plan(["v1"])).lines if line.address == "utility@v1")
    run_stages("v1", until="utility")
    assert 0 < found.work.pairs == stage.last_run("utility@v1")["pairs_scored"]
    assert not found.work.at_most
    Path("params.yaml").write_text(before)
    run_stages("v1", until="utility")


def test_rows_for_programs_hold_every_count(ran):
    expected, _ = ran
    rows = estimate.make_rows(Estimate(tuple(expected.values())))
    (row,) = (row for row in rows if (row["stage"], row["version"]) == ("utility", "v1"))
    assert row["state"] == "missing"
    assert row["pairs"] == expected["utility@v1"].work.pairs
    json.dumps(rows)


def test_table_ends_with_the_total(ran):
    expected, _ = ran
    names, rows = estimate.make_table(Estimate(tuple(expected.values())))
    assert len(rows) == len(expected) + 1
    assert {len(row) for row in rows} == {len(names)}


def test_nothing_is_loaded_for_counting(toy_folder, tmp_path, monkeypatch):
    from tasks import models
    from tasks.estimate import calibration

    start(tmp_path / "project", toy_folder, {})
    monkeypatch.chdir(tmp_path / "project")
    for name in ("language_model", "embedder"):
        monkeypatch.setattr(models, name, lambda choice: pytest.fail("weights were loaded"))
    for name in ("calibrate_language", "calibrate_encoder"):
        monkeypatch.setattr(calibration, name, lambda choice: dict.fromkeys(("load", "forward", "backward"), 1.0))
    rates = {"load": 1.0, "forward": 1.0, "backward": 1.0, "generated": 1.0, "encoded": 1.0}
    monkeypatch.setattr(calibration, "calibrate_language", lambda choice: rates)
    monkeypatch.setattr(calibration, "calibrate_encoder", lambda choice: rates)
    assert estimate.make_estimate(dvc_state.plan(["v1"])).seconds > 0


def test_an_estimate_is_made_where_what_was_measured_cannot_be_kept(toy_folder, tmp_path, monkeypatch, capsys):
    from tasks.estimate import calibration

    start(tmp_path / "project", toy_folder, {})
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(estimate, "RATES", Path("params.yaml/rates.json"))  # in a folder that cannot be made
    rates = dict.fromkeys(("load", "forward", "backward", "generated", "encoded"), 1.0)
    for name in ("calibrate_language", "calibrate_encoder"):
        monkeypatch.setattr(calibration, name, lambda choice: rates)
    assert estimate.make_estimate(dvc_state.plan(["v1"])).seconds > 0
    said = capsys.readouterr().err
    assert said.startswith("what was measured is not kept: params.yaml/rates.json could not be written: ")


def test_an_estimate_that_cannot_be_made_is_said_in_a_line_and_the_run_goes_on(
    toy_folder, tmp_path, monkeypatch, capsys
):
    start(tmp_path / "project", toy_folder, {})
    monkeypatch.chdir(tmp_path / "project")
    (tmp_path / "project/data/raw/v1/toys.jsonl").unlink()
    assert estimate.try_estimate(dvc_state.plan(["v1"])) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("no estimate of this run: ")
    assert "data/raw/v1" in said
    estimate.print_estimate(None)
    estimate.learn(None, ["utility@v1"])
    with pytest.raises(ValueError, match="data/raw/v1"):
        estimate.make_estimate(dvc_state.plan(["v1"]))


def test_a_run_is_refused_before_anything_is_computed_where_a_budget_is_known_not_to_be_kept(
    toy_folder, tmp_path, monkeypatch, capsys
):
    start(tmp_path / "project", toy_folder, {"selection": {"budget": {"count": 1000}, "caps": {}, "gate": None}})
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(BudgetError, match=r"^selection.budget.count is 1000") as caught:
        drive.run(["v1"])
    assert caught.value.stage == "selection@v1"
    assert not list(Path("data/examples").glob("version=v1/*"))
    assert "no estimate of this run" not in capsys.readouterr().err
    run_stages("v1", until="examples")
    with pytest.raises(BudgetError) as told:
        stage.run("embedding", "v1")
    assert str(told.value) == str(caught.value)
    with pytest.raises(BudgetError, match=str(told.value)):
        estimate.try_estimate(dvc_state.plan(["v1"]))


@pytest.mark.parametrize(
    ("asked", "known", "first", "certain"),
    [
        ({"budget": {"count": 4}}, False, True, True),
        ({"budget": {"count": 4}}, False, False, False),  # rows of the version before may be taken out or in
        ({"budget": {"count": 3}}, False, True, False),  # a floor, say, of a topic
        ({"budget": {"response_tokens": 1}}, False, True, False),  # their lengths are guessed
        ({"budget": {"response_tokens": 1}}, True, False, True),
        ({"budget": {"count": 4}, "gate": {"by": "ifd", "drop": 0.2}}, True, True, False),  # pinned rows stay
    ],
)
def test_what_is_known_of_the_pool_tells_whether_a_budget_cannot_be_kept(asked, known, first, certain):
    pool = [{"used": used, "split": split} for used in (True, False) for split in ("pool", "held_out")] * 3
    assert rows._is_certain(pool, SelectionSettings(**asked), known=known, first=first) is certain


def test_a_run_on_another_machine_teaches_nothing(ran, monkeypatch):
    monkeypatch.setattr(estimate, "name_machine", lambda: "another")
    assert estimate._read_runs([planned.address for planned in dvc_state.plan()]) == {}


def test_time_left_falls_to_nothing_as_stages_end():
    clock = estimate.start_clock(
        Estimate((line("utility@v1", 60.0), line("finetuning@v1", 30.0), line("audit@v1", 0.0)))
    )
    seen = [estimate.seconds_left(clock)]
    for address, seconds in (("audit@v1", 1.0), ("utility@v1", 120.0), ("finetuning@v1", 60.0)):
        clock = estimate.end_stage(clock, address, seconds, computed=True)
        seen.append(estimate.seconds_left(clock))
    assert seen[0] == 90
    assert 30 < seen[2] < 60  # this machine is slower today than was expected
    assert seen[3] == 0
    assert estimate.tell_left(clock) == ""


def test_a_stage_that_is_restored_says_nothing_of_the_pace():
    clock = Clock({"utility@v1": 60.0, "finetuning@v1": 30.0})
    assert estimate.seconds_left(estimate.end_stage(clock, "utility@v1", 0.1, computed=False)) == 30


def line(address: str, seconds: float) -> Line:
    return Line(address, "stale", None, seconds)
