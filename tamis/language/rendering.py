"""Conversations to token ids, through the tokenizer's own chat template or in DELIFT's wording.

Symbols: a *head* is what is written before a conversation's turns: the beginning-of-sequence token, the system message,
the tools. A demo is a whole conversation that is shown as earlier turns, after the head of the conversation that is
asked. A *prefix* is a head and then demos; it may stand for the head of every conversation with the same head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tamis.examples.conversations import Conversation, Message, as_messages, as_tools
from tamis.language import delift
from tamis.language.chat_templates import (
    WAY_OUT,
    Template,
    TemplateError,
    Written,
    check_template,
    render,
    write_conversation,
)
from tamis.language.encoding import Encoding, TokenSequence, join_rows

BLOCK = 1024  # conversations that are tokenised at once: their offsets take memory
BLANKS = " Ġ▁"  # as pieces of tokens write a blank
QUESTION = {"role": "user", "content": "sample question 7401"}  # what heads are found with
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


def encode_conversations(template: Template, conversations: Sequence[Conversation]) -> Encoding:
    """Tokenise conversations, each whole, and tell their answers and their heads.

    A row has one sequence, whose ids are those of `tokenizer.apply_chat_template(messages, tools=tools)`, or one per
    learnt turn where the template writes a turn otherwise once others follow it. A token that crosses the beginning of
    an answer belongs to it. An answer ends with its end-of-turn text.

    Args:
        template: how they are written.
        conversations: with at least one learnt turn each.

    Returns:
        One row per conversation, whose sequences have heads of one length. It is 0 where no demo can be put before
        them, and where nothing stands before the turns: `check_demos` tells these apart.

    Raises:
        TemplateError: conversations cannot be written, with their count, the first places and the first one's fault.
    """
    check_template(template)
    if template.name == "delift":
        _refuse(find_faults(template, conversations))
        sequences, head = delift.encode_exchanges(template.tokenizer, conversations)
        return join_rows([[one] for one in sequences], [head] * len(sequences))
    _refuse_slow(template.tokenizer)
    rows: list[list[TokenSequence]] = []
    heads: list[int] = []
    faults: list[str | None] = []
    seams: dict[Any, Seam | None] = {}
    for first in range(0, len(conversations), BLOCK):
        block = conversations[first : first + BLOCK]
        written = [_try_write(template, conversation) for conversation in block]
        faults += [one if isinstance(one, str) else None for one in written]
        if not any(faults):
            found, lengths = _encode_block(template, block, written, seams)
            rows += found
            heads += lengths
    _refuse(faults)
    return join_rows(rows, heads)


def find_faults(template: Template, conversations: Sequence[Conversation]) -> list[str | None]:
    """Return per conversation why it cannot be written, with the words that the template raised; None where it can.

    Raises:
        TemplateError: no conversation at all can be written, as there is no chat template for example.
    """
    check_template(template)
    found = (_try_write(template, conversation) for conversation in conversations)
    return [one if isinstance(one, str) else None for one in found]


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
    _refuse(faults, "have demos before them")


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
        return delift.encode_prefix(template.tokenizer, demos)
    _refuse_slow(template.tokenizer)
    seam = _find_seam(template, _system(target), target.tools)
    written = write_conversation(template, target)
    ids = _tokenise(template.tokenizer, [one.text for one in written])
    if seam is None or not all(_fits(template, seam, target, *pair) for pair in zip(written, ids, strict=True)):
        raise TemplateError(
            "the chat template writes a conversation otherwise once demos stand before it, so that they cannot be "
            f"shown to {_quote(target)}; set models.chat_template: FILE, a template that writes the system message "
            "and the tools before the turns and each turn the same wherever it stands"
        )
    if not demos:
        return seam.ids
    turns = [turn for demo in demos for turn in as_messages(demo)[len(_system(demo)) :]]
    system = as_messages(target)[: len(_system(target))]
    text = render(template, [*system, *turns, QUESTION], as_tools(target))
    whole, prefix = _tokenise(template.tokenizer, [text, text.removesuffix(seam.turn)])
    if not text.endswith(seam.turn) or not np.array_equal(whole, np.concatenate([prefix, seam.turn_ids])):
        raise TemplateError(
            f"the chat template writes a question otherwise after the demo {_quote(demos[-1])}; {WAY_OUT}"
        )
    return prefix


def encode_question(template: Template, conversation: Conversation) -> Int[np.ndarray, " token"]:
    """Return all that a model reads before it gives the last learnt turn: the head, the turns, the generation prompt.

    Raises:
        TemplateError: no turn is learnt, or the template raised.
    """
    check_template(template)
    if template.name == "delift":
        return delift.encode_question(template.tokenizer, conversation)
    if not conversation.learnt:
        raise TemplateError("no turn of the conversation is learnt; mark the turn that is asked for")
    given = as_messages(conversation)[: conversation.learnt[-1]]
    text = render(template, given, as_tools(conversation), asked=True)
    return _tokenise(template.tokenizer, [text])[0]


def measure_tokens(encoding: Encoding) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Return per row how many tokens are no answers and how many are, over all its sequences."""
    bounds = encoding.starts[encoding.rows]
    answers = np.diff(np.concatenate([[0], np.cumsum(encoding.answers)])[bounds])
    return np.diff(bounds) - answers, answers


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


def _refuse(faults: Sequence[str | None], what: str = "be written") -> None:
    places = [place for place, fault in enumerate(faults) if fault]
    if places:
        raise TemplateError(
            f"{len(places)} of {len(faults)} conversations cannot {what}, first places {places[:3]}; "
            f"place {places[0]}: {faults[places[0]]}",
            places[0],
        )


