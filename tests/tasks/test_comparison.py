"""A comparison's tables, curve and picture."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.comparison import Cell, Trial, write_comparison

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
