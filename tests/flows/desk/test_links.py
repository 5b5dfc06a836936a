"""A link opens the desk in its state, and says where it asks for what is not there."""

import pytest
from worlds.desk_pages import look, read_text, refuse_foreign_errors

from tasks.catalogue.examples import EXAMPLES


def test_a_version_that_is_not_there_is_told(project):
    assert "There is no version v9 that is made; this is v2." in read_text(look("rows", version="v9"))


@pytest.mark.parametrize(
    ("page", "key", "offered"),
    [
        ("rows", "state", "any"),
        ("rows", "order", "row"),
        ("diff", "compare", "two versions"),
    ],
)
def test_a_link_that_asks_for_what_is_not_offered_says_so(project, page, key, offered):
    said = read_text(look(page, version="v1", **{key: "nonsense"}))
    assert "The link asks for nonsense as" in said
    assert f"this is {offered}." in said


@pytest.mark.parametrize("key", ["topic", "source", "score"])
def test_a_link_that_asks_for_a_value_that_no_row_has_says_so(project, key):
    assert f"v1 has no {key} 'nonsense', which is asked for here." in read_text(
        look("rows", version="v1", **{key: "nonsense"})
    )


@pytest.mark.parametrize(
    ("page", "asked", "told"),
    [
        ("rows", {"score": "gain", "low": "abc"}, "asks for abc as score at least, which is no number"),
        ("rows", {"score": "gain", "high": "nan"}, "asks for nan as score at most, which is no number"),
        ("rows", {"low": "1"}, "asks for score at least and names no score"),
        ("rows", {"sheet": "999"}, "asks for 999 as page, which is none of 1 to 1"),
        ("rows", {"sheet": "x"}, "asks for x as page, which is none of 1 to 1"),
    ],
)
def test_a_link_that_asks_for_no_such_number_says_so(project, page, asked, told):
    desk = look(page, version="v1", **asked)
    refuse_foreign_errors(desk)
    assert told in read_text(desk)


def test_a_page_that_is_not_there_is_told(project):
    assert "The link asks for nonsense as page" in read_text(look("nonsense"))


def test_a_link_holds_the_question(project):
    assert "2 rows" in read_text(look("query", sql="SELECT DISTINCT version FROM subset"))


def test_an_example_is_put_in_place_of_the_question(project):
    desk = look("query", sql="SELECT 1 AS one")
    desk.selectbox(key="example").select_index(1).run()
    refuse_foreign_errors(desk)
    assert desk.text_area[0].value == EXAMPLES[0].sql
