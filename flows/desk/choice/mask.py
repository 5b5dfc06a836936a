"""The desk's mask: which share of each layer's and module's weights a version trains, and what changed."""

from typing import Any

import altair as alt
import streamlit as st

from flows.desk.choice.shades import shade_signed
from flows.desk.project import Opened, choose, choose_version, tabulate
from flows.desk.tables import show_grid

HEIGHT = 420  # pixels
MODULES = ("q", "k", "v", "o", "gate", "up", "down", "norm", "embedding")  # as a layer passes them; others follow
FORMATS = {
    **{name: st.column_config.NumberColumn(format="percent") for name in ("density", "before", "after", "change")},
    **{name: st.column_config.NumberColumn(format="localized") for name in ("chosen", "entries")},
}
WHOLE = 1 - 1e-9  # density from which on all weights are trained
NONE = "nothing"


def show(project: Opened) -> None:
    """Show the density of a version's mask, and how it differs from another version's."""
    from tasks.browsing import masks

    st.header("Mask")
    version = choose_version(project)
    if version is None or not project.has("tensors"):
        return
    others = [name for name in project.made if name != version]
    before = choose(st.selectbox, "Beside", [NONE, *others], key="beside")
    with project.connection() as connection:
        found = masks.measure_density(connection, version)
        change = masks.measure_change(connection, before, version) if before != NONE else []
    if not found:
        st.info("This version has no mask: it trains all weights that its settings name.")
        return
    chosen, entries = sum(row["chosen"] for row in found), sum(row["entries"] for row in found)
    st.subheader(f"{chosen:,} of {entries:,} weights are trained, {chosen / entries:.2%}{tell_densest(found)}")
    st.altair_chart(draw(found, "density"), alt="Density of the mask by layer and module", key="density")
    if change:
        st.subheader(f"Density less that of {before}")
        st.altair_chart(draw(change, "change"), alt=f"Change of the mask's density since {before}", key="change")
    show_grid(change or found, "Density by layer and module", column_config=FORMATS)


def tell_densest(found: list[dict[str, Any]]) -> str:
    """Return in words where most weights are trained, of what is not trained as a whole, and what is.

    >>> q, norm = ({"layer": 1, "module": "q", "density": 0.25}, {"layer": 1, "module": "norm", "density": 1.0})
    >>> tell_densest([q, norm]), tell_densest([q])
    ('; densest in layer 1 q, 25%; whole: norm', '; densest in layer 1 q, 25%')
    """
    parts = [row for row in found if row["density"] < WHOLE]
    whole = sorted({row["module"] for row in found} - {row["module"] for row in parts})
    told = f"; whole: {', '.join(whole)}" if whole else ""
    if not parts:
        return told
    densest = max(parts, key=lambda row: row["density"])
    where = densest["module"] if densest["layer"] is None else f"layer {densest['layer']} {densest['module']}"
    return f"; densest in {where}, {densest['density']:.0%}{told}"


def draw(rows: list[dict[str, Any]], value: str) -> alt.Chart:
    """Return the heat map of a value over layers and modules."""
    if value == "change":
        shade = shade_signed(row["change"] for row in rows)
    else:  # what is whole takes no colour from the others
        top = max((row[value] for row in rows if row[value] < WHOLE), default=1)
        shade = alt.Scale(scheme="viridis", domain=[0, top], clamp=True)
    shown = [{**row, "place": "outside layers" if row["layer"] is None else str(row["layer"])} for row in rows]
    return (
        alt.Chart(tabulate(shown))
        .mark_rect()
        .encode(
            x=alt.X("place:N", title="layer", sort=list(dict.fromkeys(row["place"] for row in shown))),
            y=alt.Y("module:N", title="module", sort=[*MODULES, *sorted({row["module"] for row in rows} - {*MODULES})]),
            color=alt.Color(
                f"{value}:Q", title=value, scale=shade, legend=alt.Legend(format="+.1%" if value == "change" else ".0%")
            ),
            tooltip=["place:N", "module:N", alt.Tooltip(f"{value}:Q", format=".3%")],
        )
        .properties(height=HEIGHT)
    )
