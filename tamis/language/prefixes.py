"""Prefixes: a conversation's head, and demos shown as earlier turns after it, as tokens.

Symbols: a *head* is what is written before a conversation's turns: the beginning-of-sequence token, the system message,
the tools. A demo is a whole conversation that is shown as earlier turns, after the head of the conversation that is
asked. A *prefix* is a head and then demos; it may stand for the head of every conversation with the same head. The
*seam* is where demos are put in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from tamis.examples.conversations import Conversation, Message
from tamis.language import delift
from tamis.language.chat_templates import (
    WAY_OUT,
    Template,
    TemplateError,
    Written,
    check_template,
    list_messages,
    list_tools,
    refuse_faults,
    refuse_slow,
    render,
    write_conversation,
)
from tamis.language.encoding import ControlTokens, Encoding

QUESTION = {"role": "user", "content": "sample question 7401"}  # what heads are found with
AGAIN = QUESTION | {"number": 2}  # another message, for templates that tell the last question by comparing messages
ANSWER = {"role": "assistant", "content": "sample answer 5283"}


@dataclass(frozen=True, eq=False)
class Seam:
    """Where demos are put in, for one system message and one list of tools, found with a sample exchange."""

    head: str
    ids: Int[np.ndarray, " head"]
    shown: str  # the prefix that shows the sample exchange as demo
    shown_ids: Int[np.ndarray, " shown"]
    turn: str  # what is written of the sample question after either
    turn_ids: Int[np.ndarray, " turn"]
    sealed: bool  # the turn begins with a token that is cut out before all others, whatever stands before it


def check_demos(template: Template, conversations: Sequence[Conversation], encoding: Encoding) -> None:
    """Refuse conversations before which demos cannot be put; only rows without a head are looked at again.

    Raises:
        TemplateError: their count, the first places, and why `encode_prefix` refuses the first.
    """
    faults: list[str | None] = [None] * len(conversations)
    for place in np.flatnonzero(encoding.heads[encoding.rows[:-1]] == 0):
        try:
            encode_prefix(template, [], conversations[place])
        except TemplateError as fault:
            faults[place] = str(fault)
    refuse_faults(faults, "have demos before them")


def encode_prefix(template: Template, demos: Sequence[Conversation], target: Conversation) -> Int[np.ndarray, " token"]:
    """Return the head of `target` and then demos as earlier turns, the last one nearest to its own turns.

    Put in place of the head it gives the ids of the whole text: the target's system message, the demos' turns without
    their system messages and tools, the target's turns. No demo gives the head.

    **Source**: DELIFT, as `tamis.language.delift` has it; its demo takes the place of the head, the instruction.

    Raises:
        TemplateError: the template writes a conversation otherwise once others stand before it, so that no prefix can
            be put before it; a demo cannot be written.
    """
    check_template(template)
    if template.name == "delift":
        return delift.encode_prefix(template, demos)
    refuse_slow(template.tokenizer)
    seam = find_seam(template, find_system(target), target.tools)
    written = write_conversation(template, target)
    ids = template.control.tokenise([one.text for one in written])
    if seam is None or not all(fits(template, seam, target, *pair) for pair in zip(written, ids, strict=True)):
        raise TemplateError(
            "the chat template writes a conversation otherwise once demos stand before it, so that they cannot be "
            f"shown to {_quote(target)}; set models.chat_template: FILE, a template that writes the system message "
            "and the tools before the turns and each turn the same wherever it stands"
        )
    if not demos:
        return seam.ids
    turns = [turn for demo in demos for turn in list_messages(template, demo)[len(find_system(demo)) :]]
    system = list_messages(template, target)[: len(find_system(target))]
    text = render(template, [*system, *turns, QUESTION], list_tools(template, target))
    whole, prefix = template.control.tokenise([text, text.removesuffix(seam.turn)])
    if not text.endswith(seam.turn) or not np.array_equal(whole, np.concatenate([prefix, seam.turn_ids])):
        raise TemplateError(
            f"the chat template writes a question otherwise after the demo {_quote(demos[-1])}; {WAY_OUT}"
        )
    return prefix


def fits(
    template: Template, seam: Seam, conversation: Conversation, written: Written, ids: Int[np.ndarray, " token"]
) -> bool:
    """Whether a sequence goes on after its head as it would after a demo, in text and in tokens."""
    own = len(find_system(conversation))
    messages = list_messages(template, conversation)[: written.messages]
    try:
        text = render(
            template, [*messages[:own], QUESTION, ANSWER, *messages[own:]], list_tools(template, conversation)
        )
    except TemplateError:
        return False
    rest, tail = written.text.removeprefix(seam.head), ids[len(seam.ids) :]
    same_text = seam.head + rest == written.text and seam.shown + rest == text
    if not same_text or not np.array_equal(ids[: len(seam.ids)], seam.ids):
        return False
    if seam.sealed and len(tail) and tail[0] == seam.turn_ids[0]:
        return True
    return np.array_equal(template.control.tokenise([text])[0], np.concatenate([seam.shown_ids, tail]))


def find_seam(template: Template, system: tuple[Message, ...], tools: str) -> Seam | None:
    """Return where demos are put in; None where the template has no such place.

    The text of a sample question after an exchange shows how a turn begins there. Where the question alone is written
    so as well, what stands before it is the head. Else, for example with tools within the first question, the head is
    all but the longest run of tokens that ends both texts.
    """
    asked = Conversation((*system, Message("user", QUESTION["content"])), tools)
    before, listed = list_messages(template, asked)[:-1], list_tools(template, asked)
    try:
        alone = render(template, [*before, QUESTION], listed)
        answered = render(template, [*before, QUESTION, ANSWER], listed)
        again = render(template, [*before, QUESTION, ANSWER, AGAIN], listed)
    except TemplateError:
        return None
    counts = [text.count(QUESTION["content"]) for text in (alone, again)]
    if counts != [1, 2] or answered.count(ANSWER["content"]) != 1 or again.count(ANSWER["content"]) != 1:
        return None
    end, following = (text.partition(ANSWER["content"])[2] for text in (answered, again))
    turn = following.removeprefix(end) if following.startswith(end) else following.removeprefix(end.rstrip())
    control = template.control
    return _cut(control, alone, again, turn) or _cut(control, alone, again, _common_end(control, alone, again))


def find_system(conversation: Conversation) -> tuple[Message, ...]:
    """Return the system messages that a conversation begins with."""
    roles = [message.role for message in conversation.messages]
    first = next((place for place, role in enumerate(roles) if role != "system"), len(roles))
    return conversation.messages[:first]


def _common_end(control: ControlTokens, one: str, other: str) -> str:
    """Return the end of the first text whose tokens end both."""
    (ids, offsets), (others, _) = control.tokenise_placed([one, other])
    pairs = zip(reversed(ids), reversed(others), strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(others)))
    first = len(ids) - same
    return one[offsets[first - 1][1] :] if first else one


def _cut(control: ControlTokens, alone: str, again: str, turn: str) -> Seam | None:
    """Return the seam before `turn`; None where either text cannot be cut there, or between tokens."""
    if QUESTION["content"] not in turn or not alone.endswith(turn) or not again.endswith(turn):
        return None
    head, shown = alone.removesuffix(turn), again.removesuffix(turn)
    head_ids, shown_ids, alone_ids, again_ids = control.tokenise([head, shown, alone, again])
    turn_ids = alone_ids[len(head_ids) :]
    cut = [np.concatenate([ids, turn_ids]) for ids in (head_ids, shown_ids)]
    if not np.array_equal(cut[0], alone_ids) or not np.array_equal(cut[1], again_ids):
        return None
    first = control.tokenizer.added_tokens_decoder.get(int(turn_ids[0]))
    sealed = first is not None and not first.lstrip and not first.single_word
    return Seam(head, head_ids, shown, shown_ids, turn, turn_ids, sealed)


def _quote(conversation: Conversation) -> str:
    return repr(next((one.content for one in conversation.messages if one.role == "user"), "")[:40])
