"""Stage `selection`: which rows of the pool are trained on, in which order and what each covers, and which parameters.

Under an order or lazy greedy a budget of rows (count or fraction) takes the first rows of what a larger one takes, with
the same caps, too. Every other budget, every other optimiser and a stratified choice, whose caps follow the budget, is
a run of its own on the same similarities. Rows and mask are chosen apart: each is written, and says what it was made
from, whatever the other is.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.scores.baselines import order_deft_ucs, order_longest, order_scores
from tamis.scores.bm25 import order_bm25
from tamis.submodular import cosines, objectives
from tamis.submodular.budgets import Budget, draw, measure_room, narrow, rank, resolve, stratify
from tamis.submodular.greedy import Choice, choose
from tamis.submodular.kernels import repeat, scale
from tamis.submodular.optimisers import Map, maximise, restrict, share_of_all, share_of_random
from tamis.training.chance import name_groups, order_balanced
from tamis.utility.quality import cap_diagonal
from tasks import models
from tasks.artifacts.tables import Provenance, digest, digest_inputs, read_table, write_json, write_table
from tasks.decisions import PIN, list_decided
from tasks.folders import Artifacts, Folders
from tasks.masks.mask_tables import read_mask, write_mask
from tasks.masks.settings import MaskSettings
from tasks.selection.gates import FILES, describe_gate, pass_gate, read_gate, refuse_whole, spare
from tasks.selection.inputs import (
    Similar,
    compare_directions,
    compare_vectors,
    cut,
    find_places,
    read_pairs,
    read_phi,
    read_probes,
    read_scores,
    read_utility,
    read_vectors,
)
from tasks.selection.outcome import ChosenRows, describe, describe_objective, describe_scores, tabulate, widen
from tasks.selection.rows import Rows, SelectionError, list_texts, read_rows, read_texts
from tasks.selection.selectors import SELECTORS, may_stratify, reads_pairs
from tasks.selection.settings import SelectionSettings
from tasks.settings import RuntimeSettings

if TYPE_CHECKING:
    from tasks.selection.pilot import Training

READ = {  # stage whose artifact a selector reads -> what its selectors read, by the stage that writes it
    "utility": {"utility.parquet": "utility", "checked.parquet": "utility", "embedding.parquet": "embedding"},
    "embedding": {"embedding.parquet": "embedding"},
    "scores": {"scores.parquet": "scores"},
    "gradients": {"phi_data.parquet": "gradients"},
}
READ_ALSO = {"dualsft_cover": {"sketches.parquet": "gradients"}}  # selector -> what it reads besides
NO_ROOM = "the budget, a floor or a cap leaves no room for it"
DRAWS = 5  # random choices that a choice is checked against


def write_selection(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: SelectionSettings,
    diagonal: str,
    mask: MaskSettings,
    training: "Training | None" = None,
    runtime: RuntimeSettings | None = None,
    decisions: Path | None = None,
    map: Map = map,
) -> None:
    """Choose rows and parameters; write `subset.parquet`, a row for each of the pool, the mask and `selection.json`.

    Args:
        folders: of gradients only the scores of selectors `dualsft` and `fisher` are read.
        model: that the mask is for; without a mask nothing of it is read.
        settings: of the rows.
        diagonal: what a row that covers itself counts for under selector `delift` (`utility.diagonal`).
        mask: of the parameters.
        training: how rows are trained on afterwards, which a pilot does briefly; wanted with one.
        runtime: how a pilot's losses are computed; likewise.
        decisions: the list of pinned rows, which are chosen before all others; None: none is.
        map: runs the parts of the optimiser `partition`.

    Raises:
        SelectionError, BudgetError, KernelError, MaskError: what is asked for cannot be chosen; `subset.parquet` is
            written only once all is known.
    """
    if settings.selector == "dualsft_cover":
        settings = replace(settings, objective="facility_location")
    here = folders.here
    out, table = here.selection, here.examples / "examples.parquet"
    sources, pinned = {"examples": table} | name_sources(here, settings), list_decided(decisions, PIN)
    rows = read_rows(table, pinned)
    budget = resolve_budget(rows.ground, settings)
    gate = spare(read_gate(settings.gate, rows, sources.get("gate")), rows.find_pinned())
    ours, narrowed = pass_gate(rows, budget, gate)
    picks = pin(choose_rows(ours, narrowed, sources, settings, diagonal=diagonal, map=map), ours, narrowed)
    checked = check(ours, narrowed, picks, sources["checked"]) if settings.selector == "delift" else None
    cut = write_mask(mask, examples=table, gradients=here.gradients, out=out, version=here.version, model=model)
    proposed, piloted = widen(picks, gate), None
    if settings.pilot is not None:
        from tasks.selection.pilot import Place, run_pilot  # seconds to import

        inside = read_mask(out, model) if training.method == "masked" else None
        place = Place(table, folders.cache / "pilots", model, training, runtime, inside)
        order, piloted = run_pilot(place, settings.pilot, proposed.order, budget, settings.seed)
        if piloted["decision"] != "choice":
            proposed = picks = ChosenRows(put_first(order, rows, budget))
            checked = None
    asked, read = name_settings(settings, diagonal, pinned), digest_inputs(*sources.values())
    made = Provenance("selection", here.version, asked, read, find_seed(settings))
    write_table(tabulate(rows.ground, proposed, gate), out / "subset.parquet", made)
    found = describe(rows, budget, proposed, settings) | describe_objective(picks, settings) | describe_scores(picks)
    found |= {"gate": describe_gate(rows, gate), "pins": describe_pins(rows, pinned)}
    write_json(found | {"pilot": piloted, "checked": checked, "mask": cut}, out / "selection.json")


def name_settings(settings: SelectionSettings, diagonal: str, pinned: Collection[str]) -> dict[str, Any]:
    """Return what the choice was asked for, for its record."""
    asked = asdict(settings) | ({"diagonal": diagonal} if settings.selector == "delift" else {})
    return asked | ({"pinned": sorted(pinned)} if pinned else {})


def describe_pins(rows: Rows, pinned: Collection[str]) -> dict[str, int] | None:
    """Return how many pinned rows are chosen, and how many the pool does not have; None where none is pinned."""
    return {"chosen": len(rows.pinned), "not_in_the_pool": len(pinned) - len(rows.pinned)} if pinned else None


def name_sources(here: Artifacts, settings: SelectionSettings) -> dict[str, Path]:
    """Return the tables that selector and gate read besides the examples, by their names; the gate's by `gate`."""
    reads = "utility" if reads_pairs(settings.selector, settings.quality) else SELECTORS[settings.selector].reads
    read = READ.get(reads, {}) | READ_ALSO.get(settings.selector, {})
    sources = {name.partition(".")[0]: getattr(here, stage) / name for name, stage in read.items()}
    if settings.gate is not None:
        stage, name = FILES[settings.gate["by"]]
        sources["gate"] = getattr(here, stage) / name
    return sources


