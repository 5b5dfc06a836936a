"""Finetuning steps: the order of an arm's rows, the learning rate, and a step's rows as one packed sequence.

Symbols: row = an example of the pool; step = one optimiser step, of `batch_rows` rows. Rows of a step that begin with
the same head share one copy of it and stand after it without padding, each blind to the others (module packing):
the gradient is that of padded rows, at about 0.6 of their cost on short chats.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.language.encoding import Encoding
from tamis.language.packing import Group, bucket_spans, group_rows, plan_packs
from tamis.memory import fitting

PASSED = "rows per training pass"  # what is halved where memory is short


def plan_steps(rows: int, batch_rows: int, epochs: int, seed: int) -> list[Int[np.ndarray, " _"]]:
    """Return the places (0 to rows - 1) that each optimiser step takes, where every epoch takes all rows.

    >>> [step.size for step in plan_steps(rows=5, batch_rows=2, epochs=2, seed=0)]
    [2, 2, 1, 2, 2, 1]
    """
    return plan_epochs([np.arange(rows)] * epochs, batch_rows, seed)


def plan_epochs(taken: Sequence[Int[np.ndarray, " _"]], batch_rows: int, seed: int) -> list[Int[np.ndarray, " _"]]:
    """Return the places that each optimiser step takes, of those that each epoch takes.

    Every epoch is its own shuffle by (seed, epoch), so the order does not depend on where a training was interrupted;
    an epoch's last step takes what is left.

    >>> [sorted(step.tolist()) for step in plan_epochs([np.array([0, 2]), np.array([1, 3])], batch_rows=2, seed=0)]
    [[0, 2], [1, 3]]
    """
    steps = []
    for epoch, places in enumerate(taken):
        order = places[np.random.default_rng([seed, epoch]).permutation(len(places))]
        steps += [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    return steps


def scale_rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the learning rate of a step as a fraction of the peak, in (0, 1].

    rate(k) = (k + 1) / (W + 1) while k < W, then (S - k) / (S - W), with S = steps, W = round(warmup_fraction * S) and
    k = `step` from 0. **Differs** from transformers' linear schedule, whose first step has rate 0 and is wasted: a
    sixth of the training where an arm has six steps.

    >>> [round(scale_rate(step, 6, 0.2), 2) for step in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    warmup = min(round(warmup_fraction * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(steps - step, 0) / (steps - warmup)


def optimise(
    network: nn.Module, steps: int, rate: float, warmup_fraction: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW without weight decay for what is trained of a network, and the schedule of its learning rate.

    Args:
        network: whose weights with `requires_grad` are trained.
        steps: optimiser steps.
        rate: the peak.
        warmup_fraction: of the steps.
    """
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    scale = partial(scale_rate, steps=steps, warmup_fraction=warmup_fraction)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def collate(rows: Encoding, device: torch.device) -> dict[str, Any]:
    """Lay the rows of a step after one copy of each head, as the arguments of a model's forward pass and its labels.

    Args:
        rows: of the step.
        device: where the attention's index tensors are wanted.

    Returns:
        `input_ids` and `position_ids` [1, token]; `pack` for packed attention; `logits_to_keep` [kept], the positions
        that predict an answer token, and `labels` [2, kept], these tokens and the row of each, from 0: nothing else
        enters the loss.
    """
    return lay_groups(group_rows(rows), device)


def lay_groups(groups: Sequence[Group], device: torch.device) -> dict[str, Any]:
    """Lay groups into one packed sequence; as `collate`."""
    (pack,) = plan_packs(groups, pack_tokens=sys.maxsize)
    tokens = torch.from_numpy(pack.tokens).long()
    kept = torch.from_numpy(np.concatenate(pack.predicting))
    rows = {row: place for place, row in enumerate(dict.fromkeys(member[:2] for member in pack.members))}
    owner = np.repeat([rows[member[:2]] for member in pack.members], [len(each) for each in pack.predicting])
    return {
        "input_ids": tokens[None],
        "position_ids": torch.from_numpy(pack.positions).long()[None],
        "pack": bucket_spans(pack.spans, device),
        "logits_to_keep": kept,
        "labels": torch.stack([tokens[kept + 1], torch.from_numpy(owner)]),
    }


