"""What a page draws of a map: counts by cell of all rows, a sample of points, and the rows inside a frame."""

from dataclasses import dataclass
from typing import Any

import duckdb

from tasks.artifacts.views import ask
from tasks.browsing.filters import MOST

CELLS = 40  # along an axis
POINTS = 5000  # that are drawn
TOPICS = 9  # that have a colour of their own
OTHERS = "all others"
STATE = "CASE WHEN chosen THEN 'chosen' WHEN gated THEN 'gated' ELSE 'left out' END"
MAPPED = """
    CREATE TEMP TABLE mapped AS SELECT p.id, p.x, p.y, s.topic, s.chosen, s.gated, s.gain, s.rank FROM places p
    JOIN (FROM subset WHERE version = $version) s USING (id)"""
COLOURS = {
    "chosen": STATE,
    "topic": f"""CASE WHEN topic IN (SELECT topic FROM mapped GROUP BY topic ORDER BY count(*) DESC, topic
        LIMIT {TOPICS}) THEN topic ELSE '{OTHERS}' END""",
    "gain": "gain",
}


@dataclass(frozen=True)
class Frame:
    """A part of the map; None: without a bound."""

    left: float | None = None
    right: float | None = None
    bottom: float | None = None
    top: float | None = None


def place_rows(connection: duckdb.DuckDBPyConnection, version: str) -> int:
    """Put the rows of a version's pool into the table `mapped`, which the other functions ask; returns how many.

    Args:
        connection: to the catalogue, with the version's map as the view `places`.
        version: the data version.
    """
    connection.execute(MAPPED, {"version": version})
    return connection.execute("SELECT count(*) FROM mapped").fetchone()[0]


def count_cells(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return how many rows lie in each cell of a grid over the map, and how many of these are chosen."""
    sql = f"""
        WITH edges AS (SELECT min(x) AS left_edge, min(y) AS bottom_edge,
            greatest(max(x) - min(x), 1e-9) / {CELLS} AS width, greatest(max(y) - min(y), 1e-9) / {CELLS} AS height
            FROM mapped),
        placed AS (SELECT chosen, least(floor((x - left_edge) / width), {CELLS - 1}) AS i,
            least(floor((y - bottom_edge) / height), {CELLS - 1}) AS j FROM mapped, edges),
        counted AS (SELECT i, j, count(*) AS rows, count(*) FILTER (chosen) AS chosen FROM placed GROUP BY i, j)
        SELECT left_edge + i * width AS x, left_edge + (i + 1) * width AS x2, bottom_edge + j * height AS y,
            bottom_edge + (j + 1) * height AS y2, rows, chosen FROM counted, edges ORDER BY i, j"""
    return ask(connection, sql)


def sample_points(
    connection: duckdb.DuckDBPyConnection, version: str, colour: str, count: int = POINTS
) -> list[dict[str, Any]]:
    """Return some rows of the map, the same ones each time, and what they are coloured by.

    Args:
        connection: after `place_rows`.
        version: the data version.
        colour: `chosen`, `topic`, `gain`, or the name of a score.
        count: how many.
    """
    named: dict[str, Any] = {"count": count}
    told, source = COLOURS.get(colour, "value"), "drawn"
    if colour not in COLOURS:
        source = "drawn LEFT JOIN (SELECT id, value FROM scores WHERE version = $version AND score = $score) USING (id)"
        named |= {"version": version, "score": colour}
    sql = f"""
        WITH drawn AS (FROM mapped ORDER BY hash(id), id LIMIT $count)
        SELECT id, x, y, topic, {told} AS colour, chosen FROM {source}"""
    return ask(connection, sql, named)


def list_inside(connection: duckdb.DuckDBPyConnection, version: str, frame: Frame) -> tuple[int, list[dict[str, Any]]]:
    """Return how many rows lie inside a frame, and the first of them, the chosen ones before the others."""
    words = {"left": "x >= $left", "right": "x <= $right", "bottom": "y >= $bottom", "top": "y <= $top"}
    named = {name: bound for name, bound in vars(frame).items() if bound is not None}
    inside = f"(FROM mapped WHERE {' AND '.join(words[name] for name in named) or 'true'})"
    ((count,),) = connection.execute(f"SELECT count(*) FROM {inside}", named).fetchall()
    sql = f"""
        WITH listed AS (FROM {inside} ORDER BY chosen DESC, rank, id LIMIT {MOST})
        SELECT f.id, {STATE} AS state, f.topic, e.prompt, e.response FROM listed f
        JOIN (SELECT id, prompt, response FROM examples WHERE version = $version AND used
            AND id IN (SELECT id FROM listed)) e USING (id)
        ORDER BY f.chosen DESC, f.rank, f.id"""
    return count, ask(connection, sql, {"version": version} | named)
