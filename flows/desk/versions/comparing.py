"""The desk's page of differences between two choices: rows that enter and leave, masks, what was measured."""

from contextlib import ExitStack
from typing import Any

import streamlit as st

from flows.desk.project import GIGABYTES, Opened, choose, choose_version
from flows.desk.tables import show_table

MOST = 2000  # rows of a list
WAYS = ("two versions", "a version at two revisions of git", "a version by two selectors")


def show(project: Opened) -> None:
    """Show what differs between two versions, or between two revisions of one."""
    from tasks.catalogue.diffs import compare

    st.header("Differences")
    way = choose(st.selectbox, "Compare", WAYS, key="compare")
    sides = dict(zip(WAYS, (choose_versions, choose_revisions, choose_selectors), strict=True))[way](project)
    if sides is None:
        return
    with ExitStack() as stack:
        before, after = (stack.enter_context(side) for side in sides)
        found = compare(before, after, most=MOST, gigabytes=GIGABYTES)
    show_rows(found)
    if found.masks:
        st.subheader("Masks")
        shared, united = (sum(row[name] for row in found.masks) for name in ("shared", "union"))
        st.text(f"{shared:,} weights are in both masks, {shared / united:.1%} of those in either.")
        show_table(found.masks, "Masks by layer and module")
    if found.metrics:
        st.subheader("Loss, with its interval")
        show_table(found.metrics, "Losses of both sides")
        if found.measured_on:
            st.text(f"{found.measured_on.capitalize()}.")


def choose_versions(project: Opened) -> list[Any] | None:
    """Let the reader choose two versions that are made; None: there are no two."""
    from flows import sides

    if len(project.made) == 1:
        st.info("One version is made; a difference needs two. Or compare it at two revisions of git.")
        return None
    left, right = st.columns(2)
    with left:
        before = choose_version(project, "Before", "before", place=-2)
    with right:
        after = choose_version(project, "After", "after")
    return None if before is None or after is None else [sides.open_version(before), sides.open_version(after)]


def choose_revisions(project: Opened) -> list[Any] | None:
    """Let the reader name two revisions of a version; None: one is not named yet."""
    from flows import sides

    version = choose_version(project)
    left, right = st.columns(2)
    before = left.text_input("Before: a commit, tag or branch", key="from", bind="query-params")
    after = right.text_input("After: a commit, tag or branch", key="to", bind="query-params")
    if version is None or not (before and after):
        st.text("Name two revisions, such as HEAD~1 and HEAD.")
        return None
    return [sides.open_revision(before, version), sides.open_revision(after, version)]


def choose_selectors(project: Opened) -> list[Any] | None:
    """Let the reader name two selectors, those first whose choices are kept; None: there is no version, or no two."""
    from flows import sides
    from flows.entering import list_kept
    from tasks.selection.selectors import SELECTORS

    version = choose_version(project)
    if version is None:
        return None
    kept = list_kept(version, project.values)
    if len(kept) < 2 and not {"first", "second"} & st.query_params.keys():
        st.info(
            f"No two choices of {version} by selectors are kept. Make them: `tamis diff SELECTOR OTHER --of {version} "
            "--selectors`."
        )
        return None
    first, *others = [*kept, *(one for one in sorted(SELECTORS) if one not in kept)]
    left, right = st.columns(2)
    before = choose(left.selectbox, "Before", [first, *others], key="first")
    after = choose(right.selectbox, "After", [*others, first], key="second")
    return [sides.open_kept_choice(before, version), sides.open_kept_choice(after, version)]


def show_rows(found: Any) -> None:
    """Show the rows that enter and leave."""
    st.text(f"{found.enter:,} rows enter, {found.leave:,} leave, {found.both:,} are chosen in both.")
    for title, change, many in (("Enter", "enters", found.enter), ("Leave", "leaves", found.leave)):
        st.subheader(title)
        if many > MOST:
            st.text(f"The first {MOST:,} by rank; `tamis diff` lists all.")
        rows = [row for row in found.rows if row["change"] == change]
        show_table(rows, f"Rows that {title.lower()}", order=("rank", "topic", "prompt", "reason", "id"))
