"""Utility by pairs: means of topics, the best demos of a target, the targets that a demo helps most."""

from collections.abc import Sequence
from typing import Any

import duckdb

from tasks.artifacts.views import ask

TOPICS = 20  # that a heat map shows, the largest ones
BEST = 10  # partners of a row
UNITS = {"probability": "in root mean square of 1 - p", "log_likelihood": "nats a token"}  # by utility.distance
USED = "(SELECT id, topic, prompt, response FROM examples WHERE version = $version AND used)"  # an id, once
MEANS = f"""
    WITH topics AS {USED}, scored AS (SELECT t.topic AS target, d.topic AS demo, p.utility
        FROM (SELECT * FROM pairs WHERE version = $version AND utility IS NOT NULL AND demo_id <> target_id) p
        JOIN topics t ON t.id = p.target_id JOIN topics d ON d.id = p.demo_id),
    largest AS (SELECT topic FROM (SELECT target AS topic FROM scored UNION ALL SELECT demo FROM scored)
        GROUP BY topic ORDER BY count(*) DESC, topic LIMIT {TOPICS})
    SELECT target, demo, avg(utility) AS utility, count(*) AS pairs FROM scored
    WHERE target IN (FROM largest) AND demo IN (FROM largest) GROUP BY target, demo ORDER BY target, demo"""
PARTNERS = f"""
    SELECT p.{{other}} AS id, p.utility, s.chosen, e.topic, e.prompt, e.response
    FROM (SELECT * FROM pairs WHERE version = $version AND {{self}} = $id AND {{other}} <> $id AND utility IS NOT NULL
        ORDER BY utility DESC, {{other}} LIMIT {BEST}) p
    JOIN {USED} e ON e.id = p.{{other}}
    LEFT JOIN (FROM subset WHERE version = $version) s ON s.id = p.{{other}}
    ORDER BY p.utility DESC, p.{{other}}"""


def average_topics(connection: duckdb.DuckDBPyConnection, version: str) -> list[dict[str, Any]]:
    """Return the mean utility of each topic's demos for each topic's targets, with the number of scored pairs."""
    return ask(connection, MEANS, {"version": version})


def name_unit(connection: duckdb.DuckDBPyConnection, version: str) -> str:
    """Return in what a version's utilities are measured, by the distance that their record names."""
    asked = "SELECT parameters ->> 'distance' FROM runs WHERE version = $version AND artifact = 'utility'"
    (distance,) = connection.execute(asked, {"version": version}).fetchone() or (None,)
    return UNITS.get(distance, "in a unit that is not recorded")


def list_demos(connection: duckdb.DuckDBPyConnection, version: str, target: str) -> list[dict[str, Any]]:
    """Return the demos that help a target most, with their texts."""
    return ask(connection, PARTNERS.format(self="target_id", other="demo_id"), {"version": version, "id": target})


def list_targets(connection: duckdb.DuckDBPyConnection, version: str, demo: str) -> list[dict[str, Any]]:
    """Return the targets that a demo helps most, with their texts."""
    return ask(connection, PARTNERS.format(self="demo_id", other="target_id"), {"version": version, "id": demo})


def list_scored(
    connection: duckdb.DuckDBPyConnection, version: str, *, targets: bool, count: int
) -> list[dict[str, Any]]:
    """Return the targets, or the demos, of the strongest scored pairs, with their prompts.

    Args:
        connection: to the catalogue.
        version: the data version.
        targets: of each pair the target; else the demo.
        count: at most as many rows.
    """
    side = "target_id" if targets else "demo_id"
    sql = f"""
        SELECT p.id, e.prompt FROM (SELECT {side} AS id, max(utility) AS most FROM pairs
            WHERE version = $version AND utility IS NOT NULL AND demo_id <> target_id
            GROUP BY {side} ORDER BY most DESC, id LIMIT $count) p
        JOIN {USED} e USING (id)
        ORDER BY p.most DESC, p.id"""
    return ask(connection, sql, {"version": version, "count": count})


def read_text(connection: duckdb.DuckDBPyConnection, version: str, id: str) -> dict[str, Any] | None:
    """Return a row's id, topic, prompt and response; None where the version has no such row."""
    sql = "SELECT id, topic, prompt, response FROM examples WHERE version = $version AND id = $id LIMIT 1"
    return next(iter(ask(connection, sql, {"version": version, "id": id})), None)


def list_texts(connection: duckdb.DuckDBPyConnection, version: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return topic, prompt and response of some rows, in their order."""
    sql = f"""
        SELECT e.topic, e.prompt, e.response, e.id
        FROM (SELECT unnest($ids) AS id, generate_subscripts($ids, 1) AS place) w JOIN {USED} e USING (id)
        ORDER BY w.place"""
    return ask(connection, sql, {"version": version, "ids": list(ids)}) if ids else []
