"""Settings changed for one run: `dvc exp run -S`, and those that make nothing stale."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from worlds.projects import GRAPHS, Project, environment

REAL = GRAPHS["real"]


@pytest.fixture
def project(fresh, tmp_path) -> Project:
    """A copy of the toy project that the flow has run."""
    made, _ = fresh(REAL, "flow")
    shutil.copytree(made.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def test_a_change_of_what_is_speed_and_memory_alone_makes_no_stage_stale(project):
    assert project.status() == {}
    project.edit("params.yaml", "pack_tokens: 2048", "pack_tokens: 128")
    project.edit("params.yaml", "shard_rows: 64", "shard_rows: 3")
    assert project.status() == {}
    project.edit("params.yaml", "neighbours: 3", "neighbours: 4")
    assert list(project.status()) == ["utility@v1"]


@pytest.mark.slow
def test_an_experiment_of_dvc_sets_a_value_and_computes_what_reads_it(project):
    project.git("add", ".")
    project.git("commit", "--quiet", "--allow-empty", "--message", "before")
    before = project.records()
    command = ["dvc", "exp", "run", "-S", "finetuning.epochs=3"]
    done = subprocess.run(command, cwd=project.root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    log = json.loads((project.root / "data/finetuning/version=v1/finetuning.json").read_text())
    assert {arm["epochs"] for arm in log["arms"].values()} == {3}
    moved = [path for path, record in project.records().items() if before[path] != record]
    assert [Path(path).parts[-3] for path in moved] == ["audit", "evaluation", "finetuning"]
    assert project.status() == {}
