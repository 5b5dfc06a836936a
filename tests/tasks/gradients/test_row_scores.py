"""What is told of rows' scores beside their lengths, norms and losses."""

import numpy as np
import pytest
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import FIRST, run, sets_of, told

from tamis.gradients.row_sums import WIDTH
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.gradients.row_scores import RowScores, correlate, rank_correlation

LENGTHS = np.arange(2, 42)


def make_scores(phi, norms) -> RowScores:
    draw = np.random.default_rng(1)
    return RowScores(np.asarray(phi, float), np.square(norms), draw.uniform(1, 2, len(phi)), np.zeros((len(phi), 1)))


def test_a_score_that_is_length_is_told():
    phi = 1.0 / LENGTHS
    found = correlate(make_scores(phi, np.full(len(phi), 3.0)), LENGTHS, "dualsft")
    assert found["spearman"]["phi"]["tokens"] == -1.0
    assert found["notes"] == ["dualsft: this score is mostly length (rank correlation with response tokens -1.00)"]


def test_unit_gradients_of_rows_that_differ_in_length_only_have_no_preference():
    norms = LENGTHS**-0.7
    found = correlate(make_scores(0.4 * norms, norms), LENGTHS, "dualsft_cover")
    scores = make_scores(0.4 * norms, norms)
    assert scores.per_norm == pytest.approx(0.4)
    assert found["spearman"]["phi"]["tokens"] == -1.0
    assert found["notes"] == []


def test_a_score_that_is_none_of_them_is_not_told():
    phi = np.random.default_rng(0).normal(size=len(LENGTHS))
    assert correlate(make_scores(phi, 1.0 + (phi - phi.mean()) ** 2), LENGTHS, "dualsft")["notes"] == []


def test_rank_correlation_is_that_of_ranks_with_ties_shared():
    one, other = [1.0, 2.0, 2.0, 5.0, 0.0], [3.0, 1.0, 4.0, 4.0, 2.0]
    ranks = [[sum(x < y for x in values) + (values.count(y) - 1) / 2 for y in values] for values in (one, other)]
    assert rank_correlation(np.array(one), np.array(other)) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)


def test_rows_without_a_gradient_are_worth_nothing():
    assert make_scores([0.0, 2.0], [0.0, 4.0]).per_norm.tolist() == [0.0, 0.5]


def test_a_run_writes_norms_losses_and_sketches_and_tells_correlations(tmp_path, toy):
    ids = write_examples(tmp_path / "examples", pool=14, target=3)
    run(tmp_path, toy, FIRST, selector="dualsft_cover", mask_selector="none")
    rows = read_table(tmp_path / "out/phi_data.parquet", schemas.PHI_DATA).to_pylist()
    sketches = read_table(tmp_path / "out/sketches.parquet", schemas.sketches(WIDTH)).to_pylist()
    assert [row["id"] for row in sketches] == ids
    for row, sketch in zip(rows, sketches, strict=True):
        assert row["per_norm"] == pytest.approx(row["score"] / row["norm"])
        assert np.linalg.norm(sketch["sketch"]) == pytest.approx(row["norm"], rel=0.5)
    found, tokens = told(tmp_path / "out"), sets_of(tmp_path, toy, FIRST)
    answers = tokens.encoding.answer_tokens[tokens.pool]
    wanted = rank_correlation(np.array([row["score"] for row in rows]), answers)
    assert found["spearman"]["phi"]["tokens"] == wanted
