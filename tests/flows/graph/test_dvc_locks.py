"""DVC's locks: a line names who is waited for, and what a kill has left in them is mended."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import weakref

import psutil
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from worlds.projects import GRAPHS, Project, start_project

from flows.graph import dvc_locks, dvc_state, revisions


@pytest.fixture
def project(tmp_path, monkeypatch, apart) -> Project:
    """The small project before its first run, as the current folder."""
    GRAPHS["small"].make(tmp_path / "small", "")
    monkeypatch.chdir(tmp_path / "small")
    return start_project(tmp_path / "small")


@pytest.fixture
def other(tmp_path):
    """A process of another kind."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def lock(project: Project, **kinds) -> None:
    path = project.root / ".dvc/tmp/rwlock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kinds))


def locked(project: Project) -> dict:
    """Return what stands in the list after a look at the project."""
    with dvc_state.opened():
        pass
    path = project.root / ".dvc/tmp/rwlock"
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"read": []}', '{"write": {"/a": {"pid": "x", "cmd": "c"}}}', '{"write": {"/a": 5}}', '{"x": {}}'],
)
def test_list_that_cannot_be_read_is_deleted_and_told(project, text, capsys):
    path = project.root / ".dvc/tmp/rwlock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert locked(project) == {}
    assert "rwlock could not be read, as a kill or another DVC leaves it, and was deleted" in capsys.readouterr().err
    dvc_state.plan()
    assert dvc_state.probe("letters@v1").state == "stale"


def test_process_that_has_the_number_of_one_that_was_killed_locks_nothing(project, other):
    blocked = {"pid": other.pid, "cmd": "tamis run"}
    lock(project, write={str(project.root / "data"): blocked}, read={str(project.root / "raw"): [blocked]})
    assert locked(project) == {"read": {}, "write": {}}


def test_process_that_was_started_after_the_list_was_written_locks_nothing(project):
    lock(project, write={str(project.root / "data"): {"pid": os.getpid(), "cmd": "tamis run"}}, read={})
    old = psutil.Process().create_time() - 60
    os.utime(project.root / ".dvc/tmp/rwlock", (old, old))
    assert locked(project)["write"] == {}


def test_process_that_is_gone_is_taken_out_and_one_at_work_stays(project):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = {"pid": os.getpid(), "cmd": "tamis run"}
    lock(project, write={}, read={"/a": [{"pid": gone.pid, "cmd": "tamis run"}, mine], "/b": [mine]})
    assert locked(project)["read"] == {"/a": [mine], "/b": [mine]}


def test_waiting_for_another_dvc_is_told_with_its_process(project, capsys):
    code = (
        "import sys, time\nfrom dvc.repo import Repo, lock_repo\nwith lock_repo(Repo('.')):\n"
        "    print('held', flush=True)\n    time.sleep(float(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "8"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with process.stdout, dvc_state.opened():
        assert process.wait(30) == 0
    assert f"DVC is at work in this project (process {process.pid}: " in capsys.readouterr().err


def test_lock_is_free_after_an_error(project, capsys):
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError), dvc_state.opened():
            raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_what_dvc_leaves_in_memory_of_each_folder_goes_with_its_lock(project, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "store", {"/kept.tmp": None})
    with dvc_state.opened() as repo:
        revisions.digest_now(repo, ["raw"])
        assert len(MemoryFileSystem.store) > 1
    assert [*MemoryFileSystem.store] == ["/kept.tmp"]


def test_the_project_is_opened_once_and_nothing_holds_it_once_it_is_closed(project):
    with dvc_state.opened() as repo:
        pass
    with dvc_state.opened() as again:
        assert again is repo
    closed = weakref.ref(repo)
    dvc_locks.close_project()
    del repo, again
    gc.collect()
    assert closed() is None
    with dvc_state.opened() as repo:
        assert repo.root_dir == str(project.root)


@pytest.mark.parametrize("more", [(), (None, ".dvc/tmp/y")])
def test_a_place_that_dvc_may_not_write_is_told_from_one_that_it_may_not_read(project, monkeypatch, more):
    error = PermissionError(13, "Permission denied", ".dvc/tmp/x", *more)
    named = more[1] if more else ".dvc/tmp/x"
    text = f"^{named} could not be written: Permission denied. Allow writing in .dvc/tmp, then run again$"
    with pytest.raises(dvc_state.StateError, match=text), dvc_state.opened():
        raise error
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    text = text if more else "^DVC cannot read what a stage depends on: .*; mend it, or name other versions"
    with pytest.raises(dvc_state.StateError, match=text), dvc_state.opened():
        raise error
