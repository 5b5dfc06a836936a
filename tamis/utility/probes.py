"""Probes: a few rows near a demo that its help is measured on, of every kind that stands there the hardest.

Symbols: a *probe* of a row is a target before which the row is shown as the demo; its difficulty is how far the model
is from its response without a demo.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from tamis.scores.baselines import cluster
from tamis.utility.neighbours import find_neighbours


def pairs_of_probes(
    ground: Int[np.ndarray, " row"],
    vectors: Float32[np.ndarray, "row width"],
    difficulty: Float[np.ndarray, " row"],
    *,
    nearest: int,
    clusters: int,
    probes: int,
    seed: int,
) -> tuple[Int64[np.ndarray, "pair 2"], float]:
    """Return each row as the demo of its probes, some of the rows nearest to it; by target, then demo.

    With them comes the share of the nearest rows that were found; 1 but in large sets.

    **Source**: local probes, arXiv 2604.25132: the nearest rows, clustered, the hardest of every cluster.

    Args:
        ground: places of the rows.
        vectors: unit embeddings of these.
        difficulty: of these as targets, larger is harder.
        nearest: rows that the probes of a row are picked from, itself not among them; all others where there are fewer.
        clusters: of these.
        probes: of each row; all of the nearest where there are fewer.
        seed: of the clusters.

    Cost: that of `find_neighbours`, and k-means of `nearest` vectors for every row.

    >>> near = np.float32([[1, 0], [0.96, 0.28], [0.8, 0.6]])
    >>> hard = np.array([0.1, 0.2, 0.3])
    >>> pairs_of_probes(np.arange(3), near, hard, nearest=2, clusters=1, probes=1, seed=0)[0].tolist()
    [[1, 2], [2, 0], [2, 1]]
    """
    found = find_neighbours(vectors, nearest)
    pairs = []
    for demo, near in enumerate(found.indices):
        picked = near[pick_probes(vectors[near], difficulty[near], clusters, probes, seed)] if len(near) else near
        pairs.append(np.column_stack([ground[picked], np.full(len(picked), ground[demo])]))
    joined = np.concatenate([np.empty((0, 2), np.int64), *pairs]).astype(np.int64)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))], found.recall


def pick_probes(
    vectors: Float32[np.ndarray, "row width"],
    difficulty: Float[np.ndarray, " row"],
    clusters: int,
    count: int,
    seed: int,
) -> Int64[np.ndarray, " probe"]:
    """Return some rows, first the hardest of every cluster, then the second hardest of every one, and so on.

    Of a round the hardest comes first; equal ones by row. **Source**: as `pairs_of_probes`.

    Args:
        vectors: unit vectors.
        difficulty: larger is harder.
        clusters: at least 1.
        count: rows to return; all where there are fewer.
        seed: of the clusters (`tamis.scores.baselines.cluster`).

    >>> vectors = np.float32([[1, 0], [1, 0], [1, 0], [0, 1]])
    >>> pick_probes(vectors, np.array([0.1, 0.3, 0.2, 0.0]), 2, 3, seed=0).tolist()
    [1, 3, 2]
    """
    labels, _ = cluster(vectors, clusters, seed)
    hardest = np.argsort(-difficulty, kind="stable")
    turn = np.empty(len(vectors), np.int64)
    for label in np.unique(labels):
        members = hardest[labels[hardest] == label]
        turn[members] = np.arange(len(members))
    return hardest[np.argsort(turn[hardest], kind="stable")][:count].astype(np.int64)
