"""The desk's map: the rows of a pool by the likeness of their texts; a frame on it lists the rows inside."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import streamlit as st

from flows.desk.project import ROOT, Opened, choose, choose_version, tabulate, tell_number
from flows.desk.tables import show_grid

SIDES = ("left", "right", "bottom", "top")
HEIGHT = 520  # pixels
STATES = {"chosen": "#1f6feb", "left out": "#9aa0a6", "gated": "#e8710a"}  # and their colours
NUMBERS = ("gain",)  # colours that are numbers, beside the scores


def show(project: Opened) -> None:
    """Show where the rows of a version lie, and list those inside a frame."""
    from tasks.browsing.map_rows import COLOURS, Frame, count_cells, list_inside, place_rows, sample_points
    from tasks.browsing.places import find_places, tell_map

    st.header("Map")
    left, right = st.columns(2)
    with left:
        version = choose_version(project)
    if version is None or not project.has("subset", "examples"):
        return
    places = find_places(ROOT, version)
    if places is None:
        st.info("There is no map of this version as it is now. `tamis desk` makes it when it starts: start it again.")
        return
    with project.connection(places=places.table) as connection:
        scores = [name for name in project.list_values(connection, version, "score") if name not in COLOURS]
        colour = choose(right.selectbox, "Coloured by", [*COLOURS, *scores], key="colour")
        total = place_rows(connection, version)
        cells, points = count_cells(connection), sample_points(connection, version, colour)
        shown = f"{len(points):,} of {total:,} rows are drawn" if len(points) < total else f"{total:,} rows"
        st.text(f"{shown}, {tell_map(places)}.")
        chart = draw(cells, points, colour, numbers=colour in (*NUMBERS, *scores))
        told = f"Map of {total:,} rows by likeness of their texts, coloured by {colour}"
        picked = st.altair_chart(chart, on_select="rerun", selection_mode="frame", key=f"map {version}", alt=told)
        frame = Frame(**choose_frame(picked))
        count, rows = list_inside(connection, version, frame)
        st.text(f"{count:,} rows lie inside{f', of which {len(rows):,} are listed' if len(rows) < count else ''}.")
        show_grid(rows, "Rows inside the frame", order=("state", "topic", "prompt", "response", "id"))


def choose_frame(picked: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the frame that was drawn; else the one of four fields, which a keyboard reaches and a link keeps."""
    for side in SIDES:
        tell_number(side, side)
    with st.expander("A frame in numbers"):
        fields = [
            one.number_input(side.capitalize(), value=None, key=side, bind="query-params", format="%.3f")
            for one, side in zip(st.columns(4), SIDES, strict=True)
        ]
    drawn = picked.get("selection", {}).get("frame") or {}
    if "x" in drawn and "y" in drawn:
        return dict(zip(SIDES, (*sorted(drawn["x"]), *sorted(drawn["y"])), strict=True))
    return dict(zip(SIDES, fields, strict=True))


def draw(cells: list[dict[str, Any]], points: list[dict[str, Any]], colour: str, *, numbers: bool) -> alt.LayerChart:
    """Return the picture: all rows counted by cell, in grey, and a sample of them above.

    Args:
        cells: of `count_cells`.
        points: of `sample_points`.
        colour: what the points are coloured by.
        numbers: that is a number.
    """
    across = alt.X("x:Q", title=None, scale=alt.Scale(zero=False))
    up = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False))
    counted = (
        alt.Chart(tabulate(cells))
        .mark_rect(color="#808080")  # denser where there are more, on a light page and on a dark one
        .encode(
            x=across,
            x2="x2:Q",
            y=up,
            y2="y2:Q",
            opacity=alt.Opacity("rows:Q", scale=alt.Scale(range=[0.1, 0.5]), legend=None),
            tooltip=[alt.Tooltip("rows:Q"), alt.Tooltip("chosen:Q")],
        )
    )
    scheme = alt.Scale(scheme="viridis") if numbers else alt.Scale(scheme="tableau10")
    if colour == "chosen":
        scheme = alt.Scale(domain=list(STATES), range=list(STATES.values()))
    dots = (
        alt.Chart(tabulate(points))
        .mark_circle(size=28, opacity=0.75)
        .encode(
            x=across,
            y=up,
            color=alt.Color(f"colour:{'Q' if numbers else 'N'}", title=colour, scale=scheme),
            tooltip=[alt.Tooltip("id:N"), alt.Tooltip("topic:N"), alt.Tooltip("colour", type="nominal", title=colour)],
        )
        .add_params(alt.selection_interval(name="frame"))
    )
    return alt.layer(counted, dots).properties(height=HEIGHT)
