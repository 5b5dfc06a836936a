"""Sparse deltas: what training inside a mask made of a base model, as the entries that it moved and their values.

An arm's delta always stands on the base model: where a version continues from another, it holds the entries of the
delta before it, too. It is one file of safetensors, `NAME.indices` (flat, ascending) and `NAME.values` (of the weights'
own type) for each tensor with such entries; its header, a JSON text under `tamis`, names the base and the shapes of all
its tensors. Equal content is equal bytes.
"""

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from tamis.masks.sparse_adamw import Delta
from tamis.masks.tensor_layout import MaskError, refuse_other
from tasks import models
from tasks.artifacts.tables import FILE, FOLDER, UMASK, ArtifactError, put_in_place, read_facts, read_json
from tasks.artifacts.tensors import read, write
from tasks.model_files import refuse_other_base

DELTA = "delta.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RESTORE = "restore it with `dvc checkout` or make it again with `tamis run`"
NAMED = {"name": "models.language", "revision": "models.language_revision", "dtype": "models.dtype"}


def write_delta(delta: Delta, folder: Path, model: models.ModelChoice, facts: Mapping[str, Any]) -> int:
    """Write a delta into a folder, whole or not at all; return its bytes.

    Args:
        delta: relative to the base.
        model: the base.
        facts: what else its header says.

    Raises:
        ArtifactError: the disk is full or refuses the write.
    """
    header = {**facts, "base": describe_base(model), "shapes": delta.shapes, "entries": count_entries(delta)}
    tensors = {f"{name}.indices": indices for name, indices in delta.indices.items()}
    tensors |= {f"{name}.values": values for name, values in delta.values.items()}
    write(tensors, folder / DELTA, header)
    return (folder / DELTA).stat().st_size


def read_delta(folder: Path) -> tuple[Delta, dict[str, Any]]:
    """Return the delta of an arm's folder, on the CPU, and its header.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    header = read_facts(folder / DELTA)
    tensors, _ = read(folder / DELTA, way_out=RESTORE)
    indices, values = (
        {name.removesuffix(kind): tensor for name, tensor in tensors.items() if name.endswith(kind)}
        for kind in (".indices", ".values")
    )
    shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
    return Delta(shapes, indices, values), header


def count_entries(delta: Delta) -> int:
    """Return how many entries a delta holds."""
    return sum(len(indices) for indices in delta.indices.values())


def describe_base(model: models.ModelChoice) -> dict[str, str | None]:
    """Return what a delta's header says of its base: name and revision as they were chosen, type, digest."""
    return {
        "name": model.label,
        "revision": model.revision,
        "dtype": model.dtype,
        "digest": models.model_digest(model),
    }


def differences(header: Mapping[str, Any], model: models.ModelChoice) -> list[str]:
    """Return how a model differs from the base of a delta, as `models.dtype: float32, not bfloat16`; none: it is it."""
    theirs, ours = header["base"], describe_base(model)
    if theirs["digest"] == ours["digest"]:
        return []
    told = [f"{name}: {theirs[key]}, not {ours[key]}" for key, name in NAMED.items() if theirs[key] != ours[key]]
    return [*told, f"its digest: {theirs['digest']}, not {ours['digest']}"]


def apply(network: PreTrainedModel, folder: Path, model: models.ModelChoice) -> Delta:
    """Put the delta of an arm's folder into its base, in place; return the base's own values at its entries.

    Args:
        network: the base, on any device.
        folder: of the arm.
        model: the base, as it was chosen.

    Raises:
        ArtifactError: the delta is missing or damaged.
        MaskError: it was made on another base, with the first tensors, or the settings, that differ.
    """
    delta, header = read_delta(folder)
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    refuse_other(shapes, delta.shapes, f"delta {folder / DELTA}")
    wrong = differences(header, model)
    if wrong:
        raise MaskError(
            f"the delta {folder / DELTA} was made on another base, {', '.join(wrong)}; use the base that it was made "
            "on, or make it again with `tamis run`"
        )
    return put(network, delta)


