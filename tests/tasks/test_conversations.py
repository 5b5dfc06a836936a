"""Conversations go through their table unharmed, and are written by the model's template."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from worlds.chat_templates import random_conversations

from tamis.examples.conversations import Conversation, Message, make_exchange
from tamis.language.chat_templates import TemplateError
from tasks import models
from tasks.artifacts import schemas
from tasks.conversations import read_conversation, write_conversation
from tasks.tokens import encode_rows, open_template

COLUMNS = pa.schema([schemas.EXAMPLES.field(name) for name in ("prompt", "response", "messages", "tools")])
CALL = '{"tool_calls": [{"function": {"arguments": {}, "name": "time"}, "type": "function"}]}'
TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "What time is it?"),
        Message("assistant", "", learnt=True, details=CALL),
        Message("tool", "noon"),
        Message("assistant", "  Noon.\n", learnt=True),
        Message("user", "Thanks."),
        Message("assistant", "Bye."),
    ),
    '[{"name": "time"}]',
)


def pass_through(conversation: Conversation) -> dict:
    """Return a conversation as a row that was in a table."""
    (row,) = pa.Table.from_pylist([write_conversation(conversation)], schema=COLUMNS).to_pylist()
    return row


@settings(deadline=None)
@given(random_conversations())
def test_a_conversation_comes_out_of_a_table_as_it_went_in(conversation):
    assert read_conversation(pass_through(conversation)) == conversation


def test_tools_and_calls_come_out_as_they_went_in():
    assert read_conversation(pass_through(TALK)) == TALK


def test_people_are_shown_the_last_learnt_turn_and_the_question_before_it():
    row = write_conversation(TALK)
    assert (row["prompt"], row["response"]) == ("What time is it?", "  Noon.\n")
    row = write_conversation(make_exchange("Hi", "Hello", "Be kind."))
    assert (row["prompt"], row["response"]) == ("Hi", "Hello")


def test_a_turn_before_which_nobody_asks_has_an_empty_prompt():
    assert write_conversation(Conversation((Message("tool", "a"), Message("assistant", "b", True))))["prompt"] == ""


def test_rows_are_encoded_by_the_template_of_their_model(toy):
    later = Conversation((*TALK.messages[:2], *TALK.messages[4:]))
    rows = [pass_through(make_exchange("Hi", "Hello")), pass_through(later)]
    found = encode_rows(rows, toy)
    whole = models.tokenizer(toy)("<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>\n", add_special_tokens=False)
    assert found.tokens[: found.starts[1]].tolist() == whole["input_ids"]
    assert found.answer_tokens.tolist() == [6, 9]
    assert len(found) == 2


def test_what_the_template_is_given_besides_the_messages_is_passed(toy, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{{ day }}\n{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}")
    model = replace(toy, chat_template=str(own), template_arguments='{"day": "May 4"}')
    template = open_template(model)
    assert (template.name, dict(template.arguments)) == ("chat", {"day": "May 4"})
    found = encode_rows([pass_through(make_exchange("Hi", "Hello"))], model)
    assert models.tokenizer(model).decode(found.tokens).startswith("May 4\n<|user|>Hi<|end|>")


def test_rows_that_a_template_cannot_write_are_refused(toy):
    with pytest.raises(TemplateError, match=r"1 of 2 conversations cannot be written, first places \[1\]; .*delift"):
        encode_rows([pass_through(make_exchange("Hi", "Hello")), pass_through(TALK)], replace(toy, template="delift"))


def test_no_row_is_no_token(toy):
    assert np.array_equal(encode_rows([], toy).tokens, [])
