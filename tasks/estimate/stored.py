"""What of a stage's work is known already: kept in the stores of pairs, vectors and scores, or beside checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from tasks.estimate.pairs import count_lacking
from tasks.estimate.work import Case, Work, is_gated_by, scale

APART = ("less", "ica", "tov")  # selectors whose figures stand by the rows that they are measured with


def count_left(name: str, case: Case, work: Work) -> Work:
    """Return what is left of a stage's work; where the stores are not asked, all of it, as the most that it can be.

    A fresh project has no stores, so nothing is read, and no digest of a model is made.
    """
    kinds = {"embedding": "embeddings", "utility": "pairs", "scores": "scores", "gradients": "gradients"}
    if work == Work() or name not in {*kinds, "finetuning"}:
        return work
    place = case.cache / kinds.get(name, f"finetuning/{case.version}")
    if not any(place.glob("*/part-*.parquet")) and not any(place.glob("*/finished")):
        return work
    if name == "utility":
        left = count_lacking(case)
        return replace(work, at_most=True) if left is None else left
    if name == "embedding" and not is_gated_by(case, "agreement"):
        return _count_texts(case, place, work)
    if name == "scores" and not is_gated_by(case, "ifd") and case.values.selection.selector not in APART:
        return _count_scored(case, place, work)
    return replace(work, at_most=True)


def _count_texts(case: Case, store: Path, work: Work) -> Work:
    from tasks.embedding.embedding import store_folder

    known = read_ids(store_folder(store, case.encoder, case.values.embedding.max_tokens))
    rows = [row["id"] for row in case.corpus.rows if row["used"] or row["earlier"] == "learnt"]
    return scale(work, _share_unknown(rows, known))


def _count_scored(case: Case, store: Path, work: Work) -> Work:
    from tasks.scores.scores import store_folder

    known = read_ids(store_folder(store, case.model, case.values.selection.selector))
    return scale(work, _share_unknown([case.corpus.rows[place]["id"] for place in case.corpus.places("pool")], known))


def _share_unknown(ids: Sequence[str], known: set[str]) -> float:
    return sum(one not in known for one in ids) / max(1, len(ids))


def read_ids(folder: Path) -> set[str]:
    """Return the ids that a store's folder holds."""
    parts = sorted(folder.glob("part-*.parquet"))
    return {name for path in parts for name in pq.read_table(path, columns=["id"])["id"].to_pylist()}
