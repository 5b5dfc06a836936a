"""The study as pictures: how far every selector is from chance on every pool, and what it took."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.artifacts.tables import replacing
from tasks.study.analysis import Comparison, Group, Summary
from tasks.study.goals import choose_budget

COLOURS = matplotlib.colormaps["tab10"].colors
MARKS = "osD^v<>PX*"
COLUMNS = 3  # of panels


def draw_differences(found: Sequence[Comparison], path: Path) -> None:
    """Write the picture of the losses less chance's: a panel per pool, a line per selector and budget.

    Args:
        found: comparisons with one form of chance.
        path: of the picture.
    """
    pools = list(dict.fromkeys(one.group.pool for one in found))
    names = list(dict.fromkeys(name_line(one.group) for one in found))
    rows = -(-len(pools) // COLUMNS)
    most = max(sum(one.group.pool == pool for one in found) for pool in pools)
    figure = Figure(figsize=(4.6 * COLUMNS, rows * (0.8 + 0.22 * most)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, COLUMNS, squeeze=False)).ravel()
    for panel, pool in zip(panels, pools, strict=False):
        _draw_panel(panel, [one for one in found if one.group.pool == pool], names)
        panel.set_title(f"{pool} ({found_role(found, pool)})", fontsize=9)
    for panel in panels[len(pools) :]:
        panel.set_visible(False)
    figure.supxlabel("held-out loss less that of chance, nats per response token; left of 0 is better", fontsize=9)
    _save(figure, path)


def name_line(group: Group) -> str:
    """Return what a selector's line is called.

    >>> name_line(Group("p", "default", "0.1", "none")), name_line(Group("p", "all", "", "dualsft"))
    ('default', 'all in dualsft mask')
    """
    return group.selector if group.mask == "none" else f"{group.selector} in {group.mask} mask"


def found_role(found: Sequence[Comparison], pool: str) -> str:
    """Return the role of a pool."""
    return next(one.role for one in found if one.group.pool == pool)


def _draw_panel(axes: Axes, own: Sequence[Comparison], names: Sequence[str]) -> None:
    own = sorted(own, key=lambda one: (one.group.budget, names.index(name_line(one.group))), reverse=True)
    for height, one in enumerate(own):
        number, loss = names.index(name_line(one.group)), one.loss
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        solid = one.verdict in ("better", "worse")
        axes.plot([loss.low, loss.high], [height] * 2, color=colour, linewidth=1.6)
        axes.plot([loss.mean], [height], mark, color=colour, markersize=6, markerfacecolor=colour if solid else "white")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(own)), [f"{name_line(one.group)} {one.group.budget}" for one in own], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(-0.6, len(own) - 0.4)


def draw_picks(summaries: Mapping[Group, Summary], path: Path) -> bool:
    """Write the picture of picks that are wrong, repeated or of the target, beside the pool's share; false: none."""
    kinds = {"corrupted": "corrupted", "repeats": "repeated", "target": "of the target"}
    shown = [
        (kind, pool)
        for kind in kinds
        for pool in dict.fromkeys(group.pool for group in summaries)
        if any(
            one.group.pool == pool and one.group.budget and one.group.mask == "none" and getattr(one, f"pool_{kind}")
            for one in summaries.values()
        )
    ]
    if not shown:
        return False
    names = list(dict.fromkeys(group.selector for group in summaries))
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, (kind, pool) in zip(panels, shown, strict=False):
        own = [one for one in summaries.values() if one.group.pool == pool and one.group.mask == "none"]
        budget = choose_budget({one.group.budget: one for one in own if one.group.budget}, pool)
        own = [one for one in own if one.group.budget == budget]
        heights = [getattr(one, kind) for one in own]
        colours = [COLOURS[names.index(one.group.selector) % len(COLOURS)] for one in own]
        panel.bar(range(len(own)), heights, color=colours)
        panel.axhline(getattr(own[0], f"pool_{kind}"), color="black", linestyle="--", linewidth=1)
        panel.set_xticks(range(len(own)), [one.group.selector for one in own], fontsize=7, rotation=20, ha="right")
        panel.tick_params(axis="y", labelsize=7)
        panel.set_title(f"{pool} at {budget}: {kinds[kind]}", fontsize=9)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.supylabel("share of the picks (dashed: of the pool)", fontsize=9)
    _save(figure, path)
    return True


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
