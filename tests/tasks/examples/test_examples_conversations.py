"""What of a conversation is learnt, what fits, what is left out and said so, and what travels along."""

import json
import re
from dataclasses import replace

import pytest
from worlds.chat_templates import GEMMA, QWEN_2, QWEN_3
from worlds.raw_rows import ROWS, chat, dump, read_metrics, read_rejects, write_csv, write_parquet, write_toy

from tasks.examples.files import ExamplesError
from tasks.tokens import encode_rows

ASKED = chat("a question", "first answer", "and then", "second answer")
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLED = {
    "messages": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "no"},
        {"role": "assistant", "content": "No."},
    ],
    "tools": [{"type": "function", "function": {"name": "weather"}}],
}


@pytest.fixture
def make(tmp_path, toy):
    """Write conversations under a template, beside enough rows of one exchange; returns those that became examples."""

    def written(*conversations: dict, template: str | None = None, max_tokens: int = 256, **changes) -> list[dict]:
        (tmp_path / "raw/v1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/v1/rows.jsonl").write_text(dump(ROWS))
        own = tmp_path / "own.jinja"
        own.write_text(template or "")
        model = replace(toy, chat_template=str(own) if template else None, max_tokens=max_tokens)
        table = write_toy(tmp_path, model, [*conversations], "chats.jsonl", **changes)
        return [row for row in table.to_pylist() if row["file"] == "v1/chats.jsonl"]

    return written


def learnt(row: dict) -> list[str]:
    return [turn["content"] for turn in row["messages"] if turn["learnt"]]


def test_every_turn_of_the_assistant_is_learnt_or_the_last_one_alone(make):
    (row,) = make(ASKED)
    assert learnt(row) == ["first answer", "second answer"]
    assert row["response_tokens"] == len("first answer.second answer.")
    assert row["tokens"] == len("<a question>\n<first answer>\n<and then>\n<second answer>\n")
    (last,) = make(ASKED, learn="last")
    assert learnt(last) == ["second answer"]
    assert (last["response_tokens"], last["tokens"]) == (len("second answer."), row["tokens"])
    assert last["id"] != row["id"]


def test_the_last_question_and_the_last_answer_are_shown_to_people(make):
    (row,) = make(ASKED)
    assert (row["prompt"], row["response"]) == ("and then", "second answer")


def test_a_turn_of_weight_0_is_not_learnt(make):
    first = {"messages": [turn | ({"weight": 0} if place == 1 else {}) for place, turn in enumerate(ASKED["messages"])]}
    last = {"messages": [turn | ({"weight": 0} if place == 3 else {}) for place, turn in enumerate(ASKED["messages"])]}
    assert [learnt(row) for row in make(first, last)] == [["second answer"], ["first answer"]]


def test_a_turn_that_comes_before_any_question_is_kept_and_not_learnt(make):
    (row,) = make(chat("assistant:Welcome.", "Hi", "Hello"))
    assert [turn["content"] for turn in row["messages"]] == ["Welcome.", "Hi", "Hello"]
    assert learnt(row) == ["Hello"]


def test_roles_in_capitals_and_text_of_any_script_are_read_as_they_are(make):
    said = "مرحبا \u200fשלם\u202e 你好 👍🏽"
    row = {"messages": [{"role": "USER", "content": said}, {"role": "Assistant", "content": f"  {said}\t"}]}
    (found,) = make(row)
    assert [(turn["role"], turn["content"]) for turn in found["messages"]] == [
        ("user", said),
        ("assistant", f"  {said}\t"),
    ]


def test_two_turns_of_the_assistant_in_a_row_are_two_learnt_turns(make):
    (row,) = make(chat("Hi", "Let me see.", "assistant:Hello"), template=QWEN_2)
    assert learnt(row) == ["Let me see.", "Hello"]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (chat("Hi"), "no learnt turn: no message is the assistant's; the roles are user"),
        (chat("Hi", " "), "empty response: message 2 (assistant) holds neither text nor a tool call"),
        (chat("Hi", "Hello", "tool:a"), "tool answer without a call: message 3 (tool) follows no tool call"),
        (chat("Hi", "tool:a", "assistant:b"), "tool answer without a call: message 2 (tool) follows no tool call"),
        ({"messages": [{"role": "judge", "content": "Hi"}]}, "unknown role: message 1 of 'messages' has 'judge'"),
        ({"messages": "Hi"}, "invalid JSON: Expecting value at column 1, in the field 'messages'"),
        (
            {"messages": [*ASKED["messages"]], "tools": "none"},
            "invalid JSON: Expecting value at column 1, in the field",
        ),
    ],
)
def test_a_conversation_that_is_none_says_why_and_the_others_stay(make, tmp_path, conversation, reason):
    rows = make(ASKED, conversation, on_bad_row="reject")
    found = [row["reason"] for row in read_rejects(tmp_path)]
    assert len(rows) == 1
    assert len(found) == 1
    assert found[0].startswith(reason)


