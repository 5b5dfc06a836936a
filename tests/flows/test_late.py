"""What is edited while a run is at work, or behind DVC's back, is told at the end."""

import os
import shutil
from pathlib import Path

import pytest
from worlds.projects import GRAPHS, Project, importing_from, run_stages, start_project

from flows import drive, late
from flows.graph import dvc_state


@pytest.fixture
def project(toy_folder, tmp_path, monkeypatch, apart) -> Project:
    """The real graph after its first stage, as the current folder."""
    GRAPHS["real"].make(tmp_path / "project", str(toy_folder))
    monkeypatch.chdir(tmp_path / "project")
    project = start_project(tmp_path / "project")
    run_stages("v1", until="examples")
    return project


def test_raw_file_edited_in_place_at_equal_size_and_time_is_told(project):
    path = Path("data/raw/v1/toys.jsonl")
    assert late.list_edited("v1") == []
    state = path.stat()
    text = path.read_bytes()
    path.write_bytes(text.replace(b"sums", b"sumo", 1))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert late.list_edited("v1") == [path]
    shutil.rmtree("data/raw/v1")
    assert late.list_edited("v1") == []


def test_parameter_of_an_earlier_stage_edited_while_a_later_one_runs_is_told(small, monkeypatch, capsys):
    monkeypatch.chdir(small.root)
    real = dvc_state.record

    def record(address, inputs):
        real(address, inputs)
        if address == "choose@v1":
            small.edit("params.yaml", "scale: 3", "scale: 4")

    monkeypatch.setattr(dvc_state, "record", record)
    with importing_from(small.root):
        drive.run()
    said = capsys.readouterr().err
    assert (
        "score@v1 is stale again (changed deps: score modified): something was edited while the run was at wo" in said
    )
    assert said.count(" again (") == 1


def test_nothing_is_told_where_nothing_was_edited(small, monkeypatch, capsys):
    monkeypatch.chdir(small.root)
    with importing_from(small.root):
        drive.run()
    assert " again" not in capsys.readouterr().err
