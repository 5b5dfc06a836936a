"""One stage, run: what it records of the run, what it refuses, and what it imports."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
from worlds.projects import environment

from flows import params, stage
from flows.stage_calls import find_folders

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


def sources_recorded(project, name: str) -> str:
    with stage.recorded(f"{name}@v1", stage.folder(name, "v1")):
        pass
    return stage.last_run(f"{name}@v1")["sources"]


def test_run_record_tells_the_code_of_the_stage_apart(project):
    first, other = sources_recorded(project, "letters"), sources_recorded(project, "total")
    assert len(first) == 64
    assert sources_recorded(project, "letters") == first
    project.edit("small/letters.py", "upper", "lower")
    assert sources_recorded(project, "letters") != first
    assert sources_recorded(project, "total") == other
    project.edit("raw/v1.txt", "line 1\n", "line one\n")
    project.edit("small/letters.py", "lower", "upper")
    assert sources_recorded(project, "letters") == first


def test_code_that_was_edited_since_it_could_be_imported_is_refused_by_name(project):
    loaded = stage.sources(["letters@v1", "score@v1"])
    assert list(loaded) == ["small/letters.py", "small/score.py"]
    project.edit("small/letters.py", "upper", "lower")
    stage.refuse_edited("score@v1", loaded)
    named = r"^small/letters\.py, of letters@v1, was edited after this process started; its output is not recorded: run"
    with pytest.raises(stage.InputsChanged, match=named):
        stage.refuse_edited("letters@v1", loaded)


@pytest.mark.parametrize("left", [None, b"", b"\xff", b"[]", b'{"made'])
def test_stage_that_never_ran_or_whose_record_is_damaged_has_none(project, left):
    path = stage.folder("letters", "v1") / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if left is not None:
        path.write_bytes(left)
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


def test_of_no_shards_no_progress_is_shown(capsys):
    assert list(stage.in_order(abs, [], label="squares")) == []
    assert capsys.readouterr() == ("", "")


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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("2 of 3 rows are empty"), "2 of 3 rows are empty"),
        (FileNotFoundError(2, "No such file", "x"), "FileNotFoundError: [Errno 2] No such file: 'x'"),
        (
            OSError(errno.EROFS, "Read-only file system", "/there/.dvc/tmp/lock"),
            "/there/.dvc/tmp/lock could not be written: Read-only file system. Allow writing in /there/.dvc/tmp, then "
            "run again",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/there/x"),
            "/there/x could not be written: No space left on device. Free space on that disk or move the project, then "
            "run again",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "a file could not be written: No space left on device. Free space on that disk or move the project, then "
            "run again",
        ),
        (
            PermissionError(13, "Permission denied", "/there/x"),
            "/there/x could not be written: Permission denied. Allow writing in /there, then run again",
        ),
    ],
)
def test_error_is_told_with_its_notes_and_without_traceback(monkeypatch, capsys, error, text):
    error.add_note("in shard 4\nof 8")

    def fail(name: str, version: str) -> None:
        raise error

    monkeypatch.setattr(stage, "run", fail)
    assert stage.main(["letters", "v1"]) == 1
    assert capsys.readouterr().err == f"letters@v1: {text}\nin shard 4\nof 8\n"


@pytest.fixture
def asked(monkeypatch):
    """Return a function that gives what the flow hands a stage, with some parameters changed."""

    def call(name: str, **sections) -> dict:
        module = import_module(f"tasks.{name}.{name}")
        values = params.read(ROOT / "params.yaml")
        changed = {section: replace(getattr(values, section), **changes) for section, changes in sections.items()}
        caught = {}
        with monkeypatch.context() as patch:
            patch.setattr(module, f"write_{name}", lambda folders, **more: caught.update(more, folders=folders))
            asked = replace(values, **changed)
            stage.STAGES[name](asked, find_folders(asked, "v1"), map)
        signature(getattr(module, f"write_{name}")).bind(**caught)
        return caught

    return call


@pytest.mark.parametrize("name", stage.STAGES)
def test_stages_take_what_the_flow_hands_them(asked, name):
    folders = asked(name)["folders"]
    assert getattr(folders.here, name) == Path(f"data/{name}/version=v1")
    assert getattr(folders.before, name) == Path(f"data/{name}/version=base")
    assert folders.raw == Path("data/raw/v1")


@pytest.mark.parametrize(
    ("selector", "kernel", "wanted"),
    [
        ("delift", "neighbours", True),
        ("delift", "exact", False),
        ("random", "neighbours", False),
        ("random", "exact", False),
        ("embedding", "exact", True),
        ("deft_ucs", "exact", True),
        ("less", "neighbours", False),
        ("probes", "exact", True),
        ("dualsft", "neighbours", False),
    ],
)
def test_embeddings_are_wanted_where_neighbours_are_looked_for(asked, selector, kernel, wanted):
    assert asked("embedding", selection={"selector": selector}, utility={"kernel": kernel})["wanted"] is wanted


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [("delift", {"utility"}), ("probes", {"utility"}), ("ifd", {"scores"}), ("dualsft", set()), ("random", set())],
)
def test_pairs_and_scores_are_wanted_by_the_selectors_that_read_them(asked, selector, wanted):
    found = {name: asked(name, selection={"selector": selector})["wanted"] for name in ("utility", "scores")}
    assert {name for name, asked_for in found.items() if asked_for} == wanted


@pytest.mark.parametrize("name", [name for name in stage.STAGES if name not in ("embedding", "audit")])
def test_every_stage_writes_prompts_by_the_template_of_the_model(asked, name):
    assert asked(name, models={"template": "delift"})["model"].template == "delift"


@pytest.mark.parametrize("name", ["embedding", "utility", "scores", "gradients", "finetuning"])
def test_stages_that_compute_take_what_changes_speed_alone(asked, name):
    assert asked(name, runtime={"pack_tokens": 77})["runtime"].pack_tokens == 77


def test_stage_imports_only_its_own_module():
    code = """
