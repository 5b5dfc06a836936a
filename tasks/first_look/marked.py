"""Examples as a model will read them, with the learnt parts marked: for people, before anything is computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tamis.examples.conversations import Conversation
from tamis.language import delift
from tamis.language.chat_templates import Template, write_conversation

LONGEST = 1_500  # characters of an example that are shown
ENDING = 500  # of these, from its end: the last answer stands there
OPEN, CLOSE = "⟦", "⟧"  # stand around what is learnt, where no style can


@dataclass(frozen=True)
class Piece:
    """A run of characters."""

    text: str
    learnt: bool
    left_out: bool = False  # it stands for others, and says how many


@dataclass(frozen=True)
class Marked:
    """An example as it is rendered."""

    file: str  # from the raw folder's name on
    line: int
    tokens: int  # of all its sequences
    learnt_tokens: int
    sequences: tuple[tuple[Piece, ...], ...]  # one, or one per learnt turn where a template writes turns anew


def mark_conversation(template: Template, conversation: Conversation) -> tuple[tuple[Piece, ...], ...]:
    """Return the sequences of a conversation as text in pieces, cut where they are too long to be read.

    Raises:
        TemplateError: the template cannot write it.
    """
    if template.name == "delift":
        prompt, response = delift.read_exchange(conversation)
        end = template.tokenizer.eos_token
        return (cut([Piece(f"{delift.BASE}{prompt}\n{end}", False), Piece(f"{response}{end}", True)]),)
    written = write_conversation(template, conversation)
    return tuple(cut(list(split(template.control.show(one.text), one.answers))) for one in written)


def split(text: str, answers: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    """Yield the pieces of a text in which some spans are learnt.

    >>> [(one.text, one.learnt) for one in split("ask: yes.", [(5, 8)])]
    [('ask: ', False), ('yes', True), ('.', False)]
    """
    place = 0
    for start, stop in [*answers, (len(text), len(text))]:
        if place < start:
            yield Piece(text[place:start], False)
        if start < stop:
            yield Piece(text[start:stop], True)
        place = stop


def cut(pieces: Sequence[Piece], longest: int = LONGEST, ending: int = ENDING) -> tuple[Piece, ...]:
    """Return pieces of a text of which the middle is left out where it is long, with a piece that says so.

    Args:
        pieces: of one text, in order.
        longest: characters that are shown.
        ending: of these, from the text's end.

    >>> [one.text for one in cut([Piece("a" * 20, False), Piece("b" * 20, True)], longest=10, ending=4)]
    ['aaaaaa', '… 30 characters are left out, 16 of them learnt …', 'bbbb']
    """
    total = sum(len(piece.text) for piece in pieces)
    if total <= longest:
        return tuple(pieces)
    first, last = longest - ending, total - ending
    gone = list(_take(pieces, first, last))
    count, learnt = sum(len(one.text) for one in gone), sum(len(one.text) for one in gone if one.learnt)
    note = f"… {count:,} characters are left out, {learnt:,} of them learnt …"
    return *_take(pieces, 0, first), Piece(note, False, left_out=True), *_take(pieces, last, total)


def write_plain(pieces: Sequence[Piece]) -> str:
    """Return pieces as one text, the learnt ones between marks.

    >>> write_plain([Piece("2 + 2 = ", False), Piece("4", True)])
    '2 + 2 = ⟦4⟧'
    """
    return "".join(f"{OPEN}{one.text}{CLOSE}" if one.learnt else _frame(one) for one in pieces)


def _frame(piece: Piece) -> str:
    return f"\n{piece.text}\n" if piece.left_out else piece.text


def _take(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[Piece]:
    """Yield what stands from one character to before another."""
    place = 0
    for piece in pieces:
        text = piece.text[max(0, start - place) : max(0, stop - place)]
        if text:
            yield Piece(text, piece.learnt)
        place += len(piece.text)
