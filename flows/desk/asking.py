"""The desk's questions in SQL, with the catalogue's examples and the answer to take away."""

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import streamlit as st

from flows.desk.project import GIGABYTES, ROOT
from flows.desk.tables import show_grid
from flows.forms import dump, write_csv
from flows.told import count

SECONDS = 10.0  # that a question may take on a page
ROWS = 100_000  # that a download holds at most
COMMAND = [sys.executable, "-m", "flows.cli", "sql", "--format=parquet", f"--seconds={SECONDS}"]
COMMAND += [f"--gigabytes={GIGABYTES}", f"--rows={ROWS}", "-"]


def show(_: Any) -> None:
    """Take a question and show the answer."""
    from tasks.browsing.filters import MOST
    from tasks.catalogue.examples import EXAMPLES

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
    names, rows = ask(sql)
    st.text(f"{count(len(rows), 'row')}{f', of which the first {MOST:,} are shown' if len(rows) > MOST else ''}")
    shown = [dict(zip(names, row, strict=True)) for row in rows[:MOST]]
    show_grid(shown, "Answer")
    with st.container(horizontal=True):
        for form, write in {"CSV": write_csv_bytes, "JSONL": write_lines, "Parquet": write_table}.items():
            st.download_button(
                f"Download {form}",
                lambda write=write: write(names, rows),  # when it is asked for, and not at every change of the page
                f"rows.{form.lower()}",
                on_click="ignore",
            )


def ask(sql: str) -> tuple[list[str], list[tuple]]:
    """Return the columns' names and the rows that answer a question; of a kind that Parquet lacks, as text.

    A process of its own asks, `tamis sql`: it can be ended whatever DuckDB is at, and gives its memory back.

    Raises:
        QuestionError: not one reading statement, a mistake in it, or more than the limits of a page allow.
    """
    import pyarrow.parquet as pq

    from tasks.catalogue.questions import QuestionError

    done = subprocess.run(COMMAND, cwd=ROOT, input=sql.encode(errors="replace"), capture_output=True, check=False)
    if done.returncode != 0:
        raise QuestionError(done.stderr.decode().strip().removeprefix("error: "))
    answer = pq.read_table(BytesIO(done.stdout))
    return answer.column_names, list(zip(*(column.to_pylist() for column in answer.columns), strict=True))


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
