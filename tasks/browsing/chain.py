"""What each version of a chain kept, edited, added and withdrew, and what was learnt and forgotten along it."""

from typing import Any

import duckdb

from tasks.artifacts.views import ask

CHANGES = """
    SELECT version, split, count(*) FILTER (change = 'kept') AS kept, count(*) FILTER (change = 'edited') AS edited,
        count(*) FILTER (change = 'added') AS added, count(*) FILTER (change = 'replaced') AS replaced,
        count(*) FILTER (change = 'withdrawn') AS withdrawn
    FROM changes GROUP BY version, split"""
# Of the same rows, by the model that a version began with, and by the one that it tuned on its choice.
LEARNT = """
    WITH losses AS (SELECT version, held_out_of, arm, count(DISTINCT id) AS rows, avg(loss) AS loss FROM evaluation
        WHERE learner IN ('none', 'finetuning') AND arm IN ('base', 'previous', 'chosen') GROUP BY ALL)
    SELECT t.version, t.held_out_of, t.rows, coalesce(p.loss, b.loss) AS before, t.loss AS after,
        t.loss - coalesce(p.loss, b.loss) AS change
    FROM (FROM losses WHERE arm = 'chosen') t LEFT JOIN (FROM losses WHERE arm = 'base') b USING (version, held_out_of)
    LEFT JOIN (FROM losses WHERE arm = 'previous') p USING (version, held_out_of)"""


def list_changes(connection: duckdb.DuckDBPyConnection, versions: list[str]) -> list[dict[str, Any]]:
    """Return how many rows of each split a version kept, edited, added, replaced and withdrew, in the chain's order."""
    return _in_order(ask(connection, CHANGES), versions, "split")


def list_learnt(connection: duckdb.DuckDBPyConnection, versions: list[str]) -> list[dict[str, Any]]:
    """Return the losses before and after each version's tuning, in nats, on its held-out rows and on earlier ones."""
    return _in_order(ask(connection, LEARNT), versions, "held_out_of")


def _in_order(rows: list[dict[str, Any]], versions: list[str], second: str) -> list[dict[str, Any]]:
    """Return rows by version as they follow each other, those that are no longer configured last."""
    places = {version: place for place, version in enumerate(versions)}
    return sorted(rows, key=lambda row: (places.get(row["version"], len(places)), row["version"], row[second]))
