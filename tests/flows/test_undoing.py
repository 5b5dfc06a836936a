"""An addition that does not come to its end leaves nothing behind: failed, refused by git, or killed midway."""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from worlds.projects import Project

from flows import cli, params, undoing
from flows.adding import plan_addition, written
from flows.unattended import continual
from flows.unattended.landing import take_landed
from tasks.first_look import kept_files

ROWS = [{"prompt": f"what is {k}?", "response": f"it is {k}", "topic": "sums"} for k in range(30)]
LINE = "adding v2 was broken off: what was written for it is taken back\n"


class KilledError(BaseException):
    """Stands for a kill: nothing of ours runs after it."""


@pytest.fixture
def project(real_copy, tmp_path) -> Project:
    """A project of one version, whose landing folder holds another."""
    (tmp_path / "in/v2").mkdir(parents=True)
    (tmp_path / "in/v2/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    place, landing = Path("params.yaml"), {"url": str(tmp_path / "in"), "quiet_seconds": 0}
    place.write_text(yaml.safe_dump(yaml.safe_load(place.read_text()) | {"landing": landing}, sort_keys=False))
    real_copy.git("commit", "--quiet", "--all", "--message", "landing")
    return real_copy


def kill(patch, step: str, *, after: bool) -> None:
    """Let a function end the process, before or after it has done its work."""
    module, _, name = step.rpartition(".")
    patch.setattr("flows.undoing._take_back", lambda: "")
    whole = getattr(import_module(module), name)

    def die(*arguments, **options):
        if after:
            whole(*arguments, **options)
        raise KilledError

    patch.setattr(step, die)


STEPS = [
    "flows.graph.dvc_state.add",
    "tasks.first_look.kept_files.copy_files",
    "tasks.first_look.kept_files.write_record",
    "flows.params.write",
    "flows.graph.dvc_files.write_copies",
    "flows.graph.versions.commit",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [True, False])
def test_what_lands_after_a_kill_is_as_if_there_had_been_none(project, monkeypatch, step, after, capsys):
    with monkeypatch.context() as patch:
        kill(patch, step, after=after)
        with pytest.raises(KilledError):
            take_landed(set())
    committed = after and step == STEPS[-1]
    capsys.readouterr()
    assert take_landed(set()) == ([] if committed else ["v2"], [])
    assert (LINE in capsys.readouterr().err) == (not committed)
    assert project.git("status", "--porcelain") == ""
    assert list(params.read().versions) == ["v1", "v2"]
    assert len(list(Path("data/raw/v2").iterdir())) == 1
    assert project.git("log", "--format=%s").splitlines().count("Add data version v2") == 1
    assert not undoing.NOTES.exists()


def test_a_commit_that_a_hook_refuses_leaves_nothing_and_the_next_look_goes_on(project, capfd):
    hook = project.root / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho no commits today >&2\nexit 1\n")
    hook.chmod(0o755)
    for _ in range(2):
        taken, (error,) = take_landed(set())
        assert taken == []
        assert str(error).endswith("`git commit` here shows more; nothing is added; run again then")
        assert "no commits today" in capfd.readouterr().err
        assert project.git("status", "--porcelain", "--ignored", "data", "versions", "params.yaml") == ""
    hook.unlink()
    assert take_landed(set()) == (["v2"], [])


def break_off(monkeypatch) -> None:
    """Be killed once all of an addition is written."""
    planned = plan_addition(Path("data/raw/v1").absolute(), params.read().versions, version="v2", copy=True)
    with monkeypatch.context() as patch:
        kill(patch, "flows.graph.dvc_files.write_copies", after=True)
        with pytest.raises(KilledError), written(planned):
            pass


def test_params_that_were_edited_after_a_kill_are_kept_with_all_that_was_written(project, monkeypatch, capsys):
    break_off(monkeypatch)
    with open("params.yaml", "a") as file:
        file.write("# mine\n")
    undoing.take_back_killed()
    assert capsys.readouterr().err == (
        "adding v2 was broken off, and params.yaml was edited since: what was written stays\n"
    )
    assert "# mine" in Path("params.yaml").read_text()
    assert Path("data/raw/v2").is_dir()
    assert not undoing.NOTES.exists()


def test_what_was_committed_by_hand_after_a_kill_stays(project, monkeypatch):
    break_off(monkeypatch)
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "mine")
    undoing.take_back_killed()
    assert list(params.read().versions) == ["v1", "v2"]
    assert project.git("status", "--porcelain") == ""


