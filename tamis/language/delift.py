"""The published wording of DELIFT: an instruction, a query, its response; a demo takes the instruction's place.

**Source**: DELIFT's published code (agarwalishika/DELIFT @ b282b9f); several demos as in its in-context learner (the
same @ 1612186, `inference_icl.py`). Differs: after a demo the query is tokenised apart, so that all targets share the
demo's tokens; that learner numbers the examples, most similar first, and writes no instruction.

Without a demo the instruction and the query are tokenised together, as the published code does: no token ends between
"Query: " and the query, and apart the distance would move by up to 0.05. So such a row has no head.
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


def encode_exchanges(template: Template, conversations: Sequence[Conversation]) -> list[TokenSequence]:
    """Return the sequence of each conversation without a demo: instruction and query as one text, and the response."""
    pairs = [_hide_exchange(template, conversation) for conversation in conversations]
    asked = template.control.tokenise([BASE + _write_query(template, prompt) for prompt, _ in pairs])
    start = _start(template.tokenizer)
    return _join([np.concatenate([start, one]) for one in asked], _encode_responses(template, pairs))


def encode_tails(template: Template, conversations: Sequence[Conversation]) -> list[TokenSequence]:
    """Return what follows a demo in the sequence of each conversation: the query, and the response."""
    pairs = [_hide_exchange(template, conversation) for conversation in conversations]
    queries = template.control.tokenise([_write_query(template, prompt) for prompt, _ in pairs])
    return _join(queries, _encode_responses(template, pairs))


def encode_prefix(template: Template, demos: Sequence[Conversation]) -> Int[np.ndarray, " token"]:
    """Return what stands before a query: demos in the order given. Without any a row has no head."""
    if not demos:
        return np.empty(0, np.int32)
    shown = MORE.join("\n".join(_hide_exchange(template, demo)) for demo in demos)
    text = f"{DEMO}{shown}{QUERY}"
    return np.concatenate([_start(template.tokenizer), *template.control.tokenise([text])])


def encode_question(
    template: Template, conversation: Conversation, *, shown: bool = False
) -> Int[np.ndarray, " token"]:
    """Return instruction and query; or the query alone, which follows a demo."""
    prompt, _ = _hide_exchange(template, conversation)
    query = _write_query(template, prompt)
    if shown:
        return template.control.tokenise([query])[0]
    return np.concatenate([_start(template.tokenizer), *template.control.tokenise([BASE + query])])


def _write_query(template: Template, prompt: str) -> str:
    return f"{prompt}\n{template.tokenizer.eos_token}"


def _encode_responses(template: Template, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    return template.control.tokenise([response + template.tokenizer.eos_token for _, response in pairs])


def _join(contexts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> list[TokenSequence]:
    return [
        TokenSequence(np.concatenate([context, response]), np.arange(len(context) + len(response)) >= len(context))
        for context, response in zip(contexts, responses, strict=True)
    ]


def _hide_exchange(template: Template, conversation: Conversation) -> tuple[str, str]:
    """Return prompt and response, in which the texts of control tokens are hidden."""
    prompt, response = read_exchange(conversation)
    return template.control.hide(prompt), template.control.hide(response)


def _start(tokenizer: Any) -> Int[np.ndarray, " token"]:
    """Return the beginning-of-sequence id where the tokenizer puts one before any text by itself."""
    ids = tokenizer("a").input_ids
    return np.array(ids[:1] if ids and ids[0] == tokenizer.bos_token_id else [], np.int32)
