"""Lists of messages of every dialect become the same messages, and those learnt are marked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.examples.conversations import Message
from tamis.examples.messages import ALIASES, ROLE_KEYS, TEXT_KEYS, find_entries, finish, read_entries, read_message
from tamis.examples.values import RowError

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}
ASK = {"role": "user", "content": "1 + 2?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERS = {"role": "tool", "tool_call_id": "c1", "content": "3"}
SAYS = {"role": "assistant", "content": "It is 3."}
ROLES = st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=8)


def turns(*roles: str) -> list[Message]:
    return [Message(role, f"{role} says", learnt=role == "assistant") for role in roles]


def learnt(conversation) -> list[int]:
    return [place for place, message in enumerate(conversation.messages) if message.learnt]


@pytest.mark.parametrize("text_key", TEXT_KEYS)
@pytest.mark.parametrize("role_key", ROLE_KEYS)
def test_role_and_content_have_many_names(role_key, text_key):
    entries = [{role_key: "user", text_key: "Hi"}, {role_key: "assistant", text_key: "Hello"}]
    assert read_entries(entries, "m") == [Message("user", "Hi"), Message("assistant", "Hello", learnt=True)]


@pytest.mark.parametrize("name", [name for name in ALIASES if name != "function_call"])
def test_roles_have_many_names_in_any_case(name):
    entry = {"role": name.upper(), "content": "a"}
    assert read_message(entry, "message 1").role == ALIASES[name]


@pytest.mark.parametrize("role", ["narrator", "Alice", 3, "", None])
def test_an_unknown_role_is_refused(role):
    with pytest.raises(
        RowError, match=r"^unknown role: message 2 of 'm' has .*; known are system, user, assistant, tool"
    ):
        read_entries([ASK, {"role": role, "content": "a"}], "m")


@pytest.mark.parametrize(
    "value",
    [
        [ASK, SAYS],
        (ASK, SAYS),
        json.dumps([ASK, SAYS]),
        {"role": ["user", "assistant"], "content": ["1 + 2?", "It is 3."]},
    ],
)
def test_a_list_its_json_text_and_its_columns_are_one(value):
    assert read_entries(value, "m") == [Message("user", "1 + 2?"), Message("assistant", "It is 3.", learnt=True)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("Hi", r"invalid JSON: Expecting value at column 1, in the field 'm'"),
        ('"Hi"', "not a list of messages: the field 'm' holds str, not a list of role and content"),
        (3, "not a list of messages: the field 'm' holds int"),
        (["Hi"], "not a list of messages: the field 'm' holds list"),
        ({"role": ["user"], "content": []}, "not a list of messages: the field 'm' holds dict"),
        ('[{"role": "user", "role": "user"}]', "duplicate key: 'role' stands 2 times in one object, in the field 'm'"),
    ],
)
def test_what_is_no_list_of_messages_says_why(value, reason):
    assert find_entries(value) is None
    with pytest.raises(RowError, match=f"^{reason}"):
        read_entries(value, "m")


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "image": None}]
    assert read_message({"role": "user", "content": parts}, "message 1").content == "one two"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", None])
def test_parts_that_are_no_text_are_refused(kind):
    parts = [{"type": "text", "text": "what is this?"}, {"type": kind}]
    with pytest.raises(RowError, match=f"^content that is no text: message 1 holds a part of type {kind!r}; only text"):
        read_message({"role": "user", "content": parts}, "message 1")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"role": "user"}, r"missing content: message 1 \(user\) has no content, value or text"),
        ({"role": "assistant", "content": None}, r"missing content: message 1 \(assistant\)"),
        ({"role": "user", "content": ["Hi"]}, "not text: the content of message 1 is list"),
        ({"role": "user", "content": "a\0"}, "holds NUL: the content of message 1 has"),
        ({"role": "user", "content": "a\ud800"}, "not UTF-8: the content of message 1 holds"),
        ({"role": "user", "content": "a", "name": ["x"]}, "not text: the name of message 1 is list"),
        ({"role": "assistant", "tool_calls": "no"}, "invalid JSON: .* in the tool_calls of message 1"),
        ({"role": "assistant", "tool_calls": ["add"]}, "tool calls that are none: message 1 holds something other"),
        ({"from": "function_call", "value": "add(1)"}, "invalid JSON: .* in the message 1"),
        ({"from": "function_call", "value": None}, "tool calls that are none: message 1 holds"),
    ],
)
def test_a_bad_message_says_why(entry, reason):
    with pytest.raises(RowError, match=f"^{reason}"):
        read_message(entry, "message 1")


def test_a_number_is_the_text_that_it_shows():
    assert read_message({"role": "user", "content": 42}, "message 1").content == "42"


def test_details_are_json_with_sorted_keys_and_arguments_as_given():
    entry = CALLS | {"reasoning_content": "Add é.", "name": "", "tool_call_id": None}
    details = read_message(entry, "message 1").details
    assert json.loads(details) == {"reasoning_content": "Add é.", "tool_calls": [CALL]}
    assert details.startswith(
        '{"reasoning_content": "Add é.", "tool_calls": [{"function": {"arguments": "{\\"b\\": 2, '
    )


def test_nulls_by_which_columns_stand_for_what_is_absent_are_none():
    filled = CALLS | {"tool_calls": [CALL | {"index": None, "function": CALL["function"] | {"strict": None}}]}
    assert read_message(filled | {"weight": None, "name": None}, "m") == read_message(CALLS, "m")


def test_calls_are_read_in_three_dialects():
    called = {"name": "add", "arguments": {"a": 1}}
    expected = [{"type": "function", "function": called}]
    for entry in (
        {"from": "function_call", "value": json.dumps(called)},
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "assistant", "content": "", "tool_calls": json.dumps(expected)},
    ):
        message = read_message(entry, "message 1")
        assert (message.role, message.content, message.learnt) == ("assistant", "", True)
        assert json.loads(message.details) == {"tool_calls": expected}


@pytest.mark.parametrize("said", [{"weight": 0}, {"train": False}, {"training": 0.0}, {"mask": True}, {"masked": 1}])
def test_a_turn_may_say_that_it_is_not_learnt(said):
    assert not read_message(SAYS | said, "message 1").learnt


@pytest.mark.parametrize(
    "said", [{"weight": 1.0}, {"train": True}, {"mask": 0}, {"weight": None}, {"weight": 1, "mask": 0}]
)
def test_a_turn_may_say_that_it_is_learnt(said):
    assert read_message(SAYS | said, "message 1").learnt


@pytest.mark.parametrize("value", [0.5, "no", 2, [1]])
def test_a_weight_between_is_refused(value):
    with pytest.raises(RowError, match=r"^unknown weight: message 1 has weight .*; known are 0, 1, true and false$"):
        read_message(SAYS | {"weight": value}, "message 1")


def test_only_the_assistants_turns_have_a_weight():
    assert read_message(ASK | {"weight": "heavy"}, "message 1") == Message("user", "1 + 2?")


@given(ROLES, st.sampled_from(["all", "last"]))
def test_learnt_are_the_assistants_turns_after_a_users(roles, learn):
    after = [k for k, role in enumerate(roles) if role == "assistant" and "user" in roles[:k]]
    expected = after if learn == "all" else after[-1:]
    if not expected:
        with pytest.raises(RowError, match=r"^no learnt turn: "):
            finish(turns(*roles), learn=learn)
        return
    conversation, note = finish(turns(*roles), learn=learn)
    assert learnt(conversation) == expected
    assert [message.role for message in conversation.messages] == roles[: expected[-1] + 1]
    assert (note is None) == (roles[-1] == "assistant")


@pytest.mark.parametrize("over", [("user",), ("user", "user"), ("system", "user")])
def test_a_last_question_is_left_out_and_said(over):
    conversation, note = finish(turns("user", "assistant", *over), learn="all")
    assert len(conversation.messages) == 2
    assert note == "ends with a user turn, which is left out"


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ((), "no message is the assistant's; the roles are none"),
        (("system", "user"), "no message is the assistant's; the roles are system, user"),
        (("assistant", "user"), "no turn of the assistant stands after a user's message"),
        (("system", "assistant"), "no turn of the assistant stands after a user's message"),
    ],
)
def test_a_conversation_without_a_learnt_turn_says_why(roles, reason):
    with pytest.raises(RowError, match=f"^no learnt turn: {reason}$"):
        finish(turns(*roles), learn="all")


def test_turns_that_come_unmarked_are_not_learnt():
    masked = Message("assistant", "no")
    question, answer = turns("user", "assistant")
    assert learnt(finish([question, masked, question, answer], learn="all")[0]) == [3]
    with pytest.raises(RowError, match=r"^no learnt turn: weight, train or mask leaves out every turn .*, 1 in all$"):
        finish([question, masked], learn="all")
    with pytest.raises(RowError, match=r"^no learnt turn: .* leaves out the last turn, and examples.learn is last$"):
        finish([question, answer, question, masked], learn="last")


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_learnt_turn_is_refused(blank):
    messages = [*turns("user"), Message("assistant", blank, learnt=True), *turns("user", "assistant")]
    with pytest.raises(RowError, match=r"^empty response: message 2 \(assistant\) holds neither text nor a tool call$"):
        finish(messages, learn="all")
    assert learnt(finish(messages, learn="last")[0]) == [3]


def test_an_empty_question_is_refused_but_where_it_is_left_out():
    with pytest.raises(RowError, match=r"^empty prompt: message 1 \(user\) holds no text$"):
        finish([Message("user", " "), *turns("assistant")], learn="all")
    assert finish([*turns("user", "assistant"), Message("user", "")], learn="all")[1] is not None


def test_a_call_its_answer_and_a_second_turn_are_read_as_they_are():
    conversation, note = finish(read_entries([ASK, CALLS, ANSWERS, SAYS], "m"), learn="all")
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert (learnt(conversation), note) == ([1, 3], None)
    assert conversation.messages[2] == Message("tool", "3", details='{"tool_call_id": "c1"}')


def test_a_conversation_that_ends_with_a_tools_answer_keeps_its_call():
    conversation, note = finish(read_entries([ASK, CALLS, ANSWERS], "m"), learn="all")
    assert (learnt(conversation), note) == ([1], "ends with a tool turn, which is left out")


@pytest.mark.parametrize(
    "entries",
    [
        [ASK, ANSWERS, SAYS],
        [ASK, SAYS, {"role": "tool", "content": "3"}, SAYS],
        [ASK, CALLS, ANSWERS, ASK, {"role": "tool", "content": "3"}, SAYS],
        [ASK, CALLS, ANSWERS | {"tool_call_id": "c2"}, SAYS],
    ],
)
def test_a_tools_answer_without_a_call_is_refused(entries):
    with pytest.raises(
        RowError, match=r"^tool answer without a call: message \d \(tool\) (follows|answers the call 'c)"
    ):
        finish(read_entries(entries, "m"), learn="all")


@pytest.mark.parametrize(
    "entries",
    [
        [ASK, CALLS, ASK, ANSWERS, SAYS],
        [ASK, {"role": "assistant", "content": "<tool_call>{}</tool_call>"}, {"role": "tool", "content": "3"}, SAYS],
        [ASK, CALLS, {"role": "tool", "content": None}, {"role": "tool", "content": "3"}, SAYS],
    ],
)
def test_calls_are_found_by_their_id_in_the_turn_before_and_in_its_text(entries):
    assert finish(read_entries(entries, "m"), learn="last")[1] is None


@pytest.mark.parametrize(
    "calls",
    [[{"function": "x"}], [{}], [{"function": None}], [{"function": {"arguments": {}}}], [{"function": {"name": " "}}]],
)
def test_a_call_without_the_name_of_a_function_is_refused(calls):
    entry = {"role": "assistant", "content": "", "tool_calls": calls}
    with pytest.raises(RowError, match=r"^tool calls that are none: message 2 holds a call without the name of a"):
        read_message(entry, "message 2")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names_and_may_be_empty(key):
    message = read_message({"role": "assistant", "content": "4", key: "two and two"}, "message 2")
    assert json.loads(message.details) == {"reasoning_content": "two and two"}
    for nothing in (None, "", []):
        assert read_message({"role": "assistant", "content": "4", key: nothing}, "message 2").details == ""
