"""Questions in SQL to a project's catalogue: `tamis sql`, and whoever else asks."""

import math
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb

from tasks.artifacts.views import opened
from tasks.catalogue.sources import Artifacts, find_artifacts

READING = ("SELECT", "MULTI")  # kinds of statement that are let through; MULTI: PIVOT, whose columns come of a query
TICK = 0.1  # seconds between two looks at what a question takes
GRACE = 2.0  # seconds in which DuckDB stops once its time is up; within a function over a long list it hears nothing
BATCH = 2048  # rows that are fetched at once, as DuckDB makes them
STARTS = {"select", "from", "with", "pivot", "unpivot", "describe", "summarize", "show", "values", "table", "("}


class QuestionError(ValueError):
    """A question cannot be answered."""


@dataclass(frozen=True)
class Limits:
    """What a question may take."""

    seconds: float = 60.0
    gigabytes: float = 4.0  # of memory: of the database, and again of the answer
    rows: int = 1_000_000  # of the answer

    def __post_init__(self) -> None:
        """Raise QuestionError where one of them is no limit."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise QuestionError(f"{value} {name} is no limit of a question; give a number above 0")


def query(
    root: Path,
    sql: str,
    versions: Mapping[str, Mapping[str, str]] | None = None,
    limits: Limits = Limits(),
    *,
    overrun: Callable[[str], object] | None = None,
) -> tuple[list[str], list[tuple]]:
    """Answer a question in SQL about the artifacts of a project; returns the columns' names and the rows.

    Args:
        root: the project's folder.
        sql: one statement that reads.
        versions: the data versions of params.yaml, for the view `versions`.
        limits: of seconds, memory and rows.
        overrun: called with the error's text, from another thread, where DuckDB goes on GRACE seconds after the limit,
            or takes memory that it does not count: a process that does nothing but ask can end there, which is the only
            thing that stops it.

    Raises:
        QuestionError: not one reading statement, a mistake in it, a way to something else than the artifacts, a broken
            artifact, or more than the limits allow.
        ArtifactError: there are no artifacts.
    """
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise QuestionError(f"the question is no text in UTF-8: {error}") from None
    found = find_artifacts(root, versions, asked=sql)
    with opened(found.views, derived=found.derived, gigabytes=limits.gigabytes) as connection:
        ended, done = threading.Event(), threading.Event()
        watch = threading.Thread(target=_watch, args=(connection, ended, done, limits, overrun), daemon=True)
        watch.start()
        try:
            answer = connection.execute(_refuse_writing(connection, sql))
            names, rows = [column[0] for column in answer.description], _fetch(answer, ended, limits)
        except duckdb.Error as error:
            raise QuestionError(_explain(error, found, ended.is_set(), limits)) from None
        finally:
            done.set()
            watch.join()
    if ended.is_set():
        raise QuestionError(_tell_late(limits))
    return names, rows


def _watch(
    connection: duckdb.DuckDBPyConnection,
    ended: threading.Event,
    done: threading.Event,
    limits: Limits,
    overrun: Callable[[str], object] | None,
) -> None:
    """End a question whose time is up; where it cannot be ended, or takes far more memory, call `overrun`.

    Args:
        connection: that is asked.
        ended: set where the time was up.
        done: set by who asks once there is an answer, or none.
        limits: of the question.
        overrun: as of `query`.
    """
    start, before = time.monotonic(), _peak()
    while not done.wait(TICK):
        seconds = time.monotonic() - start
        if seconds > limits.seconds and not ended.is_set():
            ended.set()
            connection.interrupt()
        if overrun is not None and seconds > limits.seconds + GRACE:
            overrun(_tell_late(limits))
        if overrun is not None and _peak() - before > 2 * limits.gigabytes * 1e9:  # of the database and of the answer
            overrun(_tell_large(limits))


def _peak() -> int:
    """Return the most memory, in bytes, that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fetch(answer: duckdb.DuckDBPyConnection, ended: threading.Event, limits: Limits) -> list[tuple]:
    """Return the rows of an answer, which are counted while they come: what is fetched is no memory of DuckDB's.

    Raises:
        QuestionError: more than the limits allow.
    """
    rows, taken = [], 0
    while not ended.is_set() and (some := answer.fetchmany(BATCH)):
        rows += some
        taken += _weigh(chain.from_iterable(some))
        if len(rows) > limits.rows:
            raise QuestionError(f"the answer has more than {limits.rows:,} rows; ask for fewer, with LIMIT or WHERE")
        if taken > limits.gigabytes * 1e9:
            raise QuestionError(_tell_large(limits))
    return rows


