"""Conversations as TRL, axolotl, ShareGPT and LLaMA-Factory read them, and what these cannot say of them."""

import json

import pytest
import yaml

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.examples.formats import make_reading, parse_row
from tasks.export import layouts
from tasks.export.layouts import are_parted, count_gaps, describe_files, make_writer

CALL = {"function": {"arguments": '{"city": "Rome"}', "name": "weather"}, "id": "c1", "type": "function"}
TOOLS = '[{"type": "function", "function": {"name": "weather"}}]'
ASKED = Conversation(
    (
        Message("system", "Be kind."),
        Message("user", "Is it warm?"),
        Message("assistant", "", True, json.dumps({"tool_calls": [CALL]})),
        Message("tool", "25 degrees", details='{"tool_call_id": "c1"}'),
        Message("assistant", "It is.", learnt=True),
    ),
    TOOLS,
)
TWICE = Conversation(
    (
        Message("user", "2 + 2?"),
        Message("assistant", "4"),
        Message("user", "and 3?"),
        Message("assistant", "7", learnt=True),
    )
)
PLAIN = make_exchange("Hi", "Hello", "Be kind.")


def test_trl_has_prompts_and_completions_where_the_last_message_alone_is_learnt():
    assert are_parted([PLAIN, TWICE])
    assert not are_parted([PLAIN, ASKED])
    row = make_writer("trl", parted=True)(TWICE)
    assert [one["content"] for one in row["prompt"]] == ["2 + 2?", "4", "and 3?"]
    assert row["completion"] == [{"role": "assistant", "content": "7"}]


def test_trl_has_messages_with_their_calls_and_tools_otherwise():
    row = make_writer("trl")(ASKED)
    assert [one["role"] for one in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"] == [CALL]
    assert row["messages"][3]["tool_call_id"] == "c1"
    assert row["tools"] == json.loads(TOOLS)
    assert "tools" not in make_writer("trl")(PLAIN)


def test_axolotl_is_told_of_every_turn_whether_it_is_trained_on():
    assert [one["train"] for one in make_writer("axolotl")(TWICE)["messages"]] == [False, False, False, True]
    (text,) = describe_files("axolotl", [], "mine", "rows.jsonl").values()
    ((entry),) = yaml.safe_load(text)["datasets"]
    assert entry["type"] == "chat_template"
    assert (entry["field_messages"], entry["message_field_training"], entry["path"]) == (
        "messages",
        "train",
        "rows.jsonl",
    )


def test_sharegpt_has_the_system_message_and_the_tools_beside_the_turns():
    row = make_writer("sharegpt")(ASKED)
    assert [one["from"] for one in row["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(row["conversations"][1]["value"]) == {"name": "weather", "arguments": {"city": "Rome"}}
    assert (row["system"], row["tools"]) == ("Be kind.", TOOLS)


def test_several_calls_of_a_turn_are_one_list():
    message = Message("assistant", "", True, json.dumps({"tool_calls": [CALL, CALL | {"id": "c2"}]}))
    row = make_writer("sharegpt")(Conversation((Message("user", "?"), message)))
    assert [call["name"] for call in json.loads(row["conversations"][1]["value"])] == ["weather", "weather"]


@pytest.mark.parametrize("conversation", [PLAIN, ASKED])
@pytest.mark.parametrize("layout", ["trl", "axolotl", "sharegpt"])
def test_what_is_written_is_read_again_as_the_same_turns(conversation, layout):
    row = json.loads(json.dumps(make_writer(layout)(conversation)))
    parsed = parse_row(row, make_reading(list(row), row), "toy").conversation
    assert [(one.role, one.content, one.learnt) for one in parsed.messages] == [
        (one.role, one.content, one.learnt) for one in conversation.messages
    ]
    assert bool(parsed.tools) == bool(conversation.tools)


def test_turns_that_are_not_to_be_learnt_are_a_gap_where_nothing_says_so():
    assert count_gaps("trl", [TWICE, PLAIN]) == {layouts.UNLEARNT: 1}
    assert count_gaps("trl", [TWICE, PLAIN], parted=True) == {}
    assert count_gaps("axolotl", [TWICE]) == {}
    assert count_gaps("llamafactory", [TWICE]) == {layouts.UNLEARNT: 1}


def test_what_sharegpt_leaves_out_is_counted():
    spoken = Message("assistant", "let me see", True, json.dumps({"tool_calls": [CALL], "reasoning_content": "hm"}))
    late = Conversation((Message("user", "?"), Message("system", "x"), spoken))
    assert count_gaps("sharegpt", [late, late]) == {
        layouts.TEXT_BESIDE_CALL: 2,
        layouts.REASONING: 2,
        layouts.LATE_SYSTEM: 2,
    }
    assert count_gaps("llamafactory", [late])[layouts.UNORDERED] == 1
    assert count_gaps("llamafactory", [ASKED, PLAIN]) == {}


def test_llama_factory_is_told_of_the_columns_that_are_there():
    rows = [make_writer("llamafactory")(one) for one in (PLAIN, ASKED)]
    (text,) = describe_files("llamafactory", rows, "tamis_v1", "rows.jsonl").values()
    assert json.loads(text)["tamis_v1"] == {
        "file_name": "rows.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
    }
    (text,) = describe_files("llamafactory", [make_writer("llamafactory")(TWICE)], "tamis_v1", "rows.jsonl").values()
    assert json.loads(text)["tamis_v1"]["columns"] == {"messages": "conversations"}
