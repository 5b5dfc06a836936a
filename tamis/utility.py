"""DELIFT's pairwise utility: how much one example, shown in context, helps the model answer another.

Symbols: i, target: the example that is answered (rows). j, demo: the example shown before it (columns). T_i: response
tokens of i, with the end-of-turn token. p(y_it): probability of the reference token, teacher-forced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from tamis.budgets import resolve
from tamis.cosines import compare_nearest
from tamis.embedding import nearest, nearest_among
from tamis.selection import choose

DISTANCES = ("probability", "log_likelihood")
KERNELS = ("exact", "neighbours", "landmarks")
BLOCKS = (("ground", "ground"), ("ground", "learnt"), ("ground", "task"), ("task", "ground"))  # of targets, of demos
ROUNDS = 3  # of halving, until only the landmarks are left
NEAR = 255  # cosines per row that spreading looks at, its own not counted

Sets = Mapping[str, Int[np.ndarray, " _"]]  # `ground`, `task`, `learnt`: places of examples; sets may share places
Pairs = Int[np.ndarray, "pair 2"]  # (target, demo): places of examples


@dataclass(frozen=True)
class Answer:
    """How well the model expects one response."""

    tokens: int  # T_i
    distance: float  # root mean square of 1 - p, in [0, 1], 0 is best
    log_likelihood: float  # mean log p, nats per response token, 0 is best


@dataclass(frozen=True)
class Missed:
    """What a kernel of some pairs lacks, on a sample of pairs that were scored exactly; 0 is best."""

    mean_absolute: float  # mean |s - kernel|, in units of s
    max_absolute: float
    share_of_helpful_missed: float  # of the pairs with U > 0, in [0, 1]
    mass_missed: float  # their sum of s over the sum of all s, in [0, 1]


def measure(log_probs: Float[Tensor, " token"]) -> Answer:
    """Reduce a response's log-probabilities to its two distances, in float64.

    distance = sqrt( (1/T) * sum_t (1 - p_t)^2 ),  log_likelihood = (1/T) * sum_t log p_t

    **Source**: DELIFT, arXiv 2411.04425v3, section 3.1: the distance between the predicted probabilities and 1; its
    KL form is the difference of mean log-likelihoods.

    Args:
        log_probs: log p(y_t) in nats, one per response token, at least one.

    Raises:
        ValueError: no token.

    >>> measure(torch.log(torch.tensor([1.0, 0.4])))
    Answer(tokens=2, distance=0.424264..., log_likelihood=-0.458145...)
    """
    if len(log_probs) == 0:
        raise ValueError("a response without tokens has no distance; leave such examples out")
    exact = log_probs.double()
    miss = -torch.expm1(exact)
    return Answer(len(exact), float(miss.square().mean().sqrt()), float(exact.mean()))


def gain(
    shown: Float[np.ndarray, " pair"], alone: Float[np.ndarray, " pair"], distance: str
) -> Float[np.ndarray, " pair"]:
    """Return the utility of each pair: what showing the demo changed for the target; > 0: it helped.

    probability: U = d_i(nothing) - d_i(demo);  log_likelihood: U = ll_i(demo) - ll_i(nothing)

    **Source**: DELIFT, arXiv 2411.04425v3, equation 1.

    Args:
        shown: the measure with the demo in context, per pair.
        alone: the same target's measure without a demo, per pair.
        distance: `probability` (root mean square of 1 - p) or `log_likelihood` (mean log p).

    >>> gain(np.array([0.25]), np.array([0.75]), "probability")
    array([0.5])
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; known: {', '.join(DISTANCES)}")
    return alone - shown if distance == "probability" else shown - alone


def pairs_of_all(sets: Sets) -> Pairs:
    """Return every pair of every block (`BLOCKS`) once, an example with itself too; memory: 16 bytes per pair.

    >>> pairs_of_all({"ground": np.array([0, 1]), "task": np.array([2]), "learnt": np.array([1])}).tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]
    """
    return unite(pair_all(sets[targets], sets[demos]) for targets, demos in BLOCKS)


def pairs_of_neighbours(sets: Sets, vectors: Float32[np.ndarray, "example width"], count: int) -> Pairs:
    """Return, in every block, each target with the demos nearest to it; in the ground set also with itself.

    Args:
        sets: places of examples.
        vectors: the unit embedding of every place.
        count: demos per target and block, in the ground set itself not counted; all where there are fewer.

    Cost: that of `embedding.nearest`.

    >>> square = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    >>> pairs_of_neighbours({"ground": np.arange(3), "task": np.arange(0), "learnt": np.arange(0)}, square, 1).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 2]]
    """
    ground = sets["ground"]
    found = [_pair_up(ground, ground[:, None]), _pair_up(ground, ground[nearest(vectors[ground], count)])]
    for targets, demos in ((sets[targets], sets[demos]) for targets, demos in BLOCKS[1:]):
        found.append(_pair_up(targets, demos[nearest_among(vectors[targets], vectors[demos], count)]))
    return unite(found)


