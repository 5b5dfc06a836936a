"""Pairs: which targets are scored with which demos, and how landmarks are found.

Symbols: a pair is (target, demo), places of examples. Sets: `ground`, what may be chosen and is to be covered; `task`,
the target task's examples; `learnt`, what an earlier version chose.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Float32, Int

from tamis.submodular.budgets import resolve
from tamis.submodular.cosines import compare_nearest
from tamis.submodular.greedy import choose
from tamis.utility.neighbours import find_neighbours, find_neighbours_among

KERNELS = ("exact", "neighbours", "landmarks", "none")
BLOCKS = (("ground", "ground"), ("ground", "learnt"), ("ground", "task"), ("task", "ground"))  # of targets, of demos
ROUNDS = 3  # of halving, until only the landmarks are left
HELP = 1  # what tells the draw of help's targets from others of the same seed
NEAR = 255  # cosines per row that spreading looks at, its own not counted

Sets = Mapping[str, Int[np.ndarray, " _"]]  # `ground`, `task`, `learnt`: places of examples; sets may share places
Pairs = Int[np.ndarray, "pair 2"]  # (target, demo): places of examples


def pairs_of_all(sets: Sets) -> Pairs:
    """Return every pair of every block (`BLOCKS`) once, an example with itself too; memory: 16 bytes per pair.

    >>> pairs_of_all({"ground": np.array([0, 1]), "task": np.array([2]), "learnt": np.array([1])}).tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]
    """
    return unite(pair_all(sets[targets], sets[demos]) for targets, demos in BLOCKS)


def pairs_of_neighbours(
    sets: Sets, vectors: Float32[np.ndarray, "example width"], count: int, quality: str | None = None
) -> tuple[Pairs, float]:
    """Return, in every block, each target with the demos nearest to it; in the ground set also with itself.

    With them comes the share of the nearest demos that were found, the least of the blocks; 1 but in large blocks.
    Where nothing but `help` is read of the pairs, each demo of the ground set comes instead with those rows as targets
    that are nearest to it, of the task or, where there is none, others of the ground set: many a row is the nearest
    demo of no target, and of its help nothing would be known.

    Args:
        sets: places of examples.
        vectors: the unit embedding of every place.
        count: demos per target and block, or targets per demo, in the ground set itself not counted; all where there
            are fewer.
        quality: where it is all that is read of the pairs.

    Cost: that of `neighbours.find_neighbours`.

    >>> square = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    >>> sets = {"ground": np.arange(3), "task": np.arange(0), "learnt": np.arange(0)}
    >>> pairs_of_neighbours(sets, square, 1)[0].tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 2]]
    >>> pairs_of_neighbours({"ground": np.arange(2), "task": np.array([2])}, square, 1, "help")[0].tolist()
    [[2, 0], [2, 1]]
    """
    ground, task = sets["ground"], sets["task"]
    if quality == "help" and len(task):
        near = find_neighbours_among(vectors[ground], vectors[task], count)
        return unite([_pair_up(ground, task[near.indices])[:, ::-1]]), near.recall
    near = find_neighbours(vectors[ground], count)
    if quality == "help":
        return unite([_pair_up(ground, ground[near.indices])[:, ::-1]]), near.recall
    found, recall = [_pair_up(ground, ground[:, None]), _pair_up(ground, ground[near.indices])], near.recall
    for targets, demos in ((sets[targets], sets[demos]) for targets, demos in BLOCKS[1:]):
        near = find_neighbours_among(vectors[targets], vectors[demos], count)
        found.append(_pair_up(targets, demos[near.indices]))
        recall = min(recall, near.recall)
    return unite(found), recall


def pairs_of_landmarks(shown: Sets, answered: Sets) -> Pairs:
    """Return, in every block, the pairs of a few targets and a few demos.

    Landmarks of the ground set answer themselves, too: of few targets, those that are landmarks would else favour
    themselves.

    Args:
        shown: the landmarks of each set, some of its places.
        answered: the targets of ground set and task, some of their places.

    >>> sets = {"ground": np.arange(3), "task": np.array([3]), "learnt": np.arange(0)}
    >>> pairs_of_landmarks(sets | {"ground": np.array([2])}, sets | {"ground": np.array([0])}).tolist()
    [[0, 2], [0, 3], [2, 2], [3, 2]]
    """
    own = _pair_up(shown["ground"], shown["ground"][:, None])
    return unite([own, *(pair_all(answered[targets], shown[demos]) for targets, demos in BLOCKS)])


def pairs_of_help(targets: Int[np.ndarray, " target"], demos: Int[np.ndarray, " demo"], count: int, seed: int) -> Pairs:
    """Return some targets drawn by chance, the same ones for all demos, each with every demo but itself.

    The mean utility of a demo over them is how much it helps a row of the pool: a mean of `count` of its column.

    **Source**: ours.

    Args:
        targets: to draw from.
        demos: places of examples, each once.
        count: targets to draw, of which a larger number draws more; all where there are fewer.
        seed: of the draw, which is another one than those of landmarks and check.

    >>> pairs_of_help(np.array([4]), np.array([3, 4]), 8, 0).tolist()
    [[4, 3]]
    """
    drawn = np.random.default_rng([seed, HELP]).permutation(targets)[:count]
    return leave_itself(unite([pair_all(drawn, demos)]))


def pairs_of_quality(pairs: Pairs, sets: Sets, quality: str) -> Int[np.ndarray, "some_pair 2"]:
    """Return of some pairs those that tell the quality of the ground set's demos, none of them of a row and itself.

    `help` is measured on the task's rows, or on the ground set's where there is no task, `neighbours` on these.

    >>> sets = {"ground": np.arange(2), "task": np.array([2]), "learnt": np.array([3])}
    >>> pairs_of_quality(np.array([[0, 0], [0, 1], [0, 3], [2, 1]]), sets, "help").tolist()
    [[2, 1]]
    >>> pairs_of_quality(np.array([[0, 0], [0, 1], [0, 3], [2, 1]]), sets, "neighbours").tolist()
    [[0, 1]]
    """
    helped = sets["task"] if quality == "help" and len(sets["task"]) else sets["ground"]
    others = leave_itself(pairs)
    return others[np.isin(others[:, 0], helped) & np.isin(others[:, 1], sets["ground"])]


def leave_itself(pairs: Pairs) -> Int[np.ndarray, "other 2"]:
    """Return the pairs without those of an example and itself.

    >>> leave_itself(np.array([[0, 0], [0, 1]])).tolist()
    [[0, 1]]
    """
    return pairs[pairs[:, 0] != pairs[:, 1]]


def plan_rounds(demos: int, landmarks: int, targets: int) -> list[tuple[int, int]]:
    """Return how many demos are tried in each round, and on how many targets; the last round's are the kernel's.

    n_r = min(n, L 2^(R - r)) demos of round r = 1 ... R are tried on T (sum_{q <= r} 1 / n_q) / (sum_q 1 / n_q) targets

    Each round scores about as many pairs as any other: it halves the demos and doubles the targets. A round that would
    try as many demos as the next is left out.

    **Source**: successive halving, Karnin et al. 2013 (ICML); Jamieson and Talwalkar 2016 (arXiv 1502.07943).
    **Differs**: a demo keeps the targets of earlier rounds, and the first demos are `spread`, not all.

    Args:
        demos: n, of the ground set.
        landmarks: L, demos that are left in the end.
        targets: T, targets that these are scored on.

    >>> plan_rounds(100, 10, 70), plan_rounds(30, 10, 70), plan_rounds(5, 10, 70)
    ([(40, 10), (20, 30), (10, 70)], [(30, 13), (20, 32), (10, 70)], [(5, 70)])
    """
    tried = [min(demos, landmarks << left) for left in range(ROUNDS - 1, -1, -1)]
    price = np.cumsum([1 / count for count in tried])
    answered = [max(1, round(targets * float(share))) for share in price / price[-1]]
    return [(n, t) for n, t, after in zip(tried, answered, [*tried[1:], 0], strict=True) if n != after]


def top_demos(similar: Float[np.ndarray, "target demo"], count: int) -> Int[np.ndarray, " favourite"]:
    """Return the demos that help most on average, best first; ties go to the lowest index.

    mean_i s_ij over the targets that have a value: what a demo adds to facility location when it is chosen first.

    Args:
        similar: s = max(U, 0), NaN where a pair has no score.
        count: demos to return.

    >>> top_demos(np.array([[0.5, np.nan, 0.25], [0.0, 0.5, 0.75]]), 2).tolist()
    [1, 2]
    """
    known = ~np.isnan(similar)
    mean = np.where(known, similar, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.argsort(-mean, kind="stable")[:count]


def representatives(vectors: Float32[np.ndarray, "row width"], count: int) -> Int[np.ndarray, " pick"]:
    """Return rows that stand for the others, best first: each covers most of what those before it leave uncovered.

    greedy maximisation of sum_i max_{j in A} max(cos_ij, 0), with a row's own cosine and those of its `NEAR` nearest

    Time rows^2 x width; memory NEAR x rows.

    Args:
        vectors: unit vectors.
        count: rows to return; all, in their own order, where there are no more.

    >>> representatives(np.float32([[1, 0], [0, 1], [0, 1]]), 2).tolist()
    [1, 0]
    """
    rows = len(vectors)
    if count >= rows:
        return np.arange(rows)
    budget = resolve({"count": count}, topics=[""] * rows, response_tokens=np.ones(rows, np.int64))
    return choose(compare_nearest(vectors, find_neighbours(vectors, NEAR).indices), budget).order


def pair_all(targets: Int[np.ndarray, " target"], demos: Int[np.ndarray, " demo"]) -> Pairs:
    """Return each target with each demo.

    >>> pair_all(np.array([4]), np.array([1, 0])).tolist()
    [[4, 1], [4, 0]]
    """
    return _pair_up(targets, np.broadcast_to(demos, (len(targets), len(demos))))


def unite(several: Iterable[Int[np.ndarray, "_ 2"]]) -> Pairs:
    """Return pairs once each, sorted by target, then demo.

    >>> unite([np.array([[4, 1], [4, 0]]), np.array([[4, 1]])]).tolist()
    [[4, 0], [4, 1]]
    """
    pairs = np.concatenate(list(several)).astype(np.int64)
    size = int(pairs.max(initial=0)) + 1
    return np.column_stack(np.divmod(np.unique(pairs[:, 0] * size + pairs[:, 1]), size))


def _pair_up(targets: np.ndarray, demos: np.ndarray) -> np.ndarray:
    """Return each target with each demo of its row."""
    return np.column_stack([np.repeat(targets, demos.shape[1]), demos.ravel()])
