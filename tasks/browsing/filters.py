"""Rows of a version filtered, counted and paged, by DuckDB: what a page of the desk shows of a pool of any size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from tasks.artifacts.views import ask
from tasks.catalogue.derived import (
    FULL,
    SAID,
    SAYS_ALL,
    find_room,
    list_bounds,
    list_scores,
    split_words,
    tell_not_taken,
    tell_unused,
)

MOST = 2000  # rows that go to a page
STATES = ("any", "chosen", "left out", "gated", "not in the pool")
COLUMNS = ("id", "state", "rank", "topic", "source", "response_tokens", "prompt", "response", "why")
ORDERS = {
    "row": "row",
    "rank": "rank NULLS LAST, row",
    "longest": "response_tokens DESC, row",
    "score": "value DESC, row",
}
BOUNDS = "(SELECT unnest($topics::VARCHAR[]) AS topic, unnest($most::BIGINT[]) AS most)"
ROWS = f"""
    SELECT e.row, e.id, e.topic, coalesce(e.source, '') AS source, e.prompt, e.response, e.response_tokens, s.rank,
        {SAID} AS said,
        CASE WHEN s.chosen IS NULL THEN 'not in the pool' WHEN s.chosen THEN 'chosen' WHEN s.gated THEN 'gated'
        ELSE 'left out' END AS state, {{value}} AS value, CASE
            WHEN s.chosen IS NULL THEN {tell_unused("e.unused_because", "e.split")}
            WHEN s.chosen THEN format('chosen as number {{{{}}}}', s.rank)
            WHEN s.gated THEN coalesce(format('out by the gate, with {{{{:.3g}}}} where {{{{:.3g}}}} is usual',
                s.gate_score, s.gate_usual), 'out by the gate')
            {{not_taken}}
            ELSE 'not taken by the selector' END AS why
    FROM (SELECT * FROM examples WHERE version = $version AND (used OR duplicate_of IS NULL OR contains(id, '-'))) e
    LEFT JOIN (SELECT id, chosen, rank, gated, gate_score, gate_usual, covered_by, cover FROM subset
        WHERE version = $version) s USING (id)
    LEFT JOIN ({FULL.format(subset="(FROM subset WHERE version = $version)", bounds=BOUNDS)}) f USING (topic)
    CROSS JOIN (SELECT $room::BIGINT AS room)
    {{scored}}"""
SCORED = "LEFT JOIN (SELECT id, value FROM scores WHERE version = $version AND score = $score) v USING (id)"


@dataclass(frozen=True)
class Filter:
    """Which rows are meant."""

    version: str
    state: str = "any"  # one of STATES
    topic: str = ""  # "": any
    source: str = ""  # likewise
    words: str = ""  # all of which its turns say, as `tamis show --find` means it
    score: str = ""  # by which `low` and `high` are meant
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Counted:
    """How many rows are meant, and which."""

    rows: int
    digest: str  # of their ids, whatever their order: bit_xor(hash(id)) in hexadecimal digits


def count_rows(connection: duckdb.DuckDBPyConnection, asked: Filter) -> Counted:
    """Return how many rows a filter means, with a digest that any question in SQL can give, too."""
    sql, named = _write(asked, {})
    rows, digest = connection.execute(
        f"SELECT count(*), lower(hex(coalesce(bit_xor(hash(id)), 0))) FROM ({sql})", named
    ).fetchone()
    return Counted(rows, digest)


def list_rows(
    connection: duckdb.DuckDBPyConnection,
    asked: Filter,
    *,
    record: Mapping[str, Any],
    order: str = "row",
    page: int = 0,
    size: int = 100,
) -> list[dict[str, Any]]:
    """Return one page of the rows that a filter means.

    Args:
        connection: to the catalogue.
        asked: the filter.
        record: the version's selection.json, which knows the caps and the budget that kept rows out.
        order: one of ORDERS.
        page: from 0.
        size: rows of a page, at most MOST.
    """
    sql, named = _write(asked, record)
    columns = ", ".join((*COLUMNS, *(("value",) if asked.score else ())))
    limits = {"size": min(size, MOST), "skip": page * min(size, MOST)}
    paged = f"SELECT {columns} FROM ({sql}) ORDER BY {ORDERS[order]} LIMIT $size OFFSET $skip"
    return ask(connection, paged, named | limits)


def list_values(connection: duckdb.DuckDBPyConnection, version: str, column: str) -> list[str]:
    """Return what a version's rows have as topic or source, or which scores they have, sorted."""
    sql = {
        "topic": "SELECT DISTINCT topic FROM examples WHERE version = $version ORDER BY 1",
        "source": "SELECT DISTINCT source FROM examples WHERE version = $version AND source IS NOT NULL ORDER BY 1",
    }.get(column) or _ask_names(connection)
    return [value for (value,) in connection.execute(sql, {"version": version}).fetchall()]


def _ask_names(connection: duckdb.DuckDBPyConnection) -> str:
    """Return the query for the names of a version's scores: one row of each tells, and no mean is taken for it."""
    there = {name for (name,) in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    parts = [sql.replace("avg(utility)", "utility").removesuffix(" GROUP BY ALL") for sql in list_scores(there)]
    one = "(SELECT score FROM ({}) AS q(version, id, score, value) WHERE version = $version LIMIT 1)"
    return f"SELECT score FROM ({' UNION ALL '.join(map(one.format, parts))}) ORDER BY 1"


def _write(asked: Filter, record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a filter as a query, and the values that it names."""
    named: dict[str, Any] = {"version": asked.version} | ({"score": asked.score} if asked.score else {})
    bounds = list_bounds(record)
    named |= {"topics": list(bounds), "most": [most for most, _ in bounds.values()], "room": find_room(record)}
    value = "v.value" if asked.score else "NULL"
    rows = ROWS.format(scored=SCORED if asked.score else "", value=value, not_taken=tell_not_taken())
    wanted = []
    for name in ("topic", "source"):
        if getattr(asked, name):
            wanted.append(f"{name} = ${name}")
            named[name] = getattr(asked, name)
    if asked.state != "any":
        wanted.append("state = $state")
        named["state"] = asked.state
    if words := split_words(asked.words):
        wanted.append(SAYS_ALL)
        named["words"] = words
    for name, sign in (("low", ">="), ("high", "<=")):
        if getattr(asked, name) is not None:
            wanted.append(f"value {sign} ${name}")
            named[name] = getattr(asked, name)
    return f"SELECT * FROM ({rows}) WHERE {' AND '.join(wanted) or 'true'}", named
