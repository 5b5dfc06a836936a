"""Selector `dualsft_cover`: rows that serve the target, each like a chosen one in the direction of its gradient."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
from worlds.toy_corpus import write_examples
from worlds.toy_selection import HALF, chosen, run, write_phi_data

from tasks.selection import inputs
from tasks.selection.selection import SelectionError

COVER = replace(HALF, selector="dualsft_cover", budget={"count": 4})
ROWS = 12


@pytest.fixture
def pool(tmp_path):
    """A pool whose rows all have gradients of some size, direction and worth."""
    draw = np.random.default_rng(3)
    ids = write_examples(tmp_path / "examples", pool=ROWS, held_out=1)
    return tmp_path, ids, draw.normal(size=(ROWS, 5)) + 0.5, draw.normal(0.4, 1.0, ROWS), draw.uniform(0.5, 9.0, ROWS)


def slow_kernel(directions, phi, norm) -> np.ndarray:
    """w_i max(cos(g_i, g_j), 0), a pair at a time."""
    found = np.zeros((len(phi), len(phi)))
    for i, one in enumerate(directions):
        for j, other in enumerate(directions):
            cosine = (one @ other) / np.linalg.norm(one) / np.linalg.norm(other)
            found[i, j] = max(phi[i] / norm[i], 0.0) * max(cosine, 0.0)
    return found


def picks(folder, ids, settings=COVER) -> list[int]:
    return [ids.index(name) for name in chosen(run(folder, settings)[0])]


def test_choice_is_that_of_plain_greedy_on_the_formula(pool):
    folder, ids, directions, phi, norm = pool
    write_phi_data(folder, ids, phi, sketches=directions * norm[:, None], norm=norm)
    kernel = slow_kernel(directions, phi, norm)
    assert picks(folder, ids) == oracles.greedy_of(lambda some: oracles.facility_location(kernel, some), ROWS, 4)


def test_choice_is_the_same_whatever_the_sizes_of_gradients(pool):
    folder, ids, directions, phi, norm = pool
    write_phi_data(folder, ids, phi, sketches=directions * norm[:, None], norm=norm)
    one = picks(folder, ids)
    sizes = np.random.default_rng(4).uniform(0.1, 50.0, ROWS)  # as those of longer or shorter answers
    write_phi_data(folder, ids, phi * sizes, sketches=directions * (norm * sizes)[:, None], norm=norm * sizes)
    assert picks(folder, ids) == one


def test_a_target_takes_the_rows_that_serve_it_however_few_its_topic_has(tmp_path):
    ids = write_examples(tmp_path / "examples", pool=ROWS, held_out=1, target=1)
    served = np.arange(ROWS) % 3 == 0  # a topic of a third of the pool
    write_phi_data(tmp_path, ids, np.where(served, 1.0, 1e-3), sketches=np.eye(ROWS), norm=1.0)
    subset, facts = run(tmp_path, replace(COVER, stratify="topic"))
    assert {ids.index(name) for name in chosen(subset)} == set(np.flatnonzero(served))
    assert facts["strata"] is None


def test_of_two_rows_with_one_direction_one_is_chosen(pool):
    folder, ids, directions, _, _ = pool
    directions[6:] = directions[:6]
    write_phi_data(folder, ids, np.ones(ROWS), sketches=directions, norm=1.0)
    found = picks(folder, ids)
    assert len({place % 6 for place in found}) == 4


def test_rows_that_do_not_serve_the_target_count_for_nothing(pool):
    folder, ids, _, _, _ = pool
    phi = np.where(np.arange(ROWS) < 3, 1.0, -1.0)
    directions = np.eye(ROWS)
    write_phi_data(folder, ids, phi, sketches=directions, norm=1.0)
    subset, facts = run(folder, COVER)
    assert {ids.index(name) for name in chosen(subset)[:3]} == {0, 1, 2}
    assert facts["zero_gain_picks"] == 1


def test_picks_that_gain_nothing_follow_by_what_a_row_is_worth(pool):
    folder, ids, _, _, _ = pool
    directions = np.eye(ROWS)
    phi = -np.arange(1.0, ROWS + 1)[::-1].copy()  # the last is the least bad
    phi[5] = 1.0
    write_phi_data(folder, ids, phi, sketches=directions, norm=1.0)
    assert picks(folder, ids) == [5, 11, 10, 9]


def test_rows_without_a_score_are_neither_chosen_nor_covered(pool):
    folder, ids, directions, phi, norm = pool
    there = np.arange(2, ROWS)
    phi = np.abs(phi)
    write_phi_data(folder, [ids[place] for place in there], phi[there], sketches=directions[there], norm=norm[there])
    subset, facts = run(folder, COVER)
    assert not {ids[0], ids[1]} & set(chosen(subset))
    rows = {row["id"]: row for row in subset}
    assert [rows[name]["covered_by"] for name in ids[:2]] == [None, None]
    assert facts["objective_name"] == "facility_location"


def test_a_pool_too_large_for_all_pairs_compares_the_nearest(pool, monkeypatch):
    folder, ids, directions, phi, norm = pool
    write_phi_data(folder, ids, np.abs(phi), sketches=directions, norm=norm)
    whole = picks(folder, ids)
    monkeypatch.setattr(inputs, "DENSE_ROWS", 4)
    monkeypatch.setattr(inputs, "NEAREST", ROWS - 2)
    subset, facts = run(folder, COVER)
    assert facts["kernel"] == "sparse"
    assert len({*chosen(subset)} & {ids[place] for place in whole}) >= 3


def test_a_budget_above_the_scored_rows_is_refused(pool):
    folder, ids, directions, phi, norm = pool
    write_phi_data(folder, ids[2:], phi[2:], sketches=directions[2:], norm=norm[2:])
    with pytest.raises(SelectionError, match=r"allows 11 rows, but only 10 of 12 rows of the pool have phi_data"):
        run(folder, replace(COVER, budget={"count": 11}))


def test_scores_without_sketches_are_refused(pool):
    folder, ids, _, phi, norm = pool
    write_phi_data(folder, ids, phi, norm=norm)
    with pytest.raises(SelectionError, match=r"sketches\.parquet lacks 12 of 12 rows"):
        run(folder, COVER)


def test_chosen_rows_are_told_beside_the_pool_in_length(pool):
    folder, ids, directions, phi, norm = pool
    write_phi_data(folder, ids, phi, sketches=directions, norm=norm)
    subset, facts = run(folder, COVER)
    tokens = [row["response_tokens"] for row in subset]
    assert facts["mean_response_tokens"] == {"chosen": np.mean(tokens[:4]), "pool": np.mean(tokens)}
    assert json.dumps(facts)
