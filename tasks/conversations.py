"""Examples as their table holds them, turned into conversations and into the tokens that a model reads."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tamis.examples.conversations import Conversation, Message
from tamis.language import chat_templates, delift, encoding, prefixes, rendering
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding
from tamis.language.rendering import encode_conversations
from tasks import models

WRITERS = (chat_templates, delift, encoding, prefixes, rendering)  # modules that the tokens of a row depend on


def read_conversation(row: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a row of the examples."""
    return Conversation(tuple(Message(**message) for message in row["messages"]), row["tools"])


def write_conversation(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as columns of the examples: what a stage reads, and two texts for people."""
    place = conversation.learnt[-1]
    asked = [one.content for one in conversation.messages[:place] if one.role == "user"]
    return {
        "prompt": asked[-1] if asked else "",
        "response": conversation.messages[place].content,
        "messages": [vars(message) for message in conversation.messages],
        "tools": conversation.tools,
    }


@lru_cache(maxsize=4)
def open_template(model: models.ModelChoice) -> Template:
    """Return how conversations are written for a model."""
    return Template(models.tokenizer(model), model.template, json.loads(model.template_arguments))


def encode_rows(rows: Sequence[Mapping[str, Any]], model: models.ModelChoice) -> Encoding:
    """Return rows of the examples as the tokens that a model reads."""
    return encode_conversations(open_template(model), [read_conversation(row) for row in rows])
