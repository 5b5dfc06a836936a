"""What became of a choice: a row of the subset for every row of the pool, and the choice in numbers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.submodular.budgets import Budget, count_by_topic, record
from tamis.submodular.greedy import Choice, evaluate
from tamis.submodular.kernels import SparseKernel
from tamis.submodular.objectives import Objective
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import count_faults
from tasks.selection.gates import Gated
from tasks.selection.inputs import Similar
from tasks.selection.rows import Rows
from tasks.selection.settings import SelectionSettings


@dataclass(frozen=True)
class ChosenRows:
    """The chosen rows of the pool in their order; without similarities nothing else is known."""

    order: np.ndarray
    choice: Choice | None = None
    objective: Objective | None = None
    covered_by: np.ndarray | None = None  # for each row of the pool the chosen row most similar to it; -1: none
    cover: np.ndarray | None = None  # that similarity
    scores: np.ndarray | None = None  # of each row of the pool, where the largest come first; NaN: not to be chosen
    similar: Similar | None = None  # what it was chosen by
    strata: Budget | None = None  # whose caps are the shares of topics, where these bound the choice


def widen(picks: ChosenRows, gate: Gated | None) -> ChosenRows:
    """Return what was chosen among the rows that a gate let pass by the places of all; what left has no cover."""
    if gate is None:
        return picks
    order, covered_by, cover = gate.kept[picks.order], None, None
    if picks.covered_by is not None:
        covered_by, cover = np.full(len(gate.gated), -1), np.full(len(gate.gated), np.nan, np.float32)
        covered_by[gate.kept] = np.where(picks.covered_by < 0, -1, gate.kept[picks.covered_by])
        cover[gate.kept] = picks.cover
    return replace(picks, order=order, covered_by=covered_by, cover=cover, scores=None)


def tabulate(ground: pa.Table, picks: ChosenRows, gate: Gated | None = None) -> pa.Table:
    """Return a row for every row of the pool: the chosen ones by rank, then the others as they stand."""
    rows, order, choice = ground.num_rows, picks.order, picks.choice
    rank = np.full(rows, rows + 1)
    rank[order] = np.arange(1, len(order) + 1)
    chosen = rank <= rows
    gain, objective, covered_by, cover = (
        pa.nulls(rows, kind) for kind in (pa.float64(),) * 2 + (pa.int64(), pa.float32())
    )
    if choice is not None:
        gain, objective = (_spread(values, order, rows) for values in (choice.gain, choice.objective))
        covered_by = pa.array(picks.covered_by, mask=picks.covered_by < 0)
        cover = pa.array(picks.cover, mask=np.isnan(picks.cover))
    known = np.full(rows, np.nan) if gate is None else gate.scores
    usual = np.zeros(rows) if gate is None else gate.usual
    columns = {
        **{name: ground[name] for name in ("id", "topic", "response_tokens")},
        "chosen": pa.array(chosen),
        "rank": pa.array(rank, pa.int32(), mask=~chosen),
        "gain": gain,
        "objective": objective,
        "covered_by": ground["id"].combine_chunks().take(covered_by),
        "cover": cover,
        "gated": pa.array(np.zeros(rows, bool) if gate is None else gate.gated),
        "gate_score": pa.array(known, mask=np.isnan(known)),
        "gate_usual": pa.array(usual, mask=np.isnan(known)),
    }
    return pa.table(list(columns.values()), schema=schemas.SUBSET).take(np.argsort(rank, kind="stable"))


def describe(rows: Rows, budget: Budget, picks: ChosenRows, settings: SelectionSettings) -> dict[str, Any]:
    """Return what was chosen, in numbers."""
    tokens, order = rows.ground["response_tokens"].to_numpy(), picks.order
    return {
        "selector": settings.selector,
        "learnt_rows": len(rows.learnt),
        "target_rows": len(rows.target),
        "pool_rows": len(tokens),
        "chosen_rows": len(order),
        "chosen_fraction": len(order) / len(tokens),
        "chosen_response_tokens": int(tokens[order].sum()),
        "chosen_response_tokens_fraction": int(tokens[order].sum()) / max(1, int(tokens.sum())),
        "mean_response_tokens": {"chosen": float(tokens[order].mean()), "pool": float(tokens.mean())},
        "budget": record(budget) | {"spent": int(budget.costs[order].sum())},
        "topics": dict(zip(budget.topics, count_by_topic(budget, order.tolist()).tolist(), strict=True)),
        "faults": {"pool": count_faults(rows.ground), "chosen": count_faults(rows.ground.take(order))},
    }


def describe_objective(picks: ChosenRows, settings: SelectionSettings) -> dict[str, Any]:
    """Return what the objective reached; null where there are no similarities."""
    choice, objective = picks.choice, picks.objective
    if choice is None or objective is None or picks.similar is None:
        names = (
            "kernel",
            "neighbour_recall",
            "objective_name",
            "optimiser",
            "objective",
            "objective_of_none",
            "objective_of_all",
            "objective_share",
            "zero_gain_picks",
            "rows_covered_by_none",
            "rows_without_quality",
            "strata",
        )
        return dict.fromkeys(names)
    full, reached = evaluate(objective.kernel) + float(objective.bonus.sum()), float(choice.objective[-1])
    return {
        "kernel": "sparse" if isinstance(objective.kernel, SparseKernel) else "dense",
        "neighbour_recall": picks.similar.recall,
        "objective_name": settings.objective,
        "optimiser": settings.optimiser,
        "objective": reached,
        "objective_of_none": 0.0,
        "objective_of_all": full,
        "objective_share": reached / full if full else None,
        "zero_gain_picks": int((choice.gain == 0).sum()),
        "rows_covered_by_none": int((picks.covered_by < 0).sum()),
        "rows_without_quality": None if picks.similar.quality is None else picks.similar.unscored,
        "strata": None if picks.strata is None else record(picks.strata)["caps"],
    }


def describe_scores(picks: ChosenRows) -> dict[str, int | None]:
    """Return how many rows have no score, and how many are left out with the score of the last chosen one."""
    scores, order = picks.scores, picks.order
    if scores is None:
        return {"not_scored": None, "ties_left": None}
    ties = int((scores == scores[order[-1]]).sum() - (scores[order] == scores[order[-1]]).sum())
    return {"not_scored": int(np.isnan(scores).sum()), "ties_left": ties}


def _spread(values: np.ndarray, order: np.ndarray, rows: int) -> pa.Array:
    """Return a value for each chosen row at its place, null elsewhere."""
    spread, empty = np.zeros(rows), np.ones(rows, bool)
    spread[order], empty[order] = values, False
    return pa.array(spread, mask=empty)
