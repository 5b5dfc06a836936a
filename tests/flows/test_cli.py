"""The `tamis` command on the real graph with the toy model: data on stdout, talk on stderr, errors as one message."""

import csv
import io
import json
import re
import shutil
import sys

import pytest
import yaml
from worlds.commands import tamis
from worlds.projects import GRAPHS, ROOT, Project, run_child, run_dvc, run_stages

from tasks.catalogue.examples import EXAMPLES

REAL = GRAPHS["real"]


@pytest.fixture
def project(fresh, tmp_path, monkeypatch) -> Project:
    """A copy of the toy project that the flow has run, as the current folder."""
    made, _ = fresh(REAL, "flow")
    shutil.copytree(made.root, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def rows_of(result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return list(csv.reader(io.StringIO(result.stdout)))


def test_run_ends_with_losses_seconds_pairs_and_where_to_look(project):
    done = tamis("run")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    assert "v1: held-out loss, nats per response token" in shown
    for word in (
        "base",
        "chosen",
        "random",
        "full",
        "95% interval",
        "pairs scored: ",
        "seconds: examples ",
        "cost: scor",
    ):
        assert word in shown
    assert 'look further: tamis sql "' in shown
    assert "tamis show " in shown
    assert "dvc metrics show" in shown
    assert done.stderr == "9 of 9 stages are up to date\n"


def test_run_that_has_nothing_to_do_does_not_import_prefect(project):
    command = (
        "import sys; from flows.cli import app; app(['run'], standalone_mode=False); print('prefect' in sys.modules)"
    )
    done = run_child([sys.executable, "-c", command], project, PYTHONPATH=str(ROOT))
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.view for one in EXAMPLES])
def test_every_query_of_the_catalogue_is_answered(project, example):
    names, *rows = rows_of(tamis("sql", example.sql))
    assert names
    assert rows or example.view in (
        "rejects",
        "mask",
        "tensors",
        "approvals",
        "decisions",
    )  # there are none in this project


def test_unknown_runner_is_refused_with_those_that_exist(project):
    done = tamis("run", "--runner", "ray")
    assert done.exit_code == 2
    assert "'ray' runs no shards; known: threads, dask, or the address" in " ".join(
        done.stderr.replace("│", "").split()
    )


def test_look_further_commands_work(project):
    ((_, *columns), first, *_) = rows_of(tamis("sql", "select id, chosen from subset order by id"))
    assert columns == ["chosen"]
    shown = tamis("show", first[0])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["id"] == first[0]
    metrics = run_dvc(project, "metrics", "show", "--json")
    assert "data/evaluation/version=v1/metrics.json" in metrics.stdout


def test_loss_curves_are_plots_of_dvc(project):
    plots = run_dvc(project, "plots", "show", "--json")
    assert plots.returncode == 0, plots.stderr
    assert "data/finetuning/version=v1/curve.csv" in plots.stdout


def test_status_says_what_is_stale_and_why_and_when_it_was_made(project):
    project.apply(REAL.late)
    heading, *found = rows_of(tamis("status"))
    assert heading == ["stage", "state", "made", "seconds", "why"]
    states = {row[0]: row[1:] for row in found}
    assert list(states) == REAL.all()
    assert states["utility@v1"][0] == "fresh"
    assert states["utility@v1"][1].startswith("20")
    assert float(states["utility@v1"][2]) >= 0
    assert states["evaluation@v1"][0] == "stale"
    assert "evaluation" in states["evaluation@v1"][3]
    assert states["audit@v1"][0::3] == ["waits", "for evaluation@v1"]


