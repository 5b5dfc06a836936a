"""Artifacts opened to questions in SQL: views that Arrow streams from Parquet, in a database that can do nothing else.

DuckDB has no way of its own to a file or the network: a question can read these views and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from tasks.artifacts import tables

LOCKS = (
    "SET enable_progress_bar = false",
    "SET python_enable_replacements = false",  # no variables of this program as tables
    "SET temp_directory = ''",
    "SET enable_external_access = false",  # no files, no network, no extensions
    "SET lock_configuration = true",
)


def stream(paths: Sequence[Path], schema: pa.Schema | None = None) -> pads.Dataset:
    """Return an artifact in one or more versions, checked but not read yet; the column `version` is that of the path.

    Raises:
        ArtifactError: one of them is missing, was edited, or has other columns.
    """
    for path in paths:
        tables.check_table(path, schema)
    return open_checked(paths)


def open_checked(paths: Sequence[Path]) -> pads.Dataset:
    """Return an artifact likewise, of files that were checked before."""
    by_folder = pads.partitioning(pa.schema([("version", pa.string())]), flavor="hive")
    return pads.dataset([str(path) for path in paths], format="parquet", partitioning=by_folder)


@contextmanager
def opened(
    sources: Mapping[str, pa.Table | pads.Dataset],
    *,
    derived: Mapping[str, str] | None = None,
    gigabytes: float | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory with these views and nothing else, and lock it.

    Args:
        sources: tables by the names of their views.
        derived: queries over these by the names of their views, each of those before it.
        gigabytes: of memory that questions may take; None: what DuckDB takes.
    """
    with duckdb.connect(":memory:") as connection:
        for name, source in sources.items():
            connection.register(name, source)
        for name, sql in (derived or {}).items():
            connection.execute(f'CREATE VIEW "{name}" AS {sql}')
        memory = [f"SET memory_limit = '{gigabytes}GB'"] if gigabytes else []
        for lock in (*memory, *LOCKS):
            connection.execute(lock)
        yield connection


def ask(
    connection: duckdb.DuckDBPyConnection, sql: str, named: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of an answer, each by its columns' names.

    Args:
        connection: to a database.
        sql: one question.
        named: the values of its parameters.
    """
    answer = connection.execute(sql, dict(named or {}))
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
