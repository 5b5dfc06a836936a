"""What is known of each row of the pool by its gradient: kept in the store, gathered, written and told.

Symbols: phi = <u / eta, g_n>; norm = ||g_n||; per_norm = phi / norm, what a row is worth whatever its gradient's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from tamis.gradients.per_example import Interaction
from tamis.gradients.row_sums import RowSums
from tasks.artifacts import schemas, stores
from tasks.gradients.warmup import Sets, Work

STORED = pa.schema(  # the parts of the store, of a group of parameters each
    [
        pa.field("id", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("squared_norm", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("sketch", pa.list_(pa.float32())),
    ]
)
MOSTLY = 0.8  # |rank correlation| from which a score is told to be mostly something else


@dataclass(frozen=True)
class RowScores:
    """Of each row of the pool."""

    phi_data: np.ndarray  # float64
    squared_norms: np.ndarray  # float64, of its gradient
    losses: np.ndarray  # float64, nats per response token
    sketches: np.ndarray  # float32 [row, entry], of its gradient

    @property
    def norms(self) -> np.ndarray:
        """Return the norms of the gradients."""
        return np.sqrt(np.maximum(self.squared_norms, 0.0))

    @property
    def per_norm(self) -> np.ndarray:
        """Return the scores as they would be, were all gradients of norm 1; 0 where there is no gradient."""
        norms = self.norms
        return np.divide(self.phi_data, norms, out=np.zeros_like(norms), where=norms > 0)


def keep_rows(work: Work, ids: Sequence[str], found: Interaction, rows: RowSums, *, seconds: float) -> None:
    """Add what a pass found of some rows to the store, as one part."""
    sketches = list(rows.sketches.cpu().numpy())
    figures = [each.cpu().numpy() for each in (found.phi_data, rows.squared, found.losses)]
    part = pa.table([pa.array(ids), *figures, pa.array(sketches, STORED.field("sketch").type)], schema=STORED)
    stores.append(work.folder, part, stage="gradients", seconds=seconds)


def collect(work: Work, sets: Sets) -> tuple[RowScores, float]:
    """Return what a group's parameters say of the pool's rows, and the seconds that it took.

    Raises:
        ValueError: parts vanished from the store meanwhile.
    """
    asked = name_rows(sets)
    lost = stores.missing(work.folder, asked)["id"].to_pylist()
    if lost:
        raise ValueError(
            f"{len(lost)} of {asked.num_rows} rows vanished from {work.folder} during the run, first ids {lost[:3]}; "
            "run again"
        )
    found = stores.find(work.folder, asked)
    figures = (np.asarray(found[name]) for name in ("score", "squared_norm", "loss"))
    sketches = found["sketch"].combine_chunks().flatten().to_numpy().reshape(asked.num_rows, -1)
    return RowScores(*figures, sketches), stores.cost(work.folder, asked)


def add_up(groups: Sequence[RowScores]) -> RowScores:
    """Return what all groups of parameters say together."""
    phi, squared, sketches = (
        sum(getattr(one, name) for one in groups) for name in ("phi_data", "squared_norms", "sketches")
    )
    return RowScores(phi, squared, groups[0].losses, sketches)


def name_rows(sets: Sets) -> pa.Table:
    """Return the ids of the pool's rows, as the store is asked for them."""
    return pa.table({"id": [sets.ids[place] for place in sets.pool]}, schema=pa.schema([STORED.field("id")]))


def tabulate_scores(scores: RowScores | None, sets: Sets | None, order: str) -> pa.Table:
    """Return `phi_data.parquet`, a row per row of the pool; without a row where none was scored."""
    if scores is None or sets is None:
        return schemas.PHI_DATA.empty_table()
    ids = name_rows(sets)["id"]
    columns = [ids, scores.phi_data, scores.norms, scores.per_norm, scores.losses, [order] * len(ids)]
    return pa.table(columns, schema=schemas.PHI_DATA)


def tabulate_sketches(scores: RowScores | None, sets: Sets | None) -> pa.Table:
    """Return `sketches.parquet`, a row per row of the pool; without a row where none is wanted."""
    if scores is None or sets is None:
        return schemas.sketches(1).empty_table()
    entries = scores.sketches.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(scores.sketches.ravel(), pa.float32()), entries)
    return pa.table([name_rows(sets)["id"], vectors], schema=schemas.sketches(entries))


def correlate(scores: RowScores, tokens: np.ndarray, selector: str) -> dict[str, Any]:
    """Return rank correlations of both scores of rows with what they should not be, and a note where one is large.

    Args:
        scores: of the pool.
        tokens: response tokens of its rows.
        selector: `dualsft` chooses by phi, `dualsft_cover` by phi per norm.

    Returns:
        `spearman`: score -> tokens, norm, loss -> in [-1, 1], None where either is constant; `notes`: on the score
        that chooses.
    """
    beside = {"tokens": tokens, "norm": scores.norms, "loss": scores.losses}
    sides = {"phi": scores.phi_data, "phi_per_norm": scores.per_norm}
    found = {
        name: {what: rank_correlation(score, each) for what, each in beside.items()} for name, score in sides.items()
    }
    name = "phi_per_norm" if selector == "dualsft_cover" else "phi"
    return {"spearman": found, "notes": list(tell_length(selector, found[name]))}


def tell_length(selector: str, found: Mapping[str, float | None]) -> list[str]:
    """Return a note for each thing that a score mostly is.

    >>> tell_length("dualsft", {"tokens": -0.91, "norm": 0.5, "loss": None})
    ['dualsft: this score is mostly length (rank correlation with response tokens -0.91)']
    """
    words = {"tokens": ("length", "response tokens"), "norm": ("the gradient's norm", "it"), "loss": ("loss", "it")}
    return [
        f"{selector}: this score is mostly {words[name][0]} (rank correlation with {words[name][1]} {value:+.2f})"
        for name, value in found.items()
        if value is not None and abs(value) > MOSTLY
    ]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return Spearman's rank correlation; None where one side has no two different values.

    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([3, 2, 1])), rank_correlation(np.zeros(2), np.ones(2))
    (-1.0, None)
    """
    if min(len(np.unique(one)), len(np.unique(other))) < 2:
        return None
    return round(float(spearmanr(one, other).statistic), 4)
