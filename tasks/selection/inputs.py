"""What other stages found, as what selection chooses by: pairs and embeddings as similarities, scores as vectors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.submodular import cosines, objectives
from tamis.submodular.kernels import Kernel, SparseKernel, gather, repeat, scale_together
from tamis.submodular.objectives import Kernels
from tamis.utility.neighbours import find_neighbours
from tamis.utility.quality import (
    cap_diagonal,
    fill_by_topic,
    find_ceiling,
    measure_help,
    measure_nearby_help,
    weigh_demos,
)
from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_lists, read_table
from tasks.selection.rows import Rows, SelectionError, Texts, list_texts, wanted_rows
from tasks.selection.settings import SelectionSettings

DENSE_ROWS = 8192  # of the pool, compared by vectors: above, each row's nearest alone are compared
NEAREST = 64


@dataclass(frozen=True, eq=False)
class Similar:
    """What rows of the pool are chosen by: similarities, and what is known of each demo besides."""

    kernels: Kernels
    demos: np.ndarray  # the rows of the pool that may be chosen
    recall: float | None = None  # of nearest rows, where only these are similar
    quality: np.ndarray | None = None  # of each demo: how much it helps other rows; None where nothing is known of it
    unscored: int = 0  # demos of which no pair says that; they have the median of their topic


def read_utility(source: Path, rows: Rows, settings: SelectionSettings, diagonal: str) -> Similar:
    """Return the similarities that scored pairs stand for, dense where all are scored, and the quality of demos.

    Args:
        source: `utility.parquet`.
        rows: of the version.
        settings: objective, scaling and quality.
        diagonal: what a row that covers itself counts for (`tasks.utility.settings`).

    Raises:
        SelectionError: there is no pair of a kind that the objective needs, or a pair is of other examples.
        KernelError: a value that no similarity can be.
    """
    wanted, scored, texts = wanted_rows(rows, settings.objective), read_pairs(source, rows), list_texts(rows)
    pairs = scored.filter(scored["kernel"])
    ground, learnt, target = texts.ids, wanted.learnt, wanted.target
    demos = np.arange(len(ground))
    if provenance(source)["parameters"].get("kernel") == "landmarks":
        demos = np.intersect1d(demos, find(pairs.filter(find(pairs["target_id"], ground) >= 0)["demo_id"], ground))
    shown = [ground[demo] for demo in demos]
    blocks = {"own": (ground, shown)}
    if learnt:
        blocks["learnt"] = (ground, learnt)
    if target:
        blocks |= {"queries": (target, shown), "asked": (ground, target)}
    utilities = {name: cut(pairs, names, source) for name, names in blocks.items()}
    scaled = scale_together(list(utilities.values()), settings.scaling, list(blocks.values()))
    similar = dict(zip(blocks, scaled, strict=True))
    places = {"own": demos, "learnt": find_places(learnt, ground), "asked": np.full(len(target), -1)}
    if diagonal != "scored":
        ceiling = np.zeros(len(ground), np.float32) if diagonal == "excluded" else find_ceiling(similar["own"], demos)
        for name in blocks.keys() & {"own", "learnt"}:
            similar[name] = cap_diagonal(similar[name], places[name], ceiling)
    quality, unscored = measure_quality(scored, rows, texts, demos, settings=settings, source=source)
    if settings.quality != "none":
        others = blocks.keys() & {"learnt", "asked"}
        how = {"own": quality, "prior": settings.quality_prior, "source": source}
        worth = {name: measure_others(scored, rows, texts, blocks[name][1], **how) for name in others}
        worth |= {"own": quality, "queries": quality}
        similar = {name: weigh_demos(kernel, worth[name]) for name, kernel in similar.items()}
    return spread_copies(Similar(Kernels(**similar), demos, quality=quality), texts, unscored)


def spread_copies(similar: Similar, texts: Texts, unscored: np.ndarray) -> Similar:
    """Return the similarities of all rows of the pool, given those of its texts.

    Args:
        similar: of texts.
        texts: of the pool.
        unscored: which of the demos have no quality of their own.
    """
    rows = np.flatnonzero(np.isin(texts.places, similar.demos))  # that are demos
    shown, kernels = np.searchsorted(similar.demos, texts.places[rows]), similar.kernels
    if len(texts.ids) < len(texts.places):
        places = {"own": (texts.places, shown), "learnt": (texts.places, None), "asked": (texts.places, None)}
        places |= {"queries": (None, shown)}
        there = {name: kernel for name, kernel in vars(kernels).items() if kernel is not None}
        kernels = Kernels(**{name: repeat(kernel, *places[name]) for name, kernel in there.items()})
    quality = None if similar.quality is None else similar.quality[shown]
    return replace(similar, kernels=kernels, demos=rows, quality=quality, unscored=int(unscored[shown].sum()))


def read_probes(source: Path, rows: Rows) -> np.ndarray:
    """Return how much each row of the pool helps its probes on average; the median of its topic where no pair says it.

    Raises:
        SelectionError: the pairs are not those of probes.
    """
    made = provenance(source)["parameters"].get("kernel")
    if made != "probes":
        raise SelectionError(f"{source} holds pairs of kernel {made}, not of probes; make it again: `tamis run`")
    texts, pairs = list_texts(rows), read_pairs(source, rows)
    utility = cut(pairs.filter(pairs["kernel"]), (texts.ids, texts.ids), source)
    return fill_by_topic(measure_help(utility, np.arange(len(texts.ids))), texts.topics)[0][texts.places]


def measure_quality(
    scored: pa.Table, rows: Rows, texts: Texts, demos: np.ndarray, *, settings: SelectionSettings, source: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the quality of texts of the pool as demos, and which of them have the median of their topic."""
    shown, topics = ([every[demo] for demo in demos] for every in (texts.ids, texts.topics))
    how: dict[str, Any] = {"source": source, "prior": settings.quality_prior}
    nearby = settings.quality == "neighbours"
    found = read_nearby_help(scored, texts, shown, **how) if nearby else read_help(scored, rows, texts, shown, **how)
    return fill_by_topic(found, topics)


