"""Nearest neighbours by cosine: every pair is compared where that can be paid, else those of a few inverted lists.

Symbols: a *target* looks for its nearest *demos*. Inverted lists are the demos of one k-means cell each; a target
looks into the lists of the cells nearest to it, its *probes*. Recall: the share of the nearest demos that are found.

Faiss is loaded where lists are needed, not before: on some systems its threads and torch's do not get on.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float32, Int64

from tamis.language.embedding import nearest, nearest_among

EXACT_PAIRS = 300_000**2  # of targets and demos; up to so many, every pair is compared
RECALL = 0.98  # at least, on `SAMPLE` targets, or every pair is compared after all
SAMPLE = 1000  # targets whose nearest demos are known exactly
LISTS = 32  # times the root of the demos: of a million demos each list holds 31
POINTS, ROUNDS = 16, 5  # demos per cell that k-means looks at, and how often it does
PROBES = 16  # lists that a target looks into at first; twice as many until the recall is reached
COSTLY = 8  # looking into one list of so many, or more, is no faster than comparing every pair
SPARE = 32  # candidates per target beyond those asked for: rounding and equal vectors change their order
ROWS = 8192  # targets that are searched at once
SEED = 0  # of the cells and of the sample


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The demos nearest to each target."""

    indices: Int64[np.ndarray, "target neighbour"]  # nearest first
    recall: float  # in (0, 1]; 1 where every pair was compared


def find_neighbours(vectors: Float32[np.ndarray, "row width"], count: int) -> Neighbours:
    """Return each row's nearest other rows by cosine, nearest first; ties go to the lower index.

    Up to `EXACT_PAIRS` pairs are compared one by one. Of more, only rows of the nearest lists are candidates; these are
    compared exactly, and the recall is measured on `SAMPLE` rows, at least `RECALL`: the share of their neighbours that
    are as similar as the last of the true ones. Of more than `SPARE` equal vectors any may be candidates. All runs
    return the same bits: the seed is fixed, cells are found by one thread, and one thread searches a block of rows.

    **Source**: inverted lists, Sivic and Zisserman, "Video Google", 2003, as of faiss (Douze et al., arXiv 2401.08281).

    Args:
        vectors: unit vectors.
        count: neighbours per row; all others where there are fewer.

    Cost: exactly rows^2 x width. With lists `POINTS` x `ROUNDS` x `LISTS`^2 x rows x width to find the cells, twice
    `LISTS` x rows^1.5 x width to look for a row's, and what the probes hold. Memory of lists: the vectors once more.

    >>> find_neighbours(np.float32([[1, 0], [0.8, 0.6], [0, 1]]), 1).indices.ravel().tolist()
    [1, 0, 1]
    """
    if len(vectors) ** 2 > EXACT_PAIRS:
        found = _search(vectors, vectors, min(count, len(vectors) - 1), own=True)
        if found is not None:
            return found
    return Neighbours(nearest(vectors, count), 1.0)


def find_neighbours_among(
    targets: Float32[np.ndarray, "target width"], demos: Float32[np.ndarray, "demo width"], count: int
) -> Neighbours:
    """Return the demos nearest to each target, as `find_neighbours`; a target that is a demo is its own nearest.

    Args:
        targets, demos: unit vectors.
        count: neighbours per target; all demos where there are fewer.

    >>> find_neighbours_among(np.float32([[1, 0]]), np.float32([[0, 1], [0.6, 0.8]]), 2).indices.tolist()
    [[1, 0]]
    """
    if len(targets) * len(demos) > EXACT_PAIRS:
        found = _search(targets, demos, min(count, len(demos)), own=False)
        if found is not None:
            return found
    return Neighbours(nearest_among(targets, demos, count), 1.0)


