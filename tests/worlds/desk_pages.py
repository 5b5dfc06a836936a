"""The desk's pages, run without a browser."""

import re
from xml.etree import ElementTree

from streamlit.testing.v1 import AppTest

from worlds.projects import ROOT

APP = str(ROOT / "flows/desk/app.py")
PAGES = ("overview", "rows", "map", "gains", "pairs", "mask", "diff", "chain", "sign-off", "query")


def look(page: str, **state: str) -> AppTest:
    """Open a page in a state, as a link does."""
    desk = AppTest.from_file(APP, default_timeout=60)
    desk.query_params["page"] = page
    for name, value in state.items():
        desk.query_params[name] = value
    desk.run()
    refuse_foreign_errors(desk)
    return desk


def refuse_foreign_errors(desk: AppTest) -> None:
    """Check that no error is shown but those that name a thing and a way out."""
    assert not desk.exception
    assert not [one.value for one in desk.text if re.match(r"\w+(Error|Exception): ", one.value)]


def read_tables(desk: AppTest) -> list[list[dict[str, str]]]:
    """Return the tables of a page's document, each row by the names of its columns."""
    found = []
    for one in desk.get("html"):
        table = ElementTree.fromstring(one.proto.body[one.proto.body.index("<div") :]).find("table")
        names, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def read_text(desk: AppTest) -> str:
    """Return the lines, titles and notes of a page."""
    return "\n".join(one.value for one in [*desk.text, *desk.header, *desk.subheader, *desk.caption])
