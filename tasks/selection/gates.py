"""The gate before selection: the rows of the pool whose score is worst leave, and the others are chosen from.

Rows that leave are no demos, and they need no cover: wrong rows would only draw the choice to what resembles them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tamis.scores.gates import HIGHEST_LEAVE, find_gated, find_usual
from tamis.submodular.budgets import Budget, BudgetError, narrow
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import count_faults
from tasks.artifacts.tables import provenance, read_table
from tasks.selection.inputs import look_up, read_help, read_nearby_help, read_pairs
from tasks.selection.rows import Rows, list_texts

FILES = {"ifd": ("scores", "ifd.parquet"), "help": ("utility", "utility.parquet")}
FILES |= {"agreement": ("embedding", "agreement.parquet")}  # gate -> stage and table of its scores


@dataclass(frozen=True, eq=False)
class Gated:
    """What a gate found of each row of the pool."""

    by: str
    drop: float
    beyond: float | None
    scores: np.ndarray  # NaN: none is known
    usual: np.ndarray  # the score that is usual in the row's topic
    gated: np.ndarray  # bool

    @property
    def kept(self) -> np.ndarray:
        """The places of the rows that are chosen from."""
        return np.flatnonzero(~self.gated)


def read_gate(gate: Mapping[str, Any] | None, rows: Rows, source: Path | None) -> Gated | None:
    """Return which rows of the pool leave; None without a gate.

    Args:
        gate: `selection.gate`.
        rows: of the version.
        source: the table of `FILES`.
    """
    if gate is None:
        return None
    scores = _read_help(source, rows) if gate["by"] == "help" else _read_scores(source, rows)
    topics = rows.ground["topic"].to_pylist()
    gated, usual = find_gated(scores, topics, **gate), find_usual(scores, topics, gate["by"])
    return Gated(gate["by"], gate["drop"], gate["beyond"], scores, usual, gated)


def _read_scores(source: Path, rows: Rows) -> np.ndarray:
    table = read_table(source, schemas.SCORES)
    return table["score"].to_numpy()[look_up(table["id"], rows.ground["id"].to_pylist(), source)]


def _read_help(source: Path, rows: Rows) -> np.ndarray:
    """Return how much each row helps those that it was shown to; under kernel `neighbours` those near it, both ways."""
    near = provenance(source)["parameters"].get("kernel") == "neighbours"
    pairs, texts = read_pairs(source, rows), list_texts(rows)
    found = (
        read_nearby_help(pairs, texts, texts.ids, source) if near else read_help(pairs, rows, texts, texts.ids, source)
    )
    return found[texts.places]


def refuse_whole(budget: Budget, gate: Mapping[str, Any] | None, pinned: int = 0) -> None:
    """Refuse a budget of rows that leaves a gate nothing to take out, before any score is known.

    A gate by `beyond` may take none out: only its scores say whether the budget can be kept.

    Args:
        budget: of the used pool.
        gate: `selection.gate`.
        pinned: rows that a person wants to be chosen; none of them leaves.

    Raises:
        BudgetError: it would choose more rows than stay.
    """
    rows = len(budget.costs)
    if gate is None or gate["beyond"] is not None or budget.kind == "response_tokens":
        return
    leave = int(Fraction(str(gate["drop"])) * rows) - pinned
    if leave > 0 and budget.limit > rows - leave:
        raise BudgetError(
            f"selection.budget.{budget.kind} takes {budget.limit} of the pool's {rows} rows, of which selection.gate "
            f"(by {gate['by']}) takes some out before; set selection.gate: null to choose from all rows, or lower the "
            "budget"
        )


def spare(gate: Gated | None, places: np.ndarray) -> Gated | None:
    """Return the gate with some rows let pass, whatever their score: those that a person wants to be chosen."""
    if gate is None or not len(places):
        return gate
    gated = gate.gated.copy()
    gated[places] = False
    return replace(gate, gated=gated)


def pass_gate(rows: Rows, budget: Budget, gate: Gated | None) -> tuple[Rows, Budget]:
    """Return the rows that are chosen from, and the budget for these alone; it is as large as for all of them.

    Raises:
        BudgetError: the rows that stay cannot keep it.
    """
    if gate is None:
        return rows, budget
    left = rows.ground["id"].take(np.flatnonzero(gate.gated)).to_pylist()
    try:
        return replace(rows, ground=rows.ground.take(gate.kept), gated=left), narrow(budget, gate.kept)
    except BudgetError as error:
        raise BudgetError(
            f"selection.gate takes {len(left)} of the pool's {rows.ground.num_rows} rows out, and of the others: "
            f"{error}; or let fewer leave, by a lower drop or a higher beyond of selection.gate, or none: gate: null"
        ) from error


def describe_gate(rows: Rows, gate: Gated | None) -> dict[str, Any] | None:
    """Return what left and why, in numbers."""
    if gate is None:
        return None
    stayed = np.setdiff1d(gate.kept, rows.find_pinned())  # by the gate's own rule
    apart = (gate.scores - gate.usual)[stayed]
    apart = apart[~np.isnan(apart)]
    edge = np.max if gate.by in HIGHEST_LEAVE else np.min
    return {
        "by": gate.by,
        "drop": gate.drop,
        "beyond": gate.beyond,
        "gated_rows": int(gate.gated.sum()),
        "unscored": int(np.isnan(gate.scores).sum()),
        "worst_kept": float(edge(apart)) if len(apart) else None,  # by how much it differs from what is usual
        "faults": count_faults(rows.ground.take(np.flatnonzero(gate.gated))),
    }
