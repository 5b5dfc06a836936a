"""One graph, two drivers: whichever ran last, the other finds nothing to do.

Over the small graph (no torch) in the daily suite, over the real graph with the toy model when slow tests run; of
these, the first is run daily, by the flow. What is about the cache alone is tried by one driver a day, on the small
graph, and found in order by the other one; by both, when slow tests run.
"""

import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from worlds.projects import DRIVERS, GRAPHS, KILLER, Graph, Project, run_child, run_dvc

OTHER = {"flow": "dvc", "dvc": "flow"}
CHILD = {
    "flow": [sys.executable, "-c", "from flows import pipeline; pipeline.run()"],
    "dvc": [sys.executable, "-m", "dvc", "repro"],
}
DAILY = ("fresh_run",)
CACHE = ("deleted", "tampered", "changed_back", "late_parameter", "after_an_exception", "second_run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" not in metafunc.fixturenames:
        return
    if "edited" in metafunc.function.__name__:
        metafunc.parametrize("driver", DRIVERS, indirect=True)
        return
    daily, cached = (any(word in metafunc.function.__name__ for word in words) for words in (DAILY, CACHE))
    pairs = [
        (name, driver, driver == "dvc" and cached if name == "small" else driver == "dvc" or not daily)
        for name in GRAPHS
        for driver in DRIVERS
    ]
    given = [
        pytest.param(GRAPHS[name], driver, marks=[pytest.mark.slow] if slow else [], id=f"{name}-{driver}")
        for name, driver, slow in pairs
    ]
    metafunc.parametrize(("graph", "driver"), given, indirect=["driver"], scope="session")


@pytest.fixture
def driver(request) -> str:
    """The driver that runs; the other one must then find nothing to do."""
    return request.param


@pytest.fixture
def project(fresh, graph: Graph, driver: str, tmp_path) -> Project:
    """A copy of a project that the driver has run."""
    made, _ = fresh(graph, driver)
    shutil.copytree(made.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def settled(project: Project, driver: str) -> bool:
    """Return whether `dvc status` is clean, the other driver computes nothing, and every stage's record stays."""
    assert project.status() == {}
    before = project.records(), project.computed()
    assert DRIVERS[OTHER[driver]](project) == []
    return before == (project.records(), project.computed()) and project.status() == {}


def killed(project: Project, driver: str, place: str, server: str) -> subprocess.CompletedProcess:
    """Run a driver in a child that is killed (-9) at a renaming, `text:n`."""
    path = f"{KILLER}:{project.root}"
    return run_child(CHILD[driver], project, KILL_AT=place, PYTHONPATH=path, PREFECT_API_URL=server)


def test_fresh_run_computes_every_stage_once(fresh, graph, driver, project):
    _, computed = fresh(graph, driver)
    assert sorted(computed) == sorted(graph.all())
    assert len(project.records()) == len(graph.stages)
    assert settled(project, driver)


def test_second_run_computes_nothing(graph, project, driver):
    assert DRIVERS[driver](project) == []
    assert settled(project, driver)


def test_late_parameter_computes_only_what_follows(graph, project, driver):
    project.apply(graph.late)
    assert DRIVERS[driver](project) == list(graph.late.computed)
    assert settled(project, driver)


def test_parameter_changed_back_is_restored(graph, project, driver):
    first = project.records()
    project.apply(graph.late)
    DRIVERS[driver](project)
    assert project.records() != first
    project.undo(graph.late)
    assert DRIVERS[driver](project) == []
    assert project.records() == first
    assert settled(project, driver)


@pytest.mark.parametrize("place", range(3), ids=["intermediate", "final", "metrics"])
def test_deleted_output_is_restored(graph, project, driver, place):
    path = project.root / "data" / graph.deleted[place]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert DRIVERS[driver](project) == []
    assert path.exists()
    assert settled(project, driver)


def test_tampered_output_is_restored(graph, project, driver):
    path = project.root / "data" / graph.tampered
    first = path.read_bytes()
    path.write_bytes(first[:-9] + b"X" + first[-8:])
    assert DRIVERS[driver](project) == []
    assert path.read_bytes() == first
    assert settled(project, driver)


def test_output_and_whole_cache_deleted_is_computed_again(graph, project, driver):
    (project.root / "data" / graph.tampered).unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    assert sorted(DRIVERS[driver](project)) == sorted(graph.all())
    assert settled(project, driver)


def test_run_after_an_exception_computes_only_what_failed(graph, project, driver):
    project.apply(graph.failing)
    with pytest.raises((ValueError, RuntimeError), match=graph.error):
        DRIVERS[driver](project)
    failed = graph.failing.computed[0]
    assert failed in project.status()
    project.undo(graph.failing)
    assert DRIVERS[driver](project) == []
    project.apply(graph.late)
    assert DRIVERS[driver](project) == list(graph.late.computed)
    assert settled(project, driver)


def test_run_after_a_kill_computes_only_what_was_not_finished(graph, project, driver, server):
    project.apply(graph.late)
    died = killed(project, driver, f"{graph.killed}:1", server)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert graph.late.computed[0] in project.status()
    assert DRIVERS[driver](project) == list(graph.late.computed)
    assert settled(project, driver)


def test_run_after_a_kill_at_shard_three_of_four_computes_two(graph, project, driver, server):
    before = project.parts(graph.store)
    project.apply(graph.shards)
    died = killed(project, driver, f"{graph.store.partition('*')[0]}:3", server)
    assert died.returncode == -signal.SIGKILL, died.stderr
    kept = project.parts(graph.store)
    assert len(kept) == len(before) + 2
    assert sorted(DRIVERS[driver](project)) == sorted(graph.shards.computed)
    after = project.parts(graph.store)
    assert len(after) == len(before) + 4
    assert kept.items() <= after.items()
    assert settled(project, driver)


def test_comment_in_a_module_computes_only_its_stage(graph, project, driver):
    project.apply(graph.comment)
    assert DRIVERS[driver](project) == list(graph.comment.computed)
    assert settled(project, driver)


def test_new_data_version_computes_only_its_stages_and_the_old_one_is_read_by_revision(graph, project, driver):
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "v1 made")
    path = project.root / "data" / graph.revisited
    old = path.read_bytes()
    project.apply(graph.version)
    assert sorted(DRIVERS[driver](project)) == sorted(graph.all("v2"))
    assert settled(project, driver)
    path.unlink()
    lock = yaml.safe_load(project.git("show", "HEAD:versions/v1/dvc.lock"))
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    (digest,) = [out["md5"] for out in outs if out["path"] == f"data/{graph.revisited}"]
    assert (project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).read_bytes() == old


def test_dvc_says_that_data_and_pipelines_are_up_to_date_after_a_flow(fresh):
    made, _ = fresh(GRAPHS["small"], "flow")
    assert run_dvc(made, "status").stdout == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize("graph", [GRAPHS["small"]], ids=["small"])
def test_parameter_edited_while_a_stage_runs_is_not_recorded(graph, project, driver):
    project.apply(graph.late)
    (project.root / ".cache/edit").touch()
    with pytest.raises((ValueError, RuntimeError), match=r"1 of 3 inputs of choose@v1 changed while it ran: choose"):
        DRIVERS[driver](project)
    assert "choose@v1" in project.status()
    assert DRIVERS[driver](project) == ["choose@v1", "total@v1"]
    assert len((project.root / "data/choose/version=v1/chosen.txt").read_text().splitlines()) == 7
    assert settled(project, driver)
