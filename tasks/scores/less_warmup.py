"""The warm-up of selector `less`: adapters trained on a few rows, kept with Adam's moments, and gradients at them.

A warm-up is one file of safetensors, a checkpoint per epoch, in the folder of the store that keeps what is measured
with it. It depends on the rows drawn for it and on these settings alone.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from time import perf_counter

import numpy as np
import peft
import safetensors.torch
import torch

from tamis.language.encoding import Encoding
from tamis.language.packing import verify_packing
from tamis.scores.less import Checkpoint, features, pack, pick_warmup, unpack, warm_up
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.tables import ArtifactError, replacing
from tasks.scores.settings import ScoresSettings

FILE = "warmup.safetensors"
LEAST_ROWS = 8


def draw_rows(rows: int, settings: ScoresSettings) -> list[int]:
    """Return the places of the rows that are trained on, of so many."""
    return pick_warmup(rows, settings.less.warmup_share, LEAST_ROWS, settings.seed).tolist()


def store_folder(folder: Path, ids: Sequence[str], settings: ScoresSettings) -> Path:
    """Return the folder of the warm-up on these rows, beside `folder`: of one model, template and code."""
    return stores.store_folder(folder.parent, json.dumps([folder.name, list(ids), asdict(settings)]))


def train(model: models.ModelChoice, rows: Encoding, folder: Path, settings: ScoresSettings) -> None:
    """Train fresh adapters on rows and keep a checkpoint per epoch: weights, Adam's moments, mean learning rate."""
    adapt.cache_clear()
    network, start = adapt(model, settings), perf_counter()
    how = {"epochs": settings.less.epochs, "batch_rows": settings.less.batch_rows, "rate": settings.less.learning_rate}
    tensors, facts = pack(warm_up(network, rows, seed=settings.seed, **how))
    facts["seconds"] = perf_counter() - start
    with replacing(folder / FILE) as part:
        part.write_bytes(safetensors.torch.save(tensors, {"facts": json.dumps(facts)}))


def read(folder: Path, device: str | torch.device = "cpu") -> tuple[list[Checkpoint], float]:
    """Return the checkpoints of a warm-up and the seconds that it took.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        with safetensors.safe_open(folder / FILE, "pt", device=str(device)) as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder / FILE}, a warm-up, is damaged ({error}); delete {folder}") from error
    return unpack(tensors, facts), facts["seconds"]


def measure(
    model: models.ModelChoice, rows: Encoding, names: Sequence[str], folder: Path, settings: ScoresSettings
) -> np.ndarray:
    """Return each row's features, per checkpoint: as a training example, then as a query."""
    found, network = [], adapt(model, settings)
    for checkpoint in read(folder, models.device(model))[0]:
        found += features(network, checkpoint, rows, names, dimensions=settings.less.dimensions, seed=settings.seed)
    return torch.cat(found, dim=1).numpy()


@lru_cache(maxsize=1)
def adapt(choice: models.ModelChoice, settings: ScoresSettings) -> torch.nn.Module:
    """Return the model with fresh adapters on all linear layers but the head; they alone are trained."""
    base = models.language_model.__wrapped__(choice)  # past the cache: adapters change it
    verify_packing(base)
    rank = settings.less.lora_rank
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape("`is_gradient_checkpointing` is deprecated"))  # inside peft
        torch.manual_seed(settings.seed)
        return peft.get_peft_model(base, config).eval()
