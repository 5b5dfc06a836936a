"""Runs code that a model wrote, and its tests, in a process of its own: little time and memory, no network, no others.

Run as a program (`python -I -S sandbox.py LIMITS`) this file is that process: it takes its own rights away before it
reads any code, then executes it and its tests, and says that both ran to their end by a token that it reads after them.

What holds is meant against mistakes and ordinary misbehaviour: code sees and signals no other process, starts none,
opens no socket, and changes no file but in an empty folder in memory, which ends with it. Of the system's calls it has
those of `CALLS` alone: no keyrings, no shared memory, no messages. It can read what the user can (and write to a named
pipe of theirs). It is no examination of cheats: the token is within reach of code that looks for it, which can so pass
tests that it fails.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import struct
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
NAMESPACES = 0x20000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000  # unshare(2): mounts, IPC, users, PIDs, network
DIE_WITH_PARENT, FILTER_CALLS, NO_NEW_PRIVILEGES = 1, 22, 38  # options of prctl(2)
SET_MOUNTS, RECURSIVE, HERE = 442, 0x8000, -100  # mount_setattr(2), the same number on every architecture
CLOSED, PRIVATE = 0b111, 1 << 18  # its attributes: read-only, no rights of owners, no devices; nothing passed on
PLAIN = 0b1110  # mount(2): no rights of owners, no devices, no programs
FOLDER, ROOM = b"/proc", b"size=16m,nr_inodes=4096,mode=700"  # what stands there shows other processes
CAPABILITIES = 0x20080522  # version of capset(2)
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # their numbers in filters
CALLS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
ioctl 16 29, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -,
sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -,
nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71, exit 60 93,
kill 62 129, uname 63 160, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46,
getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -,
unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, umask 95 166, gettimeofday 96 169,
getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, utime 132 -, statfs 137 43, fstatfs 138 44, getpriority 140 141, gettid 186 178, tkill 200 130,
time 201 -, futex 202 98, sched_getaffinity 204 123, getdents64 217 61, set_tid_address 218 96, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, tgkill 234 131, utimes 235 -, openat 257 56,
mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78,
fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, utimensat 280 88,
eventfd2 290 19, epoll_create1 291 20, dup3 292 24, pipe2 293 59, prlimit64 302 261, renameat2 316 276,
getrandom 318 278, membarrier 324 283, copy_file_range 326 285, statx 332 291, rseq 334 293, close_range 436 436,
faccessat2 439 439
"""  # all that code may ask of the system, with their numbers by machine; `-`: it has no such call
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of filters
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # what they return; the second is "not permitted"
OTHER_CALLS = 0x40000000  # from here on the same calls have other numbers (x32)
BESIDE = 8  # programs run at once, at most
WAY_OUT = (
    "set evaluation.task_metric: none, or run it on Linux (5.12 or later, x86_64 or aarch64), in a container or not, "
    "where user namespaces are allowed: where `unshare -rmpinf true` works"
)
PROBE = """
import math, os, re, socket, threading
def fails(action):
    try:
        action()
    except (OSError, RuntimeError):
        return True
"""
PROBE_TESTS = """
assert fails(threading.Thread(target=print).start) and fails(os.fork)
assert fails(socket.socket) and fails(lambda: socket.socket(socket.AF_UNIX))
assert os.getppid() in (0, os.getpid()) and os.getpgrp() == os.getpid() and fails(lambda: os.kill(-1, 0))
assert fails(lambda: open(outside, "a")) and fails(lambda: os.chmod(outside, 0o600)) and not os.listdir()
"""


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
    """Check that a harmless program passes its tests where it is kept from processes, sockets, and files outside.

    Raises:
        SandboxError: naming what the system refuses, and the way out.
    """
    with tempfile.NamedTemporaryFile() as outside:
        if not _run((f"outside = {outside.name!r}{PROBE}", PROBE_TESTS), LIMITS):
            raise SandboxError(
                "code that a model wrote would not be kept from the network, from files, from other processes or from "
                f"starting them here; {WAY_OUT}"
            )


