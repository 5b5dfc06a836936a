"""The comparison of selectors and masks as artifacts: tables, a curve for `dvc plots`, and a picture."""

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

from tamis.evaluation.comparison import ALL, NONE, RANDOM, Cell, Measured, compare
from tamis.evaluation.costs import Cost, count_trainings, find_pool_sizes, tell_break_even, tell_cost
from tasks.artifacts import schemas, tables
from tasks.artifacts.row_sets import read_set

COLOURS = matplotlib.colormaps["tab10"].colors
MARKS = "os^Dv"  # of masks: none is a disk
PLOT = """# `dvc plots show` finds this
plots:
  - comparison.csv: {{template: selectors, x: share, y: loss, title: "{version}: held-out loss"}}
"""
CURVE = ("selector", "budget", "share", "loss", "low", "high", "total_seconds")


@dataclass(frozen=True)
class Trial:
    """A cell with a seed: what was chosen, what that cost, and how the trained model did."""

    cell: Cell
    seed: int
    rows: int  # trained on
    share: float  # of the pool's rows
    parameters: float  # share of the model's that was trained
    ids: Sequence[str]  # held-out rows
    losses: Sequence[float]  # on them, nats per response token
    general_ids: Sequence[str]  # rows of what must not be forgotten
    general_losses: Sequence[float]  # on the general rows, likewise; empty where there are none
    correct: Sequence[bool]  # held-out rows that are answered right; empty without a task metric
    scoring_seconds: float
    scoring_flops: int
    selecting_flops: int  # of a pilot; choosing itself asks no model
    training: Mapping[str, float]  # seconds and flops of the training alone
    full_flops: int  # of a training on all rows of the pool
    selecting_seconds: float
    training_seconds: float
    resumed: Sequence[str]  # keys of its scorings and trainings whose interrupted attempts these seconds leave out