def response_loss(
    logits: Float[Tensor, "1 kept vocabulary"], labels: Int[Tensor, "2 kept"], loss_per: str = "row"
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of a step's answers, nats, in float32.

    row:   loss = -(1 / n) * sum_i (1 / T_i) * sum_t log p(y_it | x_i, y_i<t)    each of n rows counts alike
    token: loss = -(1 / sum_i T_i) * sum_i sum_t log p(y_it | x_i, y_i<t)        each token does

    Args:
        logits: at the positions that predict an answer token.
        labels: these tokens, and the row of each.
        loss_per: `row` or `token`.

    >>> logits = torch.tensor([[[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])
    >>> labels = torch.tensor([[0, 0, 0], [0, 0, 1]])  # two likely tokens of one row, an unlikely one of another
    >>> [round(float(response_loss(logits, labels, per)), 2) for per in ("row", "token")]
    [4.5, 3.0]
    """
    losses = nn.functional.cross_entropy(logits[0].float(), labels[0], reduction="none")
    if loss_per == "token":
        return losses.mean()
    sizes = labels[1].bincount()
    return (losses / sizes[labels[1]]).sum() / len(sizes)


def step_loss(network: nn.Module, rows: Encoding, loss_per: str = "row") -> Float[Tensor, ""]:
    """Return the loss of some rows as one step (`collate`, `response_loss`), under packed attention.

    Args:
        network: with packed attention (`packing.packed_attention`).
        rows: of the step.
        loss_per: `row` or `token`.
    """
    device = next(network.parameters()).device
    inputs = collate(rows, device)
    inputs = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in inputs.items()}
    labels = inputs.pop("labels")
    return response_loss(network(**inputs, use_cache=False).logits, labels, loss_per)


def backward(
    network: nn.Module, rows: Encoding, loss_per: str = "row", *, rank: int = 0, of: int = 1
) -> Float[Tensor, ""]:
    """Set the gradient of what is trained to that of a step's loss (`step_loss`), and return the loss, in nats.

    Rows are passed together; where memory is short in several parts, each weighted by its share of what counts in the
    loss, so that the gradient is the same but for rounding. Of several processes each passes a share of the rows; the
    mean of their gradients and of their losses, as data-parallel training forms it, is that of one process.

    Args:
        network: with packed attention.
        rows: of the step.
        loss_per: `row` or `token`.
        rank: of this process.
        of: how many processes there are.

    Raises:
        MemoryShort: a single row does not fit.
    """
    counts = rows.answer_tokens if loss_per == "token" else np.ones(len(rows))
    own = np.arange(len(rows))[rank::of]
    idle = not len(own)  # it has no row, but others wait for its gradient

    def run(size: int) -> Float[Tensor, ""]:
        network.zero_grad()
        passed = np.arange(1) if idle else own
        parts = [passed[start : start + size] for start in range(0, len(passed), size)]
        total = torch.zeros(())
        for number, part in enumerate(parts, start=1):
            with network.no_sync() if of > 1 and number < len(parts) else nullcontext():
                loss = step_loss(network, rows.pick(part), loss_per)
                weight = 0.0 if idle else counts[part].sum() * of / counts.sum()
                if weight != 1.0:
                    loss = loss * weight
                loss.backward()
            total = total.to(loss.device) + loss.detach()
        return total

    size = max(1, len(own))
    return run(size) if of > 1 else fitting(PASSED, size, run)  # others would wait for one that begins anew


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last fifth of the steps (one at least), nats.

    >>> final_loss([9.0, 9.0, 9.0, 9.0, 1.0])
    1.0
    """
    tail = losses[-max(1, len(losses) // 5) :]
    return sum(tail) / len(tail)


def describe(encoding: Encoding, epochs: Sequence[Int[np.ndarray, " _"]], losses: list[float]) -> dict[str, Any]:
    """Return an arm's numbers: rows that it saw, each once, and tokens over all epochs, heads left out.

    Args:
        encoding: of the pool.
        epochs: rows of the pool that each epoch took.
        losses: of each step, nats.
    """
    seen, counts = np.unique(np.concatenate(epochs), return_counts=True)
    facts = {"rows": len(seen), "epochs": len(epochs), "steps": len(losses), "losses": losses}
    facts["tokens"] = int((counts * encoding.own_tokens[seen]).sum())
    facts["response_tokens"] = int((counts * encoding.answer_tokens[seen]).sum())
    return {**facts, "final_loss": final_loss(losses)}


def tabulate_curve(logs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the loss curves of all runs as CSV, from `describe`'s numbers by the run's label (`random-1`).

    >>> print(tabulate_curve({"full-0": {"epochs": 1, "steps": 2, "losses": [1.5, 1.25]}}), end="")
    arm,seed,step,epoch,loss
    full,0,1,0.5,1.5
    full,0,2,1,1.25
    """
    lines = ["arm,seed,step,epoch,loss"]
    for label, log in logs.items():
        name, seed = label.rsplit("-", 1)
        for step, loss in enumerate(log["losses"], start=1):
            lines.append(f"{name},{seed},{step},{step * log['epochs'] / log['steps']:.6g},{loss:.6g}")
    return "\n".join(lines) + "\n"