def test_what_a_person_has_staged_stays_staged(project, monkeypatch):
    place = Path("params.yaml")
    whole = place.read_text()
    place.write_text(f"{whole}# staged\n")
    project.git("add", "params.yaml")
    place.write_text(whole)
    break_off(monkeypatch)
    undoing.take_back_killed()
    assert "+# staged" in project.git("diff", "--cached")
    assert place.read_text() == whole


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_files_come_back_byte_by_byte(project, monkeypatch, ends):
    place = project.root / "params.yaml"
    place.write_bytes(place.read_bytes().replace(b"\n", ends.encode()))
    before = place.read_bytes()
    break_off(monkeypatch)
    assert place.read_bytes() != before
    undoing.take_back_killed()
    assert place.read_bytes() == before
    assert not Path("data/raw/v2").exists()
    assert not Path("versions/v2").exists()


def test_a_version_that_was_run_after_a_kill_is_kept(project, monkeypatch, capsys):
    break_off(monkeypatch)
    lock = Path("versions/v2/dvc.lock")
    lock.write_text("stages: {}\n")
    undoing.take_back_killed()
    assert capsys.readouterr().err == "adding v2 was broken off, and it has been run since: what was written stays\n"
    assert list(params.read().versions) == ["v1", "v2"]
    assert Path("data/raw/v2").is_dir()
    assert lock.is_file()
    assert not undoing.NOTES.exists()


def test_a_version_that_is_named_again_is_taken_back_with_the_lock_that_it_had(project, monkeypatch):
    lock = Path("versions/v2/dvc.lock")
    lock.parent.mkdir()
    lock.write_text("stages: {}\n")
    break_off(monkeypatch)
    undoing.take_back_killed()
    assert list(params.read().versions) == ["v1"]
    assert not Path("data/raw/v2").exists()
    assert lock.read_text() == "stages: {}\n"


def test_continuing_takes_back_before_it_looks_for_what_has_landed(project, monkeypatch, capsys):
    def stop(*_):
        raise KilledError

    break_off(monkeypatch)
    monkeypatch.setattr("flows.unattended.landing.take_landed", stop)
    with pytest.raises(KilledError):
        continual.advance(engine="local")
    assert LINE in capsys.readouterr().err
    assert list(params.read().versions) == ["v1"]


@pytest.mark.parametrize("command", [["run", "v2", "--engine", "local"], ["shard", "utility", "v2", "1/2"]])
def test_a_command_that_computes_takes_back_first(project, monkeypatch, command):
    break_off(monkeypatch)
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 1
    assert done.stderr.startswith(LINE)
    assert re.match("error: there is no (data version 'v2'|stage utility@v2)", done.stderr.removeprefix(LINE))
    assert not Path("data/raw/v2").exists()


def test_a_command_that_computes_leaves_an_addition_that_is_at_work(project):
    planned = plan_addition(Path("data/raw/v1").absolute(), params.read().versions, version="v2", copy=True)
    with undoing.adding(), written(planned):
        undoing.take_back_killed()
        assert undoing.NOTES.exists()
    assert list(params.read().versions) == ["v1", "v2"]


def test_what_is_edited_while_files_are_copied_is_kept(project, monkeypatch):
    place, real = Path("params.yaml"), kept_files.copy_files

    def copy_slowly(*given):
        real(*given)
        with place.open("a") as file:
            file.write("# mine\n")

    monkeypatch.setattr(kept_files, "copy_files", copy_slowly)
    planned = plan_addition(Path("data/raw/v1").absolute(), params.read().versions, version="v2", copy=True)
    with written(planned):
        pass
    assert place.read_text().endswith("# mine\n")
    assert list(params.read().versions) == ["v1", "v2"]


