"""Examples as their table holds them, turned into conversations and into the tokens that a model reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from tamis.examples.conversations import Conversation, make_exchange
from tamis.language.encoding import Encoding
from tamis.language.rendering import Template, encode_conversations
from tamis.language.templates import join_instruction
from tasks import models


def read_conversation(row: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a row of the examples."""
    return make_exchange(join_instruction(row["instruction"], row["prompt"]), row["response"])


def open_template(model: models.ModelChoice) -> Template:
    """Return how conversations are written for a model."""
    return Template(models.tokenizer(model), model.template)


def encode_rows(rows: Sequence[Mapping[str, Any]], model: models.ModelChoice) -> Encoding:
    """Return rows of the examples as the tokens that a model reads."""
    return encode_conversations(open_template(model), [read_conversation(row) for row in rows])
