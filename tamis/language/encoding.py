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


@dataclass(frozen=True, eq=False)
class Encoding:
    """Rows under one template; sequence s holds `tokens[starts[s]:starts[s + 1]]`, row r the sequences from `rows[r]`
    to before `rows[r + 1]`."""

    tokens: Int[np.ndarray, " token"]  # int32, of all sequences one after the other
    answers: Bool[np.ndarray, " token"]
    starts: Int[np.ndarray, " start"]  # one more than there are sequences
    heads: Int[np.ndarray, " sequence"]  # how many of a sequence's first tokens are its head
    rows: Int[np.ndarray, " bound"]  # one more than there are rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows) - 1


def join_rows(rows: Sequence[Sequence[TokenSequence]], heads: Sequence[int]) -> Encoding:
    """Return rows as one encoding.

    Args:
        rows: the sequences of each.
        heads: per row, how many first tokens of its sequences are their head.

    >>> one = TokenSequence(np.array([7, 8], np.int32), np.array([False, True]))
    >>> joined = join_rows([[one], [one, one]], [0, 1])
    >>> joined.starts.tolist(), joined.heads.tolist(), joined.rows.tolist()
    ([0, 2, 4, 6], [0, 1, 1], [0, 1, 3])
    """
    pieces = [piece for row in rows for piece in row]
    counts = [len(row) for row in rows]
    return Encoding(
        tokens=np.concatenate([np.empty(0, np.int32), *(piece.tokens for piece in pieces)]),
        answers=np.concatenate([np.empty(0, bool), *(piece.answers for piece in pieces)]),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        heads=np.repeat(np.asarray(heads, np.int32), counts),
        rows=np.cumsum([0, *counts], dtype=np.int64),
    )