import sys
from flows import params, stage

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("tasks."):
            asked.append(name)
            raise ImportError(name)

sys.meta_path.insert(0, Watch())
for name, function in stage.STAGES.items():
    asked = []
    try:
        values = params.read()
        function(values, stage.find_folders(values, "v1"), map)
    except ImportError:
        print(name, *asked)
print(*{"prefect", "dvc", "torch", "pyarrow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [*(f"{name} tasks.{name}.{name}" for name in stage.STAGES), ""]


def test_crash_of_a_stage_shows_where_and_names_the_stage(monkeypatch, capsys):
    def crash(name: str, version: str) -> None:
        raise KeyError("\x1b[31mid")

    monkeypatch.setattr(stage, "run", crash)
    assert stage.main(["letters", "v1"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in crash" in shown
    assert shown.splitlines()[-1].startswith("letters@v1: KeyError: ")
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["embedding", "utility", "gradients"])
def test_nothing_is_scored_for_a_choice_that_the_pool_cannot_keep(real_copy, name, capsys):
    assert stage.main(["examples", "v1"]) == 0
    real_copy.edit("params.yaml", "floors: {}", "floors: {sums: 999}")
    assert stage.main([name, "v1"]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "999" in line]
    assert said.startswith("selection@v1: 1 of 1 floors")
    assert not list(stage.folder(name, "v1").glob("*"))


def test_warnings_of_ours_are_told_and_those_of_others_are_not():
    code = f"""
import warnings
from flows import environment

environment.quieten()
for path in ("tasks/masks/masks.py", ".venv/lib/python3/site-packages/peft/peft.py"):
    for kind in (UserWarning, DeprecationWarning, FutureWarning):
        warnings.warn_explicit(f"{{kind.__name__}} of {{path}}", kind, {str(ROOT)!r} + "/" + path, 1)
raise RuntimeError("a crash")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    told, *_, last = done.stderr.splitlines()
    assert told == "note: UserWarning of tasks/masks/masks.py"
    assert "peft" not in done.stderr
    assert last == "RuntimeError: a crash"
