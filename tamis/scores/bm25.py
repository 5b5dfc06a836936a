"""Selector `bm25`: rows that share words with the reference rows, each of these in turn; no model is asked."""

import re
from collections.abc import Sequence

import bm25s
import numpy as np
from jaxtyping import Int64

from tamis.scores.references import order_round_robin

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75  # how soon a word's repetitions stop to count; how much a long row is held against it


def order_bm25(texts: Sequence[str], queries: Sequence[str]) -> Int64[np.ndarray, " row"]:
    """Return all rows in the order in which the queries name them, each its most similar one, then its next, in turn.

    similar(q, i) = sum over the words w of q of idf_w * f_wi / (f_wi + k1 * (1 - b + b * l_i / mean l)),
    idf_w = ln(1 + (n - n_w + 1/2) / (n_w + 1/2)); f_wi: how often w stands in row i, of l_i words; n_w: rows
    with w, of n

    **Source**: Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond", section 3, by
    bm25s (Lù 2024, arXiv 2407.03618), in Lucene's form, whose idf is above 0. The round-robin is that of RDS+, arXiv
    2503.01807. Differs: a word that a query repeats counts each time; words are runs of letters, digits and
    underscores, in lower case, none left out.

    Args:
        texts: of the rows.
        queries: texts of the reference rows, at least one.

    >>> order_bm25(["a red cat", "one blue dog", "two dogs"], ["my dog"]).tolist()
    [1, 0, 2]
    """
    words = [split_words(text) for text in texts]
    if not any(words):
        return np.arange(len(texts), dtype=np.int64)
    index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    index.index(words, show_progress=False)
    known = set(index.vocab_dict)
    similar = np.zeros((len(queries), len(texts)))
    for place, query in enumerate(queries):
        asked = [word for word in split_words(query) if word in known]
        if asked:
            similar[place] = index.get_scores(asked)
    return order_round_robin(similar)


def split_words(text: str) -> list[str]:
    """Return the words of a text.

    >>> split_words("List all files: ls -la_x")
    ['list', 'all', 'files', 'ls', 'la_x']
    """
    return WORD.findall(text.lower())
