"""Room `finetuning`: every arm trained by `transformers.Trainer`, each into a folder of safetensors.

What the Trainer writes with torch.save (optimiser, random state) stays in the scratch folder, in `<key>/checkpoints`
while an arm is in training; `<key>/finished` holds a trained arm; the key digests all that determines it. A run finds
both again, also where it was stopped after the last arm and before the artifact was recorded; it begins by removing
what it has no use for. So adapters lie on the disk twice; whole models, being large, leave scratch once published.
"""

import gc
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import ProgressCallback

from tamis import finetuning, language_model, templates
from tasks import artifacts, models, schemas
from tasks.artifacts import ArtifactError

LIBRARIES = (torch, transformers, peft, accelerate)  # another release of one of them starts an arm anew
SOURCES = (__file__, finetuning.__file__, language_model.__file__, templates.__file__, models.__file__)


class TrainingError(ValueError):
    """An arm cannot be trained."""


@dataclass(frozen=True)
class FinetuningSettings:
    """How every arm is trained."""

    arms: Mapping[str, Sequence[int]]  # arm (chosen | random | full) -> seeds
    method: str = "lora"  # lora | full: adapters on all linear layers but the head | all weights
    epochs: int = 1  # passes over the arm's rows
    learning_rate: float = 2e-4  # peak
    warmup_fraction: float = 0.1  # of the optimiser steps
    batch_rows: int = 8  # rows per optimiser step
    lora_rank: int = 16  # width of the adapters
    lora_alpha: int = 32  # their scale times their rank
    save_steps: int = 20  # optimiser steps between checkpoints
    whole_model: bool = False  # write `chosen` as a whole Hugging Face folder, too
    template: str = "chat"  # chat | delift


@dataclass(frozen=True)
class Pool:
    """The used rows of the pool, tokenised once."""

    ids: list[str]
    chosen: np.ndarray  # bool, per row
    encoding: templates.Encoding


@dataclass(frozen=True)
class Arm:
    """One training: an arm and a seed."""

    name: str  # chosen | random | full
    seed: int  # of the initial adapters, the order of rows and, for random, the draw
    rows: np.ndarray  # places in the pool
    key: str  # digest of all that determines the result

    @property
    def label(self) -> str:
        """Return the name of its folder."""
        return f"{self.name}-{self.seed}"


def write_finetuning(
    *,
    examples: Path,
    subset: Path,
    out: Path,
    scratch: Path,
    version: str,
    model: models.ModelChoice,
    settings: FinetuningSettings,
) -> Mapping[str, Any]:
    """Train every arm of `settings.arms`, write `arms/`, `curve.csv` and `finetuning.json`, say what this run did.

    Args:
        examples: folder of the examples artifact; the arms train on its used rows of the pool.
        subset: folder of the selection artifact, which says what is chosen.
        out: folder of this artifact.
        scratch: folder for checkpoints and finished arms, this version's own; keeps adapters for the next run.

    Raises:
        ArtifactError: an input is missing or does not fit the other, or the disk is full.
        TrainingError: settings that cannot be trained, or a loss that is not finite.
        ValueError: a row that is too long; an arm without rows.
    """
    pool = read_pool(examples, subset, model, settings.template)
    arms = plan_arms(pool, model, settings)
    clear(scratch, keep={arm.key for arm in arms})
    found = sum((scratch / arm.key / "finished").exists() for arm in arms)
    homes = {arm.label: finish_arm(arm, pool, scratch / arm.key, model, settings) for arm in arms}
    inputs = artifacts.digest_inputs(examples / "examples.parquet", subset / "subset.parquet")
    publish(homes, out, {"version": version, "inputs": inputs, "method": settings.method})
    clear(scratch, keep={arm.key for arm in arms if not _is_whole(arm, settings)})
    return {"arms_trained": len(arms) - found, "arms_found": found}


