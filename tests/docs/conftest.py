"""A toy project that has run, once for all pages, and a copy of it for each."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from worlds.projects import GRAPHS, ROOT, Project, environment, start_project

import flows  # noqa: F401  sets the environment before any test imports Prefect


@dataclass(frozen=True)
class World:
    """A toy project with both versions in params.yaml, of which v1 has run."""

    project: Project
    printed: str  # what that run printed


def drive(versions=(), *, runner: str = "threads", workers: str = "auto", tell=None, before=None) -> list:
    """Stand in for the flow: bring the stages of some versions up to date, as it does, but without a Prefect server.

    That the flow and this order of stages make the same is what tests/flows shows.
    """
    from flows import stage
    from flows.drive import Outcome
    from flows.graph import dvc_state
    from flows.graph.stages import end_versions

    outcomes, plan = [], dvc_state.plan(list(versions))
    ends = end_versions(plan)
    for planned in plan:
        start = time.monotonic()
        (before or {}).get(planned.address, lambda: None)()
        found = dvc_state.probe(planned.address)
        if found.state == "stale":
            stage.run(*planned.address.split("@"))
            dvc_state.record(planned.address, found.inputs)
        how = "computed" if found.state == "stale" else found.state
        outcomes.append(Outcome(planned.address, how, round(time.monotonic() - start, 1), ()))
        if tell and planned.address in ends:
            tell(*ends[planned.address])
    dvc_state.record_whole()
    return outcomes


@pytest.fixture(scope="session")
def apart(tmp_path_factory) -> Iterator[None]:
    """Keep DVC's state out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", environment()[f"GIT_{name}_NAME"])
            patch.setenv(f"GIT_{name}_EMAIL", environment()[f"GIT_{name}_EMAIL"])
        yield


@contextlib.contextmanager
def driving() -> Iterator[None]:
    """Keep Prefect's engine out of the commands; never beyond a test of this folder."""
    from flows import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", drive)
        yield


@pytest.fixture(scope="session")
def world(apart, toy_folder, tmp_path_factory) -> World:
    """The toy project after `tamis run v1`."""
    from flows import cli

    root = tmp_path_factory.mktemp("world") / "project"
    GRAPHS["real"].make(root, str(toy_folder))
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["versions"]["v2"] = {"raw": "data/raw/v2", "previous": "v1"}
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    shutil.copytree(ROOT / "recipes", root / "recipes")
    project = start_project(root)
    shutil.copy(ROOT / ".gitignore", root)
    project.git("commit", "--quiet", "--all", "--message", "ignore artifacts")
    with contextlib.chdir(root), driving():
        done = CliRunner().invoke(cli.app, ["run", "v1"])
    assert done.exit_code == 0, done.output
    return World(project, done.stdout)


@pytest.fixture
def project(world, tmp_path, monkeypatch) -> Iterator[Project]:
    """A copy of the toy project, as the current folder."""
    root = Path(shutil.copytree(world.project.root, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    with driving():
        yield Project(root)
