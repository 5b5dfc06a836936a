"""The flow: the stages of dvc.yaml as Prefect tasks, in the order of flows/drive.py; their only cache is DVC."""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import drive, prefect_server
from flows.drive import Before, Outcome, Shards, Tell, bring, name_device, tell_waiting
from flows.graph.dvc_state import Busy, File
from flows.graph.stages import Planned
from flows.publishing import publish
from flows.stage import counted, say, take_halvings
from flows.workers import AUTO, RUNNERS, Pool, opened, read_runner, read_workers

SHARD_TASKS = 64  # per stage: the local server's limit is about 100 task runs per flow
THREADS = RUNNERS[0]  # of this process
CACHED = "dvc: "  # before how, in the message of a state

T = TypeVar("T")
R = TypeVar("R")


class RunnerError(ValueError):
    """A task runner cannot be had."""


@dataclass(frozen=True)
class Told:
    """What is done beside the stages."""

    tell: Tell | None = None  # is given each version with its stages once all of these are up to date
    before: Before | None = None  # what is done before some stages
    pool: Pool | None = None  # that runs shards; None: they run where Prefect puts them


def run(
    versions: Sequence[str] = (),
    *,
    runner: str = "threads",
    workers: str = AUTO,
    tell: Tell | None = None,
    before: Before | None = None,
) -> list[Outcome]:
    """Run the flow for some data versions (all, where none is named), one flow per project at a time.

    Args:
        versions: names from params.yaml.
        runner: what runs the shards: `threads`, `dask`, or the address of a Dask cluster's scheduler.
        workers: how many shards run at once, `auto` or a number (flows/workers.py); a cluster has its own.
        tell: is given each version with its stages once all of these are up to date.
        before: what is done before some stages.
    """
    quick = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})  # it would cost a second at the end
    told, made = set(), []

    def tell_once(version: str, stages: Sequence[str]) -> None:
        if tell and version not in told:
            told.add(version)
            tell(version, stages)

    try:
        with opened(workers if runner == THREADS else "1", name_device()) as pool:
            chosen = pipeline.with_options(task_runner=_runner(runner, read_workers(workers) or pool.size))
            with prefect_server.kept(), quick:
                return chosen(list(versions), Told(tell_once, before, pool if runner == THREADS else None), made)
    except httpx.TransportError as error:
        if not _asks_server(error):
            raise  # a stage asked somebody else, a model hub for one
        say(f"the Prefect server is gone ({error}): its page does not show all of this run; what is recorded stands")
        return made or drive.run(versions, workers=workers, tell=tell_once, before=before)


@flow(name="tamis", validate_parameters=False)
def pipeline(versions: list[str], told: Told | None = None, made: list[Outcome] | None = None) -> list[Outcome]:
    """Bring every stage of some data versions up to date.

    Args:
        versions: names from params.yaml; all, where none is named.
        told: what is done besides.
        made: takes the outcomes, too, once all stages have one, whatever becomes of Prefect after that.
    """
    prefect_server.remember()
    told = told or Told()
    shards = partial(in_shards, pool=told.pool)  # a callable: Prefect does not look into it
    states: dict[str, State] = {}

    def bring_one(planned: Planned, loaded: dict[str, str]) -> tuple[str, list[File]]:
        upstream = [states[address] for address in planned.upstream if address in states]
        run_stage = stage.with_options(name=planned.address, task_run_name=planned.address)
        state = states[planned.address] = run_stage(planned, loaded, shards, wait_for=upstream, return_state=True)
        files = state.result()
        return (state.message or "").removeprefix(CACHED) if state.name == "Cached" else "computed", files

    outcomes = drive.drive(versions, bring_one, told.tell, told.before)
    if made is not None:
        made.extend(outcomes)
    return outcomes


def _wait(task: Any, run: Any, state: State) -> bool:
    """Return whether a stage failed because `dvc repro` is at work on it; it is then tried again."""
    busy = isinstance(state.data, Busy)
    if busy and run.run_count <= 1:
        tell_waiting(run.name, state.data)
    return busy


@task(cache_policy=NO_CACHE, persist_result=False, retries=7200, retry_delay_seconds=2, retry_condition_fn=_wait)
def stage(planned: Planned, loaded: dict[str, str], shards: Shards) -> Any:
    """Bring one stage up to date, as `drive.bring` does; returns references to its artifacts."""
    how, files = bring(planned, loaded, shards)
    if how != "fresh" and not prefect_server.is_gone():  # of which is told at the end
        publish(planned, how, files)
    return files if how == "computed" else Completed(name="Cached", message=f"{CACHED}{how}", data=files)


@task(cache_policy=NO_CACHE, persist_result=False)
def shard(work: Callable[[], R]) -> R:
    """Run a shard."""
    return work()


def in_shards(function: Callable[[T], R], items: Sequence[T], *, label: str, pool: Pool | None = None) -> Iterator[R]:
    """Run a function over items on the flow's task runner; yields the results in order, with progress.

    Neighbouring items share a task run where there are more than `SHARD_TASKS`.
    """
    size = max(1, -(-len(items) // SHARD_TASKS))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if pool is not None:
        function = partial(pool.run, function)
    piece = shard.with_options(name=f"{label} shard")
    each = partial(_each, function, driver=_name_process())
    futures = [piece.submit(partial(each, chunk)) for chunk in chunks]  # one callable: nobody looks into it
    results = (result for future in futures for result in _take(future.result()))
    yield from counted(results, len(items), label=label)


def _asks_server(error: httpx.TransportError) -> bool:
    """Return whether it was the Prefect server that could not be reached."""
    try:
        host = error.request.url.host
    except RuntimeError:  # it does not say
        return True
    return host in ("127.0.0.1", "localhost", urlsplit(PREFECT_API_URL.value() or "").hostname)


def _each(function: Callable[[T], R], items: Sequence[T], *, driver: str) -> tuple[list[R], list[Any]]:
    """Return what a function gives for each item, and what memory made another process than the driver halve."""
    results = [function(item) for item in items]
    return results, take_halvings() if _name_process() != driver else []


def _take(answer: tuple[list[R], list[Any]]) -> list[R]:
    """Return the results of a shard; what another process halved in it is for the stage's record."""
    results, halved = answer
    if halved:
        sys.modules["tamis.memory"].add_halvings(halved)  # who made the items has imported it
    return results


def _name_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _runner(name: str, workers: int) -> TaskRunner[Any]:
    if read_runner(name) == THREADS:
        return ThreadPoolTaskRunner(max_workers=workers)
    if not PREFECT_API_URL.value():
        raise RunnerError(
            "the dask runner needs a Prefect server: run `prefect server start` in another terminal, "
            "and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise RunnerError("the dask runner is not installed; `pip install prefect-dask`") from error
    if name != "dask":
        return DaskTaskRunner(address=name)
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 40}
    return DaskTaskRunner(cluster_kwargs=local)
