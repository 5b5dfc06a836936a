"""Arms of a toy world trained by one process of several: `torchrun ... -m worlds.several_devices WORLD METHOD`."""

import sys
from pathlib import Path

from tasks.finetuning.finetuning import train_arms
from tasks.finetuning.settings import FinetuningSettings
from tasks.models import ModelChoice
from worlds.places import find_artifacts, find_folders


def make_settings(method: str) -> FinetuningSettings:
    """Return how arms are trained: steps of three rows, and a last one of two, of which a process has none."""
    return FinetuningSettings(
        arms={"chosen": [0], "random": [1]}, method=method, epochs=2, learning_rate=1e-2, batch_rows=3, loss_per="token"
    )


def make_choice(world: Path) -> ModelChoice:
    """Return the toy model that lies in a world."""
    return ModelChoice(str(world / "model"), device="cpu", max_tokens=256)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    before = find_artifacts(root, "base", finetuning=root / "base")
    train_arms(find_folders(root, before=before), model=make_choice(root), settings=make_settings(sys.argv[2]))
