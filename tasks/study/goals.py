"""What the default selector is to reach on each kind of pool, and whether it does: met, missed or undecided.

`not above` counts only where the interval is narrow, so that few seeds cannot pass for no harm; and of fewer seeds than
`analysis.FEWEST` no interval counts, for it knows little of how choices of other rows would differ.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tamis.evaluation.paired import Difference
from tasks.study.analysis import FEWEST, Comparison, Group, Summary

DEFAULT = "default"
MET, MISSED, UNDECIDED = "met", "missed", "undecided"
NARROW = 0.04  # nats: the largest half-width of an interval that shows that there is no difference
FEW, OF_TARGET = 0.05, 0.8  # shares of the picks
EVERY = ("clean", "redundant", "versions")  # kinds of pools that no harm is to be done to, whatever the budget
WORST = (MISSED, UNDECIDED, MET)
EPOCH = 1.0  # of training on all rows, what scoring may cost


@dataclass(frozen=True)
class Goal:
    """What is asked of a pool, and whether it is reached."""

    pool: str
    asked: str  # in words
    found: str  # in figures
    verdict: str
    budget: str = ""  # at which that is found, as it was asked for; "" where it is of several


def combine(verdicts: Sequence[str]) -> str:
    """Return the verdict on several demands together: all must be met.

    >>> combine(["met", "undecided"]), combine(["met", "missed", "undecided"]), combine(["met"])
    ('undecided', 'missed', 'met')
    """
    return next((one for one in WORST if one in verdicts), MET)


def judge_below(loss: Difference) -> str:
    """Return whether a loss is below chance beyond its interval; undecided where the interval is too wide to say no."""
    if loss.high < 0:
        return MET
    return MISSED if loss.low > 0 or loss.half_width <= NARROW else UNDECIDED


def judge_not_above(loss: Difference) -> str:
    """Return whether a loss is not above chance: not beyond its interval, which must be narrow unless it is below."""
    if loss.low > 0:
        return MISSED
    return MET if loss.high < 0 or loss.half_width <= NARROW else UNDECIDED


def judge(one: Comparison, rule: Callable[[Difference], str]) -> str:
    """Return what a rule says of a comparison; undecided where it has too few seeds."""
    return rule(one.loss) if one.seeds >= FEWEST else UNDECIDED


def judge_share(share: float, most: float) -> str:
    """Return whether a share is at most another one."""
    return MET if share <= most else MISSED


def judge_pool(own: Summary, chance: Summary, beside: Comparison) -> Goal:
    """Return whether the default reaches what is asked of a pool of its kind, at the budget given."""
    name, kind, loss = own.group.pool, own.group.pool.partition("-")[0], beside.loss
    below, not_above = (judge(beside, rule) for rule in (judge_below, judge_not_above))
    figures = f"{loss.mean:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})"
    corrupted = f"{own.corrupted:.0%} corrupted, chance {chance.corrupted:.0%}"
    repeats = f"{own.repeats:.0%} repeats, chance {chance.repeats:.0%}"
    if kind == "rare" and own.target is not None:
        verdicts = [below, judge_share(OF_TARGET, own.target)]
        asked, figures = "below chance, 80% of the picks of the target", f"{figures}; {own.target:.0%} of the target"
    elif kind == "redundant":
        verdicts = [not_above, judge_share(own.repeats, chance.repeats / 2)]
        asked, figures = "not above chance, at most half of its repeats", f"{figures}; {repeats}"
    elif name.startswith("noisy-across") and name.endswith("20"):
        verdicts = [below, judge_share(own.corrupted, FEW)]
        asked, figures = "below chance, at most 5% corrupted", f"{figures}; {corrupted}"
    elif (name.startswith("noisy-within") and name.endswith("20")) or name == "confirm-tldr":
        verdicts = [below, judge_share(own.corrupted, chance.corrupted / 2)]
        asked, figures = "below chance, at most half of its corrupted", f"{figures}; {corrupted}"
    elif name == "noisy-cut-20":
        verdicts, asked = [below], "below chance"
    else:
        verdicts, asked = [not_above], "not above chance"
    figures += f"; {beside.seeds} seeds" if beside.seeds < FEWEST else ""
    return Goal(name, asked, figures, combine(verdicts), own.group.budget)


def choose_budget(budgets: Mapping[str, Summary], pool: str) -> str:
    """Return the budget that a pool is known by: of a rare target that of its size, else the largest."""
    size = next(iter(budgets.values()))
    if pool.startswith("rare") and size.pool_target is not None:
        wanted = size.pool_target * size.pool_rows
        return min(budgets, key=lambda name: abs(budgets[name].rows - wanted))
    return max(budgets, key=lambda name: budgets[name].rows)


def find_judged(summaries: Mapping[Group, Summary], pool: str) -> list[Group]:
    """Return the groups of the default that a pool is judged by, that of the largest budget first."""
    budgets = {g.budget: one for g, one in summaries.items() if (g.pool, g.selector, g.mask) == (pool, DEFAULT, "none")}
    judged = sorted(budgets, key=lambda name: -budgets[name].rows)
    if judged and not pool.startswith(EVERY):
        judged = [choose_budget(budgets, pool)]
    return [Group(pool, DEFAULT, budget, "none") for budget in judged]


def judge_pools(
    summaries: Mapping[Group, Summary], comparisons: Sequence[Comparison], chance: str
) -> dict[Group, tuple[Goal, Comparison]]:
    """Return the goal of every pool at the budget that does worst by it, with the comparison with chance it stands on.

    Of budgets that do alike, the largest.
    """
    by_pair = {(one.group, one.against.selector): one for one in comparisons}
    found = {}
    for pool in dict.fromkeys(group.pool for group in summaries):
        pairs = [by_pair[group, chance] for group in find_judged(summaries, pool) if (group, chance) in by_pair]
        judged = [(judge_pool(summaries[one.group], summaries[one.against], one), one) for one in pairs]
        if judged:
            worst = min(judged, key=lambda pair: WORST.index(pair[0].verdict))
            found[worst[1].group] = worst
    return found


def judge_versions(found: Sequence[Comparison]) -> Goal | None:
    """Return whether some pool of two versions is below chance; None where there is none."""
    own = [one for one in found if one.group.pool.startswith("versions")]
    if not own:
        return None
    verdicts = [judge(one, judge_below) for one in own]
    verdict = next(one for one in (MET, UNDECIDED, MISSED) if one in verdicts)
    told = ", ".join(f"{one.group.pool.removeprefix('versions-')} {one.loss.mean:+.3f}" for one in own)
    return Goal("versions", "below chance on one", told, verdict)


def judge_costs(summaries: Iterable[Summary]) -> Goal | None:
    """Return whether scoring costs at most an epoch of training on all rows, on every pool; None where none is known.

    Args:
        summaries: of the default.
    """
    known = [(one.scoring_epochs_seconds, one.scoring_epochs) for one in summaries]
    known = [(seconds, operations) for seconds, operations in known if seconds is not None and operations is not None]
    if not known:
        return None
    seconds, operations = zip(*known, strict=True)
    told = ", ".join(
        f"{min(own):.2f} to {max(own):.2f} epochs of {what}"
        for own, what in ((seconds, "seconds"), (operations, "operations"))
    )
    return Goal("costs", "scoring at most an epoch of training on all rows", told, judge_share(max(seconds), EPOCH))


def judge_masks(found: Sequence[Comparison]) -> Goal | None:
    """Return whether chosen rows in the mask are below all rows in it and chosen rows with all weights, on one pool."""
    pools: dict[str, list[Comparison]] = {}
    for one in found:
        pools.setdefault(one.group.pool, []).append(one)
    judged = {pool: combine([judge(one, judge_below) for one in own]) for pool, own in pools.items() if len(own) == 2}
    if not judged:
        return None
    verdict = next(one for one in (MET, UNDECIDED, MISSED) if one in judged.values())
    told = "; ".join(f"{pool} {', '.join(f'{one.loss.mean:+.3f}' for one in pools[pool])}" for pool in judged)
    return Goal("masks", "chosen rows in the mask below all rows in it and below all weights, on one", told, verdict)
