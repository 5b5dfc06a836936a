"""The desk's chain: what each version kept, edited, added and withdrew, and what was learnt and forgotten."""

from typing import Any

import altair as alt
import streamlit as st

from flows.desk.project import Opened, tabulate
from flows.desk.tables import show_table

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
    show_table(changes, "Rows kept, edited, added and withdrawn by version")
    if not learnt:
        st.info("No version is evaluated yet.")
        return
    st.subheader(tell_forgotten(learnt))
    st.text("Mean losses in nats of each version's held-out rows, before and after its tuning on the chosen rows.")
    st.altair_chart(draw(learnt, versions), alt="Change of loss by version and held-out rows", key="learnt")
    show_table(learnt, "Losses before and after each version's tuning")


def draw(learnt: list[dict[str, Any]], versions: list[str]) -> alt.Chart:
    """Return the picture of what each tuning changed, by the version that the held-out rows are of."""
    return (
        alt.Chart(tabulate(learnt))
        .mark_bar()
        .encode(
            x=alt.X("version:N", title="tuned on", sort=versions, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("held_out_of:N", sort=versions),
            y=alt.Y("change:Q", title="change of loss, nats"),
            color=alt.Color("held_out_of:N", title="held-out rows of", sort=versions),
            tooltip=["version:N", "held_out_of:N", alt.Tooltip("change:Q", format="+.4f"), "rows:Q"],
        )
        .properties(height=HEIGHT)
    )


def tell_forgotten(learnt: list[dict[str, Any]]) -> str:
    """Return in words on how many of the earlier versions' held-out rows a tuning raised the mean loss.

    >>> tell_forgotten([{"version": "v2", "held_out_of": "v1", "change": 0.1}])
    'Forgotten: 1 of 1 mean losses on earlier rows rose'
    >>> tell_forgotten([{"version": "v1", "held_out_of": "v1", "change": -0.1}])
    'What was learnt'
    """
    earlier = [row["change"] for row in learnt if row["held_out_of"] != row["version"]]
    rose = sum(change > 0 for change in earlier)
    if not earlier:
        return "What was learnt"
    return f"{'Forgotten' if rose else 'Nothing forgotten'}: {rose} of {len(earlier)} mean losses on earlier rows rose"
