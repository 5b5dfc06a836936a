"""The artifacts opened to people's questions: `tamis sql` and `tamis show`.

DuckDB sees each artifact as a view that Arrow streams from Parquet, and has no way of its own to a file or the network:
a question can read these views and nothing else, write nothing, and take no more time, memory and rows than `Limits`.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from tasks.artifacts import tables
from tasks.artifacts.remembered import remember

SHOWN = 3  # examples that an error suggests
BASE = "base"  # stands for no version
CHECKED = Path(".cache/checked.json")  # of a project: tables whose digests were found right
BEST = 5  # demos and targets that `show` names
READING = ("SELECT", "MULTI")  # kinds of statement that are let through; MULTI: PIVOT, whose columns come of a query
STARTS = {"select", "from", "with", "pivot", "unpivot", "describe", "summarize", "show", "values", "table", "("}
LOCKS = (
    "SET enable_progress_bar = false",
    "SET python_enable_replacements = false",  # no variables of this program as tables
    "SET temp_directory = ''",
    "SET enable_external_access = false",  # no files, no network, no extensions
    "SET lock_configuration = true",
)

# What `show` tells of one example: the views that it needs, and the query.
EACH = "(SELECT version, id, prompt, response FROM examples WHERE used OR duplicate_of IS NULL)"  # id once
PARTNERS = f"""
    SELECT u.version, e.id, u.utility, e.prompt, e.response FROM utility u JOIN {EACH} e
    ON e.version = u.version AND e.id = u.{{other}} WHERE u.{{self}} = $id AND u.{{other}} <> $id
    QUALIFY row_number() OVER (PARTITION BY u.version ORDER BY u.utility DESC, e.id) <= {BEST}
    ORDER BY u.version, u.utility DESC, e.id"""
FACTS = {
    "examples": ({"examples"}, "SELECT * EXCLUDE (id) FROM examples WHERE id = $id ORDER BY version, row"),
    "withdrawn": ({"withdrawn"}, "SELECT * EXCLUDE (id) FROM withdrawn WHERE id = $id ORDER BY version"),
    "scores": ({"scores"}, "SELECT * EXCLUDE (id) FROM scores WHERE id = $id ORDER BY version"),
    "gradients": ({"phi_data"}, "SELECT * EXCLUDE (id) FROM phi_data WHERE id = $id ORDER BY version"),
    "selection": (
        {"subset", "examples"},
        f"""SELECT s.* EXCLUDE (id, topic, response_tokens), e.prompt AS covering_prompt,
        e.response AS covering_response FROM subset s
        LEFT JOIN {EACH} e ON e.version = s.version AND e.id = s.covered_by WHERE s.id = $id
        ORDER BY s.version""",
    ),
    "distances": ({"distances"}, "SELECT * EXCLUDE (id) FROM distances WHERE id = $id ORDER BY version"),
    "best_demos": ({"utility", "examples"}, PARTNERS.format(self="target_id", other="demo_id")),
    "helps_most": ({"utility", "examples"}, PARTNERS.format(self="demo_id", other="target_id")),
    "evaluation": (
        {"evaluation"},
        """SELECT * EXCLUDE (id, topic, response_tokens) FROM evaluation WHERE id = $id
        ORDER BY version, arm, learner, seed, held_out_of""",
    ),
}


class QuestionError(ValueError):
    """A question cannot be answered."""


def stream(paths: Sequence[Path], schema: pa.Schema | None = None) -> pads.Dataset:
    """Return an artifact in one or more versions, checked but not read yet; the column `version` is that of the path.

    Raises:
        ArtifactError: one of them is missing, was edited, or has other columns.
    """
    for path in paths:
        tables.check_table(path, schema)
    return _open(paths)


def _open(paths: Sequence[Path]) -> pads.Dataset:
    by_folder = pads.partitioning(pa.schema([("version", pa.string())]), flavor="hive")
    return pads.dataset([str(path) for path in paths], format="parquet", partitioning=by_folder)


@contextmanager
def opened(
    sources: Mapping[str, pa.Table | pads.Dataset], limits: "Limits | None" = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory with these views and nothing else, and lock it."""
    with duckdb.connect(":memory:") as connection:
        for name, source in sources.items():
            connection.register(name, source)
        memory = [f"SET memory_limit = '{limits.gigabytes}GB'"] if limits else []
        for lock in (*memory, *LOCKS):
            connection.execute(lock)
        yield connection


