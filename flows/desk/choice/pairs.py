"""The desk's pairs: which topics help which, the best demos of a target, and the targets that a demo helps."""

from typing import Any

import altair as alt
import streamlit as st

from flows.desk.choice.shades import shade_signed
from flows.desk.project import Opened, choose, choose_version, show_words, tabulate
from flows.told import count

HEIGHT = 420  # pixels
FEW = 5  # pairs, by fewer of which two topics are not named as those that help most
LISTED = 200  # rows that can be picked from


def show(project: Opened) -> None:
    """Show the mean utility by topics, and one row's partners beside it."""
    from tasks.browsing import pairs
    from tasks.catalogue.rows import complete

    st.header("Pairs")
    version = choose_version(project)
    if version is None or not project.has("pairs", "examples", "subset"):
        return
    with project.connection() as connection:
        means = pairs.average_topics(connection, version)
        if not means:
            st.info("No pair of this version is scored: its selector reads none.")
            return
        known = [row for row in means if row["pairs"] >= FEW] or means
        best = max(known, key=lambda row: row["utility"])
        scored = sum(row["pairs"] for row in means)
        unit = pairs.name_unit(connection, version)
        gained = f"{best['utility']:+.3f} {unit}, the mean of {count(best['pairs'], 'pair')}"
        st.subheader("Which topics help which")
        show_words(f"Rows of {best['demo']} help rows of {best['target']} most: {gained}.")
        st.text(f"Means of {scored:,} pairs, of the {pairs.TOPICS} largest topics; named are those with {FEW} or more.")
        st.altair_chart(draw(means, unit), alt="Mean utility by the topics of demo and target", key="topics")
        way = choose(st.radio, "Partners", ["demos of a target", "targets of a demo"], key="way", horizontal=True)
        targets = way == "demos of a target"
        listed = pairs.list_scored(connection, version, targets=targets, count=LISTED)
        texts = {row["id"]: row["prompt"] for row in listed}
        picked = st.selectbox("Row", list(texts), format_func=lambda id: f"{texts[id][:80]} ({id[:8]})", key="one")
        start = st.text_input("Or by its id", key="pair", bind="query-params")
        id = complete(connection, start) if start else picked
        found = (pairs.list_demos if targets else pairs.list_targets)(connection, version, id)
        show_partners(pairs.read_text(connection, version, id), found, unit)


def show_partners(row: dict[str, Any] | None, found: list[dict[str, Any]], unit: str) -> None:
    """Show a row and its partners, both texts side by side."""
    if row is None or not found:
        st.text("No pair of this row is scored.")
        return
    left, right = st.columns(2)
    show_words(f"{row['topic']}, {row['id']}", left)
    left.text(row["prompt"])
    left.text(row["response"])
    for one in found:
        show_words(
            f"{one['utility']:+.4f} {unit}, {one['topic']}, {'chosen, ' if one['chosen'] else ''}{one['id']}",
            right,
        )
        right.text(one["prompt"])
        right.text(one["response"])


def draw(means: list[dict[str, Any]], unit: str) -> alt.Chart:
    """Return the heat map of mean utility, in its unit."""
    shade = shade_signed(row["utility"] for row in means)
    return (
        alt.Chart(tabulate(means))
        .mark_rect()
        .encode(
            x=alt.X("demo:N", title="topic of the demo"),
            y=alt.Y("target:N", title="topic of the target"),
            color=alt.Color("utility:Q", title=f"mean utility, {unit}", scale=shade),
            tooltip=["demo:N", "target:N", alt.Tooltip("utility:Q", format="+.4f"), "pairs:Q"],
        )
        .properties(height=HEIGHT)
    )
