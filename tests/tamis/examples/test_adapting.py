"""System messages move to where a template takes them, and whole exchanges go where a context is too short."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from worlds.chat_templates import random_conversations

from tamis.examples.adapting import SYSTEM, drop_exchange, find_special, place_system
from tamis.examples.conversations import Conversation, Message, make_exchange

CALL = json.dumps({"tool_calls": [{"function": {"name": "add", "arguments": {"text": "a <|end|> b"}}}]})


def talk(*roles: str) -> Conversation:
    """Return a conversation of some roles; a capital marks a learnt turn."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    turns = enumerate("".join(roles))
    return Conversation(tuple(Message(names[role.lower()], f"m{place}", role.isupper()) for place, role in turns))


def texts(conversation: Conversation | None) -> list[str]:
    return [message.content for message in conversation.messages] if conversation else []


def test_a_template_with_a_system_role_gets_the_conversation_as_it_is():
    assert place_system(talk("suA"), "template") == talk("suA")


def test_system_messages_may_stand_before_the_first_questions_text():
    found = place_system(talk("ssaAuAu"), "first_user")
    assert texts(found) == ["m2", "m3", "m0\n\nm1\n\nm4", "m5", "m6"]
    assert [message.role for message in found.messages] == ["assistant", "assistant", "user", "assistant", "user"]
    assert found.learnt == [1, 3]


def test_a_system_message_within_a_conversation_moves_as_well():
    assert texts(place_system(talk("uAsuA"), "first_user")) == ["m2\n\nm0", "m1", "m3", "m4"]


def test_system_messages_may_be_left_out():
    assert texts(place_system(talk("suAsuA"), "drop")) == ["m1", "m2", "m4", "m5"]


@pytest.mark.parametrize("how", SYSTEM)
def test_a_conversation_without_system_message_stays_as_it_is(how):
    whole = replace(talk("uAuA"), tools='[{"name": "add"}]')
    assert place_system(whole, how) == whole


@given(random_conversations())
def test_no_answer_is_moved_or_changed(conversation):
    learnt = [conversation.messages[place] for place in conversation.learnt]
    for how in SYSTEM:
        found = place_system(conversation, how)
        assert [found.messages[place] for place in found.learnt] == learnt
        assert how == "template" or all(message.role != "system" for message in found.messages)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"examples.system is 'first'; known are template, first_user, drop"):
        place_system(talk("suA"), "first")


@pytest.mark.parametrize(
    ("whole", "shorter"),
    [
        ("suAuA", "suA"),
        ("suA", ""),
        ("uAutAtA", "uA"),  # a call, what the tool said and the answer go together
        ("uAuuA", "uA"),  # a question that nobody answers then goes too
        ("uAsuA", "uA"),
        ("uAuauA", "uAua"),
        ("uauA", ""),
        ("auA", ""),
    ],
)
def test_the_last_exchange_goes_whole(whole, shorter):
    found = drop_exchange(talk(whole))
    assert found == (replace(talk(whole), messages=talk(whole).messages[: len(shorter)]) if shorter else None)


@given(random_conversations())
def test_what_is_left_is_a_beginning_that_ends_with_an_answer_until_nothing_learnt_is_left(conversation):
    shorter: Conversation | None = conversation
    asked = sum(message.role == "user" for message in conversation.messages)
    while (shorter := drop_exchange(shorter)) is not None:
        assert shorter.messages == conversation.messages[: len(shorter.messages)]
        assert shorter.messages[-1].role == "assistant"
        assert shorter.learnt == [place for place in conversation.learnt if place < len(shorter.messages)] != []
        left = sum(message.role == "user" for message in shorter.messages)
        assert left == asked - 1
        asked = left


@pytest.mark.parametrize(
    "conversation",
    [
        make_exchange("a <|end|>", "b"),
        make_exchange("a", "<|end|>b"),
        make_exchange("a", "b", "a<|end|>b"),
        Conversation((Message("user", "a"), Message("assistant", "", True, CALL))),
        replace(make_exchange("a", "b"), tools='[{"name": "<|end|>"}]'),
    ],
)
def test_the_text_of_a_control_token_is_found_wherever_it_stands(conversation):
    assert find_special(conversation, ["<|pad|>", "<|end|>"]) == "<|end|>"
    assert find_special(conversation, ["<|pad|>"]) is None
    assert find_special(conversation, []) is None
