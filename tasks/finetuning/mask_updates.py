"""Training inside a mask, and the mask that is cut anew while it goes on.

Symbols: entry = one number of one tensor, by its flat index; mask in force = the entries that are trained now; trained
= the entries of all masks so far, which the delta holds. A mask that is cut anew stands beside the Trainer's
checkpoints as `mask-<step>.safetensors`, with `trained` and what is known of every cut so far; a checkpoint goes on
with the last one that was cut at its step or before it. So an interrupted training gives the bits of an uninterrupted
one.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerCallback

from tamis.gradients.distillation import preservation_gradient
from tamis.gradients.interaction import Terms, direction, score_parameters
from tamis.gradients.per_example import GradientError, accumulate, group_parameters, validation_gradient
from tamis.language.batches import Batch
from tamis.language.encoding import Encoding
from tamis.masks.sparse_adamw import Mask, RestrictedAdamW, count_state_bytes, freeze, indices, mask_gradients
from tamis.masks.topk import choose
from tamis.training.steps import scale_rate
from tasks import models
from tasks.artifacts.tables import digest
from tasks.artifacts.tensors import read, write
from tasks.gradients import warmup
from tasks.gradients.settings import GradientsSettings
from tasks.gradients.warmup import Sets
from tasks.masks.mask_tables import MaskPlan, read_mask, read_plan
from tasks.settings import RuntimeSettings

DENSE_BYTES = 8  # of dense AdamW's state, per parameter: two moments in float32


@dataclass(frozen=True)
class Scoring:
    """When and by what the mask is cut anew."""

    every: int  # optimiser steps
    plan: MaskPlan  # how the first mask was cut
    model: models.ModelChoice  # the base, and the teacher
    settings: GradientsSettings
    runtime: RuntimeSettings
    loss_per: str  # what counts alike in the training: row | token
    sets: Sets  # validation rows and anchors, those that the first mask was scored with


@dataclass(frozen=True)
class Restriction:
    """What is trained of a model."""

    mask: Mapping[str, np.ndarray]  # flat indices, ascending, by name
    scoring: Scoring | None = None  # None: this mask to the end

    @cached_property
    def digest(self) -> str:
        """Return that of the mask; all arms share it."""
        total = hashlib.sha256()
        for name in sorted(self.mask):
            total.update(name.encode() + self.mask[name].astype("<i8").tobytes())
        return total.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what of it determines a training."""
        return {"mask": self.digest, "scoring": _describe(self.scoring) if self.scoring else None}


@dataclass(frozen=True)
class Kept:
    """A mask that was cut anew, as it stands beside the checkpoints."""

    mask: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    rescored: list[dict[str, Any]]


@dataclass
class MaskedTraining:
    """A network that is trained inside a mask; `change` gives it another one."""

    network: PreTrainedModel
    optimizer: RestrictedAdamW
    mask: Mapping[str, Tensor]  # in force, beside the weights
    trained: Mapping[str, Tensor]  # on the CPU
    rescored: list[dict[str, Any]]  # a record for each new cut: step, entries kept and new, share of ties
    handles: list[RemovableHandle]

    def change(self, mask: Mask, step: int, ties: float) -> None:
        """Train another mask from now on; entries that leave it keep their values, those that stay their state."""
        before = _to_numpy(self.mask)
        self.mask = indices(dict(self.network.named_parameters()), mask)
        now = _to_numpy(self.mask)
        self.handles = _restrict(self.network, self.mask, self.handles)
        self.optimizer.remask(self.mask)
        self.trained = unite(self.trained, now)
        kept = sum(len(np.intersect1d(now[name], before[name], assume_unique=True)) for name in now.keys() & before)
        new = sum(map(len, now.values())) - kept
        self.rescored = [*self.rescored, {"step": step, "kept": kept, "new": new, "ties": ties}]

    def schedule(self, steps: int, warmup_fraction: float) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of the learning rate, that of the other methods."""
        scale = partial(scale_rate, steps=steps, warmup_fraction=warmup_fraction)
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, scale)

    def measure(self) -> dict[str, Any]:
        """Return the parameters that are trained and what their optimiser holds, in bytes and as a share of dense
        AdamW's; and what is known of every new cut."""
        parameters = sum(weight.numel() for weight in self.network.parameters())
        state = count_state_bytes(self.optimizer)
        return {
            "trained_parameters": sum(map(len, self.mask.values())),
            "state_bytes": state,
            "state_share": round(state / (DENSE_BYTES * parameters), 6),
            "rescored": self.rescored,
        }


