"""Selectors are compared in trials of their own, each run once."""

import contextlib
import csv
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner
from worlds.projects import GRAPHS, ROOT, Project, copy_real, run_dvc, run_stages, start_project

from flows import compare, params, stage, trials
from flows.cli import app
from flows.graph import versions
from tamis.submodular.budgets import BudgetError

READ_BEFORE = (("examples", "examples.parquet"), ("examples", "lingering.parquet"), ("selection", "subset.parquet"))
ASKED = {"selectors": ["longest", "delift"], "budgets": ["4"], "seeds": 2}


@pytest.fixture(scope="module")
def project(tmp_path_factory, toy_folder) -> Project:
    root = tmp_path_factory.mktemp("compare") / "project"
    copy_real(root, str(toy_folder))
    return start_project(root)


@pytest.fixture
def inside(project):
    with contextlib.chdir(project.root):
        yield project


@pytest.fixture
def rows(inside):
    return compare.compare("v1", **ASKED)


@pytest.fixture(scope="module")
def continued(tmp_path_factory, toy_folder) -> Project:
    """A project of two versions, before the first is run."""
    root = tmp_path_factory.mktemp("continued") / "project"
    copy_real(root, str(toy_folder))
    project = start_project(root)
    project.apply(GRAPHS["real"].version)
    return project


@contextlib.contextmanager
def restored(path):
    """Put a file back as it was, afterwards."""
    before = path.read_text()
    try:
        yield path
    finally:
        path.write_text(before)


def edit_after(patch, name, path):
    """Let a file be edited as soon as a stage is done."""
    function = trials.STAGES[name]

    def work(*arguments):
        found = function(*arguments)
        path.write_text(path.read_text() + "# edited\n")
        return found

    patch.setattr(trials, "STAGES", dict(trials.STAGES) | {name: work})


def attempts(project):
    """Return how often each stage was run apart."""
    found = [path.parent.parent.name for path in project.root.glob(".cache/trials/*/*/done.json")]
    return {name: found.count(name) for name in set(found)}


def test_every_selector_stands_beside_random_rows_at_its_budget_with_interval_and_cost(rows, inside):
    assert {(row["selector"], row["budget"]) for row in rows} == {
        (name, "4") for name in ("random", "longest", "delift")
    }
    for row in rows:
        assert (row["rows"], row["seeds"]) == (4, 2)
        assert row["low"] <= row["loss"] <= row["high"]
        assert row["minus_random_low"] <= row["minus_random"] <= row["minus_random_high"]
        assert row["total_seconds"] == pytest.approx(
            row["scoring_seconds"] + row["selecting_seconds"] + row["training_seconds"]
        )
        assert row["total_flops"] == row["scoring_flops"] + row["training_flops"] > row["selecting_flops"] == 0
        assert row["training_flops"] < row["full_flops"]
    for unit in ("seconds", "flops"):
        cost = {row["selector"]: row[f"scoring_{unit}"] for row in rows}
        assert cost["random"] == cost["longest"] == 0
        assert cost["delift"] > 0
    assert len({row["full_flops"] for row in rows}) == 1


def test_what_trials_share_is_run_once(rows, inside):
    found = attempts(inside)
    assert found["examples"] == 1
    assert found["selection"] == 4  # two draws, and a choice of each other selector
    assert found["finetuning"] == 6
    assert found["utility"] == 3  # scored for one of the selectors, empty for the others


def test_all_three_forms_of_chance_are_drawn_by_the_seed_of_their_training(rows, inside):
    found = compare.compare("v1", selectors=["balanced", "fresh"], budgets=["4"], seeds=2)
    assert {row["selector"] for row in found} == {"random", "balanced", "fresh"}
    assert {row["rows"] for row in found} == {4}
    seen = {}
    for path in inside.root.glob(".cache/trials/selection/*/selection.json"):
        selector = json.loads(path.read_text())["selector"]
        table = pq.read_table(path.with_name("subset.parquet"))
        seen.setdefault(selector, []).append(table.filter(table["chosen"])["id"].to_pylist())
    assert {name: len(drawn) for name, drawn in seen.items() if name in ("random", "balanced", "fresh")} == {
        "random": 2,
        "balanced": 2,
        "fresh": 2,
    }
    assert sorted(seen["fresh"]) == sorted(seen["random"])  # the rows of the first epoch
    assert seen["balanced"][0] != seen["balanced"][1]


def test_a_second_comparison_runs_nothing_and_says_the_same(rows, inside, monkeypatch):
    monkeypatch.setattr(trials, "STAGES", {})
    assert compare.compare("v1", **ASKED) == rows