def _weigh(values: Iterable[Any]) -> int:
    """Return about how many bytes values take, with what is in them.

    >>> _weigh(["x" * 1000, ["y" * 1000, {"z" * 1000: None}]]) > 3000
    True
    """
    every = list(values)
    size = sum(map(sys.getsizeof, every))
    for value in every:
        if isinstance(value, (list, tuple, dict)):
            size += _weigh(chain(value, value.values()) if isinstance(value, dict) else value)
    return size


def _refuse_writing(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Return the one statement of a text, if it reads; of one that is explained, what is explained must read."""
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if len(kinds) == 1:
        words = [word for _, word in _list_words(sql)]
        first = words[0] if words else ""
        if kinds[0] == "EXPLAIN":
            _refuse_writing(connection, _cut_explain(sql))
            return statements[0]
        if kinds[0] in READING and first in STARTS:
            return statements[0]
    told = f"a text of {len(kinds)} statements" if len(kinds) > 1 else kinds[0] if kinds else "an empty text"
    raise QuestionError(
        f"{told} is not answered: one statement is, and one that reads, such as SELECT, FROM, "
        "WITH, PIVOT, DESCRIBE, SUMMARIZE or SHOW TABLES"
    )


def _cut_explain(sql: str) -> str:
    """Return the statement that is explained.

    >>> _cut_explain("/* a */ EXPLAIN (ANALYZE, FORMAT json) FROM subset")
    'FROM subset'
    """
    starts, words = map(list, zip(*_list_words(sql), strict=True))
    place = 1
    if words[place : place + 1] == ["analyze"]:
        place += 1
    elif (
        words[place : place + 1] == ["("] and words[place + 1 : place + 2] and words[place + 1] in ("analyze", "format")
    ):
        place = words.index(")") + 1 if ")" in words else len(words)
    return sql.encode()[starts[place] :].decode() if place < len(starts) else ""


def _list_words(sql: str) -> list[tuple[int, str]]:
    """Return where the tokens of a text begin, in bytes of UTF-8 as DuckDB counts them, and each one's first word.

    >>> _list_words("/* für Köln */ SELECT 1")
    [(17, 'select'), (24, '1')]
    """
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    return [
        (start, re.match(r"\w+|.", text[start : start + 64].decode(errors="replace"), re.DOTALL)[0].lower())
        for start in starts
    ]


def _tell_late(limits: Limits) -> str:
    return f"no answer within {limits.seconds:g} s; ask for less, with WHERE, LIMIT or fewer joins"


def _tell_large(limits: Limits) -> str:
    return f"the answer takes more than {limits.gigabytes:g} GB of memory; ask for less, with WHERE or fewer joins"


def _explain(error: duckdb.Error, found: Artifacts, late: bool, limits: Limits) -> str:
    """Return why a question was not answered."""
    if late:
        return _tell_late(limits)
    if isinstance(error, duckdb.OutOfMemoryException):
        return _tell_large(limits)
    told = [
        str(error),
        f"`tamis sql` reads these views and nothing else: {', '.join(sorted({*found.views, *found.derived}))}",
    ]
    told += [f"{name} cannot be read: {why}" for name, why in found.broken.items()]
    return "\n".join(told)
