"""What one row of raw data is: the formats that are read, how they are recognised, and the conversation in a row.

Symbols: a part is what a value is to an example (PARTS), a field what the row calls it. Formats of one exchange say
which field each part stands in; the others hold a list of messages.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tamis.examples.conversations import Conversation, Message
from tamis.examples.messages import LEARN, ROLE_KEYS, find_entries, finish, read_entries
from tamis.examples.values import RowError, dump_json, read_filled, read_json, read_text

PARTS = ("topic", "source", "planted", "system", "instruction", "prompt", "response", "tests", "messages", "tools")
EXCHANGE = ("instruction", "prompt", "response")  # the parts of one exchange
FORMATS = ("messages", "sharegpt", "alpaca", "dolly", "prompt_completion", "prompt_response", "question_answer")
LISTS = ("messages", "sharegpt")  # formats that hold a list of messages
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
LABELS = ("topic", "source", "planted")  # read where a row has them, always, and where they hold text
EVERYWHERE = {name: name for name in ("system", "tools", *LABELS)}  # likewise, whatever they hold
PLAIN = {  # format of one exchange -> part -> field
    "alpaca": {"instruction": "instruction", "prompt": "input", "response": "output", "history": "history"},
    "dolly": {"instruction": "instruction", "prompt": "context", "response": "response", "topic": "category"},
    "prompt_completion": {"prompt": "prompt", "response": "completion"},
    "prompt_response": {"prompt": "prompt", "response": "response"},
    "question_answer": {"prompt": "question", "response": "answer"},
}
SHOWN = 20  # fields that an error names


@dataclass(frozen=True)
class Reading:
    """How the rows of a file are read."""

    format: str | None  # one of FORMATS; None where examples.fields alone says it
    fields: Mapping[str, str]  # part -> field; of them, rows may lack the optional ones
    asked: tuple[str, ...] = ()  # parts that examples.fields maps
    learn: str = "all"  # which turns of the assistant are learnt: all | last


@dataclass(frozen=True)
class Parsed:
    """An example as it stands in a row."""

    conversation: Conversation
    topic: str
    source: str | None
    planted: str | None  # in a word, what is known to be wrong with the row; None: it is an ordinary one
    tests: str | None
    note: str | None = None  # what was left out of the row, for people


def check_fields(fields: Mapping[str, str], format: str | None = None) -> None:
    """Check that a field mapping can be followed.

    Args:
        fields: part -> field, "" for one that is not to be read; what a format says of other parts stands.
        format: the format that it is to change, where one is set.

    Raises:
        ValueError: an unknown part; a list of messages and an exchange at once.

    >>> check_fields({"messages": "conversation", "topic": "subject"})
    """
    unknown = sorted(set(fields) - set(PARTS))
    if unknown:
        raise ValueError(f"examples.fields maps unknown parts {unknown}; an example has {', '.join(PARTS)}")
    plain = [part for part in EXCHANGE if part in fields]
    if "messages" in fields and plain:
        raise ValueError(f"examples.fields maps messages and {plain}; give messages, or prompt and response")
    clash = ["messages"] if "messages" in fields and format in PLAIN else plain if format in LISTS else []
    if clash:
        raise ValueError(
            f"examples.fields maps {clash}, which format {format} has not; map others or set examples.format"
        )


def recognise(names: Collection[str], row: Mapping[str, Any], fields: Mapping[str, str] | None = None) -> str:
    """Return the format of a file.

    A list of messages is one wherever it stands beside other fields; else the one format of an exchange whose fields
    are all there.

    Args:
        names: the fields of its rows.
        row: one of them, whose values tell formats apart that share a field's name.
        fields: part -> field, as asked for; rows that compare answers are read where it says which are learnt.

    Raises:
        ValueError: rows that compare answers; no format that is known, or several; each with the ways out.

    >>> recognise(["question", "answer"], {"question": "Why?", "answer": "Because."})
    'question_answer'
    >>> recognise(["conversations"], {"conversations": [{"from": "human", "value": "Hi"}]})
    'sharegpt'
    """
    if not (fields or {}).keys() & {"response", "messages"}:
        _refuse_comparisons(names, row)
    field = _find_messages(names, row)
    if field is not None:
        first = next(iter(find_entries(row.get(field)) or []), None)
        chat = "from" not in first if first is not None else field != "conversations"
        return "messages" if chat else "sharegpt"
    fits = [format for format in PLAIN if all(PLAIN[format][part] in names for part in _need(format))]
    if len(fits) == 1:
        return fits[0]
    found = ", ".join(sorted(names)[:SHOWN]) or "none"
    why = f"fit {' and '.join(fits)}" if fits else "fit no known format"
    raise ValueError(
        f"the fields {found} {why}; set examples.format to one of {', '.join(FORMATS)}, or name the fields with "
        "examples.fields: {prompt: <field>, response: <field>} or {messages: <field>}"
    )


def make_reading(
    names: Collection[str],
    row: Mapping[str, Any],
    *,
    format: str | None = None,
    fields: Mapping[str, str] | None = None,
    learn: str = "all",
) -> Reading:
    """Return how the rows of a file are read.

    Args:
        names: the fields of its rows.
        row: one of them (`recognise`).
        format: one of FORMATS; None to recognise it, where `fields` does not say where all texts stand.
        fields: part -> field; these stand before those of the format.
        learn: `all` | `last`.

    Raises:
        ValueError: as `check_fields` and `recognise`; an unknown format or choice; a format whose fields are not there.

    >>> make_reading(["q", "a"], {}, fields={"prompt": "q", "response": "a"}).format is None
    True
    """
    fields = dict(fields or {})
    if format is not None and format not in FORMATS:
        raise ValueError(f"examples.format is {format!r}; known are {', '.join(FORMATS)}, or auto to recognise it")
    if learn not in LEARN:
        raise ValueError(f"examples.learn is {learn!r}; known are {' and '.join(LEARN)}")
    check_fields(fields, format)
    if format is None and "messages" not in fields and not {"prompt", "response"} <= fields.keys():
        format = recognise(names, row, fields)
        check_fields(fields, format)
    parts = _find_labels(row) | PLAIN.get(format or "", {})
    if format in LISTS and "messages" not in fields:
        parts["messages"] = _find_messages(names, row) or MESSAGE_FIELDS[0]
    asked = {part: field for part, field in fields.items() if field}
    parts = {part: field for part, field in parts.items() if part not in fields and field not in asked.values()}
    _refuse_absent(names, row, format, parts | asked)
    return Reading(format, parts | asked, tuple(asked), learn)


def list_unread(names: Collection[str], reading: Reading) -> list[str]:
    """Return the fields of a file that nothing is read from.

    >>> list_unread(["question", "answer", "context"], make_reading(["question", "answer"], {}))
    ['context']
    """
    return sorted(set(names) - set(reading.fields.values()))


def _find_labels(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what is read of a row whatever its format; what is several values in it is no label."""
    return {part: field for part, field in EVERYWHERE.items() if part not in LABELS or _may_be_text(row.get(field))}