def test_an_interrupted_comparison_goes_on_where_it_was_and_tells_whose_seconds_are_not_whole(
    inside, monkeypatch, capsys
):
    stages, trained = dict(trials.STAGES), []

    def train(*arguments):
        trained.append(arguments[0].selection.selector)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return stages["finetuning"](*arguments)

    monkeypatch.setattr(trials, "STAGES", stages | {"finetuning": train})
    asked = {"selectors": ["longest"], "budgets": ["5"], "seeds": 2}
    with pytest.raises(KeyboardInterrupt):
        compare.compare("v1", **asked)
    found = {row["selector"]: row["resumed"] for row in compare.compare("v1", **asked)}
    assert found == {"random": 1, "longest": 0}
    told = "seconds of 1 of 2 cells leave out what interrupted attempts took (column resumed), first random at 5\n"
    assert capsys.readouterr().err.endswith(told)
    assert trained == ["random", "random", "random", "longest", "longest"]
    halted = [
        json.loads(path.read_text())["resumed"] for path in inside.root.glob(".cache/trials/finetuning/*/done.json")
    ]
    assert halted.count(True) == 1


@pytest.mark.parametrize(
    ("name", "budget", "concluded"), [("selection", "10", 0), ("finetuning", "11", 1), ("evaluation", "12", 1)]
)
def test_code_that_was_edited_meanwhile_is_not_taken_for_what_ran(inside, monkeypatch, name, budget, concluded):
    before, path = attempts(inside).get("selection", 0), inside.root / f"tasks/{name}/{name}.py"
    edit_after(monkeypatch, "selection", path)
    named = (
        rf"^tasks/{name}/{name}\.py, of {name}@v1, was edited after this process started; its output is not recorded"
    )
    with restored(path), pytest.raises(stage.InputsChanged, match=named):
        compare.compare("v1", selectors=["random"], budgets=[budget], seeds=1)
    assert attempts(inside)["selection"] - before == concluded


def test_a_file_that_moved_while_a_trial_read_it_is_refused_by_name(inside, monkeypatch):
    read = inside.root / "data/finetuning/version=base/arms/.gitkeep"
    edit_after(monkeypatch, "finetuning", read)
    named = (
        r"^1 of \d+ inputs of finetuning@v1 changed while it ran: data/finetuning/version=base/arms; its output is not"
    )
    with restored(read), pytest.raises(stage.InputsChanged, match=named):
        compare.compare("v1", selectors=["random"], budgets=["9"], seeds=1)


def test_losses_are_measured_again_where_the_code_that_measures_them_is_another(inside):
    asked = {"selectors": ["random"], "budgets": ["6"], "seeds": 1}
    compare.compare("v1", **asked)
    before, trained = set(inside.root.glob(".cache/trials/*/*/losses-*.json")), attempts(inside)
    with restored(inside.root / "tasks/evaluation/evaluation.py") as path:
        path.write_text(path.read_text() + "# a comment\n")
        compare.compare("v1", **asked)
    new = set(inside.root.glob(".cache/trials/*/*/losses-*.json")) - before
    assert [path.parent.parent.name for path in sorted(new)] == ["examples", "finetuning"]
    assert attempts(inside) == trained


def test_a_version_is_compared_once_what_it_continues_from_is_up_to_date(continued, monkeypatch):
    monkeypatch.chdir(continued.root)
    asked = {"selectors": ["delift"], "budgets": ["4"], "seeds": 1}
    stale = r"v2 continues from v1, of which 9 of 9 stages are not up to date, first examples@v1 .*`tamis run v1`"
    with pytest.raises(compare.CompareError, match=stale):
        compare.compare("v2", **asked)
    run_stages("v1")
    rows = compare.compare("v2", **asked)
    assert [(row["selector"], row["rows"]) for row in rows] == [("random", 4), ("delift", 4)]
    (trained,) = {
        json.loads(path.read_text())["continues_from"]
        for path in continued.root.glob(".cache/trials/finetuning/*/finetuning.json")
    }
    assert trained == "chosen-0"


@pytest.mark.slow
def test_masks_go_on_from_a_version_that_was_trained_inside_one(tmp_path, toy_folder, monkeypatch):
    copy_real(tmp_path / "project", str(toy_folder))
    project = start_project(tmp_path / "project")
    project.apply(GRAPHS["real"].version)
    monkeypatch.chdir(project.root)
    asked = {"selectors": ["random"], "masks": ["magnitude"], "budgets": ["0.3"], "seeds": 1}
    run_stages("v1")
    refused = r"v2 continues from v1, whose arms are of method lora, and a mask goes on from a masked arm or from the"
    with pytest.raises(compare.CompareError, match=refused):
        compare.compare("v2", **asked)
    project.edit("params.yaml", "selector: none", "selector: magnitude")
    project.edit("params.yaml", "method: lora", "method: masked")
    run_stages("v1")
    rows = compare.compare("v2", **asked)
    assert len(rows) == 6
    assert {row["parameters"] for row in rows if row["mask"] == "none"} == {1.0}


