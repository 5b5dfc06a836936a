"""STUB, replaced by branch rendering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tamis.examples.conversations import Conversation, transcribe
from tamis.language import templates
from tamis.language.encoding import Encoding


@dataclass(frozen=True, eq=False)
class Template:
    tokenizer: Any
    name: str = "chat"
    arguments: Mapping[str, Any] = field(default_factory=dict)


def encode_conversations(template: Template, conversations: Sequence[Conversation]) -> Encoding:
    pairs = [transcribe(one) for one in conversations]
    return templates.encode(template.tokenizer, template.name, [p for p, _ in pairs], [r for _, r in pairs])


def encode_prefix(template: Template, demos: Sequence[Conversation], target: Conversation) -> np.ndarray:
    found = templates.encode_demos(template.tokenizer, template.name, [transcribe(one) for one in demos])
    return np.array(found, np.int32)


def encode_question(template: Template, conversation: Conversation) -> np.ndarray:
    (row,) = encode_conversations(template, [conversation]).row(0)
    return row.tokens[: int(np.argmax(row.answers))]