def _refuse_slow(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise TemplateError(
            f"the tokenizer {type(tokenizer).__name__} does not tell which characters its tokens stand for, without "
            "which answers cannot be placed; give the model's folder a tokenizer.json"
        )


def _encode_block(
    template: Template,
    conversations: Sequence[Conversation],
    written: Sequence[list[Written]],
    seams: dict[Any, Seam | None],
) -> tuple[list[list[TokenSequence]], list[int]]:
    """Tokenise some conversations at once; `seams` holds those that were found, and takes up new ones."""
    texts = [one.text for row in written for one in row]
    found = template.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    encoded = zip(found["input_ids"], found["offset_mapping"], strict=True)
    tokens = ((np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)) for ids, offsets in encoded)
    rows, heads = [], []
    for conversation, row in zip(conversations, written, strict=True):
        key = (_system(conversation), conversation.tools)
        if key not in seams:
            seams[key] = _find_seam(template, *key)
        sequences = []
        for one in row:
            ids, offsets = next(tokens)
            sequences.append(TokenSequence(ids, place_answers(template.tokenizer, ids, offsets, one.answers)))
        seam = seams[key]
        fits = seam and all(
            _fits(template, seam, conversation, one, made.tokens) for one, made in zip(row, sequences, strict=True)
        )
        rows.append(sequences)
        heads.append(len(seam.ids) if fits else 0)
    return rows, heads


def _fits(
    template: Template, seam: Seam, conversation: Conversation, written: Written, ids: Int[np.ndarray, " token"]
) -> bool:
    """Whether a sequence goes on after its head as it would after a demo, in text and in tokens."""
    own = len(_system(conversation))
    messages = as_messages(conversation)[: written.messages]
    try:
        text = render(template, [*messages[:own], QUESTION, ANSWER, *messages[own:]], as_tools(conversation))
    except TemplateError:
        return False
    rest, tail = written.text.removeprefix(seam.head), ids[len(seam.ids) :]
    same_text = seam.head + rest == written.text and seam.shown + rest == text
    if not same_text or not np.array_equal(ids[: len(seam.ids)], seam.ids):
        return False
    if seam.sealed and len(tail) and tail[0] == seam.turn_ids[0]:
        return True
    return np.array_equal(_tokenise(template.tokenizer, [text])[0], np.concatenate([seam.shown_ids, tail]))


def _find_seam(template: Template, system: tuple[Message, ...], tools: str) -> Seam | None:
    """Return where demos are put in; None where the template has no such place.

    The text of a sample question after an exchange shows how a turn begins there. Where the question alone is written
    so as well, what stands before it is the head. Else, for example with tools within the first question, the head is
    all but the longest run of tokens that ends both texts.
    """
    asked = Conversation((*system, Message("user", QUESTION["content"])), tools)
    before, listed = as_messages(asked)[:-1], as_tools(asked)
    try:
        alone = render(template, [*before, QUESTION], listed)
        answered = render(template, [*before, QUESTION, ANSWER], listed)
        again = render(template, [*before, QUESTION, ANSWER, QUESTION], listed)
    except TemplateError:
        return None
    counts = [text.count(QUESTION["content"]) for text in (alone, again)]
    if counts != [1, 2] or answered.count(ANSWER["content"]) != 1 or again.count(ANSWER["content"]) != 1:
        return None
    end, following = (text.partition(ANSWER["content"])[2] for text in (answered, again))
    turn = following.removeprefix(end) if following.startswith(end) else following.removeprefix(end.rstrip())
    return _cut(template.tokenizer, alone, again, turn) or _cut(
        template.tokenizer, alone, again, _common_end(template.tokenizer, alone, again)
    )


def _common_end(tokenizer: Any, one: str, other: str) -> str:
    """Return the end of the first text whose tokens end both."""
    found = tokenizer([one, other], add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(*(reversed(ids) for ids in found["input_ids"]), strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(map(len, found["input_ids"])))
    first = len(found["input_ids"][0]) - same
    return one[found["offset_mapping"][0][first - 1][1] :] if first else one


def _cut(tokenizer: Any, alone: str, again: str, turn: str) -> Seam | None:
    """Return the seam before `turn`; None where either text cannot be cut there, or between tokens."""
    if QUESTION["content"] not in turn or not alone.endswith(turn) or not again.endswith(turn):
        return None
    head, shown = alone.removesuffix(turn), again.removesuffix(turn)
    head_ids, shown_ids, alone_ids, again_ids = _tokenise(tokenizer, [head, shown, alone, again])
    turn_ids = alone_ids[len(head_ids) :]
    cut = [np.concatenate([ids, turn_ids]) for ids in (head_ids, shown_ids)]
    if not np.array_equal(cut[0], alone_ids) or not np.array_equal(cut[1], again_ids):
        return None
    first = tokenizer.added_tokens_decoder.get(int(turn_ids[0]))
    sealed = first is not None and not first.lstrip and not first.single_word
    return Seam(head, head_ids, shown, shown_ids, turn, turn_ids, sealed)


def _tokenise(tokenizer: Any, texts: list[str]) -> list[Int[np.ndarray, " token"]]:
    return [np.array(ids, np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _system(conversation: Conversation) -> tuple[Message, ...]:
    """Return the system messages that a conversation begins with."""
    roles = [message.role for message in conversation.messages]
    first = next((place for place, role in enumerate(roles) if role != "system"), len(roles))
    return conversation.messages[:first]


def _quote(conversation: Conversation) -> str:
    return repr(next((one.content for one in conversation.messages if one.role == "user"), "")[:40])
