"""What a user sees of a run: stages and bars, and no warning of the packages that we stand on."""

import re

import pytest
from worlds.projects import GRAPHS, copy_real, run_child, start_project


@pytest.mark.slow
def test_no_warning_reaches_the_screen(server, tmp_path, toy_folder):
    copy_real(tmp_path / "project", str(toy_folder))
    project = start_project(tmp_path / "project")
    project.apply(GRAPHS["real"].version)
    done = run_child(["tamis", "run"], project, PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).splitlines()
    assert [line for line in shown if re.search("warn|deprecat", line, re.IGNORECASE)] == []
