"""Rows read by several processes at once: what a conversation is under a template takes most of the time.

Batches go out in order and come back in order, a few at a time, so that memory does not grow with the files. To start
takes the processes some seconds, in which they import what they need.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import pyarrow as pa

from tasks.examples.reading import Batch, Facts, Reader, read_batch
from tasks.first_look.figures import merge_facts

MOST = 8  # processes
AHEAD = 2  # batches per process that are on their way

_shared: dict[str, Reader] = {}  # in a process that reads: how


def read_in_processes(
    batches: Iterator[Batch], reader: Reader, facts: Facts, *, workers: int | None = None
) -> Iterator[pa.Table]:
    """Yield the good rows of batches as tables, and note in `facts` what there is to know of all, as `read_batch` does.

    Args:
        batches: of rows that follow those in `facts`.
        reader: how they are read.
        facts: what is known so far.
        workers: processes; None: one per core, at most MOST.
    """
    count, number = workers or min(MOST, len(os.sched_getaffinity(0))), facts.count
    waiting: deque[Future[tuple[list[pa.Table], Facts]]] = deque()
    with ProcessPoolExecutor(count, get_context("spawn"), _start, (reader,)) as pool:
        for batch in batches:
            waiting.append(pool.submit(_read, batch, number))
            number += len(batch.records)
            if len(waiting) > AHEAD * count:
                yield from _take(waiting, facts)
        while waiting:
            yield from _take(waiting, facts)


def _start(reader: Reader) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core is enough
    _shared["reader"] = reader


def _read(batch: Batch, number: int) -> tuple[list[pa.Table], Facts]:
    """Read a batch whose first row has a number."""
    facts = Facts(count=number)
    return list(read_batch(batch, _shared["reader"], facts)), facts


def _take(waiting: deque[Future[tuple[list[pa.Table], Facts]]], facts: Facts) -> Iterator[pa.Table]:
    tables, part = waiting.popleft().result()
    merge_facts(facts, part)
    yield from tables