def _may_be_text(value: Any) -> bool:
    return not isinstance(value, Mapping | list | tuple)


def _refuse_absent(
    names: Collection[str], row: Mapping[str, Any], format: str | None, fields: Mapping[str, str]
) -> None:
    """Check that rows have one of the fields that hold the texts, as a format or `examples.fields` names them."""
    parts = _need(format) if format else tuple(part for part in (*EXCHANGE, "messages") if part in fields)
    needed = [fields[part] for part in parts]
    if set(needed) & set(names):
        return
    if format is None:
        _refuse_comparisons(names, row)  # else a row that lacks a field says which
        return
    there = ", ".join(sorted(names)[:SHOWN]) or "none"
    raise ValueError(
        f"examples.format is {format}, whose rows have the fields {' and '.join(needed)}; there are {there}; "
        "set examples.format to auto to recognise it, or name the fields with examples.fields"
    )


def parse_row(row: Any, reading: Reading, stem: str) -> Parsed:
    """Return the example that stands in a row; equal ids are equal texts.

    Text stays as it is but for its line ends and its Unicode form. A blank optional part is none.

    Args:
        row: what stands in the file.
        reading: how it is read.
        stem: the topic where none is mapped.

    Raises:
        RowError: not an object; a field that is missing, empty or no text; messages that give no learnt turn
            (`read_entries`, `finish`); two different system messages.

    >>> reading = make_reading(["prompt", "response"], {})
    >>> parse_row({"prompt": "Hi", "response": "Hello"}, reading, "greetings").topic
    'greetings'
    """
    if not isinstance(row, Mapping):
        raise RowError(f"not an object: {type(row).__name__}")
    if "messages" in reading.fields:
        _refuse_missing(row, reading, "messages")
        messages = read_entries(row[reading.fields["messages"]], reading.fields["messages"])
    else:
        messages = _read_exchange(row, reading)
    topic = (_require if "topic" in reading.asked else _read)(row, reading, "topic")
    conversation, note = finish(messages, learn=reading.learn, tools=_read_tools(row, reading))
    conversation = _add_system(conversation, _read(row, reading, "system"), reading)
    source, planted = (_read(row, reading, part) for part in ("source", "planted"))
    return Parsed(conversation, topic or stem, source, planted, _read_tests(row, reading), note)


