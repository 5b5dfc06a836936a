"""Arms trained by several processes: the loss curve and the weights of one, found by the next run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from worlds.places import find_folders
from worlds.projects import environment
from worlds.several_devices import make_choice, make_settings
from worlds.toy_training import make_world, run
from worlds.toys import write_toy_model

from tasks.finetuning.finetuning import train_arms
from tasks.finetuning.step_trainer import TrainingError

TESTS = Path(__file__).parents[2]


def launch(world: Path, method: str, processes: int) -> None:
    """Train a world's arms by processes that talk to each other over gloo, on one machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "worlds.several_devices", str(world), method]  # `accelerate launch` takes MPI for processors
    done = subprocess.run(
        command, env=environment(PYTHONPATH=f"{TESTS}:{TESTS.parent}"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def read_curve(path: Path) -> list[tuple[str, float]]:
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [(",".join(row[:4]), float(row[4])) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_loss_curve_of_several_processes_is_that_of_one(tmp_path, method, processes):
    alone, together = (make_world(tmp_path / name) for name in ("alone", "together"))
    for world in (alone, together):
        write_toy_model(world / "model")
    launch(together, method, processes)
    settings = make_settings(method)
    made = {world.name: run(world, make_choice(world), settings) for world in (alone, together)}
    told = json.loads((made["together"] / "finetuning.json").read_text())
    assert [*told["arms"]] == ["chosen-0", "random-1"]
    found, expected = (read_curve(made[name] / "curve.csv") for name in ("together", "alone"))
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-4)
    for file in sorted((made["alone"] / "arms").rglob("*.safetensors")):
        other = load_file(made["together"] / "arms" / file.relative_to(made["alone"] / "arms"))
        for name, tensor in load_file(file).items():
            assert (tensor - other[name]).abs().mean() <= 1e-4, name  # Adam makes much of a tiny gradient's sign


def test_a_mask_is_trained_on_one_device(tmp_path, toy):
    world = make_world(tmp_path)
    settings = replace(make_settings("lora"), method="masked")
    with pytest.raises(TrainingError, match=r"finetuning.method is masked, which is trained on one device"):
        train_arms(find_folders(world), model=toy, settings=settings)
