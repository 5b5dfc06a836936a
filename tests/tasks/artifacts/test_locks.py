"""Locks on files: alone or together, waited for or refused, free once their holder is killed."""

import subprocess
import sys
import threading

import pytest

from tasks.artifacts.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from tasks.artifacts.locks import locked
with locked(Path(sys.argv[1]), shared=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(600)
"""


class HeldError(ValueError):
    """Somebody holds it."""


def test_who_wants_a_held_file_is_refused_with_the_callers_error(tmp_path):
    with locked(tmp_path / "new/lock"), pytest.raises(HeldError, match="busy"):
        locked(tmp_path / "new/lock", refusal=HeldError("busy")).__enter__()
    with locked(tmp_path / "new/lock", refusal=HeldError("busy")):
        pass


def test_sharers_hold_a_file_together_and_keep_others_out(tmp_path):
    path, refusal = tmp_path / "lock", HeldError("busy")
    with locked(path, shared=True), locked(path, shared=True, refusal=refusal), pytest.raises(HeldError):
        locked(path, refusal=refusal).__enter__()
    with locked(path), pytest.raises(HeldError):
        locked(path, shared=True, refusal=refusal).__enter__()


def test_an_error_inside_frees_the_file(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with locked(tmp_path / "lock", refusal=HeldError()):
        pass


def test_who_waits_says_so_once_and_goes_on_when_the_file_is_free(tmp_path):
    said, begun, waiting = [], threading.Event(), threading.Event()

    def say() -> None:
        said.append("waiting")
        waiting.set()

    def wait() -> None:
        with locked(tmp_path / "lock", waiting=say):
            begun.set()

    other = threading.Thread(target=wait)
    with locked(tmp_path / "lock"):
        other.start()
        assert waiting.wait(60)
        assert not begun.is_set()
    assert begun.wait(60)
    other.join()
    with locked(tmp_path / "lock", waiting=say):
        assert said == ["waiting"]


@pytest.mark.parametrize("shared", [[], ["shared"]])
def test_a_killed_holder_frees_the_file(tmp_path, shared):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), *shared]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(HeldError):
            locked(tmp_path / "lock", refusal=HeldError()).__enter__()
        child.kill()
    with locked(tmp_path / "lock", refusal=HeldError()):
        pass
