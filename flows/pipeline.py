"""The flow: the stages of dvc.yaml in order, each a Prefect task whose only cache is DVC.

for each stage, what it reads first:
    fresh, or restored from the run-cache -> Cached
    else lock its paths, compute its shards on the task runner, record; refused where its code was edited meanwhile
"""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import estimate
from flows.graph import dvc_state
from flows.graph.dvc_state import File
from flows.graph.stages import Planned, end_versions
from flows.stage import counted, named, refuse_edited, say, sources
from flows.told import tell_outdated
from tasks.artifacts.locks import locked

LOCK = Path(".cache/flow.lock")
SHARD_TASKS = 64  # per stage: the local server's limit is about 100 task runs per flow

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[str, Sequence[str]], None]


class RunnerError(ValueError):
    """A task runner cannot be had."""


@dataclass(frozen=True)
class Outcome:
    """What a flow did about a stage."""

    address: str
    how: str  # computed | fresh | restored
    seconds: float
    files: tuple[File, ...]  # its artifacts, by reference


def run(
    versions: Sequence[str] = (), *, runner: str = "threads", workers: int = 1, tell: Tell | None = None
) -> list[Outcome]:
    """Run the flow for some data versions (all, where none is named), one flow per project at a time.

    Args:
        versions: names from params.yaml.
        runner: `threads` or `dask`, which runs the shards.
        workers: how many shards run at once.
        tell: is given each version with its stages once all of these are up to date.
    """
    chosen = pipeline.with_options(task_runner=_runner(runner, workers))
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # it would cost a second at the end
        return chosen(list(versions), tell)


@flow(name="tamis", validate_parameters=False)
def pipeline(versions: list[str], tell: Tell | None = None) -> list[Outcome]:
    """Bring every stage of some data versions up to date."""
    states: dict[str, State] = {}
    outcomes = []
    with alone():
        plan = dvc_state.plan(versions)
        ends = end_versions(plan)
        for line in tell_outdated(dvc_state.list_outdated(plan)):
            say(line)
        loaded = sources(planned.address for planned in plan)  # no stage's module is imported yet
        expected = estimate.try_estimate(versions)
        estimate.print_estimate(expected)
        clock = estimate.start_clock(expected)
        for planned in plan:
            start = time.monotonic()
            upstream = [states[address] for address in planned.upstream if address in states]
            bring = stage.with_options(name=planned.address, task_run_name=planned.address)
            state = states[planned.address] = bring(planned, loaded, wait_for=upstream, return_state=True)
            with named(planned.address):
                files = state.result()
            how = (state.message or "").removeprefix("dvc: ") if state.name == "Cached" else "computed"
            outcomes.append(Outcome(planned.address, how, round(time.monotonic() - start, 1), tuple(files)))
            clock = estimate.end_stage(clock, planned.address, outcomes[-1].seconds, computed=how == "computed")
            say(f"{planned.address:<16} {how} in {outcomes[-1].seconds} s{estimate.tell_left(clock)}")
            if tell and planned.address in ends:
                tell(*ends[planned.address])
        dvc_state.record_whole()
        estimate.learn(expected, [one.address for one in outcomes if one.how == "computed"])
    return outcomes


def _wait(task: Any, run: Any, state: State) -> bool:
    """Return whether a stage failed because `dvc repro` is at work on it; it is then tried again."""
    busy = isinstance(state.data, dvc_state.Busy)
    if busy and run.run_count <= 1:
        say(f"{run.name:<16} waiting for another process: {state.data}")
    return busy


@task(cache_policy=NO_CACHE, persist_result=False, retries=7200, retry_delay_seconds=2, retry_condition_fn=_wait)
def stage(planned: Planned, loaded: dict[str, str]) -> Any:
    """Bring one stage up to date; returns references to its artifacts.

    Args:
        planned: the stage.
        loaded: digests of the modules, as this process has imported them or will.

    Raises:
        InputsChanged: a module, another file or a parameter of the stage was edited; nothing is recorded.
    """
    found = dvc_state.probe(planned.address)
    if found.state != "stale":
        return Completed(name="Cached", message=f"dvc: {found.state}", data=dvc_state.files(planned.address))
    refuse_edited(planned.address, loaded)  # now, too: computing may take hours
    function, name, version = _implementation(planned)
    say(f"{planned.address:<16} computing")
    with dvc_state.claim(planned.address):
        function(name, version, map=partial(in_shards, label=planned.address))
        refuse_edited(planned.address, loaded)
        dvc_state.record(planned.address, found.inputs)
    return dvc_state.files(planned.address)


@task(cache_policy=NO_CACHE, persist_result=False)
def shard(work: Callable[[], list[R]]) -> list[R]:
    """Run a shard."""
    return work()


def in_shards(function: Callable[[T], R], items: Sequence[T], *, label: str) -> Iterator[R]:
    """Run a function over items on the flow's task runner; yields the results in order, with progress.

    Neighbouring items share a task run where there are more than `SHARD_TASKS`.
    """
    size = max(1, -(-len(items) // SHARD_TASKS))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    piece = shard.with_options(name=f"{label} shard")
    futures = [piece.submit(partial(_each, function, chunk)) for chunk in chunks]  # one callable: nobody looks into it
    results = (result for future in futures for result in future.result())
    yield from counted(results, len(items), label=label)


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


@contextmanager
def alone() -> Iterator[None]:
    """Hold the project's flow lock, waiting for it; the kernel frees it when the process ends, however it ends."""
    with locked(LOCK, waiting=partial(say, "another flow runs in this project: waiting for it")):
        yield


def _implementation(planned: Planned) -> tuple[Callable[..., None], str, str]:
    """Return the function that a stage's command runs, and its two arguments."""
    words = planned.command.split()
    if len(words) != 5 or words[1] != "-m":
        raise dvc_state.StateError(
            f"{planned.address} runs {planned.command!r}; dvc.yaml's commands read `python -m MODULE NAME VERSION`"
        )
    return importlib.import_module(words[2]).run, words[3], words[4]


def _runner(name: str, workers: int) -> TaskRunner[Any]:
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if name != "dask":
        raise RunnerError(f"unknown runner {name!r}; known: threads, dask")
    if not PREFECT_API_URL.value():
        raise RunnerError(
            "the dask runner needs a Prefect server: run `prefect server start` in another terminal, "
            "and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise RunnerError("the dask runner is not installed; `pip install prefect-dask`") from error
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 40}
    return DaskTaskRunner(cluster_kwargs=local)