def test_what_nobody_answers_is_left_out_with_a_note_that_is_counted(make, tmp_path):
    note = "ends with a user turn, which is left out"
    rows = make(chat("Hi", "Hello", "Bye"), ASKED, chat("a", "b", "c"))
    assert [row["note"] for row in rows] == [note, None, note]
    assert [len(row["messages"]) for row in rows] == [2, 4, 2]
    assert read_metrics(tmp_path)["notes"] == {note: 2}


def test_the_note_of_a_row_that_is_rejected_is_not_counted(make, tmp_path):
    make(ASKED, chat("Hi", "a" * 300, "Bye"), on_long_row="reject")
    assert (read_metrics(tmp_path)["notes"], read_metrics(tmp_path)["rejects"]) == ({}, 1)


LONG = chat("Hi", "Hello", "more", "a" * 100, "and more", "b" * 200, "and more", "c" * 100)


def test_a_long_conversation_stops_the_run_or_is_rejected(make, tmp_path):
    text = r"1 of 26 rows are bad .*chats.jsonl:1: longer than the context: 450 tokens with the template's, 256 fit"
    with pytest.raises(ExamplesError, match=text):
        make(LONG, ASKED)
    assert len(make(LONG, ASKED, on_long_row="reject")) == 1
    assert read_rejects(tmp_path)[0]["line"] == 1


def test_whole_exchanges_may_be_left_out_at_the_end(make, tmp_path):
    rows = make(LONG, ASKED, on_long_row="drop_turns")
    assert [len(row["messages"]) for row in rows] == [4, 4]
    assert learnt(rows[0]) == ["Hello", "a" * 100]
    assert [row["note"] for row in rows] == ["too long: 2 exchanges left out at its end", None]
    found = read_metrics(tmp_path)
    assert found["notes"] == {"longer than the context: whole exchanges are left out at its end": 1}
    assert (found["dropped_exchanges"], found["rejects"]) == (2, 0)


def test_a_shortened_conversation_is_the_one_that_was_written_that_short(make):
    whole, short = LONG["messages"], LONG["messages"][:4]
    (row,) = make({"messages": whole}, on_long_row="drop_turns")
    (same,) = make({"messages": short})
    facts = ("id", "same_as", "messages", "tokens", "response_tokens", "prompt", "response")
    assert {name: row[name] for name in facts} == {name: same[name] for name in facts}


def test_both_notes_of_a_row_are_told(make):
    (row,) = make(chat(*(turn["content"] for turn in LONG["messages"]), "Bye"), on_long_row="drop_turns")
    assert row["note"] == "ends with a user turn, which is left out; too long: 2 exchanges left out at its end"


def test_no_part_of_an_answer_is_ever_left_out(make, tmp_path):
    rows = make(chat("Hi", "a" * 300, "and", "b"), ASKED, on_long_row="drop_turns")
    assert len(rows) == 1
    (reject,) = read_rejects(tmp_path)
    assert reject["reason"].endswith("256 fit (models.max_tokens) and no beginning of it does")


def test_the_last_turn_cannot_be_left_out_where_it_alone_is_learnt(make, tmp_path):
    assert len(make(LONG, ASKED, on_long_row="drop_turns", learn="last")) == 1
    assert read_metrics(tmp_path)["dropped_exchanges"] == 0


def test_a_call_goes_with_the_answer_that_it_led_to(make):
    long = {"messages": [*ASKED["messages"], *CALLED["messages"]], "tools": CALLED["tools"]}
    long["messages"][-1] = {"role": "assistant", "content": "c" * 200}
    (row,) = make(long, on_long_row="drop_turns", template=QWEN_2, max_tokens=400)
    assert [turn["content"] for turn in row["messages"]] == [turn["content"] for turn in ASKED["messages"]]


def test_calls_and_tools_stand_in_the_example_and_in_what_a_model_reads(make, tmp_path, toy):
    (row,) = make(CALLED, template=QWEN_2, max_tokens=400)
    assert json.loads(row["tools"]) == CALLED["tools"]
    assert json.loads(row["messages"][1]["details"]) == {"tool_calls": [CALL]}
    assert json.loads(row["messages"][2]["details"]) == {"tool_call_id": "c1"}
    model = replace(toy, chat_template=str(tmp_path / "own.jinja"))
    found = encode_rows([row], model)
    assert (found.sizes[0], found.answer_tokens[0]) == (row["tokens"], row["response_tokens"])


