"""Budgets: how much may be chosen, and how many rows of each topic; resolved, checked and spent.

Every budget is a limit on what the chosen rows cost together: a row costs 1 under `count` and `fraction`, and its
response tokens under `response_tokens`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
from jaxtyping import Int64

KINDS = ("count", "fraction", "response_tokens")
Asked = Mapping[str, Any]  # as a person wrote it: `resolve` refuses what is not a number of the right kind


class BudgetError(ValueError):
    """A budget, a cap or a floor that cannot be kept."""


@dataclass(frozen=True)
class Budget:
    """A budget that can be kept: `limit` on the summed costs, and between `floors` and `caps` rows of every topic."""

    kind: str  # count | fraction | response_tokens
    limit: int  # the most that the chosen rows may cost together, in rows or in response tokens
    costs: Int64[np.ndarray, " row"]  # what each row costs
    topic_of: Int64[np.ndarray, " row"]  # the number of each row's topic
    topics: tuple[str, ...]  # the topics' names, sorted
    floors: Int64[np.ndarray, " topic"]  # at least so many rows
    caps: Int64[np.ndarray, " topic"]  # at most so many rows


def resolve(
    budget: Asked,
    *,
    topics: Sequence[str],
    response_tokens: Int64[np.ndarray, " row"],
    caps: Asked | None = None,
    floors: Asked | None = None,
) -> Budget:
    """Return the budget for these rows, after checking that it can be kept.

    A fraction is rounded down to whole rows.

    Args:
        budget: one entry, `count` (rows), `fraction` (of the rows, in (0, 1]) or `response_tokens` (tokens).
        topics: the topic of each row.
        response_tokens: the tokens of each row's response, at least 1.
        caps: topic -> at most so many rows; `"*"` stands for every topic not named.
        floors: topic -> at least so many rows.

    Raises:
        BudgetError: the budget is empty or larger than the ground set, or contradicts the caps or the floors.

    >>> resolve({"fraction": 0.7}, topics=["a", "a", "b", "b"], response_tokens=np.array([9, 9, 9, 9])).limit
    2
    """
    rows = len(topics)
    if rows < 2:
        raise BudgetError(f"the ground set holds {rows} of the 2 rows that a choice needs; add examples to the pool")
    names = tuple(sorted(set(topics)))
    number = {name: place for place, name in enumerate(names)}
    topic_of = np.array([number[name] for name in topics], np.int64)
    sizes = dict(zip(names, np.bincount(topic_of).tolist(), strict=True))
    kind, amount = _only_entry(budget)
    costs = _costs(kind, rows, response_tokens)
    limit = _limit(kind, amount, costs)
    highest, lowest = _caps(caps or {}, sizes), _floors(floors or {}, sizes)
    _refuse_crossed(highest, lowest, caps or {})
    result = Budget(kind, limit, costs, topic_of, names, _numbers(lowest), _numbers(highest))
    _refuse_unaffordable(result)
    return result


def record(budget: Budget) -> dict[str, Any]:
    """Return a resolved budget as JSON can keep it: kind, limit, and the floor and the cap of every topic."""
    floors, caps = (dict(zip(budget.topics, numbers.tolist(), strict=True)) for numbers in (budget.floors, budget.caps))
    return {"kind": budget.kind, "limit": budget.limit, "floors": floors, "caps": caps}


def restore(
    recorded: Mapping[str, Any], *, topics: Sequence[str], response_tokens: Int64[np.ndarray, " row"]
) -> Budget:
    """Return the budget that `record` kept, for the same rows; it was checked when it was resolved.

    Args:
        recorded: what `record` returned.
        topics: the topic of each row.
        response_tokens: the tokens of each row's response.

    Raises:
        BudgetError: it is of other topics.

    >>> one = resolve({"count": 2}, topics=["a", "b"], response_tokens=np.array([1, 1]), floors={"b": 1})
    >>> restore(record(one), topics=["a", "b"], response_tokens=np.array([1, 1])).floors
    array([0, 1])
    """
    names = tuple(sorted(set(topics)))
    if set(names) != set(recorded["caps"]):
        strangers = sorted(set(names) ^ set(recorded["caps"]))
        raise BudgetError(
            f"the budget was resolved for {len(recorded['caps'])} topics and these rows have {len(names)}, first "
            f"{strangers[:3]}; choose again for these rows"
        )
    number = {name: place for place, name in enumerate(names)}
    floors, caps = (np.array([recorded[bound][name] for name in names], np.int64) for bound in ("floors", "caps"))
    costs = _costs(recorded["kind"], len(topics), response_tokens)
    topic_of = np.array([number[name] for name in topics], np.int64)
    return Budget(recorded["kind"], recorded["limit"], costs, topic_of, names, floors, caps)


def fill(
    budget: Budget,
    order: list[int],
    quota: Int64[np.ndarray, " topic"],
    best_first: Callable[[Int64[np.ndarray, " candidate"]], Iterable[int]],
    take: Callable[[int], None],
) -> None:
    """Append rows to `order`, best first, while the quota of their topic and the budget last.

    What the cheapest rows of unmet floors cost is set aside, so that a dear row never makes a floor unaffordable. A
    row that is passed over once can never be taken later: quotas, and what is left to spend, only shrink.

    Args:
        budget: what may be spent.
        order: the rows taken so far; it grows.
        quota: how many rows of each topic `order` may hold.
        best_first: yields each of the given rows once, the best first, given what `take` took meanwhile.
        take: called with each row that is taken.
    """
    topic_of, costs = budget.topic_of.tolist(), budget.costs.tolist()
    left = quota - count_by_topic(budget, order)
    rows = _without(order, left[budget.topic_of] > 0)
    left, total = left.tolist(), int(np.maximum(left, 0).sum())
    aside = [_set_aside(budget, order, topic) for topic in range(len(budget.topics))]
    slack = budget.limit - sum(costs[row] for row in order) - sum(map(sum, aside))
    cheapest = 0 if any(aside) else min(costs)
    for row in best_first(rows):
        if total < 1 or slack < cheapest:
            return
        topic, reserved = topic_of[row], aside[topic_of[row]]
        extra = max(0, costs[row] - reserved[-1]) if reserved else costs[row]
        if left[topic] < 1 or extra > slack:
            continue
        take(row)
        order.append(row)
        left[topic], total, slack = left[topic] - 1, total - 1, slack - extra
        if reserved:
            reserved.pop(min(bisect_left(reserved, costs[row]), len(reserved) - 1))


def rank(budget: Budget, order: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " pick"]:
    """Return the rows that a given order fills the budget with: floors first, then what budget and caps allow.

    A row that no longer fits is passed over, and a later one that fits is taken. Under `count` and `fraction` a larger
    budget goes on where a smaller one ends.

    Args:
        budget: what may be spent.
        order: every row once, the best first.

    Raises:
        BudgetError: a row is missing in the order, or stands there twice.

    >>> two = resolve({"count": 2}, topics=["a", "b", "b"], response_tokens=np.array([1, 1, 1]), caps={"b": 1})
    >>> rank(two, np.array([2, 1, 0]))
    array([2, 0])
    """
    rows = len(budget.costs)
    if not np.array_equal(np.sort(order), np.arange(rows)):
        raise BudgetError(f"an order of {rows} rows must hold each of them once; this one holds {len(order)} places")
    place = np.argsort(order)
    picked: list[int] = []
    for quota in (budget.floors, budget.caps):
        fill(budget, picked, quota, lambda rows: rows[np.argsort(place[rows])].tolist(), lambda row: None)
    return np.array(picked, np.int64)


def draw(budget: Budget, *, seed: int) -> Int64[np.ndarray, " pick"]:
    """Return rows in the order of a seeded permutation: floors first, then what budget and caps allow.

    Args:
        budget: what may be spent.
        seed: of the permutation; it alone decides, whatever the machine.

    >>> sorted(draw(resolve({"count": 3}, topics=["a"] * 3, response_tokens=np.array([1, 1, 1])), seed=0).tolist())
    [0, 1, 2]
    """
    return rank(budget, np.argsort(np.random.default_rng(seed).permutation(len(budget.costs))))


def measure_room(budget: Budget, rows: Int64[np.ndarray, " candidate"]) -> tuple[int, str]:
    """Return what all of some rows would cost, and the unit of that in words.

    >>> two = resolve({"count": 2}, topics=["a", "b", "b"], response_tokens=np.array([1, 1, 1]))
    >>> measure_room(two, np.array([0, 2]))
    (2, 'rows')
    """
    return int(budget.costs[rows].sum()), "response tokens" if budget.kind == "response_tokens" else "rows"


def narrow(budget: Budget, rows: Int64[np.ndarray, " candidate"]) -> Budget:
    """Return the same budget for some of its rows, numbered from 0 in the order given: only these may be taken.

    Args:
        budget: what may be spent.
        rows: the rows that may be taken, each once.

    Raises:
        BudgetError: they cannot meet the floors, or hold too few rows to spend a budget of rows.

    >>> two = resolve({"count": 2}, topics=["a", "b", "b"], response_tokens=np.array([1, 1, 1]))
    >>> narrow(two, np.array([0, 2])).caps
    array([1, 1])
    """
    topic_of = budget.topic_of[rows]
    sizes = np.bincount(topic_of, minlength=len(budget.topics)).astype(np.int64)
    short = [budget.topics[topic] for topic in np.flatnonzero(budget.floors > sizes)]
    if short:
        raise BudgetError(
            f"{len(short)} of {len(budget.topics)} topics have a floor above their share of the {len(rows)} rows of "
            f"{len(budget.costs)} that may be chosen, first {short[:3]}; lower selection.floors"
        )
    caps = np.minimum(budget.caps, sizes)
    smaller = replace(budget, costs=budget.costs[rows], topic_of=topic_of, caps=caps)
    _refuse_unaffordable(smaller)
    return smaller


def stratify(budget: Budget, counted: Int64[np.ndarray, " row"]) -> Budget:
    """Return a budget of rows in which each topic has at most its share, rounded up: a stratified choice.

    cap'_t = min(cap_t, max(floor_t, ceil(limit * n_t / n))), of n rows that are counted n_t are of the topic; where
    this leaves too few, the other topics share the rest

    >>> two = resolve({"count": 3}, topics=["a"] * 4 + ["b"], response_tokens=np.ones(5, np.int64))
    >>> stratify(two, np.arange(5)).caps, stratify(two, np.array([3, 4])).caps
    (array([3, 1]), array([2, 1]))
    """
    sizes = np.bincount(budget.topic_of[counted], minlength=len(budget.topics)).astype(np.int64)
    caps = np.clip(-(-budget.limit * sizes // sizes.sum()), budget.floors, budget.caps)
    while (left := budget.limit - int(caps.sum())) > 0:
        free = np.where(caps < budget.caps, np.maximum(sizes, 1), 0)
        caps = np.minimum(caps - (-left * free // free.sum()), budget.caps)
    return replace(budget, caps=caps)


def affordable(budget: Budget, order: Sequence[int]) -> Int64[np.ndarray, " candidate"]:
    """Return the rows that may be taken after `order`, whose floors are met: within the caps and what is left."""
    left = budget.limit - int(budget.costs[list(order)].sum())
    below_cap = (budget.caps - count_by_topic(budget, order))[budget.topic_of] > 0
    return _without(order, below_cap & (budget.costs <= left))


def count_by_topic(budget: Budget, order: Sequence[int]) -> Int64[np.ndarray, " topic"]:
    """Return how many rows of each topic `order` holds."""
    return np.bincount(budget.topic_of[list(order)], minlength=len(budget.topics)).astype(np.int64)


def _without(order: Sequence[int], allowed: np.ndarray) -> np.ndarray:
    """Return the rows of a mask that are not in `order`, ascending."""
    allowed = allowed.copy()
    allowed[list(order)] = False
    return np.flatnonzero(allowed).astype(np.int64)


def _set_aside(budget: Budget, order: Sequence[int], topic: int) -> list[int]:
    """Return what the cheapest rows cost that still meet a topic's floor, ascending."""
    if not budget.floors[topic]:
        return []
    unmet = int(budget.floors[topic] - count_by_topic(budget, order)[topic])
    rows = _without(order, budget.topic_of == topic)
    return np.sort(budget.costs[rows])[: max(0, unmet)].tolist()


