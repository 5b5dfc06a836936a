"""Code of a model is run apart: with limits, without network and others, and what passes has run its tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import pytest

from tasks.evaluation import sandbox
from tasks.evaluation.sandbox import Limits, SandboxError, refuse_open, run_tests

SMALL = Limits(cpu_seconds=1, wall_seconds=2.5, memory_bytes=128 * 2**20, file_bytes=2**16)
SECRET = "TAMIS_SECRET"
KEYCTL, ADD_KEY = {"x86_64": (250, 248), "aarch64": (219, 217)}.get(os.uname().machine, (0, 0))
LIBC = "import ctypes\nlibc = ctypes.CDLL(None)\n"
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
    "many folders in each other": ("import os\nfor _ in range(1500): os.mkdir('x'), os.chdir('x')", "assert True"),
    "a copy of a file": ("import shutil; open('x', 'w').write('y'); shutil.copy('x', 'z')", "assert open('z').read()"),
    "a signal to itself": (
        "import signal\nheard = []\nsignal.signal(10, lambda *told: heard.append(1)); signal.raise_signal(10)",
        "assert heard",
    ),
    "a file in a temporary folder": ("import tempfile; tempfile.TemporaryFile(dir='.').write(b'x')", "assert True"),
    "no process but itself": (
        "import os",
        "assert (os.getpid(), os.getppid(), os.getpgrp()) == (1, 0, 1) and os.listdir('/proc') == []",
    ),
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
    "a socket without network": ("import socket; socket.socket(socket.AF_UNIX)", "assert True"),
    "a datagram past its own network": (
        "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "assert True",
    ),
    "the user's keyring": (LIBC + f"assert libc.syscall({KEYCTL}, 0, -4, 0) >= 0", "assert True"),
    "a key": (LIBC + f"assert libc.syscall({ADD_KEY}, b'user', b'tamis', b'x', 1, -4) >= 0", "assert True"),
    "memory that is shared": (LIBC + "assert libc.shmget(0, 2**28, 0o1600) >= 0", "assert True"),
    "memory that is a file": ("import os; os.memfd_create('x')", "assert True"),
    "a queue of messages": (LIBC + "assert libc.msgget(0, 0o1600) >= 0", "assert True"),
    "a look into memory": (LIBC + "assert not libc.ptrace(0, 0, 0, 0)", "assert True"),
    "a signal to all": ("import os; os.kill(-1, 0)", "assert True"),
    "a signal to another": (f"import os; os.kill({os.getpid()}, 0)", "assert True"),
    "a signal to a group": (f"import os; os.killpg({os.getpgrp()}, 0)", "assert True"),
    "a crash": ("import ctypes; ctypes.string_at(0)", "assert True"),
    "an endless loop that no signal ends": (
        "import signal\nfor one in {*range(1, 32)} - {9, 19}: signal.signal(one, signal.SIG_IGN)\nwhile True: pass",
        "assert True",
    ),
    "many files": ("for one in range(9999): open(str(one), 'w')", "assert True"),
    "much in files": ("for one in range(999): open(str(one), 'wb').write(b'x' * 2**16)", "assert True"),
    "a device": ("open('/dev/zero')", "assert True"),
    "a namespace": (LIBC + "assert not libc.unshare(0x10000000)", "assert True"),
    "a life without parents": (LIBC + "assert not libc.prctl(1, 0, 0, 0, 0)", "assert True"),
    "capabilities": (LIBC + "assert not libc.capset(b'\\x22\\x05\\x08\\x20' + bytes(4), b'\\1' * 24)", "assert True"),
    "files that can be written": (LIBC + "assert not libc.mount(None, b'/', None, 0x1020, None)", "assert True"),
    "mounts that can be written": (
        LIBC + "assert not libc.syscall(442, -100, b'/', 0, b'\\0' * 8 + b'\\1' + b'\\0' * 23, 32)",
        "assert True",
    ),
    "what stood where the folder is": (LIBC + "assert not libc.umount2(b'/proc', 2)", "assert True"),
    "calls past the filter": (LIBC + "assert libc.syscall(425, 8, bytes(120)) >= 0", "assert True"),
    "calls by other numbers": (LIBC + "assert libc.syscall(0x40000000 + 41, 1, 1, 0) >= 0", "assert True"),
    "rights of where output goes": ("import os; os.fchmod(1, 0o666)", "assert True"),
    "a fork": ("import os; os.fork()", "assert True"),
    "another program": ("import subprocess; subprocess.run(['/bin/true'])", "assert True"),
    "a thread": ("import threading; threading.Thread(target=print).start()", "assert True"),
    "a big file": ("open('x', 'wb').write(b'x' * 2**17)", "assert True"),
    "many open files": ("kept = [open(str(one), 'w') for one in range(99)]", "assert True"),
    "a question to the user": ("input()", "assert True"),
    "more rights": ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (99, 99))", "assert True"),
}


def allows_namespaces() -> bool:
    """Return whether the system allows what the errors name, asked without our own code."""
    asked = ["unshare", "-rmpinf", "true"]
    return bool(shutil.which(asked[0])) and not subprocess.run(asked, capture_output=True, check=False).returncode


ALLOWED = allows_namespaces()
apart = pytest.mark.skipif(not ALLOWED, reason="this system refuses namespaces, which another test holds to an error")


@pytest.mark.skipif(ALLOWED, reason="this system allows namespaces")
def test_nothing_runs_where_the_system_refuses_namespaces(tmp_path):
    with pytest.raises(SandboxError, match=r"set evaluation\.task_metric: none, or"):
        run_tests([(f"open({str(tmp_path / 'ran')!r}, 'w')", "assert True")])
    assert not (tmp_path / "ran").exists()


@apart
def test_code_is_kept_apart_where_the_system_allows_namespaces():
    refuse_open()


@pytest.fixture(scope="module")
def verdicts() -> dict[str, bool]:
    os.environ[SECRET] = "seen"
    try:
        programs = {**PASSING, **FAILING}
        return dict(zip(programs, run_tests(list(programs.values()), SMALL), strict=True))
    finally:
        del os.environ[SECRET]


@apart
@pytest.mark.parametrize("name", PASSING)
def test_code_passes(verdicts, name):
    assert verdicts[name]


@apart
@pytest.mark.parametrize("name", FAILING)
def test_code_does_not_pass(verdicts, name):
    assert not verdicts[name]


CHANGES = {
    "more in a file": "open({!r}, 'a')",
    "no file": "os.remove({!r})",
    "nothing in a file": "os.truncate({!r}, 0)",
    "other rights": "os.chmod({!r}, 0o600)",
    "other rights of an open file": "os.fchmod(os.open({!r}, os.O_RDONLY), 0o600)",
    "another time": "os.utime({!r}, (0, 0))",
    "another name": "os.rename({0!r}, {0!r} + 'x')",
    "one more name": "os.link({0!r}, {0!r} + 'x')",
    "a mark": "os.setxattr({!r}, 'user.x', b'x')",
}


@apart
def test_files_elsewhere_stay_as_they_are(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("here")
    before = kept.stat()
    found = run_tests([("import os\n" + change.format(str(kept)), "assert True") for change in CHANGES.values()], SMALL)
    assert not any(found), dict(zip(CHANGES, found, strict=True))
    assert (kept.read_text(), os.listdir(tmp_path)) == ("here", ["kept.txt"])
    assert (kept.stat().st_mode, kept.stat().st_mtime) == (before.st_mode, before.st_mtime)


@apart
def test_no_one_who_listens_at_a_path_is_reached():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")  # short: a path of pytest may be too long
        listening.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({folder + '/s'!r})"
        assert run_tests([(code, "assert True")], SMALL) == [False]


@apart
def test_nothing_is_left_of_what_code_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert (
        run_tests([PASSING["many folders in each other"], PASSING["a small file in a folder that was empty"]])
        == [True] * 2
    )
    assert os.listdir(tmp_path) == []


@apart
def test_what_code_says_without_end_is_not_kept():
    flood = (
        "import os\nwhile True:\n for one in range(3, 9):\n  try: os.write(one, b'+' * 2**16)\n  except OSError: pass"
    )
    tracemalloc.start()
    try:
        assert run_tests([(flood, "assert True")], SMALL) == [False]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def count_processes(name: str) -> int:
    """Return how many processes have a name in their command."""
    found = 0
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += name.encode() in place.read_bytes()
        except OSError:
            continue  # it has ended
    return found


def wait_for(number: int, name: str) -> bool:
    end = time.monotonic() + 10
    while (found := count_processes(name)) != number and time.monotonic() < end:
        time.sleep(0.02)
    return found == number


@apart
def test_no_code_outlives_who_runs_it(tmp_path):
    place = tmp_path / "sandbox.py"
    place.write_text(Path(sandbox.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import sandbox; sandbox.run_tests([sys.argv[2:]])"
    sleeping = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, tmp_path, sleeping, "assert True"]) as process:
        try:
            assert wait_for(2, str(place))  # the code, and who watches it
        finally:
            process.send_signal(signal.SIGKILL)
    assert wait_for(0, str(place))


@apart
def test_no_code_outlives_its_time(monkeypatch, tmp_path):
    alter(monkeypatch, tmp_path, "import ctypes\n", "import ctypes\n")
    assert run_tests([("import time; time.sleep(600)", "assert True")], Limits(wall_seconds=0.5)) == [False]
    assert wait_for(0, sandbox.__file__)


def test_nothing_runs_without_programs(monkeypatch):
    monkeypatch.setattr(sandbox, "refuse_open", lambda: pytest.fail("asked"))
    assert run_tests([]) == []


def alter(monkeypatch, tmp_path: Path, old: str, new: str) -> None:
    """Let the process be one with a line changed."""
    text = Path(sandbox.__file__).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "sandbox.py").write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))


OPEN = "would not be kept from the network, from files, from other processes or from starting them here; set "
REFUSALS = {
    "no namespaces": (
        "libc.unshare(NAMESPACES)",
        "libc.unshare(1)",
        "kept apart here: the system refuses namespaces of its own: Invalid argument; set "
        "evaluation.task_metric: none, or run it on Linux .*, .* where `unshare -rmpinf true` works",
    ),
    "an old kernel": (
        "SET_MOUNTS, RECURSIVE, HERE = 442,",
        "SET_MOUNTS, RECURSIVE, HERE = 9999,",
        "the system refuses files that stay as they are: Function not implemented; set .* Linux .5.12 or later",
    ),
    "no folders in memory": ('FOLDER, b"tmpfs"', 'FOLDER, b"none"', "refuses a folder in memory: No such device"),
    "no filters": ("libc.prctl(FILTER_CALLS,", "libc.prctl(999,", "refuses a filter of system calls: Invalid argument"),
    "another machine": (
        "os.uname().machine",
        "'abacus'",
        "no filter of system calls is known for abacus, only for x86_64 and aarch64; set",
    ),
    "another system": ("libc.unshare(", "libc.unshare_not_here(", "kept apart here: .*unshare_not_here"),
    "sockets": ("    left = len(calls)\n", "    calls += [41, 198]\n    left = len(calls)\n", OPEN),
    "processes": ("    left = len(calls)\n", "    calls += [56, 57, 220]\n    left = len(calls)\n", OPEN),
    "others": (" | 0x20000000 |", " |", OPEN),
    "files outside": ("CLOSED, PRIVATE = 0b111,", "CLOSED, PRIVATE = 0b110,", OPEN),
    "a parent that says nothing": (
        "    given, said = os.dup(0), os.dup(1)\n",
        "    return\n",
        "here: it says nothing within 15 s",
    ),
    "a broken Python": (
        "    given, said = os.dup(0), os.dup(1)\n",
        "    raise RuntimeError('broken')\n",
        "here: RuntimeError",
    ),
}


@apart
@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_system_refuses_is_named_before_anything_runs(monkeypatch, tmp_path, name):
    old, new, text = REFUSALS[name]
    alter(monkeypatch, tmp_path, old, new)
    with pytest.raises(SandboxError, match=text):
        run_tests([(f"open({str(tmp_path / 'ran')!r}, 'w')", "assert True")])
    assert not (tmp_path / "ran").exists()
