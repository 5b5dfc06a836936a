"""A table of the desk's document holds its rows as text, whatever they say."""

from xml.etree import ElementTree

import pytest

from flows.desk.tables import LONGEST, write_html

HOSTILE = [
    "<script>alert(1)</script>",
    "<b onmouseover='alert(1)'>",
    "</td></table>",
    "&lt;b&gt;",
    'a" tabindex="1',
    "$x^2$ **bold** :red[x] [a](javascript:alert(1))",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_data_is_never_markup(text):
    made = ElementTree.fromstring(write_html([{text: text}], text, order=[text], formats={}))
    cells = [cell.text for cell in made.iter() if cell.tag in ("th", "td")]
    assert cells == [text, text]
    assert made.get("aria-label") == text
    assert {one.tag for one in made.iter()} == {"div", "table", "thead", "tbody", "tr", "th", "td"}


def test_what_turns_the_writing_around_is_made_visible():
    assert r"\u202e\x07" in write_html([{"a": "\u202e\x07"}], "Rows", order=["a"], formats={})


def test_a_long_text_ends_with_a_mark_that_says_so():
    made = write_html([{"a": "x" * LONGEST}, {"a": "y" * (LONGEST + 1)}], "Rows", order=["a"], formats={})
    assert "x" * LONGEST + "</td>" in made
    assert "y" * LONGEST + "…</td>" in made


def test_numbers_are_written_as_they_are_asked_for():
    rows = [{"loss": -0.25, "change": 0.5, "rows": 12345}, {"loss": None, "change": None, "rows": None}]
    made = write_html(rows, "Rows", order=["rows", "loss", "change"], formats={"change": "+.2f"})
    for told in (">12,345<", ">-0.2500<", ">+0.50<"):
        assert told in made
    assert made.count('<td class="number"></td>') == 3
