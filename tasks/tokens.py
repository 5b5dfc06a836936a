"""Examples as their table holds them, turned into the tokens that a model reads."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tamis.language import chat_templates, delift, encoding, prefixes, rendering
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding
from tamis.language.rendering import encode_conversations
from tasks import models
from tasks.conversations import read_conversation

WRITERS = (chat_templates, delift, encoding, prefixes, rendering)  # modules that the tokens of a row depend on


@lru_cache(maxsize=4)
def open_template(model: models.ModelChoice) -> Template:
    """Return how conversations are written for a model."""
    return Template(models.tokenizer(model), model.template, json.loads(model.template_arguments))


def encode_rows(rows: Sequence[Mapping[str, Any]], model: models.ModelChoice) -> Encoding:
    """Return rows of the examples as the tokens that a model reads."""
    return encode_conversations(open_template(model), [read_conversation(row) for row in rows])
