"""The desk's questions in SQL, with the catalogue's examples and the answer to take away."""

import json

import streamlit as st

from flows.desk.project import ROOT, Opened


def show(project: Opened) -> None:
    """Take a question and show the answer."""
    from tasks.artifacts.tables import write_parquet
    from tasks.catalogue.browsing import MOST
    from tasks.catalogue.examples import EXAMPLES
    from tasks.catalogue.questions import query

    st.header("Query")
    known = {one.question: one.sql for one in EXAMPLES}
    question = st.selectbox("An example", ["", *known])
    sql = st.text_area("SQL", value=known.get(question, ""), key=f"sql {question}", height=160)
    if not sql.strip():
        return
    versions = {name: vars(one) for name, one in project.values.versions.items()}
    names, rows = query(ROOT, sql, versions)
    st.text(f"{len(rows):,} rows{f', of which the first {MOST:,} are shown' if len(rows) > MOST else ''}")
    st.dataframe([dict(zip(names, row, strict=True)) for row in rows[:MOST]], hide_index=True, width="stretch")
    lines = "".join(json.dumps(dict(zip(names, row, strict=True)), default=str) + "\n" for row in rows)
    st.download_button("Download JSONL", lines, "rows.jsonl")
    st.download_button("Download Parquet", write_parquet(names, rows), "rows.parquet")
