"""The desk's mask: which share of each layer's and module's weights a version trains, and what changed."""

from typing import Any

import altair as alt
import streamlit as st

from flows.desk.project import Opened, choose, choose_version, show_table, tabulate

HEIGHT = 420  # pixels
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
    densest = max(found, key=lambda row: row["density"])
    where = densest["module"] if densest["layer"] is None else f"layer {densest['layer']} {densest['module']}"
    st.subheader(f"{chosen:,} of {entries:,} weights are trained, {chosen / entries:.2%}; densest in {where}")
    st.altair_chart(draw(found, "density"), alt="Density of the mask by layer and module", key="density")
    if change:
        st.subheader(f"Density less that of {before}")
        st.altair_chart(draw(change, "change"), alt=f"Change of the mask's density since {before}", key="change")
    show_table(change or found, "Density by layer and module")


def draw(rows: list[dict[str, Any]], value: str) -> alt.Chart:
    """Return the heat map of a value over layers and modules."""
    shade = alt.Scale(scheme="redblue", domainMid=0) if value == "change" else alt.Scale(scheme="viridis")
    shown = [{**row, "place": "outside layers" if row["layer"] is None else str(row["layer"])} for row in rows]
    return (
        alt.Chart(tabulate(shown))
        .mark_rect()
        .encode(
            x=alt.X("place:N", title="layer", sort=list(dict.fromkeys(row["place"] for row in shown))),
            y=alt.Y("module:N", title="module"),
            color=alt.Color(
                f"{value}:Q", title=value, scale=shade, legend=alt.Legend(format="+.1%" if value == "change" else ".1%")
            ),
            tooltip=["place:N", "module:N", alt.Tooltip(f"{value}:Q", format=".3%")],
        )
        .properties(height=HEIGHT)
    )