def find_seed(settings: SelectionSettings) -> int | None:
    """Return the seed of what is left to chance; None where nothing is."""
    selector = SELECTORS[settings.selector]
    drawn = selector.draws or (selector.objective and settings.optimiser != "lazy") or settings.pilot is not None
    return settings.seed if drawn else None


def resolve_budget(ground: pa.Table, settings: SelectionSettings) -> Budget:
    """Return the budget for the rows of the pool, after checking that it can be kept."""
    tokens = ground["response_tokens"].to_numpy().astype(np.int64)
    topics = ground["topic"].to_pylist()
    return resolve(settings.budget, topics=topics, response_tokens=tokens, caps=settings.caps, floors=settings.floors)


def refuse_budget(source: Path, settings: SelectionSettings, decisions: Path | None = None) -> None:
    """Refuse a budget that the pool cannot keep, before any row is scored.

    Args:
        source: examples.parquet.
        settings: of the choice.
        decisions: the list of pinned rows; None: none is.

    Raises:
        BudgetError: saying by how much, and what to set.
    """
    rows = read_rows(source, list_decided(decisions, PIN))
    refuse_whole(resolve_budget(rows.ground, settings), settings.gate, len(rows.pinned))


def pin(picks: ChosenRows, rows: Rows, budget: Budget) -> ChosenRows:
    """Return a choice with the pinned rows first; one by similarity began with them.

    Raises:
        SelectionError: the budget does not go as far as all pinned rows.
    """
    return picks if picks.choice is not None else replace(picks, order=put_first(picks.order, rows, budget))


def put_first(order: np.ndarray, rows: Rows, budget: Budget) -> np.ndarray:
    """Return an order of choice with the pinned rows before the others, as far as the budget goes.

    Raises:
        SelectionError: it does not go as far as all pinned rows.
    """
    pinned = rows.find_pinned()
    if not len(pinned):
        return order
    wanted = np.concatenate([pinned, order[~np.isin(order, pinned)]])
    picked = rank(budget, np.concatenate([wanted, np.setdiff1d(np.arange(rows.ground.num_rows), wanted)]))
    refuse_unpinned(pinned[~np.isin(pinned, picked)], rows, NO_ROOM)
    return picked[np.isin(picked, wanted)]


def refuse_unpinned(places: np.ndarray, rows: Rows, why: str) -> None:
    """Raise SelectionError where there are pinned rows that cannot be chosen."""
    if len(places):
        first = rows.ground["id"][int(places[0])].as_py()
        raise SelectionError(
            f"{len(places)} of {len(rows.pinned)} pinned rows cannot be chosen, first {first}: {why}; release it "
            "(`tamis release`), or raise selection.budget or selection.caps"
        )


