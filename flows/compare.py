"""Selectors side by side: every one at every budget with every seed, random rows always among them.

for each selector, budget and seed:
    score what the selector reads, choose rows, train on them, measure the held-out losses
then say how far each is from random rows, with intervals, and what it cost
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args, get_type_hints

from flows import params
from flows.rooms import ROOMS, folder, language
from flows.sections import Params, Selection
from flows.stage import fingerprint, refuse_edited, say, sources
from flows.trials import Trial, attempt, conclude, digest

SELECTORS = get_args(get_type_hints(Selection)["rows_by"])
SCORING = ("embedding", "utility", "scores")  # stages whose cost is the selector's


class CompareError(ValueError):
    """Selectors cannot be compared as asked."""


@dataclass(frozen=True)
class Cell:
    """What is compared: a selector at a budget."""

    selector: str
    budget: str  # as it was written: 0.1, 48


def compare(version: str, *, selectors: Sequence[str], budgets: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Compare selectors on a data version, write `data/comparison/version=<v>/`, and return a row per cell.

    Args:
        version: from params.yaml; the version that it continues from must be up to date.
        selectors: words of selection.rows_by; `random` is added where it is missing.
        budgets: fractions of the pool (with a point, at most 1) or counts of rows.
        seeds: of training, and of what is drawn: 0 to seeds - 1.

    Raises:
        CompareError: an unknown version or selector, a budget that is none, no seed, a stale version before.
        RecordError: the raw data of a recorded version were rewritten.
        InputsChanged: something was edited meanwhile.
    """
    values = read(version)
    loaded = sources(f"{name}@{version}" for name in ROOMS)  # no stage's module is imported yet
    cells = plan(selectors, budgets)
    if seeds < 1:
        raise CompareError(f"seeds is {seeds}; give at least 1")
    refuse_stale(version, values)
    from tasks.comparison import write_comparison

    examples = attempt("examples", version, values, {}, loaded)
    trials, base = [], []
    for place, cell in enumerate(cells, start=1):
        for seed in range(seeds):
            say(f"{cell.selector} at {cell.budget}, seed {seed} ({place} of {len(cells)} cells)")
            found, base = run_cell(cell, seed, values, examples, version=version, loaded=loaded)
            trials.append(found)
    digests = fingerprint(f"examples@{version}")
    inputs = {path: digests[path] for path in params.needs(f"examples@{version}")[0]}
    settings = {"resamples": values.evaluation.bootstrap, "confidence": values.evaluation.confidence}
    out = folder("comparison", version)
    rows = write_comparison(
        trials, base, out=out, version=version, inputs=inputs, seed=values.evaluation.seed, **settings
    )
    tell_resumed(rows)
    return rows


def read(version: str) -> Params:
    """Return the parameters, where they have a version and the raw data of recorded ones are what they were."""
    from flows.record import refuse_rewritten

    values = params.read()
    if version not in values.versions:
        raise CompareError(f"there is no data version {version!r}; params.yaml has {', '.join(values.versions)}")
    refuse_rewritten(values.versions)
    return values


def refuse_stale(version: str, values: Params) -> None:
    """Raise CompareError where what a version continues from is not up to date; `base` always is."""
    previous = values.versions[version].previous
    if previous == params.BASE:
        return
    from flows import dvcstate

    found = dvcstate.standings([previous])
    stale = [f"{address} is {state} ({why})" for address, state, why in found if state != "fresh"]
    if stale:
        raise CompareError(
            f"{version} continues from {previous}, of which {len(stale)} of {len(found)} stages are not up to date, "
            f"first {'; '.join(stale[:3])}; bring them up to date: `tamis run {previous}`"
        )


