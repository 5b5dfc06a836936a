"""The artifacts opened to people's questions: `tamis sql` and `tamis show`.

DuckDB sees each artifact as a view that Arrow streams from Parquet, and has no way of its own to a file or the network:
a question can read these views and nothing else, and write nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from tasks.artifacts import tables

SHOWN = 3  # examples that an error suggests
BEST = 5  # demos and targets that `show` names
READING = ("SELECT", "EXPLAIN")  # kinds of statement that are let through
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
    by_folder = pads.partitioning(pa.schema([("version", pa.string())]), flavor="hive")
    return pads.dataset([str(path) for path in paths], format="parquet", partitioning=by_folder)


@contextmanager
def opened(sources: Mapping[str, pa.Table | pads.Dataset]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory with these views and nothing else, and lock it."""
    with duckdb.connect(":memory:") as connection:
        for name, source in sources.items():
            connection.register(name, source)
        for lock in LOCKS:
            connection.execute(lock)
        yield connection


def find_artifacts(root: Path) -> dict[str, pads.Dataset]:
    """Return every table under a project's data folder by its name, all versions together.

    Raises:
        ArtifactError: there is none, or one was edited.
    """
    paths: dict[str, list[Path]] = {}
    for path in sorted(Path(root).glob("data/*/version=*/*.parquet")):
        paths.setdefault(path.stem, []).append(path)
    if not paths:
        raise tables.ArtifactError(f"there are no artifacts in {Path(root) / 'data'} yet; make them: `tamis run`")
    return {name: stream(versions) for name, versions in paths.items()}


def query(root: Path, sql: str) -> tuple[list[str], list[tuple]]:
    """Answer a question in SQL about the artifacts of a project; returns the columns' names and the rows.

    Raises:
        QuestionError: not one reading statement, a mistake in it, or a way to something else than the artifacts.
        ArtifactError: there are no artifacts, or one was edited.
    """
    sources = find_artifacts(root)
    with opened(sources) as connection:
        try:
            statements = connection.extract_statements(sql)
            kinds = [statement.type.name for statement in statements]
            if len(kinds) != 1 or kinds[0] not in READING:
                raise QuestionError(
                    f"{', '.join(kinds) or 'nothing'} is not answered: `tamis sql` takes one statement that reads, "
                    "such as SELECT, FROM, WITH, DESCRIBE, SUMMARIZE or SHOW TABLES"
                )
            answer = connection.execute(statements[0])
            return [column[0] for column in answer.description], answer.fetchall()
        except duckdb.Error as error:
            views = ", ".join(sorted(sources))
            raise QuestionError(f"{error}\n`tamis sql` reads these views and nothing else: {views}") from None


def show(root: Path, id: str) -> dict[str, Any]:
    """Return everything that is known about one example, by its id or how that begins.

    Raises:
        QuestionError: no example, or several, begin like this; with suggestions.
    """
    sources = find_artifacts(root)
    with opened(sources) as connection:
        full = _complete(connection, id)
        found = {"id": full}
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
