"""What is secret, and where this machine keeps things, stands in no artifact, no log and no database."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from worlds.projects import GRAPHS, Project, run_child, start_project

pytestmark = pytest.mark.slow  # a whole run with a Prefect server of its own
PLANTED = {"environment": "planted-9a41-token", "params": "planted-77c2-password"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, toy_folder, apart) -> tuple[Project, Path, str]:
    """The toy project after a run with secrets around, the folder of its Prefect, and what the run said."""
    folder = tmp_path_factory.mktemp("secrets")
    GRAPHS["real"].make(folder / "project", str(toy_folder))
    path = folder / "project/params.yaml"
    values = yaml.safe_load(path.read_text())
    values["acceptance"] = {"report": f"https://us:{PLANTED['params']}@reports.example/tamis"}
    values["landing"] = {"url": f"s3://key:{PLANTED['params']}@bucket/in"}
    values["finetuning"]["arms"] = {"chosen": [0]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    project = start_project(folder / "project")
    secret = dict.fromkeys(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"), PLANTED["environment"])
    command = [sys.executable, "-m", "flows.cli", "run", "v1"]
    done = run_child(command, project, PREFECT_HOME=str(folder / "prefect"), **secret)
    assert done.returncode == 0, done.stderr
    return project, folder / "prefect", done.stdout + done.stderr


def read(path: Path) -> str:
    """Return what a file says; of a table, its values and what it tells of how it was made."""
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        return f"{table.schema.metadata} {table.to_pylist()}"
    return path.read_bytes().decode("latin-1")


def find(word: str, *folders: Path) -> list[str]:
    """Return the files in some folders that say a word."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if word in read(path)]


@pytest.mark.parametrize("place", PLANTED)
def test_secrets_are_nowhere(ran, place):
    project, prefect, said = ran
    folders = [project.root / name for name in ("data", "versions", ".cache", ".dvc")]
    assert find(PLANTED[place], *folders, prefect) == []
    assert PLANTED[place] not in said
    assert (prefect / "prefect.db").exists()


def test_no_path_of_this_machine_is_in_an_artifact(ran, toy_folder):
    project, _, _ = ran
    for place in (project.root, toy_folder, Path.home(), Path(sys.prefix)):
        found = find(f"{place}{os.sep}", project.root / "data") + find(f'{place}"', project.root / "data")
        assert found == [], place


def test_the_search_finds_what_it_is_to_find(ran, tmp_path):
    project, _, _ = ran
    assert find(PLANTED["params"], project.root / ".git", project.root) != []
    assert str(project.root / "params.yaml") in find(PLANTED["params"], project.root)
    subset = project.root / "data/selection/version=v1/subset.parquet"
    some = pq.read_table(subset)["id"][0].as_py()
    assert str(subset) in find(some, project.root / "data/selection")
