"""Rows become examples, whose identity depends on their text alone."""

import hashlib
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.examples.parsing import RowError, check_fields, fold, identify, normalise, parse_line, parse_row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPACES = st.text(" \t\n\u00a0\u2003", min_size=1, max_size=3)
PLAIN = {"prompt": "prompt", "response": "response"}


@given(TEXT)
def test_normalised_text_stays_as_it_is(text):
    once = normalise(text)
    assert normalise(once) == once
    assert "\r" not in once


@given(TEXT)
def test_folded_prompts_stay_as_they_are(prompt):
    once = fold(prompt)
    assert fold(once) == once
    assert not re.search(r"\s\s|^\s|\s$|[^\S ]", once)


@given(TEXT, TEXT, SPACES)
def test_outer_white_space_and_composed_letters_do_not_change_an_id(prompt, response, space):
    assert identify(space + prompt + space, response + space) == identify(prompt, response)
    assert identify(unicodedata.normalize("NFD", prompt), response) == identify(prompt, response)


@given(TEXT, TEXT, TEXT, TEXT)
def test_different_texts_have_different_ids(prompt, response, other_prompt, other_response):
    one, other = (normalise(prompt), normalise(response)), (normalise(other_prompt), normalise(other_response))
    assert (identify(prompt, response) == identify(other_prompt, other_response)) == (one == other)


def test_inner_white_space_and_superscripts_are_part_of_an_id():
    assert len({identify("if x:\n  y", "2²"), identify("if x: y", "2²"), identify("if x:\n  y", "22")}) == 3
    assert identify("a\r\nb", "c") == identify("a\nb", "c")


def test_case_and_instruction_are_part_of_an_id():
    ids = {
        identify("hi", "yes"),
        identify("Hi", "yes"),
        identify("hi", "yes", "Answer."),
        identify("Answer. hi", "yes"),
    }
    assert len(ids) == 4
    assert identify("hi", "yes", "") == identify("hi", "yes")


def test_an_id_is_the_documented_digest():
    assert (
        identify(" what is AI?", "a field", "Be brief.")
        == (hashlib.sha256(b'["Be brief.", "what is AI?", "a field"]').hexdigest()[:32])
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            b'{"a": 1,}',
            "invalid JSON: Illegal trailing comma before end of object|invalid JSON: Expecting .* at column",
        ),
        (b"", "invalid JSON: Expecting value at column 1"),
        (b'{"a": 1} {"a": 2}', "invalid JSON: Extra data at column 10"),
        ("caf\u00e9".encode("latin-1"), "not UTF-8: byte 0xe9 at column 4"),
        (b"[" * 100_000, "invalid JSON: .*recursion"),
        (b"1" * 5000, "invalid JSON: .*digits"),
    ],
)
def test_a_line_that_is_no_json_says_why(line, reason):
    with pytest.raises(RowError, match=reason):
        parse_line(line)


def test_a_row_gives_its_mapped_parts():
    fields = {"prompt": "q", "response": "a", "instruction": "system", "topic": "kind", "source": "from"}
    row = {"q": " Hi ", "a": "Hello", "system": "Be kind.", "kind": "greetings", "from": "me", "other": 1}
    assert parse_row(row, fields, "stem") == {
        "topic": "greetings",
        "source": "me",
        "instruction": "Be kind.",
        "prompt": "Hi",
        "response": "Hello",
        "tests": None,
    }


@pytest.mark.parametrize("nothing", [{}, {"i": None}, {"i": ""}, {"i": "  "}])
def test_an_optional_part_may_be_absent_or_empty(nothing):
    row = {"prompt": "Hi", "response": "Hello", **nothing}
    assert parse_row(row, PLAIN | {"instruction": "i"}, "stem")["instruction"] is None


@pytest.mark.parametrize(
    ("tests", "expected"),
    [(["assert f(1)", "assert f(2)\r\n"], "assert f(1)\nassert f(2)"), ("assert f(1)", "assert f(1)"), ([], None)],
)
def test_tests_are_a_text_or_a_list_of_lines(tests, expected):
    row = {"prompt": "Hi", "response": "Hello", "t": tests}
    assert parse_row(row, PLAIN | {"tests": "t"}, "stem")["tests"] == expected


@pytest.mark.parametrize(("tests", "kind"), [([1], "list"), ({"a": "b"}, "dict")])
def test_tests_that_are_no_text_are_refused(tests, kind):
    row = {"prompt": "Hi", "response": "Hello", "t": tests}
    with pytest.raises(RowError, match=f"^not text: the tests is {kind}$"):
        parse_row(row, PLAIN | {"tests": "t"}, "stem")


def chat(*roles):
    return {"m": [{"role": role, "content": f"the {role} says"} for role in roles]}


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system", "user", "assistant")])
def test_a_chat_of_one_exchange_is_an_example(roles):
    parts = parse_row(chat(*roles), {"messages": "m"}, "stem")
    assert (parts["prompt"], parts["response"], parts["topic"]) == ("the user says", "the assistant says", "stem")
    assert parts["instruction"] == ("the system says" if "system" in roles else None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not an object: list"),
        ({"prompt": "Hi"}, "missing field 'response': nothing for the response"),
        ({"prompt": None, "response": "a"}, "missing field 'prompt': nothing for the prompt"),
        ({"prompt": 3, "response": "a"}, "not text: the prompt is int"),
        ({"prompt": "Hi", "response": ""}, "empty response"),
        ({"prompt": " \n\u00a0", "response": "a"}, "empty prompt"),
        ({"prompt": "Hi", "response": "a\ud800"}, "not UTF-8: the response holds bytes or escapes that are no Unicode"),
    ],
)
def test_a_bad_row_says_why(row, reason):
    with pytest.raises(RowError, match=f"^{re.escape(reason)}$"):
        parse_row(row, PLAIN, "stem")


@pytest.mark.parametrize(
    ("chats", "reason"),
    [
        (
            chat("user", "assistant", "user", "assistant"),
            "the roles are .*'user', 'assistant'.*, not .system,. user, assis",
        ),
        (chat("assistant", "user"), "not one exchange: the roles are"),
        ({"m": []}, "not one exchange: the roles are"),
        ({"m": "Hi"}, "not one exchange: messages is str, not a list"),
        ({"m": 3}, "not one exchange: messages is int"),
        ({"m": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}, "not text: the response is NoneType"),
        ({"m": [{"role": "user", "content": ["Hi"]}, {"role": "assistant", "content": "a"}]}, "the prompt is list"),
    ],
)
def test_a_bad_chat_says_why(chats, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(chats, {"messages": "m"}, "stem")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"promt": "q", "response": "a"}, r"maps unknown parts \['promt'\]; an example has topic, source"),
        ({"prompt": "q"}, "must map prompt and response, or messages"),
        ({}, "must map prompt and response, or messages"),
        ({"messages": "m", "prompt": "q"}, r"maps messages and \['prompt'\]; give messages, or prompt and response"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        check_fields(fields)
