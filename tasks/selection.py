"""Room `selection`: which rows of the pool are trained on, in which order, and what each of them covers.

Under an order or lazy greedy a budget of rows (count or fraction) takes the first rows of what a larger one takes, with
the same caps, too. Every other budget, and every other optimiser, is a run of its own on the same similarities.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis import cosines, objectives
from tamis.baselines import order_deft_ucs, order_longest, order_scores
from tamis.budgets import Budget, count_by_topic, draw, rank, resolve
from tamis.kernels import Kernel, SparseKernel, gather, scale, scale_together
from tamis.objectives import Kernels, Objective
from tamis.optimisers import Map, maximise, restrict, share_of_all, share_of_random
from tamis.selection import Choice, evaluate
from tasks import schemas
from tasks.artifacts import Provenance, digest_inputs, provenance, read_table, write_json, write_table

SIMILAR = ("delift", "embedding")  # an objective over similarities is maximised
SCORED = ("perplexity", "ifd", "selectit", "less")  # the largest score first
SELECTORS = ("delift", "random", "longest", "embedding", "perplexity", "ifd", "selectit", "deft_ucs", "less")
DENSE_ROWS = 8192  # of the pool, over embeddings: above, each row's nearest alone are compared
NEAREST = 64
DRAWS = 5  # random choices that a choice is checked against


class SelectionError(ValueError):
    """The rows cannot be chosen as asked."""


@dataclass(frozen=True)
class SelectionSettings:
    """How rows are chosen."""

    rows_by: str = "delift"  # one of SELECTORS
    objective: str = "conditional_gain"  # of delift and embedding: that | facility_location | mutual_information
    information: str = "saturated"  # saturated | additive | queries: the form of mutual information
    eta: float = 1.0  # weight of the target task in it
    nu: float = 1.0  # weight of what was learnt in conditional gain
    scaling: str = "relu"  # relu | minmax | none: how a utility becomes a similarity >= 0
    optimiser: str = "lazy"  # lazy | stochastic | partition
    epsilon: float = 0.01  # stochastic: smaller looks at more rows per pick
    partitions: int = 4  # partition: parts of the pool that are chosen from apart
    budget: Mapping[str, float] = field(default_factory=lambda: {"fraction": 0.3})  # count | fraction | response_tokens
    caps: Mapping[str, int] = field(default_factory=dict)  # topic -> at most so many rows; "*": every topic not named
    floors: Mapping[str, int] = field(default_factory=dict)  # topic -> at least so many rows
    seed: int = 0  # of a draw, of clusters, of the optimisers stochastic and partition


@dataclass(frozen=True)
class Rows:
    """The examples by what they are for."""

    ground: pa.Table  # the used pool, by row: what may be chosen, and what is to be covered
    target: list[str]  # ids of the target task
    learnt: list[str]  # ids of what an earlier version chose, whether they may be chosen again or not


@dataclass(frozen=True)
class Picks:
    """The chosen rows of the pool in their order; without similarities nothing else is known."""

    order: np.ndarray
    choice: Choice | None = None
    objective: Objective | None = None
    covered_by: np.ndarray | None = None  # for each row of the pool the chosen row most similar to it; -1: none
    cover: np.ndarray | None = None  # that similarity


def write_selection(
    *,
    examples: Path,
    embedding: Path,
    utility: Path,
    scores: Path,
    out: Path,
    version: str,
    settings: SelectionSettings,
    map: Map = map,
) -> None:
    """Choose rows of the pool and write `subset.parquet`, a row for each of the pool, and `selection.json`."""
    sources = list_sources(settings.rows_by, embedding, utility, scores)
    rows = read_rows(examples / "examples.parquet")
    budget = resolve_budget(rows.ground, settings)

    picks = choose_rows(rows, budget, sources, settings, map=map)
    checked = check(rows, budget, picks, sources[-1]) if settings.rows_by == "delift" else None

    inputs = digest_inputs(examples / "examples.parquet", *sources)
    made = Provenance("selection", version, asdict(settings), inputs, find_seed(settings))
    write_table(tabulate(rows.ground, picks), out / "subset.parquet", made)
    write_json(describe(rows, budget, picks, settings) | {"checked": checked}, out / "selection.json")


def list_sources(rows_by: str, embedding: Path, utility: Path, scores: Path) -> list[Path]:
    """Return the artifacts that a selector reads besides the examples.

    Raises:
        SelectionError: nobody knows it.
    """
    if rows_by not in SELECTORS:
        raise SelectionError(f"selection.rows_by is {rows_by!r}; it must be one of {', '.join(SELECTORS)}")
    if rows_by == "delift":
        return [utility / "utility.parquet", utility / "checked.parquet"]
    if rows_by in ("embedding", "deft_ucs"):
        return [embedding / "embedding.parquet"]
    return [scores / "scores.parquet"] if rows_by in SCORED else []


def find_seed(settings: SelectionSettings) -> int | None:
    """Return the seed of what is left to chance; None where nothing is."""
    drawn = settings.rows_by in ("random", "deft_ucs")
    return settings.seed if drawn or (settings.rows_by in SIMILAR and settings.optimiser != "lazy") else None


def read_rows(source: Path) -> Rows:
    """Return the used rows of the pool, those of the target task, and what an earlier version chose."""
    table = read_table(source, schemas.EXAMPLES).sort_by("row")
    pool, used = pc.equal(table["split"], "pool"), table["used"]
    learnt = pc.and_(pc.equal(table["earlier"], "learnt"), pc.is_null(table["duplicate_of"]))
    return Rows(
        table.filter(pc.and_(used, pool)).select(["id", "topic", "response_tokens"]),
        table.filter(pc.and_(used, pc.equal(table["split"], "target")))["id"].to_pylist(),
        table.filter(pc.and_(pool, learnt))["id"].to_pylist(),
    )


def resolve_budget(ground: pa.Table, settings: SelectionSettings) -> Budget:
    """Return the budget for the rows of the pool, after checking that it can be kept."""
    tokens = ground["response_tokens"].to_numpy().astype(np.int64)
    topics = ground["topic"].to_pylist()
    return resolve(settings.budget, topics=topics, response_tokens=tokens, caps=settings.caps, floors=settings.floors)


def choose_rows(rows: Rows, budget: Budget, sources: list[Path], settings: SelectionSettings, *, map: Map) -> Picks:
    """Choose rows by the selector that is asked for, from its artifacts."""
    rows_by, ids = settings.rows_by, rows.ground["id"].to_pylist()
    if rows_by == "random":
        return Picks(draw(budget, seed=settings.seed))
    if rows_by in SIMILAR:
        read = read_utility if rows_by == "delift" else compare_vectors
        return choose_similar(*read(sources[0], rows, settings), budget, settings, map=map)
    if rows_by == "longest":
        order = order_longest(rows.ground["response_tokens"].to_numpy())
    elif rows_by == "deft_ucs":
        order = order_deft_ucs(*read_vectors(sources[0], ids), None, settings.seed)
    else:
        order = order_scores(read_scores(sources[0], rows_by, ids))
    return Picks(rank(budget, order))


def choose_similar(
    kernels: Kernels, demos: np.ndarray, budget: Budget, settings: SelectionSettings, *, map: Map
) -> Picks:
    """Choose, of the pool's rows `demos`, some whose objective is large; note which is most similar to each row."""
    weights = {"eta": float(settings.eta), "nu": float(settings.nu)}
    objective = objectives.build(kernels, settings.objective, information=settings.information, **weights)
    choice = maximise(
        objective,
        restrict(budget, demos),
        settings.optimiser,
        epsilon=float(settings.epsilon),
        partitions=settings.partitions,
        seed=settings.seed,
        map=lambda function, parts: map(function, list(parts)),
    )
    by, cover = objectives.cover(kernels.own, choice.order)
    return Picks(demos[choice.order], choice, objective, np.where(by < 0, -1, demos[by]), cover)


