"""Conversations as other programs read them, a JSON object each, and what of them such an object cannot say.

**Source**: TRL, docs/source/dataset_formats.md and sft_trainer.md (conversational language modeling and
prompt-completion); LLaMA-Factory, data/README.md (sharegpt format) and src/llamafactory/data/converter.py @ 02e2fb3;
axolotl, docs/dataset-formats/conversation.qmd @ 08d99fe (chat_template, per-turn training flags).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from tamis.examples.conversations import Conversation, Message, as_messages, as_tools

SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
SAID, ASKED = ("gpt", "function_call"), ("human", "observation")
UNLEARNT = "turns of the assistant that are not to be learnt stand here as all others do"
UNORDERED = "questions and answers do not alternate, so that LLaMA-Factory skips the row"
TEXT_BESIDE_CALL = "text beside a tool call is left out"
REASONING = "reasoning apart from the answer is left out"
LATE_SYSTEM = "a system message stands after the first message, where LLaMA-Factory takes none"

Write = Callable[[Conversation], dict[str, Any]]


def make_writer(layout: str, *, parted: bool = False) -> Write:
    """Return how conversations are written in a layout.

    Args:
        layout: trl | axolotl | sharegpt | llamafactory.
        parted: TRL's rows are prompts and completions (`are_parted`).
    """
    if layout == "trl":
        return partial(write_trl, parted=parted)
    return write_axolotl if layout == "axolotl" else write_sharegpt


def are_parted(conversations: Iterable[Conversation]) -> bool:
    """Return whether of all conversations the last message is learnt, and nothing else.

    They can be prompts and completions, of which TRL trains on the completion by default.
    """
    return all(one.learnt == [len(one.messages) - 1] for one in conversations)


def write_trl(conversation: Conversation, *, parted: bool) -> dict[str, Any]:
    """Return a row of TRL: messages, or with `parted` a prompt and a completion, each a list of messages.

    >>> from tamis.examples.conversations import make_exchange
    >>> write_trl(make_exchange("Hi", "Hello"), parted=True)["completion"]
    [{'role': 'assistant', 'content': 'Hello'}]
    """
    messages = as_messages(conversation)
    row = {"prompt": messages[:-1], "completion": messages[-1:]} if parted else {"messages": messages}
    return row | _add_tools(as_tools(conversation))


def write_axolotl(conversation: Conversation) -> dict[str, Any]:
    """Return a row of axolotl: messages, of which each says whether it is trained on.

    >>> from tamis.examples.conversations import make_exchange
    >>> [one["train"] for one in write_axolotl(make_exchange("Hi", "Hello"))["messages"]]
    [False, True]
    """
    pairs = zip(as_messages(conversation), conversation.messages, strict=True)
    return {"messages": [one | {"train": message.learnt} for one, message in pairs]} | _add_tools(
        as_tools(conversation)
    )


def write_sharegpt(conversation: Conversation) -> dict[str, Any]:
    """Return a row of ShareGPT as LLaMA-Factory reads it: a first system message and the tools stand beside the turns.

    >>> from tamis.examples.conversations import make_exchange
    >>> write_sharegpt(make_exchange("Hi", "Hello", "Be kind."))["conversations"]
    [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]
    """
    first = conversation.messages[0]
    system = {"system": first.content} if first.role == "system" else {}
    turns = [_write_turn(message) for message in conversation.messages[len(system) :]]
    tools = {"tools": conversation.tools} if conversation.tools else {}
    return {"conversations": turns} | system | tools


def count_gaps(layout: str, conversations: Iterable[Conversation], *, parted: bool = False) -> dict[str, int]:
    """Return what a layout cannot say of conversations, with how many of them are meant.

    Args:
        layout: as of `make_writer`.
        conversations: those that are written.
        parted: TRL's rows are prompts and completions.
    """
    return dict(Counter(gap for one in conversations for gap in _find_gaps(layout, one, parted)))


def describe_files(layout: str, rows: Iterable[Mapping[str, Any]], name: str, file: str) -> dict[str, str]:
    """Return the files that a program wants beside the rows, by their names.

    Args:
        layout: as of `make_writer`.
        rows: as they are written.
        name: of the data set.
        file: that holds the rows.
    """
    if layout == "axolotl":
        return {"dataset.yaml": AXOLOTL.replace("FILE", file)}
    if layout != "llamafactory":
        return {}
    there = {key for row in rows for key in row}
    columns = {"messages": "conversations"} | {key: key for key in ("system", "tools") if key in there}
    described = {name: {"file_name": file, "formatting": "sharegpt", "columns": columns}}
    return {"dataset_info.json": json.dumps(described, indent=2) + "\n"}


AXOLOTL = """datasets:
  - path: FILE
    ds_type: json
    type: chat_template
    field_messages: messages
    message_property_mappings:
      role: role
      content: content
    roles_to_train: []
    train_on_eos: turn
    message_field_training: train
"""


def _add_tools(tools: list[Any] | None) -> dict[str, Any]:
    return {} if tools is None else {"tools": tools}


def _write_turn(message: Message) -> dict[str, str]:
    calls = _read_details(message).get("tool_calls")
    if not calls:
        return {"from": SPEAKERS[message.role], "value": message.content}
    functions = [_write_call(call.get("function", call)) for call in calls]
    value = functions[0] if len(functions) == 1 else functions
    return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}


def _write_call(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as an object, which OpenAI writes as a text of JSON."""
    arguments = function.get("arguments", {})
    with suppress(ValueError):  # a text that is no JSON stays one
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"name": function.get("name"), "arguments": arguments}


def _find_gaps(layout: str, conversation: Conversation, parted: bool) -> Iterator[str]:
    answers = [one for one in conversation.messages if one.role == "assistant"]
    if layout != "axolotl" and not parted and not all(one.learnt for one in answers):
        yield UNLEARNT
    if layout not in ("sharegpt", "llamafactory"):
        return
    details = [_read_details(one) for one in conversation.messages]
    pairs = list(zip(conversation.messages, details, strict=True))
    if any(one.content.strip() and known.get("tool_calls") for one, known in pairs):
        yield TEXT_BESIDE_CALL
    if any("reasoning_content" in known for known in details):
        yield REASONING
    if any(one.role == "system" for one in conversation.messages[1:]):
        yield LATE_SYSTEM
    if layout == "llamafactory":
        turns = [turn["from"] for turn in write_sharegpt(conversation)["conversations"]]
        ordered = all(turn in (SAID if place % 2 else ASKED) for place, turn in enumerate(turns))
        if not ordered or len(turns) % 2:
            yield UNORDERED


def _read_details(message: Message) -> dict[str, Any]:
    return json.loads(message.details) if message.details else {}
