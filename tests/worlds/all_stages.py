"""Every stage that asks a model, run once on a toy world, with its optimiser steps and forward passes counted.

    python -m worlds.all_stages WORLD      prints a JSON object: stage -> steps, passes, digests of its artifacts, code

Run apart, so that it can import another copy of the code.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from tasks.artifacts import stores
from tasks.artifacts.tables import digest
from tasks.embedding.embedding import write_embedding
from tasks.embedding.settings import EmbeddingSettings
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.gradients.gradients import write_gradients
from tasks.gradients.settings import GradientsSettings
from tasks.models import ModelChoice
from tasks.scores.scores import write_scores
from tasks.scores.settings import ScoresSettings
from tasks.settings import RuntimeSettings
from tasks.utility.settings import UtilitySettings
from tasks.utility.utility import write_utility
from worlds import toy_training
from worlds.places import find_folders

RUNTIME = RuntimeSettings(shard_pairs=64, shard_rows=4)
ONE_ARM = FinetuningSettings(arms={"chosen": [0]}, epochs=1, batch_rows=4)
MASKED = FinetuningSettings(method="masked", arms={"chosen": [0]}, epochs=2, batch_rows=2)
GRADIENTS = GradientsSettings(warmup_share=0.5, warmup_steps=1, anchor_share=0.5, batch_rows=4, learning_rate=2e-5)


def plan(world: Path, model: ModelChoice) -> dict[str, tuple[Callable[[], object], Path]]:
    """Return how each stage is called and where its artifacts lie, in the order of the calls."""

    def called(function: Callable, stage: str, out: str, **more) -> tuple[Callable[[], object], Path]:
        folders = find_folders(world, cache=world / "store", **{stage: world / out})
        return partial(function, folders, model=model, runtime=RUNTIME, **more), world / out

    def scores(selector: str) -> tuple[Callable[[], object], Path]:
        return called(write_scores, "scores", selector, settings=ScoresSettings(), selector=selector)

    def trained(name: str, settings: FinetuningSettings, **more) -> tuple[Callable[[], object], Path]:
        return partial(toy_training.write, world / name, model, settings, **more), world / name / "out"

    asked = EvaluationSettings(new_tokens=4, demos=1, bootstrap=20)
    return {
        "embedding": called(write_embedding, "embedding", "embedding", settings=EmbeddingSettings(max_tokens=64)),
        "utility": called(
            write_utility,
            "utility",
            "utility",
            settings=UtilitySettings(kernel="exact"),
            wanted=True,
        ),
        "scores": scores("perplexity"),
        "scores of less": scores("less"),
        "gradients": called(
            write_gradients,
            "gradients",
            "gradients",
            settings=GRADIENTS,
            loss_per="row",
            selector="dualsft",
            mask_selector="fisher",
        ),
        "finetuning": trained("lora", ONE_ARM),
        "finetuning in a mask": trained("masked", MASKED, update_steps=4, gradients=GRADIENTS),
        "evaluation": (
            partial(toy_training.evaluate, world / "lora", world / "before", model, asked),
            world / "lora/evaluation",
        ),
    }


def measure(call: Callable[[], object], out: Path) -> dict:
    """Return the optimiser steps and forward passes of a call, and the digests of what it wrote."""
    steps, passes = [], []
    hooks = [
        register_optimizer_step_post_hook(lambda *_: steps.append(1)),
        register_module_forward_hook(lambda one, *_: passes.append(1) if isinstance(one, PreTrainedModel) else None),
    ]
    call()
    for hook in hooks:
        hook.remove()
    files = {str(path.relative_to(out)): digest(path) for path in sorted(out.rglob("*")) if path.is_file()}
    return {"steps": len(steps), "passes": len(passes), "files": files, "code": stores.__file__}


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    chosen = ModelChoice(str(home / "toy"), device="cpu", max_tokens=256)
    print(json.dumps({name: measure(*how) for name, how in plan(home, chosen).items()}))