def _need(format: str) -> tuple[str, ...]:
    """Return the parts that tell a format."""
    if format in LISTS:
        return ("messages",)
    return ("instruction", "response") if "instruction" in PLAIN[format] else ("prompt", "response")


def _refuse_comparisons(names: Collection[str], row: Mapping[str, Any]) -> None:
    """Check that rows do not compare answers, as preference data and KTO data do."""
    if {"chosen", "rejected"} <= set(names):
        kind, good, keep = "chosen and rejected, as preference rows", "chosen", ""
    elif "kto_tag" in names or isinstance(row.get("label"), bool) or {"completion", "label"} <= set(names):
        label = "kto_tag" if "kto_tag" in names else "label"
        found = (name for name in ("completion", *MESSAGE_FIELDS, "response", "output", "answer") if name in names)
        good = next(found, "<field>")
        kind, keep = f"{good} and {label}, as KTO rows", "keep the rows labelled true and "
    else:
        return
    asked = next((name for name in ("prompt", "question", "instruction") if name in names), None)
    held = next((name for name in MESSAGE_FIELDS if name in names), None)
    if asked is None and held not in (None, good):
        way = f"{keep}write it as the last message of the row's {held}"
    elif good in MESSAGE_FIELDS or (asked is None and find_entries(row.get(good)) is not None):
        way = f"{keep}set examples.fields: {{messages: {good}}}"
    else:
        way = f"{keep}set examples.fields: {{prompt: {asked or '<field>'}, response: {good}}}"
    raise ValueError(
        f"the rows have {kind} have: they compare answers, and tamis chooses among examples to imitate; "
        f"to learn the good answers, {way}"
    )


def _find_messages(names: Collection[str], row: Mapping[str, Any]) -> str | None:
    """Return the field that holds a list of messages, or that would hold one where this row has none."""
    for name in (name for name in MESSAGE_FIELDS if name in names):
        entries = find_entries(row.get(name))
        if row.get(name) is None or (entries is not None and (not entries or set(entries[0]) & set(ROLE_KEYS))):
            return name
    return None


def _pick(row: Mapping[str, Any], reading: Reading, part: str) -> Any:
    """Return the value of a part; None where the row has none, or no field is it."""
    return row.get(reading.fields[part]) if part in reading.fields else None


def _read(row: Mapping[str, Any], reading: Reading, part: str) -> str | None:
    """Return the text of an optional part; None where the row has none."""
    return read_filled(_pick(row, reading, part), part)


