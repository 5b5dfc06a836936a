"""Commands as a person meets them: in a terminal, which is a pseudo-terminal here."""

import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from worlds.projects import environment


@dataclass(frozen=True)
class Shown:
    """What a terminal got from a command."""

    text: str
    status: int


def run_in_terminal(
    command: Sequence[str], folder: Path, *, width: int = 100, act: Callable[[subprocess.Popen, str], None] = print
) -> Shown:
    """Run a command whose output goes to a terminal.

    Args:
        command: program and arguments.
        folder: where it runs.
        width: columns of the terminal.
        act: is given the process and all that the terminal has got, each time that it gets something.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    more = {"TERM": "xterm", "COLUMNS": "", "LINES": ""}
    kept = {name: value for name, value in environment(**more).items() if value}
    process = subprocess.Popen(
        command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=kept, start_new_session=True
    )
    os.close(theirs)
    text, end = "", time.monotonic() + 300
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                got = os.read(ours, 65536)
            except OSError:  # Linux says so that nobody holds the other side any more
                break
            if not got:
                break
            text += got.decode(errors="replace").replace("\r\n", "\n")
            if act is not print:
                act(process, text)
        elif process.poll() is not None:
            break
    os.close(ours)
    return Shown(text, process.wait(30))
