"""One stage, run: what it records of the run, what it refuses, and what it imports."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from flows import stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(small, monkeypatch):
    """The small project as the current folder."""
    monkeypatch.chdir(small.root)
    return small


def test_run_record_says_what_was_run_when_and_how_long(project):
    out = stage.folder("letters", "v1")
    with stage.recorded("letters@v1", out) as notes:
        notes["pairs"] = 3
    found = json.loads((out / "run.json").read_text())
    assert (found["stage"], found["version"], found["pairs"]) == ("letters", "v1", 3)
    assert found["seconds"] >= 0
    assert datetime.fromisoformat(found["created"]).tzinfo is not None
    assert stage.last_run("letters@v1") == found


def test_stage_that_never_ran_has_no_record(project):
    assert stage.last_run("letters@v1") == {}


@pytest.mark.parametrize(
    ("path", "old", "new", "named"),
    [
        ("raw/v1.txt", "line 1\n", "line one\n", r"1 of 2 inputs of letters@v1 changed while it ran: raw/v1\.txt; its"),
        ("small/letters.py", "upper", "lower", r"changed while it ran: small/letters\.py; its output is not recorded"),
    ],
)
def test_input_that_moves_while_a_stage_runs_is_refused_by_name(project, path, old, new, named):
    with (
        pytest.raises(stage.InputsChanged, match=named),
        stage.recorded("letters@v1", stage.folder("letters", "v1")),
    ):
        project.edit(path, old, new)


def test_fingerprint_follows_the_files_of_a_folder(project):
    project.edit("dvc.yaml", '"${item.raw}", small/letters.py', "raw, small/letters.py")
    before = stage.fingerprint("letters@v1")
    (project.root / "raw/more.txt").write_text("more")
    assert stage.fingerprint("letters@v1")["raw"] != before["raw"]


def test_fingerprint_of_a_missing_input_says_so(project):
    assert stage.fingerprint("score@v1")["data/letters/version=v1/letters.txt"] == "missing"


def test_shards_run_in_order_with_progress_on_stderr(capsys):
    assert list(stage.in_order(lambda item: item * item, [3, 1, 2], label="squares")) == [9, 1, 4]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "squares" in shown.err
    assert "3/3" in shown.err
    assert "per second" in shown.err


def test_wrong_call_is_one_message_and_a_status(capsys):
    assert stage.main(["utility"]) == 2
    assert "usage: python -m flows.stage NAME VERSION" in capsys.readouterr().err
    assert stage.main(["utilty", "v1"]) == 1
    shown = capsys.readouterr().err
    assert "there is no stage utilty@v1 (did you mean 'utility@v1'?)" in shown
    assert "Traceback" not in shown


def test_stage_imports_only_its_room():
    code = """
import sys
from flows import params, stage

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("tasks."):
            asked.append(name)
            raise ImportError(name)

sys.meta_path.insert(0, Watch())
for name, room in stage.ROOMS.items():
    asked = []
    try:
        room(params.read(), "v1", map)
    except ImportError:
        print(name, *asked)
print(*{"prefect", "dvc", "torch", "pyarrow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [*(f"{name} tasks.{name}" for name in stage.ROOMS), ""]