def read_pool(examples: Path, subset: Path, model: models.ModelChoice, template: str) -> Pool:
    """Read and tokenise the pool; which rows are chosen comes from `subset`."""
    table = artifacts.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    rows = [row for row in table.to_pylist() if row["used"] and row["split"] == "pool"]
    if not rows:
        raise ArtifactError(f"{examples / 'examples.parquet'} has 0 used rows in its pool; raise examples.pool_rows")
    picked = artifacts.read_table(subset / "subset.parquet", schemas.SUBSET)
    chosen = {row["id"] for row in picked.to_pylist() if row["chosen"]}
    strangers = sorted(chosen - {row["id"] for row in rows})
    if strangers:
        raise ArtifactError(
            f"{len(strangers)} of {len(chosen)} chosen ids are not in the pool, first {strangers[:3]}; "
            f"{subset} and {examples} belong to different runs: make them again with `tamis run`"
        )
    prompts = [templates.join_instruction(row["instruction"], row["prompt"]) for row in rows]
    encoding = templates.encode(models.tokenizer(model), template, prompts, [row["response"] for row in rows])
    finetuning.refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    return Pool([row["id"] for row in rows], np.array([row["id"] in chosen for row in rows]), encoding)


def plan_arms(pool: Pool, model: models.ModelChoice, settings: FinetuningSettings) -> list[Arm]:
    """Return one arm per name and seed, in the order of `settings.arms`."""
    arms = []
    for name, seed in ((name, seed) for name, seeds in settings.arms.items() for seed in seeds):
        rows = finetuning.pick_rows(name, pool.chosen, seed)
        arms.append(Arm(name, seed, rows, _key(name, seed, [pool.ids[row] for row in rows], model, settings)))
    return arms


def clear(scratch: Path, keep: set[str]) -> None:
    """Remove the arms in scratch, finished or not, but for those of these keys."""
    for home in (home for home in scratch.glob("*") if home.name not in keep):
        shutil.rmtree(home, ignore_errors=True)


def finish_arm(arm: Arm, pool: Pool, home: Path, model: models.ModelChoice, settings: FinetuningSettings) -> Path:
    """Return the folder of a trained arm, training it unless it stands there already.

    It holds `weights/` and `log.json`; checkpoints beside it are removed once it is whole.
    """
    finished = home / "finished"
    if not finished.exists():
        try:
            network, losses = train(arm, pool, home / "checkpoints", model, settings)
            with replacing_folder(finished) as part:
                _save(network, part / "weights", arm, model, settings)
                record = finetuning.describe(pool.encoding, arm.rows, losses, settings.epochs)
                artifacts.write_json(record, part / "log.json")
        except Exception as error:
            error.add_note(f"arm {arm.label}; the next run goes on from what {home.parent} holds")
            raise
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return finished


def train(
    arm: Arm, pool: Pool, checkpoints: Path, model: models.ModelChoice, settings: FinetuningSettings
) -> tuple[torch.nn.Module, list[float]]:
    """Train one arm, from its last whole checkpoint on; return the network and the loss of every step.

    The Trainer is handed one item per optimiser step (that step's rows), so that the order of rows is ours and survives
    a restart; its own length-grouped order is drawn from the global generator and differs after one.
    """
    steps = finetuning.plan_steps(len(arm.rows), settings.batch_rows, settings.epochs, arm.seed)
    base, network = _network(arm.seed, model, settings)
    device = next(base.parameters()).device

    def collate(items: Sequence[np.ndarray]) -> dict[str, Any]:
        queries, responses = (
            [ids[row] for row in arm.rows[items[0]]] for ids in (pool.encoding.queries, pool.encoding.responses)
        )
        return finetuning.collate(pool.encoding.base, queries, responses, device)

    with saving(arm.label, checkpoints), language_model.packed_attention(base), _quiet():
        trainer = Trainer(
            model=network,
            args=_arguments(arm.seed, checkpoints, device, settings),
            data_collator=collate,
            train_dataset=steps,
            compute_loss_func=lambda outputs, labels, **_: finetuning.response_loss(outputs.logits, labels),
            optimizers=finetuning.optimise(network, len(steps), settings.learning_rate, settings.warmup_fraction),
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ArmProgress(arm.label))
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    return network, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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


class ArmProgress(ProgressCallback):
    """A bar on stderr with the arm's name and loss; stops the training at a loss that is not finite."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **rest)
        self.training_bar.set_description(self.label)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Move the bar; no checkpoint after the last step, as the arm itself is written next."""
        super().on_step_end(args, state, control, **rest)
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Show the loss."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            self.training_bar.close()
            raise TrainingError(
                f"arm {self.label}: the loss is {loss} at step {state.global_step} of {state.max_steps}; "
                "lower finetuning.learning_rate or set models.dtype: float32"
            )
        self.training_bar.set_postfix(loss=f"{loss:.3f}")


