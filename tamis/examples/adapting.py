"""Conversations made to fit a model: where its template has no system role, and where its context is too short."""

from collections.abc import Sequence
from dataclasses import replace

from tamis.examples.conversations import Conversation

SYSTEM = ("template", "first_user", "drop")


def place_system(conversation: Conversation, how: str) -> Conversation:
    """Return a conversation whose system messages stand where a model's template takes them.

    Args:
        conversation: any.
        how: `template` leaves them; `first_user` puts their text before that of the first user's message, a blank line
            between; `drop` leaves them out.

    Raises:
        ValueError: an unknown way.

    >>> from tamis.examples.conversations import make_exchange
    >>> place_system(make_exchange("Hi", "Hello", "Be kind."), "first_user").messages[0].content
    'Be kind.\\n\\nHi'
    """
    if how not in SYSTEM:
        raise ValueError(f"examples.system is {how!r}; known are {', '.join(SYSTEM)}")
    told = [one.content for one in conversation.messages if one.role == "system"]
    if how == "template" or not told:
        return conversation
    rest = [one for one in conversation.messages if one.role != "system"]
    first = next((place for place, one in enumerate(rest) if one.role == "user"), None)
    if how == "first_user" and first is not None:
        rest[first] = replace(rest[first], content="\n\n".join([*told, rest[first].content]))
    return replace(conversation, messages=tuple(rest))


def drop_exchange(conversation: Conversation) -> Conversation | None:
    """Return a conversation without its last exchange, from the user's message on; None where nothing learnt is left.

    What is left ends with a turn of the assistant's, so that no part of an answer is ever dropped.

    >>> from tamis.examples.conversations import Message
    >>> turns = [("user", False), ("assistant", True), ("user", False), ("assistant", True)]
    >>> whole = Conversation(tuple(Message(role, "a", learnt) for role, learnt in turns))
    >>> len(drop_exchange(whole).messages), drop_exchange(drop_exchange(whole))
    (2, None)
    """
    messages = conversation.messages
    asked = [place for place, one in enumerate(messages) if one.role == "user"]
    before = messages[: asked[-1]] if asked else ()
    answered = [place for place, one in enumerate(before) if one.role == "assistant"]
    kept = before[: answered[-1] + 1] if answered else ()
    return replace(conversation, messages=kept) if any(one.learnt for one in kept) else None


def find_special(conversation: Conversation, special: Sequence[str]) -> str | None:
    """Return the first text of a control token that stands inside a message, None where there is none.

    Args:
        conversation: any.
        special: texts that the tokenizer turns into control tokens.

    >>> from tamis.examples.conversations import make_exchange
    >>> find_special(make_exchange("a <|end|> b", "c"), ["<|end|>"])
    '<|end|>'
    """
    texts = [part for one in conversation.messages for part in (one.content, one.details)]
    return next((token for token in special if any(token in text for text in [*texts, conversation.tools])), None)
