"""One arm trained by `transformers.Trainer`, from the base model or from the model of the version before.

An adapter, and a delta, always stands on the base model alone: a version that continues from another goes on training
the same adapter (or, with methods full and masked, the same weights; full goes on from masked, too), with a fresh
optimiser and schedule. What the Trainer writes with torch.save (optimiser, random state) stays among checkpoints.
"""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_callback import ProgressCallback

from tamis.language import packing
from tamis.language.encoding import Encoding
from tamis.masks import sparse_adamw
from tamis.training import steps as training_steps
from tasks import models
from tasks.artifacts import tables
from tasks.artifacts.tables import ArtifactError
from tasks.finetuning import mask_updates
from tasks.finetuning.mask_updates import MaskedTraining, Rescorer, Restriction
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.step_trainer import ArmProgress, StepTrainer, TrainingError
from tasks.masks import sparse_deltas
from tasks.model_files import refuse_other_base

GOES_ON = {("lora", "lora"), ("full", "full"), ("masked", "masked"), ("masked", "full")}  # method before, and now


@dataclass(frozen=True)
class Start:
    """The model of the version before, from which every arm is trained on."""

    label: str  # its arm and seed there
    folder: Path
    digest: Mapping[str, str]  # of its weights, file by file


@dataclass(frozen=True)
class Recipe:
    """What all arms share."""

    model: models.ModelChoice  # the base
    settings: FinetuningSettings
    start: Start | None = None  # None: training starts from the base
    restriction: Restriction | None = None  # of method masked


@dataclass(frozen=True)
class Arm:
    """One training: an arm and a seed."""

    name: str  # chosen | random | balanced | fresh | full
    seed: int  # of fresh adapters, the order of rows and, for arms of chance, the draw
    rows: np.ndarray  # places in the pool of all that it sees, ascending
    epochs: tuple[np.ndarray, ...]  # of these, what each epoch takes: places in `rows`
    ids: tuple[str, ...]  # of these rows
    replayed: int  # rows among them that replay has added
    key: str  # digest of all that determines the result

    @property
    def label(self) -> str:
        """Return the name of its folder."""
        return f"{self.name}-{self.seed}"


@dataclass(frozen=True)
class Trained:
    """What a training made."""

    network: Any  # a model, or adapters in one
    losses: list[float]  # of every step
    inside: MaskedTraining | None = None  # of method masked
    seconds: float = 0.0  # that training took, without loading; of the attempt that finished it


def find_start(previous: Path, model: models.ModelChoice, settings: FinetuningSettings) -> Start | None:
    """Return the model that a version continues from: the chosen arm before it of the lowest seed; None: the base.

    Args:
        previous: folder of the finetuning artifact of the version before; its `arms/` is empty where there was none.

    Raises:
        ArtifactError: the arms are missing, all of them or the chosen one.
        TrainingError: that one was trained in another way than `settings` say.
    """
    home = previous / "arms"
    if not home.is_dir():
        raise ArtifactError(f"{home} is missing; restore it with `dvc checkout` or make it with `tamis run`")
    there = sorted(path.name for path in home.iterdir() if path.is_dir())
    if not there:
        return None
    chosen = [label for label in there if label.startswith("chosen-")]
    if not chosen:
        raise ArtifactError(
            f"{home} has no chosen arm, from which training goes on; it has {', '.join(there)}: "
            "make that version again with `tamis run`"
        )
    label = min(chosen, key=lambda label: int(label.rsplit("-", 1)[1]))
    folder = home / label
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ArtifactError(f"{folder} holds no weights; restore it with `dvc checkout` or train it with `tamis run`")
    refuse_other(folder, model, settings)
    refuse_other_base(folder, model.name, model.revision)
    return Start(label, folder, tables.digest_inputs(*weights))


def refuse_other(folder: Path, model: models.ModelChoice, settings: FinetuningSettings) -> None:
    """Raise TrainingError where an arm of the version before cannot be trained on under these settings."""
    method, kind = sparse_deltas.identify(folder)
    again = "or make that version again: `tamis run`"
    if (method, settings.method) not in GOES_ON:
        raise TrainingError(
            f"{folder} is {kind} and finetuning.method is {settings.method}; a version goes on in the way of the one "
            f"before: set finetuning.method: {method}, {again}"
        )
    wrong = []
    if method == "lora":
        wrong = list_changes(sparse_deltas.read_adapter(folder), model, settings)
    if method == "masked":
        wrong = sparse_deltas.differences(tables.read_facts(folder / sparse_deltas.DELTA), model)
    if wrong:
        what = "adapter is" if method == "lora" else "base's parameters are"
        raise TrainingError(
            f"{folder} was trained with {', '.join(wrong)}; the same {what} trained on: set this back, {again}"
        )


