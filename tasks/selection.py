"""Room `selection`: which rows of the pool are trained on, in which order, and what each of them covers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.budgets import Budget, count_by_topic, draw, resolve
from tamis.kernels import Kernel, SparseKernel, gather, scale
from tamis.selection import Choice, choose, evaluate
from tasks import schemas
from tasks.artifacts import Provenance, digest_inputs, read_table, write_json, write_table

SELECTORS = ("delift", "random")


class SelectionError(ValueError):
    """The rows cannot be chosen as asked."""


@dataclass(frozen=True)
class SelectionSettings:
    """How rows are chosen."""

    rows_by: str = "delift"  # delift | random: facility location over utility | a seeded draw
    scaling: str = "relu"  # relu | minmax | none: how a utility becomes a similarity >= 0
    budget: Mapping[str, float] = field(default_factory=lambda: {"fraction": 0.3})  # count | fraction | response_tokens
    caps: Mapping[str, int] = field(default_factory=dict)  # topic -> at most so many rows; "*": every topic not named
    floors: Mapping[str, int] = field(default_factory=dict)  # topic -> at least so many rows
    seed: int = 0  # of the draw


def write_selection(*, examples: Path, utility: Path, out: Path, version: str, settings: SelectionSettings) -> None:
    """Choose rows of the pool and write `subset.parquet`, a row for each of the pool, and `selection.json`."""
    sources = examples / "examples.parquet", utility / "utility.parquet"
    ground = read_ground(sources[0])
    budget = resolve_budget(ground, settings)
    kernel = read_kernel(sources[1], ground["id"], settings.scaling) if uses_utility(settings) else None

    choice = choose(kernel, budget) if kernel is not None else None
    order = choice.order if choice else draw(budget, seed=settings.seed)

    seed = None if choice else settings.seed
    provenance = Provenance("selection", version, asdict(settings), digest_inputs(*sources), seed)
    write_table(tabulate(ground, order, choice), out / "subset.parquet", provenance)
    write_json(describe(ground, budget, order, kernel, choice), out / "selection.json")


def read_ground(source: Path) -> pa.Table:
    """Return the used rows of the pool, by row: what may be chosen, and what is to be covered."""
    table = read_table(source, schemas.EXAMPLES)
    used = pc.and_(table["used"], pc.equal(table["split"], "pool"))
    return table.filter(used).sort_by("row").select(["id", "topic", "response_tokens"])


def resolve_budget(ground: pa.Table, settings: SelectionSettings) -> Budget:
    """Return the budget for the rows of the pool, after checking that it can be kept."""
    tokens = ground["response_tokens"].to_numpy().astype(np.int64)
    topics = ground["topic"].to_pylist()
    return resolve(settings.budget, topics=topics, response_tokens=tokens, caps=settings.caps, floors=settings.floors)


def uses_utility(settings: SelectionSettings) -> bool:
    """Return whether the rows are chosen by utility.

    Raises:
        SelectionError: nobody knows `rows_by`.
    """
    if settings.rows_by not in SELECTORS:
        raise SelectionError(f"selection.rows_by is {settings.rows_by!r}; it must be one of {', '.join(SELECTORS)}")
    return settings.rows_by != "random"


def read_kernel(source: Path, ids: pa.ChunkedArray, scaling: str) -> Kernel:
    """Return the similarity of every scored pair, rows and columns in the order of `ids`; dense where all are scored.

    Raises:
        SelectionError: there is no pair, or a pair is of other examples than `ids`.
        KernelError: a value that no similarity can be.
    """
    table, known = read_table(source, schemas.UTILITY), ids.combine_chunks()
    if not table.num_rows:
        raise SelectionError(f"{source} holds no pair; make it again with selection.rows_by: delift (`tamis run`)")
    target, demo = (pc.index_in(table[name], value_set=known) for name in ("target_id", "demo_id"))
    strange = table.filter(pc.or_(target.is_null(), demo.is_null()))
    if strange.num_rows:
        first = [(pair["target_id"], pair["demo_id"]) for pair in strange.slice(0, 3).to_pylist()]
        raise SelectionError(
            f"{strange.num_rows} of {table.num_rows} pairs in {source} are not of the pool's {len(ids)} used rows, "
            f"first pairs (target, demo) {first}; examples and utility are of two runs, make both: `tamis run`"
        )
    places = (place.to_numpy().astype(np.int64) for place in (target, demo))
    pairs = gather(*places, table["utility"].to_numpy(), (len(ids), len(ids)))
    names = known.to_pylist()
    return scale(pairs, scaling, (names, names))


def tabulate(ground: pa.Table, order: np.ndarray, choice: Choice | None) -> pa.Table:
    """Return a row for every row of the pool: the chosen ones by rank, then the others as they stand."""
    rows = ground.num_rows
    rank = np.full(rows, rows)
    rank[order] = np.arange(len(order))
    chosen = rank < rows
    gain, objective, covered_by, cover = (
        pa.nulls(rows, kind) for kind in (pa.float64(),) * 2 + (pa.int64(), pa.float32())
    )
    if choice is not None:
        gain, objective = (_spread(values, order, rows) for values in (choice.gain, choice.objective))
        covered_by, cover = pa.array(choice.covered_by, mask=choice.covered_by < 0), pa.array(choice.cover)
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


def describe(
    ground: pa.Table, budget: Budget, order: np.ndarray, kernel: Kernel | None, choice: Choice | None
) -> dict[str, Any]:
    """Return what was chosen, in numbers; what needs a kernel is null where there is none."""
    tokens = ground["response_tokens"].to_numpy()
    full = evaluate(kernel) if kernel is not None else None
    reached = float(choice.objective[-1]) if choice else None
    return {
        "kernel": None if kernel is None else "sparse" if isinstance(kernel, SparseKernel) else "dense",
        "pool_rows": ground.num_rows,
        "chosen_rows": len(order),
        "chosen_fraction": len(order) / ground.num_rows,
        "chosen_response_tokens": int(tokens[order].sum()),
        "chosen_response_tokens_fraction": int(tokens[order].sum()) / max(1, int(tokens.sum())),
        "budget": {"kind": budget.kind, "limit": budget.limit, "spent": int(budget.costs[order].sum())},
        "objective": reached,
        "objective_of_none": 0.0 if choice else None,
        "objective_of_all": full,
        "objective_share": reached / full if full else None,
        "zero_gain_picks": int((choice.gain == 0).sum()) if choice else None,
        "rows_covered_by_none": int((choice.covered_by < 0).sum()) if choice else None,
        "topics": dict(zip(budget.topics, count_by_topic(budget, order.tolist()).tolist(), strict=True)),
    }


def _spread(values: np.ndarray, order: np.ndarray, rows: int) -> pa.Array:
    """Return a value for each chosen row at its place, null elsewhere."""
    spread, empty = np.zeros(rows), np.ones(rows, bool)
    spread[order], empty[order] = values, False
    return pa.array(spread, mask=empty)