def _only_entry(budget: Asked) -> tuple[str, Real]:
    if len(budget) != 1 or next(iter(budget)) not in KINDS:
        raise BudgetError(
            f"selection.budget names {sorted(budget) or 'nothing'}; give exactly one of {', '.join(KINDS)}, "
            "for example {fraction: 0.3}"
        )
    ((kind, amount),) = budget.items()
    wanted = Real if kind == "fraction" else Integral
    if isinstance(amount, bool) or not isinstance(amount, wanted) or not np.isfinite(amount):
        raise BudgetError(f"selection.budget.{kind} is {amount!r}; it must be a whole number, or a fraction in (0, 1]")
    if amount <= 0:
        raise BudgetError(f"selection.budget.{kind} is {amount}, which chooses nothing; it must be above 0")
    return kind, amount


def _costs(kind: str, rows: int, response_tokens: np.ndarray) -> np.ndarray:
    if kind != "response_tokens":
        return np.ones(rows, np.int64)
    free = np.flatnonzero(response_tokens < 1)
    if len(free):
        raise BudgetError(
            f"{len(free)} of {rows} rows have no response tokens, first rows {free[:3].tolist()}; "
            "make the examples again or give selection.budget as count or fraction"
        )
    return response_tokens.astype(np.int64)


def _limit(kind: str, amount: Real, costs: np.ndarray) -> int:
    rows, total = len(costs), int(costs.sum())
    if kind == "fraction" and amount > 1:
        raise BudgetError(
            f"selection.budget.fraction is {amount}, above 1; it is a share of the {rows} rows, at most 1"
        )
    limit = int(Fraction(str(amount)) * rows) if kind == "fraction" else int(amount)
    if limit < 1:
        raise BudgetError(
            f"selection.budget.fraction {amount} of {rows} rows is less than one row; give {{count: 1}} or more"
        )
    if limit > total:
        held = f"{total} response tokens in {rows} rows" if kind == "response_tokens" else f"{rows} rows"
        raise BudgetError(
            f"selection.budget.{kind} is {limit}, but the ground set holds {held}; "
            f"give at most {total}, or {{fraction: 1.0}} for all"
        )
    if limit < costs.min():
        raise BudgetError(
            f"selection.budget.{kind} is {limit}, but the shortest of {rows} responses has {costs.min()} tokens; "
            f"give at least {costs.min()}"
        )
    return limit


