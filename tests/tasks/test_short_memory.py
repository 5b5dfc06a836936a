"""Stages under a limited address space: batches halve themselves, and the figures are those of whole ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worlds import toy_corpus, toy_pairs
from worlds.projects import environment
from worlds.toys import write_toy_model

from tamis.examples.conversations import make_exchange

TESTS = Path(__file__).parents[1]


def run(root: Path, stage: str, megabytes: int) -> dict:
    """Run a stage in a process of its own; 0 megabytes: without a limit."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    done = subprocess.run(
        [sys.executable, "-m", "worlds.short_memory", str(root), stage, str(megabytes)],
        env=environment(PYTHONPATH=f"{TESTS}:{TESTS.parent}", MALLOC_ARENA_MAX="1", **threads),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def make_world(root: Path) -> Path:
    """The toy model, for examples beside it."""
    write_toy_model(root / "model")
    return root


def write_long_rows(folder: Path, rows: int) -> None:
    """Write a pool of rows of some 200 tokens, and three rows of the target task."""
    splits = ["pool"] * rows + ["target"] * 3
    told = [make_exchange(f"tell {place}", (f"{place} {7 * place} " * 40)[:160]) for place in range(len(splits))]
    made = [toy_corpus.row(place, split) for place, split in enumerate(splits)]
    toy_corpus.write_rows(folder, [row | toy_corpus.tell(talk) for row, talk in zip(made, told, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [700, 400])
def test_gradients_short_of_memory_give_the_same_mask(tmp_path, megabytes):
    whole, cut = (make_world(tmp_path / name) for name in ("whole", "cut"))
    for root in (whole, cut):
        write_long_rows(root / "examples", 900)
    assert run(whole, "gradients", 0)["halved"] == []
    halved = {one["what"]: one for one in run(cut, "gradients", megabytes)["halved"]}
    assert halved["pack_tokens"]["used"] < halved["pack_tokens"]["asked"]
    assert ("rows per training pass" in halved) == (megabytes == 400)
    expected, found = (
        torch.cat([tensor.ravel() for tensor in load_file(root / "out/phi_param.safetensors").values()])
        for root in (whole, cut)
    )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    chosen = len(expected) // 10
    assert {*found.topk(chosen).indices.tolist()} == {*expected.topk(chosen).indices.tolist()}


@pytest.mark.slow
def test_utility_short_of_memory_gives_the_same_scores(tmp_path):
    whole, cut = (make_world(tmp_path / name) for name in ("whole", "cut"))
    for root in (whole, cut):
        toy_corpus.write_examples(root / "examples", pool=100)
    assert run(whole, "utility", 0)["halved"] == []
    halved = run(cut, "utility", 500)["halved"]
    assert [one["what"] for one in halved] == ["pack_tokens"]
    found, expected = (toy_pairs.pairs_of(root / "out/utility.parquet") for root in (cut, whole))
    assert found == pytest.approx(expected, abs=1e-5)
