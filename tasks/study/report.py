"""The report of a study: Markdown, JSON and pictures, all made from the tables of its cells."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import read_json, write_json, write_text
from tasks.study.analysis import (
    CONFIDENCE,
    FEWEST,
    NONE,
    RESAMPLES,
    Comparison,
    Group,
    Summary,
    compare_groups,
    compare_with_chance,
    group_cells,
    summarise,
)
from tasks.study.goals import DEFAULT, NARROW, Goal, judge_costs, judge_masks, judge_pools, judge_versions
from tasks.study.pictures import draw_differences, draw_picks, name_line
from tasks.study.pilots import Piloted, judge_pilots

ALL = "everything"  # the selector that takes every row
RESULTS = (
    ("pool", "selector", "budget", "seeds", "loss", "minus", "p, Holm", "seen from", "verdict"),
    ("pool", "selector", "budget", "corrupted", "repeats", "of target", "coverage", "Jaccard of seeds"),
    (
        "pool",
        "selector",
        "budget",
        "scoring, s",
        "training, s",
        "scoring, FLOPs",
        "training, FLOPs",
        "scoring, epochs",
        "pays",
        "by FLOPs",
    ),
)


@dataclass(frozen=True)
class Findings:
    """All that a report tells."""

    name: str  # of the study
    chance: tuple[str, ...]
    cells: Sequence[Mapping[str, Any]]
    summaries: Mapping[Group, Summary]
    beside: Sequence[Comparison]  # every selector less each form of chance
    masked: Sequence[Comparison]  # chosen rows in a mask less all rows in it, and less chosen rows with all weights
    judged: Mapping[Group, tuple[Goal, Comparison]]
    piloted: Sequence[Piloted]


def write_report(
    cells: Sequence[Mapping[str, Any]],
    name: str,
    chance: Sequence[str],
    *,
    shown: Sequence[Mapping[str, Any]] = (),
    commit: str,
    out: Path,
) -> list[Path]:
    """Write study.md, study.json and the pictures into a folder; return their paths.

    Args:
        cells: of the study, which its goals stand on.
        name: of the study.
        chance: its selectors by chance, the one that goals are held against first.
        shown: cells of other studies, which are told of, too.
        commit: of the project.
        out: folder.

    Raises:
        ValueError: no cell stands beside chance yet, or cells of a pool were measured on different held-out rows.
    """
    own = list(group_cells(cells))
    found = find([*cells, *shown], name, chance, own)
    if not found.beside:
        raise ValueError(
            f"none of {len(found.cells)} cells of {name} stands beside chance yet; run `tamis study {name}` first"
        )
    paths = [out / file for file in ("study.md", "study.json", "study-differences.png", "study-picks.png")]
    first = [one for one in found.beside if one.against.selector == chance[0]]
    draw_differences(first, paths[2])
    picks = draw_picks({group: found.summaries[group] for group in own}, paths[3])
    if not picks:
        paths[3].unlink(missing_ok=True)  # of an earlier report
    pictures = [path.name for path in paths[2 : 4 if picks else 3]]
    write_text(write_page(found, pictures), paths[0])
    record = make_record(found, commit)
    if read_json(paths[1]) | {"commit": commit} != record:  # else it stands as of the commit that found the same
        write_json(record, paths[1])
    return paths if picks else paths[:3]


def find(cells: Sequence[Mapping[str, Any]], name: str, chance: Sequence[str], own: Collection[Group]) -> Findings:
    """Return what cells amount to; goals stand on some groups alone."""
    groups = group_cells(cells)
    summaries = {group: summarise(group, own) for group, own in groups.items()}
    beside = compare_with_chance(groups, chance, own)
    pairs = [
        (group, other)
        for group in groups
        if group.selector == DEFAULT and group.mask != NONE
        for other in (group._replace(selector=ALL, budget=""), group._replace(mask=NONE))
        if other in groups
    ]
    masked = compare_groups(groups, pairs)
    judged = judge_pools({group: summaries[group] for group in own}, beside, chance[0])
    piloted = judge_pilots(groups, chance[0])
    return Findings(name, tuple(chance), cells, summaries, beside, masked, judged, piloted)


def list_goals(found: Findings) -> list[Goal]:
    """Return the goals of all pools, then those that several pools share."""
    versions = judge_versions([beside for _, beside in found.judged.values()])
    more = [versions, judge_masks(found.masked), judge_costs(found.summaries[group] for group in found.judged)]
    return [*(goal for goal, _ in found.judged.values()), *(goal for goal in more if goal)]


def write_page(found: Findings, pictures: Sequence[str]) -> str:
    """Return the report."""
    parts = [write_head(found), "## What was to be reached\n", write_goals(found), "## Which selector when\n"]
    parts += [write_advice(found), *(f"![{name}]({name})\n" for name in pictures)]
    for chance in found.chance:
        own = [one for one in found.beside if one.against.selector == chance]
        if own:
            parts += [f"## Loss, less that of `{chance}`\n", write_comparisons(own, found.summaries)]
    if any(one.correct for one in found.beside):
        parts += ["## Right answers\n", write_correct(found)]
    if found.masked:
        parts += ["## Masks\n", write_masks(found)]
    if found.piloted:
        parts += ["## The pilot\n", write_pilots(found)]
    parts += ["## What was picked\n", write_picks(found), "## What it cost\n", write_costs(found)]
    return "\n".join(parts)


def write_head(found: Findings) -> str:
    """Return how the study was made, and how it is read."""
    commits = sorted({row["commit"][:8] for row in found.cells})
    machines, seeds = (
        len({row["machine"] for row in found.cells}),
        sorted({one.seeds for one in found.summaries.values()}),
    )
    many = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    confirm = sorted({one.group.pool for one in found.summaries.values() if one.role == "confirm"})
    mixed = [str(one.group) for one in found.summaries.values() if one.settings > 1]
    lines = [
        "# When selection pays\n",
        f"Written by `tamis study {found.name} --report` from {len(found.cells)} trainings in "
        f"`docs/results/study/`, of commits {', '.join(commits)}, on {machines} "
        f"machine{'s' if machines > 1 else ''}; {many} seeds, each of which draws the pool's "
        "rows and the training anew; those of a folder that a study names are the same for every seed.\n",
        f"Settings were chosen on design pools; confirmation pools ({', '.join(confirm) or 'none yet'}) were scored "
        "after that. Losses are means over held-out rows, which stand in no pool and, of pools that are built, are "
        "clean. Intervals are crossed "
        f"bootstrap intervals over seeds and rows ({CONFIDENCE:.0%}, {RESAMPLES:,} resamples), paired by both; "
        "verdicts are Holm-corrected among all comparisons of a role with a form of chance; those of "
        f"`{found.name}`, whose grid was fixed before, are a family apart from those of the studies shown beside it. "
        "*Seen from*: the smallest true difference that such data would have shown in four of five cases.\n",
    ]
    if mixed:
        lines.append(
            f"**{len(mixed)} of {len(found.summaries)} groups hold cells of several settings**, first {mixed[0]}: run "
            "the study again.\n"
        )
    return "\n".join(lines)


def write_goals(found: Findings) -> str:
    """Return the table of goals."""
    rule = (
        f"\n*Not above* counts as met only where the interval excludes 0 or its half-width is at most {NARROW} nats. "
        f"Pools without a goal of their own are held to it. Clean and redundant pools and those of two versions are "
        "judged at every budget, and shown at the one that does worst by that; a rare target at the budget of its "
        f"size; others at the largest. Fewer than {FEWEST} seeds decide nothing.\n"
    )
    rows = [(goal.pool, goal.budget, goal.asked, goal.found, f"**{goal.verdict}**") for goal in list_goals(found)]
    return tabulate(("pool", "budget", "asked of the default", "found", "verdict"), rows) + rule


def write_advice(found: Findings) -> str:
    """Return each selector's standing with each kind of pool, worst cases first."""
    first = [one for one in found.beside if one.against.selector == found.chance[0]]
    rows = []
    for one in sorted(first, key=lambda one: -one.loss.mean):
        better = [each for each in first if same_place(each, one) and each.verdict == "better"]
        advice = name_line(min(better, key=lambda each: each.loss.mean).group) if better else found.chance[0]
        rows.append((one.group.pool, one.group.budget, name_line(one.group), tell(one), one.verdict, advice))
    return tabulate(("pool", "budget", "selector", f"minus {found.chance[0]}", "verdict", "take here"), rows)