def _caps(caps: Asked, sizes: Mapping[str, int]) -> dict[str, int]:
    _refuse_bounds("caps", {name: most for name, most in caps.items() if name != "*"}, sizes)
    if "*" in caps:
        _refuse_bounds("caps", {"*": caps["*"]}, {"*": 0})
    return {name: min(size, caps.get(name, caps.get("*", size))) for name, size in sizes.items()}


def _floors(floors: Asked, sizes: Mapping[str, int]) -> dict[str, int]:
    _refuse_bounds("floors", floors, sizes)
    short = {name: least for name, least in floors.items() if least > sizes[name]}
    if short:
        places = ", ".join(f"{name}: {least} of {sizes[name]} rows" for name, least in list(short.items())[:3])
        raise BudgetError(
            f"{len(short)} of {len(floors)} floors ask for more rows than the topic has ({places}); lower them"
        )
    return {name: floors.get(name, 0) for name in sizes}


def _refuse_bounds(what: str, bounds: Asked, sizes: Mapping[str, int]) -> None:
    unknown = sorted(bounds.keys() - sizes.keys())
    if unknown:
        raise BudgetError(
            f"selection.{what} name {len(unknown)} of {len(bounds)} topics that no row has, first {unknown[:3]}; "
            f"the topics are {sorted(sizes)[:20]}"
        )
    odd = {name: bound for name, bound in bounds.items() if isinstance(bound, bool) or not isinstance(bound, Integral)}
    odd |= {name: bound for name, bound in bounds.items() if name not in odd and bound < 0}
    if odd:
        raise BudgetError(
            f"{len(odd)} of {len(bounds)} selection.{what} are not whole numbers of rows, first "
            f"{dict(list(odd.items())[:3])}; give 0 or more"
        )


