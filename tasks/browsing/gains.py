"""How the objective grew with each chosen row, and how small a budget holds most of it."""

from dataclasses import dataclass
from typing import Any

import duckdb

from tasks.artifacts.views import ask

SHARE = 0.95  # of the objective that a smaller budget is asked to hold
POINTS = 1000  # of the curve


@dataclass(frozen=True)
class Growth:
    """The objective over the number of chosen rows."""

    curve: list[dict[str, Any]]  # rows, objective, gain; at most some POINTS of them, the last one among them
    chosen: int  # rows that have a gain
    objective: float  # of all of them
    enough: int  # rows that hold SHARE of it


def read_growth(connection: duckdb.DuckDBPyConnection, version: str) -> Growth | None:
    """Return how the objective of a version's choice grew; None where its selector has none."""
    named = {"version": version}
    rows = "(SELECT rank AS rows, objective, gain FROM subset WHERE version = $version AND objective IS NOT NULL)"
    sql = f"SELECT count(*) AS many, max(objective) AS most FROM {rows}"
    ((many, most),) = connection.execute(sql, named).fetchall()
    if not many:
        return None
    sql = f"SELECT min(rows) FROM {rows} WHERE objective >= $share * $most"
    ((enough,),) = connection.execute(sql, named | {"share": SHARE, "most": most}).fetchall()
    step = max(1, many // POINTS)
    sql = f"SELECT * FROM {rows} WHERE (rows - 1) % $step = 0 OR rows IN ($many, $enough) ORDER BY rows"
    curve = ask(connection, sql, named | {"step": step, "many": many, "enough": enough})
    return Growth(curve, many, most, enough)