def test_stages_are_the_graph_in_order(project):
    heading, *found = rows_of(tamis("stages"))
    assert heading == ["stage", "makes", "reads"]
    assert [row[0] for row in found] == REAL.all()
    assert found[5][2] == "embedding@v1, examples@v1, gradients@v1, scores@v1, utility@v1"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "v9"], "error: there is no data version 'v9'; params.yaml has v1"),
        (["sql", "select * from nothing"], "error: "),
        (["show", "zzz"], "error: no example's id begins with 'zzz'"),
    ],
)
def test_error_is_one_message_on_stderr_and_status_one(project, arguments, text):
    done = tamis(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith(text)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_parameters_are_refused_before_anything_is_touched(project):
    project.edit("params.yaml", "kernel: neighbours", "kernel: neighbors")
    done = tamis("run")
    assert done.exit_code == 1
    assert "got 'neighbors' (did you mean 'neighbours'?)" in done.stderr
    assert (project.root / "data/utility/version=v1/utility.parquet").exists()


def test_error_in_a_stage_is_said_once_without_traceback(project):
    project.apply(REAL.failing)
    done = tamis("run")
    assert done.exit_code == 1
    assert done.stderr.count(REAL.error) >= 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {REAL.failing.computed[0]}: ")


def test_error_in_a_stage_of_a_comparison_names_the_stage(project):
    project.apply(REAL.failing)
    done = tamis("compare", "--budgets", " 0.5 ", "--selectors", "longest , random", "--seeds", "1")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: selection@v1: ")
    assert REAL.error in line


def test_a_failed_run_leaves_the_last_good_artifacts(project):
    before = {path: path.read_bytes() for path in (project.root / "data/examples/version=v1").iterdir()}
    assert len(before) >= 5
    name = yaml.safe_load((project.root / "params.yaml").read_text())["models"]["language"]
    project.edit("params.yaml", f"language: {name}", f"language: {name}-typo")
    done = tamis("run")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: examples@v1: ")
    assert {path: path.read_bytes() for path in (project.root / "data/examples/version=v1").iterdir()} == before
    project.edit("params.yaml", f"language: {name}-typo", f"language: {name}")
    (address, *_), *others = rows_of(tamis("status"))[1:]
    assert address == "examples@v1"
    assert {row[1] for row in others} == {"fresh"}


def test_tables_are_json_where_that_is_asked_for(project):
    run = json.loads(tamis("run", "--json").stdout)
    assert [one["version"] for one in run] == ["v1"]
    assert {arm["arm"] for arm in run[0]["arms"]} == {"base", "chosen", "random", "full"}
    assert list(run[0]["seconds"]) == list(REAL.stages)
    assert {one["state"] for one in json.loads(tamis("status", "--json").stdout)} == {"fresh"}
    assert [one["stage"] for one in json.loads(tamis("stages", "--json").stdout)] == REAL.all()
    kinds = {one["kind"] for one in json.loads(tamis("store", "--json").stdout)}
    assert "pairs" in kinds
    ((_,), (example,), *_) = rows_of(tamis("sql", "select id from subset"))
    (shown,) = json.loads(tamis("show", "--json", example).stdout)
    assert shown == json.loads(tamis("show", example).stdout)


def test_commands_from_a_folder_of_the_project_do_the_same(project, monkeypatch):
    here = rows_of(tamis("status"))
    monkeypatch.chdir(project.root / "data/raw")
    assert rows_of(tamis("status")) == here
    merged = tamis("merge", "v1", "merged")
    assert merged.exit_code == 0, merged.output
    assert (project.root / "data/raw/merged/config.json").exists()


@pytest.mark.slow
def test_no_line_of_another_package_reaches_the_screen(project):
    for made in (project.root / "data").glob("*/version=v1"):
        shutil.rmtree(made)
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / ".cache")
    command = [sys.executable, "-m", "flows.cli", "run"]
    done = run_child(command, project, PYTHONPATH=str(ROOT), PREFECT_HOME=str(project.root / ".prefect"))
    assert done.returncode == 0, done.stderr
    ours = [
        "@v1 +(computing|computed in|fresh in|missing|waits|30 rows read, 0 rejected$)",
        "stages are up to date; the others take",
        "^set, and not read by selector delift: selection.quality_prior$",
    ]
    known = "|".join([*ours, "per second", "it/s", "^$", r"\d/\d+ "])
    lines = done.stderr.replace("\r", "\n").splitlines()
    assert [line for line in lines if not re.search(known, line)] == []
    assert done.stderr.count(" computed in ") == len(REAL.stages)
    assert done.stderr.count("set, and not read") == 1


def test_notes_of_an_error_are_told_after_it(monkeypatch):
    error = OSError(5, "Input/output error")
    error.add_note("while writing part 3")

    def fail():
        raise error

    monkeypatch.setattr("flows.graph.dvc_state.plan", fail)
    done = tamis("stages")
    assert done.exit_code == 1
    first, second, _ = done.stderr.splitlines()
    assert (first, second) == ("error: OSError: [Errno 5] Input/output error", "while writing part 3")


def test_artifacts_of_a_revision_are_asked_without_checkout(project):
    question = "select version, id, chosen from subset order by all"
    old = rows_of(tamis("sql", question))
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "v1 made")
    project.edit("params.yaml", "selector: delift", "selector: random")
    project.apply(REAL.version)
    for version in ("v1", "v2"):
        run_stages(version, until="selection")
    new = rows_of(tamis("sql", question))
    assert new != old
    assert {row[0] for row in new[1:]} == {"v1", "v2"}
    assert rows_of(tamis("sql", "--revision", "HEAD", question)) == old
    known = "FROM versions SELECT version, configured, made"
    assert rows_of(tamis("sql", "--revision", "HEAD", known))[1:] == [["v1", "True", "True"]]
    ran = "SELECT count(*) > 0 FROM runs WHERE seconds IS NOT NULL AND machine IS NOT NULL"
    assert rows_of(tamis("sql", "--revision", "HEAD", ran))[1:] == [["True"]]
    assert rows_of(tamis("sql", question)) == new


def test_debug_shows_the_traceback(project):
    done = tamis("--debug", "run", "v9")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "error: there is no data version 'v9'" in done.stderr


@pytest.mark.parametrize("arguments", [["run", "--workers", "0"], ["sql"], ["nothing"], ["run", "--nothing"]])
def test_wrong_usage_is_status_two(arguments):
    assert tamis(*arguments).exit_code == 2


def test_other_folder_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tamis("run")
    assert done.exit_code == 1
    assert done.stderr == "error: there is no params.yaml here; run in the folder of the project\n"
