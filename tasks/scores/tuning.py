"""Adapters that are tuned on a few rows before others are scored: of selectors `less` and `tov`.

A tuning is one file of safetensors, a checkpoint per epoch with Adam's moments, in the folder of the store that keeps
what is measured with it. It depends on the rows that it is tuned on and on its settings alone.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import safetensors.torch
import torch

from tamis.evaluation.costs import TRAINING, count_flops, count_steps
from tamis.language.encoding import Encoding
from tamis.language.packing import verify_packing
from tamis.scores.less import Checkpoint, pack, unpack, warm_up
from tamis.training.steps import plan_steps
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.locks import locked
from tasks.artifacts.tables import ArtifactError, replacing
from tasks.scores.settings import LessSettings, TovSettings
from tasks.scores.work import Row, Shard, refuse_long
from tasks.scoring_model import model_lock

FILE, LOCK = "warmup.safetensors", "warmup.lock"

Tuning = LessSettings | TovSettings


def store_folder(folder: Path, ids: Sequence[str], how: dict[str, Any]) -> Path:
    """Return the folder of the tuning on these rows, beside `folder`: of one model, template and code."""
    return stores.store_folder(folder.parent, json.dumps([folder.name, list(ids), how]))


def prepare(work: Shard, tuned: Sequence[Row], how: Tuning, ask: Callable[[Shard], Encoding]) -> tuple[float, int]:
    """Tune on some rows, where that was not done, and keep it in the work's folder; return the seconds that it took,
    and its floating-point operations.

    Raises:
        ValueError: a row, of these or of the work, is too long for the context.
    """
    rows, seed = ask(replace(work, rows=tuned)), work.settings.seed
    if not (work.folder / FILE).exists():
        every = {row.id: row for row in (*work.rows, *tuned)}
        refuse_long([replace(work, rows=list(every.values()))], ask)
        with locked(work.folder / LOCK), model_lock:  # other processes wait, and find it made
            if not (work.folder / FILE).exists():
                train(work.model, rows, work.folder, how, seed)
    passed = count_steps(rows, plan_steps(len(rows), how.batch_rows, how.epochs, seed))
    return read(work.folder)[1], count_flops(passed, models.count_parameters(work.model), TRAINING)


def train(model: models.ModelChoice, rows: Encoding, folder: Path, how: Tuning, seed: int) -> None:
    """Train fresh adapters on rows and keep a checkpoint per epoch: weights, Adam's moments, mean learning rate."""
    adapt.cache_clear()
    network, start = adapt(model, how.lora_rank, seed), perf_counter()
    asked = {"epochs": how.epochs, "batch_rows": how.batch_rows, "rate": how.learning_rate}
    with models.multiplying(model):
        tensors, facts = pack(warm_up(network, rows, seed=seed, **asked))
    facts["seconds"] = perf_counter() - start
    with replacing(folder / FILE) as part:
        part.write_bytes(safetensors.torch.save(tensors, {"facts": json.dumps(facts)}))


def read(folder: Path, device: str | torch.device = "cpu") -> tuple[list[Checkpoint], float]:
    """Return the checkpoints of a tuning and the seconds that it took.

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


@models.kept
def adapt(choice: models.ModelChoice, rank: int, seed: int) -> torch.nn.Module:
    """Return the model with fresh adapters on all linear layers but the head; they alone are trained."""
    base = models.language_model.__wrapped__(choice)  # past the cache: adapters change it
    verify_packing(base)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape("`is_gradient_checkpointing` is deprecated"))  # inside peft
        torch.manual_seed(seed)
        return peft.get_peft_model(base, config).eval()
