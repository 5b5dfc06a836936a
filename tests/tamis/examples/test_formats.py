"""A row of every format becomes a conversation; what is no example says why, and where the way out is."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.examples.conversations import Message, as_messages, as_tools, identify, make_exchange
from tamis.examples.formats import FORMATS, Parsed, check_fields, make_reading, parse_row, recognise
from tamis.examples.values import RowError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
PLAIN = {"prompt": "prompt", "response": "response"}
ROWS = {
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "dolly": {"instruction": "Hi", "context": "", "response": "Hello"},
    "prompt_completion": {"prompt": "Hi", "completion": "Hello"},
    "prompt_response": {"prompt": "Hi", "response": "Hello"},
    "question_answer": {"question": "Hi", "answer": "Hello"},
}

KEYS = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "text",
        "type",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "weight",
        "mask",
    ]
)
SCALARS = st.sampled_from([None, True, 0, 1.5, "", " ", "Hi", "\0", "\ud800", "[]", "{}", "user", "assistant", "tool"])
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def read(row, **how) -> Parsed:
    return parse_row(row, make_reading([*row], row, **how), "stem")


def contents(parsed: Parsed) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.learnt) for message in parsed.conversation.messages]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_and_gives_the_same_example(format):
    row = ROWS[format]
    assert recognise([*row], row) == format
    expected = Parsed(make_exchange("Hi", "Hello"), "stem", None, None, None)
    assert read(row) == read(row, format=format) == expected
    assert identify(read(row).conversation) == identify(make_exchange("Hi", "Hello"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_system_field_and_tools_are_read_in_every_format(format):
    tools = [{"type": "function", "function": {"name": "add", "description": "é"}}]
    first = read(ROWS[format] | {"system": "Be kind.", "tools": tools})
    assert first.conversation.messages[0] == Message("system", "Be kind.")
    assert first.conversation.tools == '[{"type": "function", "function": {"name": "add", "description": "é"}}]'
    assert read(ROWS[format] | {"system": "Be kind.", "tools": json.dumps(tools, indent=1)}) == first
    assert read(ROWS[format] | {"system": " ", "tools": []}) == read(ROWS[format])


@pytest.mark.parametrize("name", ["messages", "conversations", "conversation", "chat", "dialog"])
def test_a_list_of_messages_has_many_names_and_may_be_a_text_of_json(name):
    row = {"id": 1, name: [USER, ANSWER]}
    assert recognise([*row], row) == "messages"
    assert read(row) == read({name: json.dumps([USER, ANSWER])}) == read(ROWS["messages"])


def test_a_list_of_messages_is_what_it_is_beside_other_fields():
    row = {"prompt": "Hi", "response": "Hello", "messages": [USER, ANSWER]}
    assert recognise([*row], row) == "messages"
    row["messages"] = "a text"
    assert recognise([*row], row) == "prompt_response"


@pytest.mark.parametrize(("name", "format"), [("conversations", "sharegpt"), ("messages", "messages")])
def test_a_list_that_this_row_lacks_is_recognised_by_its_name(name, format):
    assert recognise([name], {}) == recognise([name], {name: []}) == format


@pytest.mark.parametrize(
    ("row", "way"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, "examples.fields: {prompt: prompt, response: chosen}"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "examples.fields: {messages: chosen}"),
        (
            {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"},
            "examples.fields: {prompt: instruction, response: chosen}",
        ),
        ({"chosen": "Human: Hi", "rejected": "Human: Hi"}, "examples.fields: {prompt: <field>, response: chosen}"),
        (
            {"prompt": "Hi", "completion": "Hello", "label": True},
            "examples.fields: {prompt: prompt, response: completion}",
        ),
        ({"messages": [USER, ANSWER], "label": False}, "examples.fields: {messages: messages}"),
        ({"messages": [USER, ANSWER], "kto_tag": "x"}, "examples.fields: {messages: messages}"),
        ({"prompt": "Hi", "response": "a", "label": True}, "examples.fields: {prompt: prompt, response: response}"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "the last message of the row's conversations"),
    ],
)
def test_rows_that_compare_answers_are_refused_with_their_way_out(row, way):
    kind = "preference" if "chosen" in row else "KTO"
    with pytest.raises(ValueError, match=rf"as {kind} rows have: they compare answers, and tamis chooses") as refused:
        recognise([*row], row)
    assert str(refused.value).endswith(way)


def test_the_chosen_answer_of_a_preference_row_can_be_learnt():
    row = {"prompt": "Hi", "chosen": [ANSWER], "rejected": [ANSWER]}
    assert read(row, fields={"prompt": "prompt", "response": "chosen"}).conversation == make_exchange("Hi", "Hello")
    row = {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"}
    assert read(row, format="alpaca", fields={"response": "chosen"}) == read(ROWS["alpaca"])
    row = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}
    assert read(row, fields={"messages": "chosen"}).conversation == make_exchange("Hi", "Hello")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["text", "id"], "the fields id, text fit no known format; set examples.format to one of messages, sharegpt, "),
        ([], "the fields none fit no known format"),
        (["question", "answer", "prompt", "response"], "fit prompt_response and question_answer; set examples.format"),
        (["text"], "name the fields with examples.fields: {prompt: <field>, response: <field>} or {messages: <field>}"),
    ],
)
def test_a_format_that_is_not_recognised_names_the_fields_and_the_ways_out(names, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        recognise(names, {})


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"format": "chatml"}, "examples.format is 'chatml'; known are messages, .*, or auto to recognise it"),
        ({"learn": "first"}, "examples.learn is 'first'; known are all and last"),
        ({"format": "alpaca"}, "examples.format is alpaca, whose rows have the fields instruction and output; there"),
        ({"format": "messages"}, "is messages, whose rows have the fields messages; there are prompt, response; set"),
        (
            {"format": "messages", "fields": PLAIN},
            r"maps \['prompt', 'response'\], which format messages has not; map others or set examples.format",
        ),
        (
            {"format": "alpaca", "fields": {"messages": "m"}},
            r"maps \['messages'\], which format alpaca has not; map others",
        ),
        ({"fields": {"promt": "q"}}, r"examples.fields maps unknown parts \['promt'\]; an example has topic, source"),
        (
            {"fields": {"prompt": "q"}, "format": "question_answer"},
            "whose rows have the fields q and answer; there are",
        ),
        (
            {"fields": PLAIN | {"messages": "m"}},
            r"maps messages and \['prompt', 'response'\]; give messages, or prompt",
        ),
    ],
)
def test_a_reading_that_cannot_be_is_refused(how, text):
    with pytest.raises(ValueError, match=text):
        make_reading(["prompt", "response"], {}, **how)


def test_a_mapping_of_other_parts_leaves_the_format_to_be_recognised():
    check_fields({"topic": "kind"})
    assert make_reading(["prompt", "response", "kind"], {}, fields={"topic": "kind"}).format == "prompt_response"
    row = {"instruction": "Hi", "input": "", "answer": "Hello"}
    assert read(row, format="alpaca", fields={"response": "answer"}).conversation == make_exchange("Hi", "Hello")


def test_mapped_fields_alone_are_read_where_they_say_where_the_texts_stand():
    row = {"q": "Hi", "a": "Hello", "chosen": 1, "rejected": 2}
    assert read(row, fields={"prompt": "q", "response": "a"}) == read(ROWS["prompt_response"])


@pytest.mark.parametrize("how", [{}, {"fields": PLAIN}, {"format": "prompt_response"}])
def test_system_tools_topic_and_source_are_read_however_the_texts_are(how):
    row = {
        "prompt": "Hi",
        "response": "Hello",
        "system": "Be kind.",
        "tools": [{"name": "f"}],
        "topic": "t",
        "source": "s",
    }
    found = read(row, **how)
    assert contents(found)[0] == ("system", "Be kind.", False)
    assert (as_tools(found.conversation), found.topic, found.source) == ([{"name": "f"}], "t", "s")


def test_a_part_that_is_mapped_to_nothing_is_not_read():
    row = {"prompt": "Hi", "response": "Hello", "system": "Be kind.", "tools": "none", "topic": "t"}
    found = read(row, fields={"system": "", "tools": "", "topic": ""})
    assert found == read(ROWS["prompt_response"])


def test_several_values_are_no_label():
    labels = {"topic": ["a"], "source": {"b": 1}, "planted": ["cut"]}
    assert read(ROWS["prompt_response"] | labels) == read(ROWS["prompt_response"])


@pytest.mark.parametrize(("value", "word"), [("cut", "cut"), (" ", None), (None, None)])
def test_a_row_that_is_planted_says_so_in_a_word(value, word):
    found = read(ROWS["prompt_response"] | {"planted": value})
    assert found == replace(read(ROWS["prompt_response"]), planted=word)


def test_half_a_mapping_is_completed_by_the_format_that_is_recognised():
    assert read(
        {"prompt": "Hi", "answer": "no", "reply": "Hello", "question": "x"},
        fields={"prompt": "prompt", "response": "reply"},
    ) == read(ROWS["prompt_response"])
    assert read({"question": "no", "answer": "Hello", "q": "Hi"}, fields={"prompt": "q"}) == read(
        ROWS["prompt_response"]
    )


def test_every_part_may_be_mapped():
    fields = PLAIN | {"instruction": "i", "system": "s", "topic": "kind", "source": "from", "tests": "t", "tools": "u"}
    row = {"prompt": " Hi ", "response": "\tHello\r\n", "i": "Greet.", "s": "Be kind.", "kind": 3, "from": "me"}
    found = read(row | {"t": ["assert f(1)", "assert f(2)"], "u": [{"name": "add"}]}, fields=fields)
    assert contents(found) == [
        ("system", "Be kind.", False),
        ("user", "Greet.\n\n Hi ", False),
        ("assistant", "\tHello\n", True),
    ]
    assert (found.topic, found.source, found.tests) == ("3", "me", "assert f(1)\nassert f(2)")
    assert found.conversation.tools == '[{"name": "add"}]'


@pytest.mark.parametrize("nothing", [{}, {"x": None}, {"x": ""}, {"x": "  "}])
@pytest.mark.parametrize("part", ["source", "instruction", "system", "tests", "tools"])
def test_an_optional_part_may_be_absent_or_empty(part, nothing):
    row = ROWS["prompt_response"] | nothing
    assert read(row, fields=PLAIN | {part: "x"}) == read(ROWS["prompt_response"])


def test_alpaca_joins_the_input_and_learns_its_history_as_asked():
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2", "history": [["Hi", "Hello"]], "system": "Be brief."}
    exchanges = [("user", "Hi", False), ("assistant", "Hello", True), ("user", "Add.\n\n1 + 1", False)]
    assert contents(read(row)) == [("system", "Be brief.", False), *exchanges, ("assistant", "2", True)]
    assert [learnt for _, _, learnt in contents(read(row, learn="last"))] == [False] * 4 + [True]
    assert read(row | {"history": json.dumps(row["history"])}) == read(row)
    assert contents(read(row | {"instruction": ""}))[3][1] == "1 + 1"


@pytest.mark.parametrize("history", [[["Hi"]], ["Hi"], {"Hi": "Hello"}, "3"])
def test_a_history_that_is_none_is_refused(history):
    with pytest.raises(RowError, match=r"^not a history: 'history' is no list of pairs of question and answer$"):
        read(ROWS["alpaca"] | {"history": history})


def test_a_field_without_a_name_is_no_part():
    assert read(ROWS["dolly"] | {"": "1"}) == read(ROWS["dolly"])


def test_dolly_joins_the_context_and_names_its_topic():
    row = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "closed_qa"}
    assert contents(read(row))[0] == ("user", "Who?\n\nAda wrote it.", False)
    assert read(row).topic == "closed_qa"
    assert read(row | {"category": None}).topic == "stem"


def test_of_a_prompt_of_messages_nothing_is_learnt():
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert [learnt for _, _, learnt in contents(read(row))] == [False, False, False, True]
    assert read(row | {"completion": "Hello"}) == read(row)
    assert contents(read({"prompt": "Hi", "completion": [ANSWER]})) == contents(read(ROWS["messages"]))


def test_sharegpt_calls_tools_in_turns_of_their_own():
    called = {"name": "add", "arguments": {"a": 1, "b": 1}}
    entries = [HUMAN, {"from": "function_call", "value": json.dumps(called)}, {"from": "observation", "value": 2}, GPT]
    found = read({"conversations": entries, "system": "Add.", "tools": json.dumps([{"name": "add"}])})
    assert [role for role, _, _ in contents(found)] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.conversation.learnt == [2, 4]
    assert as_messages(found.conversation)[2]["tool_calls"] == [{"type": "function", "function": called}]
    assert as_tools(found.conversation) == [{"name": "add"}]


def test_learnt_turns_are_all_or_the_last_one():
    row = {"messages": [USER, ANSWER, USER, ANSWER]}
    assert read(row).conversation.learnt == [1, 3]
    assert read(row, learn="last").conversation.learnt == [3]


def test_what_is_left_out_is_noted():
    assert read({"messages": [USER, ANSWER, USER]}).note == "ends with a user turn, which is left out"
    assert read({"messages": [USER, ANSWER]}).note is None


def test_a_system_message_stays_where_it_is():
    row = {"messages": [USER, ANSWER, {"role": "system", "content": "Now be brief."}, USER, ANSWER]}
    assert [role for role, _, _ in contents(read(row))][2] == "system"


def test_two_different_system_messages_are_refused():
    row = {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]}
    assert read(row | {"system": "Be kind."}) == read(row)
    with pytest.raises(RowError, match=r"^two system messages: one in the field 'system', another as first message$"):
        read(row | {"system": "Be brief."})


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("no", "invalid JSON: Expecting value at column 1, in the field 'tools'"),
        ({"name": "add"}, "not a list of tools: the field 'tools' holds dict, not a list of objects; to leave it out"),
        (["add"], "not a list of tools: the field 'tools' holds list"),
        ([{"name": "a\0"}], "holds NUL: the tools"),
    ],
)
def test_tools_that_are_none_are_refused(tools, reason):
    with pytest.raises(RowError, match=f"^{reason}"):
        read(ROWS["messages"] | {"tools": tools})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not an object: list"),
        ("Hi", "not an object: str"),
        ({"prompt": "Hi"}, "missing field 'response': nothing for the response"),
        ({"prompt": None, "response": "a"}, "missing field 'prompt': nothing for the prompt"),
        ({"prompt": {}, "response": "a"}, "not text: the prompt is dict"),
        ({"prompt": "Hi", "response": ""}, "empty response: the field 'response' holds no text"),
        ({"prompt": " \n\u00a0", "response": "a"}, "empty prompt: the field 'prompt' holds no text"),
        ({"prompt": "Hi", "response": "a\ud800"}, "not UTF-8: the response holds bytes or escapes that are no Unicode"),
        ({"prompt": "Hi\0", "response": "a"}, "holds NUL: the prompt has the character U+0000 at place 3"),
        (
            {"prompt": ["Hi", "Bye"], "response": ["a", "b"]},
            "not text: the prompt is a list of 2 values, which are no messages; "
            "a row holds one example, so write one row for each",
        ),
    ],
)
def test_a_bad_row_says_why(row, reason):
    with pytest.raises(RowError, match=f"^{re.escape(reason)}$"):
        parse_row(row, make_reading([], {}, fields=PLAIN), "stem")


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("alpaca", {"instruction": " "}, "^empty instruction: the field 'instruction' holds no text$"),
        ("alpaca", {"instruction": None}, "^missing field 'instruction': nothing for the instruction$"),
        ("dolly", {"response": ""}, "^empty response: the field 'response' holds no text$"),
        ("messages", {"messages": None}, "^missing field 'messages': nothing for the messages$"),
        ("messages", {"messages": []}, "^no learnt turn: no message is the assistant's; the roles are none$"),
        ("messages", {"messages": [USER, ANSWER | {"content": " "}]}, r"^empty response: message 2 \(assistant\)"),
        ("messages", {"messages": [USER | {"role": "narrator"}]}, "^unknown role: message 1 of 'messages' has 'narr"),
    ],
)
def test_a_bad_row_of_a_format_says_why(format, change, reason):
    with pytest.raises(RowError, match=reason):
        read(ROWS[format] | change, format=format)


@pytest.mark.parametrize(
    ("topic", "reason"),
    [(None, "missing field 'kind': nothing for the topic"), ("", "empty topic: the field 'kind' holds no text")],
)
def test_a_mapped_topic_must_be_there(topic, reason):
    with pytest.raises(RowError, match=f"^{reason}$"):
        read(ROWS["prompt_response"] | {"kind": topic}, fields={"topic": "kind"})


@given(st.sampled_from(FORMATS), st.data())
def test_whatever_stands_in_a_row_it_is_an_example_or_says_why(format, data):
    reading = make_reading([*ROWS[format]], ROWS[format], format=format)
    names = st.sampled_from(sorted(reading.fields.values()))
    row = ROWS[format] | data.draw(st.dictionaries(names, ANYTHING, max_size=3))
    try:
        found = parse_row(row, reading, "stem")
    except RowError:
        return
    assert found.conversation.learnt
    assert all(message.content.strip() for message in found.conversation.messages if message.role == "user")
    assert identify(found.conversation)
