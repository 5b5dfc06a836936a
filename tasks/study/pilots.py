"""How often a pilot decides between a choice and chance, and how often rightly.

A pilot (`selection.pilot`) trains both briefly and takes one, or a mixture where it cannot tell; its cells stand beside
those of the same choice without one, which tell what would have been better.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.study.analysis import Cells, Group
from tasks.study.goals import DEFAULT

RIGHT = {"choice": -1, "chance": 1}  # decision -> sign of the choice's loss less chance's where it is right


@dataclass(frozen=True)
class Piloted:
    """What the pilots of a pool and budget did."""

    group: Group
    pilots: int  # one per seed
    decided: int  # for the choice or for chance
    right: int  # of these
    truth: float  # loss of the choice without a pilot less that of chance, mean over seeds
    seconds: float  # of a pilot


def judge_pilots(cells: Cells, chance: str) -> list[Piloted]:
    """Return what pilots did wherever cells of the default without one, and of chance, stand beside theirs."""
    found = []
    for group, own in cells.items():
        records = [json.loads(cell["pilot"]) for cell in own.values() if cell["pilot"]]
        both = [without_pilot(cells.get(group._replace(selector=name), {})) for name in (DEFAULT, chance)]
        seeds = sorted(both[0].keys() & both[1].keys())
        if records and seeds:
            truth = float(np.mean([mean_loss(both[0][seed]) - mean_loss(both[1][seed]) for seed in seeds]))
            found.append(count(group, records, truth))
    return found


def without_pilot(cells: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return those of a group's cells, by seed, in which no pilot had a word: it cannot judge itself."""
    return {seed: cell for seed, cell in cells.items() if not cell["pilot"]}


def mean_loss(cell: Mapping[str, Any]) -> float:
    """Return the mean held-out loss of a cell."""
    return float(np.mean(cell["losses"]))


def count(group: Group, records: Sequence[Mapping[str, Any]], truth: float) -> Piloted:
    """Return how many pilots decided, and how many of them rightly.

    >>> records = [{"decision": name, "seconds": 2.0} for name in ("choice", "chance", "mixture")]
    >>> found = count(Group("p", "piloted", "0.3", "none"), records, -0.1)
    >>> found.decided, found.right
    (2, 1)
    """
    decided = [RIGHT[record["decision"]] for record in records if record["decision"] in RIGHT]
    right = sum(sign * truth > 0 for sign in decided)
    seconds = float(np.mean([record.get("seconds", 0.0) for record in records]))
    return Piloted(group, len(records), len(decided), right, truth, seconds)