def wanted_rows(rows: Rows, settings: SelectionSettings) -> tuple[list[str], list[str]]:
    """Return the learnt ids and the target task's ids that the objective needs.

    Raises:
        SelectionError: mutual information without a target task.
    """
    if settings.objective == "mutual_information" and not rows.target:
        raise SelectionError(
            "selection.objective is mutual_information but no row is of the target task; set examples.target"
        )
    learnt = rows.learnt if settings.objective == "conditional_gain" else []
    return learnt, rows.target if settings.objective == "mutual_information" else []


def read_utility(source: Path, rows: Rows, settings: SelectionSettings) -> tuple[Kernels, np.ndarray]:
    """Return the similarities that scored pairs stand for, dense where all are scored, and the rows that are demos.

    Raises:
        SelectionError: there is no pair of a kind that the objective needs, or a pair is of other examples.
        KernelError: a value that no similarity can be.
    """
    learnt, target = wanted_rows(rows, settings)
    ground, pairs = rows.ground["id"].to_pylist(), read_pairs(source, rows)
    demos = np.arange(len(ground))
    if provenance(source)["parameters"].get("kernel") == "landmarks":
        demos = np.intersect1d(demos, find(pairs.filter(find(pairs["target_id"], ground) >= 0)["demo_id"], ground))
    shown = [ground[demo] for demo in demos]
    blocks = {"own": (ground, shown)}
    if learnt:
        blocks["learnt"] = (ground, learnt)
    if target:
        blocks |= {"queries": (target, shown), "asked": (ground, target)}
    utilities = [cut(pairs, names, source) for names in blocks.values()]
    similarities = scale_together(utilities, settings.scaling, list(blocks.values()))
    return Kernels(**dict(zip(blocks, similarities, strict=True))), demos


