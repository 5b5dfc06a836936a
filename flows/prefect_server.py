"""The Prefect server that a run starts for itself: looked at before, closed to all others, and ended after a kill.

Prefect starts a server for a flow where none is named (`PREFECT_API_URL`). It would answer whoever reaches its port,
any web page in a browser on this machine among them, so it is started with a password that this process alone has, and
for all of its runs: Prefect lets it live until the process ends. A run that is killed leaves it behind; the next run in
the project ends it.
"""

import json
import os
import re
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import prefect
import psutil
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from flows.interrupts import list_descendants
from flows.stage import say

LEFT = Path(".cache/server.json")  # the server of the run at work, or of one that was killed
APP = "prefect.server.api.server:create_app"  # in its command
PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"  # in its environment
OWNER = re.compile(r"tamis:(\d+)-")  # how the password of a run's server begins
OTHERWISE = "or run without a server: --engine local"
RETRIES = 2  # of a request to a run's own server, after 2 and 4 seconds: nobody starts that again
PORT_TAKEN = 3  # exit status of a server whose port another one took: Prefect tries the next
PATIENCE = 5.0  # seconds that a locked database, or a server that is ended, is waited for

_owners: set[int] = set()  # this process, while a run of it has a server of its own


class PrefectError(ValueError):
    """Prefect cannot be used as it is set up."""


@contextmanager
def kept() -> Iterator[None]:
    """Refuse what Prefect could not start with, and let its own server, where it starts one, answer nobody else.

    Raises:
        PrefectError: its folder or its database cannot be used, its server ends as it starts, or the one that is named
            does not answer.
    """
    if PREFECT_API_URL.value():
        refuse_silent()
        yield
        return
    end_left()
    refuse_unusable()
    password = _draw_password(os.getpid())
    _owners.add(os.getpid())
    try:
        own = {PREFECT_SERVER_API_AUTH_STRING: password, PREFECT_API_AUTH_STRING: password}
        with temporary_settings({**own, PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
            _start()
            yield
    finally:
        _owners.discard(os.getpid())
        LEFT.unlink(missing_ok=True)


def _start() -> None:
    """Start the server of this process, unless it is there, and wait until it answers.

    Prefect itself would wait for two minutes for one that has ended.

    Raises:
        PrefectError: it ended, or does not answer in time.
    """
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return  # Prefect says what it lacks
    server, failed = _get_server(), []

    def wait() -> None:
        try:
            server.start()
        except Exception as error:
            failed.append(error)

    waiting = Thread(target=copy_context().run, args=(wait,), daemon=True)  # settings stand in the context
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.05)
        status = None if server.server_process is None else server.server_process.poll()
        if status not in (None, PORT_TAKEN):
            told = f"Prefect's server ended as it started, with exit status {status}"
            raise PrefectError(f"{told}; run again, {OTHERWISE}")
    if failed:
        raise PrefectError(f"Prefect's server does not start ({failed[0]}); run again, {OTHERWISE}") from failed[0]


def is_gone() -> bool:
    """Return whether the server of this process, if it has one of its own, has ended."""
    process = _get_server().server_process if os.getpid() in _owners else None
    return process is not None and process.poll() is not None


def _get_server() -> Any:
    """Return what Prefect starts this process's server by; there is one."""
    from prefect.server.api.server import SubprocessASGIServer  # which takes a second, and a named server needs not

    return SubprocessASGIServer()


@cache
def _draw_password(process: int) -> str:
    """Return the password of a process, the same whenever it is asked, with the process in it."""
    return f"tamis:{process}-{secrets.token_urlsafe(32)}"


def remember() -> None:
    """Note the server that was started for this run, if one was, for a run that comes after a kill of this one."""
    if os.getpid() not in _owners:
        return
    found = next((child for child in list_descendants() if APP in _read_command(child)), None)
    if found is not None:
        LEFT.parent.mkdir(exist_ok=True)
        LEFT.write_text(json.dumps({"process": found, "started": _read_start(found)}), encoding="utf-8")


def end_left() -> None:
    """End the server of a run that was killed, in this project or before it could note it, and of nobody else."""
    for process, started in {*_read_left(), *_find_orphans()}:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGTERM)
            end = time.monotonic() + PATIENCE
            while _read_start(process) == started and time.monotonic() < end:
                time.sleep(0.05)
            os.kill(process, signal.SIGKILL)
        say("ended the Prefect server that a killed run had left behind")
    LEFT.unlink(missing_ok=True)


def _read_left() -> Iterator[tuple[int, float]]:
    """Yield the process that is noted in this project, and when it was started, where it is a server still."""
    try:
        known = json.loads(LEFT.read_text(encoding="utf-8"))
        process, started = int(known["process"]), float(known["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if started and _read_start(process) == started and APP in _read_command(process):
        yield process, started


def _find_orphans() -> Iterator[tuple[int, float]]:
    """Yield the servers whose password is that of a run that is gone: one may be killed before it notes its server."""
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if APP in " ".join(one.cmdline()):
                owner = OWNER.match(one.environ().get(PASSWORD, ""))
                if owner and not psutil.pid_exists(int(owner[1])):
                    yield one.pid, one.create_time()


def refuse_silent() -> None:
    """Raise PrefectError where the server that is named does not answer."""
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise PrefectError(
            f"no Prefect server answers at {PREFECT_API_URL.value()} ({type(problem).__name__}); start it, unset "
            f"PREFECT_API_URL, {OTHERWISE}"
        )


def refuse_unusable() -> None:
    """Raise PrefectError where Prefect's folder or its SQLite file cannot be used."""
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".tamis-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PrefectError(
            f"PREFECT_HOME, {home}, cannot be written ({error.strerror}); allow it, name another folder, {OTHERWISE}"
        ) from error
    url = PREFECT_SERVER_DATABASE_CONNECTION_URL.value()
    path = Path(re.sub(r"^sqlite\+?\w*:///", "", url)) if url and url.startswith("sqlite") else home / "prefect.db"
    if (url and not url.startswith("sqlite")) or not path.exists():
        return
    try:
        _refuse_damaged(path)
    except (sqlite3.Error, OSError) as error:
        raise PrefectError(
            f"Prefect's database, {path}, cannot be used ({error}); move it away (it holds past runs, no result), "
            f"{OTHERWISE}"
        ) from error


def _refuse_damaged(path: Path) -> None:
    """Read and write a SQLite file in a transaction that is taken back; refuse one of a newer Prefect."""
    if not os.access(path, os.W_OK):
        raise PermissionError("it may not be written")
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" in tables:
            known = _list_migrations()
            for (version,) in connection.execute("SELECT version_num FROM alembic_version"):
                if known and version not in known:
                    raise sqlite3.DatabaseError(f"another Prefect than {prefect.__version__} made it")


def _list_migrations() -> set[str]:
    """Return the states of its tables that this Prefect knows."""
    folder = Path(prefect.__module_path__) / "server/database/_migrations/versions/sqlite"
    named = (re.search(r'^revision = "(\w+)"', path.read_text(), re.MULTILINE) for path in folder.glob("*.py"))
    return {found[1] for found in named if found}


def _read_command(process: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(process).cmdline())
    return ""


def _read_start(process: int) -> float:
    """Return when a process was started: its number is given to another one later; 0: there is none."""
    with suppress(psutil.Error):
        return psutil.Process(process).create_time()
    return 0.0
