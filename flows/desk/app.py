"""The desk: what was chosen and why, in the browser. `tamis desk` starts it; Streamlit runs this file.

Text of data is shown as text, never as markup; the page asks nothing of the network, and writes sign-offs alone.
"""

import streamlit as st

from flows.desk import asking, project
from flows.desk.choice import gains, mask, pairs, places, rows
from flows.desk.versions import chain, comparing, overview, signing

PAGES = {
    "overview": overview.show,
    "rows": rows.show,
    "map": places.show,
    "gains": gains.show,
    "pairs": pairs.show,
    "mask": mask.show,
    "diff": comparing.show,
    "chain": chain.show,
    "sign-off": signing.show,
    "query": asking.show,
}


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="tamis desk", layout="wide")
    page = st.sidebar.radio("Page", list(PAGES), key="page", bind="query-params")
    try:
        opened = project.open_project()
    except ValueError as error:
        st.header("Nothing to show yet")
        st.text(str(error))
        return
    project.tell_broken(opened)
    try:
        PAGES[page](opened)
    except ValueError as error:
        st.error("This cannot be shown.")
        st.text(str(error))


main()
