"""The desk's questions in SQL, with the catalogue's examples and the answer to take away."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from flows.desk.project import GIGABYTES, ROOT, Opened, show_table
from flows.forms import dump, write_csv
from flows.told import count, distinct

SECONDS = 10.0  # that a question may take on a page
ROWS = 100_000  # that a download holds at most


def show(project: Opened) -> None:
    """Take a question and show the answer."""
    from tasks.browsing.filters import MOST
    from tasks.catalogue.examples import EXAMPLES
    from tasks.catalogue.questions import Limits, query

    st.header("Query")
    known = {one.question: one.sql for one in EXAMPLES}

    def take_example() -> None:
        st.session_state["sql"] = known.get(st.session_state["example"], "")

    naming = {"key": "example", "on_change": take_example, "format_func": lambda question: question or "none"}
    st.selectbox("An example", ["", *known], **naming)
    sql = st.text_area("SQL", key="sql", bind="query-params", height=160)
    if not sql.strip():
        st.text("Every artifact is a view, such as subset or evaluation; docs/reference/catalogue.md lists them.")
        return
    versions = {name: vars(one) for name, one in project.values.versions.items()}
    named, rows = query(ROOT, sql, versions, Limits(seconds=SECONDS, gigabytes=GIGABYTES, rows=ROWS))
    names = distinct(named)
    st.text(f"{count(len(rows), 'row')}{f', of which the first {MOST:,} are shown' if len(rows) > MOST else ''}")
    shown = [dict(zip(names, row, strict=True)) for row in rows[:MOST]]
    show_table(shown, "Answer")
    with st.container(horizontal=True):
        for form, write in {"CSV": write_csv_bytes, "JSONL": write_lines, "Parquet": write_table}.items():
            st.download_button(
                f"Download {form}",
                lambda write=write: write(names, rows),  # when it is asked for, and not at every change of the page
                f"rows.{form.lower()}",
                on_click="ignore",
            )


def write_csv_bytes(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return an answer as CSV, with its columns' names first."""
    return write_csv(names, rows).encode()


def write_lines(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return an answer as JSON, a line each row."""
    return "".join(dump(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()


def write_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return an answer as Parquet."""
    from tasks.catalogue.answers import write_parquet

    return write_parquet(names, rows)
