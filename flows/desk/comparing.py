"""The desk's page of differences between two versions: rows that enter and leave, masks, what was measured."""

import streamlit as st

from flows.desk.project import ROOT, Opened, choose_version


def show(project: Opened) -> None:
    """Show what differs between two versions."""
    from tasks.catalogue.diffs import compare, read_side

    st.header("Differences")
    before = choose_version(project, "Before", "before")
    after = choose_version(project, "After", "after")
    if before is None or after is None:
        return
    found = compare(read_side(before, ROOT, before), read_side(after, ROOT, after))
    enters = [row for row in found.rows if row["change"] == "enters"]
    leaves = [row for row in found.rows if row["change"] == "leaves"]
    st.text(f"{len(enters):,} rows enter, {len(leaves):,} leave, {found.both:,} are chosen in both.")
    for title, rows in (("Enter", enters), ("Leave", leaves)):
        st.subheader(title)
        st.dataframe(rows, hide_index=True, width="stretch")
    if found.masks:
        st.subheader("Masks")
        st.dataframe(list(found.masks), hide_index=True, width="stretch")
    if found.metrics:
        st.subheader("Loss, with its interval")
        st.dataframe(list(found.metrics), hide_index=True, width="stretch")
