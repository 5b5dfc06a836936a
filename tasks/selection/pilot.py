"""The pilot of a choice: brief trainings on part of it, measured on validation rows before the choice is trained on.

Each training starts from the base model and is one of section `finetuning`, but for its length. What it gave is kept in
the cache by all that determines it, so that another run finds it, and says the same seconds.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import peft
import torch
from transformers import PreTrainedModel

import tamis.masks.sparse_adamw
import tamis.training.steps
from tamis.evaluation.costs import FORWARD, TRAINING, count_rows, count_steps, sum_flops
from tamis.language import packing
from tamis.language.encoding import Encoding, refuse_long
from tamis.language.packing import NonFiniteError, packed_attention, score_rows, verify_packing
from tamis.masks.sparse_adamw import RestrictedAdamW, freeze, indices, mask_gradients
from tamis.submodular.budgets import Budget
from tamis.training import pilot
from tamis.training.steps import backward, optimise, plan_steps, scale_rate
from tasks import models
from tasks.artifacts.remembered import recall
from tasks.artifacts.row_sets import read_set, read_sets
from tasks.artifacts.tables import digest_code, write_json
from tasks.masks.sparse_deltas import quiet_peft
from tasks.scoring_model import model_lock
from tasks.selection.rows import SelectionError
from tasks.settings import RuntimeSettings
from tasks.tokens import WRITERS, encode_rows

LONGEST = 1.0  # norm of a step's gradient, as the Trainer cuts it
WAY_OUT = "lower finetuning.learning_rate, set models.dtype: float32, or selection.pilot: null"
CODE = digest_code(tamis.training.steps, tamis.masks.sparse_adamw, packing, *WRITERS, sys.modules[__name__])


@dataclass(frozen=True)
class Training:
    """How an arm is trained: what section `finetuning` says of it."""

    method: str  # lora | full | masked
    learning_rate: float
    lr_warmup_fraction: float
    batch_rows: int
    loss_per: str
    lora_rank: int
    lora_alpha: int


@dataclass(frozen=True)
class Place:
    """Where a pilot finds what it needs."""

    source: Path  # examples.parquet
    cache: Path  # of what trainings gave
    model: models.ModelChoice
    training: Training
    runtime: RuntimeSettings
    mask: Mapping[str, np.ndarray] | None = None  # flat indices, where method masked trains inside one


@dataclass(frozen=True, eq=False)
class Brief:
    """A brief training and what it is measured on."""

    rows: Encoding
    ids: list[str]
    seed: int
    steps: int
    measured: Encoding
    measured_ids: list[str]


def run_pilot(
    place: Place, asked: Mapping[str, Any], order: np.ndarray, budget: Budget, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rows to train on, in their order, and what the pilot did and why.

    Args:
        place: where all is found.
        asked: `selection.pilot`.
        order: the choice, by rank, as places in the used pool.
        budget: of the used pool.
        seed: of what is drawn.

    Raises:
        ValueError: no validation row; a row that is too long; a loss that is not finite.
    """
    ground = read_set(place.source, "ground").to_pylist()
    table, sets = read_sets(place.source, ("target", "validation"))
    references = table.take(sets["target"] if len(sets["target"]) else sets["validation"]).to_pylist()
    if not references:
        raise SelectionError(
            f"selection.pilot measures on validation rows, and {place.source} has none; set "
            "examples.validation_every: 10 or examples.target, or selection.pilot: null"
        )
    pool, measured = (encode_rows(rows, place.model) for rows in (ground, references))
    for encoding, rows in ((pool, ground), (measured, references)):
        refuse_long(encoding, [row["row"] for row in rows], place.model.max_tokens)
    count = min(len(order), max(place.training.batch_rows, round(asked["rows"] * len(order))))
    losses: dict[str, list[list[float]]] = {name: [] for name in pilot.ARMS}
    seconds: dict[str, float] = {}  # of trainings that differ
    flops: dict[str, int] = {}  # likewise
    known = [row["id"] for row in references]
    try:
        for number in range(asked["seeds"]):
            for name, rows in pilot.draw_arms(order, budget, count, seed=seed + number).items():
                ids = [ground[row]["id"] for row in rows]
                brief = Brief(pool.pick(rows), ids, seed + number, asked["steps"], measured, known)
                found = measure(place, brief, f"{name}-{number}")
                losses[name].append(found["losses"])
                key = digest(place, brief)
                seconds[key], flops[key] = found["seconds"], count_brief(place, brief)
    finally:
        load.cache_clear()
    arrays = {name: np.array(found) for name, found in losses.items()}
    verdict = pilot.decide(arrays, generator=np.random.default_rng(seed))
    told = {"steps": asked["steps"], "rows": count, "seconds": round(sum(seconds.values()), 3)}
    told["flops"] = sum(flops.values())
    told["validation"] = {"rows": len(references), "of": references[0]["split"]}
    return pilot.take_rows(verdict.decision, order, budget, seed=seed), pilot.record(verdict, arrays) | told


