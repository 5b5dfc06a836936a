"""Lists of messages, as OpenAI, ShareGPT and their likes write them, become the messages of a conversation.

Symbols: an entry is a message as it stands in a row; messages are counted from 1 where an error names them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from tamis.examples.conversations import DETAILS, ROLES, Conversation, Message
from tamis.examples.values import RowError, dump_json, read_json, read_text

ROLE_KEYS = ("role", "from", "author", "speaker")
TEXT_KEYS = ("content", "value", "text")
ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "developer": "system",
}
NOTHING = (None, "", [])  # values of a detail that is not there
REASONING = ("reasoning_content", "reasoning", "thinking")  # what comes before an answer, by the first that is there
LEARN = ("all", "last")
TRAINED_WHERE_TRUE = ("weight", "train", "training")  # OpenAI and Mistral; axolotl
TRAINED_WHERE_FALSE = ("mask", "masked")  # torchtune
CALLS_IN_TEXT = ("<tool_call>", "<functioncall>", "<function=", "[TOOL_CALLS]", "<|python_tag|>")


def find_entries(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the entries of a list of messages, of a JSON text of one, or of columns of roles and contents.

    Returns:
        None where the value is none of these.

    >>> find_entries('[{"role": "user", "content": "Hi"}]')
    [{'role': 'user', 'content': 'Hi'}]
    >>> find_entries({"from": ["human", "gpt"], "value": ["Hi", "Hello"]})[1]
    {'from': 'gpt', 'value': 'Hello'}
    >>> find_entries("Hi") is None
    True
    """
    try:
        found = read_json(value, "messages")
    except RowError:
        return None
    if isinstance(found, Mapping) and found and all(isinstance(column, list) for column in found.values()):
        if len({len(column) for column in found.values()}) > 1:
            return None
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    if isinstance(found, list | tuple) and all(isinstance(entry, Mapping) for entry in found):
        return list(found)
    return None


def read_entries(value: Any, field: str) -> list[Message]:
    """Return the messages of a field that holds a list of them.

    Raises:
        RowError: no such list; a message that is none.
    """
    entries = find_entries(value)
    if entries is None:
        read_json(value, f"field {field!r}")  # says where a text stops being JSON
        raise RowError(
            f"not a list of messages: the field {field!r} holds {type(value).__name__}, not a list of role and content"
        )
    return [read_message(entry, f"message {place} of {field!r}") for place, entry in enumerate(entries, start=1)]


def read_message(entry: Mapping[str, Any], place: str) -> Message:
    """Return a message; an assistant's turn is marked as learnt where the entry itself does not say otherwise.

    Args:
        entry: role and content under one of ROLE_KEYS and TEXT_KEYS; of DETAILS, what is not empty is kept.
        place: what an error calls it.

    Raises:
        RowError: an unknown role; no text; content that is no text; a weight that is neither 0 nor 1.

    >>> read_message({"from": "gpt", "value": "Hello"}, "message 1")
    Message(role='assistant', content='Hello', learnt=True, details='')
    >>> read_message({"role": "assistant", "content": "Hello", "weight": 0}, "message 1").learnt
    False
    """
    name = _read_role(entry, place)
    role = ALIASES.get(name, name)
    details = {key: entry[key] for key in DETAILS if entry.get(key) not in NOTHING}
    reasoning = next((entry[key] for key in REASONING if entry.get(key) not in NOTHING), None)
    details |= {} if reasoning is None else {"reasoning_content": reasoning}
    calls = _read_calls(entry, name, place)
    if calls:
        details["tool_calls"] = calls
    content = "" if name == "function_call" else _read_content(entry, place, optional=bool(calls) or role == "tool")
    for key in details.keys() - {"tool_calls"}:
        details[key] = read_text(details[key], f"{key} of {place}")
    if content is None:
        raise RowError(f"missing content: {place} ({role}) has no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}")
    learnt = role == "assistant" and _may_learn(entry, place)
    return Message(role, content, learnt, dump_json(details, f"details of {place}", sort=True) if details else "")


def finish(
    messages: Sequence[Message], *, learn: Literal["all", "last"], tools: str = ""
) -> tuple[Conversation, str | None]:
    """Return the conversation of some messages with the turns marked that are learnt, and what there is to say of it.

    What stands after the last turn of the assistant can be learnt by nobody and is left out, with a note. Turns before
    the first message of a user answer nothing and are never learnt, turns that come unmarked neither.

    Args:
        messages: of which those marked may be learnt (`read_message`).
        learn: `all` | `last`: of the marked turns, all, or the one that is the last turn of all.
        tools: as `Conversation.tools`.

    Raises:
        RowError: no learnt turn; one without text and tool calls; a user's message without text; a tool's answer
            without a call before it.

    >>> turns = [Message("user", "Hi"), Message("assistant", "Hello", learnt=True), Message("user", "Bye")]
    >>> finish(turns, learn="all")[1]
    'ends with a user turn, which is left out'
    """
    _check_tool_answers(messages)
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        roles = ", ".join(message.role for message in messages[:6]) or "none"
        raise RowError(f"no learnt turn: no message is the assistant's; the roles are {roles}")
    first = next((place for place, message in enumerate(messages) if message.role == "user"), len(messages))
    kept = [
        replace(message, learnt=message.learnt and place > first and (learn == "all" or place == answers[-1]))
        for place, message in enumerate(messages[: answers[-1] + 1])
    ]
    if not any(message.learnt for message in kept):
        raise RowError(f"no learnt turn: {_explain(answers, first, learn)}")
    _check_filled(kept)
    over = messages[len(kept) :]
    return Conversation(tuple(kept), tools), f"ends with a {over[-1].role} turn, which is left out" if over else None


