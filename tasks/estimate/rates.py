"""Seconds per unit of work on this machine: kept in one small file, from earlier runs or from a calibration.

An entry is of one stage (and of what changes its cost, such as the method of finetuning), model, device, dtype, way of
multiplying and number of threads. A calibration's entries, `calibration` and `encoder`, stand in for stages that have
not run yet.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import write_json
from tasks.estimate.work import Work
from tasks.models import ModelChoice, device

LANGUAGE, ENCODER = "calibration", "encoder"  # what a calibration measures
UNITS = ("start", "row", "load", "encoded", "forward", "backward", "generated")
GUESSED = {"start": 0.5, "row": 2e-4}  # seconds, until a stage has run here: of a stage as such, of a row that it reads

DENSE = (
    1.5  # of a forward-backward pass that forms the gradients of all weights, in that of a calibration, which does not
)
FORM_ALL = ("gradients", "finetuning full", "finetuning masked")  # the stages whose passes do


@dataclass(frozen=True)
class Models:
    """The models that params.yaml names."""

    language: ModelChoice
    encoder: ModelChoice


@dataclass(frozen=True)
class Rates:
    """Seconds per unit, by `name_entry`."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # seconds: unit -> s; run: when, if of a run


def name_entry(stage: str, model: ModelChoice) -> str:
    """Return the name of what is kept of a stage under a model, as it is run here."""
    threads = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    revision = f"@{model.revision}" if model.revision else ""
    products = "" if model.matmul == "float32" else f" by {model.matmul}"
    return f"{stage} | {model.name}{revision} | {device(model).type} | {model.dtype}{products} | {threads} threads"


def read_rates(path: Path) -> Rates:
    """Return what is kept; nothing, where the file is missing or not ours: it is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Rates(
            {name: {"seconds": _checked(one["seconds"]), "run": one.get("run")} for name, one in found.items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Rates()


def _checked(seconds: Mapping[str, float]) -> dict[str, float]:
    return {unit: max(0.0, float(seconds[unit])) for unit in UNITS if unit in seconds}


def write_rates(rates: Rates, path: Path) -> None:
    """Keep rates, whole or not at all."""
    write_json(dict(rates.entries), path)


def keep(rates: Rates, name: str, seconds: Mapping[str, float], run: str | None = None) -> Rates:
    """Return rates with an entry replaced.

    Args:
        name: `name_entry`.
        seconds: per unit.
        run: when the run was made that they are from; None: a calibration.
    """
    return Rates({**rates.entries, name: {"seconds": dict(seconds), "run": run}})


def name_stage(stage: str, models: Models) -> str:
    """Return the name of what is kept of a stage under the model that it runs."""
    return name_entry(stage, models.encoder if stage in ("embedding", ENCODER) else models.language)


def find(rates: Rates, stage: str, models: Models) -> dict[str, float]:
    """Return the seconds per unit of a stage: its own, else those of the calibration, else guesses."""
    found = dict(GUESSED)
    for name in (name_stage(kind, models) for kind in (LANGUAGE, ENCODER)):
        found |= rates.entries[name]["seconds"] if name in rates.entries else {}
    if stage.startswith(FORM_ALL) and "backward" in found:
        found["backward"] *= DENSE
    return found | rates.entries.get(name_stage(stage, models), {}).get("seconds", {})


def count_units(work: Work) -> dict[str, int]:
    """Return how much there is of each unit."""
    if work == Work():
        return dict.fromkeys(UNITS, 0) | {"start": 1}
    counts = {"encoded": work.encoded, "forward": work.forward, "backward": work.backward, "generated": work.generated}
    return {"start": 1, "row": work.rows, "load": work.loads, **counts}


def lacks(work: Work, seconds: Mapping[str, float]) -> set[str]:
    """Return the units that a stage needs and that nothing is known of."""
    return {unit for unit, count in count_units(work).items() if count and unit not in seconds}


def predict(work: Work, seconds: Mapping[str, float]) -> float:
    """Return the seconds that some work takes.

    >>> predict(Work(rows=2, forward=100), {"start": 1.0, "row": 0.5, "forward": 0.01})
    3.0
    """
    return sum(count * seconds[unit] for unit, count in count_units(work).items() if count)


def learn(work: Work, seconds: Mapping[str, float], took: float) -> dict[str, float]:
    """Return seconds per unit that give what a run took.

    What grows with the work changes by one factor where it was expected to be half of the time or more; else the start
    takes up the difference, so that a run of a few rows, which is mostly its start, says nothing of the many.

    Args:
        work: of the run.
        seconds: per unit, as they were expected.
        took: by the run, seconds.
    """
    counts = count_units(work)
    start = counts["start"] * seconds["start"] + counts["load"] * seconds.get("load", 0.0)
    grows = predict(work, seconds) - start
    known = {unit: seconds[unit] for unit in UNITS if unit in seconds}
    if grows < start or took <= start:
        return known | {"start": max(0.05, took - grows - (start - seconds["start"]))}
    factor = (took - start) / grows
    return {unit: each if unit in ("start", "load") else each * factor for unit, each in known.items()}
