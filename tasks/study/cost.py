"""What a study's cells would cost, counted on the rows of each pool's first seed before any of it runs.

Rows, pairs and tokens are counted as `tamis estimate` counts them. What selectors share, such as scored pairs, counts
once; each cell trains, and has the held-out rows' losses measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tamis.examples.splits import HELD_OUT
from tasks.estimate import plan, rates
from tasks.estimate.rates import Models, Rates
from tasks.estimate.rows import Lengths, mark_chosen, measure_lengths, read_raw
from tasks.estimate.work import Case, Work, count_stage
from tasks.selection.selectors import GATES, SELECTORS, list_read, read_only, reads_vectors

SCORING = ("embedding", "utility", "scores", "gradients")
SUMMED = ("scored", "trainings", "tokens", "seconds")  # of a cost


@dataclass(frozen=True)
class Asked:
    """A cell of a pool, of its first seed."""

    values: Any  # its parameters, as `flows.params` reads them
    steps: int | None  # that are asked for; None: the epochs decide


@dataclass(frozen=True)
class Cost:
    """What a pool costs, for one seed."""

    rows: int  # that may be chosen
    scored: int  # pairs, or rows by a score or by gradients
    trainings: int
    tokens: int  # through the language model
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What the seeds of a pool cost."""

    first: Cost
    again: Cost  # of each further seed; where all seeds have the same rows, scores are at hand


def estimate_pool(
    raw: Path, cells: Sequence[Asked], models: Models, known: Rates, *, same_rows: bool
) -> tuple[Costs, Rates]:
    """Return what the seeds of a pool cost, and the rates with those that had to be calibrated.

    Args:
        raw: folder of its rows.
        cells: selectors, budgets and masks.
        models: of the study.
        known: seconds per unit on this machine.
        same_rows: every seed has these rows; else each draws its own.
    """
    first = cells[0].values
    version = next(iter(first.versions))
    rows = read_raw(raw, None, first.examples, version)
    lengths = measure_lengths(rows, models.language)
    works: dict[str, tuple[str, Work]] = {}
    for number, cell in enumerate(cells):
        case = make_case(rows, lengths, cell.values, models)
        for name, shared in ((name, name_scoring(name, cell.values)) for name in SCORING):
            if shared not in works:
                works[shared] = plan.name_kind(name, cell.values), count_stage(name, case)
        works[f"choosing {number}"] = plan.name_kind("selection", cell.values), count_stage("selection", case)
        works[f"training {number}"] = plan.name_kind("finetuning", cell.values), count_training(case, cell.steps)
        works[f"measuring {number}"] = "evaluation", count_measuring(case)
    works = {name: (kind, work) for name, (kind, work) in works.items() if work != Work()}
    gaps: set[str] = set()
    for kind, work in works.values():
        gaps |= rates.lacks(work, rates.find(known, kind, models))
    wanted = {rates.ENCODER} if "encoded" in gaps else set()
    known = plan.calibrate(known, wanted | ({rates.LANGUAGE} if gaps - {"encoded"} else set()), models)
    rows = len(case.corpus.places("pool"))
    whole = add_up(works, known, models, rows=rows, trainings=len(cells))
    left = {name: one for name, one in works.items() if not name.startswith("scoring")}
    return Costs(whole, add_up(left, known, models, rows=rows, trainings=len(cells)) if same_rows else whole), known


def add_up(works: Mapping[str, tuple[str, Work]], known: Rates, models: Models, *, rows: int, trainings: int) -> Cost:
    """Return what works cost together."""
    seconds = sum(rates.predict(work, rates.find(known, kind, models)) for kind, work in works.values())
    tokens = sum(work.forward + work.backward + work.generated for _, work in works.values())
    scored = sum(work.pairs or work.rows for name, (_, work) in works.items() if name.startswith("scoring"))
    return Cost(rows, scored, trainings, tokens, seconds)


def make_case(rows: list[dict[str, Any]], lengths: Lengths, values: Any, models: Models) -> Case:
    """Return a pool under a cell's parameters."""
    corpus = mark_chosen(rows, lengths, values, None)
    about = {"model": models.language, "encoder": models.encoder, "cache": Path(), "vectors": None}
    return Case(next(iter(values.versions)), values, corpus, None, **about)


def name_scoring(stage: str, values: Any) -> str:
    """Return what cells share that score the same in a stage."""
    chosen = values.selection
    asked = chosen.selector, chosen.gate, chosen.quality
    read, gate = stage in list_read(*asked), chosen.gate and GATES[chosen.gate["by"]]
    said = {
        "embedding": (values.embedding, reads_vectors(*asked, values.utility.kernel)),
        "utility": (values.utility, read, read and read_only(*asked)),
        "scores": (values.scores, read and SELECTORS[chosen.selector].reads == stage and chosen.selector),
        "gradients": (values.gradients, read, values.mask.selector),
    }
    return f"scoring {stage} {said[stage]}{' for a gate' if gate == stage else ''}"


def count_training(case: Case, steps: int | None) -> Work:
    """Return the work of a cell's training."""
    if steps is None:
        return count_stage("finetuning", case)
    settings = replace(case.values.finetuning, epochs=1)
    once = count_stage("finetuning", replace(case, values=replace(case.values, finetuning=settings)))
    each = -(-once.rows // settings.batch_rows)
    epochs = max(1, round(steps / each))
    return replace(once, rows=epochs * once.rows, backward=epochs * once.backward)


def count_measuring(case: Case) -> Work:
    """Return the work of measuring the held-out losses of a trained model and, with a task metric, its answers.

    Rows that are run together share their head, which is left out.
    """
    places, settings = case.corpus.places(HELD_OUT), case.values.evaluation
    said = len(places) * settings.new_tokens if settings.task_metric != "none" else 0
    return Work(
        rows=len(places), forward=case.corpus.whole(places) - len(places) * case.corpus.head, generated=said, loads=1
    )


def add(cost: Costs, before: Costs) -> Costs:
    """Return what a pool costs with the version that it continues from, whose rows are not its own."""
    pairs = (cost.first, before.first), (cost.again, before.again)
    return Costs(
        *(replace(own, **{name: getattr(own, name) + getattr(other, name) for name in SUMMED}) for own, other in pairs)
    )


def total(costs: Mapping[str, Costs], seeds: Mapping[str, int]) -> Cost:
    """Return what all seeds of all pools cost together.

    >>> total({"a": Costs(Cost(10, 5, 2, 100, 1.5), Cost(10, 0, 2, 80, 1.0))}, {"a": 3})
    Cost(rows=10, scored=5, trainings=6, tokens=260, seconds=3.5)
    """
    sums = {
        name: sum(
            getattr(one.first, name) + (seeds[pool] - 1) * getattr(one.again, name) for pool, one in costs.items()
        )
        for name in SUMMED
    }
    return Cost(sum(one.first.rows for one in costs.values()), **sums)
