"""Selector `bm25`: rows by the words that they share with reference rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
from worlds.toy_corpus import row, tell, write_examples, write_rows
from worlds.toy_selection import HALF, chosen, run

from tamis.examples.conversations import make_exchange
from tamis.scores.bm25 import K1, B, order_bm25, split_words
from tamis.scores.references import order_round_robin

BM25 = replace(HALF, selector="bm25")


def slow_similarities(texts: list[str], queries: list[str]) -> np.ndarray:
    """The sum over words, one at a time, from its formula."""
    rows = [text.split() for text in texts]
    mean = sum(map(len, rows)) / len(rows)
    found = np.zeros((len(queries), len(rows)))
    for q, query in enumerate(queries):
        for i, words in enumerate(rows):
            for word in query.split():
                holding = sum(word in other for other in rows)
                idf = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
                often = words.count(word)
                found[q, i] += idf * often / (often + K1 * (1 - B + B * len(words) / mean)) if often else 0.0
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_distinct_similarities_is_that_of_the_slow_formula(seed):
    generator = np.random.default_rng(seed)
    names = [f"w{number}" for number in range(30)]
    texts = [" ".join(generator.choice(names, generator.integers(5, 40))) for _ in range(20)]
    queries = [" ".join(generator.choice(names, 20)) for _ in range(3)]
    similar = slow_similarities(texts, queries)
    assert min(np.diff(np.sort(row)).min() for row in similar) > 1e-9
    assert order_bm25(texts, queries).tolist() == order_round_robin(similar).tolist()


def test_a_row_that_shares_no_word_comes_after_all_that_share_one():
    texts = ["nothing here", "remove a folder", "list files", "folder files"]
    assert order_bm25(texts, ["files in a folder"]).tolist()[-1] == 0


def test_case_and_signs_do_not_tell_words_apart():
    assert split_words("List FILES, list: x!") == ["list", "files", "list", "x"]
    assert order_bm25(["LIST!", "other"], ["list"]).tolist() == order_bm25(["list", "other"], ["List?"]).tolist()


def test_rows_without_any_word_stand_as_they_are():
    assert order_bm25(["!", "?", ""], ["x"]).tolist() == [0, 1, 2]
    assert order_bm25(["a", "b"], ["?"]).tolist() == [0, 1]


def test_the_same_texts_give_the_same_order_again():
    texts, queries = ["a b", "b c", "c d", "a d"], ["a c", "d b"]
    assert order_bm25(texts, queries).tolist() == order_bm25(texts, queries).tolist()


def write(folder, split: str):
    """Write rows of the pool, two of them about what the reference rows are about."""

    def make(place, side, prompt):
        return row(place, side) | tell(make_exchange(prompt, f"answer {place}"))

    pool = ["list files", "what is 3 + 4", "say hi", "delete a file", "count to 5", "who are you"]
    rows = [make(place, "pool", prompt) for place, prompt in enumerate(pool)]
    return write_rows(folder / "examples", [*rows, make(9, split, "list the files"), make(10, split, "delete it")])


@pytest.mark.parametrize("split", ["target", "validation"])
def test_rows_that_share_words_with_reference_rows_are_chosen_first(tmp_path, split):
    ids = write(tmp_path, split)
    subset, facts = run(tmp_path, replace(BM25, budget={"count": 2}))
    assert chosen(subset) == [ids[0], ids[3]]
    assert (facts["selector"], facts["objective"], facts["chosen_rows"]) == ("bm25", None, 2)


def test_a_larger_budget_goes_on_where_a_smaller_one_ends(tmp_path):
    write(tmp_path, "target")
    few, many = (chosen(run(tmp_path, replace(BM25, budget={"count": count}))[0]) for count in (2, 5))
    assert many[:2] == few


def test_without_reference_rows_it_is_refused_with_the_ways_out(tmp_path):
    write_examples(tmp_path / "examples")
    with pytest.raises(ValueError, match=r"selector bm25 .* has 0 of either; set examples\.target or examples\.valid"):
        run(tmp_path, BM25)
