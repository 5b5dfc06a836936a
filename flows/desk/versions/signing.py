"""The desk's sign-off: what stands of each version, and a form that records who accepts one."""

import streamlit as st

from flows.desk.project import ROOT, Opened


def show(project: Opened) -> None:
    """Show what stands, and take an approval."""
    from flows.approving import approve, find_signed

    st.header("Sign-off")
    for version in project.values.versions:
        signed = find_signed(version)
        said = f"{version}: {signed.state}"
        if signed.by is not None:
            said += f", by {signed.by} on {signed.when}{f': {signed.note}' if signed.note else ''}"
        st.text(said)
        if signed.changed:
            st.text("other ones since: " + ", ".join(signed.changed))
    show_decisions(project)
    if not project.made:
        return
    with st.form("approve", clear_on_submit=True):
        version = st.selectbox("Version to approve", project.made, index=len(project.made) - 1)
        by = st.text_input("Your name; else git's user")
        note = st.text_area("Note")
        despite = st.text_input("Promises that are broken and accepted, with blanks between")
        sent = st.form_submit_button("Approve")
    if sent:
        try:
            signed = approve(version, project.values, by=by or None, note=note, despite=despite.split())
        except ValueError as error:
            st.error("It is not approved.")
            st.text(str(error))
        else:
            st.text(f"{version} is approved by {signed.by}; to keep that, commit data/approvals.jsonl.")


def show_decisions(project: Opened) -> None:
    """Show which rows people vetoed or pinned."""
    from tasks.decisions import tabulate_decisions

    found = tabulate_decisions(ROOT, project.values.versions).to_pylist()
    st.text(f"{len(found):,} rows are vetoed or pinned; a row's page takes such a decision.")
    if found:
        st.dataframe(found, hide_index=True, width="stretch", alt="Vetoed and pinned rows")
