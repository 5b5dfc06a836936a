"""What became of a version, told to whoever `acceptance.report` names: a command, or a URL."""

import json
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

import httpx

from flows.stage import say

PATIENCE = 30.0  # seconds that a command or a server has


def send(report: str | None, outcome: Mapping[str, Any]) -> None:
    """Tell of a version as a JSON object; that this fails is said, and changes nothing else.

    Args:
        report: a command, which reads it on its standard input, or a URL, to which it is posted; None: nobody is told.
        outcome: version, state (recorded, refused or failed), why, and what the gates said.
    """
    if not report:
        return
    text = json.dumps(outcome)
    try:
        if report.startswith(("http://", "https://")):
            said = httpx.post(report, content=text, headers={"content-type": "application/json"}, timeout=PATIENCE)
            said.raise_for_status()
        else:
            subprocess.run(
                shlex.split(report), input=text, text=True, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL
            )
    except (OSError, ValueError, subprocess.SubprocessError, httpx.HTTPError) as error:
        answer = getattr(error, "response", None)  # its own words would hold the address, and passwords in it
        why = type(error).__name__ if answer is None else f"status {answer.status_code}"
        say(f"acceptance.report did not take what became of {outcome['version']}: {why}")
