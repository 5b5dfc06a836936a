"""What a study's cells amount to: each selector beside each form of chance, and what it took and cost.

A group is all seeds of a pool, selector, budget and mask. Groups are compared on the seeds that both have; these saw
the same pools and the same held-out rows, so differences are paired by both.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tamis.evaluation.multiple_testing import holm
from tamis.evaluation.paired import Difference, compare_paired, mean_jaccard

RESAMPLES, CONFIDENCE, SEED = 10_000, 0.95, 0
FEWEST = 3  # seeds that a verdict needs: of one or two, resampling knows nothing of how others would differ
NONE = "none"


class Group(NamedTuple):
    """What is compared."""

    pool: str
    selector: str
    budget: str
    mask: str


Cells = Mapping[Group, Mapping[int, Mapping[str, Any]]]  # group -> seed -> cell


@dataclass(frozen=True)
class Summary:
    """What a group took and cost; means over its seeds."""

    group: Group
    role: str
    seeds: int
    settings: int  # different ones, the seed aside; above 1: cells of several defaults stand together
    pool_rows: float
    rows: float
    loss: float  # held out, nats per response token
    gain: float  # loss of the base model less it; above 0: learnt
    correct: float | None  # share of held-out rows answered right; None without a task metric
    corrupted: float  # shares of the chosen rows
    repeats: float
    target: float | None
    pool_corrupted: float  # of the pool's
    pool_repeats: float
    pool_target: float | None
    coverage: float | None
    jaccard: float | None  # of the choices of two seeds; their pools differ, so below 1 even of a fixed rule
    scoring: float  # seconds
    selecting: float
    training: float
    scoring_flops: float | None
    selecting_flops: float  # of a pilot; choosing itself has none
    training_flops: float | None
    full_flops: float | None
    epochs: float

    @property
    def scoring_epochs(self) -> float | None:
        """Return what scoring costs in operations, as epochs of training on all rows; None where that is not known."""
        if self.scoring_flops is None or not self.full_flops:
            return None
        return self.scoring_flops * self.epochs / self.full_flops

    @property
    def scoring_epochs_seconds(self) -> float | None:
        """Return the same in seconds: those of an epoch are the training's, by operations."""
        if not self.full_flops or not self.training_flops or not self.training:
            return None
        return self.scoring * self.epochs / (self.training * self.full_flops / self.training_flops)

    @property
    def break_even_flops(self) -> float | None:
        """Return the same by operations, which no other work on the machine changes; None where they are not known."""
        if self.scoring_flops is None or self.full_flops is None or self.full_flops <= self.training_flops:
            return None
        return (self.scoring_flops + self.selecting_flops) / (self.full_flops - self.training_flops)

    @property
    def break_even(self) -> float | None:
        """Return after how many trainings scoring has paid, against training on all rows; None: on all it is no slower.

        n (full - subset) = scoring, where full takes as many epochs: subset x pool rows / chosen rows.
        """
        saved = self.training * self.pool_rows / self.rows - self.training
        return (self.scoring + self.selecting) / saved if saved > 0 else None


@dataclass(frozen=True)
class Comparison:
    """A group less another one."""

    group: Group
    against: Group
    role: str
    seeds: int
    loss: Difference
    adjusted: float  # p of the loss after Holm, among all comparisons of its family
    correct: Difference | None  # of the share of right answers; above 0: more

    @property
    def verdict(self) -> str:
        """Return better, worse or no difference at family level 5%, or that there are too few seeds to say it."""
        if self.seeds < FEWEST:
            return "too few seeds"
        if self.adjusted > 1 - CONFIDENCE or self.loss.mean == 0:
            return "no difference seen"
        return "better" if self.loss.mean < 0 else "worse"


