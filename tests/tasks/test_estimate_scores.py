"""What stage `scores` is estimated to compute for selectors that score rows beside reference rows."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from worlds.places import find_folders
from worlds.toy_corpus import write_examples

from tamis.language.packing import group_rows, plan_packs
from tasks.estimate import rows as estimate_rows
from tasks.estimate.work import Case, count_scores
from tasks.scores import answers
from tasks.scores.scores import write_scores
from tasks.scores.settings import ScoresSettings
from tasks.selection.settings import SelectionSettings
from tasks.settings import RuntimeSettings

RUNTIME = RuntimeSettings(shard_rows=50, pack_tokens=400)


@pytest.fixture(params=["target", "validation"])
def folder(request, tmp_path) -> Path:
    """Examples of nine rows of the pool and five reference rows."""
    write_examples(tmp_path / "examples", pool=9, **{request.param: 5})
    return tmp_path


def estimate(folder: Path, toy, selector: str):
    settings = SelectionSettings(selector=selector, budget={"count": 3})
    values = SimpleNamespace(selection=settings, scores=ScoresSettings(), runtime=RUNTIME)
    found = estimate_rows.read_artifact(folder / "examples/examples.parquet")
    corpus = estimate_rows.measure(found, values, toy, None)
    return corpus, count_scores(Case("v1", values, corpus, None, toy, toy, folder, None))


def count_run(folder: Path, toy, selector: str, monkeypatch) -> tuple[int, int]:
    """Run the stage; return the rows that it scored and the tokens of the packs that it read answers in."""
    scored, plain = [], answers.score_rows

    def count(model, rows, pack_tokens):
        scored.append(sum(len(pack.tokens) for pack in plan_packs(group_rows(rows), pack_tokens)))
        return plain(model, rows, pack_tokens)

    monkeypatch.setattr(answers, "score_rows", count)
    how = {"model": toy, "settings": ScoresSettings(), "runtime": RUNTIME, "selector": selector}
    return write_scores(find_folders(folder), **how)["rows_scored"], sum(scored)


@pytest.mark.parametrize("selector", ["ica", "tov"])
def test_rows_and_tokens_are_those_that_are_scored(folder, toy, selector, monkeypatch):
    corpus, work = estimate(folder, toy, selector)
    rows, tokens = count_run(folder, toy, selector, monkeypatch)
    assert work.rows == rows == 9
    assert work.forward == pytest.approx(tokens, rel=0.05)  # other demos, drawn
    tuned = corpus.whole(corpus.references())
    assert work.backward == (tuned if selector == "tov" else 0)
    assert len(corpus.references()) == 5


def test_vectors_are_of_the_pool_and_of_the_reference_rows(folder, toy, monkeypatch):
    corpus, work = estimate(folder, toy, "rds")
    rows, _ = count_run(folder, toy, "rds", monkeypatch)
    assert work.rows == rows == 14
    assert work.forward == pytest.approx(corpus.whole([*corpus.places("pool"), *corpus.references()]), rel=0.05)