def read_pairs(source: Path, rows: Rows) -> pa.Table:
    """Return scored pairs, the ids encoded, after checking that each is of these rows."""
    table = read_table(source, schemas.UTILITY)
    for place, name in enumerate(("target_id", "demo_id")):
        table = table.set_column(place, name, table[name].dictionary_encode())
    targets = [*rows.ground["id"].to_pylist(), *rows.target]
    odd = (find(table["target_id"], targets) < 0) | (find(table["demo_id"], [*targets, *rows.learnt]) < 0)
    if odd.any():
        first = [(pair["target_id"], pair["demo_id"]) for pair in table.take(np.flatnonzero(odd)[:3]).to_pylist()]
        raise SelectionError(
            f"{odd.sum()} of {table.num_rows} pairs in {source} are not of the pool's {rows.ground.num_rows} used "
            f"rows, {len(rows.learnt)} learnt ones and {len(rows.target)} of the target task, first pairs (target, "
            f"demo) {first}; examples and utility are of two runs, make both: `tamis run`"
        )
    return table


def find(column: pa.ChunkedArray, ids: list[str]) -> np.ndarray:
    """Return the place of each id of an encoded column among `ids`; -1 where it is none of them."""
    encoded = column.combine_chunks()
    places = pc.index_in(encoded.dictionary, value_set=pa.array(ids, pa.string()))
    return pc.fill_null(places, -1).to_numpy().astype(np.int64)[encoded.indices.to_numpy()]


def cut(pairs: pa.Table, names: tuple[list[str], list[str]], source: Path) -> Kernel:
    """Return the utilities of some targets and some demos."""
    target, demo = (find(pairs[name], ids) for name, ids in zip(("target_id", "demo_id"), names, strict=True))
    there = (target >= 0) & (demo >= 0)
    if not there.any():
        raise SelectionError(
            f"{source} holds no pair of {len(names[0])} targets and {len(names[1])} demos that the objective needs; "
            "make it again with selection.rows_by: delift (`tamis run`)"
        )
    values = pairs["utility"].to_numpy()[there]
    return gather(target[there], demo[there], values, (len(names[0]), len(names[1])))


def compare_vectors(source: Path, rows: Rows, settings: SelectionSettings) -> tuple[Kernels, np.ndarray]:
    """Return similarities of embeddings, of what was learnt only each row's best, and the rows that are demos: all."""
    learnt, target = wanted_rows(rows, settings)
    ground = rows.ground["id"].to_pylist()
    place = {name: row for row, name in enumerate(ground)}
    inside = np.array([place[name] for name in learnt if name in place], np.int64)
    own, task, outside = read_vectors(source, ground, target, [name for name in learnt if name not in place])
    kernel = cosines.compare(own, own) if len(ground) <= DENSE_ROWS else cosines.compare_nearest(own, NEAREST)
    kernels = Kernels(kernel)
    if learnt:
        best = np.maximum(objectives.cover(kernel, inside)[1], cosines.compare_best(own, outside))
        kernels = Kernels(kernel, learnt=best[:, None])
    elif target:
        kernels = Kernels(kernel, queries=cosines.compare(task, own), asked=cosines.compare(own, task))
    return kernels, np.arange(len(ground))


def read_vectors(source: Path, *groups: list[str]) -> list[np.ndarray]:
    """Return the embeddings of groups of ids, each in its order."""
    table = read_table(source)
    places = [look_up(table["id"], ids, source) for ids in groups]
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return [flat.reshape(table.num_rows, -1)[some] for some in places]


def read_scores(source: Path, selector: str, ids: list[str]) -> np.ndarray:
    """Return the scores of these ids, in their order."""
    table, made_for = read_table(source, schemas.SCORES), provenance(source)["parameters"].get("selector", selector)
    if made_for != selector:
        raise SelectionError(f"{source} holds scores of {made_for}, not of {selector}; make it again: `tamis run`")
    return table["score"].to_numpy()[look_up(table["id"], ids, source)]


