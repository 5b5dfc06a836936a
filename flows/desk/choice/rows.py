"""The desk's rows: filtered, counted and paged by the database; one of them opens its story."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from flows.desk.project import ROOT, Opened, choose, choose_version, remember, show_words, tell_number
from flows.desk.tables import show_grid

SIZE = 100  # rows of a page
COLUMNS = ("state", "rank", "value", "topic", "prompt", "why", "response", "response_tokens", "source", "id")
WIDTHS = {
    **{name: st.column_config.Column(width="small") for name in ("state", "rank", "value", "topic", "response_tokens")},
    **{name: st.column_config.Column(width="medium") for name in ("prompt", "why", "response")},
}
BOUNDS = {"low": "Score at least", "high": "Score at most"}  # of the score that is asked for
SPLIT = "chosen beside left out"  # a state of its own: two lists of the same filter


def show(project: Opened) -> None:
    """Show the rows that a filter means, and the story of the one whose id is given."""
    from tasks.browsing.filters import count_rows, list_rows

    st.header("Rows")
    version = choose_version(project)
    if version is None or not project.has("examples", "subset"):
        return
    with project.connection() as connection:
        asked, order = choose_filter(project, connection, version)
        states = ("chosen", "left out") if asked.state == SPLIT else (asked.state,)
        counts = [count_rows(connection, replace(asked, state=state)) for state in states]
        pages = max(1, -(-max(one.rows for one in counts) // SIZE))
        tell_number("sheet", "Page", most=pages)
        page = int(st.number_input("Page", 1, pages, key="sheet", bind="query-params")) - 1
        ids, record = [], read_record(version)
        for place, state, counted in zip(st.columns(len(states)), states, counts, strict=True):
            named = f"{state}: " if len(states) > 1 else ""
            place.text(f"{named}{counted.rows:,} rows, digest {counted.digest}")
            found = list_rows(connection, replace(asked, state=state), record=record, order=order, page=page, size=SIZE)
            with place:
                show_list(found, state)
            ids += [row["id"] for row in found]
        id = choose_row(ids)
        if id:
            show_story(connection, project, version, id)


def read_record(version: str) -> dict[str, Any]:
    """Return what a version's choice says of itself; where that cannot be read, nothing, and a line that says so."""
    from tasks.artifacts.tables import ArtifactError, read_json

    try:
        return read_json(ROOT / f"data/selection/version={version}/selection.json")
    except ArtifactError as error:
        show_words(f"The column why knows of no caps and no budget: {error}")
        return {}


def show_list(found: list[dict[str, Any]], state: str) -> None:
    """Show rows of a page; a click on one opens it."""
    key = f"grid {state}"

    def open_picked() -> None:
        picked = st.session_state[key].selection.rows
        if picked:
            st.session_state["id"] = found[picked[0]]["id"]

    how = {"key": key, "on_select": open_picked, "selection_mode": "single-row", "column_config": WIDTHS}
    show_grid(found, f"Rows, {state}", order=COLUMNS, **how)


def choose_filter(project: Opened, connection: Any, version: str) -> tuple[Any, str]:
    """Let the reader choose which rows are meant, and their order."""
    from tasks.browsing.filters import ORDERS, STATES, Filter

    topics, sources, scores = (project.list_values(connection, version, name) for name in ("topic", "source", "score"))
    left, middle, right = st.columns(3)
    state = choose(left.selectbox, "State", [*STATES, SPLIT], key="state")
    known = {"topic": topics, "source": sources, "score": scores}
    tell_unknown(version, known)
    topics, sources, scores = (keep_asked(*one) for one in known.items())
    topic = middle.selectbox("Topic", ["", *topics], key="topic", bind="query-params", format_func=name_any)
    source = right.selectbox("Source", ["", *sources], key="source", bind="query-params", format_func=name_any)
    words = left.text_input("Says all of these words", key="words", bind="query-params")
    score = middle.selectbox("Score", ["", *scores], key="score", bind="query-params", format_func=name_any)
    order = choose(right.selectbox, "Order", list(ORDERS), key="order")
    for key, label in BOUNDS.items():
        tell_number(key, label)
        if not score and key in st.query_params:
            show_words(f"The link asks for {label.lower()} and names no score; that is left out.")
    bounds = [
        column.number_input(label, value=None, key=key, bind="query-params") if score else None
        for column, (key, label) in zip((middle, right), BOUNDS.items(), strict=True)
    ]
    return Filter(version, state, topic, source, words, score, *bounds), order


