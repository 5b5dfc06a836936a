"""What an example is known by: its id, what it is the same as, on which side it stands, and what it asks."""

import hashlib
import json
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.chat_templates import random_conversations

from tamis.examples.conversations import (
    Conversation,
    Message,
    as_messages,
    as_tools,
    fold,
    identify,
    identify_folded,
    identify_question,
    join_texts,
    make_exchange,
    normalise,
    split_key,
    transcribe,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPACES = st.text(" \t\n\u00a0\u2003", min_size=1, max_size=3)
CALL = '{"tool_calls": [{"function": {"arguments": {"city": "Bern"}, "name": "weather"}, "type": "function"}]}'
TOOLS = '[{"type": "function", "function": {"name": "weather"}}]'
WEATHER = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "Rain in Bern?"),
        Message("assistant", "", learnt=True, details=CALL),
        Message("tool", "no"),
        Message("assistant", "No.", learnt=True),
        Message("user", "And in Rome?"),
        Message("assistant", "Yes.", learnt=True),
    ),
    TOOLS,
)


def change(conversation: Conversation, place: int, **what) -> Conversation:
    """Return a conversation with another message at a place."""
    messages = list(conversation.messages)
    messages[place] = replace(messages[place], **what)
    return replace(conversation, messages=tuple(messages))


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


def test_an_id_is_the_documented_digest():
    facts = b'["", [["user", "Hi", false, ""], ["assistant", "  a\\nb", true, ""]]]'
    assert identify(make_exchange("Hi", "  a\r\nb")) == hashlib.sha256(facts).hexdigest()[:32]


@given(TEXT, TEXT, TEXT, TEXT)
def test_different_texts_have_different_ids(prompt, response, other_prompt, other_response):
    one, other = (normalise(prompt), normalise(response)), (normalise(other_prompt), normalise(other_response))
    ids = identify(make_exchange(prompt, response)), identify(make_exchange(other_prompt, other_response))
    assert (ids[0] == ids[1]) == (one == other)


@given(TEXT, TEXT, SPACES)
def test_blanks_at_either_end_are_part_of_an_id(prompt, response, space):
    ids = {
        identify(make_exchange(*pair))
        for pair in (
            (prompt, response),
            (space + prompt, response),
            (prompt, space + response),
            (prompt, response + space),
        )
    }
    texts = {(normalise(one), normalise(other)) for one, other in ((prompt, response), (space + prompt, response))}
    assert len(texts) == 2
    assert len(ids) >= 3  # where the response is nothing but blanks, the last two may be the same text


@given(TEXT, TEXT)
def test_line_ends_and_unicode_form_are_no_part_of_an_id(prompt, response):
    known = identify(make_exchange(prompt, f"a\n{response}"))
    assert identify(make_exchange(unicodedata.normalize("NFD", prompt), f"a\r\n{response}")) == known
    assert identify(make_exchange(prompt, f"a\r{response}")) == known or response.startswith("\n")


