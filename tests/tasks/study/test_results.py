"""Cells are kept in one table per pool, each once, and picks are counted by what is known of the rows."""

import numpy as np
import pytest
from worlds.study_cells import make_cell

from tasks.artifacts.tables import ArtifactError
from tasks.study import results


def test_a_cell_takes_the_place_of_an_earlier_one_with_its_name(tmp_path):
    path = results.find_file(tmp_path, "noisy-across-20")
    for seed in (1, 0, 1):
        results.add_cell(path, make_cell(seed=seed, asked=f"again {seed}"))
    found = results.read_cells(path)
    assert [(cell["seed"], cell["asked"]) for cell in found] == [(0, "again 0"), (1, "again 1")]
    assert found[0]["losses"] == pytest.approx(make_cell(seed=0)["losses"], rel=1e-6)
    assert results.read_all(tmp_path) == found
    assert results.read_cells(tmp_path / "none.parquet") == []


def test_the_order_in_which_cells_come_changes_no_byte(tmp_path):
    for name, seeds in (("a", (0, 1)), ("b", (1, 0))):
        for seed in seeds:
            results.add_cell(tmp_path / name / "pool.parquet", make_cell(seed=seed))
    assert (tmp_path / "a/pool.parquet").read_bytes() == (tmp_path / "b/pool.parquet").read_bytes()


def test_a_table_that_was_edited_is_refused(tmp_path):
    path = tmp_path / "pool.parquet"
    results.add_cell(path, make_cell())
    path.write_bytes(path.read_bytes().replace(b"here", b"Here"))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        results.read_cells(path)


def test_coverage_is_the_share_of_the_nearest_other_row_that_chosen_rows_stand_for():
    vectors = np.float32([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    clean = np.array([True, True, True, False])
    nearest = {0: 0.8, 2: 0.8}  # of rows 1 and 3 among all
    found = results.measure_coverage(vectors, np.array([1]), clean)
    assert found == pytest.approx((0.8 + 0.6) / sum(nearest.values()))
    assert results.measure_coverage(vectors, np.array([0, 1, 2]), clean) is None
    assert results.measure_coverage(vectors, np.array([1, 3]), clean) == pytest.approx(1)
