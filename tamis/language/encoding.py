"""Token ids of conversations: sequences in which some tokens are answers, flat in memory; and of texts.

Symbols: a *sequence* is what a model reads from its first token on; a *row* is an example, of one sequence as a rule,
of several where its template renders a turn otherwise once others follow it. An answer token belongs to a learnt turn,
its end-of-turn token included: these are scored, trained and measured. A sequence's *head* is its beginning that does
not depend on its turns: the beginning-of-sequence token, the system message, the tools. A *control token* is one that
the tokenizer marks as special, which opens or ends turns; its text inside a message is text like any other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import AddedToken

HIDDEN = re.compile("[\udc00-\udfff]")  # lone surrogates: no text that can be kept in a file has one
PRIVATE = 0x100000  # the first character of Unicode's last plane, for private use


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
    def own_tokens(self) -> Int[np.ndarray, " row"]:
        """Return the tokens of each row that are run, over all of its sequences, without their heads."""
        counted = np.concatenate([[0], np.cumsum(self._run - self.heads, dtype=np.int64)])
        return np.diff(counted[self.rows])

    @property
    def longest(self) -> Int[np.ndarray, " row"]:
        """Return the tokens of each row's longest sequence that are run, which must fit in a model's context."""
        return np.maximum.reduceat(self._run, self.rows[:-1]) if len(self) else np.empty(0, np.int64)

    @property
    def _run(self) -> Int[np.ndarray, " sequence"]:
        """Return how many tokens of each sequence are run: those up to its last answer (`row`)."""
        if not len(self.heads):
            return np.empty(0, np.int64)
        ends = np.maximum.reduceat(np.where(self.answers, np.arange(1, len(self.tokens) + 1), 0), self.starts[:-1])
        return np.where(ends, ends, self.starts[1:]) - self.starts[:-1]

    @property
    def answer_tokens(self) -> Int[np.ndarray, " row"]:
        """Return the answer tokens of each row, over all of its sequences."""
        counted = np.concatenate([[0], np.cumsum(self.answers, dtype=np.int64)])
        return np.diff(counted[self.starts[self.rows]])


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """A tokenizer that makes a control token of its text only where a template writes it, not where a message has it.

    A message's texts are *hidden* before a template gets them: their letters become lone surrogates. What the template
    writes is hidden text, in which each hidden letter stands for one letter, so that places stay what they are.
    """

    tokenizer: Any  # a Hugging Face tokenizer

    @cached_property
    def texts(self) -> list[str]:
        """Return the texts that the tokenizer makes control tokens of, the longest first."""
        marked = {one.content for one in self.tokenizer.added_tokens_decoder.values() if one.special}
        return sorted({*marked, *self.tokenizer.all_special_tokens} - {""}, key=lambda text: (-len(text), text))

    def hide(self, value: Any) -> Any:
        """Return a text, or lists and mappings of texts, with the texts of control tokens hidden."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: found[0].translate(self._letters), value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, list) else value

    def show(self, text: str) -> str:
        """Return a hidden text as it is."""
        return text.translate({ord(hidden): letter for letter, hidden in self._letters.items()})

    def tokenise(self, texts: Sequence[str]) -> list[Int[np.ndarray, " token"]]:
        """Return the token ids of hidden texts, int32, without what a tokenizer puts around a text by itself."""
        return [ids for ids, _ in self._tokenise(texts)]

    def tokenise_placed(
        self, texts: Sequence[str]
    ) -> list[tuple[Int[np.ndarray, " token"], Int[np.ndarray, "token 2"]]]:
        """Return the token ids of hidden texts, and from which letter to before which each token stands."""
        placed = self._tokenise(texts, return_offsets_mapping=True)
        return [(ids, np.array(offsets, np.int32).reshape(-1, 2)) for ids, offsets in placed]

    def _tokenise(self, texts: Sequence[str], **asked: bool) -> Iterator[tuple[Int[np.ndarray, " token"], Any]]:
        """Yield the ids of each text, and their offsets where these are asked for."""
        plain = [text for text in texts if not HIDDEN.search(text)]
        found = self.tokenizer(plain, add_special_tokens=False, **asked) if plain else {"input_ids": []}
        numbers = iter(range(len(plain)))
        for text in texts:
            if HIDDEN.search(text):
                yield self._tokenise_hidden(text)
            else:
                number = next(numbers)
                offsets = found["offset_mapping"][number] if asked else None
                yield np.array(found["input_ids"][number], np.int32), offsets

    def _tokenise_hidden(self, text: str) -> tuple[Int[np.ndarray, " token"], list[tuple[int, int]]]:
        """Tokenise a text in which control tokens have other names of the same length, the hidden ones their own.

        Raises:
            ValueError: the tokenizer is a slow one, or does not find the other names.
        """
        tokenizer, names, ids = self._renamed
        parts = self._pattern.split(text)  # every second one is a control token
        renamed = "".join(names[part] if place % 2 else self.show(part) for place, part in enumerate(parts))
        found = tokenizer.encode(renamed, add_special_tokens=False)
        if sum(one in ids for one in found.ids) != len(parts) // 2:
            raise ValueError(
                "the tokenizer does not tell its control tokens from their texts inside messages; set "
                "examples.on_special_tokens: reject"
            )
        return np.array([ids.get(one, one) for one in found.ids], np.int32), found.offsets

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, self.texts))})" if self.texts else "(?!)")

    @cached_property
    def _letters(self) -> dict[int, str]:
        letters = sorted(set("".join(self.texts)))
        return {ord(letter): chr(0xDC00 + place) for place, letter in enumerate(letters)}

    @cached_property
    def _renamed(self) -> tuple[Any, dict[str, str], dict[int, int]]:
        """Return the tokenizer with its control tokens under other names, these names, and the ids that they are for.

        Marked tokens of the copy are text to it, and the other names are tokens that are cut out like these were.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer {type(self.tokenizer).__name__} cannot take the text of a control token as text; give "
                "the model's folder a tokenizer.json, or set examples.on_special_tokens: reject"
            )
        marked = {one.content: one for one in self.tokenizer.added_tokens_decoder.values()}
        names = {text: chr(PRIVATE + place).ljust(len(text), "\0") for place, text in enumerate(self.texts)}
        copy = deepcopy(self.tokenizer.backend_tokenizer)
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = True
        copy.add_tokens([_rename(marked.get(text), name) for text, name in names.items()])
        ids = {copy.token_to_id(name): self.tokenizer.convert_tokens_to_ids(text) for text, name in names.items()}
        return copy, names, ids


def _rename(token: AddedToken | None, name: str) -> AddedToken:
    """Return a token of another name that is cut out of a text as the first is."""
    if token is None:
        return AddedToken(name, normalized=False)
    flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(name, **flags)


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


def keep_answers(encoding: Encoding, most: int) -> Encoding:
    """Return rows of which the first so many answer tokens alone are answers; sequences left without any are dropped.

    What stands after the last answer that is left is run no more (`Encoding.row`).

    Args:
        encoding: of rows whose sequences each have an answer.
        most: answer tokens of a row, at least 1.

    >>> keep_answers(join_rows([[make_sequence([1], [2, 3, 4])]], [0]), 2).row(0)[0].tokens.tolist()
    [1, 2, 3]
    """
    rows = []
    for first, last in pairwise(encoding.rows.tolist()):
        left, pieces = most, []
        for start, stop in pairwise(encoding.starts[first : last + 1].tolist()):
            answers = encoding.answers[start:stop]
            kept = answers & (np.cumsum(answers) <= left)
            left -= int(kept.sum())
            pieces += [TokenSequence(encoding.tokens[start:stop], kept)] if kept.any() else []
        rows.append(pieces)
    return join_rows(rows, encoding.head_tokens.tolist())


def refuse_long(encoding: Encoding, rows: Sequence[int], max_tokens: int) -> None:
    """Raise ValueError where a sequence of a row exceeds `max_tokens`, naming the rows by number."""
    longest = encoding.longest
    long = [rows[place] for place in np.flatnonzero(longest > max_tokens)]
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} rows are longer than models.max_tokens ({max_tokens}; the longest has "
            f"{longest.max()} tokens), first rows {long[:3]}; raise it or leave these rows out of the raw data"
        )
