"""Continual tuning by a schedule, which a Prefect server on this machine keeps."""

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
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flows import EntrypointType
from prefect.settings import PREFECT_API_URL

from flows.continual import advance
from flows.stage import format_error, say
from tasks.artifacts.locks import locked

LOCK = Path(".cache/serve.lock")
GRACE = 5  # seconds that an interrupted run has to end by itself
HERE = ("127.0.0.1", "localhost", "::1")
START = (
    "run `prefect server start` in another terminal, and here `export PREFECT_API_URL=http://127.0.0.1:4200/api` first"
)


class ServerError(ValueError):
    """A schedule cannot be kept."""


@flow(name="tamis continue", validate_parameters=False)
def scheduled(runner: str, workers: int) -> list[str]:
    """Run `advance` once, as a schedule starts it; returns what it recorded."""
    try:
        return advance(runner=runner, workers=workers)
    except Exception as error:
        say(f"error: {format_error(error)}")
        raise


def serve(interval: int, *, runner: str = "threads", workers: int = 1) -> None:
    """Call `advance` every so often, one call at a time and each in a process of its own, until interrupted.

    A call that falls due while another one is at work follows it, and finds nothing to do.

    Args:
        interval: seconds from one start to the next.
        runner: `threads` or `dask`, which runs the shards.
        workers: how many shards run at once.

    Raises:
        ServerError: there is no Prefect server on this machine, or the project is served already.
    """
    refuse_no_server()
    with _only_one():
        delete_schedule()  # what a process left that was killed
        signal.signal(signal.SIGINT, _stop)
        warnings.filterwarnings("ignore", "coroutine 'Runner.astop'", RuntimeWarning)  # Prefect's own, at SIGTERM
        say(f"looking for new data versions every {interval} seconds; Ctrl-C stops")
        try:
            scheduled.serve(
                name=deployment_name(),
                interval=interval,
                limit=1,
                parameters={"runner": runner, "workers": workers},
                pause_on_shutdown=False,
                print_starting_message=False,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        finally:
            delete_schedule()
            say("stopped")


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
