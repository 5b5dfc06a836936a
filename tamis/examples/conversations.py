"""A conversation is an example: messages of which some assistant turns are learnt.

Symbols: a turn is learnt where the model is trained on it, scored by it and measured with it; all other messages are
what it is given. A row of prompt and response is a conversation of one exchange.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
DETAILS = ("tool_calls", "tool_call_id", "name", "reasoning_content")  # what a message may have beside its text
ID_DIGITS = 32  # hexadecimal: 128 bits


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str  # one of ROLES
    content: str  # "" where an assistant's turn is tool calls alone
    learnt: bool = False  # an assistant's turn that is trained on
    details: str = ""  # JSON object of some of DETAILS, keys sorted; "" for none


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and the tools that the model may call."""

    messages: tuple[Message, ...]
    tools: str = ""  # JSON array of tool definitions, as the row gives it; "" for none

    @property
    def learnt(self) -> list[int]:
        """Return the places of the learnt turns."""
        return [place for place, message in enumerate(self.messages) if message.learnt]


def make_exchange(prompt: str, response: str, system: str | None = None) -> Conversation:
    """Return a conversation of one exchange whose answer is learnt.

    >>> [message.role for message in make_exchange("Hi", "Hello", "Be kind.").messages]
    ['system', 'user', 'assistant']
    """
    before = (Message("system", system),) if system else ()
    return Conversation((*before, Message("user", prompt), Message("assistant", response, learnt=True)))


def as_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages as chat templates take them: role, content and what else there is.

    >>> as_messages(make_exchange("Hi", "Hello"))
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    return [
        {"role": one.role, "content": one.content} | (json.loads(one.details) if one.details else {})
        for one in conversation.messages
    ]


def as_tools(conversation: Conversation) -> list[Any] | None:
    """Return the tools as chat templates take them; None where there are none."""
    return json.loads(conversation.tools) if conversation.tools else None


def normalise(text: str) -> str:
    """Return the text in Unicode form NFC with line feeds as line ends; blanks stay where they are.

    >>> normalise("    return 1\\r\\n")
    '    return 1\\n'
    """
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")


def fold(text: str) -> str:
    """Return what prompts are compared by: Unicode form NFKC, case folded, every run of white space as one space.

    Prompts that only look different ("Hi" and " hi") must not stand on both sides of the split.

    >>> fold("  Ｈow are\\u00a0\\n you?")
    'how are you?'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def identify(conversation: Conversation) -> str:
    """Return the id of an example: the first 32 hexadecimal digits of a sha256 of what is rendered.

    `id = sha256(JSON of [tools, [role, normalise(content), learnt, details] of every message])`, UTF-8: leading blanks
    of code count, line ends do not.

    >>> identify(make_exchange("Hi", "a\\r\\nb")) == identify(make_exchange("Hi", "a\\nb"))
    True
    >>> identify(make_exchange("Hi", "  a")) == identify(make_exchange("Hi", "a"))
    False
    """
    parts = [[one.role, normalise(one.content), one.learnt, one.details] for one in conversation.messages]
    return _digest([conversation.tools, parts])


def identify_folded(conversation: Conversation) -> str:
    """Return `same_as`: the digest of the text with every run of white space as one blank, and none at either end.

    Rows with the same digest are duplicates, though they may be rendered differently.

    >>> identify_folded(make_exchange("Hi", "  a\\n b ")) == identify_folded(make_exchange("Hi", "a b"))
    True
    """
    parts = [
        [one.role, re.sub(r"\s+", " ", normalise(one.content)).strip(), one.learnt, one.details]
        for one in conversation.messages
    ]
    return _digest([conversation.tools, parts])


def split_key(conversation: Conversation) -> str:
    """Return the folded text that decides on which side of the split a conversation stands: of its first user message.

    Conversations that begin with the same question stand on one side, also where one goes on where another ends.

    >>> split_key(make_exchange(" What is  THIS?", "a tree"))
    'what is this?'
    """
    return fold(next((one.content for one in conversation.messages if one.role == "user"), ""))


def identify_question(conversation: Conversation, topic: str) -> str:
    """Return the digest of all that is asked of a model in a conversation: everything but the learnt turns' text.

    Where it is the same and the id is not, an example was edited.

    >>> identify_question(make_exchange("Hi", "a"), "t") == identify_question(make_exchange("Hi", "b"), "t")
    True
    """
    parts = [[one.role, "" if one.learnt else normalise(one.content)] for one in conversation.messages]
    return _digest([topic, conversation.tools, parts])


def transcribe(conversation: Conversation) -> tuple[str, str]:
    """Return what stands before the last learnt turn as text, and that turn: of one exchange prompt and response.

    >>> transcribe(make_exchange("Hi", "Hello"))
    ('Hi', 'Hello')
    """
    place = conversation.learnt[-1]
    before = conversation.messages[:place]
    if len(before) == 1:
        return before[0].content, conversation.messages[place].content
    told = "\n\n".join(f"{one.role}: {one.content}" for one in before)
    return told, conversation.messages[place].content


def join_texts(conversation: Conversation) -> str:
    """Return all texts, a line each: what is embedded.

    >>> join_texts(make_exchange("Hi", "Hello"))
    'Hi\\nHello'
    """
    return "\n".join(one.content for one in conversation.messages)


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:ID_DIGITS]
