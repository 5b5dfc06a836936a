"""The environment that Prefect and DVC are run in, set before either is imported; what the user has set wins.

Offline, quiet, and with batches that keep the local server's SQLite file from stalling after a flow of many tasks.
"""

import hashlib
import os
import platform

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # errors are said once, by the command; the server keeps logs
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
}


def prepare() -> None:
    """Set every default that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def name_machine() -> str:
    """Return a short name of this machine that does not tell its own: a run elsewhere says nothing of seconds here."""
    return hashlib.sha256(f"{platform.node()} {os.cpu_count()}".encode()).hexdigest()[:8]
