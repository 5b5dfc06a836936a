"""Values that are written differently are read alike, and what cannot be used says why."""

import re
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.examples.values import RowError, dump_json, make_object, parse_json, read_filled, read_json, read_text

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,}', "invalid JSON: (Illegal trailing comma|Expecting).* at column"),
        ("", "invalid JSON: Expecting value at column 1"),
        ('{"a": 1} {"a": 2}', "invalid JSON: Extra data at column 10"),
        ("[" * 100_000, "invalid JSON: .*recursion"),
        ("1" * 5000, "invalid JSON: .*digits"),
        ('{"a": 1, "b": 2, "a": 3}', "^duplicate key: 'a' stands 2 times in one object$"),
        ('[{"a": {"b": 1, "b": 1}}]', "^duplicate key: 'b'"),
    ],
)
def test_a_text_that_is_no_json_says_why(text, reason):
    with pytest.raises(RowError, match=reason):
        parse_json(text)


@given(st.dictionaries(TEXT, st.integers(), max_size=5))
def test_an_object_has_its_keys_and_values(found):
    assert make_object(list(found.items())) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"),
        (-7, "-7"),
        (42.0, "42"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (Decimal("12.50"), "12.50"),
        (True, "true"),
        (False, "false"),
        ("42.0", "42.0"),
        ("  kept\r\n", "  kept\n"),
        ("", ""),
        (None, None),
        (float("nan"), None),
    ],
)
def test_numbers_are_the_text_that_a_table_shows(value, text):
    assert read_text(value, "prompt") == text


@given(st.integers(-(10**15), 10**15))
def test_a_whole_number_is_one_text_however_it_is_stored(number):
    assert read_text(number, "prompt") == read_text(float(number), "prompt") == read_text(str(number), "prompt")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a"], "not text: the prompt is list"),
        ({"a": 1}, "not text: the prompt is dict"),
        (b"a", "not text: the prompt is bytes"),
        (date(2024, 1, 1), "not text: the prompt is date"),
        (float("inf"), "not text: the prompt is float"),
        ("a\ud800", "not UTF-8: the prompt holds bytes or escapes that are no Unicode"),
        (
            "a\udce9",
            "not UTF-8: the prompt holds bytes or escapes that are no Unicode; set examples.encoding, cp1252 for "
            "example",
        ),
        ("ab\0", "holds NUL: the prompt has the character U+0000 at place 3"),
    ],
)
def test_what_is_no_text_says_why(value, reason):
    with pytest.raises(RowError, match=f"^{re.escape(reason)}$"):
        read_text(value, "prompt")


def test_text_from_right_to_left_stays_as_it_is():
    text = "مرحبا \u200fשלם\u202e 1"
    assert read_text(text, "prompt") == text


@pytest.mark.parametrize("blank", [None, "", " \n\u00a0", float("nan")])
def test_a_blank_text_is_none(blank):
    assert read_filled(blank, "topic") is None


@given(VALUES)
def test_a_value_and_its_text_of_json_are_one(value):
    text = dump_json(value, "tools")
    assert dump_json(parse_json(text), "tools") == text
    if not isinstance(value, str):
        assert read_json(text, "tools") == value


def test_a_text_of_json_that_is_none_names_its_part():
    with pytest.raises(RowError, match=r"^invalid JSON: Expecting value at column 1, in the tools$"):
        read_json("no", "tools")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": ["b\0"]}, "holds NUL: the tools"),
        ({"\ud800": 1}, "not UTF-8: the tools"),
        ([date(2024, 1, 1)], "no JSON: the tools cannot be written as JSON: .*date"),
        ([float("nan")], "no JSON: the tools cannot be written as JSON"),
    ],
)
def test_a_value_that_json_cannot_say_is_refused(value, reason):
    with pytest.raises(RowError, match=f"^{reason}"):
        dump_json(value, "tools")