def _run(program: tuple[str, str], limits: Limits) -> bool:
    """Return whether a code passes its tests."""
    text, token = json.dumps(program).encode(), secrets.token_hex(16).encode()
    python = os.path.realpath(sys.executable)  # without the packages of a virtual environment
    command = [python, "-I", "-S", __file__, json.dumps(asdict(limits))]
    asked: dict[str, Any] = {"env": {}, "start_new_session": True, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **asked) as process:
        try:
            with suppress(BrokenPipeError), process.stdin as way:
                way.write(len(text).to_bytes(8) + text + token)
            said = process.stdout.read(len(READY + token))  # code may say more
            if not said.startswith(READY):  # no code has run
                said += process.stdout.read()
        finally:
            process.kill()
    if not said.startswith(READY):
        why = said.removeprefix(REFUSED).decode(errors="replace").strip()
        why = why or f"it says nothing within {limits.wall_seconds:g} s"
        raise SandboxError(f"code that a model wrote cannot be kept apart here: {why.splitlines()[-1]}; {WAY_OUT}")
    return said == READY + token


def _serve(limits: Limits) -> None:
    """Give up rights, take code and tests from the standard input, run them, and write the token that follows them."""
    given, said = os.dup(0), os.dup(1)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _part(libc)
        if child := os.fork():
            _watch(child, limits.wall_seconds)
            return
        empty = os.open(os.devnull, os.O_RDWR)  # by its own mounts, so that it is closed with them to other rights
        _confine(libc, limits)
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


def _ask(what: str, failed: int) -> None:
    if failed:
        raise OSError(f"the system refuses {what}: {os.strerror(ctypes.get_errno())}")


def _part(libc: ctypes.CDLL) -> None:
    """Enter namespaces of its own with this user as their only one; the next process is the first that they know."""
    maps = {"setgroups": "deny", "uid_map": f"{NOBODY} {os.geteuid()} 1", "gid_map": f"{NOBODY} {os.getegid()} 1"}
    _ask("namespaces of its own", libc.unshare(NAMESPACES))
    _ask("ending with its parent", libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0))
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _watch(child: int, seconds: float) -> None:
    """End a child that has not ended in time."""
    select.select([os.pidfd_open(child)], [], [], seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _confine(libc: ctypes.CDLL, limits: Limits) -> None:
    """Take away writing, other processes, sockets, and what goes beyond the limits, for good."""
    import resource  # no such module where there is no such limit

    os.setsid()  # nobody else in its group
    closed = struct.pack("4Q", CLOSED, 0, PRIVATE, 0)
    _ask("files that stay as they are", libc.syscall(SET_MOUNTS, HERE, b"/", RECURSIVE, closed, len(closed)))
    _ask("a folder in memory", libc.mount(b"tmpfs", FOLDER, b"tmpfs", PLAIN, ROOM))
    os.chdir(FOLDER)
    most = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in most.items():
        resource.setrlimit(name, (value, value))
    _ask("giving up capabilities", libc.capset(struct.pack("Ii", CAPABILITIES, 0), bytes(24)))
    _ask("giving up privileges", libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _ask("ending with its parent", libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0))
    _filter_calls(libc)


def _filter_calls(libc: ctypes.CDLL) -> None:
    """Allow the calls that are listed and refuse all others: sockets, other processes, what undoes any of this."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no filter of system calls is known for {machine}, only for {' and '.join(MACHINES)}")
    column = 1 + [*MACHINES].index(machine)
    calls = [int(number) for line in CALLS.split(",") if (number := line.split()[column]) != "-"]
    left = len(calls)
    lines = [
        (LOAD, 0, 0, 4),
        (EQUAL, 0, left + 4, MACHINES[machine]),
        (LOAD, 0, 0, 0),
        (AT_LEAST, left, 0, OTHER_CALLS),
    ]
    lines += [(EQUAL, left - place, 0, call) for place, call in enumerate(calls)]
    lines += [(RETURN, 0, 0, what) for what in (REFUSE, ALLOW, KILL)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HP", len(lines), ctypes.addressof(text))
    _ask("a filter of system calls", libc.prctl(FILTER_CALLS, 2, program, 0, 0))


if __name__ == "__main__":
    _serve(Limits(**json.loads(sys.argv[1])))
