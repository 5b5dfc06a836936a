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
    SELECT p.id, p.x, p.y, s.topic, s.chosen, s.gated, s.gain, s.rank FROM places p
    JOIN (FROM subset WHERE version = $version) s USING (id)"""
COLOURS = {
    "chosen": STATE,
    "topic": f"""CASE WHEN topic IN (SELECT topic FROM ({MAPPED}) GROUP BY topic ORDER BY count(*) DESC, topic
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


def count_cells(connection: duckdb.DuckDBPyConnection, version: str) -> list[dict[str, Any]]:
    """Return how many rows lie in each cell of a grid over the map, and how many of these are chosen.

    Args:
        connection: to the catalogue, with the version's map as the view `places`.
        version: the data version.
    """
    sql = f"""
        WITH mapped AS ({MAPPED}), edges AS (SELECT min(x) AS left_edge, min(y) AS bottom_edge,
            greatest(max(x) - min(x), 1e-9) / {CELLS} AS width, greatest(max(y) - min(y), 1e-9) / {CELLS} AS height
            FROM mapped),
        placed AS (SELECT chosen, least(floor((x - left_edge) / width), {CELLS - 1}) AS i,
            least(floor((y - bottom_edge) / height), {CELLS - 1}) AS j FROM mapped, edges)
        SELECT any_value(left_edge) + i * any_value(width) AS x,
            any_value(left_edge) + (i + 1) * any_value(width) AS x2,
            any_value(bottom_edge) + j * any_value(height) AS y,
            any_value(bottom_edge) + (j + 1) * any_value(height) AS y2,
            count(*) AS rows, count(*) FILTER (chosen) AS chosen FROM placed, edges GROUP BY i, j ORDER BY i, j"""
    return ask(connection, sql, {"version": version})


def sample_points(
    connection: duckdb.DuckDBPyConnection, version: str, colour: str, count: int = POINTS
) -> list[dict[str, Any]]:
    """Return some rows of the map, the same ones each time, and what they are coloured by.

    Args:
        connection: to the catalogue, with the version's map as the view `places`.
        version: the data version.
        colour: `chosen`, `topic`, `gain`, or the name of a score.
        count: how many.
    """
    named: dict[str, Any] = {"version": version, "count": count}
    told, source = COLOURS.get(colour, "value"), f"({MAPPED})"
    if colour not in COLOURS:
        valued = "(SELECT id, value FROM scores WHERE version = $version AND score = $score)"
        source = f"({MAPPED}) LEFT JOIN {valued} USING (id)"
        named["score"] = colour
    sql = f"""SELECT id, x, y, topic, {told} AS colour, chosen FROM {source}
        ORDER BY hash(id), id LIMIT $count"""
    return ask(connection, sql, named)


def list_inside(connection: duckdb.DuckDBPyConnection, version: str, frame: Frame) -> tuple[int, list[dict[str, Any]]]:
    """Return how many rows lie inside a frame, and the first of them, the chosen ones before the others."""
    bounds = {
        "x >= $left": frame.left,
        "x <= $right": frame.right,
        "y >= $bottom": frame.bottom,
        "y <= $top": frame.top,
    }
    wanted = [words for words, bound in bounds.items() if bound is not None]
    named = {words.partition("$")[2]: bound for words, bound in bounds.items() if bound is not None}
    inside = f"({MAPPED} WHERE {' AND '.join(wanted) or 'true'})"
    ((count,),) = connection.execute(f"SELECT count(*) FROM {inside}", {"version": version} | named).fetchall()
    sql = f"""
        SELECT m.id, {STATE} AS state, m.topic, e.prompt, e.response
        FROM {inside} m JOIN (SELECT id, any_value(prompt) AS prompt, any_value(response) AS response FROM examples
            WHERE version = $version GROUP BY id) e USING (id)
        ORDER BY m.chosen DESC, m.rank, m.id LIMIT {MOST}"""
    return count, ask(connection, sql, {"version": version} | named)