def test_without_the_version_before_a_trial_depends_on_none_of_its_artifacts(continued, monkeypatch):
    monkeypatch.chdir(continued.root)
    values = params.read()
    alone = replace(values, versions={"v2": replace(values.versions["v2"], previous="base")})
    after, apart = (trials.describe("examples", "v2", each, {}) for each in (values, alone))
    assert (after.pop("previous"), apart.pop("previous")) == ("v1", "base")
    read = [{f"data/{name}/version={v}/{file}" for name, file in READ_BEFORE} for v in ("v1", "base")]
    assert [each - other for each, other in ((after.keys(), apart.keys()), (apart.keys(), after.keys()))] == read
    assert all(apart[name] == value for name, value in after.items() if name not in read[0])


def test_a_trial_depends_on_those_of_the_version_before_where_these_are_trials(continued, monkeypatch, tmp_path):
    monkeypatch.chdir(continued.root)
    values, made = (
        params.read(),
        {name: trials.Trial(f"key of {name}", tmp_path / name, 1.0, False, {}) for name, _ in READ_BEFORE},
    )
    found = trials.describe("examples", "v2", values, {}, made)
    assert {name: found[name] for name in found if name.endswith(" before")} == {
        "examples before": "key of examples",
        "selection before": "key of selection",
    }
    assert not {f"data/{name}/version=v1/{file}" for name, file in READ_BEFORE} & found.keys()


@pytest.mark.parametrize("run", [lambda: compare.compare("v1", **ASKED), lambda: compare.repeat("v1")])
def test_raw_data_that_are_not_what_was_recorded_are_refused(inside, run):
    inside.git("tag", "data-v1")
    try:
        with pytest.raises(versions.RecordError, match="the tag data-v1 records no stage of v1"):
            run()
    finally:
        inside.git("tag", "--delete", "data-v1")


def test_the_projects_own_artifacts_and_state_are_left_alone(rows, inside):
    made = {path.parent.name for path in inside.root.glob("data/*/version=v1")}
    assert made == {"comparison"}
    assert not (inside.root / "dvc.lock").exists()


def test_a_comparison_is_asked_in_sql_and_plotted_by_dvc(rows, inside):
    answer = CliRunner().invoke(app, ["sql", "SELECT selector FROM comparison ORDER BY loss LIMIT 1"])
    assert answer.stdout.split()[1] == min(rows, key=lambda row: row["loss"])["selector"]
    drawn = json.loads(run_dvc(inside, "plots", "show", "--json").stdout)["data"]
    (plot,) = drawn["data/comparison/version=v1/comparison.csv"]
    points = plot["content"]["data"]["values"]
    with open(inside.root / "data/comparison/version=v1/comparison.csv", newline="") as file:
        assert len(points) == len(list(csv.DictReader(file))) == len(rows)