def same_place(one: Comparison, other: Comparison) -> bool:
    """Return whether two comparisons are of one pool and budget."""
    return (one.group.pool, one.group.budget) == (other.group.pool, other.group.budget)


def write_comparisons(own: Sequence[Comparison], summaries: Mapping[Group, Summary]) -> str:
    """Return the table of differences to a form of chance."""
    rows = []
    for one in own:
        figures = f"{summaries[one.group].loss:.3f}", tell(one), f"{one.adjusted:.3f}", f"{one.loss.detectable:.3f}"
        rows.append((*name_row(one.group), one.seeds, *figures, one.verdict))
    return tabulate(RESULTS[0], rows)


def write_correct(found: Findings) -> str:
    """Return the table of right answers."""
    rows = []
    for one in (one for one in found.beside if one.correct):
        beside = f"{one.correct.mean:+.3f} ({one.correct.low:+.3f} to {one.correct.high:+.3f})"
        rows.append((*name_row(one.group), one.against.selector, f"{found.summaries[one.group].correct:.3f}", beside))
    return tabulate(("pool", "selector", "budget", "chance", "share right", "minus chance"), rows)


def write_masks(found: Findings) -> str:
    """Return the table of chosen rows in a mask."""
    rows = [
        (one.group.pool, name_line(one.group), one.group.budget, name_line(one.against), one.seeds, tell(one))
        for one in found.masked
    ]
    return tabulate(("pool", "rows and parameters", "budget", "less", "seeds", "difference"), rows)


