"""The flow: its tasks and states, its shards, its lock, and its patience."""

import os
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from prefect import flow
from worlds import shards, toy_corpus, toy_selection
from worlds.projects import ROOT, Project, drive_by_flow, importing_from

from flows import drive, pipeline
from flows.graph import dvc_state
from flows.stage import InputsChanged
from flows.workers import WorkersError
from tamis import memory
from tasks.artifacts.tables import read_table
from tasks.selection.settings import SelectionSettings


@pytest.fixture
def project(run_small) -> Project:
    """The small project, as the current folder."""
    return run_small


def test_outcomes_say_what_was_computed_restored_and_fresh(project):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    drive_by_flow(project)
    project.edit("params.yaml", "rows: 6", "rows: 5")
    project.edit("params.yaml", "factor: 2", "factor: 3")
    with importing_from(project.root):
        outcomes = {outcome.address: outcome for outcome in pipeline.run()}
    assert [outcome.how for outcome in outcomes.values()] == ["fresh", "fresh", "restored", "computed"]
    assert outcomes["choose@v1"].files[0].path == "data/choose/version=v1/chosen.txt"


def test_a_version_is_told_of_before_the_next_is_begun(project):
    project.edit("params.yaml", "v1: {raw: raw/v1.txt}", "v1: {raw: raw/v1.txt}\n  v2: {raw: raw/v2.txt}")
    (project.root / "raw/v2.txt").write_text("one\ntwo\n")
    told = []

    def tell(version, stages):
        told.append((version, list(stages), (project.root / "data/letters/version=v2").exists()))

    with importing_from(project.root):
        pipeline.run(tell=tell)
    names = ("letters", "score", "choose", "total")
    assert told == [
        (version, [f"{name}@{version}" for name in names], begun) for version, begun in (("v1", False), ("v2", True))
    ]


def test_tasks_are_named_by_stage_and_version_and_cached_ones_say_so(project):
    (project.root / "data/total/version=v1/total.json").unlink()
    with importing_from(project.root):
        state = pipeline.pipeline(["v1"], return_state=True)
    runs = wait_for_task_runs(state.state_details.flow_run_id, 4)
    assert {run.name: (run.state.name, run.state.message) for run in runs} == {
        "letters@v1": ("Cached", "dvc: fresh"),
        "score@v1": ("Cached", "dvc: fresh"),
        "choose@v1": ("Cached", "dvc: fresh"),
        "total@v1": ("Cached", "dvc: restored"),
    }


def wait_for_task_runs(flow_run_id, count: int) -> list:
    """Ask the server, which writes task runs in batches."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    with get_client(sync_client=True) as client:
        for _ in range(100):
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run_id]}))
            if len(found) >= count and all(run.state and run.state.is_final() for run in found):
                return found
            time.sleep(0.2)
    raise AssertionError(f"{len(found)} of {count} task runs")


def shards_of(function, items, workers: int) -> list:
    """Run a function over items as a stage's shards, on threads."""

    @flow(validate_parameters=False)
    def alone() -> list:
        return list(pipeline.in_shards(function, items, label="test"))

    return alone.with_options(task_runner=pipeline._runner("threads", workers))()


def test_shards_give_results_in_order_with_progress_on_stderr(server, capsys):
    def later_first(item: int) -> int:
        time.sleep(0.2 if item == 0 else 0)
        return item * item

    assert shards_of(later_first, [0, 1, 2, 3], workers=4) == [0, 1, 4, 9]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "4/4" in shown.err