@dataclass(frozen=True)
class Limits:
    """What a question may take."""

    seconds: float = 60.0
    gigabytes: float = 4.0  # of memory
    rows: int = 1_000_000  # of the answer


@dataclass(frozen=True)
class Artifacts:
    """A project's tables."""

    views: Mapping[str, pads.Dataset | pa.Table]  # by name, all versions together
    broken: Mapping[str, str]  # name of a view that cannot be read -> why


def find_artifacts(root: Path, versions: Mapping[str, Mapping[str, str]] | None = None) -> Artifacts:
    """Return every table under a project's data folder, and `versions`: which there are, and which are configured.

    A file that is damaged costs its own view. What was checked once is not read again for it while it stays the same.

    Args:
        root: the project's folder.
        versions: the data versions of params.yaml and their settings; None: `versions` is left out.

    Raises:
        ArtifactError: there is none.
    """
    paths: dict[str, list[Path]] = {}
    for path in sorted(Path(root).glob("data/*/version=*/*.parquet")):
        paths.setdefault(path.stem, []).append(path)
    if not paths:
        raise tables.ArtifactError(f"there are no artifacts in {Path(root) / 'data'} yet; make them: `tamis run`")
    views, broken = {}, {}
    for name, several in paths.items():
        try:
            remember(Path(root) / CHECKED, several, _check)
            views[name] = _open(several)
        except tables.ArtifactError as error:
            broken[name] = str(error)
    if versions is not None:
        views["versions"] = _tabulate_versions(
            {path.parent.name for several in paths.values() for path in several}, versions
        )
    return Artifacts(views, broken)


def query(
    root: Path, sql: str, versions: Mapping[str, Mapping[str, str]] | None = None, limits: Limits = Limits()
) -> tuple[list[str], list[tuple]]:
    """Answer a question in SQL about the artifacts of a project; returns the columns' names and the rows.

    Args:
        root: the project's folder.
        sql: one statement that reads.
        versions: the data versions of params.yaml, for the view `versions`.
        limits: of seconds, memory and rows.

    Raises:
        QuestionError: not one reading statement, a mistake in it, a way to something else than the artifacts, a broken
            artifact, or more than the limits allow.
        ArtifactError: there are no artifacts.
    """
    found = find_artifacts(root, versions)
    with opened(found.views, limits) as connection:
        ended = threading.Event()
        clock = threading.Timer(limits.seconds, lambda: (ended.set(), connection.interrupt()))
        clock.start()
        try:
            answer = connection.execute(_refuse_writing(connection, sql))
            names, rows = [column[0] for column in answer.description], answer.fetchmany(limits.rows + 1)
        except duckdb.Error as error:
            raise QuestionError(_explain(error, found, ended.is_set(), limits)) from None
        finally:
            clock.cancel()
    if len(rows) > limits.rows:
        raise QuestionError(f"the answer has more than {limits.rows:,} rows; ask for fewer, with LIMIT or WHERE")
    return names, rows


