"""The desk: what was chosen and why, in the browser. `tamis desk` starts it; Streamlit runs this file.

Text of data is shown as text, never as markup; the page asks nothing of the network, and writes sign-offs, vetoes and
pins alone.
"""

import traceback

import streamlit as st

from flows.desk import asking, project
from flows.desk.choice import gains, mask, pairs, places, rows
from flows.desk.project import TOLD
from flows.desk.versions import chain, comparing, overview, signing
from flows.params import ParamsError
from flows.stage import format_error

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
    page = project.choose(st.sidebar.radio, "Page", list(PAGES), key="page")
    try:
        opened = project.open_project()
    except Exception as error:
        unread = isinstance(error, ParamsError)
        st.header("params.yaml cannot be used" if unread else "Nothing to show yet")
        tell_error(error)
        return
    project.tell_broken(opened)
    if TOLD in st.session_state:
        project.show_words(st.session_state.pop(TOLD))
    try:
        PAGES[page](opened)
    except Exception as error:  # what Streamlit would show instead has links to elsewhere
        st.error("This cannot be shown.")
        tell_error(error)


def tell_error(error: Exception) -> None:
    """Show an error in a line; of one that is none of ours who started the desk sees where it came from."""
    st.text(format_error(error))
    if not isinstance(error, ValueError):
        traceback.print_exception(error)


main()