def test_what_is_edited_while_files_are_copied_is_kept_where_the_addition_fails(project, monkeypatch):
    place, real = Path("params.yaml"), kept_files.write_record

    def fail(*given):
        real(*given)
        with place.open("a") as file:
            file.write("# mine\n")
        raise ValueError("out of power")

    monkeypatch.setattr(kept_files, "write_record", fail)
    planned = plan_addition(Path("data/raw/v1").absolute(), params.read().versions, version="v2", copy=True)
    with pytest.raises(ValueError, match="out of power"), written(planned):
        pass
    assert place.read_text().endswith("# mine\n")
    assert not Path("data/raw/v2").exists()


def test_a_draft_of_params_that_a_kill_left_goes(project, monkeypatch):
    break_off(monkeypatch)
    draft = Path(".params.yaml.abcd1234.part")
    draft.write_text("")
    undoing.take_back_killed()
    assert not draft.exists()


class Together:
    """Two calls in processes of their own, the second while the first one copies or fetches; their exit statuses."""

    def __init__(self, patch: pytest.MonkeyPatch, step: str, *calls: Callable[[], None]) -> None:
        module, _, name = step.rpartition(".")
        whole, begun = getattr(import_module(module), name), get_context("fork").Event()

        def slowly(*given, **named):
            begun.set()
            time.sleep(1)
            return whole(*given, **named)

        patch.setattr(step, slowly)
        first, second = (get_context("fork").Process(target=call) for call in calls)
        first.start()
        assert begun.wait(60)
        second.start()
        for one in (first, second):
            one.join(120)
        self.statuses = [first.exitcode, second.exitcode]


def look(out: Path) -> None:
    with redirect_stderr(out.open("w")):
        taken, errors = take_landed(set())
    with out.open("a") as file:
        file.write(f"{taken} {errors}")


def test_of_two_looks_at_once_the_second_waits_and_finds_nothing(project, monkeypatch, tmp_path):
    outs = [tmp_path / "first", tmp_path / "second"]
    steps = "flows.unattended.landing.refuse_special"
    both = Together(monkeypatch, steps, *(partial(look, out) for out in outs))
    assert both.statuses == [0, 0]
    first, second = (out.read_text() for out in outs)
    assert first.endswith("['v2'] []")
    assert second.endswith("[] []")
    assert re.search(r"the project's data versions are being written \(process \d+: .*\): waiting for it", second)
    assert project.git("log", "--format=%s").splitlines().count("Add data version v2") == 1
    assert list(Path(".cache/landing").glob("*")) == []


def test_of_two_additions_at_once_the_second_takes_the_next_name_and_continues_from_the_first(project, monkeypatch):
    def add() -> None:
        done = CliRunner().invoke(cli.app, ["add", "data/raw/v1", "--copy"])
        sys.exit(done.exit_code)

    both = Together(monkeypatch, "tasks.first_look.kept_files.copy_files", add, add)
    assert both.statuses == [0, 0]
    versions = params.read().versions
    assert list(versions) == ["v1", "v2", "v3"]
    assert [versions[name].previous for name in ("v2", "v3")] == ["v1", "v2"]


def test_copies_of_landed_files_that_a_kill_left_go_at_the_next_look(project, tmp_path):
    left = Path(".cache/landing/gone/rows.jsonl")
    left.parent.mkdir(parents=True)
    left.write_text("{}\n")
    take_landed(set())
    assert not left.parent.exists()


def test_a_folder_that_was_there_before_is_refused_and_stays(project):
    place = project.root / "data/raw/v2"
    place.mkdir()
    (place / "mine.txt").write_text("by hand")
    _, (error,) = take_landed(set())
    assert "data/raw/v2 is there and is not empty" in str(error)
    assert (place / "mine.txt").read_text() == "by hand"


def test_without_git_an_addition_is_taken_back_too(project, monkeypatch):
    break_off(monkeypatch)
    monkeypatch.setenv("PATH", "")
    undoing.take_back_killed()
    assert list(params.read().versions) == ["v1"]
