"""The desk's first page: every version with its choice, what that reached beside chance, and who signed it."""

from typing import Any

import streamlit as st

from flows.desk.project import ROOT, Opened


def show(project: Opened) -> None:
    """Show a line for each version."""
    st.header("Versions")
    rows = [_describe(version) for version in project.values.versions]
    made = [row for row in rows if row["chosen"] is not None]
    st.text(f"{len(made):,} of {len(rows):,} versions are made.")
    st.dataframe(rows, hide_index=True, width="stretch")
    for row in rows:
        st.subheader(row["version"])
        st.text(_tell(row))


def _describe(version: str) -> dict[str, Any]:
    from flows.approving import find_signed
    from tasks.catalogue.rows import show_version

    found = show_version(ROOT, version) or {}
    selection, metrics = found.get("selection", {}), found.get("evaluation", {})
    gain = metrics.get("differences", {}).get("chosen-random", {})
    return {
        "version": version,
        "pool": selection.get("pool_rows"),
        "chosen": selection.get("chosen_rows"),
        "selector": selection.get("selector"),
        "loss of chosen": metrics.get("arms", {}).get("chosen", {}).get("loss"),
        "minus random": gain.get("loss"),
        "low": gain.get("low"),
        "high": gain.get("high"),
        "approval": find_signed(version).state if found else "not made",
    }


def _tell(row: dict[str, Any]) -> str:
    """Return what became of a version in a sentence."""
    if row["chosen"] is None:
        return "It is not made yet."
    said = f"{row['chosen']:,} of {row['pool']:,} rows were chosen by {row['selector']}"
    if row["minus random"] is None:
        return f"{said}; {row['approval']}."
    low, high = row["low"], row["high"]
    verdict = "better than chance" if high < 0 else "worse than chance" if low > 0 else "no different from chance"
    interval = f"{row['minus random']:+.4f} nats ({low:+.4f} to {high:+.4f})"
    return f"{said}, which is {verdict} on held-out rows: {interval}; {row['approval']}."