def read_help(
    scored: pa.Table, rows: Rows, texts: Texts, demos: list[str], source: Path, *, prior: float = 0
) -> np.ndarray:
    """Return how much each demo helps the rows of the target task, or of the pool where there is no target task.

    Pairs that are none of the kernel tell it, too. Where a gate took all rows out that it is measured on, it is that
    for these. NaN where a demo has no such pair.
    """
    helped, shown = rows.target or texts.ids, find(scored["demo_id"], demos) >= 0
    if not (shown & (find(scored["target_id"], helped) >= 0)).any():
        helped = rows.scored
    return measure_help(cut(scored, (helped, demos), source), find_places(demos, helped), prior)


def read_nearby_help(scored: pa.Table, texts: Texts, demos: list[str], source: Path, *, prior: float = 0) -> np.ndarray:
    """Return how much each demo of the pool and the rows near it help each other; only the kernel's pairs tell it."""
    pairs = scored.filter(scored["kernel"])
    return measure_nearby_help(cut(pairs, (texts.ids, demos), source), find_places(demos, texts.ids), prior)


def measure_others(
    scored: pa.Table, rows: Rows, texts: Texts, demos: list[str], *, own: np.ndarray, prior: float, source: Path
) -> np.ndarray:
    """Return the help of demos that are not to be chosen.

    Where one has no pair it is the median of theirs, where none has one that of the pool's demos, `own`.
    """
    there = (find(scored["target_id"], rows.target or texts.ids) >= 0) & (find(scored["demo_id"], demos) >= 0)
    if not there.any():
        return np.full(len(demos), np.median(own))
    return fill_by_topic(read_help(scored, rows, texts, demos, source, prior=prior))[0]


def find_places(ids: list[str], among: list[str] | pa.Array) -> np.ndarray:
    """Return the place of each id among others; -1 where it is none of them."""
    places = pc.index_in(pa.array(ids, pa.string()), value_set=pa.array(among, pa.string()))
    return pc.fill_null(places, -1).to_numpy().astype(np.int64)


def read_pairs(source: Path, rows: Rows) -> pa.Table:
    """Return scored pairs, the ids encoded, after checking that each is of these rows."""
    table = read_table(source, schemas.UTILITY)
    for place, name in enumerate(("target_id", "demo_id")):
        table = table.set_column(place, name, table[name].dictionary_encode())
    targets = [*rows.scored, *rows.target]
    odd = (find(table["target_id"], targets) < 0) | (find(table["demo_id"], [*targets, *rows.learnt]) < 0)
    if odd.any():
        first = [(pair["target_id"], pair["demo_id"]) for pair in table.take(np.flatnonzero(odd)[:3]).to_pylist()]
        raise SelectionError(
            f"{odd.sum()} of {table.num_rows} pairs in {source} are not of the pool's {len(rows.scored)} used texts, "
            f"{len(rows.learnt)} learnt ones and {len(rows.target)} of the target task, first pairs "
            f"(target, demo) {first}; examples and utility are of two runs, make both: `tamis run`"
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
            "make it again with selection.selector: delift (`tamis run`)"
        )
    values = pairs["utility"].to_numpy()[there]
    return gather(target[there], demo[there], values, (len(names[0]), len(names[1])))


