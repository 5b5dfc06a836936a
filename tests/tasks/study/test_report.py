"""The report tells every figure of the tables, worst cases first, and is the same for the same cells."""

import json

import numpy as np
import pytest
from worlds.study_cells import make_cell, make_cells

from tasks.study import analysis, report


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(analysis, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def cells():
    masks = [
        make_cell("clean-tldr", name, budget, mask, seed)
        for seed in range(3)
        for name, budget, mask in (("default", "0.25", "none"), ("default", "0.25", "dualsft"))
    ]
    rare = [{**cell, "of_target": 40, "pool_target": 8} for cell in make_cells("rare-svamp", seeds=3)]
    return [*make_cells(), *make_cells("confirm-tldr", seeds=3, role="confirm"), *rare, *masks]


def write(cells, folder):
    return report.write_report(cells, "toys", ["random"], commit="abc", out=folder)


def test_page_record_and_pictures_are_written_the_same_twice(cells, tmp_path):
    one, other = (write(cells, tmp_path / name) for name in "ab")
    assert [path.name for path in one] == ["study.md", "study.json", "study-differences.png", "study-picks.png"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_record_of_the_same_figures_keeps_the_commit_that_found_them_first(cells, tmp_path):
    write(cells, tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    report.write_report(cells, "toys", ["random"], commit="def", out=tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before
    report.write_report(make_cells(), "toys", ["random"], commit="def", out=tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["commit"] == "def"


def test_the_record_holds_the_default_beside_chance_of_every_pool(cells, tmp_path):
    write(cells, tmp_path)
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["commit"] == "abc"
    assert set(found["pools"]) == {"noisy-across-20", "confirm-tldr", "rare-svamp"}
    one = found["pools"]["noisy-across-20"]
    assert (one["role"], one["rows"], one["budget"], one["seeds"], one["goal"]) == ("design", 160, 0.3, 5, "met")
    assert one["low"] < one["default_minus_chance"] < one["high"] < 0
    assert one["corrupted"] == pytest.approx(2 / 48, abs=1e-4)
    assert found["pools"]["rare-svamp"]["target_share"] == pytest.approx(40 / 48, abs=1e-4)
    assert found["pools"]["confirm-tldr"]["role"] == "confirm"


def test_the_table_of_advice_begins_with_the_worst_case(cells, tmp_path):
    write(cells, tmp_path)
    page = (tmp_path / "study.md").read_text()
    advice = page.partition("## Which selector when\n")[2].partition("\n!")[0].strip().splitlines()[2:]
    means = [float(line.split("|")[4].split()[0]) for line in advice]
    assert means == sorted(means, reverse=True)
    assert "embedding" in advice[0]
    assert advice[0].split("|")[6].strip() == "default"


def test_a_selector_that_may_be_lucky_hides_none_that_is_better(cells, tmp_path):
    own = make_cells("clean-tldr", seeds=5)
    noise = np.random.default_rng(0).normal(0, 9, (5, 60))
    noise -= noise.mean()
    wild = [make_cell("clean-tldr", "default", seed=seed, rule="wild") | {"selector": "wild"} for seed in range(5)]
    wild = [{**cell, "losses": (np.array(cell["losses"]) - 0.3 + noise[cell["seed"]]).tolist()} for cell in wild]
    write([*own, *wild], tmp_path)
    page = (tmp_path / "study.md").read_text()
    advice = page.partition("## Which selector when\n")[2].partition("\n!")[0].strip().splitlines()[2:]
    best = min(advice, key=lambda line: float(line.split("|")[4].split()[0]))
    assert ("wild" in best, "no difference seen" in best, best.split("|")[6].strip()) == (True, True, "default")


@pytest.mark.parametrize(("budget", "known"), [("600 tokens", "600 tokens"), ("", None), ("48", 48), ("1e-05", 1e-05)])
def test_every_kind_of_budget_stands_in_the_record(tmp_path, budget, known):
    cells = [cell | {"budget": budget} for cell in make_cells(seeds=3)]
    write(cells, tmp_path)
    assert {one["budget"] for one in json.loads((tmp_path / "study.json").read_text())["pools"].values()} == {known}


def test_a_pilots_trainings_are_in_seconds_and_operations_alike(tmp_path):
    told = json.dumps({"decision": "choice", "seconds": 3.0, "flops": 5 * 10**15})
    write([cell | {"pilot": told, "scoring_flops": 1e15} for cell in make_cells(seeds=3)], tmp_path)
    costs = (tmp_path / "study.md").read_text().partition("## What it cost\n")[2]
    assert costs.count("6.0e+15") == len({line for line in costs.splitlines() if "6.0e+15" in line}) > 0
    assert "1.0e+15" not in costs


def test_the_page_names_roles_masks_goals_and_what_it_is_made_from(cells, tmp_path):
    write(cells, tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert f"from {len(cells)} trainings" in page
    assert "confirmation pools (confirm-tldr) were scored after that" in page
    for heading in (
        "What was to be reached",
        "Masks",
        "What was picked",
        "What it cost",
        "Loss, less that of `random`",
    ):
        assert f"## {heading}\n" in page
    assert "## Right answers" not in page
    assert "default in dualsft mask" in page
    assert "hold cells of several settings" not in page


def test_cells_of_several_settings_are_told(cells, tmp_path):
    mixed = [{**cell, "rule": "older"} if cell["seed"] == 0 else cell for cell in cells]
    write(mixed, tmp_path)
    assert "groups hold cells of several settings**" in (tmp_path / "study.md").read_text()


def test_goals_stand_on_the_cells_of_the_study_alone(cells, tmp_path):
    larger = [{**cell, "budget": "80", "chosen_rows": 80} for cell in make_cells(seeds=3)]
    report.write_report(cells, "toys", ["random"], shown=larger, commit="abc", out=tmp_path)
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["pools"]["noisy-across-20"]["budget"] == 0.3
    assert "| 80 |" in (tmp_path / "study.md").read_text()


def test_nothing_beside_chance_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of 1 cells of toys stands beside chance yet; run `tamis study toys`"):
        write([make_cell()], tmp_path)
