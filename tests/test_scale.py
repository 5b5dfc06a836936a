"""`benchmarks/scale.py`: what it makes up is what it says, the stages run on it, and figures become exponents."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.artifacts.tables import read_table

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield import_module("scale")


def test_conversations_are_unique_and_every_fiftieth_is_almost_the_one_before(scale):
    lines = list(scale.write_conversations(np.random.default_rng(0), 200))
    assert lines == list(scale.write_conversations(np.random.default_rng(0), 200))
    texts = [" ".join(turn["content"] for turn in json.loads(line)["messages"]) for line in lines]
    assert len(set(texts)) == 200
    for row in (50, 100, 150):
        assert texts[row].rsplit(" ", 1)[0] == texts[row - 1].rsplit(" ", 1)[0]


def test_vectors_have_length_one_and_lie_around_centres(scale):
    tables = list(scale.draw_vectors(pa.chunked_array([[str(row) for row in range(500)]])))
    vectors = np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    near = vectors @ vectors.T > 0.5
    assert vectors.shape == (500, 384)
    assert len(np.unique(near, axis=0)) == 10
    assert (vectors @ vectors.T)[near & ~np.eye(500, dtype=bool)].mean() == pytest.approx(0.8, abs=0.01)


def test_every_stage_runs_on_what_is_made_up(scale, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "MODEL", replace(toy, max_tokens=4096))
    monkeypatch.setattr(scale.inputs, "DENSE_ROWS", 100)
    scale.make_raw(tmp_path, 200)
    found = {step: spent for make in scale.STAGES.values() for step, spent in make(tmp_path).items()}
    assert list(found) == ["examples", "embedding", "neighbours", "selection", "audit"]
    assert all(spent.peak_gb > 0 for spent in found.values())
    assert found["neighbours"].recall == 1
    here = scale.find_folders(tmp_path).here
    rows = read_table(here.examples / "examples.parquet", columns=["split", "topic", "near_duplicate_of"])
    assert rows["split"].to_pylist().count("held_out") == 20
    assert len(set(rows["topic"].to_pylist())) > 10
    assert rows.num_rows - rows["near_duplicate_of"].null_count > 0
    assert all(read_table(here.audit / "audit.parquet")["passed"].to_pylist())


def test_exponents_are_those_from_a_tenth_of_the_rows_to_all(scale):
    curve = {
        rows: {
            "examples": scale.Spent(rows / 10, rows / 10, 1),
            "neighbours": scale.Spent(1, rows**1.5, 3, 0.99),
            "audit": scale.Spent(1, rows**1.1, 2),
        }
        for rows in (10, 100, 1000)
    }
    found = scale.summarise(curve)
    assert found["growth_exponent"] == pytest.approx(1.1)
    assert found["neighbours_exponent"] == pytest.approx(1.5)
    assert found["peak_gb"] == 3


def test_a_missed_goal_is_said_and_is_the_exit_status(scale, capsys):
    good = {"peak_gb": 11.9, "seconds": 4000.0, "growth_exponent": 1.1, "neighbours_exponent": None}
    assert scale.judge(good) == 0
    assert scale.judge(good | {"growth_exponent": 1.2}) == 1
    assert capsys.readouterr().err == "growth_exponent is 1.20, more than 1.15\n"


@pytest.mark.slow
def test_a_small_run_ends_with_its_figures():
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--rows", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 2000
    assert set(found) >= {"peak_gb", "seconds", "growth_exponent", "neighbours_exponent"}
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("200 rows")] == [
        f"200 rows, {stage}" for stage in ("examples", "embedding", "selection", "audit")
    ]
