"""Processes that run shards, one per device, each with a model of its own; threads of a run hand them their work.

One process drives one device: a model in memory is used by one pass at a time, so further threads would only wait. A
shard that asks no model (a part of a choice, say) stays in its thread.
"""

import os
import queue
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flows.stage import take_halvings

AUTO = "auto"
RUNNERS = ("threads", "dask")  # or the address of a Dask cluster's scheduler
VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # one of them is there where a CUDA or ROCm device may be


class WorkersError(ValueError):
    """A number of workers cannot be had, or one of them has died."""


def read_workers(asked: str) -> int | None:
    """Return a number of workers as it is written; None: as many as there are devices.

    >>> read_workers("2"), read_workers("auto")
    (2, None)
    """
    if asked == AUTO:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise WorkersError(f"{asked!r} is no number of workers; give auto, one per CUDA device, or a number from 1")
    return int(asked)


def read_runner(asked: str) -> str:
    """Return what is to run the shards, as it is written.

    >>> read_runner("tcp://10.0.0.1:8786")
    'tcp://10.0.0.1:8786'
    """
    if asked not in RUNNERS and "://" not in asked:
        known = f"{', '.join(RUNNERS)}, or the address of a Dask cluster's scheduler, such as tcp://HOST:8786"
        raise WorkersError(f"{asked!r} runs no shards; known: {known}")
    return asked


def list_devices() -> list[str]:
    """Return the CUDA devices that this process sees, as `CUDA_VISIBLE_DEVICES` names them; torch is imported where
    there may be one."""
    if not any(Path(path).exists() for path in DRIVERS):
        return []
    from tasks.models import count_devices  # and torch with it

    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return named or [str(number) for number in range(count_devices())]


def plan_workers(asked: str, device: str) -> list[str | None]:
    """Return for each worker the CUDA device that it sees; None: whatever this process sees.

    Args:
        asked: `auto`, one worker per device, or a number; more workers than devices share them.
        device: `models.device`, of which cpu leaves CUDA devices alone.
    """
    count, devices = read_workers(asked), [] if device == "cpu" else list_devices()
    count = max(1, len(devices)) if count is None else count
    return [devices[number % len(devices)] if devices else None for number in range(count)]


class Pool:
    """Worker processes, begun when first needed; of one worker there is no process but this one."""

    def __init__(self, devices: Sequence[str | None]) -> None:
        self._free: queue.Queue[_Worker] = queue.Queue()
        self._workers = [_Worker(device) for device in devices] if len(devices) > 1 else []
        self.size = len(devices)
        for worker in self._workers:
            self._free.put(worker)

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Return a function's result on an item; where that asks a model, on the next device that is free."""
        if not self._workers or getattr(item, "model", None) is None:
            return function(item)
        _forget_models()
        worker = self._free.get()
        try:
            return worker.run(function, item)
        finally:
            self._free.put(worker)

    def end(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()


@contextmanager
def opened(asked: str, device: str) -> Iterator[Pool]:
    """Keep workers for as long as the context lasts."""
    pool = Pool(plan_workers(asked, device))
    try:
        yield pool
    finally:
        pool.end()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, device: str | None) -> None:
        self.device = device
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Return what the function gives there, or raise what it raises."""
        if self._process is None:
            self._begin()
        try:
            self._pipe.send((function, item))
            result, halved, refused, told = self._pipe.recv()
        except (EOFError, ConnectionError) as gone:
            self._process.join(5)
            status = self._process.exitcode
            self.end()
            raise WorkersError(
                f"a worker{f' on device {self.device}' if self.device else ''} has died (exit status {status}); what "
                "it had finished is kept: run again, with fewer workers or a smaller runtime.pack_tokens where memory "
                "was short"
            ) from gone
        if told is not None:
            raise (ValueError if refused else RuntimeError)(told[0]) from WorkersError(told[1])
        if halved:
            sys.modules["tamis.memory"].add_halvings(halved)  # who made the item has imported it
        return result

    def end(self) -> None:
        """End the process, whatever it is at: what it writes is written whole or not at all."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _begin(self) -> None:
        ours, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(theirs, self.device), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours


def _serve(pipe: Connection, device: str | None) -> None:
    """Do what is asked over a pipe until it is closed."""
    if device is not None:
        os.environ[VISIBLE] = device  # before torch looks
    with suppress(EOFError):
        while True:
            function, item = pipe.recv()
            try:
                answer = function(item), take_halvings(), False, None
            except ValueError as error:
                answer = None, [], True, (str(error), traceback.format_exc())
            except Exception as error:
                answer = None, [], False, (f"{type(error).__name__}: {error}", traceback.format_exc())
            pipe.send(answer)


def _forget_models() -> None:
    """Let go of the models that this process holds: workers have their own, maybe on the same device."""
    models = sys.modules.get("tasks.models")
    if models is not None:
        models.forget()