def compare_vectors(source: Path, rows: Rows, settings: SelectionSettings, pairs: Path | None = None) -> Similar:
    """Return similarities of embeddings, of what was learnt only each row's best; all rows are demos.

    Args:
        source: `embedding.parquet`.
        rows: of the version.
        settings: objective and quality.
        pairs: `utility.parquet`, by which demos have a quality; None: they have none.
    """
    wanted = wanted_rows(rows, settings.objective)
    ground, learnt, target = rows.ground["id"].to_pylist(), wanted.learnt, wanted.target
    place = {name: row for row, name in enumerate(ground)}
    inside = np.array([place[name] for name in learnt if name in place], np.int64)
    beyond = [name for name in learnt if name not in place]
    own, task, outside = read_vectors(source, ground, target, beyond)
    texts = list_texts(rows)
    kernel, recall = compare_rows(own, texts.places)
    worth = read_worth(pairs, rows, texts, target=target, learnt=beyond, settings=settings) if pairs else None
    if worth:
        kernel, outside = weigh_demos(kernel, worth.own), outside * np.maximum(worth.learnt, 0)[:, None].astype("f4")
    kernels = Kernels(kernel)
    if learnt:
        best = np.maximum(objectives.cover(kernel, inside)[1], cosines.compare_best(own, outside))
        kernels = Kernels(kernel, learnt=best[:, None])
    elif target:
        queries, asked = cosines.compare(task, own), cosines.compare(own, task)
        if worth:
            queries, asked = weigh_demos(queries, worth.own), weigh_demos(asked, worth.asked)
        kernels = Kernels(kernel, queries=queries, asked=asked)
    quality, unscored = (worth.own, worth.unscored) if worth else (None, 0)
    return Similar(kernels, np.arange(len(ground)), recall, quality, unscored)


def compare_rows(vectors: np.ndarray, texts: np.ndarray) -> tuple[Kernel, float | None]:
    """Return the similarities of rows by their unit vectors, of many only those of each one's nearest other texts.

    Args:
        vectors: of rows.
        texts: of rows: those with one text have one number, and one vector.

    Returns:
        The similarities, and the recall of the nearest; None where all are compared.
    """
    if len(vectors) <= DENSE_ROWS:
        return cosines.compare(vectors, vectors), None
    _, firsts, places = np.unique(texts, return_index=True, return_inverse=True)
    near = find_neighbours(vectors[firsts], NEAREST)
    kernel = cosines.compare_nearest(vectors[firsts], near.indices)
    return (kernel if len(firsts) == len(texts) else repeat(kernel, places, places)), near.recall


@dataclass(frozen=True)
class Worth:
    """The quality of demos."""

    own: np.ndarray  # of the pool
    unscored: int  # of these, with the median of their topic
    learnt: np.ndarray  # of what was learnt and is not in the pool
    asked: np.ndarray  # of the target task


def read_worth(
    source: Path, rows: Rows, texts: Texts, *, target: list[str], learnt: list[str], settings: SelectionSettings
) -> Worth:
    """Return the quality of the demos that embeddings compare, as those of scored pairs have it."""
    scored = read_pairs(source, rows)
    own, unscored = measure_quality(scored, rows, texts, np.arange(len(texts.ids)), settings=settings, source=source)
    how = {"own": own, "prior": settings.quality_prior, "source": source}
    others = [measure_others(scored, rows, texts, ids, **how) for ids in (learnt, target)]
    return Worth(own[texts.places], int(unscored[texts.places].sum()), *others)


def read_vectors(source: Path, *groups: list[str]) -> list[np.ndarray]:
    """Return the embeddings of groups of ids, each in its order."""
    there = read_table(source, columns=["id"])["id"]
    places = [look_up(there, ids, source) for ids in groups]
    vectors = read_lists(source, "embedding")
    return [vectors[some] for some in places]


