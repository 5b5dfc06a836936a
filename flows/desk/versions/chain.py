"""The desk's chain: what each version kept, edited, added and withdrew, and what was learnt and forgotten."""

import altair as alt
import streamlit as st

from flows.desk.project import Opened, tabulate

HEIGHT = 320  # pixels


def show(project: Opened) -> None:
    """Show how rows and losses went along the chain of versions."""
    from tasks.browsing.chain import list_changes, list_learnt

    st.header("Chain")
    versions = list(project.values.versions)
    follows = [f"{name} after {one.previous}" for name, one in project.values.versions.items()]
    st.text(", ".join(follows) or "There are no versions yet.")
    if not project.has("changes"):
        return
    measured = {"evaluation"} <= {*project.artifacts.views}
    with project.connection() as connection:
        changes = list_changes(connection, versions)
        learnt = list_learnt(connection, versions) if measured else []
    st.subheader("Rows")
    st.dataframe(changes, hide_index=True, width="stretch", alt="Rows kept, edited, added and withdrawn by version")
    if not learnt:
        st.info("No version is evaluated yet.")
        return
    forgotten = [row for row in learnt if row["held_out_of"] != row["version"] and row["change"] > 0]
    st.subheader(
        f"{len(forgotten)} of {sum(row['held_out_of'] != row['version'] for row in learnt)} measures of earlier rows "
        "rose: what is forgotten"
        if len(versions) > 1
        else "Learnt"
    )
    st.text("Mean losses in nats of each version's held-out rows, before and after its tuning on the chosen rows.")
    st.altair_chart(draw(learnt, versions), alt="Change of loss by version and held-out rows", key="learnt")
    st.dataframe(learnt, hide_index=True, width="stretch", alt="Losses before and after each version's tuning")


def draw(learnt: list[dict], versions: list[str]) -> alt.Chart:
    """Return the picture of what each tuning changed, by the version that the held-out rows are of."""
    return (
        alt.Chart(tabulate(learnt))
        .mark_bar()
        .encode(
            x=alt.X("version:N", title="tuned on", sort=versions),
            xOffset=alt.XOffset("held_out_of:N", sort=versions),
            y=alt.Y("change:Q", title="change of loss, nats"),
            color=alt.Color("held_out_of:N", title="held-out rows of", sort=versions),
            tooltip=["version:N", "held_out_of:N", alt.Tooltip("change:Q", format="+.4f"), "rows:Q"],
        )
        .properties(height=HEIGHT)
    )