def test_case_inner_blanks_and_superscripts_are_part_of_an_id():
    pairs = [("hi", "2²"), ("Hi", "2²"), ("hi", "22"), ("hi", "2 ²"), ("h i", "2²"), ("hi", "2²\n")]
    assert len({identify(make_exchange(*pair)) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    "other",
    [
        make_exchange("Hi", "Hello", "Be kind."),
        make_exchange("Be kind.\n\nHi", "Hello"),
        change(make_exchange("Hi", "Hello"), 1, learnt=False),
        change(make_exchange("Hi", "Hello"), 1, details='{"reasoning_content": "so"}'),
        change(make_exchange("Hi", "Hello"), 0, role="tool"),
        replace(make_exchange("Hi", "Hello"), tools=TOOLS),
    ],
)
def test_all_that_is_rendered_or_learnt_is_part_of_an_id_and_of_what_it_is_the_same_as(other):
    assert identify(other) != identify(make_exchange("Hi", "Hello"))
    assert identify_folded(other) != identify_folded(make_exchange("Hi", "Hello"))


def test_an_empty_system_message_is_none():
    assert make_exchange("Hi", "Hello", "") == make_exchange("Hi", "Hello")


@given(random_conversations(), SPACES)
def test_rows_are_the_same_whatever_their_blanks(conversation, space):
    spread = conversation
    for place, message in enumerate(conversation.messages):
        spread = change(spread, place, content=space + message.content.replace(" ", space) + space)
    assert identify_folded(spread) == identify_folded(conversation)
    assert identify(spread) != identify(conversation)
    assert split_key(spread) == split_key(conversation)


@given(random_conversations(), random_conversations())
def test_rows_that_are_the_same_stand_on_one_side(one, other):
    if identify(one) == identify(other):
        assert identify_folded(one) == identify_folded(other)
    if identify_folded(one) == identify_folded(other):
        assert split_key(one) == split_key(other)


def test_rows_that_differ_in_case_or_in_a_blank_within_a_word_are_not_the_same():
    pairs = [("hi", "a b"), ("Hi", "a b"), ("hi", "ab"), ("hi", "a c")]
    assert len({identify_folded(make_exchange(*pair)) for pair in pairs}) == len(pairs)


def test_the_side_depends_on_the_first_question_alone():
    assert split_key(WEATHER) == "rain in bern?"
    assert split_key(make_exchange("RAIN in\nBern?", "Maybe.")) == split_key(WEATHER)
    assert split_key(replace(WEATHER, messages=WEATHER.messages[1:5])) == split_key(WEATHER)
    assert split_key(Conversation((Message("assistant", "Hello"),))) == ""


@given(random_conversations(), st.data())
def test_a_question_is_all_but_the_learnt_texts(conversation, data):
    place = data.draw(st.integers(0, len(conversation.messages) - 1))
    other = change(conversation, place, content=conversation.messages[place].content + "?")
    same = identify_question(other, "t") == identify_question(conversation, "t")
    assert same == conversation.messages[place].learnt


def test_topic_tools_and_further_turns_are_part_of_a_question_and_line_ends_are_not():
    known = identify_question(WEATHER, "t")
    assert identify_question(WEATHER, "u") != known
    assert identify_question(replace(WEATHER, tools=""), "t") != known
    assert identify_question(replace(WEATHER, messages=WEATHER.messages[:5]), "t") != known
    other = [identify_question(change(WEATHER, 1, content=text), "t") for text in ("a\r\nb", "a\nb", "a b")]
    assert other[0] == other[1] != other[2]


def test_one_exchange_is_transcribed_as_its_two_texts():
    assert transcribe(make_exchange("  Hi", "Hello\n")) == ("  Hi", "Hello\n")


def test_what_stands_before_the_last_learnt_turn_is_transcribed_with_its_roles():
    before, answer = transcribe(WEATHER)
    assert answer == "Yes."
    assert before.startswith("system: Be brief.\n\nuser: Rain in Bern?\n\nassistant: \n\ntool: no\n\nassistant: No.")
    assert before.endswith("user: And in Rome?")
    assert transcribe(make_exchange("Hi", "Hello", "Be kind.")) == ("system: Be kind.\n\nuser: Hi", "Hello")


def test_what_stands_after_the_last_learnt_turn_is_not_transcribed():
    last = change(WEATHER, 6, learnt=False)
    before, answer = transcribe(last)
    assert (answer, before.count("Rome"), last.learnt) == ("No.", 0, [2, 4])


def test_all_texts_are_embedded():
    assert join_texts(WEATHER).split("\n") == [message.content for message in WEATHER.messages]


def test_a_template_takes_messages_with_their_details_and_tools_as_objects():
    assert as_messages(WEATHER)[2] == {"role": "assistant", "content": "", **json.loads(CALL)}
    assert as_messages(WEATHER)[4] == {"role": "assistant", "content": "No."}
    assert as_tools(WEATHER) == json.loads(TOOLS)
    assert as_tools(make_exchange("Hi", "Hello")) is None