def _refuse_writing(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Return the one statement of a text, if it reads; of one that is explained, what is explained must read."""
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if len(kinds) == 1:
        words = [sql[start : start + 64] for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
        first = re.match(r"\w+|.", words[0])[0].lower() if words else ""
        if kinds[0] == "EXPLAIN":
            _refuse_writing(connection, _cut_explain(sql))
            return statements[0]
        if kinds[0] in READING and first in STARTS:
            return statements[0]
    raise QuestionError(
        f"{', '.join(kinds) or 'nothing'} is not answered: one statement is, and one that reads, such as SELECT, FROM, "
        "WITH, PIVOT, DESCRIBE, SUMMARIZE or SHOW TABLES"
    )


def _cut_explain(sql: str) -> str:
    """Return the statement that is explained.

    >>> _cut_explain("/* a */ EXPLAIN (ANALYZE, FORMAT json) FROM subset")
    'FROM subset'
    """
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    words = [re.match(r"\w+|.", sql[start:])[0].lower() for start in starts]
    place = 1
    if words[place : place + 1] == ["analyze"]:
        place += 1
    elif (
        words[place : place + 1] == ["("] and words[place + 1 : place + 2] and words[place + 1] in ("analyze", "format")
    ):
        place = words.index(")") + 1 if ")" in words else len(words)
    return sql[starts[place] :] if place < len(starts) else ""


def _explain(error: duckdb.Error, found: Artifacts, late: bool, limits: Limits) -> str:
    """Return why a question was not answered."""
    if late:
        return f"no answer within {limits.seconds:g} s; ask for less, with WHERE, LIMIT or fewer joins"
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"the answer takes more than {limits.gigabytes:g} GB of memory; ask for less, with WHERE or fewer joins"
    told = [str(error), f"`tamis sql` reads these views and nothing else: {', '.join(sorted(found.views))}"]
    told += [f"{name} cannot be read: {why}" for name, why in found.broken.items()]
    return "\n".join(told)


def _tabulate_versions(folders: Iterable[str], versions: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """Return the versions that have artifacts or are configured, the configured ones first, in their order."""
    there = {folder.removeprefix("version=") for folder in folders} - {BASE}
    names = [*versions, *sorted(there - versions.keys())]
    return pa.table(
        {
            "version": pa.array(names, pa.string()),
            "configured": pa.array([name in versions for name in names], pa.bool_()),
            "made": pa.array([name in there for name in names], pa.bool_()),
            "previous": pa.array([versions.get(name, {}).get("previous") for name in names], pa.string()),
            "raw": pa.array([versions.get(name, {}).get("raw") for name in names], pa.string()),
        }
    )


def _check(path: Path) -> bool:
    tables.check_table(path)
    return True


def show(root: Path, id: str) -> dict[str, Any]:
    """Return everything that is known about one example, by its id or how that begins.

    Raises:
        QuestionError: no example, or several, begin like this; with suggestions.
    """
    artifacts = find_artifacts(root)
    sources = artifacts.views
    if "examples" not in sources:
        raise tables.ArtifactError(
            artifacts.broken.get("examples", "there are no examples yet; make them: `tamis run`")
        )
    with opened(sources) as connection:
        full = _complete(connection, id)
        found = {"id": full} | ({"cannot_be_read": dict(artifacts.broken)} if artifacts.broken else {})
        for name, (needed, sql) in FACTS.items():
            if needed <= sources.keys():
                answer = connection.execute(sql, {"id": full})
                names = [column[0] for column in answer.description]
                found[name] = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
    return found


def show_version(root: Path, version: str) -> dict[str, Any] | None:
    """Return what is known of a version's rows, choice and arms, as its artifacts' JSON says it; None: there is none.

    What is not made yet is not among it.
    """
    files = {"examples": "examples.json", "selection": "selection.json", "evaluation": "metrics.json"}
    paths = {stage: Path(root) / f"data/{stage}/version={version}/{name}" for stage, name in files.items()}
    found = {stage: json.loads(path.read_text(encoding="utf-8")) for stage, path in paths.items() if path.exists()}
    return {"version": version, **found} if found else None


def _complete(connection: duckdb.DuckDBPyConnection, start: str) -> str:
    """Return the one id that begins like this."""
    like = "SELECT id, any_value(prompt) FROM examples WHERE {} GROUP BY id ORDER BY {}, id LIMIT 4"
    found = dict(
        connection.execute(like.format("starts_with(id, $start)", "id <> $start"), {"start": start}).fetchall()
    )
    if start in found or len(found) == 1:
        return next(iter(found))
    if found:
        raise QuestionError(f"several examples begin with {start!r}: {_list(found)}; give more digits")
    near = like.format("true", "NOT contains(lower(id || any_value(prompt)), lower($start)), levenshtein(id, $start)")
    found = dict(connection.execute(near, {"start": start}).fetchall())
    raise QuestionError(f"no example's id begins with {start!r}; the nearest: {_list(found)}")


def _list(found: Mapping[str, str]) -> str:
    return ", ".join(f"{id} ({prompt[:40]!r})" for id, prompt in list(found.items())[:SHOWN])