def write_comparison(
    trials: Sequence[Trial],
    base: Sequence[float],
    general_base: Sequence[float],
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
        trials: every cell with the same number of seeds, chance beside each of them.
        base, general_base: the untrained model's losses on the held-out rows and on the general ones.
        out: folder of the artifacts.
        inputs: digests of what the trials read.
        resamples, confidence, seed: of the intervals.
    """
    cells: dict[Cell, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.cell, []).append(trial)
    held_out = Measured(gather(cells, "losses"), np.array(base))
    general = Measured(gather(cells, "general_losses"), np.array(general_base)) if len(general_base) else None
    right = gather(cells, "correct") if trials[0].correct else None
    generator = np.random.default_rng(seed)
    found = compare(held_out, general, right, resamples=resamples, confidence=confidence, generator=generator)
    costs = {cell: measure_costs(members) for cell, members in cells.items()}
    rows = [describe(members) | compare_costs(cell, costs) | asdict(found[cell]) for cell, members in cells.items()]
    rows.sort(key=lambda row: (row["share"], row["selector"] != RANDOM, row["mask"] != NONE, row["loss"]))

    asked = {
        "resamples": resamples,
        "confidence": confidence,
        "selectors": sorted({cell.selector for cell in cells}),
        "masks": sorted({cell.mask for cell in cells}),
    }
    made = tables.Provenance("comparison", version, asked, inputs, seed)
    tables.write_table(pa.Table.from_pylist(rows, schema=schemas.COMPARISON), out / "comparison.parquet", made)
    tables.write_table(tabulate_losses(trials), out / "compared.parquet", made)
    tables.write_text(tabulate_curve(rows), out / "comparison.csv")
    tables.write_text(PLOT.format(version=version), out / "dvc.yaml")
    draw(rows, float(np.mean(base)), out / "comparison.png")
    return rows


def gather(cells: Mapping[Cell, Sequence[Trial]], name: str) -> dict[Cell, np.ndarray]:
    """Return what is known of every cell on the same rows, an array [seed, row] each."""
    return {cell: np.array([getattr(trial, name) for trial in members], float) for cell, members in cells.items()}


def describe(members: Sequence[Trial]) -> dict[str, Any]:
    """Return what a cell's trials amount to, besides their losses."""
    first = members[0]
    means = {
        name: float(np.mean([getattr(trial, name) for trial in members]))
        for name in ("rows", "share", "parameters", "scoring_seconds", "selecting_seconds", "training_seconds")
    }
    total = sum(means[name] for name in ("scoring_seconds", "selecting_seconds", "training_seconds"))
    resumed = len({key for trial in members for key in trial.resumed})  # a scoring that seeds share counts once
    counts = {"rows": round(means["rows"]), "total_seconds": total, "resumed": resumed}
    return {**first.cell._asdict(), "seeds": len(members)} | means | counts


def measure_costs(members: Sequence[Trial]) -> dict[str, float]:
    """Return what a cell costs on average: operations, and what a training on all rows would, seconds of which go by
    the rate of its own training."""
    flops = {"scoring_flops": np.mean([trial.scoring_flops for trial in members])}
    flops |= {"selecting_flops": np.mean([trial.selecting_flops for trial in members])}
    flops |= {"training_flops": np.mean([trial.training["flops"] for trial in members])}
    flops |= {"full_flops": np.mean([trial.full_flops for trial in members])}
    rate = np.mean([trial.training["seconds"] for trial in members]) / max(1.0, flops["training_flops"])
    seconds = np.mean([trial.training_seconds for trial in members])
    more = (flops["full_flops"] - flops["training_flops"]) * rate
    return {name: float(value) for name, value in flops.items()} | {
        "selecting_seconds": float(np.mean([trial.selecting_seconds for trial in members])),
        "scoring_seconds": float(np.mean([trial.scoring_seconds for trial in members])),
        "training_seconds": float(seconds),
        "full_seconds": max(0.0, float(seconds + more)),
    }


def compare_costs(cell: Cell, costs: Mapping[Cell, Mapping[str, float]]) -> dict[str, float | int | None]:
    """Return a cell's costs beside those of training on all rows, and after how many trainings scoring has paid.

    Where a cell of all rows is compared under the same mask, what it took is the cost of training on all rows.
    """
    own, whole = costs[cell], costs.get(cell._replace(selector=ALL))
    full = whole["training_seconds"] if whole else own["full_seconds"]
    seconds = Cost(own["scoring_seconds"], own["selecting_seconds"], own["training_seconds"], full)
    flops = Cost(own["scoring_flops"], own["selecting_flops"], own["training_flops"], own["full_flops"])
    return {
        "scoring_flops": own["scoring_flops"],
        "selecting_flops": own["selecting_flops"],
        "training_flops": own["training_flops"],
        "total_flops": own["scoring_flops"] + own["selecting_flops"] + own["training_flops"],
        "full_seconds": full,
        "full_flops": own["full_flops"],
        "pays_after": count_trainings(seconds),
        "pays_after_flops": count_trainings(flops),
    }


def tell_costs(row: Mapping[str, Any], *, power: int) -> str:
    """Return in words what a row of the comparison says of cost and break-even.

    Args:
        row: of the comparison.
        power: of the pool's size, by which scoring grows (`tamis.evaluation.costs.find_pool_sizes`).
    """
    names = {
        "scoring": "scoring",
        "selecting": "choosing",
        "training": "training on the choice",
        "full": "training on all rows",
    }
    told = [tell_cost(words, row[f"{name}_seconds"], row[f"{name}_flops"]) for name, words in names.items()]
    in_seconds, in_flops = (Cost(*(row[f"{name}_{unit}"] for name in names)) for unit in ("seconds", "flops"))
    pool = round(row["rows"] / row["share"])
    fixed, piloted = row["budget"].isdigit(), row["selecting_flops"] > 0
    sizes = find_pool_sizes(in_seconds, pool, power=power, fixed=fixed, piloted=piloted)
    return f"{' · '.join(told)}; {tell_break_even(in_seconds, in_flops, sizes)}"


def tabulate_losses(trials: Sequence[Trial]) -> pa.Table:
    """Return the loss of every trial on every held-out and every general row."""
    rows = []
    for trial in trials:
        correct = trial.correct or [None] * len(trial.ids)
        sides = [("held_out", *row) for row in zip(trial.ids, trial.losses, correct, strict=True)]
        sides += [("general", *row, None) for row in zip(trial.general_ids, trial.general_losses, strict=True)]
        names = ("split", "id", "loss", "correct")
        rows += [{**trial.cell._asdict(), "seed": trial.seed} | dict(zip(names, row, strict=True)) for row in sides]
    return pa.Table.from_pylist(rows, schema=schemas.COMPARED)


def tabulate_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV for `dvc plots`: loss over share of the pool, a line per selector and mask."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{**row, "selector": name_line(row)} for row in rows])
    return text.getvalue()


def name_line(row: Mapping[str, Any]) -> str:
    """Return what a row's line is called.

    >>> name_line({"selector": "delift", "mask": "fisher"}), name_line({"selector": "delift", "mask": "none"})
    ('delift in fisher mask', 'delift')
    """
    return row["selector"] if row["mask"] == NONE else f"{row['selector']} in {row['mask']} mask"


def draw(rows: Sequence[Mapping[str, Any]], base: float, path: Path) -> None:
    """Write the picture: held-out loss over the share of the pool, a colour per selector and a mark per mask."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = sorted({(row["selector"], row["mask"]) for row in rows}, key=_place_line)
    selectors, masks = (list(dict.fromkeys(names)) for names in zip(*lines, strict=True))
    spread = 0.006 * max(row["share"] for row in rows)  # so that intervals do not hide each other
    for place, (selector, mask) in enumerate(lines):
        own = sorted((row for row in rows if (row["selector"], row["mask"]) == (selector, mask)), key=_share)
        shares = [row["share"] + (place - (len(lines) - 1) / 2) * spread for row in own]
        heights = [row["loss"] for row in own]
        reach = [[row["loss"] - row["low"] for row in own], [row["high"] - row["loss"] for row in own]]
        colour = "black" if selector == RANDOM else COLOURS[selectors.index(selector) % len(COLOURS)]
        style = {"color": colour, "linewidth": 2.2 if (selector, mask) == (RANDOM, NONE) else 1.4, "markersize": 5}
        style |= {"marker": MARKS[masks.index(mask) % len(MARKS)], "label": name_line(own[0])}
        axes.errorbar(shares, heights, yerr=reach, capsize=3, elinewidth=0.8, **style)
    axes.axhline(base, color="grey", linestyle="--", linewidth=1, label="base model")
    axes.set_xlabel("share of the pool that is trained on")
    axes.set_ylabel("held-out loss, nats per response token")
    axes.set_title("Lower is better; bars are bootstrap intervals over rows and seeds", fontsize=10)
    axes.legend(fontsize=8)
    with tables.replacing(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})


def _share(row: Mapping[str, Any]) -> float:
    return row["share"]


def _place_line(line: tuple[str, str]) -> tuple[bool, str, bool, str]:
    """Sort selectors by name, random rows first; of each, no mask first."""
    selector, mask = line
    return selector != RANDOM, selector, mask != NONE, mask


def has_repeats(examples: Path) -> bool:
    """Return whether an examples artifact that leaves repetitions in use has any in the pool."""
    ids = read_set(examples / "examples.parquet", "ground")["id"].to_pylist()
    return len({_name_text(each) for each in ids}) < len(ids)


def count_repeats(examples: Path, kept: Path, drawn: Sequence[Path]) -> list[dict[str, Any]]:
    """Return, per topic with repeated rows in the pool, how many rows there are and how many each choice keeps.

    Args:
        examples: folder of an examples artifact that leaves repetitions in use.
        kept: folder of the selection artifact of one selector.
        drawn: folders of those of random rows, one per seed.
    """
    rows = read_set(examples / "examples.parquet", "ground").to_pylist()
    choices = [_read_chosen(kept), *map(_read_chosen, drawn)]
    found = []
    for topic in sorted({row["topic"] for row in rows}):
        ids = [row["id"] for row in rows if row["topic"] == topic]
        distinct = len({_name_text(each) for each in ids})
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


def _name_text(each: str) -> str:
    """Return what all rows of a text share: an id without the number of the repetition."""
    return each.partition("-")[0]


def _read_chosen(folder: Path) -> set[str]:
    table = tables.read_table(folder / "subset.parquet", schemas.SUBSET)
    return set(table.filter(table["chosen"])["id"].to_pylist())
