"""The environment that Prefect and DVC are run in, set before either is imported; what the user has set wins.

Offline, quiet, and with batches that keep the local server's SQLite file from stalling after a flow of many tasks.
"""

import hashlib
import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # errors are said once, by the command; the server keeps logs
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # of services that report events to the server
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "2",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # its own gives nothing back: many versions in one process would grow
}
HOME = Path(__file__).parents[1]
CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "flags")  # what it says of the kind
LIBRARIES = ("torch", "transformers", "tokenizers", "numba")  # whose versions decide numbers
OURS = ("flows", "tasks", "tamis", "desk")


def prepare() -> None:
    """Set every default that the user has not set.

    Loggers keep to themselves what they could not deliver: Prefect's handler would write on the screen that the server
    took no log line, which a busy server does, and which loses nothing but that line.
    """
    logging.raiseExceptions = False
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def name_machine() -> str:
    """Return a short name of this machine that does not tell its own: a run elsewhere says nothing of seconds here.

    The processor is part of it: what a scheduler starts under one host name may lie on another kind of processor today.
    """
    return hashlib.sha256(f"{platform.node()} {os.cpu_count()} {name_processor()}".encode()).hexdigest()[:8]


def name_processor() -> str:
    """Return family, model and features of the processor, as Linux states them; elsewhere what Python knows of it."""
    if not CPUINFO.is_file():
        return platform.processor()
    told = (line.partition(":") for line in CPUINFO.read_text().splitlines())
    known = {name.strip(): value.strip() for name, _, value in told if name.strip() in PROCESSOR}
    return " ".join(known.get(name, "") for name in PROCESSOR)


def name_libraries() -> dict[str, str]:
    """Return the installed versions of the libraries that decide numbers outside of our code."""
    return {name: installed(name) for name in LIBRARIES}


def tell_other_libraries(made: Mapping[str, str]) -> str:
    """Return in words with which other versions something was made than are installed here; empty: with the same.

    Args:
        made: the versions by library, as `name_libraries` gave them then; may be empty.
    """
    here = name_libraries()
    told = [
        f"{name} {version}, here {here[name]}" for name, version in made.items() if here.get(name, version) != version
    ]
    return f"made with {'; '.join(told)}" if told else ""


def quieten() -> None:
    """Tell warnings of our own as talk, and none of other packages, which a user can do nothing about.

    Asked for by `python -W` or PYTHONWARNINGS, everything is shown. An error is none of this: it is always told.
    """
    if sys.warnoptions:
        return

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
        if Path(filename).is_relative_to(HOME) and Path(filename).relative_to(HOME).parts[0] in OURS:
            from flows.stage import say

            say(f"note: {message}")

    warnings.simplefilter("default")
    warnings.showwarning = show
