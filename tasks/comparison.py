"""The comparison of selectors as artifacts: tables, a curve for `dvc plots`, and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from tamis.comparison import Cell, compare
from tasks import artifacts, schemas

COLOURS = matplotlib.colormaps["tab10"].colors
PLOT = """# `dvc plots show` finds this
plots:
  - comparison.csv: {{template: selectors, x: share, y: loss, title: "{version}: held-out loss by selector"}}
"""
CURVE = ("selector", "budget", "share", "loss", "low", "high", "total_seconds")


@dataclass(frozen=True)
class Trial:
    """A selector at a budget with a seed: what was chosen, what that cost, and how the trained model did."""

    selector: str
    budget: str
    seed: int
    rows: int  # trained on
    share: float  # of the pool's rows
    ids: Sequence[str]  # held-out rows
    losses: Sequence[float]  # on them, nats per response token
    scoring_seconds: float
    selecting_seconds: float
    training_seconds: float
    resumed: Sequence[str]  # keys of its scorings and trainings whose interrupted attempts these seconds leave out


def write_comparison(
    trials: Sequence[Trial],
    base: Sequence[float],
    *,
    out: Path,
    version: str,
    inputs: Mapping[str, str],
    resamples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Write comparison.parquet, compared.parquet, comparison.csv (with its plot) and .png; return the first as rows.

    Args:
        trials: every selector and budget with the same number of seeds, `random` among the selectors.
        base: the untrained model's losses on the held-out rows, for the picture.
        out: folder of the artifacts.
        inputs: digests of what the trials read.
        resamples, confidence, seed: of the intervals.
    """
    cells: dict[Cell, list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.selector, trial.budget), []).append(trial)
    losses = {cell: np.array([trial.losses for trial in members]) for cell, members in cells.items()}
    generator = np.random.default_rng(seed)
    found = compare(losses, resamples=resamples, confidence=confidence, generator=generator)
    rows = [describe(members) | asdict(found[cell]) for cell, members in cells.items()]
    rows.sort(key=lambda row: (row["share"], row["selector"] != "random", row["loss"]))

    asked = {
        "resamples": resamples,
        "confidence": confidence,
        "selectors": sorted({trial.selector for trial in trials}),
    }
    made = artifacts.Provenance("comparison", version, asked, inputs, seed)
    artifacts.write_table(pa.Table.from_pylist(rows, schema=schemas.COMPARISON), out / "comparison.parquet", made)
    artifacts.write_table(tabulate_losses(trials), out / "compared.parquet", made)
    artifacts.write_text(tabulate_curve(rows), out / "comparison.csv")
    artifacts.write_text(PLOT.format(version=version), out / "dvc.yaml")
    draw(rows, float(np.mean(base)), out / "comparison.png")
    return rows


def describe(members: Sequence[Trial]) -> dict[str, Any]:
    """Return what a cell's trials amount to, besides their losses."""
    first = members[0]
    means = {
        name: float(np.mean([getattr(trial, name) for trial in members]))
        for name in ("rows", "share", "scoring_seconds", "selecting_seconds", "training_seconds")
    }
    total = sum(means[name] for name in ("scoring_seconds", "selecting_seconds", "training_seconds"))
    resumed = len({key for trial in members for key in trial.resumed})  # a scoring that seeds share counts once
    cell = {"selector": first.selector, "budget": first.budget, "seeds": len(members)}
    return cell | means | {"rows": round(means["rows"]), "total_seconds": total, "resumed": resumed}


def tabulate_losses(trials: Sequence[Trial]) -> pa.Table:
    """Return the loss of every trial on every held-out row."""
    rows = [
        {"selector": trial.selector, "budget": trial.budget, "seed": trial.seed, "id": each, "loss": loss}
        for trial in trials
        for each, loss in zip(trial.ids, trial.losses, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.COMPARED)


def tabulate_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV for `dvc plots`: loss over share of the pool, a line per selector."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(rows: Sequence[Mapping[str, Any]], base: float, path: Path) -> None:
    """Write the picture: held-out loss over the share of the pool, with intervals, random rows in black."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    names = sorted({row["selector"] for row in rows}, key=lambda name: (name != "random", name))
    spread = 0.006 * max(row["share"] for row in rows)  # so that intervals do not hide each other
    for place, name in enumerate(names):
        own = sorted((row for row in rows if row["selector"] == name), key=lambda row: row["share"])
        shares = [row["share"] + (place - (len(names) - 1) / 2) * spread for row in own]
        heights = [row["loss"] for row in own]
        reach = [[row["loss"] - row["low"] for row in own], [row["high"] - row["loss"] for row in own]]
        colour = "black" if name == "random" else COLOURS[(place - 1) % len(COLOURS)]
        style = {"color": colour, "linewidth": 2.2 if name == "random" else 1.4, "marker": "o", "markersize": 4}
        axes.errorbar(shares, heights, yerr=reach, capsize=3, elinewidth=0.8, label=name, **style)
    axes.axhline(base, color="grey", linestyle="--", linewidth=1, label="base model")
    axes.set_xlabel("share of the pool that is trained on")
    axes.set_ylabel("held-out loss, nats per response token")
    axes.set_title("Lower is better; bars are bootstrap intervals over rows and seeds", fontsize=10)
    axes.legend(fontsize=8)
    with artifacts.replacing(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})


def count_repeats(examples: Path, kept: Path, drawn: Sequence[Path]) -> list[dict[str, Any]]:
    """Return, per topic with repeated rows in the pool, how many rows there are and how many each choice keeps.

    Args:
        examples: folder of an examples artifact that leaves repetitions in use.
        kept: folder of the selection artifact of one selector.
        drawn: folders of those of random rows, one per seed.
    """
    table = artifacts.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    rows = [row for row in table.to_pylist() if row["used"] and row["split"] == "pool"]
    choices = [_read_chosen(kept), *map(_read_chosen, drawn)]
    found = []
    for topic in sorted({row["topic"] for row in rows}):
        ids = [row["id"] for row in rows if row["topic"] == topic]
        distinct = len({each.partition("-")[0] for each in ids})
        counts = [sum(each in chosen for each in ids) for chosen in choices]
        if distinct < len(ids):
            found.append(
                {
                    "topic": topic,
                    "rows": len(ids),
                    "distinct": distinct,
                    "kept": counts[0],
                    "random": float(np.mean(counts[1:])),
                }
            )
    return sorted(found, key=lambda row: row["distinct"] - row["rows"])


def _read_chosen(folder: Path) -> set[str]:
    table = artifacts.read_table(folder / "subset.parquet", schemas.SUBSET)
    return set(table.filter(table["chosen"])["id"].to_pylist())