def list_changes(theirs: Mapping[str, Any], model: models.ModelChoice, settings: FinetuningSettings) -> list[str]:
    """Return how settings differ from those of an adapter, as `finetuning.lora_rank: 16, not 8`."""
    ours = {
        "r": ("finetuning.lora_rank", settings.lora_rank),
        "lora_alpha": ("finetuning.lora_alpha", settings.lora_alpha),
        "base_model_name_or_path": ("models.language", model.label),
        "revision": ("models.language_revision", model.revision),
    }
    return [f"{name}: {theirs[key]}, not {value}" for key, (name, value) in ours.items() if theirs[key] != value]


def train(arm: Arm, encoding: Encoding, checkpoints: Path, recipe: Recipe) -> Trained:
    """Train one arm, from its last whole checkpoint on.

    The Trainer is handed one item per optimiser step (that step's rows), so that the order of rows is ours and survives
    a restart; its own length-grouped order is drawn from the global generator and differs after one.
    """
    settings, last = recipe.settings, last_checkpoint(checkpoints)
    steps = training_steps.plan_epochs(arm.epochs, settings.batch_rows, arm.seed)
    base, network = load(arm.seed, recipe)
    device = next(base.parameters()).device
    inside, callbacks = restrict(base, arm, encoding, checkpoints, recipe)

    with saving(arm.label, checkpoints), packing.packed_attention(base), sparse_deltas.quiet_peft(), models.quiet():
        trainer = StepTrainer(
            encoding.pick(arm.rows),
            settings.loss_per,
            model=network,
            args=_arguments(arm.seed, checkpoints, device, settings),
            data_collator=lambda items: {"places": items[0]},
            train_dataset=steps,
            callbacks=callbacks,
            optimizers=_optimise(network, inside, len(steps), settings),
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ArmProgress(arm.label))
        with models.multiplying(recipe.model):
            start = perf_counter()
            trainer.train(resume_from_checkpoint=last and str(last))
            seconds = perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(network, losses, inside, seconds)


def load(seed: int, recipe: Recipe) -> tuple[PreTrainedModel, torch.nn.Module]:
    """Return a model and what is trained of it: the same, or adapters in it (float32 beside half weights).

    With methods full and masked it is the base or the start: a whole model, or the base with a delta; adapters in the
    base are fresh ones, or those of the start.
    """
    model, settings, start = recipe.model, recipe.settings, recipe.start
    begun = sparse_deltas.identify(start.folder)[0] if start else None
    if settings.method != "lora" and model.dtype == "float16":
        how = "in full" if settings.method == "full" else "inside a mask"
        raise TrainingError(f"float16 weights cannot be trained {how} (updates underflow); set models.dtype: bfloat16")
    gc.collect()  # the arm before, which its Trainer holds in cycles
    from_start = replace(model, name=str(start.folder), revision=None) if begun == "full" else model
    base = models.language_model.__wrapped__(from_start)  # past the cache: training changes it
    packing.verify_packing(base)
    if begun == "masked":
        sparse_deltas.apply(base, start.folder, model)
    if settings.method != "lora":
        return base, base
    set_seed(seed)
    config = peft.LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with sparse_deltas.quiet_peft():
        if start:
            network = peft.PeftModel.from_pretrained(base, start.folder, is_trainable=True)
            network.peft_config["default"].base_model_name_or_path = str(models.folder(model))  # where peft looks it up
            return base, network
        return base, peft.get_peft_model(base, config)