def _refuse_crossed(highest: Mapping[str, int], lowest: Mapping[str, int], caps: Asked) -> None:
    crossed = [name for name in highest if lowest[name] > highest[name]]
    if crossed:
        places = ", ".join(f"{name}: floor {lowest[name]}, cap {caps.get(name, caps.get('*'))}" for name in crossed[:3])
        raise BudgetError(
            f"{len(crossed)} of {len(highest)} topics have a floor above their cap ({places}); change one"
        )


def _refuse_unaffordable(budget: Budget) -> None:
    """Refuse floors that the budget does not reach, and caps that keep it from being spent."""
    unit = "response tokens" if budget.kind == "response_tokens" else "rows"
    needed = sum(sum(_set_aside(budget, [], topic)) for topic in range(len(budget.topics)))
    if needed > budget.limit:
        raise BudgetError(
            f"the floors of {int((budget.floors > 0).sum())} topics need at least {needed} {unit}, but "
            f"selection.budget.{budget.kind} allows {budget.limit}; raise it or lower selection.floors"
        )
    rows, most = len(budget.costs), int(budget.caps.sum())
    if budget.kind != "response_tokens" and most < budget.limit:
        few = f"selection.caps leave {most} of {rows} rows" if most < rows else f"there are {rows} rows"
        way = f"{'raise a cap or ' if most < rows else ''}lower the budget"
        raise BudgetError(f"{few}, fewer than the {budget.limit} of selection.budget.{budget.kind}; {way}")
    if not len(affordable(budget, [])):
        raise BudgetError(
            f"no row under its topic's cap costs at most the {budget.limit} {unit} of selection.budget.{budget.kind}; "
            "raise a cap or the budget"
        )


def _numbers(bounds: Mapping[str, int]) -> np.ndarray:
    return np.array(list(bounds.values()), np.int64)