def choose_rows(
    rows: Rows,
    budget: Budget,
    sources: Mapping[str, Path],
    settings: SelectionSettings,
    *,
    diagonal: str,
    map: Map,
) -> ChosenRows:
    """Choose rows by the selector that is asked for, from the artifacts that it reads, by their names.

    A selector by similarity begins with the pinned rows.
    """
    selector, ids = settings.selector, rows.ground["id"].to_pylist()
    if selector in ("random", "fresh"):
        return ChosenRows(draw(budget, seed=settings.seed))
    if selector == "balanced":
        groups = name_groups(rows.ground["topic"].to_pylist(), rows.ground["source"].to_pylist())
        return ChosenRows(rank(budget, order_balanced(groups, settings.seed)))
    if selector == "bm25":
        return ChosenRows(rank(budget, order_bm25(*read_texts(sources["examples"], selector, ids))))
    if selector == "delift":
        similar = read_utility(sources["utility"], rows, settings, diagonal)
        return choose_similar(similar, rows, budget, settings, sources["embedding"], map=map)
    if selector == "embedding":
        similar = compare_vectors(sources["embedding"], rows, settings, sources.get("utility"))
        return choose_similar(similar, rows, budget, settings, None, map=map)
    if selector == "longest":
        return ChosenRows(rank(budget, order_longest(rows.ground["response_tokens"].to_numpy())))
    if selector == "deft_ucs":
        return ChosenRows(rank(budget, order_deft_ucs(*read_vectors(sources["embedding"], ids), None, settings.seed)))
    if selector == "dualsft":
        phi = read_phi(sources["phi_data"], [*ids, *rows.gated], digest(sources["examples"]))
        return choose_scored(phi[: len(ids)], budget)
    if selector == "dualsft_cover":
        known = digest(sources["examples"])
        similar = compare_directions(sources["phi_data"], sources["sketches"], rows, known)
        refuse_small(budget, similar.demos)
        return choose_similar(similar, rows, budget, settings, None, map=map)
    scores = (
        read_probes(sources["utility"], rows) if selector == "probes" else read_scores(sources["scores"], selector, ids)
    )
    return ChosenRows(rank(budget, order_scores(scores)), scores=scores)


def choose_scored(scores: np.ndarray, budget: Budget) -> ChosenRows:
    """Choose the rows with the largest scores, of those that have one.

    Raises:
        SelectionError: the budget is larger than all of these.
    """
    there = np.flatnonzero(~np.isnan(scores))
    refuse_small(budget, there)
    order = rank(narrow(budget, there), order_scores(scores[there]))
    return ChosenRows(there[order], scores=scores)


def refuse_small(budget: Budget, there: np.ndarray) -> None:
    """Raise SelectionError where a budget is larger than all rows that have phi_data."""
    room, unit = measure_room(budget, there)
    if budget.limit > room:
        raise SelectionError(
            f"selection.budget.{budget.kind} allows {budget.limit} {unit}, but only {len(there)} of "
            f"{len(budget.costs)} rows of the pool have phi_data and may be chosen ({room} {unit}): the others ask "
            f"what a target row asks; lower the budget to {room} {unit}, or name other rows by examples.target"
        )


def choose_similar(
    similar: Similar, rows: Rows, budget: Budget, settings: SelectionSettings, vectors: Path | None, *, map: Map
) -> ChosenRows:
    """Choose, of the rows that are demos, some whose objective is large; note which is most similar to each row.

    A row of the pool counts as one that is to be covered as many times as its weight says. Stratified, each topic has
    at most its share of the budget, since a choice by similarity takes more of small and of mixed topics. Picks that
    gain nothing are taken by their quality instead, and among equal ones those first that the others cover least.

    Args:
        similar: what is chosen by.
        rows: of the version.
        budget: of the pool.
        settings: objective and optimiser.
        vectors: the embeddings, which may hold no row; None where the similarities are theirs.
        map: runs parts of the optimiser.
    """
    kernels, demos = similar.kernels, similar.demos
    heavy = rows.ground["weight"].to_numpy().astype(np.float64)
    weights = {"eta": settings.target_weight, "nu": settings.learnt_weight}
    weighed = objectives.weigh(kernels, heavy) if (heavy != 1).any() else kernels
    objective = objectives.build(weighed, settings.objective, information=settings.mutual_information, **weights)
    allowed, strata = restrict(budget, demos), None
    asked = {"budget": settings.budget, "targeted": bool(rows.target)}
    if settings.stratify == "topic" and may_stratify(settings.selector, settings.objective, **asked):
        firsts = np.unique(list_texts(rows).places[demos], return_index=True)[1]  # repeats make no topic larger
        allowed = strata = stratify(allowed, firsts)
    pinned = find_pinned_demos(rows, demos)
    if strata is not None and lacks_room(strata, pinned).any():
        allowed, strata = restrict(budget, demos), None  # a person's word outweighs a topic's share
    refuse_unpinned(demos[pinned[lacks_room(allowed, pinned)]], rows, NO_ROOM)
    choice = grow(objective, allowed, pinned, settings, map=map)
    if not choice.gain.all():
        kept = choice.order[(choice.gain > 0) | np.isin(choice.order, pinned)]
        order = rank(allowed, np.concatenate([kept, order_rest(kept, similar, rows.ground.take(demos), vectors)]))
        choice = choose(objective.kernel, allowed, objective.bonus, start=order)
    by, cover = objectives.cover(kernels.own, choice.order)
    covered_by = np.where(by < 0, -1, demos[by])
    return ChosenRows(demos[choice.order], choice, objective, covered_by, cover, similar=similar, strata=strata)


