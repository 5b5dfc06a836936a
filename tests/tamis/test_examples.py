"""Identity, split and sample depend on text and seed alone."""

import hashlib
import re
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import largest_remainders

from tamis.examples import (
    RowError,
    allocate,
    check_fields,
    fold,
    identify,
    is_held_out,
    link_duplicates,
    normalise,
    parse_line,
    parse_row,
    sample,
    share_held_out,
    split_rows,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPACES = st.text(" \t\n\u00a0\u2003", min_size=1, max_size=3)
SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 50), min_size=1)
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


@given(TEXT, SPACES)
def test_prompts_that_only_look_different_fall_on_one_side(prompt, space):
    spaced = space + space.join(prompt.split(" ")) + space
    for other in (spaced, unicodedata.normalize("NFKD", prompt)):
        assert is_held_out(other, seed=3, held_out_in=2) == is_held_out(prompt, seed=3, held_out_in=2)


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


@given(TEXT, st.integers(0, 9), st.integers(1, 7))
def test_the_split_is_the_documented_rule(prompt, seed, held_out_in):
    whole = int(hashlib.sha256((str(seed) + fold(prompt)).encode()).hexdigest(), 16)
    assert is_held_out(prompt, seed=seed, held_out_in=held_out_in) == (whole % held_out_in == 0)


def test_about_one_prompt_in_five_is_held_out():
    held_out = sum(is_held_out(f"prompt {k}", seed=0, held_out_in=5) for k in range(5000))
    assert abs(held_out - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5


def test_a_seed_gives_another_split():
    splits = [[is_held_out(f"prompt {k}", seed=seed, held_out_in=2) for k in range(64)] for seed in (0, 1)]
    assert splits[0] != splits[1]


def test_holding_out_one_in_none_is_refused():
    with pytest.raises(ValueError, match="held_out_in is 0; one prompt in so many is held out, so give 1 or more"):
        is_held_out("a", seed=0, held_out_in=0)


@given(st.lists(st.sampled_from("abcd")))
def test_duplicates_point_to_the_first(ids):
    assert link_duplicates(ids) == [None if ids.index(each) == k else ids.index(each) for k, each in enumerate(ids)]


@given(SIZES, st.integers(0, 200))
def test_rows_are_divided_by_largest_remainders(sizes, rows):
    given_rows = allocate(sizes, rows)
    assert sum(given_rows.values()) == min(rows, sum(sizes.values()))
    assert all(0 <= given_rows[topic] <= size for topic, size in sizes.items())
    if rows < sum(sizes.values()):
        assert given_rows == largest_remainders(sizes, rows)


def test_a_negative_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="-1 rows cannot be sampled"):
        allocate({"a": 1}, -1)


@given(SIZES, st.integers(0, 60), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_sample_has_each_topics_share_whatever_the_order(sizes, rows, seed, shuffle):
    topics = {f"{topic}{k}": topic for topic, size in sizes.items() for k in range(size)}
    chosen = sample(topics, rows, seed)
    assert {topic: sum(topics[each] == topic for each in chosen) for topic in sizes} == allocate(sizes, rows)
    mixed = list(topics)
    shuffle.shuffle(mixed)
    assert sample({each: topics[each] for each in mixed}, rows, seed) == chosen


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 3))
def test_a_topic_keeps_its_rows_when_the_sample_grows(size, rows, seed):
    assume(rows < size)
    topics = {f"{k}": "a" for k in range(size)}
    assert sample(topics, rows, seed) < sample(topics, rows + 1, seed)


def test_another_seed_samples_other_rows():
    topics = {f"{k}": "a" for k in range(100)}
    assert sample(topics, 10, seed=0) == sample(topics, 10, seed=0)
    assert sample(topics, 10, seed=0) != sample(topics, 10, seed=1)


def test_no_number_samples_everything():
    assert sample({"a": "x", "b": "y"}, None, seed=0) == {"a", "b"}


ROWS = st.lists(st.tuples(st.sampled_from("pqrstuvw"), st.sampled_from("yn")), max_size=30)


def columns_of(rows):
    return {
        "topic": [prompt for prompt, _ in rows],
        "instruction": [None] * len(rows),
        "prompt": [prompt for prompt, _ in rows],
        "response": [response for _, response in rows],
    }


@given(ROWS, st.integers(0, 5), st.integers(0, 3))
def test_no_prompt_is_on_both_sides_and_each_id_is_used_once(rows, seed, pool_rows):
    split = split_rows(columns_of(rows), held_out_in=2, seed=seed, pool_rows=pool_rows, held_out_rows=None)
    sides = {prompt: set() for prompt, _ in rows}
    for (prompt, _), held_out in zip(rows, split.held_out, strict=True):
        sides[prompt].add(held_out)
    assert all(len(side) == 1 for side in sides.values())
    used = [each for each, flag in zip(split.ids, split.used, strict=True) if flag]
    assert len(used) == len(set(used))
    pool = {each for each, held_out in zip(split.ids, split.held_out, strict=True) if not held_out}
    assert len(pool & set(used)) == min(pool_rows, len(pool))
    assert set(split.ids) - pool <= set(used)


@given(ROWS, st.integers(0, 5))
def test_more_rows_change_nothing_for_those_there_were(rows, seed):
    settings = {"held_out_in": 2, "seed": seed, "pool_rows": None, "held_out_rows": None}
    few, more = split_rows(columns_of(rows), **settings), split_rows(columns_of([*rows, ("z", "n")]), **settings)
    assert (more.ids[:-1], more.held_out[:-1], more.first[:-1]) == (few.ids, few.held_out, few.first)


def test_shares_are_per_topic():
    assert share_held_out([("b", True), ("a", False), ("b", False), ("b", False)]) == {"a": 0.0, "b": 1 / 3}


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
    }


@pytest.mark.parametrize("nothing", [{}, {"i": None}, {"i": ""}, {"i": "  "}])
def test_an_optional_part_may_be_absent_or_empty(nothing):
    row = {"prompt": "Hi", "response": "Hello", **nothing}
    assert parse_row(row, PLAIN | {"instruction": "i"}, "stem")["instruction"] is None


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