def last_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint, or None; one that a kill cut short is removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is whole.
    """
    found = {}
    for path in checkpoints.glob("checkpoint-*"):
        try:
            found[json.loads((path / "trainer_state.json").read_text())["global_step"]] = path
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
    return str(found[max(found)]) if found else None


def publish(homes: Mapping[str, Path], out: Path, made: Mapping[str, Any]) -> None:
    """Copy finished arms into the artifact and write their curve and numbers, and what they were made from."""
    logs = {label: json.loads((home / "log.json").read_text()) for label, home in homes.items()}
    with replacing_folder(out / "arms") as part:
        for label, home in homes.items():
            shutil.copytree(home / "weights", part / label)
    artifacts.write_text(finetuning.tabulate_curve(logs), out / "curve.csv")
    arms = {label: {name: log[name] for name in log if name != "losses"} for label, log in logs.items()}
    artifacts.write_json({**made, "arms": arms}, out / "finetuning.json")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place on success and is removed on any failure.

    Raises:
        ArtifactError: the disk is full or refuses the write; `path` is then as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.part"):  # a kill left it
        shutil.rmtree(stale)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        for inside in (part, *part.rglob("*")):
            os.chmod(inside, 0o755 if inside.is_dir() else 0o644)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}; nothing was left behind. "
            "Free space on that disk or move the project, then run again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _key(name: str, seed: int, ids: list[str], model: models.ModelChoice, settings: FinetuningSettings) -> str:
    """Return a digest of all that determines an arm: its rows, model, settings, our code and the libraries."""
    facts = {
        **{key: value for key, value in asdict(settings).items() if key != "arms"},
        "arm": (name, seed, ids),
        "model": (models.model_digest(model), str(models.device(model)), model.dtype, model.name, model.revision),
        "sources": [artifacts.digest(Path(source)) for source in SOURCES],
        "libraries": [library.__version__ for library in LIBRARIES],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _network(
    seed: int, model: models.ModelChoice, settings: FinetuningSettings
) -> tuple[PreTrainedModel, torch.nn.Module]:
    """Return a fresh base model and what is trained: the same, or adapters in it (float32 beside half weights)."""
    if settings.method == "full" and model.dtype == "float16":
        raise TrainingError("float16 weights cannot be trained in full (updates underflow); set models.dtype: bfloat16")
    gc.collect()  # the arm before, which its Trainer holds in cycles
    base = models.language_model.__wrapped__(model)  # past the cache: training changes it
    language_model.verify_packing(base)
    if settings.method == "full":
        return base, base
    set_seed(seed)
    config = peft.LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with _quiet():
        return base, peft.get_peft_model(base, config)


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


def _save(
    network: torch.nn.Module, folder: Path, arm: Arm, model: models.ModelChoice, settings: FinetuningSettings
) -> None:
    """Write adapters, and the merged model where it is asked for; or all weights."""
    if settings.method == "full":
        return _save_whole(network, folder, model)
    _save_adapters(network, folder, model)
    return _save_whole(network.merge_and_unload(), folder / "model", model) if _is_whole(arm, settings) else None


def _is_whole(arm: Arm, settings: FinetuningSettings) -> bool:
    """Return whether a whole model is written for an arm."""
    return settings.method == "full" or (settings.whole_model and arm.name == "chosen")


def _save_adapters(network: peft.PeftModel, folder: Path, model: models.ModelChoice) -> None:
    """Write adapters as peft reads them; its own writer adds a card, local paths, and sets in random order."""
    folder.mkdir()
    weights = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    weights = {name: weight.contiguous().cpu() for name, weight in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = network.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    named = {"base_model_name_or_path": model.name, "revision": model.revision, "inference_mode": True}
    artifacts.write_json(config | named, folder / "adapter_config.json")


def _save_whole(network: PreTrainedModel, folder: Path, model: models.ModelChoice) -> None:
    network.config.use_cache = True  # the Trainer turns it off
    network.save_pretrained(folder)
    models.tokenizer(model).save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a deprecation inside peft and transformers, which nobody here can act on, from the user's terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape("`is_gradient_checkpointing` is deprecated"))
        yield
