"""Cosine similarity of embeddings as a kernel: DELIFT's model-independent form.

Symbols: `v_i` unit vector of row i; `s_ij = max(v_i . v_j, 0)`. Products are summed in float64 and then rounded to
float32, so that equal texts are equally similar to every other one.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64

from tamis.submodular.kernels import Kernel, gather

ROWS = 2048  # of a tile of products; memory beside the result: ROWS^2 x 8 bytes


def compare(
    targets: Float32[np.ndarray, "target width"], demos: Float32[np.ndarray, "demo width"]
) -> Float32[np.ndarray, "target demo"]:
    """Return the similarity of every target and every demo.

    s_ij = max(v_i . v_j, 0)

    **Source**: DELIFT, arXiv 2411.04425v3, its model-independent form: the same
    objectives over sentence embeddings.

    Args:
        targets, demos: unit vectors.

    Returns:
        In [0, 1] but for rounding; 1 is the same direction.

    >>> compare(np.float32([[1, 0]]), np.float32([[0.6, 0.8], [-1, 0]])).tolist()
    [[0.6000000238418579, 0.0]]
    """
    out = np.empty((len(targets), len(demos)), np.float32)
    for rows, columns, products in _tiles(targets, demos):
        out[rows, columns] = np.maximum(products, 0)
    return out


def compare_nearest(
    vectors: Float32[np.ndarray, "row width"], neighbours: Int64[np.ndarray, "row neighbour"]
) -> Kernel:
    """Return the similarity of every row with itself and with its nearest others; other pairs are absent.

    Args:
        vectors: unit vectors.
        neighbours: others of each row, as `utility.neighbours.find_neighbours` finds them; where these are all others,
            the kernel is dense.

    >>> compare_nearest(np.float32([[1, 0], [0.8, 0.6], [0, 1]]), np.array([[1], [0], [1]])).indices.tolist()
    [0, 1, 0, 1, 1, 2]
    """
    rows = np.arange(len(vectors))
    demos = np.column_stack([rows, neighbours])
    values = np.empty(demos.shape, np.float32)
    for start in range(0, len(vectors), ROWS):
        some = slice(start, start + ROWS)
        for place, demo in enumerate(demos[some].T):
            product = (vectors[some].astype(np.float64) * vectors[demo]).sum(axis=1)
            values[some, place] = np.maximum(product, 0)
    return gather(np.repeat(rows, demos.shape[1]), demos.ravel(), values.ravel(), (len(rows), len(rows)))


def compare_best(
    targets: Float32[np.ndarray, "target width"], demos: Float32[np.ndarray, "demo width"]
) -> Float32[np.ndarray, " target"]:
    """Return max_j s_ij of each target, 0 where there is no demo; the kernel is never whole in memory.

    >>> compare_best(np.float32([[1, 0]]), np.float32([[0.6, 0.8], [-1, 0]])).tolist()
    [0.6000000238418579]
    """
    best = np.zeros(len(targets), np.float32)
    for rows, _, products in _tiles(targets, demos):
        best[rows] = np.maximum(best[rows], products.max(axis=1).astype(np.float32))
    return best


def _tiles(targets: np.ndarray, demos: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield the products of some rows and some columns after the other, in float64."""
    for start in range(0, len(targets), ROWS):
        for first in range(0, len(demos), ROWS):
            rows, columns = slice(start, start + ROWS), slice(first, first + ROWS)
            yield rows, columns, targets[rows].astype(np.float64) @ demos[columns].T.astype(np.float64)
