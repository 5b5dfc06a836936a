"""Rows become examples, each with an id.

Symbols: an example has an instruction (maybe none), a prompt and a response; its id is the digest of their normalised
text. Tests of a response that is code may stand beside it; they are not part of the id.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

ID_DIGITS = 32  # hexadecimal: 128 bits
PARTS = ("topic", "source", "instruction", "prompt", "response", "tests")
OPTIONAL = ("source", "instruction", "tests")
CHATS = (["user", "assistant"], ["system", "user", "assistant"])


class RowError(ValueError):
    """A row cannot become an example: the text is the reason, and what stands before its colon the kind of reason."""


def check_fields(fields: Mapping[str, str]) -> None:
    """Check that a field mapping says where prompt and response stand.

    Raises:
        ValueError: an unknown part; both forms, or neither.

    >>> check_fields({"messages": "conversation", "topic": "subject"})
    """
    unknown = sorted(set(fields) - {*PARTS, "messages"})
    if unknown:
        known = ", ".join((*PARTS, "messages"))
        raise ValueError(f"examples.fields maps unknown parts {unknown}; an example has {known}")
    plain = {"prompt", "response", "instruction"} & set(fields)
    if "messages" in fields and plain:
        raise ValueError(f"examples.fields maps messages and {sorted(plain)}; give messages, or prompt and response")
    if "messages" not in fields and not {"prompt", "response"} <= plain:
        raise ValueError("examples.fields must map prompt and response, or messages")


def parse_line(line: bytes) -> Any:
    """Return what a line of JSON holds.

    Raises:
        RowError: not UTF-8, or not JSON, with the column.

    >>> parse_line(b'{"a": 1}')
    {'a': 1}
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise RowError(f"invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"invalid JSON: {error}") from None


def parse_row(row: Any, fields: Mapping[str, str], stem: str) -> dict[str, str | None]:
    """Return the parts of an example that stand in a row, normalised: equal ids are equal texts.

    Args:
        row: what stands in the file.
        fields: part -> the row's field (`check_fields`).
        stem: the topic where none is mapped.

    Returns:
        Text of topic, source, instruction, prompt, response and tests; None for an optional part that is absent or
        empty. Tests may be a list of texts in the file and are then joined, one per line.

    Raises:
        RowError: not an object; a field that is missing, empty, no text or no Unicode; a chat of several exchanges.

    >>> parse_row({"q": "Hi", "a": "Hello"}, {"prompt": "q", "response": "a"}, "greetings")["topic"]
    'greetings'
    """
    if not isinstance(row, Mapping):
        raise RowError(f"not an object: {type(row).__name__}")
    found = {part: row.get(name) for part, name in fields.items()}
    absent = [part for part in found if found[part] is None and part not in OPTIONAL]
    if absent:
        raise RowError(f"missing field {fields[absent[0]]!r}: nothing for the {absent[0]}")
    if "messages" in found:
        found |= _read_chat(found.pop("messages"))
    parts = {"topic": stem, **dict.fromkeys(OPTIONAL), **found}
    if isinstance(parts["tests"], list) and all(isinstance(test, str) for test in parts["tests"]):
        parts["tests"] = "\n".join(parts["tests"])
    return {part: _check_text(part, parts[part]) for part in PARTS}


def _read_chat(chat: Any) -> dict[str, Any]:
    """Return instruction, prompt and response of one exchange: maybe a system message, a user's, an assistant's."""
    if not isinstance(chat, Sequence) or not all(isinstance(turn, Mapping) for turn in chat):
        raise RowError(f"not one exchange: messages is {type(chat).__name__}, not a list of role and content")
    roles = [turn.get("role") for turn in chat]
    if roles not in CHATS:
        raise RowError(f"not one exchange: the roles are {roles[:6]}, not (system,) user, assistant")
    contents = [turn.get("content") for turn in chat]
    return dict(zip(("response", "prompt", "instruction"), reversed(contents), strict=False))


def _check_text(part: str, text: Any) -> str | None:
    if text is None and part in OPTIONAL:
        return None
    if not isinstance(text, str):
        raise RowError(f"not text: the {part} is {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"not UTF-8: the {part} holds bytes or escapes that are no Unicode") from None
    if text.strip():
        return normalise(text)
    if part in OPTIONAL:
        return None
    raise RowError(f"empty {part}")


def find_fault(lengths: tuple[int, int], text: str, room: int, control: Sequence[str]) -> str | None:
    """Return why a model cannot use an example, if so.

    Args:
        lengths: tokens of prompt and response.
        text: both.
        room: tokens that the context has for them.
        control: texts that the tokenizer turns into control tokens.

    >>> find_fault((3, 4), "a <|end|> b", 9, ["<|end|>"])
    "holds a control token: '<|end|>' would end or open a turn inside the text"
    """
    found = next((token for token in control if token in text), None)
    if found is not None:
        return f"holds a control token: {found!r} would end or open a turn inside the text"
    if sum(lengths) > room:
        return (
            f"longer than the context: {lengths[0]} + {lengths[1]} tokens of prompt and response, {room} fit "
            "(models.max_tokens less the template's)"
        )
    return None


def normalise(text: str) -> str:
    """Return the text in Unicode form NFC, with line feeds as line ends and no white space at either end.

    What means the same to every program becomes equal; case, "2²" and the indentation of code are kept.

    >>> normalise("  if x:\\r\\n    y ")
    'if x:\\n    y'
    """
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()


def fold(prompt: str) -> str:
    """Return what prompts are compared by: Unicode form NFKC, case folded, every run of white space as one space.

    Prompts that only look different ("Hi" and " hi") must not stand on both sides of the split.

    >>> fold("  Ｈow are\\u00a0\\n you?")
    'how are you?'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    return " ".join(folded.split())


def identify(prompt: str, response: str, instruction: str | None = None) -> str:
    """Return the id of an example: the first 32 hexadecimal digits of a sha256.

    `id = sha256(JSON of [normalise(instruction), normalise(prompt), normalise(response)])`, UTF-8; no instruction is
    the empty text. As JSON, no two triples run together.

    >>> identify("Hi", "Hello") == identify(" Hi ", "Hello\\n")
    True
    >>> identify("a", "b c") == identify("a b", "c")
    False
    """
    text = json.dumps([normalise(part) for part in (instruction or "", prompt, response)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