@torch.no_grad()
def put(network: PreTrainedModel, delta: Delta) -> Delta:
    """Write a delta's values into a network; return the same entries with the values that stood there."""
    named, before = dict(network.named_parameters()), {}
    for name, indices in delta.indices.items():
        flat, places = named[name].view(-1), indices.to(named[name].device)
        before[name] = flat[places]
        flat[places] = delta.values[name].to(flat.device)
    return replace(delta, values=before)


@contextmanager
def patched(network: PreTrainedModel, folder: Path, model: models.ModelChoice) -> Iterator[PreTrainedModel]:
    """Yield a base with the delta of an arm's folder in it; the base's own bits stand there again afterwards.

    Args and errors as `apply`. Cost: the delta's entries twice, no copy of the model.
    """
    before = apply(network, folder, model)
    try:
        yield network
    finally:
        put(network, before)


def identify(folder: Path) -> tuple[str, str]:
    """Return the method by which an arm was trained, and what its folder holds, in words."""
    if any((folder / name).exists() for name in (ADAPTER, ADAPTER_WEIGHTS)):  # of one alone the reader tells
        return "lora", "an adapter"
    if (folder / DELTA).exists():
        return "masked", "a delta"
    return "full", "a whole model"


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return what an arm's adapter says of itself.

    Raises:
        ArtifactError: it is missing or was damaged.
    """
    return read_json(folder / ADAPTER, ["base_model_name_or_path", "revision", "r", "lora_alpha"])


def merge(arm: Path, model: models.ModelChoice, out: Path) -> None:
    """Write an arm as a whole model folder that transformers loads, tokenizer and all: its base with what it learnt.

    Args:
        arm: folder of an arm, with a delta or adapters.
        model: the base.
        out: the folder to be written, whole or not at all; it may be there if it is empty.

    Raises:
        ArtifactError: there is no such arm; it is a whole model already; `out` is not empty; the disk refuses.
        MaskError: the arm stands on another base.
    """
    if not arm.is_dir():
        known = sorted(path.name for path in arm.parent.glob("*") if path.is_dir())
        raise ArtifactError(f"there is no arm {arm}; {arm.parent} has {', '.join(known) or 'none'}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} is there and is not empty; give another folder, or remove it")
    network = load_merged(arm, replace(model, device="cpu"))
    with replacing_folder(out) as part:
        save_whole(network, part, model)


def load_merged(arm: Path, model: models.ModelChoice) -> PreTrainedModel:
    """Return the base with an arm's delta or adapters in its weights."""
    method, kind = identify(arm)
    if method == "full":
        raise ArtifactError(f"{arm} is {kind} already: use it as it is")
    network = models.language_model.__wrapped__(model)  # past the cache: it is changed
    if method == "masked":
        apply(network, arm, model)
        return network
    theirs = read_adapter(arm)
    if (theirs["base_model_name_or_path"], theirs["revision"]) != (model.label, model.revision):
        raise MaskError(
            f"{arm} was trained on {theirs['base_model_name_or_path']} (revision {theirs['revision']}), not on "
            f"{model.label} (revision {model.revision}); set models.language back"
        )
    refuse_other_base(arm, model.name, model.revision)
    with quiet_peft():
        return peft.PeftModel.from_pretrained(network, arm).merge_and_unload()


def save_whole(network: PreTrainedModel, folder: Path, model: models.ModelChoice) -> None:
    """Write weights, configuration and tokenizer as transformers reads them."""
    network.config.use_cache = True  # the Trainer turns it off
    with models.quiet():
        network.save_pretrained(folder)
    models.tokenizer(model).save_pretrained(folder)


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
            os.chmod(inside, (FOLDER if inside.is_dir() else FILE) & ~UMASK)
        if path.exists():
            shutil.rmtree(path)
        put_in_place(part, path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}; nothing was left behind. "
            "Free space on that disk or move the project, then run again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep deprecations inside peft and transformers, which nobody here can act on, from the user's terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape("`is_gradient_checkpointing` is deprecated"))
        yield
