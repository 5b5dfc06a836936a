"""A comparison's tables, curve and picture."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.comparison import Cell, Trial, tell_costs, write_comparison

IDS = [f"{place:032x}" for place in range(12)]


def make_trials(seed=0):
    generator = np.random.default_rng(seed)
    easy = generator.normal(3, 0.5, len(IDS))
    return [
        Trial(
            Cell(name, "none", budget),
            run,
            rows=round(100 * share),
            share=share,
            parameters=1.0,
            ids=IDS,
            losses=(easy + shift - share).tolist(),
            general_ids=IDS[:4],
            general_losses=(easy[:4] + 1.0).tolist(),
            correct=[place % 3 == 0 for place in range(len(IDS))],
            scoring_seconds=cost,
            scoring_flops=round(cost * 10),
            selecting_flops=7,
            training={"seconds": 90 * share, "flops": round(1000 * share)},
            full_flops=1000,
            selecting_seconds=0.5,
            training_seconds=100 * share,
            resumed=["shared scoring", f"training {run}"] if (name, budget) == ("delift", "0.3") else [],
        )
        for name, shift, cost in (("delift", -0.1, 60.0), ("random", 0.0, 0.0))
        for budget, share in (("0.1", 0.1), ("0.3", 0.3))
        for run in range(2)
    ]


@pytest.fixture
def written(tmp_path):
    settings = {"inputs": {"a": "b"}, "resamples": 50, "confidence": 0.9, "seed": 0}
    return write_comparison(make_trials(), [4.0] * len(IDS), [3.5] * 4, out=tmp_path, version="v1", **settings)


def test_the_table_has_a_row_per_selector_and_budget_with_its_whole_cost(written, tmp_path):
    rows = read_table(tmp_path / "comparison.parquet", schemas.COMPARISON).to_pylist()
    assert [(row["selector"], row["budget"]) for row in rows] == [
        ("random", "0.1"),
        ("delift", "0.1"),
        ("random", "0.3"),
        ("delift", "0.3"),
    ]
    delift = rows[1]
    assert (delift["rows"], delift["seeds"], delift["share"]) == (10, 2, 0.1)
    assert delift["total_seconds"] == pytest.approx(60.0 + 0.5 + 10.0)
    assert (delift["scoring_flops"], delift["training_flops"], delift["total_flops"]) == (600, 100, 707)
    assert (delift["full_seconds"], delift["full_flops"]) == (pytest.approx(10.0 + 900 * 9 / 100), 1000)
    assert (delift["pays_after"], delift["pays_after_flops"]) == (1, 1)
    assert rows[3]["pays_after"] == 1
    assert rows[2]["pays_after_flops"] == 1
    assert delift["minus_random"] == pytest.approx(-0.1)
    assert delift["plasticity"] == pytest.approx(4.0 - delift["loss"])
    assert delift["stability"] == pytest.approx(2.5 - np.mean(make_trials()[0].general_losses) + 1.0)
    assert (delift["mask"], delift["parameters"]) == ("none", 1.0)
    assert delift["correct"] == pytest.approx(1 / 3)
    assert delift["correct_low"] < 1 / 3 < delift["correct_high"]
    assert rows == written
    assert provenance(tmp_path / "comparison.parquet")["parameters"]["selectors"] == ["delift", "random"]


def test_a_cell_tells_how_many_of_its_scorings_and_trainings_were_resumed_each_once(written):
    resumed = {(row["selector"], row["budget"]): row["resumed"] for row in written}
    assert resumed == {("random", "0.1"): 0, ("random", "0.3"): 0, ("delift", "0.1"): 0, ("delift", "0.3"): 3}


def test_every_loss_is_kept(written, tmp_path):
    table = read_table(tmp_path / "compared.parquet", schemas.COMPARED)
    assert table.num_rows == 2 * 2 * 2 * (len(IDS) + 4)
    first = make_trials()[0]
    found = [row["loss"] for row in table.to_pylist()[: len(IDS)]]
    assert found == pytest.approx(first.losses, abs=1e-6)


def test_the_curve_is_the_tables(written, tmp_path):
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["selector"], float(row["loss"])) for row in rows] == [
        (row["selector"], row["loss"]) for row in written
    ]


def test_the_picture_can_be_looked_at_and_is_the_same_each_time(written, tmp_path):
    first = (tmp_path / "comparison.png").read_bytes()
    pixels = imread(tmp_path / "comparison.png")
    assert pixels.shape == (600, 960, 4)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
    settings = {"inputs": {"a": "b"}, "resamples": 50, "confidence": 0.9, "seed": 0}
    write_comparison(make_trials(), [4.0] * len(IDS), [3.5] * 4, out=tmp_path, version="v1", **settings)
    assert (tmp_path / "comparison.png").read_bytes() == first


def test_without_general_rows_nothing_is_said_of_stability(tmp_path):
    trials = [replace(trial, general_ids=[], general_losses=[]) for trial in make_trials()]
    settings = {"inputs": {"a": "b"}, "resamples": 50, "confidence": 0.9, "seed": 0}
    rows = write_comparison(trials, [4.0] * len(IDS), [], out=tmp_path, version="v1", **settings)
    assert {row["stability"] for row in rows} == {None}


def test_without_a_task_metric_nothing_is_said_of_right_answers(tmp_path):
    trials = [replace(trial, correct=[]) for trial in make_trials()]
    settings = {"inputs": {"a": "b"}, "resamples": 50, "confidence": 0.9, "seed": 0}
    rows = write_comparison(trials, [4.0] * len(IDS), [], out=tmp_path, version="v1", **settings)
    assert {row["correct"] for row in rows} == {None}
    assert read_table(tmp_path / "compared.parquet")["correct"].null_count == 2 * 2 * 2 * (len(IDS) + 4)


def test_rows_alone_parameters_alone_and_both_have_lines_of_their_own(tmp_path):
    trials = [
        replace(trial, cell=Cell(name, mask, trial.cell.budget))
        for name in ("all", "random")
        for mask in ("none", "random")
        for trial in make_trials()[:4]
    ]
    settings = {"inputs": {"a": "b"}, "resamples": 50, "confidence": 0.9, "seed": 0}
    write_comparison(trials, [4.0] * len(IDS), [3.5] * 4, out=tmp_path, version="v1", **settings)
    with open(tmp_path / "comparison.csv", newline="") as file:
        lines = {row["selector"] for row in csv.DictReader(file)}
    assert lines == {"all", "random", "all in random mask", "random in random mask"}


def test_a_cell_of_all_rows_says_what_training_on_all_rows_took(tmp_path):
    trials = [trial for trial in make_trials() if trial.cell.budget == "0.3"]
    whole = [
        replace(trial, cell=trial.cell._replace(selector="all")) for trial in trials if trial.cell.selector == "random"
    ]
    drawn = [trial for trial in trials if trial.cell.selector == "random"]
    took = {"training_seconds": 31.0, "rows": 100, "share": 1.0}
    whole = [replace(trial, cell=trial.cell._replace(selector="all"), **took) for trial in drawn]
    settings = {"inputs": {"a": "b"}, "resamples": 20, "confidence": 0.9, "seed": 0}
    rows = write_comparison([*trials, *whole], [4.0] * len(IDS), [3.5] * 4, out=tmp_path, version="v1", **settings)
    delift = next(row for row in rows if row["selector"] == "delift")
    assert (delift["full_seconds"], delift["training_seconds"]) == (31.0, 30.0)
    assert delift["pays_after"] == 61


def test_a_scoring_that_no_training_pays_back_is_null_and_told(tmp_path):
    dear = [replace(trial, training={"seconds": 1.0, "flops": 1000}) for trial in make_trials()]
    settings = {"inputs": {"a": "b"}, "resamples": 20, "confidence": 0.9, "seed": 0}
    rows = write_comparison(dear, [4.0] * len(IDS), [3.5] * 4, out=tmp_path, version="v1", **settings)
    row = next(row for row in rows if (row["selector"], row["budget"]) == ("delift", "0.1"))
    assert (row["pays_after"], row["pays_after_flops"]) == (None, None)
    told = tell_costs(row, power=1)
    assert told.startswith(
        "scoring 60.0 s, 6e+02 FLOPs · choosing 0.5 s, 7 FLOPs · training on the choice 10.0 s, 1e+03"
    )
    assert told.endswith("scoring never pays (by FLOPs never); for one training at no size of the pool")