def tell_unknown(version: str, known: Mapping[str, list[str]]) -> None:
    """Say what a link, or the choice of before, asks for that a version has not."""
    for key, names in known.items():
        asked = st.session_state.get(key) or st.query_params.get(key)
        if asked and asked not in names:
            show_words(f"{version} has no {key} {asked!r}, which is asked for here.")


def keep_asked(key: str, known: list[str]) -> list[str]:
    """Return the choices of a field with the one that is asked for, though this version has none of it."""
    asked = st.session_state.get(key) or st.query_params.get(key)
    return [*known, asked] if asked and asked not in known else known


def name_any(word: str) -> str:
    """Return what a field says for a choice; of no choice, that any will do."""
    return word or "any"


def choose_row(ids: Sequence[str]) -> str:
    """Let the reader open a row of the page: by its id, in a link too, or one after the other by N and P."""
    at = {id: place for place, id in enumerate(ids)}

    def move(step: int) -> None:
        here = at.get(st.session_state.get("id", ""))
        first = 0 if step > 0 else len(ids) - 1
        st.session_state["id"] = ids[first if here is None else min(max(here + step, 0), len(ids) - 1)]

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button("Previous row", on_click=move, args=(-1,), shortcut="P", disabled=not ids, key="before")
        st.button("Next row", on_click=move, args=(1,), shortcut="N", disabled=not ids, key="after")
        return st.text_input("Open the row with the id", key="id", bind="query-params")


def show_story(connection: Any, project: Opened, version: str, id: str) -> None:
    """Show all that is known of a row: its turns, why it was chosen or not, and its scores as quantiles."""
    from tasks.catalogue import rows
    from tasks.catalogue.why import tell

    full = rows.complete(connection, id)
    views = frozenset({*project.artifacts.views, *project.artifacts.derived})
    story = tell(connection, version, full, views=views, root=ROOT)
    if story is None:
        show_words(f"{version} has no row {full}.")
        return
    st.subheader(f"Row {full}: {story.state}")
    for sentence in story.sentences:
        show_words(sentence)
    turns = "SELECT DISTINCT turn, role, learnt, content, details FROM turns WHERE version = $version AND id = $id"
    found = connection.execute(f"{turns} ORDER BY turn", {"version": version, "id": full}).fetchall()
    for _, role, learnt, *texts in found:
        show_words(f"{role}{', learnt' if learnt else ''}:")
        with st.container(border=True):
            for text in filter(None, texts):  # what it says, then what it calls or thinks, in JSON
                st.text(text)
    take_decision(project, version, full)


def take_decision(project: Opened, version: str, id: str) -> None:
    """Take a veto or a pin of a row, or take one back; the next selection of the version honours it, and later ones."""
    from flows.deciding import decide, release

    with st.expander("Veto, pin or release this row"), st.form("decide"):
        kind = st.selectbox("Decision", ["veto", "pin", "release"], key=f"kind of {id}")  # each row's own
        because = st.text_input("Because; without the row's own words. Not asked of a release", key=f"because of {id}")
        by = st.text_input("Your name; else git's user", key="by")
        if not st.form_submit_button("Record"):
            return
    try:
        if kind == "release":
            found = release(id, project.values, version=version)
        else:
            found = decide(kind, id, project.values, because=because, by=by or None, version=version)
    except ValueError as error:
        st.error("It is not recorded.")
        show_words(str(error))
    else:
        instead = f" It stands in place of {found.replaced}." if found.replaced else ""
        versions = ", ".join(found.versions)
        remember(f"Recorded for {versions}; the next run honours it.{instead} To keep it, commit versions/.")
