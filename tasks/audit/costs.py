"""What a version's choice cost and when it has paid, from what its stages said of their last runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tamis.evaluation.costs import Cost, find_pool_sizes, tell_break_even, tell_cost
from tasks.artifacts.tables import read_json

SCORING = ("embedding", "utility", "scores", "gradients")  # stages whose cost is that of the choice
BY_ALL_PAIRS = "exact"  # the kernel whose pairs grow with the square of the pool


def read_costs(root: Path, version: str) -> dict[str, Any] | None:
    """Return the costs of scoring, choosing and training in seconds and operations, and the break-even in words.

    Where no arm was trained on all rows, that training's operations are counted from its tokens, and its seconds are
    those at the rate of the chosen arm. Choosing has operations where a pilot trains; its trainings that were kept
    count as if they were done in this run.

    Returns:
        None where a stage did not say what it took, or no arm was trained on the choice.
    """
    records = {name: _read(root, name, version, "run.json") for name in (*SCORING, "selection", "finetuning")}
    trained = records["finetuning"].get("training", {})
    chosen, full = (_mean(trained, arm) for arm in ("chosen", "full"))
    if not chosen or any("scoring_flops" not in records[name] for name in SCORING) or not records["selection"]:
        return None
    measured = full is not None
    counted = records["finetuning"]["full_flops"]
    full = full or {"seconds": chosen["seconds"] * counted / max(1, chosen["flops"]), "flops": counted}
    scoring = {unit: sum(records[name][f"scoring_{unit}"] for name in SCORING) for unit in ("seconds", "flops")}
    pilot = _read(root, "selection", version, "selection.json").get("pilot") or {"seconds": 0.0, "flops": 0}
    choosing = {"seconds": max(records["selection"]["seconds"], pilot["seconds"]), "flops": pilot["flops"]}
    found = {"scoring": scoring, "choosing": choosing}
    found |= {"training_chosen": chosen, "training_full": full | {"measured": measured}}
    return found | {"told": tell(found, _read(root, "selection", version, "selection.json"), records["utility"])}


def tell(found: Mapping[str, Any], chosen: Mapping[str, Any], utility: Mapping[str, Any]) -> list[str]:
    """Return costs and break-even in words.

    Args:
        found: costs, as `read_costs` returns them.
        chosen: selection.json: rows of the pool, and the budget's kind.
        utility: what stage utility said of its run: which kernel it scored.
    """
    names = {
        "scoring": "scoring",
        "choosing": "choosing",
        "training_chosen": "training on the choice",
        "training_full": "training on all rows",
    }
    how = "" if found["training_full"]["measured"] else " (not run: by its tokens, at the rate of the choice)"
    told = [tell_cost(words, found[name]["seconds"], found[name]["flops"]) for name, words in names.items()]
    seconds, flops = (Cost(*(found[name][unit] for name in names)) for unit in ("seconds", "flops"))
    power = 2 if utility.get("kernel") == BY_ALL_PAIRS else 1
    fixed = chosen["budget"]["kind"] != "fraction"
    piloted = found["choosing"]["flops"] > 0
    sizes = find_pool_sizes(seconds, chosen["pool_rows"], power=power, fixed=fixed, piloted=piloted)
    return [f"cost: {' · '.join(told)}{how}", tell_break_even(seconds, flops, sizes)]


def _read(root: Path, stage: str, version: str, name: str) -> dict[str, Any]:
    path = Path(root) / f"data/{stage}/version={version}/{name}"
    return read_json(path)


def _mean(trained: Mapping[str, Mapping[str, float]], arm: str) -> dict[str, float] | None:
    """Return the mean cost of an arm's trainings; None where there are none."""
    runs = [run for label, run in trained.items() if label.rpartition("-")[0] == arm]
    return {unit: float(np.mean([run[unit] for run in runs])) for unit in ("seconds", "flops")} if runs else None
