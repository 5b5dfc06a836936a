"""The desk's gains: how the objective grew with each chosen row, and how many rows hold most of it."""

import altair as alt
import streamlit as st

from flows.desk.project import Opened, choose_version, tabulate
from flows.desk.tables import show_table
from flows.told import count

HEIGHT = 380  # pixels
TENTH = 1.1  # times the budget


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
    st.text(f"All {found.chosen:,} reach {found.objective:.4g}.")
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
    show_more(project, version)


def show_more(project: Opened, version: str) -> None:
    """Show which rows a budget of a tenth more would add, once that is asked for: the choice is made again."""
    from flows.entering import add_to_budget
    from tasks.browsing.filters import MOST
    from tasks.browsing.pairs import list_texts

    st.subheader("A tenth more")
    st.text(
        "The version is chosen again with a budget of a tenth more, its caps and floors kept and without a pilot; this "
        "takes a while."
    )
    if not st.button("Choose with a tenth more", key="more"):
        return
    with st.spinner("Choosing"):
        added = add_to_budget(version, project.values, TENTH)
    with project.connection() as connection:
        rows = list_texts(connection, version, added.ids[:MOST])
    st.text(
        f"{count(added.rows, 'row')} in place of {added.before:,}: {count(len(added.ids), 'row')} would enter, "
        f"{added.left:,} would leave."
    )
    show_table(rows, "Rows that a larger budget adds")
