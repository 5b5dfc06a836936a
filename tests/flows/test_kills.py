"""Runs with Prefect and a server of their own, killed at random moments: the next one ends as if none had been."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds.projects import GRAPHS, ROOT, Project, environment, start_project

COMMAND = "from flows import pipeline; pipeline.run(workers='2')"  # what `tamis run` does, without models
KILLS = 50


@pytest.fixture
def made(tmp_path) -> Project:
    """The small project before its first run."""
    GRAPHS["small"].make(tmp_path / "made", "")
    return start_project(tmp_path / "made")


def run(root: Path, home: Path, seconds: float | None = None) -> float:
    """Run the flow, and kill all of it after some seconds; returns how long it took."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=root,
        env=environment(PYTHONPATH=f"{root}:{ROOT}", PREFECT_HOME=str(home)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    err = process.communicate()[1]
    assert seconds is not None or process.returncode == 0, err[-2000:]
    return time.monotonic() - start


def read_artifacts(root: Path) -> dict[str, str]:
    """Return what stands in the artifacts, but for what runs say of themselves."""
    found = sorted(path for path in root.glob("data/*/version=*/*") if path.name != "run.json")
    return {path.relative_to(root).as_posix(): path.read_text() for path in found if path.is_file()}


@pytest.mark.slow
def test_the_run_after_a_random_kill_ends_as_if_there_had_been_none(made, tmp_path):
    home, draw = tmp_path / "prefect", random.Random(0)
    shutil.copytree(made.root, tmp_path / "whole", symlinks=True)
    run(tmp_path / "whole", home)  # Prefect makes its database
    shutil.rmtree(tmp_path / "whole")
    shutil.copytree(made.root, tmp_path / "whole", symlinks=True)
    took, expected = run(tmp_path / "whole", home), read_artifacts(tmp_path / "whole")
    shares = [draw.random() for _ in range(KILLS)]
    for number, share in enumerate(shares):
        project = Project(Path(shutil.copytree(made.root, tmp_path / f"killed-{number}", symlinks=True)))
        run(project.root, home, took * share)
        run(project.root, home)
        assert read_artifacts(project.root) == expected, share
        assert project.status() == {}, share
        shutil.rmtree(project.root)
