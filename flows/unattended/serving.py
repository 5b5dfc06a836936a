"""Continual tuning by a schedule, which a Prefect server on this machine keeps."""

import asyncio
import hashlib
import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flows import EntrypointType
from prefect.schedules import Cron, Interval, Schedule
from prefect.settings import PREFECT_API_URL

from flows.stage import format_error, say
from flows.unattended.continual import advance
from tasks.artifacts.locks import locked

LOCK = Path(".cache/serve.lock")
HOUR = 3600
ARTIFACT = "tamis-versions"
GRACE = 5  # seconds that an interrupted run has to end by itself
HERE = ("127.0.0.1", "localhost", "::1")
START = (
    "run `prefect server start` in another terminal, and here `export PREFECT_API_URL=http://127.0.0.1:4200/api` first"
)


class ServerError(ValueError):
    """A schedule cannot be kept."""


@flow(name="tamis continue", validate_parameters=False)
def scheduled(runner: str, workers: str) -> list[str]:
    """Run `advance` once, as a schedule starts it; returns what it recorded.

    What became of each version is an artifact on Prefect's page; the run fails where one was not recorded.
    """
    outcomes: list[dict[str, Any]] = []
    try:
        return advance(runner=runner, workers=workers, tell=outcomes.append)
    except Exception as error:
        say(f"error: {format_error(error)}")
        raise
    finally:
        if outcomes:
            rows = [{name: outcome[name] for name in ("version", "state", "why")} for outcome in outcomes]
            create_table_artifact(rows, key=ARTIFACT, description="data versions of this run")


def serve(
    interval: int | None = None, cron: str | None = None, *, runner: str = "threads", workers: str = "auto"
) -> None:
    """Call `advance` every so often, one call at a time and each in a process of its own, until interrupted.

    A call that falls due while another one is at work follows it, and finds nothing to do.

    Args:
        interval: seconds from one start to the next; where neither is given, an hour.
        cron: or the times of the starts, in the server's time zone, as in a crontab.
        runner: what runs the shards: `threads`, `dask`, or the address of a Dask cluster's scheduler.
        workers: how many shards run at once, `auto` or a number (flows/workers.py).

    Raises:
        ServerError: there is no Prefect server on this machine, or the project is served already; both times are given,
            or some that are none.
    """
    schedule, when = plan_schedule(interval, cron)
    refuse_no_server()
    with _only_one():
        delete_schedule()  # what a process left that was killed
        signal.signal(signal.SIGINT, _stop)
        warnings.filterwarnings("ignore", "coroutine 'Runner.astop'", RuntimeWarning)  # Prefect's own, at SIGTERM
        say(f"looking for new data versions {when}; Ctrl-C stops")
        try:
            scheduled.serve(
                name=deployment_name(),
                schedule=schedule,
                limit=1,
                parameters={"runner": runner, "workers": workers},
                pause_on_shutdown=False,
                print_starting_message=False,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        finally:
            delete_schedule()
            say("stopped")


def plan_schedule(interval: int | None, cron: str | None) -> tuple[Schedule, str]:
    """Return a schedule of Prefect's, and when it looks, in words.

    Raises:
        ServerError: both are given, or no times of a crontab, or some that never come.

    >>> plan_schedule(None, "0 3 * * *")[1], plan_schedule(None, None)[1]
    ("at the times '0 3 * * *'", 'every 3600 seconds')
    """
    if interval is not None and cron is not None:
        raise ServerError(f"--interval {interval} and --cron {cron!r} are given; give one of them")
    if cron is None:
        seconds = HOUR if interval is None else interval
        return Interval(seconds), f"every {seconds} seconds"
    try:
        schedule = Cron(cron)
    except ValueError as error:
        raise ServerError(f"--cron {cron!r} are no times of a crontab; as '0 3 * * *', every night at three") from error
    if not _comes(cron):
        raise ServerError(f"--cron {cron!r} are times that never come; as '0 3 * * *', every night at three")
    return schedule, f"at the times {cron!r}"


def _comes(cron: str) -> bool:
    """Return whether the server finds a next time of a crontab, as it does not for the 31st of February."""
    from prefect.server.schemas.schedules import CronSchedule

    try:
        return bool(asyncio.run(CronSchedule(cron=cron).get_dates(1)))
    except ValueError:
        return False


def delete_schedule() -> None:
    """Delete the project's schedule, if there is one, with all its runs that have not started.

    Prefect's own pause at shutdown is lost at Ctrl-C, and the runs that fall due until the next start would all follow.
    """
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(f"{scheduled.name}/{deployment_name()}").id)


def _stop(*signalled: Any) -> None:
    """Wait a little for the run at work, which Ctrl-C reaches as well, end it, and stop.

    Prefect would wait for it without end; a second signal too soon would break into DVC's writing of its locks.
    """
    for process in multiprocessing.active_children():
        process.join(GRACE)
        process.terminate()
    raise KeyboardInterrupt


@contextmanager
def _only_one() -> Iterator[None]:
    with locked(LOCK, refusal=ServerError("`tamis serve` is at work in this project already; stop it first")):
        yield


def deployment_name() -> str:
    """Return the name under which the server knows the project in the current folder, and no other one."""
    folder = Path.cwd()
    return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def refuse_no_server() -> None:
    """Raise ServerError where no Prefect server on this machine answers."""
    url = PREFECT_API_URL.value()
    if not url:
        raise ServerError(f"a schedule needs a Prefect server: {START}")
    if urlsplit(url).hostname not in HERE:
        raise ServerError(f"PREFECT_API_URL is {url}, on another machine; a schedule is kept by one on this: {START}")
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise ServerError(f"no Prefect server answers at {url} ({type(problem).__name__}): {START}")
