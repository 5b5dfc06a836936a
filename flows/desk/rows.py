"""The desk's rows: filtered, counted and paged by the database; one of them opens its story."""

import streamlit as st

from flows.desk.project import ROOT, Opened, choose_version

SIZE = 100  # rows of a page


def show(project: Opened) -> None:
    """Show the rows that a filter means, and the story of the one whose id is given."""
    from tasks.catalogue.browsing import ORDERS, STATES, Filter, count_rows, list_rows, list_values

    st.header("Rows")
    version = choose_version(project)
    if version is None:
        return
    with project.connection() as connection:
        left, right = st.columns(2)
        state = left.selectbox("State", STATES, key="state", bind="query-params")
        words = right.text_input("Says all of these words", key="words", bind="query-params")
        topics, sources, scores = (list_values(connection, version, name) for name in ("topic", "source", "score"))
        topic = left.selectbox("Topic", ["", *topics], key="topic", bind="query-params")
        source = right.selectbox("Source", ["", *sources], key="source", bind="query-params")
        score = left.selectbox("Score", ["", *scores], key="score", bind="query-params")
        order = right.selectbox("Order", list(ORDERS), key="order", bind="query-params")
        low = left.number_input("Score at least", value=None, key="low", bind="query-params") if score else None
        high = right.number_input("Score at most", value=None, key="high", bind="query-params") if score else None
        asked = Filter(version, state, topic, source, words, score, low, high)
        counted = count_rows(connection, asked)
        st.text(f"{counted.rows:,} rows, digest {counted.digest}")
        pages = max(1, -(-counted.rows // SIZE))
        page = st.number_input("Page", 1, pages, key="sheet", bind="query-params")
        found = list_rows(connection, asked, order=order, page=int(page) - 1, size=SIZE)
        st.dataframe(found, hide_index=True, width="stretch")
        ids = [row["id"] for row in found]
        chosen = st.selectbox("Open a row", ["", *ids], key="open")
        id = st.text_input("Or by its id", key="id", bind="query-params") or chosen
        if id:
            show_story(connection, project, version, id)


def show_story(connection, project: Opened, version: str, id: str) -> None:
    """Show all that is known of a row: its turns, why it was chosen or not, and its scores as quantiles."""
    from tasks.catalogue import rows
    from tasks.catalogue.why import tell

    full = rows.complete(connection, id)
    views = frozenset({*project.artifacts.views, *project.artifacts.derived})
    story = tell(connection, version, full, views=views, root=ROOT)
    if story is None:
        st.text(f"{version} has no row {full}.")
        return
    st.subheader(f"Row {full}: {story.state}")
    for sentence in story.sentences:
        st.text(sentence)
    turns = "SELECT DISTINCT turn, role, learnt, content FROM turns WHERE version = $version AND id = $id ORDER BY turn"
    for _, role, learnt, content in connection.execute(turns, {"version": version, "id": full}).fetchall():
        st.caption(f"{role}{', learnt' if learnt else ''}")
        st.text(content)