def grow(
    objective: objectives.Objective, budget: Budget, pinned: np.ndarray, settings: SelectionSettings, *, map: Map
) -> Choice:
    """Return a choice by the optimiser that is asked for; with pinned demos by lazy greedy, which begins with them."""
    if len(pinned):
        return choose(objective.kernel, budget, objective.bonus, start=pinned)
    how = {name: getattr(settings, name) for name in ("epsilon", "partitions", "seed")}
    return maximise(objective, budget, settings.optimiser, **how, map=lambda each, parts: map(each, list(parts)))


def find_pinned_demos(rows: Rows, demos: np.ndarray) -> np.ndarray:
    """Return the places of the pinned rows among the demos.

    Raises:
        SelectionError: one is no demo.
    """
    places = rows.find_pinned()
    refuse_unpinned(np.setdiff1d(places, demos), rows, "the selector knows no similarity of it")
    return np.flatnonzero(np.isin(demos, places))


def lacks_room(budget: Budget, wanted: np.ndarray) -> np.ndarray:
    """Return for each of some rows whether a budget has no room for it though these come first."""
    if not len(wanted):
        return np.zeros(0, bool)
    others = np.setdiff1d(np.arange(len(budget.costs)), wanted)
    return ~np.isin(wanted, rank(budget, np.concatenate([wanted, others])))


def order_rest(kept: np.ndarray, similar: Similar, rows: pa.Table, vectors: Path | None) -> np.ndarray:
    """Return the other demos, those of the largest quality first, and of equal ones those least like what is kept.

    Those that repeat the text of another one before them come last. Without a quality all are equal; where the
    embeddings hold no row, or nothing is kept, the lowest index comes first.
    """
    ids, rest = rows["id"].to_pylist(), np.setdiff1d(np.arange(len(rows)), kept)
    worth = np.zeros(len(ids)) if similar.quality is None else similar.quality
    texts, covered = rows["first"].combine_chunks().dictionary_encode().indices.to_numpy(), np.zeros(len(ids))
    if vectors is None:
        covered = objectives.cover(similar.kernels.own, kept)[1][similar.demos]
    elif len(kept) and read_table(vectors, columns=["id"]).num_rows:
        (own,) = read_vectors(vectors, ids)
        covered = cosines.compare_best(own, own[kept])
    repeated = np.ones(len(ids), bool)
    repeated[rest[np.unique(texts[rest], return_index=True)[1]]] = False
    repeated |= np.isin(texts, texts[kept])
    return rest[np.lexsort((rest, covered[rest], -worth[rest], repeated[rest]))]


def check(rows: Rows, budget: Budget, picks: ChosenRows, source: Path) -> Mapping[str, Any] | None:
    """Return what the choice covers of targets scored with every demo, beside random choices; None without such ones.

    Each share is of what is attainable, what all rows of the pool cover, in [0, 1]. That a target covers itself, which
    measures copying, is left out.
    """
    pairs, texts = read_pairs(source, rows), list_texts(rows)
    there = set(pc.unique(pairs["target_id"].cast(pa.string())).to_pylist())
    targets = [each for each in texts.ids if each in there]
    if not targets:
        return None
    names = targets, texts.ids
    kernel = scale(cut(pairs, names, source), "relu", names)
    kernel = cap_diagonal(kernel, find_places(texts.ids, targets), np.zeros(len(targets), np.float32))
    kernel = repeat(kernel, None, texts.places)
    return {
        "targets": len(targets),
        "facility_location_share": share_of_all(kernel, picks.order),
        "random_share": share_of_random(kernel, budget, draws=DRAWS),
    }
