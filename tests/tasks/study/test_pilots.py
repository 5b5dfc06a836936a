"""Pilots are right where they take what the cells without a pilot show to be better."""

import json

import pytest
from worlds.study_cells import make_cell, make_cells

from tasks.study import analysis, pilots, report


def pilot(decision, seed, **other):
    told = json.dumps({"decision": decision, "seconds": 3.0 + seed, "flops": 10**12})
    return {**make_cell(seed=seed, **other), "selector": "piloted", "pilot": told}


@pytest.mark.parametrize(
    ("decisions", "decided", "right"),
    [(["choice", "choice"], 2, 2), (["chance", "choice"], 2, 1), (["mixture", "mixture"], 0, 0)],
)
def test_only_the_choice_is_right_where_it_is_better_than_chance(decisions, decided, right):
    cells = [*make_cells(seeds=2), *(pilot(one, seed) for seed, one in enumerate(decisions))]
    (found,) = pilots.judge_pilots(analysis.group_cells(cells), "random")
    assert (found.pilots, found.decided, found.right, found.seconds) == (2, decided, right, 3.5)
    assert found.truth == pytest.approx(-0.3, abs=0.05)


def test_chance_is_right_where_the_choice_is_worse():
    cells = [*make_cells(seeds=2), pilot("chance", 0)]
    for cell in cells:
        cell["losses"] = [-loss for loss in cell["losses"]]
    (found,) = pilots.judge_pilots(analysis.group_cells(cells), "random")
    assert (found.decided, found.right) == (1, 1)


def test_without_the_choice_beside_it_a_pilot_is_not_judged():
    assert pilots.judge_pilots(analysis.group_cells([pilot("choice", 0)]), "random") == []


def test_a_choice_with_a_pilot_of_its_own_is_no_measure_of_pilots():
    own = [cell | {"pilot": json.dumps({"decision": "chance"})} for cell in make_cells(seeds=2)]
    cells = [*own, pilot("chance", 0), pilot("chance", 1)]
    assert pilots.judge_pilots(analysis.group_cells(cells), "random") == []


def test_the_report_tells_how_often_pilots_decided_and_how_often_rightly(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "RESAMPLES", 100)
    cells = [*make_cells(seeds=2), pilot("choice", 0), pilot("mixture", 1)]
    report.write_report(cells, "toys", ["random"], commit="abc", out=tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert "1 of 2 pilots decided, 1 of them rightly" in page
