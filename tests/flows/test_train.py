"""`python -m flows.train`: arms that the next run finds, and what is refused before anything is trained."""

import json
import sys

import pytest
from worlds.projects import ROOT, run_child, run_stages


def train(project, *arguments: str):
    command = [sys.executable, "-m", "flows.train", *arguments]
    return run_child(command, project, PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_the_next_run_finds_the_arms(real_copy):
    run_stages("v1", until="selection")
    done = train(real_copy, "v1")
    assert done.returncode == 0, done.stderr
    assert not (real_copy.root / "data/finetuning/version=v1").exists()
    run_stages("v1", until="finetuning")
    told = json.loads((real_copy.root / "data/finetuning/version=v1/run.json").read_text())
    assert (told["arms_trained"], told["arms_found"] > 0) == (0, True)


def test_what_the_arms_are_drawn_from_must_be_up_to_date(real_copy):
    done = train(real_copy, "v1")
    assert done.returncode == 1
    assert "which finetuning@v1 reads, is missing; make it first, on one machine: `dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_status_two(real_copy):
    assert train(real_copy).returncode == 2
