"""Selectors and masks side by side: every pair at every budget with every seed, random ones always among them.

for each selector, mask, budget and seed:
    score what both read, choose rows and parameters, train these on those, measure the held-out losses
then say how far each is from chance, with intervals, and what it cost

With masks there are three variants: rows alone (mask none), parameters alone (selector all), and both; a budget given
as a fraction is then spent on each. Without a mask all weights are trained, so that all cells train in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from flows import params
from flows.checks import refuse_contradictions
from flows.graph.stages import needs
from flows.params import Params
from flows.stage import fingerprint, named, refuse_edited, say, sources
from flows.stage_calls import CACHE, SCORING, STAGES, folder, language
from flows.trials import Trial, attempt, conclude, digest, read_choice
from flows.unread import list_sparse
from tasks.masks.settings import MaskSettings
from tasks.selection.selectors import CHANCE, SELECTORS, list_read
from tasks.utility.settings import name_kernel

MASKS = get_args(get_type_hints(MaskSettings)["selector"])
ALL, RANDOM, NONE = "all", "random", "none"  # every row of the pool; chance; every parameter
TRIED = (*SCORING, "selection", "finetuning")
LOSSES = {"ids": list, "general_ids": list, "losses": dict, "general_losses": dict, "correct": dict}  # of a model
BLIND = {"gate": None, "pilot": None}  # of what is chosen by chance, which knows nothing of the rows


class CompareError(ValueError):
    """Selectors cannot be compared as asked."""


@dataclass(frozen=True)
class Cell:
    """What is compared."""

    selector: str
    mask: str
    budget: str  # as it was written: 0.1, 48

    def __str__(self) -> str:
        """Return its name for people.

        >>> str(Cell("delift", "none", "0.1")), str(Cell("all", "fisher", "0.1"))
        ('delift at 0.1', 'all in fisher mask at 0.1')
        """
        return f"{self.selector}{'' if self.mask == NONE else f' in {self.mask} mask'} at {self.budget}"


def compare(
    version: str, *, budgets: Sequence[str], seeds: int, selectors: Sequence[str] = (), masks: Sequence[str] = (NONE,)
) -> list[dict[str, Any]]:
    """Compare selectors and masks on a data version, write `data/comparison/version=<v>/`, and return a row per cell.

    Args:
        version: from params.yaml; the version that it continues from must be up to date.
        budgets: fractions of the pool (with a point, at most 1) and of the parameters, or counts of rows.
        seeds: of training, and of what is drawn: 0 to seeds - 1.
        selectors: words of selection.selector, or `all`; that of params.yaml, where none is given. `random` is added.
        masks: words of mask.selector; with any but `none`, `none` and `random` are added, and selector `all`.

    Raises:
        CompareError: an unknown version, selector or mask, a budget that is none, no seed, a stale version before.
        BudgetError: the pool cannot keep a budget.
        RecordError: the raw data of a recorded version were rewritten.
        InputsChanged: something was edited meanwhile.
    """
    values = read(version)
    loaded = sources(f"{name}@{version}" for name in STAGES)  # no stage's module is imported yet
    cells = plan(selectors or [values.selection.selector], budgets, masks)
    for note in list_sparse(values, [cell.selector for cell in cells]):
        say(note)
    if seeds < 1:
        raise CompareError(f"seeds is {seeds}; give at least 1")
    refuse_stale(version, values)
    from tasks.comparison import write_comparison

    masked = any(cell.mask != NONE for cell in cells)
    if masked:
        refuse_other_method(version, values)
    asked = [(cell, ask(cell, seed, values, masked)) for cell in cells for seed in range(seeds)]
    examples = attempt("examples", version, values, {}, loaded)
    with named(f"selection@{version}"):
        refuse_budgets(asked, examples.folder / "examples.parquet")
    trials, base = [], {}
    for place, (cell, each) in enumerate(asked, start=1):
        say(f"{cell}, seed {each.finetuning.arms['chosen'][0]} ({place} of {len(asked)} trainings)")
        found, base = run_cell(cell, each, examples, version=version, loaded=loaded)
        trials.append(found)
    digests = fingerprint(f"examples@{version}")
    inputs = {path: digests[path] for path in needs(f"examples@{version}")[0]}
    settings = {"resamples": values.evaluation.bootstrap, "confidence": values.evaluation.confidence}
    settings |= {"out": folder("comparison", version), "version": version, "inputs": inputs}
    losses = base["losses"], base["general_losses"]
    rows = write_comparison(trials, *losses, seed=values.evaluation.seed, **settings)
    tell_costs(rows, values)
    tell_resumed(rows)
    tell_floor(rows, values.evaluation.task_metric)
    return rows


def read(version: str) -> Params:
    """Return the parameters, where they have a version and the raw data of recorded ones are what they were."""
    from flows.graph.dvc_state import prepare
    from flows.graph.versions import refuse_rewritten

    values = params.read()
    prepare()
    if version not in values.versions:
        raise CompareError(f"there is no data version {version!r}; params.yaml has {', '.join(values.versions)}")
    refuse_rewritten(values.versions)
    return values


def refuse_stale(version: str, values: Params) -> None:
    """Raise CompareError where what a version continues from is not up to date; `base` always is."""
    previous = values.versions[version].previous
    if previous == params.BASE:
        return
    from flows.graph import dvc_state

    found = dvc_state.standings(dvc_state.plan([previous]))
    stale = [f"{address} is {state} ({why})" for address, state, why in found if state != "fresh"]
    if stale:
        raise CompareError(
            f"{version} continues from {previous}, of which {len(stale)} of {len(found)} stages are not up to date, "
            f"first {'; '.join(stale[:3])}; bring them up to date: `tamis run {previous}`"
        )


def refuse_other_method(version: str, values: Params) -> None:
    """Raise CompareError where a mask cannot go on from the model that a version continues from."""
    from tasks.artifacts.tables import read_json

    previous = values.versions[version].previous
    if previous == params.BASE:
        return
    path = folder("finetuning", previous) / "finetuning.json"
    method = read_json(path, ["method"])["method"]
    if method != "masked":
        raise CompareError(
            f"{version} continues from {previous}, whose arms are of method {method}, and a mask goes on from a masked "
            "arm or from the base; compare masks on a first version, or make that version again with "
            "finetuning.method: masked"
        )


def tell_costs(rows: Sequence[Mapping[str, Any]], values: Params) -> None:
    """Say what each choice cost, and when it has paid."""
    from tasks.comparison import tell_costs as tell

    for row in rows:
        if row["selector"] not in (ALL, *CHANCE):
            read = list_read(row["selector"], values.selection.gate, find_quality(row["selector"], values))
            by_all_pairs = "utility" in read and name_kernel(row["selector"], values.utility) == "exact"
            cell = Cell(row["selector"], row["mask"], row["budget"])
            say(f"{cell}: {tell(row, power=2 if by_all_pairs else 1)}")


def find_quality(selector: str, values: Params) -> str:
    """Return the quality of demos that a selector is compared with: it is of delift, and of the project's own one."""
    return values.selection.quality if selector in (values.selection.selector, "delift") else "none"