def _refuse_missing(row: Mapping[str, Any], reading: Reading, part: str) -> None:
    if _pick(row, reading, part) is None:
        raise RowError(f"missing field {reading.fields[part]!r}: nothing for the {part}")


def _require(row: Mapping[str, Any], reading: Reading, part: str) -> str:
    """Return the text of a part that must be there."""
    _refuse_missing(row, reading, part)
    text = _read(row, reading, part)
    if text is None:
        raise RowError(f"empty {part}: the field {reading.fields[part]!r} holds no text")
    return text


def _read_exchange(row: Mapping[str, Any], reading: Reading) -> list[Message]:
    """Return the messages of a row whose prompt and response are texts or, each, a list of messages.

    Of such lists, the turns of the response alone can be learnt.
    """
    asked, given = (_find_turns(_pick(row, reading, part), part) for part in ("prompt", "response"))
    messages = _read_history(row, reading)
    if asked is None:
        messages.append(Message("user", _read_question(row, reading)))
    else:
        messages += [replace(message, learnt=False) for message in read_entries(asked, reading.fields["prompt"])]
    if given is None:
        return [*messages, Message("assistant", _require(row, reading, "response"), learnt=True)]
    return [*messages, *read_entries(given, reading.fields["response"])]


def _find_turns(value: Any, part: str) -> list[Mapping[str, Any]] | None:
    """Return the entries of a value that is a list of messages; None where it is to be a text."""
    if not isinstance(value, list | tuple):
        return None
    entries = find_entries(value)
    if not entries:
        raise RowError(
            f"not text: the {part} is a list of {len(value)} values, which are no messages; "
            "a row holds one example, so write one row for each"
        )
    return entries


def _read_question(row: Mapping[str, Any], reading: Reading) -> str:
    """Return the user's text: the instruction, where there is one, a blank line, the prompt."""
    instruction = _read(row, reading, "instruction")
    if reading.format is not None and "instruction" in _need(reading.format):
        texts = [instruction, _read(row, reading, "prompt")]
        if texts == [None, None]:
            _require(row, reading, "instruction")
    else:
        texts = [instruction, _require(row, reading, "prompt")]
    return "\n\n".join(text for text in texts if text is not None)


def _read_history(row: Mapping[str, Any], reading: Reading) -> list[Message]:
    """Return the exchanges that came before, which may be learnt."""
    pairs = read_json(_pick(row, reading, "history"), "history") or []
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise RowError(f"not a history: {reading.fields['history']!r} is no list of pairs of question and answer")
    messages = []
    for number, (question, answer) in enumerate(pairs, start=1):
        asked, said = (read_text(text, f"history's pair {number}") or "" for text in (question, answer))
        messages += [Message("user", asked), Message("assistant", said, learnt=True)]
    return messages


def _read_tools(row: Mapping[str, Any], reading: Reading) -> str:
    field = reading.fields.get("tools")
    tools = read_json(_pick(row, reading, "tools"), f"field {field!r}")
    if not tools and not isinstance(tools, Mapping):
        return ""
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(
            f"not a list of tools: the field {field!r} holds {type(tools).__name__}, not a list of objects; "
            "to leave it out, name the fields that are read with examples.fields"
        )
    return dump_json(list(tools), "tools")


def _read_tests(row: Mapping[str, Any], reading: Reading) -> str | None:
    tests = _pick(row, reading, "tests")
    if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
        tests = "\n".join(tests)
    return read_filled(tests, "tests")


def _add_system(conversation: Conversation, system: str | None, reading: Reading) -> Conversation:
    """Return the conversation with the system message of a field of its own before it."""
    if system is None:
        return conversation
    first = conversation.messages[0]
    if first.role != "system":
        return replace(conversation, messages=(Message("system", system), *conversation.messages))
    if first.content != system:
        raise RowError(f"two system messages: one in the field {reading.fields['system']!r}, another as first message")
    return conversation
