"""The desk's first page: every version with its choice, what that reached beside chance, and who signed it."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from flows.desk.project import ROOT, Opened, show_words
from flows.desk.tables import show_table
from flows.desk.versions.signing import tell_since, tell_waiting
from flows.told import count
from tasks.artifacts.tables import ArtifactError
from tasks.audit.queries import read_queries

SECONDS = "SELECT version, sum(seconds) FROM (SELECT DISTINCT version, stage, seconds FROM runs) GROUP BY version"
CHECKS = """SELECT version, count(*), count(*) FILTER (NOT passed) FROM audit WHERE list_contains($promises, "check")
    GROUP BY version"""
STANDS = {"changed since": "It has changed since it was approved."}
FORMATS = {"loss of chosen": ".4f", "minus random": "+.4f", "low": "+.4f", "high": "+.4f", "seconds": ",.0f"}


def show(project: Opened) -> None:
    """Show a line for each version."""
    from flows.approving import find_all_signed

    st.header("Versions")
    seconds, checks = read_all(project)
    rows = [
        _describe(version, version in project.made, signed) | _count(version, seconds, checks)
        for version, signed in find_all_signed(project.values.versions).items()
    ]
    since = {row["version"]: row.pop("since") for row in rows}
    damaged = {row["version"]: row.pop("damaged") for row in rows}
    made = [row for row in rows if row["chosen"] is not None]
    measured = sum(row["loss of chosen"] is not None for row in made)
    st.text(f"{len(made):,} of {count(len(rows), 'version')} have a choice of rows; {measured:,} of them are measured.")
    show_table(rows, "Versions", formats=FORMATS)
    waiting = tell_waiting(project)
    for row in rows:
        st.subheader(row["version"])
        for told in damaged[row["version"]]:
            show_words(told)
        st.text(_tell(row))
        if since[row["version"]]:
            st.text(since[row["version"]])
        if row["version"] in waiting:
            st.text(waiting[row["version"]])


def read_all(project: Opened) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Return how long each version's stages took, and how many of its checks there are and failed."""
    with project.connection() as connection:
        seconds = dict(connection.execute(SECONDS).fetchall())
        promises = [one.name for one in read_queries() if one.promise] + ["provenance"]
        there = "audit" in project.artifacts.views
        counted = connection.execute(CHECKS, {"promises": promises}).fetchall() if there else []
    return seconds, {version: (many, failed) for version, many, failed in counted}


def _count(
    version: str, seconds: Mapping[str, float], checks: Mapping[str, tuple[int, int]]
) -> dict[str, float | str | None]:
    many, failed = checks.get(version, (0, 0))
    told = f"{many - failed} of {many} kept" if many else None
    return {"seconds": seconds.get(version), "checks": told}


def _describe(version: str, made: bool, signed: Any) -> dict[str, Any]:
    from tasks.catalogue.rows import show_version

    found, damaged = {}, [signed.damaged] if signed.damaged else []
    try:
        found = (show_version(ROOT, version) if made else None) or {}
    except ArtifactError as error:  # of this version alone: the others are shown
        damaged.append(str(error))
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
        "approval": signed.state if found or damaged else "not made",
        "since": tell_since(version, signed.settings, signed.inputs),
        "damaged": damaged,
    }


def _tell(row: Mapping[str, Any]) -> str:
    """Return what became of a version in a sentence or two."""
    if row["chosen"] is None:
        return "It is not made yet, or an artifact of it is missing or damaged: tamis status says which."
    share = f"{row['chosen']:,} of {row['pool']:,} rows, {row['chosen'] / row['pool']:.0%}"
    said = f"{share}, were chosen by {row['selector']}"
    stands = STANDS.get(row["approval"], f"It is {row['approval']}.")
    checked = f"Promises when it was made: {row['checks'] or 'not known'}. {stands}"
    if row["minus random"] is None:
        return f"{said}; what that is worth is not measured. {checked}"
    low, high = row["low"], row["high"]
    verdict = "better than chance" if high < 0 else "worse than chance" if low > 0 else "not clearly other than chance"
    if low == high != 0:
        verdict = "measured on too few rows to be held against chance"
    interval = f"{row['minus random']:+.4f} nats ({low:+.4f} to {high:+.4f})"
    return f"{said}, which is {verdict} on held-out rows: {interval}. {checked}"