def read_restriction(
    source: Path,
    selection: Path,
    model: models.ModelChoice,
    *,
    every: int | None,
    settings: GradientsSettings | None,
    runtime: RuntimeSettings,
    loss_per: str,
) -> Restriction:
    """Return the mask of a selection artifact and, where it is to be cut anew, what that takes.

    Args:
        source: the examples.
        selection: folder of the artifact.
        model: the base.
        every: optimiser steps between two cuts; None: it is cut once.
        settings: of stage gradients; wanted with `every`.
        runtime: how the pool is passed through.
        loss_per: of the training, `row` or `token`.

    Raises:
        ValueError: a mask of another model; a mask that gradients did not choose is to be cut anew.
    """
    mask = read_mask(selection, model)
    if every is None:
        return Restriction(mask)
    plan = read_plan(selection)
    if plan.selector != "dualsft" or settings is None:
        raise ValueError(
            f"mask.update_steps is {every} and {selection} holds a mask by {plan.selector}; only a mask by "
            "dualsft is cut anew: set update_steps: null"
        )
    sets = warmup.read_sets(source, digest(source), model, settings)
    return Restriction(mask, Scoring(every, plan, model, settings, runtime, loss_per, sets))


def restrict_model(network: PreTrainedModel, mask: Mask, rate: float, kept: Kept | None) -> MaskedTraining:
    """Restrict a network to a mask, or to the one that was in force when its checkpoint was written.

    Args:
        network: on its device; its weights are frozen or hooked.
        mask: the first one.
        rate: peak of the learning rate.
        kept: what `recall` found.
    """
    named = dict(network.named_parameters())
    chosen = indices(named, kept.mask if kept else mask)
    trained = kept.trained if kept else {name: indices.cpu() for name, indices in chosen.items()}
    handles = _restrict(network, chosen, [])
    optimizer = RestrictedAdamW(network.named_parameters(), chosen, lr=rate)
    return MaskedTraining(network, optimizer, chosen, trained, kept.rescored if kept else [], handles)


