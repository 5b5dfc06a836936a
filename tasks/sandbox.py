"""Runs code that a model wrote, and its tests, in a process of its own with little time and memory and no network.

Run as a program (`python -I -S sandbox.py LIMITS`) this file is that process: it takes its own rights away before it
reads any code, which it then executes, and says that the tests passed by a token that it gets only after them. Code can
still read what the user can; the content of files it can change in an empty folder only, where the kernel has Landlock.
"""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

READY, REFUSED = b"+", b"-"  # first byte that the process writes
NOBODY = 65534
NEW_USER, NEW_NET = 0x10000000, 0x40000000  # flags of unshare(2)
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38  # options of prctl(2)
RESTRICT, ADD_RULE, CREATE = 446, 445, 444  # system calls of Landlock, on every architecture
WRITES = 0b111_1111_1111_0010  # rights of its third version that change files: write, remove, make, refer, truncate
BESIDE = 8  # programs run at once, at most
WAY_OUT = (
    "set evaluation.task_metric: none, or run it on Linux, in a container or not, where user namespaces are allowed: "
    "where `unshare -rn true` works"
)
PROBE = """
import math, re, socket, threading
def fails(action):
    try:
        action()
    except (OSError, RuntimeError):
        return True
"""
PROBE_TESTS = """
assert fails(threading.Thread(target=print).start)
assert fails(lambda: socket.create_connection(("192.0.2.1", 9), 1))
"""  # no thread, so no process either, and no network


class SandboxError(ValueError):
    """The system does not let code be run without network and with limits."""


@dataclass(frozen=True)
class Limits:
    """What a program may take."""

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory_bytes: int = 512 * 2**20  # of address space
    file_bytes: int = 2**20  # of each file
    files: int = 64  # open at once


LIMITS = Limits()


def run_tests(programs: Sequence[tuple[str, str]], limits: Limits = LIMITS) -> list[bool]:
    """Return of each code and tests whether the tests pass: every statement of both runs to its end within the limits.

    Each pair is run in a fresh process and an empty folder, without environment, network, threads and other processes;
    several at once. The tests see what the code defines; what either prints is lost.

    Raises:
        SandboxError: the system refuses the limits, which is found out before any of these programs runs.
    """
    if not programs:
        return []
    refuse_open()
    with ThreadPoolExecutor(min(BESIDE, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(_run, limits=limits), programs))


def refuse_open() -> None:
    """Check that a harmless program passes its tests where it is kept from other processes and the network.

    Raises:
        SandboxError: naming what the system refuses, and the way out.
    """
    if not _run((PROBE, PROBE_TESTS), LIMITS):
        raise SandboxError(
            f"code that a model wrote would not be kept from the network or from starting processes here; {WAY_OUT}"
        )


def _run(program: tuple[str, str], limits: Limits) -> bool:
    """Return whether a code passes its tests."""
    text, token = json.dumps(program).encode(), secrets.token_hex(16).encode()
    given = len(text).to_bytes(8) + text + token
    python = os.path.realpath(sys.executable)  # without the packages of a virtual environment
    command = [python, "-I", "-S", __file__, json.dumps(asdict(limits))]
    asked: dict[str, Any] = {"env": {}, "start_new_session": True}
    asked |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, cwd=folder, **asked) as process:
        try:
            said, complaint = process.communicate(given, timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if not said.startswith(READY):
        why = (said.removeprefix(REFUSED) or complaint or b"it says nothing").decode(errors="replace").strip()
        raise SandboxError(f"code that a model wrote cannot be kept apart here: {why.splitlines()[-1]}; {WAY_OUT}")
    return said == READY + token


def _serve(limits: Limits) -> None:
    """Give up rights, take code and tests from the standard input, run them, and write the token that follows them."""
    given, said = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDWR)
    try:
        _confine(limits)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        os.write(said, REFUSED + str(error).encode())
        return
    os.write(said, READY)
    os.environ.clear()  # Python itself sets the locale there
    for place in (0, 1, 2):
        os.dup2(empty, place)
    code, tests = json.loads(_read(given, int.from_bytes(_read(given, 8))))
    module = sys.modules["answer"] = types.ModuleType("answer")
    exec(compile(code, "<answer>", "exec"), module.__dict__)
    exec(compile(tests, "<tests>", "exec"), module.__dict__)
    os.write(said, _read(given, 32))
    os._exit(0)


def _read(place: int, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := os.read(place, size - len(found))):
        found += part
    return found


def _confine(limits: Limits) -> None:
    """Take away the network, writing, other processes, and what goes beyond the limits, for good."""
    import resource  # no such module where there is no such limit

    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0:
        with suppress(OSError):  # nobody has no user here
            os.setreuid(NOBODY, -1)  # no limit on processes holds for root
    for what, done in (
        ("a network namespace of its own", partial(libc.unshare, NEW_USER | NEW_NET)),
        ("giving up privileges", partial(libc.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)),
        ("ending with its parent", partial(libc.prctl, DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)),
    ):
        if done():
            raise OSError(f"the system refuses {what}: {os.strerror(ctypes.get_errno())}")
    _forbid_writing(libc)
    most = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for name, value in most.items():
        resource.setrlimit(name, (value, value))


def _forbid_writing(libc: ctypes.CDLL) -> None:
    """Let files be changed in the current folder only, where the kernel can do so."""
    version = libc.syscall(CREATE, None, 0, 1)
    if version < 3:
        return
    handled = ctypes.c_uint64(WRITES)
    rules = libc.syscall(CREATE, ctypes.byref(handled), 8, 0)
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    beneath = ctypes.create_string_buffer(WRITES.to_bytes(8, sys.byteorder) + here.to_bytes(4, sys.byteorder), 12)
    if libc.syscall(ADD_RULE, rules, 1, beneath, 0) or libc.syscall(RESTRICT, rules, 0):
        raise OSError(f"the system refuses a folder of its own: {os.strerror(ctypes.get_errno())}")
    os.close(here)
    os.close(rules)


if __name__ == "__main__":
    _serve(Limits(**json.loads(sys.argv[1])))