def group_cells(rows: Iterable[Mapping[str, Any]]) -> dict[Group, dict[int, Mapping[str, Any]]]:
    """Return cells by group and seed; of two with the same name the first counts."""
    found: dict[Group, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        group = Group(*(row[name] for name in Group._fields))
        found.setdefault(group, {}).setdefault(row["seed"], row)
    return found


def summarise(group: Group, cells: Mapping[int, Mapping[str, Any]]) -> Summary:
    """Return what a group took and cost."""
    rows = list(cells.values())

    def mean(name: str, over: str | None = None) -> float | None:
        known = [(row[name], row[over] if over else 1) for row in rows if row[name] is not None]
        return float(np.mean([value / by for value, by in known])) if known else None

    losses, base = (np.mean([np.mean(row[name]) for row in rows]) for name in ("losses", "base_losses"))
    right = [np.mean(row["correct"]) for row in rows if row["correct"]]
    return Summary(
        group=group,
        role=rows[0]["role"],
        seeds=len(rows),
        settings=len({row["rule"] for row in rows}),
        pool_rows=mean("pool_rows"),
        rows=mean("chosen_rows"),
        loss=float(losses),
        gain=float(base - losses),
        correct=float(np.mean(right)) if right else None,
        corrupted=mean("corrupted", "chosen_rows"),
        repeats=mean("repeats", "chosen_rows"),
        target=mean("of_target", "chosen_rows"),
        pool_corrupted=mean("pool_corrupted", "pool_rows"),
        pool_repeats=mean("pool_repeats", "pool_rows"),
        pool_target=mean("pool_target", "pool_rows"),
        coverage=mean("coverage"),
        jaccard=mean_jaccard([set(row["chosen"]) for row in rows]),
        scoring=mean("scoring_seconds"),
        selecting=mean("selecting_seconds"),
        training=mean("training_seconds"),
        scoring_flops=mean("scoring_flops"),
        selecting_flops=float(np.mean([json.loads(row["pilot"])["flops"] if row["pilot"] else 0 for row in rows])),
        training_flops=mean("training_flops"),
        full_flops=mean("full_flops"),
        epochs=mean("epochs"),
    )


def compare_with_chance(cells: Cells, chance: Sequence[str], own: Collection[Group] = ()) -> list[Comparison]:
    """Return every group less each form of chance with the same budget and mask, p-values adjusted by Holm.

    A family is all comparisons of one role with one form of chance; those of two of a study's own groups, which were
    fixed before it ran, are a family apart from those that look further.

    Args:
        cells: of the study, and of others that are told of beside it.
        chance: selectors by chance.
        own: groups of the study; none given: all comparisons of a role with a form of chance are one family.
    """
    pairs = [
        (group, chosen)
        for group in cells
        for name in chance
        if (chosen := group._replace(selector=name)) in cells and group.selector not in chance
    ]
    return adjust(compare_groups(cells, pairs), own)


def compare_groups(cells: Cells, pairs: Sequence[tuple[Group, Group]]) -> list[Comparison]:
    """Return the first group of each pair less the second, on the seeds that both have; p is not adjusted yet.

    Rows are resampled once per pool and set of seeds, for all its comparisons.
    """
    tables: dict[tuple[str, tuple[int, ...]], list[tuple[Group, Group]]] = {}
    for one, other in pairs:
        seeds = tuple(sorted(cells[one].keys() & cells[other].keys()))
        if seeds:
            tables.setdefault((one.pool, seeds), []).append((one, other))
    found = []
    for number, ((_, seeds), own) in enumerate(sorted(tables.items())):
        losses = {str(pair): subtract(cells, pair, seeds, "losses") for pair in own}
        right = {
            str(pair): subtract(cells, pair, seeds, "correct") for pair in own if cells[pair[0]][seeds[0]]["correct"]
        }
        means, shares = (resample(each, number) for each in (losses, right))
        for one, other in own:
            name, role = str((one, other)), cells[one][seeds[0]]["role"]
            about = one, other, role, len(seeds), means[name]
            found.append(Comparison(*about, adjusted=means[name].p, correct=shares.get(name)))
    return found


def subtract(cells: Cells, pair: tuple[Group, Group], seeds: Sequence[int], name: str) -> np.ndarray:
    """Return what a group measures on every held-out row less what another one does, an array [seed, row].

    Raises:
        ValueError: they were measured on other rows, or chose from other ones.
    """
    refuse_other_pools(cells, pair, seeds)
    tables = []
    for group in pair:
        ids = {tuple(cells[one][seed]["ids"]) for one in pair for seed in seeds}
        if len(ids) > 1:
            raise ValueError(
                f"cells of {pair[0].pool} were measured on {len(ids)} different sets of held-out rows, of seeds "
                f"{list(seeds)}; remove the older ones from docs/results/study and run them again"
            )
        tables.append(np.array([cells[group][seed][name] for seed in seeds], np.float64))
    return tables[0] - tables[1]


def refuse_other_pools(cells: Cells, pair: tuple[Group, Group], seeds: Sequence[int]) -> None:
    """Raise ValueError where two groups chose from other rows: a pool has changed and one of them was run again."""
    for seed in seeds:
        if len({cells[group][seed]["pool_digest"] for group in pair}) > 1:
            told = " and ".join(f"{group.selector}{group.budget and f' at {group.budget}'}" for group in pair)
            raise ValueError(
                f"{told} of {pair[0].pool}, seed {seed}, chose from different rows: the pool has changed since one of "
                "them was run; run the study again, with both, and remove cells of budgets that it has no more from "
                f"docs/results/study/*/{pair[0].pool}.parquet"
            )


def resample(differences: Mapping[str, np.ndarray], number: int) -> dict[str, Difference]:
    """Return differences with their intervals; a table of another number draws other rows."""
    generator = np.random.default_rng([SEED, number])
    return compare_paired(differences, resamples=RESAMPLES, confidence=CONFIDENCE, generator=generator)


def adjust(found: Sequence[Comparison], own: Collection[Group]) -> list[Comparison]:
    """Return comparisons with p-values adjusted among those of the same family."""
    families: dict[tuple[str, str, bool], list[int]] = {}
    for place, one in enumerate(found):
        fixed = one.group in own and one.against in own
        families.setdefault((one.role, one.against.selector, fixed), []).append(place)
    adjusted = list(found)
    for places in families.values():
        for place, p in zip(places, holm([found[place].loss.p for place in places]), strict=True):
            adjusted[place] = replace(found[place], adjusted=p)
    return adjusted
