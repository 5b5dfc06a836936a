"""Examples as their table holds them, turned into conversations and back."""

from collections.abc import Mapping
from typing import Any

from tamis.examples.conversations import Conversation, Message


def read_conversation(row: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a row of the examples."""
    return Conversation(tuple(Message(**message) for message in row["messages"]), row["tools"])


def write_conversation(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as columns of the examples: what a stage reads, and two texts for people."""
    place = conversation.learnt[-1]
    asked = [one.content for one in conversation.messages[:place] if one.role == "user"]
    return {
        "prompt": asked[-1] if asked else "",
        "response": conversation.messages[place].content,
        "messages": [vars(message) for message in conversation.messages],
        "tools": conversation.tools,
    }