def restrict(
    base: PreTrainedModel, arm: Arm, encoding: Encoding, checkpoints: Path, recipe: Recipe
) -> tuple[MaskedTraining | None, list[Rescorer]]:
    """Restrict a model to the mask that its last checkpoint has, or to the first one, and return what cuts it anew.

    With the other methods nothing is done.
    """
    restriction, last = recipe.restriction, last_checkpoint(checkpoints)
    if restriction is None:
        return None, []
    kept = mask_updates.load_mask(checkpoints, mask_updates.step_of(last)) if last else None
    inside = mask_updates.restrict_model(base, restriction.mask, recipe.settings.learning_rate, kept)
    if restriction.scoring is None:
        return inside, []
    rows = encoding.pick(arm.rows)
    what = {"label": arm.label, "rows": rows, "ids": arm.ids}
    return inside, [Rescorer(inside, restriction.scoring, checkpoints=checkpoints, **what)]


@contextmanager
def saving(label: str, checkpoints: Path) -> Iterator[None]:
    """Turn what the Trainer raises where the system refuses a checkpoint into an ArtifactError with the way out."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # that is torch.save's
            raise
        raise ArtifactError(
            f"arm {label}: a checkpoint could not be written to {checkpoints}: {error}; whole ones and finished arms "
            "are kept. Free space on that disk or move the project, then run again"
        ) from error


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest whole checkpoint, or None; one that a kill cut short is removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is whole.
    """
    found = {}
    for path in checkpoints.glob("checkpoint-*"):
        try:
            found[json.loads((path / "trainer_state.json").read_text())["global_step"]] = path
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            shutil.rmtree(path)
    return found[max(found)] if found else None


def save(trained: Trained, folder: Path, arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """Write adapters or a delta, and the merged model where it is asked for; or all weights.

    Returns:
        What is recorded of an arm of method masked; of the others nothing.
    """
    network, model, method = trained.network, recipe.model, recipe.settings.method
    if method == "full":
        sparse_deltas.save_whole(network, folder, model)
        return {}
    facts = {}
    if method == "lora":
        _save_adapters(network, folder, model)
    else:
        facts = _save_delta(trained, folder, arm, recipe)
    if is_whole(arm, recipe.settings):
        sparse_deltas.save_whole(network.merge_and_unload() if method == "lora" else network, folder / "model", model)
    return facts


def is_whole(arm: Arm, settings: FinetuningSettings) -> bool:
    """Return whether a whole model is written for an arm."""
    return settings.method == "full" or (settings.whole_model and arm.name == "chosen")


def _optimise(
    network: torch.nn.Module, inside: MaskedTraining | None, steps: int, settings: FinetuningSettings
) -> tuple:
    """Return the optimiser of what is trained, and the schedule of its learning rate."""
    if inside:
        return inside.optimizer, inside.schedule(steps, settings.lr_warmup_fraction)
    return training_steps.optimise(network, steps, settings.learning_rate, settings.lr_warmup_fraction)


def _arguments(seed: int, checkpoints: Path, device: torch.device, settings: FinetuningSettings) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=seed,
        num_train_epochs=1,  # the plan of steps holds all epochs
        per_device_train_batch_size=1,  # one item is the rows of one optimiser step
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to="none",
        label_names=["labels"],
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device: an item cannot be split over several
    return arguments


def _save_adapters(network: peft.PeftModel, folder: Path, model: models.ModelChoice) -> None:
    """Write adapters as peft reads them; its own writer adds a card, local paths, and sets in random order."""
    folder.mkdir()
    weights = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    weights = {name: weight.contiguous().cpu() for name, weight in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = network.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    named = {"base_model_name_or_path": model.label, "revision": model.revision, "inference_mode": True}
    tables.write_json(config | named, folder / "adapter_config.json")


def _save_delta(trained: Trained, folder: Path, arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """Write what training moved, and what the start's delta holds, relative to the base; return what is recorded.

    The base is read again, on the CPU, once training is over and gradients are dropped: training itself needs no copy
    of it, and no entry outside of the delta may differ from it by a bit.
    """
    folder.mkdir()
    inside, start = trained.inside, recipe.start
    entries = inside.trained
    if start:
        entries = mask_updates.unite(entries, sparse_deltas.read_delta(start.folder)[0].indices)
    base = models.language_model.__wrapped__(replace(recipe.model, device="cpu"))
    delta = sparse_adamw.extract_delta(trained.network, dict(base.named_parameters()), entries)
    size = sparse_deltas.write_delta(delta, folder, recipe.model, {"arm": arm.name, "seed": arm.seed})
    return inside.measure() | {"delta_entries": sparse_deltas.count_entries(delta), "delta_bytes": size}
