"""Ctrl-C, SIGTERM of who ends a service, or a closed terminal's SIGHUP: one line, and an end within five seconds.

Whatever it is at: a process in a long call of a library, in a shard's thread or waiting for a server cannot be relied
on to unwind, so it is ended hard: files are written whole or not at all, and the kernel frees file locks. What must not
be broken into says so (`whole`), and what must be put back on the way says that (`cleaning`).

A thread of its own is the one that the signal reaches. All others have it blocked, and so have the processes that they
start, the Prefect server above all: they see nothing of Ctrl-C, say nothing about it, and are killed. SIGTERM is sent
to one process, so that it is not blocked, and who starts another one can end it as usual. SIGHUP stays ignored where it
is, as under nohup.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

LINES = {
    signal.SIGINT: "interrupted; run again to go on",
    signal.SIGTERM: "terminated; run again to go on",
    signal.SIGHUP: "the terminal was closed; run again to go on",
}
ALONE = {signal.SIGTERM, signal.SIGHUP}  # those that a child has for itself
SHELL = 128  # a shell's exit status for a process that a signal ended: this and the signal's number
PARKING = 0.2  # seconds that the main thread has to stop before what it was at is put back
LIMIT = 4.5  # seconds after which the process ends, whatever is still at work
COMMANDS = (["-m", "flows.cli"], ["-m", "flows.stage"])

_sections: dict[int, list[float]] = {}  # thread -> how long each section that it is in is waited for, seconds
_cleanups: list[Callable[[], None]] = []
_interrupted = threading.Event()
_parked = threading.Event()


def is_command() -> bool:
    """Return whether this process is one of our commands, and not a test or a program that imports us."""
    return Path(sys.argv[0]).name == "tamis" or sys.orig_argv[1:3] in COMMANDS


def install() -> None:
    """End this process at Ctrl-C and SIGTERM from now on; call it in the main thread, before others are started."""
    wakes, written = os.pipe()
    os.set_blocking(written, False)
    screen = os.dup(2)
    threading.Thread(target=_watch, args=(wakes, screen), name="interrupts", daemon=True).start()
    for number in LINES:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, partial(_park, written))
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ALONE)
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ALONE)
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=_forget)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def uninstall() -> None:
    """Give the signals back to who handles them in a way of its own; call it in the main thread."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_go()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _forget() -> None:
    """Let a fork of this process be ended alone: what it is sent must not reach the one that it is a copy of."""
    signal.set_wakeup_fd(-1)
    _let_go()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALONE)


def _let_go() -> None:
    """Let the signals that a process has for itself do again what they do to any."""
    for number in ALONE:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def whole(seconds: float) -> Iterator[None]:
    """Let what runs inside come to its end when interrupted, if that takes at most so many seconds."""
    if _interrupted.is_set():
        _stop_here()
    mine = _sections.setdefault(threading.get_ident(), [])
    mine.append(seconds)
    try:
        yield
    finally:
        mine.pop()
        if not mine:
            del _sections[threading.get_ident()]
            if _interrupted.is_set():
                _stop_here()


@contextmanager
def cleaning(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call a function if an interrupt comes while this is open; it must be quick, and wait for no other thread."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def _park(wakes: int, number: int, *frame: Any) -> None:
    """Stop the main thread where it is, or at the end of what it must not be broken into."""
    with suppress(BlockingIOError):
        os.write(wakes, bytes([number]))  # a library may have taken the place where the signal itself does that
    _interrupted.set()
    if threading.get_ident() not in _sections:
        _stop_here()


def _stop_here() -> None:
    """Wait for the end of the process."""
    if threading.current_thread() is threading.main_thread():
        _parked.set()
    while True:
        time.sleep(1)


def _watch(wakes: int, screen: int) -> None:
    """Wait for one of the signals, and end the process."""
    while (number := os.read(wakes, 1)[0]) not in LINES:
        pass
    start = time.monotonic()
    _interrupted.set()
    _say(screen, LINES[number])
    for child in list_descendants():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    while time.monotonic() - start < max((limit for limits in [*_sections.values()] for limit in limits), default=0):
        time.sleep(0.01)
    _parked.wait(PARKING)
    cleaner = threading.Thread(target=_clean, daemon=True)
    cleaner.start()
    cleaner.join(max(0, LIMIT - (time.monotonic() - start)))
    os._exit(SHELL + number)


def _say(screen: int, line: str) -> None:
    """Print the one line, and let nobody print after it; a progress bar has hidden the cursor."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    with suppress(OSError):
        os.write(screen, (("\x1b[?25h\n" if os.isatty(screen) else "") + line + "\n").encode())


def _clean() -> None:
    """Put back what was begun, the last first."""
    for cleanup in reversed(_cleanups[:]):
        with suppress(Exception):  # the next run mends what cannot be put back now
            cleanup()


def list_descendants() -> list[int]:
    """Return the processes that this one started, and those that they did."""
    parents, found = _parents(), [os.getpid()]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _parents() -> dict[int, int]:
    """Return every process of this machine and its parent."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        return {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found = {}
    for child in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            found[int(child)] = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    return found
