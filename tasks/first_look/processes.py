"""Rows read by several processes at once: what a conversation is under a template takes most of the time.

Batches come back in the order in which they go out, and few are on their way, so that memory does not grow with the
files. To start takes a process some seconds, in which it imports what it needs; this one reads meanwhile, and after.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import pyarrow as pa

from tasks.examples.reading import Batch, Facts, Reader, read_batch
from tasks.first_look.figures import merge_facts

MOST = 8  # processes beside this one
AHEAD = 2  # batches per process that are on their way
KEPT = 64  # batches that wait for an earlier one

Part = tuple[list[pa.Table], Facts]
_shared: dict[str, Reader] = {}  # in a process that reads: how


def read_in_processes(
    batches: Iterator[Batch], reader: Reader, facts: Facts, *, workers: int | None = None
) -> Iterator[pa.Table]:
    """Yield the good rows of batches as tables, and note in `facts` what there is to know of all, as `read_batch` does.

    Args:
        batches: of rows that follow those in `facts`.
        reader: how they are read.
        facts: what is known so far.
        workers: processes beside this one; None: a core each, at most MOST.
    """
    count, number = workers or min(MOST, max(1, len(os.sched_getaffinity(0)) - 1)), facts.count
    waiting: deque[Future[Part]] = deque()
    with ProcessPoolExecutor(count, get_context("spawn"), _start, (reader,)) as pool:
        for batch in batches:
            if sum(not one.done() for one in waiting) < AHEAD * count:
                waiting.append(pool.submit(_read_there, batch, number))
            else:
                waiting.append(Future())
                waiting[-1].set_result(_read(batch, reader, number))
            number += len(batch.records)
            while waiting and (waiting[0].done() or len(waiting) > KEPT):
                yield from _take(waiting, facts)
        while waiting:
            yield from _take(waiting, facts)


def _start(reader: Reader) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core is enough
    _shared["reader"] = reader


def _read_there(batch: Batch, number: int) -> Part:
    return _read(batch, _shared["reader"], number)


def _read(batch: Batch, reader: Reader, number: int) -> Part:
    """Read a batch whose first row has a number."""
    facts = Facts(count=number)
    return list(read_batch(batch, reader, facts)), facts


def _take(waiting: deque[Future[Part]], facts: Facts) -> Iterator[pa.Table]:
    tables, part = waiting.popleft().result()
    merge_facts(facts, part)
    yield from tables