@pytest.mark.parametrize(
    ("metric", "correct", "told"),
    [
        ("exact_match", [0.0, 0.0], "exact_match: no cell answered any held-out row right (a floor of 0), so it tells"),
        ("exact_match", [0.0, 0.1], ""),
        ("none", [None, None], ""),
    ],
)
def test_a_floor_of_zero_right_answers_is_told(capsys, metric, correct, told):
    compare.tell_floor([{"correct": share} for share in correct], metric)
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"selectors": ["longst"]}, "unknown selector 'longst'; known: delift, random, balanced"),
        ({"masks": ["fischer"]}, "unknown mask 'fischer'; known: none, dualsft, fisher, magnitude, random"),
        ({"budgets": []}, "no budget is given"),
        ({"budgets": ["1.5"]}, "'1.5' is no budget"),
        ({"budgets": ["0"]}, "'0' is no budget"),
        ({"budgets": ["half"]}, "'half' is no budget"),
        ({"budgets": ["nan"]}, "'nan' is no budget"),
        ({"seeds": 0}, "seeds is 0; give at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(inside, changes, text):
    with pytest.raises(compare.CompareError, match=text):
        compare.compare("v1", **{**ASKED, **changes})


@pytest.mark.parametrize(("selector", "quality"), [("delift", "help"), ("embedding", "none"), ("longest", "none")])
def test_the_quality_of_demos_holds_for_delift_and_no_other_selector_than_the_projects_own(selector, quality):
    values = params.read(ROOT / "params.yaml")
    values = replace(values, selection=replace(values.selection, selector="delift", quality="help"))
    assert compare.ask(compare.Cell(selector, "none", "0.1"), 0, values, False).selection.quality == quality


@pytest.mark.parametrize("budget", ["5000", "0.001"])
def test_a_budget_that_the_pool_cannot_keep_is_refused_before_anything_is_scored(inside, monkeypatch, budget):
    monkeypatch.setattr(compare, "run_cell", lambda *asked, **more: pytest.fail("a cell ran"))
    text = r"selection.budget.count is 5000, but the ground set holds \d+ rows|fraction 0.001 of \d+ rows is less than"
    with pytest.raises(BudgetError, match=text):
        compare.compare("v1", **{**ASKED, "budgets": ["0.5", budget]})


def test_an_unknown_version_is_refused_with_those_there_are(inside):
    with pytest.raises(compare.CompareError, match=r"there is no data version 'v9'; params.yaml has v1"):
        compare.compare("v9", **ASKED)


def test_repeated_rows_that_are_left_in_are_kept_once_by_facility_location(inside):
    path = inside.root / "data/raw/v1/again.jsonl"
    line = json.dumps({"prompt": "hello again??", "response": "yes!", "topic": "again"}) + "\n"
    path.write_text(line * 40)
    try:
        (found,) = compare.repeat("v1")
        with restored(inside.root / "params.yaml") as settings:
            settings.write_text(settings.read_text().replace("gate: null", "gate: {by: agreement, drop: 0.5}"))
            assert params.read().selection.gate is not None
            assert compare.repeat("v1") == [found]  # chance knows nothing of a gate
    finally:
        path.unlink()
    assert (found["topic"], found["rows"], found["distinct"], found["kept"]) == ("again", 40, 1, 1)
    assert found["random"] > 5


@pytest.mark.parametrize(("option", "shown"), [([], ""), (["--json"], "[]\n")])
def test_without_a_repeated_row_this_is_said_and_no_row_is_chosen(inside, option, shown):
    before = attempts(inside).get("selection", 0)
    done = CliRunner().invoke(app, ["repeats", "v1", *option])
    assert (done.exit_code, done.stdout) == (0, shown)
    assert done.stderr == "no row of v1's pool is repeated\n"
    assert attempts(inside).get("selection", 0) == before


@pytest.mark.slow
def test_rows_alone_parameters_alone_and_both_stand_beside_chance(inside):
    with restored(inside.root / "params.yaml") as path:
        path.write_text(path.read_text().replace("validation_every: null", "validation_every: 5"))
        found = compare.compare("v1", selectors=["dualsft"], masks=["dualsft"], budgets=["0.3"], seeds=1)
    cells = {(row["selector"], row["mask"]): row for row in found}
    assert set(cells) == {
        (rows, mask) for rows in ("random", "all", "dualsft") for mask in ("none", "random", "dualsft")
    }
    for (selector, mask), row in cells.items():
        assert row["share"] == pytest.approx(1.0 if selector == "all" else 0.3)
        assert row["parameters"] == pytest.approx(1.0 if mask == "none" else 0.3, abs=0.001)
        assert row["plasticity_low"] <= row["plasticity"] <= row["plasticity_high"]
        assert (row["scoring_seconds"] > 0) == ("dualsft" in (selector, mask))
    assert cells["dualsft", "dualsft"]["minus_random"] == pytest.approx(
        cells["dualsft", "dualsft"]["loss"] - cells["random", "random"]["loss"]
    )
    methods = {
        json.loads(path.read_text())["method"]
        for path in inside.root.glob(".cache/trials/finetuning/*/finetuning.json")
    }
    assert {"masked", "full"} <= methods


@pytest.mark.slow
def test_of_a_corpus_whose_rows_were_repeated_by_accident_no_text_is_kept_twice(tmp_path, monkeypatch):
    project = copy_corpus(tmp_path / "project")
    monkeypatch.chdir(project.root)
    found = {row["topic"]: row for row in compare.repeat("v2")}["tech_support"]
    assert found["rows"] > 700
    assert found["kept"] <= found["distinct"] < 70  # ten texts, and those whose responses were exchanged
    assert found["random"] > 200


def copy_corpus(root) -> Project:
    """Copy the project as it is: its parameters, its raw data, the models that they name."""
    copy_real(root, "")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "data/raw", root / "data/raw", dirs_exist_ok=True)
    for path in root.glob("data/raw/*/toys.jsonl"):
        path.unlink()
    return start_project(root)
