"""Chance: orders of rows that are drawn, in its three honest forms.

fixed: a permutation, `tamis.submodular.budgets.draw`. balanced: about as many rows of every group. fresh: other rows in
every epoch. A choice of rows takes the first ones of an order that its budget, caps and floors allow.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64


def name_groups(topics: Sequence[str], sources: Sequence[str | None]) -> list[str]:
    """Return the group of each row: its topic or, where every topic is one and the same, its source ("" for none).

    >>> name_groups(["a", "b"], ["x", "x"]), name_groups(["a", "a"], ["x", None])
    (['a', 'b'], ['x', ''])
    """
    return list(topics) if len(set(topics)) > 1 else [source or "" for source in sources]


def order_balanced(groups: Sequence[str], seed: int) -> Int64[np.ndarray, " row"]:
    """Return all rows in a random order whose every beginning holds equal numbers of each group, as far as they go.

    Each round takes one row at random of every group that has any left, the groups in a random order. So numbers of two
    groups in a beginning differ by 1 at most, unless the smaller is exhausted.

    **Source**: balanced random selection, Ivison et al. 2025, arXiv 2503.01807: uniform over sources, what a small one
    lacks is taken of the others.

    Args:
        groups: of each row.
        seed: of the rows drawn and of the order of groups in each round.

    >>> 3 in order_balanced(["a", "a", "a", "b"], seed=0)[:2]
    True
    """
    generator = np.random.default_rng(seed)
    _, group = np.unique(np.asarray(groups, str), return_inverse=True)
    order = generator.permutation(len(groups))
    order = order[np.argsort(group[order], kind="stable")]  # a group after the other, each shuffled
    sizes = np.bincount(group)
    turn = np.empty(len(groups), np.int64)
    turn[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((generator.permutation(len(groups)), turn)).astype(np.int64)


def order_fresh(seen: Int[np.ndarray, " row"], seed: Sequence[int]) -> Int64[np.ndarray, " row"]:
    """Return all rows in a random order, those first that were seen the fewest times.

    **Source**: RS2, Okanovic et al. 2023, arXiv 2305.18424: a new random subset in every epoch, here without repetition
    as long as there are rows that were not taken.

    Args:
        seen: in how many epochs each row was taken.
        seed: of the permutation: the training's seed and the epoch.

    >>> order_fresh(np.array([1, 0, 1, 0]), [0, 1])[:2].tolist() in ([1, 3], [3, 1])
    True
    """
    return np.lexsort((np.random.default_rng(seed).permutation(len(seen)), seen)).astype(np.int64)