class Rescorer(TrainerCallback):
    """Cuts the mask anew every so many optimiser steps, but for the last, and keeps it beside the checkpoints."""

    def __init__(
        self,
        inside: MaskedTraining,
        scoring: Scoring,
        *,
        label: str,
        rows: Encoding,
        ids: Sequence[str],
        checkpoints: Path,
    ) -> None:
        self.inside, self.scoring, self.checkpoints = inside, scoring, checkpoints
        self.label, self.rows, self.ids = label, rows, ids
        self.attention = inside.network.config._attn_implementation  # the model's own; training packs rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Warn where the training is too short for a new cut."""
        if self.scoring.every >= state.max_steps:
            warnings.warn(
                f"mask.update_steps is {self.scoring.every} and arm {self.label} takes {state.max_steps} "
                "optimiser steps, so its mask is never cut anew; lower it, raise finetuning.epochs, or set "
                "update_steps: null",
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Cut the mask anew after a step; a checkpoint of this step is written afterwards."""
        if state.global_step % self.scoring.every or state.global_step >= state.max_steps:
            return
        inside, plan = self.inside, self.scoring.plan
        with _at_rest(inside.network, self.attention):
            phi = score(inside.network, self.scoring, self.rows, self.ids)
        shares = {"layer_share": plan.layer_share, "module_share": plan.module_share}
        shapes = {name: tuple(tensor.shape) for name, tensor in phi.items()}
        mask, cut = choose(shapes, phi.get, plan.k, signed=plan.signed, **shares)
        inside.change(mask, state.global_step, round(cut.tie_share, 6))
        save_mask(inside, self.checkpoints, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Remove masks that no checkpoint goes on with."""
        for path in list_kept(self.checkpoints)[:-1]:
            path.unlink()


def score(network: PreTrainedModel, scoring: Scoring, rows: Encoding, ids: Sequence[str]) -> dict[str, Tensor]:
    """Return phi_param at the weights as they are, of every parameter, on the CPU.

    phi = (lambda_new v_new + lambda_prior v_prior) o G, v_new the mean gradient of the validation rows, v_prior the
    gradient of what anchors preserve, the base model being their teacher, G the sum over the rows that the arm itself
    is trained on. **Source**: DualSFT, arXiv 2605.06166v1, which scores once and names this as its limit. Differs:
    scored again in training; G over the arm's own rows (validation rows among them, where these are of the pool), not
    over the pool; first order whatever `gradients.order` says, as second moments are there for chosen entries only.

    Cost: a forward-backward pass over validation rows, anchors and the arm's rows, once for each group of parameters
    (`runtime.block_parameters`); memory: phi, and three times the group in float32.

    Args:
        network: in eval mode, with its own attention.
        scoring: what is drawn and how it weighs.
        rows: that the arm is trained on.
        ids: of these.

    Raises:
        ValueError: a gradient that is not finite, with the ids of its rows.
    """
    settings, sets, phi = scoring.settings, scoring.sets, {}
    for weight in network.parameters():
        weight.requires_grad_(True)
    teacher = models.language_model(scoring.model)
    how = {"confidence": settings.confidence, "tau": settings.temperature, "loss_per": scoring.loss_per}
    largest = scoring.runtime.block_parameters or sum(weight.numel() for weight in network.parameters())
    for names in group_parameters(network, largest):
        with _batches(sets, sets.validation, scoring.runtime) as batches:
            v_new = validation_gradient(network, batches, keep=names, loss_per=scoring.loss_per)
        with _batches(sets, sets.anchors, scoring.runtime) as batches:
            v_prior = preservation_gradient(network, teacher, batches, keep=names, **how).v_prior
        u = direction(Terms(v_new, v_prior, settings.lambda_new, settings.lambda_prior))
        del v_new, v_prior
        with _naming(ids):
            passed = warmup.lay_out(rows, scoring.runtime.pack_tokens)
            G = accumulate(network, passed, keep=names, loss_per=scoring.loss_per).G
        phi |= {name: tensor.cpu() for name, tensor in score_parameters(u, G).items()}
    return phi


def save_mask(inside: MaskedTraining, checkpoints: Path, step: int) -> None:
    """Write the mask in force beside the checkpoints, whole or not at all."""
    tensors = {f"{name}.mask": indices for name, indices in inside.mask.items()}
    tensors |= {f"{name}.trained": indices for name, indices in inside.trained.items()}
    write(tensors, checkpoints / f"mask-{step}.safetensors", {"rescored": inside.rescored})


def load_mask(checkpoints: Path, step: int) -> Kept | None:
    """Return the mask in force when the checkpoint of a step was written; None: the first one."""
    found = [path for path in list_kept(checkpoints) if step_of(path) <= step]
    if not found:
        return None
    tensors, facts = read(found[-1])
    mask, trained = (
        {name.removesuffix(kind): tensor for name, tensor in tensors.items() if name.endswith(kind)}
        for kind in (".mask", ".trained")
    )
    return Kept(mask, trained, facts["rescored"])


def list_kept(checkpoints: Path) -> list[Path]:
    """Return the masks that stand beside the checkpoints, oldest first."""
    return sorted(checkpoints.glob("mask-*.safetensors"), key=step_of)


def unite(one: Mask, other: Mask) -> dict[str, Tensor]:
    """Return the entries of two masks, on the CPU and in memory of their own."""
    first, second = _to_numpy(one), _to_numpy(other)
    both = {name: np.union1d(first[name], second[name]) for name in first.keys() & second}
    return {name: torch.from_numpy(indices.copy()) for name, indices in (first | second | both).items()}


def _to_numpy(mask: Mask) -> dict[str, np.ndarray]:
    return {name: indices.cpu().numpy() if isinstance(indices, Tensor) else indices for name, indices in mask.items()}


def step_of(path: Path) -> int:
    """Return the optimiser step after which a checkpoint, or a mask, was written."""
    return int(path.stem.rpartition("-")[2])


def _restrict(network: PreTrainedModel, mask: Mask, handles: Sequence[RemovableHandle]) -> list[RemovableHandle]:
    """Freeze what a mask leaves alone and mask the gradients of the rest, in place of an earlier mask."""
    for handle in handles:
        handle.remove()
    freeze(network, mask)
    return mask_gradients(network, mask)


@contextmanager
def _at_rest(network: PreTrainedModel, attention: str) -> Iterator[None]:
    """Put a network that is in training into eval mode, with its own attention, while the context lasts."""
    training, packed = network.training, network.config._attn_implementation
    network.eval().set_attn_implementation(attention)
    try:
        yield
    finally:
        network.train(training).set_attn_implementation(packed)


@contextmanager
def _batches(sets: Sets, places: Sequence[int], runtime: RuntimeSettings) -> Iterator[list[Batch]]:
    with _naming([sets.ids[place] for place in places]):
        yield warmup.lay_out(sets.encoding.pick(places), runtime.pack_tokens)


@contextmanager
def _naming(ids: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except GradientError as error:
        wrong = [ids[example] for example in error.examples]
        raise ValueError(
            f"{len(wrong)} of {len(ids)} rows have a gradient that is not finite when the mask is cut anew, first ids "
            f"{wrong[:3]}; lower finetuning.learning_rate or take these rows out of the raw data"
        ) from error


def _describe(scoring: Scoring) -> dict[str, Any]:
    """Return what determines a new cut, beside the mask and the model."""
    names = ("confidence", "temperature", "lambda_new", "lambda_prior")
    plan = {name: value for name, value in asdict(scoring.plan).items() if name not in ("shapes", "seed")}
    rows = [[scoring.sets.ids[place] for place in getattr(scoring.sets, name)] for name in ("validation", "anchors")]
    settings = {name: getattr(scoring.settings, name) for name in names}
    settings["loss_per"] = scoring.loss_per
    return {"every": scoring.every, "plan": plan, "rows": rows, "settings": settings, "code": warmup.CODE}
