"""What became of a version, told to whoever `acceptance.report` names: a command, or a URL."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

import httpx

from flows.stage import say

URLS = ("http://", "https://")
PATIENCE = 30.0  # seconds that a command or a server has


def send(report: str | None, outcome: Mapping[str, Any]) -> bool:
    """Tell of a version as a JSON object; returns whether that was taken, and says where it was not.

    Args:
        report: a program and its arguments, which reads it on its standard input, or a URL, to which it is posted; no
            shell reads it, so that none of `|`, `>`, `~` and `$` means anything; None: nobody is told.
        outcome: version, state (recorded, refused, failed or not added), why, and what the gates said.
    """
    if not (report or "").strip():
        return False
    text = json.dumps(outcome)
    try:
        if report.startswith(URLS):
            said = httpx.post(report, content=text, headers={"content-type": "application/json"}, timeout=PATIENCE)
            said.raise_for_status()
        else:
            subprocess.run(
                shlex.split(report), input=text, text=True, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL
            )
    except (OSError, ValueError, subprocess.SubprocessError, httpx.HTTPError, httpx.InvalidURL) as error:
        say(f"acceptance.report did not take what became of {outcome['version']}: {_tell(report, error)}")
        return False
    return True


def _tell(report: str, error: Exception) -> str:
    """Return why a report was not taken; neither an address nor arguments, which passwords stand in, are in it."""
    answer, program = getattr(error, "response", None), report.split()[0]
    if answer is not None:
        return f"status {answer.status_code}"
    if report.startswith(URLS):
        return type(error).__name__
    if isinstance(error, subprocess.CalledProcessError):
        return f"{program} ended with status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{program} did not end within {PATIENCE:.0f} s"
    if isinstance(error, OSError):
        return f"{program} cannot be started: {error.strerror}; name a program and its arguments, without a shell"
    return type(error).__name__