def write_pilots(found: Findings) -> str:
    """Return the table of pilots."""
    rows = [
        (
            one.group.pool,
            one.group.budget,
            f"{one.truth:+.3f}",
            one.pilots,
            one.decided,
            one.right,
            f"{one.seconds:.0f}",
        )
        for one in found.piloted
    ]
    totals = [sum(getattr(one, name) for one in found.piloted) for name in ("pilots", "decided", "right")]
    line = "\n{1} of {0} pilots decided, {2} of them rightly, by the sign of the choice's difference to chance.\n"
    headings = ("pool", "budget", "choice minus chance", "pilots", "decided", "rightly", "seconds each")
    return tabulate(headings, rows) + line.format(*totals)


def write_picks(found: Findings) -> str:
    """Return the table of what was picked."""
    rows = []
    for one in found.summaries.values():
        shares = one.corrupted, one.repeats, one.target, one.coverage, one.jaccard
        rows.append((*name_row(one.group), *map(share, shares)))
    told = (
        "Seeds of a pool that is built share few rows, so the Jaccard similarity of their choices is low for any rule."
    )
    return f"{tabulate(RESULTS[1], rows)}\n{told}\n"


def write_costs(found: Findings) -> str:
    """Return the table of costs."""
    rows = []
    for one in found.summaries.values():
        seconds = f"{one.scoring + one.selecting:.0f}", f"{one.training:.0f}"
        scoring = None if one.scoring_flops is None else one.scoring_flops + one.selecting_flops
        flops, pays = (scoring, one.training_flops), (one.break_even, one.break_even_flops)
        epochs, *told = ("" if each is None else f"{each:.1f}" for each in (one.scoring_epochs_seconds, *pays))
        rows.append((*name_row(one.group), *seconds, *map(power, flops), epochs, *told))
    told = (
        "\nSeconds of different machines stand together. *Scoring*: with choosing, of which a pilot's trainings are a "
        "part. *Scoring, epochs*: seconds of scoring alone, in those of an epoch of training on all rows. *Pays*: "
        "after how many trainings on the subset choosing it has paid, against training as many epochs on all rows.\n"
    )
    return tabulate(RESULTS[2], rows) + told


def name_row(group: Group) -> tuple[str, str, str]:
    """Return the cells that a row begins with."""
    return group.pool, name_line(group), group.budget or "its own"


def tell(one: Comparison) -> str:
    """Return a difference with its interval."""
    return f"{one.loss.mean:+.3f} ({one.loss.low:+.3f} to {one.loss.high:+.3f})"


def share(value: float | None) -> str:
    """Return a share in per cent; nothing where there is none.

    >>> share(0.125), share(None)
    ('12%', '')
    """
    return "" if value is None else f"{value:.0%}"


def power(value: float | None) -> str:
    """Return a large number by its power of ten; nothing where there is none.

    >>> power(1.25e12), power(None)
    ('1.2e+12', '')
    """
    return "" if value is None else f"{value:.1e}"


def tabulate(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table.

    >>> print(tabulate(("a", "b"), [(1, "x")]), end="")
    | a | b |
    |---|---|
    | 1 | x |
    """
    lines = [list(map(str, headings)), ["---"] * len(headings), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"|{'|'.join(line)}|\n" if line[0] == "---" else f"| {' | '.join(line)} |\n" for line in lines)


def read_number(budget: str) -> float | int | str | None:
    """Return a budget as a study's file writes it; None where the selector has its own.

    >>> read_number("0.3"), read_number("48"), read_number("600 tokens"), read_number("1e-05"), read_number("")
    (0.3, 48, '600 tokens', 1e-05, None)
    """
    for read in (int, float):
        with suppress(ValueError):
            return read(budget)
    return budget or None


def make_record(found: Findings, commit: str) -> dict[str, Any]:
    """Return what programs read of a report: of every pool the default beside chance, and whether that meets its goal.

    Args:
        found: that the report tells.
        commit: of the project, at which this is found; its cells name their own.
    """
    pools = {}
    for group, (goal, beside) in found.judged.items():
        own = found.summaries[group]
        pools[group.pool] = {
            "role": own.role,
            "rows": round(own.pool_rows),
            "budget": read_number(group.budget),
            "seeds": beside.seeds,
            "default_minus_chance": round(beside.loss.mean, 5),
            "low": round(beside.loss.low, 5),
            "high": round(beside.loss.high, 5),
            "corrupted": round(own.corrupted, 4),
            "repeats": round(own.repeats, 4),
            "target_share": None if own.target is None else round(own.target, 4),
            "goal": goal.verdict,
        }
    return {"commit": commit, "cells_of": sorted({row["commit"] for row in found.cells}), "pools": pools}
