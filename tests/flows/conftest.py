"""One Prefect server for the whole session, and small projects that one of the drivers has run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds.made_once import make_once
from worlds.projects import DRIVERS, GRAPHS, Graph, Project, drive_by_dvc, enter_copy, run_stages, start_project

import flows  # noqa: F401  sets the environment before any test imports Prefect

collect_ignore_glob = ["small_graph/*", "killer/*", "interrupter/*"]


@pytest.fixture(scope="session", autouse=True)
def apart(tmp_path_factory) -> Iterator[None]:
    """Keep DVC's state and Prefect's files of these tests out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        yield


@pytest.fixture(scope="session")
def server(apart) -> Iterator[str]:
    """The address of one Prefect server, which flows in this process and in children use."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


@pytest.fixture
def small(tmp_path) -> Project:
    """The small project, before its first run."""
    GRAPHS["small"].make(tmp_path / "small", "")
    return start_project(tmp_path / "small")


@pytest.fixture(scope="session")
def small_made(tmp_path_factory, apart) -> Project:
    """The small project after `dvc repro`, committed; tests take a copy of it."""

    def make(home: Path) -> None:
        GRAPHS["small"].make(home / "small", "")
        project = start_project(home / "small")
        drive_by_dvc(project)
        project.git("add", ".")
        project.git("commit", "--quiet", "--message", "made")
        project.git("gc", "--quiet")  # copies have fewer files to copy

    return Project(make_once(tmp_path_factory, "small", make)[0] / "small")


@pytest.fixture
def small_copy(small_made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    shutil.copytree(small_made.root, tmp_path / "small")
    monkeypatch.chdir(tmp_path / "small")
    return Project(tmp_path / "small")


@pytest.fixture(scope="session")
def real_unrun(toy_folder, tmp_path_factory, apart) -> Project:
    """The real graph with the toy model and one version, before its first run; tests take a copy of it."""

    def make(home: Path) -> None:
        GRAPHS["real"].make(home / "project", str(toy_folder))
        shutil.rmtree(home / "project/data/raw/v2")
        start_project(home / "project").git("gc", "--quiet")  # copies have fewer files to copy

    return Project(make_once(tmp_path_factory, "unrun", make)[0] / "project")


@pytest.fixture
def real_copy(real_unrun, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder, in which git has a name."""
    return enter_copy(real_unrun, tmp_path / "project", monkeypatch)


@pytest.fixture(scope="session")
def fresh(server, request, tmp_path_factory) -> Callable[[Graph, str], tuple[Project, list[str]]]:
    """Return a project after one run by a driver, and what that run computed; made once per graph and driver."""

    def get(graph: Graph, driver: str) -> tuple[Project, list[str]]:
        name = next(name for name, one in GRAPHS.items() if one is graph)

        def make(home: Path) -> list[str]:
            graph.make(home / "project", "" if name == "small" else str(request.getfixturevalue("toy_folder")))
            return DRIVERS[driver](start_project(home / "project"))

        home, computed = make_once(tmp_path_factory, f"{name}-{driver}", make)
        return Project(home / "project"), computed

    return get


@pytest.fixture(scope="session")
def two_made(real_unrun, tmp_path_factory) -> Project:
    """Two versions of the real project with the toy model, the first recorded at a tag; tests leave it as it is."""

    def make(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            write_two(enter_copy(real_unrun, home / "project", patch))

    return Project(make_once(tmp_path_factory, "two", make)[0] / "project")


def write_two(project: Project) -> None:
    """Run the first version of a project, which is the current folder, and a second one that continues from it."""
    run_stages("v1")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "v1")
    project.git("tag", "data-v1")
    lines = (project.root / "data/raw/v1/toys.jsonl").read_text().splitlines()
    (project.root / "data/raw/v2").mkdir()
    more = [json.dumps({"prompt": f"more {k}?", "response": f"{k}!", "topic": "sums"}) for k in range(9)]
    (project.root / "data/raw/v2/toys.jsonl").write_text("\n".join(lines[4:] + more) + "\n")
    project.apply(GRAPHS["real"].version)
    run_stages("v2")


@pytest.fixture
def two_versions(two_made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    return enter_copy(two_made, tmp_path / "project", monkeypatch)


@pytest.fixture
def run_small(fresh, tmp_path, monkeypatch) -> Project:
    """A copy of the small project that the flow has run, as the current folder."""
    made, _ = fresh(GRAPHS["small"], "flow")
    shutil.copytree(made.root, tmp_path / "small")
    monkeypatch.chdir(tmp_path / "small")
    return Project(tmp_path / "small")