SYSTEM = chat("system:Be kind.", "Hi", "Hello")
REFUSED = "not written by the template: the chat template refuses the conversation: a system message has no place here"
WAY_OUT = "; set examples.system: first_user, or drop, for a template without system messages"


def test_a_template_that_refuses_a_system_message_is_quoted_with_the_way_out(make, tmp_path):
    with pytest.raises(ExamplesError, match=re.escape(f"first v1/chats.jsonl:1: {REFUSED}{WAY_OUT}; mend them")):
        make(SYSTEM, ASKED, template=GEMMA)
    assert len(make(SYSTEM, ASKED, template=GEMMA, on_bad_row="reject")) == 1
    assert [row["reason"] for row in read_rejects(tmp_path)] == [REFUSED + WAY_OUT]


@pytest.mark.parametrize(("how", "first"), [("first_user", "Be kind.\n\nHi"), ("drop", "Hi")])
def test_a_system_message_may_stand_in_the_first_question_or_nowhere(make, how, first):
    (row,) = make(SYSTEM, template=GEMMA, system=how)
    assert [turn["content"] for turn in row["messages"]] == [first, "Hello"]
    (same,) = make(chat(first, "Hello"), template=GEMMA)
    assert row["id"] == same["id"]


def test_what_a_template_refuses_otherwise_names_no_setting_that_would_not_help(make, tmp_path):
    picky = "{% if messages | length > 2 %}{{ raise_exception('one exchange only') }}{% endif %}"
    plain = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<|end|>{% endfor %}"
    asked = "{% if add_generation_prompt %}<assistant>{% endif %}"
    rows = make(ASKED, chat("a", "b"), template=picky + plain + asked, on_bad_row="reject")
    assert len(rows) == 1
    (reject,) = read_rejects(tmp_path)
    assert reject["reason"].endswith("the chat template refuses the conversation: one exchange only")


def test_conversations_are_no_rows_of_the_published_wording(make, tmp_path, toy):
    model = replace(toy, template="delift")
    assert len(make(ASKED, chat("a", "b"), model=model, on_bad_row="reject")) == 1
    (reject,) = read_rejects(tmp_path)
    assert reject["reason"].startswith("not written by the template: template delift writes one exchange of prompt and")
    assert "models.chat_template: FILE" in reject["reason"]


def test_rows_of_which_a_template_makes_several_sequences_are_counted(make, tmp_path):
    (row, _) = make(ASKED, chat("a", "b"), template=QWEN_3)
    assert read_metrics(tmp_path)["split_rows"] == 1
    thought = len("<think>\n\n</think>\n\n")
    assert row["response_tokens"] == len("first answer<|im_end|>second answer<|im_end|>") + 2 * thought


def test_a_split_row_must_fit_with_its_longest_sequence(make):
    pieces = [
        "<|im_start|>user\na question<|im_end|>\n<|im_start|>assistant\nfirst answer<|im_end|>\n",
        "<|im_start|>user\nand then<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nsecond answer<|im_end|>",
    ]
    longest = len("".join(pieces))
    for max_tokens, count in ((longest, 1), (longest - 1, 0)):
        rows = make(ASKED, template=QWEN_3, max_tokens=max_tokens, on_long_row="reject")
        assert len(rows) == count


KEYED = [row | {"key": place, "who": {"team": "a", "seen": None}} for place, row in enumerate(ROWS)]


@pytest.mark.parametrize("write", [None, write_parquet])
def test_columns_that_travel_along_stand_in_an_object_of_json(tmp_path, toy, write):
    (tmp_path / "raw/v1").mkdir(parents=True)
    if write is not None:
        write(tmp_path / "raw/v1", KEYED)
    table = write_toy(tmp_path, toy, KEYED if write is None else None, keep=["key", "who", "topic"])
    found = [json.loads(kept) for kept in table["kept"].to_pylist()]
    assert found == [{name: row[name] for name in ("key", "who", "topic")} for row in KEYED]
    plain = write_toy(tmp_path, toy)
    assert plain["kept"].null_count == 24
    assert plain["id"].equals(table["id"])


def test_columns_of_csv_travel_along_as_text(tmp_path, toy):
    (tmp_path / "raw/v1").mkdir(parents=True)
    write_csv(tmp_path / "raw/v1", KEYED)
    table = write_toy(tmp_path, toy, keep=["key"])
    assert table["kept"][3].as_py() == '{"key": "3"}'


def test_a_column_is_null_in_files_that_have_none(make):
    rows = make(ASKED, chat("a", "b", key="é"), keep=["key"])
    assert [row["kept"] for row in rows] == ['{"key": null}', '{"key": "é"}']
