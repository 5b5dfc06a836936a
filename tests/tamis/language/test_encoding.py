"""Rows are runs of tokens, of which some are answers; what is counted and picked is what a slow walk finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.language.encoding import (
    Encoding,
    TokenSequence,
    join_rows,
    keep_answers,
    make_sequence,
    put_before,
    refuse_long,
)


def sequence(tokens: list[int], answers: list[int]) -> TokenSequence:
    """Return a sequence whose answer tokens stand at some places."""
    return TokenSequence(np.array(tokens, np.int32), np.isin(np.arange(len(tokens)), answers))


TWO = [  # a row of one sequence with two answers and a line end, and a row of two sequences
    [sequence([1, 2, 3, 4, 5, 6, 7], [2, 5])],
    [sequence([1, 9, 3], [2]), sequence([1, 9, 8, 3, 4, 7, 7], [3, 4])],
]


@pytest.fixture
def encoding() -> Encoding:
    return join_rows(TWO, [1, 2])


@st.composite
def random_rows(draw) -> tuple[list[list[TokenSequence]], list[int]]:
    """Rows of one to three sequences, each with an answer after its head, and their heads."""
    rows, heads = [], []
    for _ in range(draw(st.integers(0, 5))):
        heads.append(draw(st.integers(0, 3)))
        row = []
        for _ in range(draw(st.integers(1, 3))):
            more = draw(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6))
            asked = [*range(heads[-1] + 1), *(token for token, _ in more)]
            answers = [heads[-1] + 1 + place for place, (_, answer) in enumerate(more) if answer]
            row.append(sequence(asked, answers or [len(asked) - 1]))
        rows.append(row)
    return rows, heads


def cut(piece: TokenSequence) -> list[int]:
    """Return the tokens up to the last answer, walking back from the end."""
    tokens, answers = piece.tokens.tolist(), piece.answers.tolist()
    while not answers[-1]:
        tokens.pop()
        answers.pop()
    return tokens


def tokens_of(row: list[TokenSequence]) -> list[list[int]]:
    return [piece.tokens.tolist() for piece in row]


def test_a_row_ends_with_its_last_answer(encoding):
    assert tokens_of(encoding.row(0)) == [[1, 2, 3, 4, 5, 6]]
    assert encoding.row(0)[0].answers.tolist() == [False, False, True, False, False, True]


def test_a_row_has_as_many_sequences_as_the_template_makes_of_it(encoding):
    assert tokens_of(encoding.row(1)) == [[1, 9, 3], [1, 9, 8, 3, 4]]


def test_a_row_may_be_read_without_its_head(encoding):
    assert tokens_of(encoding.row(0, headless=True)) == [[2, 3, 4, 5, 6]]
    assert tokens_of(encoding.row(1, headless=True)) == [[3], [8, 3, 4]]
    assert [piece.answers.tolist() for piece in encoding.row(1, headless=True)] == [[True], [False, True, True]]


def test_a_head_is_what_the_sequences_of_a_row_begin_with(encoding):
    assert [encoding.head(place).tolist() for place in (0, 1)] == [[1], [1, 9]]


def test_what_is_written_is_counted_whole_and_what_is_run_up_to_the_last_answer(encoding):
    assert encoding.sizes.tolist() == [7, 10]
    assert encoding.longest.tolist() == [6, 5]
    assert encoding.own_tokens.tolist() == [5, 1 + 3]
    assert encoding.answer_tokens.tolist() == [2, 3]
    assert encoding.head_tokens.tolist() == [1, 2]


@given(random_rows())
def test_counts_are_those_of_a_walk_over_the_rows(made):
    rows, heads = made
    found = join_rows(rows, heads)
    assert len(found) == len(rows)
    assert found.sizes.tolist() == [sum(map(len, row)) for row in rows]
    assert found.longest.tolist() == [max(len(cut(piece)) for piece in row) for row in rows]
    assert found.head_tokens.tolist() == heads
    assert found.answer_tokens.tolist() == [sum(int(piece.answers.sum()) for piece in row) for row in rows]
    assert found.own_tokens.tolist() == [
        sum(len(cut(piece)) - head for piece in row) for row, head in zip(rows, heads, strict=True)
    ]
    for place, (row, head) in enumerate(zip(rows, heads, strict=True)):
        assert tokens_of(found.row(place)) == [cut(piece) for piece in row]
        assert tokens_of(found.row(place, headless=True)) == [cut(piece)[head:] for piece in row]


@given(random_rows(), st.lists(st.integers(0, 4)))
def test_picked_rows_are_the_rows_that_were_asked_for_in_their_order(made, places):
    rows, heads = made
    places = [place for place in places if place < len(rows)]
    whole = join_rows(rows, heads)
    found = whole.pick(places)
    assert [tokens_of(found.row(place)) for place in range(len(found))] == [tokens_of(whole.row(one)) for one in places]
    assert found.head_tokens.tolist() == [heads[place] for place in places]
    assert found.own_tokens.tolist() == whole.own_tokens[places].tolist()


def test_a_sequence_without_an_answer_is_read_whole():
    found = join_rows([[sequence([1, 2, 3], [])]], [1])
    assert (tokens_of(found.row(0)), found.longest.tolist(), found.answer_tokens.tolist()) == ([[1, 2, 3]], [3], [0])


def test_rows_are_grouped_by_their_heads_in_the_order_of_their_first_rows():
    rows = [[sequence([head, 5, 6], [2])] for head in (3, 1, 3, 2, 1)]
    found = join_rows(rows, [1] * 5)
    assert [(head.tolist(), members) for head, members in found.by_head([4, 2, 0, 3])] == [
        ([1], [4]),
        ([3], [2, 0]),
        ([2], [3]),
    ]
    assert list(found.by_head([])) == []


def test_heads_of_other_lengths_are_other_heads():
    found = join_rows([[sequence([3, 5, 6], [2])], [sequence([3, 5, 6], [2])]], [1, 2])
    assert [members for _, members in found.by_head([0, 1])] == [[0], [1]]


def test_the_last_answer_token_ends_the_turn():
    assert TWO[0][0].last_answer == 6
    assert TWO[1][1].last_answer == 4


def test_a_prefix_is_no_answer():
    found = put_before(np.array([7, 8], np.int32), TWO[0][0])
    assert found.tokens.tolist() == [7, 8, 1, 2, 3, 4, 5, 6, 7]
    assert found.answers.tolist() == [False, False, *TWO[0][0].answers.tolist()]
    assert put_before(np.empty(0, np.int32), TWO[0][0]).tokens.tolist() == TWO[0][0].tokens.tolist()


def test_an_answer_after_its_context_is_a_sequence():
    found = make_sequence([5], [6, 7])
    assert (found.tokens.tolist(), found.answers.tolist(), len(found)) == ([5, 6, 7], [False, True, True], 3)
    assert found.tokens.dtype == np.int32


def test_no_row_is_an_encoding_too():
    found = join_rows([], [])
    counts = (found.sizes, found.longest, found.own_tokens, found.answer_tokens, found.head_tokens)
    assert [count.tolist() for count in counts] == [[]] * 5
    assert len(found.pick([])) == 0


def test_rows_that_do_not_fit_are_named_by_their_numbers(encoding):
    text = (
        r"^1 of 2 rows are longer than models.max_tokens \(5; the longest has 6 tokens\), first rows \[40\]; raise it "
        "or leave these rows out of the raw data$"
    )
    with pytest.raises(ValueError, match=text):
        refuse_long(encoding, [40, 41], 5)


def test_what_stands_after_the_last_answer_need_not_fit(encoding):
    refuse_long(encoding, [40, 41], 6)


@given(st.lists(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=3), max_size=4))
def test_the_first_answers_of_a_row_are_kept_and_sequences_without_any_dropped(marks):
    marks = [[[False, *piece, True] for piece in row] for row in marks]
    rows = [[TokenSequence(np.arange(len(piece), dtype=np.int32), np.array(piece)) for piece in row] for row in marks]
    for most in (1, 3):
        found = keep_answers(join_rows(rows, [1] * len(rows)), most)
        wanted = []
        for row in marks:
            left, pieces = most, []
            for piece in row:
                kept = []
                for answer in piece:
                    kept.append(answer and left > 0)
                    left -= kept[-1]
                pieces += [kept] if any(kept) else []
            wanted.append(pieces)
        assert [len(found.row(place)) for place in range(len(rows))] == [len(pieces) for pieces in wanted]
        assert found.answers.tolist() == [mark for row in wanted for piece in row for mark in piece]
        assert found.heads.tolist() == [1] * sum(map(len, wanted))
