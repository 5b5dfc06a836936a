"""The published wording of DELIFT: an instruction, a query, its response; a demo takes the instruction's place.

**Source**: DELIFT's published code (agarwalishika/DELIFT @ b282b9f); several demos as in its in-context learner (the
same @ 1612186, `inference_icl.py`). Differs: parts are tokenised apart; that numbers the examples, most similar first,
and writes no instruction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.encoding import TokenSequence

BASE = "Instruction: Please generate a response to the following query.\n\n\nQuery: "
DEMO = (  # then the demo's prompt, a line end, its response, and QUERY
    "Instruction:\nUse the following example as a guide to answer the query in the same format and style, "
    "providing a clear and concise response.\n\n\nExample:\n"
)
MORE = "\n\n\nExample:\n"  # between demos
QUERY = "\n\n\nQuery:\n"


def read_exchange(conversation: Conversation) -> tuple[str, str]:
    """Return prompt and response of a conversation of one exchange; its system message stands before the prompt.

    Raises:
        TemplateError: it is anything else.
    """
    if not conversation.learnt:
        raise TemplateError("no turn of it is learnt; mark an assistant's turn as learnt or leave it out")
    roles = [message.role for message in conversation.messages]
    system, rest = (roles[0], roles[1:]) if roles[:1] == ["system"] else ("", roles)
    details = conversation.tools or any(message.details for message in conversation.messages)
    if rest != ["user", "assistant"] or conversation.learnt != [len(roles) - 1] or details:
        what = "tools or reasoning" if details and rest == ["user", "assistant"] else ", ".join(roles[:6])
        raise TemplateError(
            f"template delift writes one exchange of prompt and response, and here are {what}; "
            "set models.template: chat, with models.chat_template: FILE where the tokenizer has no chat template"
        )
    prompt, response = (message.content for message in conversation.messages[-2:])
    instruction = conversation.messages[0].content if system else ""
    return f"{instruction}\n\n{prompt}" if instruction else prompt, response


def encode_exchanges(template: Template, conversations: Sequence[Conversation]) -> tuple[list[TokenSequence], int]:
    """Return the sequence of each conversation, base + query + response, and the length of the base, their head."""
    pairs = [_hide_exchange(template, conversation) for conversation in conversations]
    base, end = encode_prefix(template, []), template.tokenizer.eos_token
    queries = template.control.tokenise([f"{prompt}\n{end}" for prompt, _ in pairs])
    responses = template.control.tokenise([response + end for _, response in pairs])
    sequences = [
        TokenSequence(
            np.concatenate([base, query, response]),
            np.arange(len(base) + len(query) + len(response)) >= len(base) + len(query),
        )
        for query, response in zip(queries, responses, strict=True)
    ]
    return sequences, len(base)


def encode_prefix(template: Template, demos: Sequence[Conversation]) -> Int[np.ndarray, " token"]:
    """Return what stands before a query: demos in the order given, or the instruction without any."""
    shown = MORE.join("\n".join(_hide_exchange(template, demo)) for demo in demos)
    text = f"{DEMO}{shown}{QUERY}" if demos else BASE
    return np.concatenate([_start(template.tokenizer), *template.control.tokenise([text])])


def encode_question(template: Template, conversation: Conversation) -> Int[np.ndarray, " token"]:
    """Return base and query."""
    prompt, _ = _hide_exchange(template, conversation)
    query = template.control.tokenise([f"{prompt}\n{template.tokenizer.eos_token}"])
    return np.concatenate([encode_prefix(template, []), *query])


def _hide_exchange(template: Template, conversation: Conversation) -> tuple[str, str]:
    """Return prompt and response, in which the texts of control tokens are hidden."""
    prompt, response = read_exchange(conversation)
    return template.control.hide(prompt), template.control.hide(response)


def _start(tokenizer: Any) -> Int[np.ndarray, " token"]:
    """Return the beginning-of-sequence id where the tokenizer puts one before any text by itself."""
    ids = tokenizer("a").input_ids
    return np.array(ids[:1] if ids and ids[0] == tokenizer.bos_token_id else [], np.int32)