def measure(place: Place, brief: Brief, label: str) -> dict[str, Any]:
    """Return the loss of each validation row after a brief training, and the seconds of both, now or earlier."""
    path = place.cache / f"{digest(place, brief)}.json"
    kept = recall(path, {"losses": list, "seconds": (int, float)})
    if kept and len(kept["losses"]) == len(brief.measured_ids):  # else it is damaged, and only kept
        return kept
    with model_lock:
        start = perf_counter()
        network = train(place, brief, label)
        inside = network.get_base_model() if isinstance(network, peft.PeftModel) else network
        try:
            with models.multiplying(place.model):
                scored = score_rows(inside, brief.measured, place.runtime.pack_tokens)
        except NonFiniteError as error:
            raise SelectionError(f"the pilot's loss of {label} on a validation row is not finite; {WAY_OUT}") from error
        found = {"losses": [-float(row.double().mean()) for row in scored], "seconds": perf_counter() - start}
        if isinstance(network, peft.PeftModel):
            network.unload()  # the next adapters go into the same base
        del network, inside
        gc.collect()  # adapters and hooks hold each other
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(found, path)
    return found


@models.kept
def load(choice: models.ModelChoice) -> PreTrainedModel:
    """Return the base model, of its own: training changes it."""
    base = models.language_model.__wrapped__(choice)  # past the cache
    verify_packing(base)
    return base


def plan_brief(brief: Brief, batch_rows: int) -> list[np.ndarray]:
    """Return the places of the rows that each step of a brief training takes."""
    epoch = -(-len(brief.rows) // batch_rows)  # steps
    return plan_steps(len(brief.rows), batch_rows, -(-brief.steps // epoch), brief.seed)[: brief.steps]


def count_brief(place: Place, brief: Brief) -> int:
    """Return the floating-point operations of a brief training and of what is measured after it."""
    passed = count_steps(brief.rows, plan_brief(brief, place.training.batch_rows))
    parts = [(passed, TRAINING), (count_rows(brief.measured), FORWARD)]
    return sum_flops(parts, models.count_parameters(place.model))


def train(place: Place, brief: Brief, label: str) -> torch.nn.Module:
    """Return a model after a brief training, or adapters in one, in eval mode and with its own attention.

    Adapters leave the base as it is, so it is loaded once for all of them; else each training has one of its own.

    Raises:
        SelectionError: a loss that is not finite.
    """
    how = place.training
    base = (load if how.method == "lora" else load.__wrapped__)(place.model)
    steps = plan_brief(brief, how.batch_rows)
    network, optimizer, schedule = restrict(base, place, len(steps), brief.seed)
    network.train()
    with packed_attention(base), models.multiplying(place.model):
        for number, places in enumerate(steps, start=1):
            loss = backward(network, brief.rows.pick(places), how.loss_per)
            if not torch.isfinite(loss):
                raise SelectionError(
                    f"the pilot's loss of {label} is {float(loss)} at step {number} of {len(steps)}; {WAY_OUT}"
                )
            torch.nn.utils.clip_grad_norm_(network.parameters(), LONGEST)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return network.eval()


def restrict(base: PreTrainedModel, place: Place, steps: int, seed: int) -> tuple[torch.nn.Module, Any, Any]:
    """Return what is trained of a base, its optimiser and the schedule of the learning rate, by the method."""
    how = place.training
    if how.method == "masked":
        chosen = indices(dict(base.named_parameters()), place.mask)
        freeze(base, chosen)
        mask_gradients(base, chosen)
        optimizer = RestrictedAdamW(base.named_parameters(), chosen, lr=how.learning_rate)
        scale = partial(scale_rate, steps=steps, warmup_fraction=how.lr_warmup_fraction)
        return base, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    network: torch.nn.Module = base
    if how.method == "lora":
        config = peft.LoraConfig(
            r=how.lora_rank, lora_alpha=how.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)
            network = peft.get_peft_model(base, config)
    return network, *optimise(network, steps, how.learning_rate, how.lr_warmup_fraction)


def digest(place: Place, brief: Brief) -> str:
    """Return the digest of all that determines what a brief training gives."""
    total = hashlib.sha256()
    for name in sorted(place.mask or {}):
        total.update(name.encode() + place.mask[name].astype("<i8").tobytes())
    model = place.model
    facts = [models.model_digest(model), str(models.device(model)), model.dtype, model.template, CODE]
    facts += [asdict(place.training), brief.ids, brief.seed, brief.steps, brief.measured_ids, total.hexdigest()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