def test_many_items_share_few_task_runs(server):
    calls = []

    def note(item: int) -> int:
        calls.append(threading.current_thread().name)
        return item

    assert shards_of(note, list(range(1000)), workers=2) == list(range(1000))
    assert len(calls) == 1000
    assert -(-1000 // -(-1000 // pipeline.SHARD_TASKS)) <= pipeline.SHARD_TASKS


def test_no_items_are_no_shards(server):
    assert shards_of(str, [], workers=1) == []


def test_error_in_a_shard_is_the_flows_error(server):
    with pytest.raises(ZeroDivisionError):
        shards_of(lambda item: 1 / item, [1, 0], workers=1)


def test_second_flow_waits_for_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    entered = threading.Event()

    def second() -> None:
        with drive.alone():
            entered.set()

    with drive.alone():
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(5)
    assert entered.is_set()
    assert f"another flow runs in this project (process {os.getpid()}: " in capsys.readouterr().err


def test_flow_waits_for_a_stage_that_dvc_computes(project, monkeypatch, capsys):
    project.edit("params.yaml", "factor: 2", "factor: 3")
    monkeypatch.setattr(sys, "argv", ["dvc", "repro"])
    held = dvc_state.claim("total@v1")
    held.__enter__()
    monkeypatch.setattr(sys, "argv", ["tamis", "run"])
    timer = threading.Timer(5, lambda: held.__exit__(None, None, None))
    timer.start()
    assert drive_by_flow(project) == ["total@v1"]
    timer.join()
    assert "total@v1         waiting for another process: " in capsys.readouterr().err
    assert project.status() == {}


@pytest.mark.parametrize("when", ["probe", "record"])
def test_code_edited_while_the_flow_runs_is_not_recorded(project, monkeypatch, when):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    real = getattr(dvc_state, when)

    def edit_meanwhile(address: str, *arguments):
        if address == ("total@v1" if when == "probe" else "choose@v1"):
            project.edit("small/total.py", "factor * sum", "1 + factor * sum")
        return real(address, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dvc_state, when, edit_meanwhile)
        named = r"small/total\.py, of total@v1, was edited after this process started; .* run again"
        with pytest.raises(InputsChanged, match=named):
            drive_by_flow(project)
    assert list(project.status()) == ["total@v1"]
    assert project.computed()[4:] == ["choose@v1"]
    assert drive_by_flow(project) == ["total@v1"]
    assert project.status() == {}


def test_notes_of_an_error_come_through_the_flow(project):
    project.edit("params.yaml", "rows: 5", "rows: 0")
    raising = 'raise ValueError("0 rows are too few")'
    project.edit("small/choose.py", raising, f"{raising.replace('raise', 'e =')}; e.add_note('of 12'); raise e")
    with pytest.raises(ValueError, match="0 rows are too few") as caught:
        drive_by_flow(project)
    assert caught.value.__notes__ == ["of 12"]


def test_command_of_another_form_is_refused(project):
    project.edit("dvc.yaml", "python -m small.stage total ${key}", "python total.py ${key}")
    with pytest.raises(dvc_state.StateError, match=r"total@v1 runs 'python total.py v1'; dvc.yaml's commands read"):
        drive_by_flow(project)


def test_unknown_runner_is_refused():
    with pytest.raises(WorkersError, match="'ray' runs no shards; known: threads, dask"):
        pipeline.run(runner="ray")


def test_dask_without_a_server_is_refused(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(pipeline.RunnerError, match="the dask runner needs a Prefect server: run `prefect server start`"),
    ):
        pipeline.run(runner="dask")


def test_dask_workers_run_the_shards(server, small, monkeypatch):
    monkeypatch.chdir(small.root)
    monkeypatch.setenv("PYTHONPATH", str(small.root))
    with importing_from(small.root):
        outcomes = pipeline.run(runner="dask", workers="1")
    assert [outcome.how for outcome in outcomes] == ["computed"] * 4
    assert small.status() == {}


def test_what_dask_workers_halve_is_for_the_stages_record(server, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    monkeypatch.setattr(pipeline, "SHARD_TASKS", 2)
    memory.take_halvings()

    @flow(task_runner=pipeline._runner("dask", 1))
    def work() -> list[int]:
        return list(pipeline.in_shards(shards.halve, [1, 2, 4], label="utility@v1"))

    assert work() == [1, 2, 4]
    assert memory.take_halvings() == [memory.Halving("pack_tokens", 2048, 128)]


def test_the_partitions_of_a_choice_are_tasks_of_the_flow(server, tmp_path):
    ids = toy_corpus.write_examples(tmp_path / "examples", pool=24)
    toy_selection.write_utility(tmp_path / "utility", ids, np.random.default_rng(0).random((24, 24)).astype(np.float32))
    settings = SelectionSettings(optimiser="partition", partitions=3, budget={"count": 4})
    alone, _ = toy_selection.run(tmp_path, settings, out="alone")

    @flow
    def choose() -> None:
        toy_selection.run(tmp_path, settings, out="flow", map=partial(pipeline.in_shards, label="selection@v1"))

    state = choose(return_state=True)
    runs = wait_for_task_runs(state.state_details.flow_run_id, 3)
    assert [run.name.rsplit("-", 1)[0] for run in runs] == ["selection@v1 shard"] * 3
    assert read_table(tmp_path / "flow/subset.parquet").to_pylist() == alone
