"""Code of a model is run apart: with limits, without network, and what passes has run its tests."""

import os
from pathlib import Path

import pytest

from tasks import sandbox
from tasks.sandbox import Limits, SandboxError, refuse_open, run_tests

SMALL = Limits(cpu_seconds=1, wall_seconds=2.5, memory_bytes=128 * 2**20, file_bytes=2**16)
SECRET = "TAMIS_SECRET"
ADD = "def add(a, b):\n    return a + b\n"
PASSING = {
    "code that is right": (ADD, "assert add(1, 2) == 3\nassert add(-1, 1) == 0"),
    "code that prints": ("print('x' * 10**6)", "assert True"),
    "code that reads an empty input": ("import sys", "assert sys.stdin.read() == ''"),
    "code with modules of the standard library": ("import re, math, collections, heapq", "assert math.sqrt(4) == 2"),
    "code that asks for its own module": (
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int",
        "assert A(1).x == 1",
    ),
    "code with a main part, which is not run": ("if __name__ == '__main__':\n    raise ValueError", "assert True"),
    "a small file in a folder that was empty": ("open('x', 'w').write('y')", "import os; assert os.listdir() == ['x']"),
    "an environment without anything": ("import os", "assert not os.environ, os.environ"),
}
FAILING = {
    "code that is wrong": (ADD, "assert add(1, 2) == 4"),
    "code that is wrong in the last test": (ADD, "assert add(1, 2) == 3\nassert add(1, 1) == 3"),
    "code that lacks what is tested": ("x = 1", "assert add(1, 2) == 3"),
    "code that is no Python": ("Here is the function:", "assert True"),
    "code with a null byte": ("\0", "assert True"),
    "code that no compiler takes": ("(" * 100_000, "assert True"),
    "tests that are no Python": (ADD, "assert add(1,"),
    "an exit before the tests": ("import sys; sys.exit(0)", "assert False"),
    "an exit without a goodbye": ("import os; os._exit(0)", "assert False"),
    "an exit in a test": ("import os\ndef add(a, b): os._exit(0)", "assert add(1, 2) == 3"),
    "an exit at the end": ("import atexit, os; atexit.register(os._exit, 0)", "assert False"),
    "output that looks like success": ("import os; [os.write(place, b'+' * 33) for place in (1, 2)]", "assert False"),
    "an endless loop": ("while True: pass", "assert True"),
    "an endless sleep": ("import time; time.sleep(60)", "assert True"),
    "too much memory": ("x = bytearray(2**28)", "assert True"),
    "a connection": ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", "assert True"),
    "a message to the network": (
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "assert True",
    ),
    "a fork": ("import os; os.fork()", "assert True"),
    "another program": ("import subprocess; subprocess.run(['/bin/true'])", "assert True"),
    "a thread": ("import threading; threading.Thread(target=print).start()", "assert True"),
    "a big file": ("open('x', 'wb').write(b'x' * 2**17)", "assert True"),
    "many open files": ("kept = [open('/dev/zero') for _ in range(99)]", "assert True"),
    "a question to the user": ("input()", "assert True"),
    "more rights": ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (99, 99))", "assert True"),
}


def works() -> bool:
    try:
        refuse_open()
    except SandboxError:
        return False
    return True


pytestmark = pytest.mark.skipif(not works(), reason="this system refuses user or network namespaces")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, bool]:
    os.environ[SECRET] = "seen"
    try:
        programs = {**PASSING, **FAILING}
        return dict(zip(programs, run_tests(list(programs.values()), SMALL), strict=True))
    finally:
        del os.environ[SECRET]


@pytest.mark.parametrize("name", PASSING)
def test_code_passes(verdicts, name):
    assert verdicts[name]


@pytest.mark.parametrize("name", FAILING)
def test_code_does_not_pass(verdicts, name):
    assert not verdicts[name]


LANDLOCK = "the kernel has no Landlock"


def test_files_elsewhere_stay_as_they_are(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("here")
    actions = ("open({!r}, 'a').write('x')", "__import__('os').remove({!r})", "__import__('os').truncate({!r}, 0)")
    found = run_tests([(action.format(str(kept)), "assert True") for action in actions], SMALL)
    if any(found):
        pytest.skip(LANDLOCK)
    assert kept.read_text() == "here"


def test_nothing_runs_without_programs(monkeypatch):
    monkeypatch.setattr(sandbox, "refuse_open", lambda: pytest.fail("asked"))
    assert run_tests([]) == []


def alter(monkeypatch, tmp_path: Path, old: str, new: str) -> None:
    """Let the process be one with a line changed."""
    text = Path(sandbox.__file__).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "sandbox.py").write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))


REFUSALS = {
    "no namespaces": (
        "libc.unshare, NEW_USER | NEW_NET",
        "libc.unshare, 1",
        "kept apart here: the system refuses a network namespace of its own: Invalid argument; set "
        "evaluation.task_metric: none, or run it on Linux, .* where `unshare -rn true` works",
    ),
    "another system": ("libc.unshare, ", "libc.unshare_not_here, ", "kept apart here: .*unshare_not_here"),
    "processes": ("        resource.RLIMIT_NPROC: 0,\n", "", "would not be kept from the network or from starting pro"),
    "a broken Python": (
        "    given, said = os.dup(0), os.dup(1)\n",
        "    raise RuntimeError('broken')\n",
        "here: RuntimeError",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_system_refuses_is_named_before_anything_runs(monkeypatch, tmp_path, name):
    old, new, text = REFUSALS[name]
    alter(monkeypatch, tmp_path, old, new)
    with pytest.raises(SandboxError, match=text):
        run_tests([(f"open({str(tmp_path / 'ran')!r}, 'w')", "assert True")])
    assert not (tmp_path / "ran").exists()
