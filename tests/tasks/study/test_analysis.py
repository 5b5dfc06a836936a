"""Groups of cells are held against chance on the seeds that both have, all comparisons together."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds.study_cells import ROWS, make_cell, make_cells

from tasks.study import analysis
from tasks.study.analysis import Group


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(analysis, "RESAMPLES", 500)


def compare(cells, chance=("random",)):
    found = analysis.compare_with_chance(analysis.group_cells(cells), chance)
    return {one.group.selector: one for one in found}


def test_a_difference_is_the_mean_over_seeds_and_rows_of_losses_less_those_of_chance():
    cells = make_cells()
    for name, one in compare(cells).items():
        total = 0.0
        for seed in range(5):
            ours, chance = (next(c for c in cells if (c["selector"], c["seed"]) == (s, seed)) for s in (name, "random"))
            for loss, other in zip(ours["losses"], chance["losses"], strict=True):
                total += (loss - other) / (5 * ROWS)
        assert one.loss.mean == pytest.approx(total)
        assert one.loss.low <= one.loss.mean <= one.loss.high


def test_verdicts_tell_what_was_planted_and_p_is_adjusted_for_all_of_them():
    found = compare(make_cells())
    assert {name: one.verdict for name, one in found.items()} == {
        "default": "better",
        "embedding": "worse",
        "equal": "no difference seen",
    }
    assert found["default"].adjusted == pytest.approx(3 * found["default"].loss.p)


def test_roles_and_forms_of_chance_are_families_of_their_own():
    cells = make_cells() + make_cells("confirm-tldr", role="confirm")
    found = analysis.compare_with_chance(analysis.group_cells(cells), ("random", "equal"))
    assert {(one.role, one.against.selector) for one in found} == {
        (role, name) for role in ("design", "confirm") for name in ("random", "equal")
    }
    assert all(one.group.selector in ("default", "embedding") for one in found)
    assert {one.adjusted for one in found if one.group.selector == "default"} == {2 * 2 / 501}


def test_what_looks_further_makes_nothing_of_the_study_less_certain():
    alone, further = make_cells(), make_cells("rare-svamp")
    groups = analysis.group_cells(alone)
    found = analysis.compare_with_chance(analysis.group_cells(alone + further), ("random",), own=set(groups))
    own = {one.group: one.adjusted for one in found if one.group in groups}
    assert own == {one.group: one.adjusted for one in compare(alone).values()}
    together = analysis.compare_with_chance(analysis.group_cells(alone + further), ("random",))
    assert any(one.adjusted > own[one.group] for one in together if one.group in groups)


def test_only_seeds_that_both_have_are_compared():
    cells = [cell for cell in make_cells() if cell["selector"] != "default" or cell["seed"] < 2]
    found = compare(cells)
    assert (found["default"].seeds, found["embedding"].seeds) == (2, 5)


def test_cells_that_chose_from_other_rows_are_not_compared():
    cells = make_cells(seeds=3)
    for cell in cells:
        if cell["selector"] == "default":
            cell["pool_digest"] = "of before"
    with pytest.raises(ValueError, match=r"default at .* and random at .* of .*, seed 0, chose from different rows"):
        compare(cells)


def test_cells_that_were_measured_on_other_rows_are_refused():
    cells = make_cells(seeds=2)
    cells[0]["ids"] = [*cells[0]["ids"][1:], "another"]
    with pytest.raises(
        ValueError, match=r"cells of noisy-across-20 were measured on 2 different sets of held-out rows"
    ):
        compare(cells)


def test_right_answers_are_compared_where_there_are_any():
    cells = make_cells(seeds=3)
    for cell in cells:
        cell["correct"] = [place % 2 == 0 or cell["selector"] == "default" for place in range(ROWS)]
    found = compare(cells)
    assert found["default"].correct.mean == pytest.approx(0.5)
    assert found["embedding"].correct.mean == 0
    assert compare(make_cells())["default"].correct is None


def test_a_summary_is_the_mean_over_seeds_of_shares_and_seconds():
    cells = {seed: make_cell(seed=seed, corrupted=seed) for seed in range(3)}
    found = analysis.summarise(Group("p", "default", "0.3", "none"), cells)
    assert found.corrupted == pytest.approx((0 + 1 + 2) / 3 / 48)
    assert found.pool_corrupted == pytest.approx(32 / 160)
    assert (found.target, found.scoring_flops, found.correct) == (None, None, None)
    assert found.gain == pytest.approx(1)
    assert found.loss == pytest.approx(np.mean([np.mean(cell["losses"]) for cell in cells.values()]))


def test_scoring_pays_after_as_many_trainings_as_save_its_seconds():
    found = analysis.summarise(Group("p", "default", "0.3", "none"), {0: make_cell()})
    assert found.break_even == pytest.approx(70 / (30 * 160 / 48 - 30)) == 1
    assert replace(found, rows=160).break_even is None


def test_by_operations_scoring_pays_likewise_and_is_not_known_where_they_are_not_counted():
    group = Group("p", "default", "0.3", "none")
    counted = make_cell(scoring_flops=60.0, training_flops=30.0, full_flops=50.0)
    assert analysis.summarise(group, {0: counted}).break_even_flops == 3
    assert analysis.summarise(group, {0: make_cell()}).break_even_flops is None
    assert analysis.summarise(group, {0: {**counted, "full_flops": 30.0}}).break_even_flops is None
    piloted = {**counted, "pilot": json.dumps({"flops": 40})}
    assert analysis.summarise(group, {0: counted, 1: piloted}).break_even_flops == (60 + 40 / 2) / (50 - 30)


def test_of_two_cells_with_one_name_the_first_counts_and_several_settings_are_told():
    first, second = make_cell(), make_cell(losses=[0.0] * ROWS)
    assert analysis.group_cells([first, second])[Group("noisy-across-20", "default", "0.3", "none")] == {0: first}
    group = Group("p", "default", "0.3", "none")
    assert analysis.summarise(group, {0: make_cell(), 1: make_cell(rule="older")}).settings == 2