def look_up(column: pa.ChunkedArray, ids: list[str], source: Path) -> np.ndarray:
    """Return the place of each id in an artifact's column.

    Raises:
        SelectionError: some are not there.
    """
    places = pc.index_in(pa.array(ids, pa.string()), value_set=column.combine_chunks())
    if places.null_count:
        missing = [name for name, place in zip(ids, places.to_pylist(), strict=True) if place is None]
        raise SelectionError(
            f"{source} lacks {len(missing)} of {len(ids)} rows, first ids {missing[:3]}; it is of another run than the "
            "examples, or of another selector: make both again (`tamis run`)"
        )
    return places.to_numpy().astype(np.int64)


def check(rows: Rows, budget: Budget, picks: Picks, source: Path) -> Mapping[str, Any] | None:
    """Return what the choice covers of targets scored with every demo, beside random choices; None without such ones.

    Each share is of what all rows of the pool cover, in [0, 1].
    """
    pairs = read_pairs(source, rows)
    if not pairs.num_rows:
        return None
    targets = pc.unique(pairs["target_id"].cast(pa.string())).to_pylist()
    names = targets, rows.ground["id"].to_pylist()
    kernel = scale(cut(pairs, names, source), "relu", names)
    return {
        "targets": len(targets),
        "facility_location_share": share_of_all(kernel, picks.order),
        "random_share": share_of_random(kernel, budget, draws=DRAWS),
    }


def tabulate(ground: pa.Table, picks: Picks) -> pa.Table:
    """Return a row for every row of the pool: the chosen ones by rank, then the others as they stand."""
    rows, order, choice = ground.num_rows, picks.order, picks.choice
    rank = np.full(rows, rows)
    rank[order] = np.arange(len(order))
    chosen = rank < rows
    gain, objective, covered_by, cover = (
        pa.nulls(rows, kind) for kind in (pa.float64(),) * 2 + (pa.int64(), pa.float32())
    )
    if choice is not None:
        gain, objective = (_spread(values, order, rows) for values in (choice.gain, choice.objective))
        covered_by, cover = pa.array(picks.covered_by, mask=picks.covered_by < 0), pa.array(picks.cover)
    columns = {
        **{name: ground[name] for name in ("id", "topic", "response_tokens")},
        "chosen": pa.array(chosen),
        "rank": pa.array(rank, pa.int32(), mask=~chosen),
        "gain": gain,
        "objective": objective,
        "covered_by": ground["id"].combine_chunks().take(covered_by),
        "cover": cover,
    }
    return pa.table(list(columns.values()), schema=schemas.SUBSET).take(np.argsort(rank, kind="stable"))


def describe(rows: Rows, budget: Budget, picks: Picks, settings: SelectionSettings) -> dict[str, Any]:
    """Return what was chosen, in numbers; what needs similarities is null where there are none."""
    tokens, order = rows.ground["response_tokens"].to_numpy(), picks.order
    return {
        "selector": settings.rows_by,
        "learnt_rows": len(rows.learnt),
        "target_rows": len(rows.target),
        "pool_rows": len(tokens),
        "chosen_rows": len(order),
        "chosen_fraction": len(order) / len(tokens),
        "chosen_response_tokens": int(tokens[order].sum()),
        "chosen_response_tokens_fraction": int(tokens[order].sum()) / max(1, int(tokens.sum())),
        "budget": {"kind": budget.kind, "limit": budget.limit, "spent": int(budget.costs[order].sum())},
        "topics": dict(zip(budget.topics, count_by_topic(budget, order.tolist()).tolist(), strict=True)),
    } | describe_objective(picks, settings)


def describe_objective(picks: Picks, settings: SelectionSettings) -> dict[str, Any]:
    """Return what the objective reached."""
    choice, objective = picks.choice, picks.objective
    if choice is None or objective is None:
        names = ("kernel", "objective_name", "optimiser", "objective", "objective_of_none", "objective_of_all")
        return dict.fromkeys((*names, "objective_share", "zero_gain_picks", "rows_covered_by_none"))
    full, reached = evaluate(objective.kernel) + float(objective.bonus.sum()), float(choice.objective[-1])
    return {
        "kernel": "sparse" if isinstance(objective.kernel, SparseKernel) else "dense",
        "objective_name": settings.objective,
        "optimiser": settings.optimiser,
        "objective": reached,
        "objective_of_none": 0.0,
        "objective_of_all": full,
        "objective_share": reached / full if full else None,
        "zero_gain_picks": int((choice.gain == 0).sum()),
        "rows_covered_by_none": int((picks.covered_by < 0).sum()),
    }


def _spread(values: np.ndarray, order: np.ndarray, rows: int) -> pa.Array:
    """Return a value for each chosen row at its place, null elsewhere."""
    spread, empty = np.zeros(rows), np.ones(rows, bool)
    spread[order], empty[order] = values, False
    return pa.array(spread, mask=empty)