def _search(targets: np.ndarray, demos: np.ndarray, count: int, *, own: bool) -> Neighbours | None:
    """Return the neighbours by inverted lists; None where these reach the recall at a price that does not pay.

    Args:
        count: at most as many as there are.
        own: targets are the demos, and none is its own neighbour.
    """
    with _one_thread() as threads:
        index = _build(demos)
        rows = np.random.default_rng(SEED).choice(len(targets), min(SAMPLE, len(targets)), replace=False)
        wanted, recall = _find_least(targets, demos, rows, count, own=own), 0.0
        index.nprobe = PROBES
        while recall < RECALL and index.nprobe * COSTLY <= index.nlist:
            _, least = _look(index, targets, demos, rows, count, own=own)
            recall = float((least >= wanted[:, None]).mean())
            index.nprobe = index.nprobe if recall >= RECALL else 2 * index.nprobe
        if recall < RECALL:
            return None
        out = _look_all(index, targets, demos, count, own=own, threads=threads)
    return Neighbours(_fill(out, targets, demos, own=own), recall)


@contextmanager
def _one_thread() -> Iterator[int]:
    """Let faiss use one thread, and yield how many torch uses.

    The number is torch's, too, where both share a runtime, and is put back.
    """
    import faiss

    before, threads = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield threads
    finally:
        faiss.omp_set_num_threads(before)


def _build(demos: np.ndarray) -> Any:
    """Return the inverted lists of all demos."""
    import faiss

    width = demos.shape[1]
    lists = min(len(demos), LISTS * isqrt(len(demos)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter = SEED, ROUNDS
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = POINTS, 1
    index.train(demos)
    index.add(demos)
    return index


def _find_least(targets: np.ndarray, demos: np.ndarray, rows: np.ndarray, count: int, *, own: bool) -> np.ndarray:
    """Return for some targets the similarity of the last of their nearest demos, by comparing every pair."""
    exact = nearest_among(targets[rows], demos, count + own)
    return _choose(targets, demos, rows, exact, count, own=own)[1][:, -1]


def _look_all(index: Any, targets: np.ndarray, demos: np.ndarray, count: int, *, own: bool, threads: int) -> np.ndarray:
    """Return what all targets find, block by block, several blocks at a time, each by one thread."""
    import faiss

    out = np.empty((len(targets), count), np.int64)
    blocks = [np.arange(start, min(start + ROWS, len(targets))) for start in range(0, len(targets), ROWS)]

    def look(places: np.ndarray) -> None:
        out[places], _ = _look(index, targets, demos, places, count, own=own)

    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as workers:
        deque(workers.map(look, blocks), maxlen=0)
    return out


def _look(
    index: Any, targets: np.ndarray, demos: np.ndarray, rows: np.ndarray, count: int, *, own: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return what some targets find in their lists: places, -1 where there is none, and exact similarities."""
    _, found = index.search(targets[rows], min(count + own + SPARE, len(demos)))
    return _choose(targets, demos, rows, found, count, own=own)


def _choose(
    targets: np.ndarray, demos: np.ndarray, rows: np.ndarray, candidates: np.ndarray, count: int, *, own: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of the candidates of each row by exact similarity, best first, ties to the lower index."""
    if own:
        candidates = np.where(candidates == rows[:, None], -1, candidates)
    similar = _compare(targets, demos, rows, candidates)
    order = np.lexsort((candidates, -similar), axis=1)[:, :count]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(similar, order, 1)


def _fill(found: np.ndarray, targets: np.ndarray, demos: np.ndarray, *, own: bool) -> np.ndarray:
    """Compare the targets whose lists hold too few demos with every demo."""
    short, count = np.flatnonzero((found < 0).any(axis=1)), found.shape[1]
    for start in range(0, len(short), ROWS):
        rows = short[start : start + ROWS]
        exact = nearest_among(targets[rows], demos, count + own)
        found[rows], _ = _choose(targets, demos, rows, exact, count, own=own)
    return found


@numba.njit(cache=True, nogil=True)
@no_type_check
def _compare(targets, demos, rows, candidates):
    """Return the cosine of each row and each of its candidates, summed in float64; below all where there is none."""
    similar = np.full(candidates.shape, -np.inf, np.float32)
    for row in range(len(rows)):
        for place in range(candidates.shape[1]):
            if candidates[row, place] >= 0:
                total = 0.0
                for k in range(targets.shape[1]):
                    total += np.float64(targets[rows[row], k]) * np.float64(demos[candidates[row, place], k])
                similar[row, place] = total
    return similar