def pairs_of_landmarks(sets: Sets, shown: Sets, answered: Sets) -> Pairs:
    """Return, in every block, the pairs of a few targets and a few demos.

    Landmarks of the ground set answer themselves, too: of few targets, those that are landmarks would else favour
    themselves.

    Args:
        sets: places of examples.
        shown: the landmarks of each set, some of its places.
        answered: the targets of ground set and task, some of their places.

    >>> sets = {"ground": np.arange(3), "task": np.array([3]), "learnt": np.arange(0)}
    >>> pairs_of_landmarks(sets, sets | {"ground": np.array([2])}, sets | {"ground": np.array([0])}).tolist()
    [[0, 2], [0, 3], [2, 2], [3, 2]]
    """
    own = _pair_up(shown["ground"], shown["ground"][:, None])
    return unite([own, *(pair_all(answered[targets], shown[demos]) for targets, demos in BLOCKS)])


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


def favourites(similar: Float[np.ndarray, "target demo"], count: int) -> Int[np.ndarray, " favourite"]:
    """Return the demos that help most on average, best first; ties go to the lowest index.

    mean_i s_ij over the targets that have a value: what a demo adds to facility location when it is chosen first.

    Args:
        similar: s = max(U, 0), NaN where a pair has no score.
        count: demos to return.

    >>> favourites(np.array([[0.5, np.nan, 0.25], [0.0, 0.5, 0.75]]), 2).tolist()
    [1, 2]
    """
    known = ~np.isnan(similar)
    mean = np.where(known, similar, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.argsort(-mean, kind="stable")[:count]


def spread(vectors: Float32[np.ndarray, "row width"], count: int) -> Int[np.ndarray, " pick"]:
    """Return rows that stand for the others, best first: each covers most of what those before it leave uncovered.

    greedy maximisation of sum_i max_{j in A} max(cos_ij, 0), with a row's own cosine and those of its `NEAR` nearest

    Time rows^2 x width; memory NEAR x rows.

    Args:
        vectors: unit vectors.
        count: rows to return; all, in their own order, where there are no more.

    >>> spread(np.float32([[1, 0], [0, 1], [0, 1]]), 2).tolist()
    [1, 0]
    """
    rows = len(vectors)
    if count >= rows:
        return np.arange(rows)
    budget = resolve({"count": count}, topics=[""] * rows, response_tokens=np.ones(rows, np.int64))
    return choose(compare_nearest(vectors, NEAR), budget).order


def missed(utility: Float[np.ndarray, " pair"], known: Bool[np.ndarray, " pair"]) -> Missed:
    """Compare exactly scored pairs with a kernel that holds some of them: s = max(U, 0), absent pairs are 0 in it.

    Args:
        utility: U of every pair of a sample.
        known: which of these pairs the kernel holds; it holds their exact values.

    Raises:
        ValueError: no pair: nothing is known of the error then.

    >>> missed(np.array([0.5, 0.25, 0.25, -1.0]), np.array([True, False, True, False]))
    Missed(mean_absolute=0.0625, max_absolute=0.25, share_of_helpful_missed=0.333..., mass_missed=0.25)
    """
    if not len(utility):
        raise ValueError("no pair was scored exactly, so the error of a kernel is not known; sample some targets")
    exact = np.maximum(utility.astype(np.float64), 0)
    lost = np.where(known, 0.0, exact)
    helpful, total = int((exact > 0).sum()), float(exact.sum())
    return Missed(
        mean_absolute=float(lost.mean()),
        max_absolute=float(lost.max()),
        share_of_helpful_missed=int((lost > 0).sum()) / max(helpful, 1),
        mass_missed=float(lost.sum()) / (total or 1.0),
    )


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


def fits(
    prefixes: Sequence[int], targets: Sequence[int], pairs: Int[np.ndarray, "pair 2"], max_tokens: int
) -> Bool[np.ndarray, " pair"]:
    """Tell which pairs fit in the context whole: prefix tokens + target tokens <= max_tokens; nothing is ever cut.

    >>> fits([3, 9], [4, 4], np.array([[0, 0], [0, 1]]), 8)
    array([ True, False])
    """
    target, demo = pairs[:, 0], pairs[:, 1]
    return np.asarray(prefixes)[demo] + np.asarray(targets)[target] <= max_tokens


def _pair_up(targets: np.ndarray, demos: np.ndarray) -> np.ndarray:
    """Return each target with each demo of its row."""
    return np.column_stack([np.repeat(targets, demos.shape[1]), demos.ravel()])
