"""What a choice costs in floating-point operations, counted from tokens, and after how many trainings it has paid.

Operations are counted, not measured, so the same rows give the same number on every machine and whatever was stored:
2 per parameter and token forward, 6 forward and backward with the gradients of weights, 4 without those. Parameters are
those that take part: all but embeddings, which are looked up, for every token that is passed, and the output head for
the positions at which it predicts an answer token alone. A beginning that sequences share counts once for all that are
passed together. Attention's products of keys and queries, which are no parameters, and padding are left out.

Symbols: S cost of scoring, C of choosing, t of a training on the chosen rows, T on all rows of the pool; k trainings.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from tamis.language.encoding import Encoding

FORWARD, INPUTS, TRAINING = 2, 4, 6  # operations per parameter and token: forward; and gradients of inputs; of weights


@dataclass(frozen=True)
class Size:
    """The parameters of a model that take part in a pass."""

    layers: int  # for every token
    head: int = 0  # where an answer token is predicted


@dataclass(frozen=True)
class Passed:
    """What is passed through a model."""

    tokens: int
    predicted: int = 0  # positions at which the head is applied


@dataclass(frozen=True)
class Cost:
    """What it costs to train on a choice and to train on all rows, all of it in one unit: seconds or operations."""

    scoring: float | int  # S
    choosing: float | int  # C
    subset: float | int  # t, of one training
    full: float | int  # T, of one training


def count_flops(passed: Passed, size: Size, each: int = FORWARD) -> int:
    """Return the floating-point operations of passing tokens through a model.

    each * (layers * tokens + head * predicted)

    **Source**: 2N forward and 6N with the backward pass per token, Kaplan et al. 2020 (arXiv 2001.08361, section 2.1).
    **Differs**: the head counts where it is applied.

    Args:
        passed: through the model.
        size: of the model.
        each: operations per parameter and token: `FORWARD`, `INPUTS` or `TRAINING`.

    >>> count_flops(Passed(tokens=10, predicted=2), Size(layers=100, head=50))
    2200
    """
    return each * (size.layers * passed.tokens + size.head * passed.predicted)


def count_rows(rows: Encoding, *, shared: bool = True) -> Passed:
    """Return what is passed of rows, whose equal heads are passed once where they are shared.

    >>> from tamis.language.encoding import join_rows, make_sequence
    >>> count_rows(join_rows([[make_sequence([1, 2], [3])], [make_sequence([1, 5], [6])]], [1, 1]))
    Passed(tokens=5, predicted=2)
    """
    heads = rows.head_tokens
    kept = heads[_name_heads(rows)[1]] if shared else heads * np.diff(rows.rows)
    return Passed(int(rows.own_tokens.sum() + kept.sum()), int(rows.answer_tokens.sum()))


def count_steps(rows: Encoding, steps: Iterable[Int[np.ndarray, " _"]]) -> Passed:
    """Return what is passed in the steps of a training, in each of which equal heads are shared.

    Args:
        rows: trained on.
        steps: places of the rows of each step, as `training.steps.plan_steps` plans them.

    >>> from tamis.language.encoding import join_rows, make_sequence
    >>> rows = join_rows([[make_sequence([1, 2], [3])], [make_sequence([1, 5], [6])]], [1, 1])
    >>> count_steps(rows, [np.array([0, 1]), np.array([1])])
    Passed(tokens=8, predicted=3)
    """
    own, answers, heads = rows.own_tokens, rows.answer_tokens, rows.head_tokens
    names, _ = _name_heads(rows)
    tokens = predicted = 0
    for step in steps:
        _, first = np.unique(names[step], return_index=True)
        tokens += int(own[step].sum() + heads[step][first].sum())
        predicted += int(answers[step].sum())
    return Passed(tokens, predicted)


def _name_heads(rows: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each row that those with the same head share, and the first row of each head."""
    texts = [rows.head(place).tobytes() for place in range(len(rows))]
    number: dict[bytes, int] = {}
    names = np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
    return names, np.unique(names, return_index=True)[1]


def count_trainings(cost: Cost) -> int | None:
    """Return after how many trainings on the chosen rows their scoring has paid against training on all rows.

    The least k with S + C + k t <= k T: (S + C) / (T - t), rounded up; None, never, where a training is not cheaper.

    >>> count_trainings(Cost(scoring=10, choosing=2, subset=3, full=8)), count_trainings(Cost(1, 0, 3, 3))
    (3, None)
    """
    before, saved = cost.scoring + cost.choosing, cost.full - cost.subset
    if before == 0:
        return 0
    if saved <= 0:
        return None
    return math.ceil(Fraction(before) / Fraction(saved))


