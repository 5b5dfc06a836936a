"""How dense a version's mask is by layer and module, and what of it an earlier version's holds."""

from typing import Any

import duckdb

from tasks.artifacts.views import ask

DENSITY = """
    SELECT layer, module, sum(chosen)::BIGINT AS chosen, sum(entries)::BIGINT AS entries,
        sum(chosen) / sum(entries) AS density
    FROM tensors WHERE version = $version GROUP BY layer, module ORDER BY layer NULLS LAST, module"""
CHANGE = f"""
    SELECT layer, module, a.density AS before, b.density AS after, b.density - a.density AS change
    FROM ({DENSITY.replace("$version", "$before")}) a FULL JOIN ({DENSITY}) b USING (layer, module)
    ORDER BY layer NULLS LAST, module"""


def measure_density(connection: duckdb.DuckDBPyConnection, version: str) -> list[dict[str, Any]]:
    """Return which share of each layer's and module's weights a version trains; empty where it has no mask."""
    return ask(connection, DENSITY, {"version": version})


def measure_change(connection: duckdb.DuckDBPyConnection, before: str, version: str) -> list[dict[str, Any]]:
    """Return how these shares differ from those of another version."""
    return ask(connection, CHANGE, {"version": version, "before": before})
