"""The desk's gains: how the objective grew with each chosen row, and how many rows hold most of it."""

import altair as alt
import streamlit as st

from flows.desk.project import Opened, choose_version, tabulate

HEIGHT = 380  # pixels


def show(project: Opened) -> None:
    """Show the objective over the budget."""
    from tasks.browsing.gains import SHARE, read_growth

    st.header("Gains")
    version = choose_version(project)
    if version is None or not project.has("subset"):
        return
    with project.connection() as connection:
        found = read_growth(connection, version)
    if found is None:
        st.info("This version was chosen by scores or by chance: there is no objective that grows.")
        return
    st.subheader(f"{found.enough:,} of {found.chosen:,} chosen rows reach {SHARE:.0%} of the objective")
    st.text(f"The objective of all {found.chosen:,} is {found.objective:.4g}; rows beyond it were chosen by score.")
    base = alt.Chart(tabulate(found.curve))
    line = base.mark_line().encode(
        x=alt.X("rows:Q", title="chosen rows"),
        y=alt.Y("objective:Q", title="objective"),
        tooltip=["rows:Q", "objective:Q"],
    )
    mark = (
        alt.Chart(tabulate([{"rows": found.enough}]))
        .mark_rule(strokeDash=[4, 4])
        .encode(x="rows:Q", tooltip=["rows:Q"])
    )
    st.altair_chart(
        alt.layer(line, mark).properties(height=HEIGHT),
        alt="The objective over the number of chosen rows",
        key="growth",
    )
    st.dataframe(found.curve, hide_index=True, width="stretch", alt="The objective by chosen rows")
