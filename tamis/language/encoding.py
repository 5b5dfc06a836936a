"""Token ids of conversations: sequences in which some tokens are answers, flat in memory.

Symbols: a *sequence* is what a model reads from its first token on; a *row* is an example, of one sequence as a rule,
of several where its template renders a turn otherwise once others follow it. An answer token belongs to a learnt turn,
its end-of-turn token included: these are scored, trained and measured. A sequence's *head* is its beginning that does
not depend on its turns: the beginning-of-sequence token, the system message, the tools.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """A run of tokens, and which of them are answers."""

    tokens: Int[np.ndarray, " token"]  # int32
    answers: Bool[np.ndarray, " token"]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def last_answer(self) -> int:
        """Return the last token of the last answer: it ends the turn."""
        return int(self.tokens[self.answers][-1])


@dataclass(frozen=True, eq=False)
class Encoding:
    """Rows under one template; sequence s holds `tokens[starts[s]:starts[s + 1]]`, row r the sequences from `rows[r]`
    to before `rows[r + 1]`."""

    tokens: Int[np.ndarray, " token"]  # int32, of all sequences one after the other
    answers: Bool[np.ndarray, " token"]
    starts: Int[np.ndarray, " bound"]  # one more than there are sequences
    heads: Int[np.ndarray, " sequence"]  # how many of a sequence's first tokens are its head
    rows: Int[np.ndarray, " edge"]  # one more than there are rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows) - 1

    def row(self, place: SupportsIndex, *, headless: bool = False) -> list[TokenSequence]:
        """Return the sequences of a row up to their last answers, with or without their heads.

        What stands after the last answer, such as a line end, is seen by no token that is scored.
        """
        found = []
        for number in range(self.rows[place], self.rows[place + 1]):
            first, last = self.starts[number], self.starts[number + 1]
            stop = last - int(np.argmax(self.answers[first:last][::-1]))  # the whole where it has no answer
            part = slice(first + (self.heads[number] if headless else 0), stop)
            found.append(TokenSequence(self.tokens[part], self.answers[part]))
        return found

    def head(self, place: SupportsIndex) -> Int[np.ndarray, " token"]:
        """Return the head of a row, which its sequences share; no token where there is none."""
        first = self.rows[place]
        return self.tokens[self.starts[first] : self.starts[first] + self.heads[first]]

    def pick(self, places: Iterable[SupportsIndex]) -> "Encoding":
        """Return the encoding of some rows, in the order given.

        >>> join_rows([[make_sequence([1], [2])], [make_sequence([3], [4])]], [0, 0]).pick([1]).tokens.tolist()
        [3, 4]
        """
        chosen = [int(place) for place in places]
        heads = [int(self.heads[self.rows[place]]) for place in chosen]
        return join_rows([self.row(place) for place in chosen], heads)

    def by_head(self, places: Iterable[SupportsIndex]) -> Iterator[tuple[Int[np.ndarray, " token"], list[int]]]:
        """Yield each distinct head with the rows among some that have it, in the order of their first rows."""
        found: dict[bytes, list[int]] = {}
        for place in map(int, places):
            found.setdefault(self.head(place).tobytes(), []).append(place)
        for members in found.values():
            yield self.head(members[0]), members

    @property
    def sizes(self) -> Int[np.ndarray, " row"]:
        """Return the tokens that are written of each row, over all of its sequences, up to their ends."""
        return np.diff(self.starts[self.rows])

    @property
    def head_tokens(self) -> Int[np.ndarray, " row"]:
        """Return the tokens of each row's head."""
        return self.heads[self.rows[:-1]].astype(np.int64)

    @property
    def lengths(self) -> Int[np.ndarray, " sequence"]:
        """Return the tokens of each sequence up to its last answer, head included: those that a model runs."""
        if not len(self.heads):
            return np.empty(0, np.int64)
        places = np.where(self.answers, np.arange(1, len(self.tokens) + 1), 0)
        stops = np.maximum.reduceat(places, self.starts[:-1])
        return np.where(stops, stops, self.starts[1:]) - self.starts[:-1]

    @property
    def own_tokens(self) -> Int[np.ndarray, " row"]:
        """Return the tokens that a model runs of each row, over all of its sequences, heads left out."""
        counted = np.concatenate([[0], np.cumsum(self.lengths - self.heads, dtype=np.int64)])
        return np.diff(counted[self.rows])

    @property
    def longest(self) -> Int[np.ndarray, " row"]:
        """Return the tokens of each row's longest sequence as it is run, which is what must fit in a context."""
        return np.maximum.reduceat(self.lengths, self.rows[:-1]) if len(self) else np.empty(0, np.int64)

    @property
    def answer_tokens(self) -> Int[np.ndarray, " row"]:
        """Return the answer tokens of each row, over all of its sequences."""
        counted = np.concatenate([[0], np.cumsum(self.answers, dtype=np.int64)])
        return np.diff(counted[self.starts[self.rows]])


Tokens = Sequence[int] | Int[np.ndarray, " token"]


def make_sequence(context: Tokens, answer: Tokens) -> TokenSequence:
    """Return a sequence whose last tokens are its answer.

    >>> make_sequence([5, 6], [7]).answers.tolist()
    [False, False, True]
    """
    tokens = np.concatenate([np.asarray(part, np.int32) for part in (context, answer)])
    return TokenSequence(tokens, np.arange(len(tokens)) >= len(context))


def put_before(prefix: Int[np.ndarray, " token"], sequence: TokenSequence) -> TokenSequence:
    """Return a sequence with other tokens before it, none of them an answer.

    >>> put_before(np.array([1], np.int32), make_sequence([2], [3])).tokens.tolist()
    [1, 2, 3]
    """
    tokens = np.concatenate([prefix, sequence.tokens])
    return TokenSequence(tokens, np.concatenate([np.zeros(len(prefix), bool), sequence.answers]))


def join_rows(rows: Sequence[Sequence[TokenSequence]], heads: Sequence[int]) -> Encoding:
    """Return rows as one encoding.

    Args:
        rows: the sequences of each.
        heads: how many first tokens of a row's sequences are its head.
    """
    pieces = [piece for row in rows for piece in row]
    counts = [len(row) for row in rows]
    tokens = [piece.tokens for piece in pieces]
    answers = [piece.answers for piece in pieces]
    return Encoding(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        answers=np.concatenate([np.empty(0, bool), *answers]),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        heads=np.repeat(np.asarray(heads, np.int32), counts),
        rows=np.cumsum([0, *counts], dtype=np.int64),
    )


def refuse_long(encoding: Encoding, rows: Sequence[int], max_tokens: int) -> None:
    """Raise ValueError where a sequence of a row exceeds `max_tokens`, naming the rows by number."""
    longest = encoding.longest
    long = [rows[place] for place in np.flatnonzero(longest > max_tokens)]
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} rows are longer than models.max_tokens ({max_tokens}; the longest has "
            f"{longest.max()} tokens), first rows {long[:3]}; raise it or leave these rows out of the raw data"
        )
