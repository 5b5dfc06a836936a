"""The desk's sign-off: what stands of each version, and a form that records who accepts one."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from flows.desk.project import ROOT, Opened, choose_version, remember, show_words
from flows.desk.tables import show_table
from flows.told import count
from tasks.artifacts.views import ask
from tasks.audit.queries import PROVENANCE, Query, read_queries

SHOWN = "shown"  # of the session: the version that the page was drawn of last, with the digest of its artifacts
CHECKS = 'SELECT "check", passed, "rows" AS found, detail FROM audit WHERE version = $version'


def show(project: Opened) -> None:
    """Show what stands, and take an approval."""
    from flows.approving import find_all_signed

    st.header("Sign-off")
    for signed in find_all_signed(project.values.versions).values():
        show_signed(signed)
    show_decisions(project)
    version = choose_version(project, "Version to read and approve")
    if version is not None:
        take_approval(project, version)


def show_signed(signed: Any) -> None:
    """Show what stands of a version's approval."""
    said = f"{signed.version}: {signed.state}"
    if signed.by is not None:
        said += f", by {signed.by} on {signed.when}{f': {signed.note}' if signed.note else ''}"
    show_words(said)
    if signed.damaged:
        show_words(signed.damaged)
    if signed.changed:
        st.text("other ones since: " + ", ".join(signed.changed))
    if since := tell_since(signed.version, signed.settings, signed.inputs):
        st.text(since)


def take_approval(project: Opened, version: str) -> None:
    """Show what the checks of a version found, and take an approval of the artifacts that were shown.

    On a press the page is drawn anew, so what was shown is what the drawing before kept.
    """
    from flows.approving import approve, digest_recorded

    shown = st.session_state.get(SHOWN, {}).get(version, "")
    st.session_state[SHOWN] = {version: digest_recorded(version)}
    show_checks(version, read_checks(project, version))
    with st.form("approve"):
        by = st.text_input("Your name; else git's user")
        note = st.text_area("Note", key=f"note {version}")
        despite = st.text_input("Promises that are broken and accepted, with blanks between", key=f"despite {version}")
        sent = st.form_submit_button(f"Approve {version}")
    if not sent:
        return
    try:
        signed = approve(version, project.values, by=by or None, note=note, despite=despite.split(), shown=shown)
    except ValueError as error:
        st.error("It is not approved.")
        show_words(str(error))
    else:
        remember(f"{version} is approved by {signed.by}; to keep that, commit data/approvals.jsonl.")


def tell_since(version: str, settings: Sequence[str], inputs: Sequence[str]) -> str:
    """Return in words which settings and files that a version was made from are other ones now; "" where none is."""
    names = [*(f"{name} of params.yaml" for name in settings), *inputs]
    return f"Changed since {version} was made: {', '.join(names)}. What stands here is of before." if names else ""


def show_decisions(project: Opened) -> None:
    """Show which rows people vetoed or pinned."""
    from tasks.decisions import tabulate_decisions

    found = tabulate_decisions(ROOT, project.values.versions).to_pylist()
    rows = count(len({row["id"] for row in found}), "vetoed or pinned row")
    st.text(f"{rows}; a row's own page takes such a decision.")
    if not found:
        return
    show_table(found, "Vetoed and pinned rows")
    for told in tell_waiting(project).values():
        st.text(told)


def tell_waiting(project: Opened) -> dict[str, str]:
    """Return in words how many decisions of a version its choice does not honour, of versions with any."""
    from tasks.catalogue.why import WAITING

    if not {"subset", "examples", "decisions"} <= {*project.artifacts.views, *project.artifacts.derived}:
        return {}
    with project.connection() as connection:
        sql = f"SELECT version, count(DISTINCT id) FROM ({WAITING}) GROUP BY version ORDER BY version"
        waiting = connection.execute(sql).fetchall()
    return {one: f"{count(many, 'decision')} of {one} not honoured yet: tamis run {one}" for one, many in waiting}


def read_checks(project: Opened, version: str) -> list[dict[str, Any]]:
    """Return what the checks of a version found when it was made; nothing where that is not known."""
    if "audit" not in project.artifacts.views:
        return []
    with project.connection() as connection:
        return ask(connection, CHECKS, {"version": version})


def show_checks(version: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Show what the checks of a version found, each with what it says."""
    if not found:
        st.text(f"What the checks of {version} found when it was made is not known.")
        return
    known = {one.name: one for one in read_queries()}
    rows = [{**row, **_tell_check(row, known.get(row["check"]))} for row in found]
    kept = sum(row["state"] == "kept" for row in rows)
    st.text(f"Checks of {version}: {kept} promises kept when it was made")
    show_table(rows, f"Checks of {version}", order=("check", "state", "found", "says", "detail"))


def _tell_check(row: Mapping[str, Any], query: Query | None) -> dict[str, str]:
    """Return what became of a check and what it says; the one that is no query is the promise of provenance."""
    if query is not None and not query.promise:
        return {"state": "shown", "says": query.says}
    return {"state": "kept" if row["passed"] else "broken", "says": PROVENANCE if query is None else query.says}
