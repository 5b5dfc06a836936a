"""Selectors are compared in trials of their own, each run once."""

import contextlib
import csv
import json

import pytest
from projects import Project, copy_real, run_dvc, start_project
from typer.testing import CliRunner

from flows import compare, trials
from flows.cli import app

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
    cost = {row["selector"]: row["scoring_seconds"] for row in rows}
    assert cost["random"] == cost["longest"] == 0
    assert cost["delift"] > 0


def test_what_trials_share_is_run_once(rows, inside):
    found = attempts(inside)
    assert found["examples"] == 1
    assert found["selection"] == 4  # two draws, and a choice of each other selector
    assert found["finetuning"] == 6
    assert found["utility"] == 3  # scored for one of the selectors, empty for the others


def test_a_second_comparison_runs_nothing_and_says_the_same(rows, inside, monkeypatch):
    monkeypatch.setattr(trials, "ROOMS", {})
    assert compare.compare("v1", **ASKED) == rows


def test_an_interrupted_comparison_goes_on_where_it_was(inside, monkeypatch):
    rooms, trained = dict(trials.ROOMS), []

    def train(*arguments):
        trained.append(arguments[0].selection.rows_by)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return rooms["finetuning"](*arguments)

    monkeypatch.setattr(trials, "ROOMS", rooms | {"finetuning": train})
    asked = {"selectors": ["longest"], "budgets": ["5"], "seeds": 2}
    with pytest.raises(KeyboardInterrupt):
        compare.compare("v1", **asked)
    assert len(compare.compare("v1", **asked)) == 2
    assert trained == ["random", "random", "random", "longest", "longest"]
    halted = [
        json.loads(path.read_text())["resumed"] for path in inside.root.glob(".cache/trials/finetuning/*/done.json")
    ]
    assert halted.count(True) == 1


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
    ("changes", "text"),
    [
        ({"selectors": ["longst"]}, "unknown selector 'longst'; known: delift, random, longest"),
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


def test_an_unknown_version_is_refused_with_those_there_are(inside):
    with pytest.raises(compare.CompareError, match=r"there is no data version 'v9'; params.yaml has v1"):
        compare.compare("v9", **ASKED)


def test_repeated_rows_that_are_left_in_are_kept_once_by_facility_location(inside):
    path = inside.root / "data/raw/v1/again.jsonl"
    line = json.dumps({"prompt": "hello again??", "response": "yes!", "topic": "again"}) + "\n"
    path.write_text(line * 40)
    try:
        (found,) = compare.repeat("v1")
    finally:
        path.unlink()
    assert (found["topic"], found["rows"], found["distinct"], found["kept"]) == ("again", 40, 1, 1)
    assert found["random"] > 5
