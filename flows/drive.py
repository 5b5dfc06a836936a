"""The stages of dvc.yaml in order, each brought up to date: what is done with Prefect and without it.

for each stage, what it reads first:
    fresh, or restored from the run-cache -> nothing to do
    else lock its paths, compute its shards, record; refused where its code was edited meanwhile
"""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flows import estimate, params
from flows.graph import dvc_state
from flows.graph.dvc_state import File
from flows.graph.stages import PARAMS, Planned, end_versions
from flows.late import tell_late
from flows.stage import counted, named, refuse_edited, say, sources
from flows.told import tell_outdated
from flows.workers import AUTO, opened
from tasks.artifacts.locks import locked

LOCK = Path(".cache/flow.lock")
LEFT_OVER = (".part", ".tmp")  # endings of files in the making
PAUSE = 2.0  # seconds between looks at a stage that another process holds

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[str, Sequence[str]], None]
Before = Mapping[str, Callable[[], None]]  # address -> what is done before that stage is looked at
Shards = Callable[..., Iterator[Any]]  # of a function, items and `label`: yields the results in order, with progress
Bring = Callable[[Planned, dict[str, str]], tuple[str, Sequence[File]]]


@dataclass(frozen=True)
class Outcome:
    """What was done about a stage."""

    address: str
    how: str  # computed | fresh | restored
    seconds: float
    files: tuple[File, ...]  # its artifacts, by reference


def run(
    versions: Sequence[str] = (), *, workers: str = AUTO, tell: Tell | None = None, before: Before | None = None
) -> list[Outcome]:
    """Bring some data versions up to date (all, where none is named) without Prefect, in this process and its threads.

    Args:
        versions: names from params.yaml.
        workers: how many shards run at once, `auto` or a number (flows/workers.py).
        tell: is given each version with its stages once all of these are up to date.
        before: what is done before some stages.
    """
    with on_threads(workers) as shards:
        return drive(versions, partial(_bring_patiently, shards=shards), tell, before)


@contextmanager
def on_threads(workers: str) -> Iterator[Shards]:
    """Yield what runs shards on threads of this process, and on a worker per device where there are several."""
    with opened(workers, name_device()) as pool, ThreadPoolExecutor(pool.size) as threads:

        def in_threads(function: Callable[[T], R], items: Sequence[T], *, label: str) -> Iterator[R]:
            return counted(threads.map(partial(pool.run, function), items), len(items), label=label)

        yield in_threads


def name_device() -> str:
    """Return `models.device` of params.yaml, which a graph without models need not have."""
    return (params.load(Path(PARAMS)).get("models") or {}).get("device", "auto")


def drive(
    versions: Sequence[str], bring_one: Bring, tell: Tell | None = None, before: Before | None = None
) -> list[Outcome]:
    """Bring every stage of some data versions up to date, one run per project at a time.

    Args:
        versions: names from params.yaml; all, where none is named.
        bring_one: brings a stage up to date; returns how, and references to its artifacts.
        tell: is given each version with its stages once all of these are up to date.
        before: what is done before some stages.
    """
    outcomes = []
    with alone():
        plan = dvc_state.plan(versions)
        ends = end_versions(plan)
        for line in tell_outdated(dvc_state.list_outdated(plan)):
            say(line)
        loaded = sources(planned.address for planned in plan)  # no stage's module is imported yet
        expected = estimate.try_estimate(plan)
        estimate.print_estimate(expected)
        clock = estimate.start_clock(expected)
        for planned in plan:
            start = time.monotonic()
            with named(planned.address):
                if before and planned.address in before:
                    before[planned.address]()
                how, files = bring_one(planned, loaded)
            outcomes.append(Outcome(planned.address, how, round(time.monotonic() - start, 1), tuple(files)))
            clock = estimate.end_stage(clock, planned.address, outcomes[-1].seconds, computed=how == "computed")
            say(f"{planned.address:<16} {how} in {outcomes[-1].seconds} s{estimate.tell_left(clock)}")
            if tell and planned.address in ends:
                tell(*ends[planned.address])
        dvc_state.record_whole()
        for line in tell_late(plan):
            say(line)
        estimate.learn(expected, [one.address for one in outcomes if one.how == "computed"])
    return outcomes


def bring(planned: Planned, loaded: Mapping[str, str], shards: Shards) -> tuple[str, list[File]]:
    """Bring one stage up to date; returns `fresh`, `restored` or `computed`, and references to its artifacts.

    Args:
        planned: the stage.
        loaded: digests of the modules, as this process has imported them or will.
        shards: runs a function over items.

    Raises:
        InputsChanged: a module, another file or a parameter of the stage was edited; nothing is recorded.
        Busy: another process is at work on the same paths.
    """
    clear_left(planned)
    found = dvc_state.probe(planned.address)
    if found.state != "stale":
        return found.state, dvc_state.files(planned.address)
    refuse_edited(planned.address, loaded)  # now, too: computing may take hours
    function, name, version = _implementation(planned)
    say(f"{planned.address:<16} computing")
    with dvc_state.claim(planned.address):
        function(name, version, map=partial(shards, label=planned.address))
        refuse_edited(planned.address, loaded)
        dvc_state.record(planned.address, found.inputs)
    return "computed", dvc_state.files(planned.address)


def clear_left(planned: Planned) -> None:
    """Delete what a crash left beside a stage's artifacts: files in the making, ours and DVC's, that nobody makes."""
    places = {Path(path).parent for path in planned.outputs}
    left = [path for place in places for path in place.glob(".*") if path.suffix in LEFT_OVER]
    if left:
        with suppress(dvc_state.Busy), dvc_state.claim(planned.address):
            for path in left:
                path.unlink(missing_ok=True)


def tell_waiting(address: str, error: dvc_state.Busy) -> None:
    """Say that a stage waits for another process."""
    say(f"{address:<16} waiting for another process: {error}")


@contextmanager
def alone() -> Iterator[None]:
    """Hold the project's flow lock, waiting for it; the kernel frees it when the process ends, however it ends."""

    def tell() -> None:
        say(f"another flow runs in this project ({LOCK.read_text(encoding='utf-8', errors='replace')}): waiting for it")

    with locked(LOCK, waiting=tell):
        LOCK.write_text(f"process {os.getpid()}: {' '.join(sys.argv)[:80]}", encoding="utf-8")
        yield


def _bring_patiently(planned: Planned, loaded: Mapping[str, str], shards: Shards) -> tuple[str, list[File]]:
    """Bring a stage up to date, waiting for a process that is at work on it."""
    told = False
    while True:
        try:
            return bring(planned, loaded, shards)
        except dvc_state.Busy as error:
            if not told:
                tell_waiting(planned.address, error)
            told = True
            time.sleep(PAUSE)


def _implementation(planned: Planned) -> tuple[Callable[..., None], str, str]:
    """Return the function that a stage's command runs, and its two arguments."""
    words = planned.command.split()
    if len(words) != 5 or words[1] != "-m":
        raise dvc_state.StateError(
            f"{planned.address} runs {planned.command!r}; dvc.yaml's commands read `python -m MODULE NAME VERSION`"
        )
    return importlib.import_module(words[2]).run, words[3], words[4]