def _explain(answers: Sequence[int], first: int, learn: str) -> str:
    """Return why none of some answers is learnt."""
    if answers[-1] < first:
        return "no turn of the assistant stands after a user's message"
    if learn == "last":
        return "weight, train or mask leaves out the last turn, and examples.learn is last"
    return f"weight, train or mask leaves out every turn of the assistant after the user's, {len(answers)} in all"


def _check_filled(messages: Sequence[Message]) -> None:
    for place, message in enumerate(messages, start=1):
        if message.content.strip():
            continue
        if message.role == "user":
            raise RowError(f"empty prompt: message {place} (user) holds no text")
        if message.learnt and not _read_details(message).get("tool_calls"):
            raise RowError(f"empty response: message {place} (assistant) holds neither text nor a tool call")


def _read_role(entry: Mapping[str, Any], place: str) -> str:
    role = next((entry[key] for key in ROLE_KEYS if entry.get(key) is not None), None)
    name = role.strip().lower() if isinstance(role, str) else None
    if name is None or ALIASES.get(name, name) not in ROLES:
        known = ", ".join((*ROLES, *ALIASES))
        has = f"has {role!r}" if role is not None else f"has none of {', '.join(ROLE_KEYS)}"
        raise RowError(f"unknown role: {place} {has}; known are {known}")
    return name


def _read_content(entry: Mapping[str, Any], place: str, *, optional: bool) -> str | None:
    content = next((entry[key] for key in TEXT_KEYS if entry.get(key) is not None), None)
    if content is None:
        return "" if optional else None
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        return read_text(content, f"content of {place}")
    others = [part.get("type") for part in content if part.get("type") != "text"]
    if others:
        raise RowError(f"content that is no text: {place} holds a part of type {others[0]!r}; only text is read")
    return "".join(read_text(part.get("text"), f"content of {place}") or "" for part in content)


def _read_calls(entry: Mapping[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    """Return the tool calls of an entry in one form, their arguments as given."""
    if name == "function_call":
        found = read_json(next((entry[key] for key in TEXT_KEYS if entry.get(key) is not None), None), place)
        calls = found if isinstance(found, list) else [found]
        wrapped = [{"type": "function", "function": call} for call in calls]
    elif entry.get("function_call") is not None:
        calls = [read_json(entry["function_call"], f"function_call of {place}")]
        wrapped = [{"type": "function", "function": call} for call in calls]
    else:
        calls = wrapped = read_json(entry.get("tool_calls"), f"tool_calls of {place}") or []
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError(f"tool calls that are none: {place} holds something other than a list of calls with their names")
    if not all(_is_named(call) for call in wrapped):
        raise RowError(f"tool calls that are none: {place} holds a call without the name of a function")
    return [_drop_nulls({key: _drop_nulls(value) for key, value in call.items()}) for call in wrapped]


def _is_named(call: Mapping[str, Any]) -> bool:
    """Return whether a call names its function, in an object of its own or beside the arguments."""
    function = call["function"] if call.get("function") is not None else call
    name = function.get("name") if isinstance(function, Mapping) else None
    return isinstance(name, str) and bool(name.strip())


def _drop_nulls(value: Any) -> Any:
    """Return an object without its nulls, by which columns of Arrow stand for what is absent."""
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, Mapping) else value


def _may_learn(entry: Mapping[str, Any], place: str) -> bool:
    keys = (*TRAINED_WHERE_TRUE, *TRAINED_WHERE_FALSE)
    given = {key: entry[key] for key in keys if entry.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"unknown weight: {place} has {key} {value!r}; known are 0, 1, true and false")
    return all(bool(value) == (key in TRAINED_WHERE_TRUE) for key, value in given.items())


def _check_tool_answers(messages: Sequence[Message]) -> None:
    """Check that each tool's answer has a call before it: by its id, or else in the assistant's turn just before."""
    ids: set[str] = set()
    called = False
    for place, message in enumerate(messages, start=1):
        details = _read_details(message)
        if message.role == "tool":
            asked = details.get("tool_call_id")
            if not (asked in ids if asked is not None and ids else called):
                lacks = "follows no tool call" if asked is None else f"answers the call {asked!r}, which nobody made"
                raise RowError(f"tool answer without a call: message {place} (tool) {lacks}")
            continue
        calls = details.get("tool_calls", [])
        ids.update(_list_ids(calls))
        written = message.role == "assistant" and any(mark in message.content for mark in CALLS_IN_TEXT)
        called = bool(calls) or written


def _list_ids(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (str(call["id"]) for call in calls if call.get("id") is not None)


def _read_details(message: Message) -> dict[str, Any]:
    return json.loads(message.details) if message.details else {}