def tell_resumed(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where seconds leave out what an interrupted attempt took."""
    cells = [f"{row['selector']} at {row['budget']}" for row in rows if row["resumed"]]
    if cells:
        say(
            f"seconds of {len(cells)} of {len(rows)} cells leave out what interrupted attempts took "
            f"(column resumed), first {', '.join(cells[:3])}"
        )


def plan(selectors: Sequence[str], budgets: Sequence[str]) -> list[Cell]:
    """Return the cells, random rows first at every budget.

    >>> [(cell.selector, cell.budget) for cell in plan(["longest"], ["0.1"])]
    [('random', '0.1'), ('longest', '0.1')]
    """
    unknown = [name for name in selectors if name not in SELECTORS]
    if unknown:
        raise CompareError(f"unknown selector {unknown[0]!r}; known: {', '.join(SELECTORS)}")
    if not budgets:
        raise CompareError("no budget is given; give fractions of the pool such as 0.1,0.3, or counts of rows")
    names = dict.fromkeys(["random", *selectors])
    return [Cell(name, budget) for budget in dict.fromkeys(budgets) for name in names if read_budget(budget)]


def read_budget(text: str) -> dict[str, int | float]:
    """Return a budget as params.yaml writes it.

    >>> read_budget("0.1"), read_budget("48")
    ({'fraction': 0.1}, {'count': 48})
    """
    try:
        budget = {"count": int(text)} if text.isdigit() else {"fraction": float(text)}
    except ValueError:
        budget = {}
    amount = next(iter(budget.values()), 0)
    if not amount > 0 or ("fraction" in budget and amount > 1):
        raise CompareError(f"{text!r} is no budget; give a fraction of the pool such as 0.1, or a count of rows")
    return budget


def run_cell(
    cell: Cell, seed: int, values: Params, examples: Trial, *, version: str, loaded: Mapping[str, str]
) -> tuple[Any, list[float]]:
    """Return what a selector reaches at a budget with a seed, and the losses of the base model."""
    from tasks.comparison import Trial as Compared
    from tasks.selection import SelectionSettings, find_seed

    asked = replace(values.selection, rows_by=cell.selector, budget=read_budget(cell.budget), seed=seed)
    drawn = find_seed(SelectionSettings(**asdict(asked)))  # without a draw all seeds share one choice
    values = replace(
        values,
        selection=replace(asked, seed=drawn or 0),
        finetuning=replace(values.finetuning, arms={"chosen": [seed]}, whole_model=False),
    )
    done = {"examples": examples}
    for name in ("embedding", "utility", "scores", "selection", "finetuning"):
        done[name] = attempt(name, version, values, done, loaded)
    ids, losses, base = measure(values, version, done, loaded)
    chosen = json.loads((done["selection"].folder / "selection.json").read_text(encoding="utf-8"))
    return Compared(
        selector=cell.selector,
        budget=cell.budget,
        seed=seed,
        rows=chosen["chosen_rows"],
        share=chosen["chosen_fraction"],
        ids=ids,
        losses=losses,
        scoring_seconds=sum(done[name].notes.get("scoring_seconds", 0.0) for name in SCORING),
        selecting_seconds=done["selection"].seconds,
        training_seconds=done["finetuning"].seconds,
        resumed=[done[name].key for name in (*SCORING, "finetuning") if done[name].resumed],
    ), base


def measure(
    values: Params, version: str, done: Mapping[str, Trial], loaded: Mapping[str, str]
) -> tuple[list[str], list[float], list[float]]:
    """Return the held-out rows, the losses of the trained model on them, and those of the base model."""
    from tasks.evaluation import measure_losses

    address, found = f"evaluation@{version}", []
    name = f"losses-{digest(sources([address]))}.json"
    for home, arms in ((done["finetuning"].folder, done["finetuning"].folder), (done["examples"].folder, None)):
        if not (home / name).exists():
            model, template = language(values), values.utility.template
            record = measure_losses(examples=done["examples"].folder, arms=arms, model=model, template=template)
            refuse_edited(address, loaded)
            conclude(home / name, record)
        found.append(json.loads((home / name).read_text(encoding="utf-8")))
    (trained,) = found[0]["losses"].values()
    return found[0]["ids"], trained, found[1]["losses"]["base"]


def repeat(version: str, seeds: int = 5) -> list[dict[str, Any]]:
    """Return what becomes of repeated rows of a version that are left in the pool, per topic.

    Facility location over embeddings gains nothing from a row that it has already; random rows know nothing of that.
    Which rows are new does not matter here, so no version before it is read.
    """
    values = read(version)
    loaded = sources(f"{name}@{version}" for name in ROOMS)  # no stage's module is imported yet
    from tasks.comparison import count_repeats

    alone = {version: replace(values.versions[version], previous=params.BASE)}
    everything = {"distinct": False, "ground_set": "all", "target": None, "pool_rows": None}
    values = replace(values, versions=alone, examples=replace(values.examples, **everything))
    examples = attempt("examples", version, values, {}, loaded)
    choices = [("embedding", 0), *(("random", seed) for seed in range(seeds))]
    folders = []
    for selector, seed in choices:
        choice = {"rows_by": selector, "objective": "facility_location", "caps": {}, "floors": {}, "seed": seed}
        chosen = replace(values, selection=replace(values.selection, **choice))
        done = {"examples": examples}
        for name in ("embedding", "utility", "scores", "selection"):
            done[name] = attempt(name, version, chosen, done, loaded)
        folders.append(done["selection"].folder)
    return count_repeats(examples.folder, folders[0], folders[1:])