def find_pool_sizes(
    cost: Cost, rows: int, *, power: int, fixed: bool, piloted: bool = False
) -> tuple[int, int | None] | None:
    """Return the least and the largest pool with which one training on its chosen rows has paid; None: no size does.

    With x, the pool's size over this one's: S x^power + C x^(power or, where a pilot trains, 0) + t x^(1 or, where the
    number of chosen rows is fixed, 0) <= T x. Where all of it grows alike, all sizes pay or none.

    Args:
        cost: with a pool of so many rows.
        rows: of that pool.
        power: of the pool's size, by which scoring grows: 1, or 2 where all pairs of rows are scored.
        fixed: the chosen rows are as many in any pool; else a share of it.
        piloted: a pilot trains, whose steps are as many in any pool: choosing costs what it costs here.

    Returns:
        Rows; the largest is None where there is none.

    >>> find_pool_sizes(Cost(scoring=2, choosing=0, subset=4, full=10), 100, power=1, fixed=True)
    (50, None)
    >>> find_pool_sizes(Cost(scoring=2, choosing=0, subset=4, full=10), 100, power=2, fixed=False)
    (1, 300)
    >>> find_pool_sizes(Cost(scoring=2, choosing=6, subset=4, full=10), 100, power=1, fixed=False, piloted=True)
    (150, None)
    """
    before, subset, full = (
        Fraction(one) for one in (cost.scoring + (0 if piloted else cost.choosing), cost.subset, cost.full)
    )
    linear = full - (before if power == 1 else 0) - (0 if fixed else subset)
    square = before if power == 2 else Fraction(0)
    constant = (subset if fixed else Fraction(0)) + (Fraction(cost.choosing) if piloted else 0)

    def pays(size: int) -> bool:
        x = Fraction(size, rows)
        return square * x * x - linear * x + constant <= 0

    if square == 0:
        least = max(1, math.ceil(rows * constant / linear)) if linear > 0 else 1
        return (least, None) if pays(least) else None
    inside = linear**2 - 4 * square * constant
    if inside < 0:
        return None
    low, high = (float(linear + sign * Fraction(math.sqrt(inside))) / float(2 * square) for sign in (-1, 1))
    around = [size + step for size in (math.floor(rows * low), math.floor(rows * high)) for step in (-1, 0, 1, 2)]
    found = [size for size in around if size >= 1 and pays(size)]  # roots are rounded, so what is beside them is tried
    found += [1] if pays(1) else []
    return (min(found), max(found)) if found else None


def tell_break_even(seconds: Cost, flops: Cost, sizes: tuple[int, int | None] | None) -> str:
    """Return in words when scoring, or the choice where nothing was scored, has paid against training on all rows.

    Args:
        seconds, flops: costs in both units.
        sizes: of `find_pool_sizes`, in seconds.

    >>> tell_break_even(Cost(10, 2, 3, 8), Cost(1, 0, 3, 3), (500, None))
    'scoring has paid after 3 trainings on these rows (by FLOPs never); for one training from 500 rows of the pool on'
    """
    after, by_flops = count_trainings(seconds), count_trainings(flops)
    times = "never pays" if after is None else f"has paid after {_count(after, 'training')} on these rows"
    counted = "never" if by_flops is None else f"after {by_flops:,}"
    name = "scoring" if seconds.scoring or flops.scoring else "choosing"
    return f"{name} {times} (by FLOPs {counted}); for one training {_tell_sizes(sizes)}"


def tell_cost(name: str, seconds: float | int, flops: float | int) -> str:
    """Return a cost in words.

    >>> tell_cost("scoring", 12.34, 5.6e12)
    'scoring 12.3 s, 5.6e+12 FLOPs'
    """
    return f"{name} {seconds:,.1f} s, {flops:.2g} FLOPs"


def _tell_sizes(sizes: tuple[int, int | None] | None) -> str:
    if sizes is None:
        return "at no size of the pool"
    least, most = sizes
    if most is None:
        return "at any size of the pool" if least == 1 else f"from {least:,} rows of the pool on"
    return f"up to {most:,} rows of the pool" if least == 1 else f"from {least:,} to {most:,} rows of the pool"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def sum_flops(parts: Sequence[tuple[Passed, int]], size: Size) -> int:
    """Return the operations of several passes, each with its operations per parameter and token.

    >>> sum_flops([(Passed(10), FORWARD), (Passed(1), TRAINING)], Size(layers=100))
    2600
    """
    return sum(count_flops(passed, size, each) for passed, each in parts)