def read_scores(source: Path, selector: str, ids: list[str]) -> np.ndarray:
    """Return the scores of these ids, in their order."""
    table, made_for = read_table(source, schemas.SCORES), provenance(source)["parameters"].get("selector", selector)
    if made_for != selector:
        raise SelectionError(f"{source} holds scores of {made_for}, not of {selector}; make it again: `tamis run`")
    return table["score"].to_numpy()[look_up(table["id"], ids, source)]


def compare_directions(phi_data: Path, sketches: Path, rows: Rows, examples: str) -> Similar:
    """Return how alike the gradients of rows are, weighted by what each row is worth: that of selector dualsft_cover.

    s_ij = w_i max(cos(g_i, g_j), 0), w_i = max(phi_i / ||g_i||, 0), cosines between sketches

    Facility location on it asks that each row that serves the target be like a chosen one, so that what is chosen is
    no heap of rows with large gradients, which are short ones. **Differs** from DualSFT (arXiv 2605.06166), which sorts
    by phi.

    Args:
        phi_data, sketches: `phi_data.parquet`, `sketches.parquet`; rows that they lack are neither covered nor chosen.
        rows: of the version.
        examples: digest of the examples there are.

    Raises:
        SelectionError: there is none, or it is of other examples, of two runs, or not finite.
    """
    ids = rows.ground["id"].to_pylist()
    worth = read_phi(phi_data, [*ids, *rows.gated], examples, "per_norm")[: len(ids)]
    demos = np.flatnonzero(~np.isnan(worth))
    there = read_table(sketches, columns=["id"])["id"]
    vectors = read_lists(sketches, "sketch")[look_up(there, [ids[demo] for demo in demos], sketches)]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    own = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    kernel, recall = compare_rows(own, list_texts(rows).places[demos])
    weighed = objectives.weigh(Kernels(kernel), np.maximum(worth[demos], 0.0))
    return Similar(Kernels(spread_targets(weighed.own, demos, len(ids))), demos, recall, quality=worth[demos])


def spread_targets(kernel: Kernel, places: np.ndarray, rows: int) -> Kernel:
    """Return a kernel whose targets stand at these ascending places among `rows` targets; the others are similar to
    nothing.

    >>> spread_targets(np.float32([[1.0, 2.0]]), np.array([1]), 2).tolist()
    [[0.0, 0.0], [1.0, 2.0]]
    """
    if isinstance(kernel, SparseKernel):
        counts = np.zeros(rows, np.int64)
        counts[places] = np.diff(kernel.indptr)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return replace(kernel, indptr=indptr, shape=(rows, kernel.shape[1]))
    found = np.zeros((rows, kernel.shape[1]), np.float32)
    found[places] = kernel
    return found


def read_phi(source: Path, ids: list[str], examples: str, column: str = "score") -> np.ndarray:
    """Return phi_data of these ids, in their order; NaN where a row has none: it asks what a target row asks.

    Args:
        source: `phi_data.parquet`.
        examples: digest of the examples there are.
        column: `score`, or `per_norm`.

    Raises:
        SelectionError: there is none, or it is of other examples, of two runs, or not finite.
    """
    table, again = read_table(source, schemas.PHI_DATA), "make them again: `tamis run`"
    if not table.num_rows:
        raise SelectionError(f"{source} holds no row; set selection.selector to one of DualSFT's and {again}")
    if examples not in provenance(source)["inputs"].values():
        raise SelectionError(f"{source} was made from other examples than those there are; {again}")
    orders = pc.unique(table["order"]).to_pylist()
    if len(orders) > 1:
        raise SelectionError(f"{source} holds scores of {len(orders)} orders, {orders}, so of two runs; {again}")
    places = pc.index_in(table["id"], value_set=pa.array(ids, pa.string()))
    scores, there = np.full(len(ids), np.nan), table[column].to_numpy()
    odd = np.flatnonzero(~np.isfinite(there) | places.is_null().to_numpy())
    if len(odd) or pc.count_distinct(places).as_py() < table.num_rows:
        first = table.take(odd[:3]).select(["id", "score"]).to_pylist()
        raise SelectionError(
            f"{len(odd)} of {table.num_rows} rows of {source} are not of the pool's {len(ids)} used rows or have a "
            f"score that is not finite, first {first}, and each id may stand there once; {again}"
        )
    scores[places.to_numpy()] = there
    return scores


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
