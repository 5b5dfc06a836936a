"""Conversations to token ids, through the tokenizer's own chat template or in DELIFT's wording."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tamis.examples.conversations import Conversation
from tamis.language import delift
from tamis.language.chat_templates import (
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
from tamis.language.encoding import Encoding, TokenSequence, join_rows
from tamis.language.prefixes import Seam, find_seam, find_system, fits

BLOCK = 1024  # conversations that are tokenised at once: their offsets take memory
BLANKS = " Ġ▁"  # as pieces of tokens write a blank


def encode_conversations(template: Template, conversations: Sequence[Conversation], *, heads: bool = True) -> Encoding:
    """Tokenise conversations, each whole, and tell their answers and their heads.

    A row has one sequence, whose ids are those of `tokenizer.apply_chat_template(messages, tools=tools)`, or one per
    learnt turn where the template writes a turn otherwise once others follow it. A token that crosses the beginning of
    an answer belongs to it. An answer ends with its end-of-turn text.

    Args:
        template: how they are written.
        conversations: with at least one learnt turn each.
        heads: false leaves all of length 0, and takes two thirds of the time.

    Returns:
        One row per conversation, whose sequences have heads of one length. It is 0 where no demo can be put before
        them, and where nothing stands before the turns: `check_demos` tells these apart.

    Raises:
        TemplateError: conversations cannot be written, with their count, the first places and the first one's fault.
    """
    check_template(template)
    if template.name == "delift":
        refuse_faults(find_faults(template, conversations))
        sequences = delift.encode_exchanges(template, conversations)
        return join_rows([[one] for one in sequences], [0] * len(sequences))
    refuse_slow(template.tokenizer)
    rows: list[list[TokenSequence]] = []
    lengths: list[int] = []
    faults: list[str | None] = []
    seams: dict[Any, Seam | None] = {}
    for first in range(0, len(conversations), BLOCK):
        block = conversations[first : first + BLOCK]
        written = [_try_write(template, conversation) for conversation in block]
        faults += [one if isinstance(one, str) else None for one in written]
        if not any(faults):
            found = list(_encode_block(template, written))
            rows += found
            lengths += _measure_heads(template, block, written, found, seams) if heads else [0] * len(block)
    refuse_faults(faults)
    return join_rows(rows, lengths)


def find_faults(template: Template, conversations: Sequence[Conversation]) -> list[str | None]:
    """Return per conversation why it cannot be written, with the words that the template raised; None where it can.

    Raises:
        TemplateError: no conversation at all can be written, as there is no chat template for example.
    """
    check_template(template)
    found = (_try_write(template, conversation) for conversation in conversations)
    return [one if isinstance(one, str) else None for one in found]


def encode_shown(template: Template, conversations: Sequence[Conversation], encoding: Encoding) -> Encoding:
    """Return conversations as they are read after demos: without its head, each row is what follows a prefix.

    Args:
        template: how they are written.
        conversations: the rows.
        encoding: theirs without demos (`encode_conversations`); it is returned where heads show what follows.
    """
    if template.name != "delift":
        return encoding
    tails = delift.encode_tails(template, conversations)
    return join_rows([[one] for one in tails], [0] * len(tails))


def encode_question(
    template: Template, conversation: Conversation, *, head: int | None = None
) -> Int[np.ndarray, " token"]:
    """Return all that a model reads before it gives the last learnt turn: the head, the turns, the generation prompt.

    Args:
        template: how it is written.
        conversation: with a learnt turn.
        head: tokens of its head, where what follows demos is asked for; None: the whole.

    Raises:
        TemplateError: no turn is learnt, or the template raised.
    """
    check_template(template)
    if template.name == "delift":
        return delift.encode_question(template, conversation, shown=head is not None)
    if not conversation.learnt:
        raise TemplateError("no turn of the conversation is learnt; mark the turn that is asked for")
    given = list_messages(template, conversation)[: conversation.learnt[-1]]
    text = render(template, given, list_tools(template, conversation), asked=True)
    return template.control.tokenise([text])[0][head or 0 :]


def count_split(encoding: Encoding) -> int:
    """Return how many rows have more than one sequence."""
    return int((np.diff(encoding.rows) > 1).sum())


def place_answers(
    tokenizer: Any,
    ids: Int[np.ndarray, " token"],
    offsets: Int[np.ndarray, "token 2"],
    spans: Sequence[tuple[int, int]],
) -> Bool[np.ndarray, " token"]:
    """Return which tokens have a character in one of the spans.

    Offsets of byte-level tokenizers may leave out the blanks at either end of a token. One without those at its
    beginning still ends where it ends; one without those at its end is looked up where it may reach into a span.
    """
    answers = np.zeros(len(ids), bool)
    for start, stop in spans:
        answers |= (offsets[:, 1] > start) & (offsets[:, 0] < stop)
        last = int(np.searchsorted(offsets[:, 0], start)) - 1  # that begins before the span
        if last >= 0 and offsets[last, 1] <= start:
            piece = str(tokenizer.convert_ids_to_tokens(int(ids[last])))
            hidden = len(piece) - len(piece.rstrip(BLANKS))
            uncovered = last + 1 == len(ids) or offsets[last + 1, 0] > start
            answers[last] |= uncovered and offsets[last, 1] + hidden > start
    return answers


def _try_write(template: Template, conversation: Conversation) -> list[Written] | str:
    """Return the sequences of a conversation as text, or why there are none."""
    try:
        if template.name == "delift":
            delift.read_exchange(conversation)
            return []
        return write_conversation(template, conversation)
    except TemplateError as fault:
        return str(fault)


def _encode_block(template: Template, written: Sequence[list[Written]]) -> Iterator[list[TokenSequence]]:
    """Yield the sequences of some conversations, which are tokenised at once."""
    tokens = iter(template.control.tokenise_placed([one.text for row in written for one in row]))
    for row in written:
        pairs = [(one, *next(tokens)) for one in row]
        yield [
            TokenSequence(ids, place_answers(template.tokenizer, ids, offsets, one.answers))
            for one, ids, offsets in pairs
        ]


def _measure_heads(
    template: Template,
    conversations: Sequence[Conversation],
    written: Sequence[list[Written]],
    sequences: Sequence[list[TokenSequence]],
    seams: dict[Any, Seam | None],
) -> list[int]:
    """Return the lengths of some conversations' heads; `seams` holds those that were found, and takes up new ones."""
    heads = []
    for conversation, row, made in zip(conversations, written, sequences, strict=True):
        key = (find_system(conversation), conversation.tools)
        if key not in seams:
            seams[key] = find_seam(template, *key)
        seam = seams[key]
        pairs = zip(row, made, strict=True)
        whole = seam and all(fits(template, seam, conversation, one, each.tokens) for one, each in pairs)
        heads.append(len(seam.ids) if whole else 0)
    return heads