def tell_resumed(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where seconds leave out what an interrupted attempt took."""
    cells = [str(Cell(row["selector"], row["mask"], row["budget"])) for row in rows if row["resumed"]]
    if cells:
        say(
            f"seconds of {len(cells)} of {len(rows)} cells leave out what interrupted attempts took "
            f"(column resumed), first {', '.join(cells[:3])}"
        )


def tell_floor(rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Say where no cell answered any held-out row right."""
    if metric != "none" and not any(row["correct"] for row in rows):
        say(f"{metric}: no cell answered any held-out row right (a floor of 0), so it tells nothing of the cells")


def plan(selectors: Sequence[str], budgets: Sequence[str], masks: Sequence[str] = (NONE,)) -> list[Cell]:
    """Return the cells, random rows first at every budget, each with every mask.

    >>> [str(cell) for cell in plan(["longest"], ["0.1"])]
    ['random at 0.1', 'longest at 0.1']
    >>> len(plan(["longest"], ["0.1"], ["fisher"]))  # random, all, longest; none, random, fisher
    9
    """
    for what, given, known in (("selector", selectors, (*SELECTORS, ALL)), ("mask", masks, MASKS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise CompareError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
    if not budgets:
        raise CompareError("no budget is given; give fractions of the pool such as 0.1,0.3, or counts of rows")
    masked = set(masks) != {NONE}
    names = dict.fromkeys([RANDOM, *([ALL] if masked else []), *selectors])
    within = dict.fromkeys([NONE, *([RANDOM, *masks] if masked else [])])
    return [
        Cell(name, mask, budget)
        for budget in dict.fromkeys(budgets)
        for name in names
        for mask in within
        if read_budget(budget)
    ]


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


def ask(cell: Cell, seed: int, values: Params, masked: bool) -> Params:
    """Return the parameters of a cell's trials; what is drawn by chance has the seed of the training.

    Args:
        cell: what is compared.
        seed: of training, and of what is drawn.
        values: params.yaml.
        masked: there are cells with masks; those without one train all weights then.

    Raises:
        ParamsError: the cell's parameters contradict each other.
    """
    from tasks.selection.selection import find_seed

    budget = read_budget(cell.budget)
    everything = {"selector": RANDOM, "budget": {"fraction": 1.0}, "caps": {}, "floors": {}}
    rows = everything if cell.selector == ALL else {"selector": cell.selector, "budget": budget}
    rows |= BLIND if rows["selector"] in CHANCE else {}
    rows |= {"quality": find_quality(cell.selector, values)}
    asked = replace(values.selection, **rows, seed=seed)
    cut = {"budget": budget} if cell.mask != NONE and "fraction" in budget else {}
    cut |= {"update_steps": None} if cell.mask != "dualsft" else {}
    drawn = cell.selector != ALL and find_seed(asked) is not None  # without a draw all seeds share one choice
    method = "masked" if cell.mask != NONE else "full" if masked else values.finetuning.method
    found = replace(
        values,
        selection=replace(asked, seed=seed if drawn else 0),
        mask=replace(values.mask, selector=cell.mask, seed=seed if cell.mask == RANDOM else 0, **cut),
        finetuning=replace(values.finetuning, arms={"chosen": [seed]}, whole_model=False, method=method),
    )
    refuse_contradictions(found)
    return found


def refuse_budgets(asked: Sequence[tuple[Cell, Params]], source: Path) -> None:
    """Raise BudgetError at a budget that the pool cannot keep, before anything is scored.

    Args:
        asked: cells and their parameters.
        source: examples.parquet.
    """
    from tasks.selection.selection import refuse_budget

    for _, values in asked:
        refuse_budget(source, values.selection)


def run_cell(
    cell: Cell, values: Params, examples: Trial, *, version: str, loaded: Mapping[str, str]
) -> tuple[Any, dict[str, list[float]]]:
    """Return what a cell reaches with a seed, and the losses of the base model."""
    from tasks.comparison import Cell as Place
    from tasks.comparison import Trial as Compared

    done = {"examples": examples}
    for name in TRIED:
        done[name] = attempt(name, version, values, done, loaded)
    trained, base = measure(values, version, done, loaded)
    chosen = read_choice(done["selection"])
    mask = chosen["mask"]
    return Compared(
        cell=Place(cell.selector, cell.mask, cell.budget),
        seed=values.finetuning.arms["chosen"][0],
        rows=chosen["chosen_rows"],
        share=chosen["chosen_fraction"],
        parameters=mask["chosen"] / mask["entries"] if cell.mask != NONE else 1.0,
        ids=trained["ids"],
        losses=trained["losses"],
        general_ids=trained["general_ids"],
        general_losses=trained["general_losses"],
        correct=trained["correct"],
        scoring_seconds=sum(done[name].notes.get("scoring_seconds", 0.0) for name in SCORING),
        selecting_flops=(chosen["pilot"] or {"flops": 0})["flops"],
        scoring_flops=sum(done[name].notes.get("scoring_flops", 0) for name in SCORING),
        training=next(iter(done["finetuning"].notes["training"].values())),
        full_flops=done["finetuning"].notes["full_flops"],
        selecting_seconds=done["selection"].seconds,
        training_seconds=done["finetuning"].seconds,
        resumed=[done[name].key for name in (*SCORING, "finetuning") if done[name].resumed],
    ), base


def measure(
    values: Params, version: str, done: Mapping[str, Trial], loaded: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the held-out rows and the losses on them and on the general rows, of the trained model and of the base."""
    from tasks.artifacts.remembered import recall
    from tasks.artifacts.stores import in_use
    from tasks.evaluation.evaluation import measure_losses

    address, found = f"evaluation@{version}", []
    asked = {"metric": values.evaluation.task_metric, "new_tokens": values.evaluation.new_tokens}
    asked |= {"new_tokens": 0} if asked["metric"] == "none" else {}
    name = f"losses-{digest({'sources': sources([address]), **asked})}.json"
    for home, arms in ((done["finetuning"].folder, done["finetuning"].folder), (done["examples"].folder, None)):
        record = recall(home / name, LOSSES)
        if record is None:  # or damaged: it is no more than kept
            asked |= {"model": language(values)}
            with in_use(CACHE):
                record = measure_losses(examples=done["examples"].folder, arms=arms, store=CACHE, **asked)
            refuse_edited(address, loaded)
            conclude(home / name, record)
        only = {key: next(iter(record[key].values()), []) for key in ("losses", "general_losses", "correct")}
        found.append({"ids": record["ids"], "general_ids": record["general_ids"]} | only)
    return found[0], found[1]


def repeat(version: str, seeds: int = 5) -> list[dict[str, Any]]:
    """Return what becomes of repeated rows of a version that are left in the pool, per topic.

    Facility location over embeddings gains nothing from a row that it has already; random rows know nothing of that.
    Which rows are new does not matter here, so no version before it is read. Without a repeated row nothing is chosen,
    and nothing returned.
    """
    values = read(version)
    loaded = sources(f"{name}@{version}" for name in STAGES)  # no stage's module is imported yet
    from tasks.comparison import count_repeats, has_repeats

    alone = {version: replace(values.versions[version], previous=params.BASE)}
    everything = {"deduplicate": False, "ground_set": "all", "target": None, "pool_rows": None}
    values = replace(values, versions=alone, examples=replace(values.examples, **everything))
    examples = attempt("examples", version, values, {}, loaded)
    if not has_repeats(examples.folder):
        return []
    choices = [("embedding", 0), *(("random", seed) for seed in range(seeds))]
    folders = []
    for selector, seed in choices:
        choice = {"selector": selector, "quality": "none", "objective": "facility_location", "seed": seed}
        choice |= {"caps": {}, "floors": {}, **BLIND}
        chosen = replace(
            values, selection=replace(values.selection, **choice), mask=replace(values.mask, selector=NONE)
        )
        done = {"examples": examples}
        for name in (*SCORING, "selection"):
            done[name] = attempt(name, version, chosen, done, loaded)
        folders.append(done["selection"].folder)
    return count_repeats(examples.folder, folders[0], folders[1:])
