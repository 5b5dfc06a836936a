"""Finetuning: the rows of an arm, their order, the learning rate, and a step's rows as one packed sequence.

Symbols: row = an example of the pool; step = one optimiser step, of `batch_rows` rows; an *arm* is one way to choose
the rows that a model is trained on (`chosen` by selection, `random` at equal budget, `full` pool); *replay* adds rows
of earlier versions to every arm alike. Rows of a step share one copy of the template's prefix and stand after it
without padding, each blind to the others (`tamis.language_model`): the gradient is that of padded rows, at about 0.6 of
their cost on short chats.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tamis.budgets import Budget, count_by_topic, draw, narrow
from tamis.language_model import Group, bucket_spans, plan_packs
from tamis.templates import Encoding

ARMS = ("chosen", "random", "full")
REPLAYS = {"none": (), "subset": ("learnt",), "all": ("learnt", "offered")}  # what is repeated, by `earlier`


def pick_rows(
    arm: str, chosen: Bool[np.ndarray, " row"], *, budget: Budget, replayed: Int[np.ndarray, " again"], seed: int
) -> Int[np.ndarray, " pick"]:
    """Return the rows that an arm trains on besides replayed ones, ascending.

    Args:
        arm: `chosen`; `random`: rows drawn under the same budget, caps and floors as the choice; `full`: every row.
        chosen: which rows of the pool selection chose.
        budget: what selection was allowed to spend on these rows; ignored by the other arms.
        replayed: rows that every arm repeats, those from `len(chosen)` on not of the pool; ignored by the other arms.
        seed: of the draw; ignored by the other arms.

    Raises:
        ValueError: unknown arm; nothing is chosen while the arm depends on it.

    >>> from tamis.budgets import resolve
    >>> two = resolve({"count": 2}, topics=["a"] * 3, response_tokens=np.array([1, 1, 1]))
    >>> pick_rows("chosen", np.array([True, False, True]), budget=two, replayed=np.array([0]), seed=0).tolist()
    [0, 2]
    >>> pick_rows("random", np.array([True, True, False]), budget=two, replayed=np.array([0, 2]), seed=0).tolist()
    [0, 1]
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    if arm == "full":
        return np.arange(len(chosen))
    if not chosen.any():
        raise ValueError(
            f"0 of {len(chosen)} rows of the pool are chosen, so arm {arm} has nothing to train on; "
            "raise selection.budget or leave the arm out of finetuning.arms"
        )
    if arm == "chosen":
        return np.flatnonzero(chosen)
    return _draw_beside(chosen, budget, replayed, seed)


def _draw_beside(chosen: np.ndarray, budget: Budget, replayed: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of arm random, ascending, so that replay adds as little to it as to the chosen arm.

    A chosen row that is replayed is in every arm: this one takes it over, with what it costs, and draws the rest from
    rows that are not replayed. That the choice has such rows shows that what is left of the budget can be kept.
    """
    shared = np.intersect1d(np.flatnonzero(chosen), replayed)
    outside = np.setdiff1d(np.arange(len(chosen)), replayed)
    if not chosen[outside].any():
        return shared
    spent, taken = int(budget.costs[shared].sum()), count_by_topic(budget, shared.tolist())
    floors, caps = np.maximum(budget.floors - taken, 0), budget.caps - taken
    left = replace(budget, limit=budget.limit - spent, floors=floors, caps=caps)
    return np.union1d(shared, outside[draw(narrow(left, outside), seed=seed)])


def pick_replayed(replay: str, earlier: Sequence[str | None]) -> Int[np.ndarray, " pick"]:
    """Return the rows that every arm repeats of earlier versions, ascending.

    **Source**: experience replay, Rolnick et al. 2019, "Experience replay for continual learning" (arXiv 1811.11682).
    Differs: kept rows are repeated in full and shuffled among the new ones, not drawn from a buffer at each step.

    Args:
        replay: `none`; `subset`: rows that an earlier version chose; `all`: those that it did not choose, too.
        earlier: per row `learnt` (chosen by an earlier version), `offered` (in its pool, not chosen) or None.

    Raises:
        ValueError: unknown replay.

    >>> pick_replayed("all", ["learnt", None, "offered"]).tolist()
    [0, 2]
    """
    if replay not in REPLAYS:
        raise ValueError(f"unknown replay {replay!r}; known: {', '.join(REPLAYS)}")
    return np.flatnonzero([one in REPLAYS[replay] for one in earlier])


def refuse_long(encoding: Encoding, rows: Sequence[int], max_tokens: int) -> None:
    """Raise ValueError where base + query + response of a row exceeds `max_tokens`, naming the rows by number."""
    pairs = zip(encoding.queries, encoding.responses, strict=True)
    sizes = [len(encoding.base) + len(query) + len(response) for query, response in pairs]
    long = [row for row, size in zip(rows, sizes, strict=True) if size > max_tokens]
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} rows are longer than models.max_tokens ({max_tokens}; the longest has "
            f"{max(sizes)} tokens), first rows {long[:3]}; raise it or leave these rows out of the raw data"
        )


def plan_steps(rows: int, batch_rows: int, epochs: int, seed: int) -> list[Int[np.ndarray, " place"]]:
    """Return the places (0 to rows - 1) that each optimiser step takes, over all epochs.

    Every epoch is its own shuffle by (seed, epoch), so the order does not depend on where a training was interrupted;
    an epoch's last step takes what is left.

    >>> [step.size for step in plan_steps(rows=5, batch_rows=2, epochs=2, seed=0)]
    [2, 2, 1, 2, 2, 1]
    """
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        steps += [order[start : start + batch_rows] for start in range(0, rows, batch_rows)]
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


def collate(
    base: list[int], queries: Sequence[list[int]], responses: Sequence[list[int]], device: torch.device
) -> dict[str, Any]:
    """Lay the rows of a step after one copy of `base`, as the arguments of a model's forward pass and its labels.

    Args:
        base: the template's prefix.
        queries: per row, at least one token each.
        responses: per row, ending with the end-of-turn token.
        device: where the attention's index tensors are wanted.

    Returns:
        `input_ids` and `position_ids` [1, token]; `pack` for packed attention; `logits_to_keep` [kept], the positions
        that predict a response token, and `labels` [1, kept], these tokens: nothing else enters the loss.
    """
    (pack,) = plan_packs([Group(base, list(queries), list(responses))], pack_tokens=sys.maxsize)
    tokens = torch.tensor(pack.tokens)
    kept = torch.cat([torch.arange(start, start + count) for start, count in pack.responses])
    return {
        "input_ids": tokens[None],
        "position_ids": torch.tensor(pack.positions)[None],
        "pack": bucket_spans(pack.spans, device),
        "logits_to_keep": kept,
        "labels": tokens[kept + 1][None],
    }


def response_loss(logits: Float[Tensor, "1 kept vocabulary"], labels: Int[Tensor, "1 kept"]) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood over a step's response tokens, nats, in float32.

    loss = -(1 / sum_i T_i) * sum_i sum_t log p(y_it | x_i, y_i<t): each token counts alike, so a long response counts
    for more.

    >>> response_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])).isclose(torch.tensor(4.0).log()).item()
    True
    """
    return nn.functional.cross_entropy(logits[0].float(), labels[0])


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last fifth of the steps (one at least), nats per token.

    >>> final_loss([9.0, 9.0, 9.0, 9.0, 1.0])
    1.0
    """
    tail = losses[-max(1, len(losses) // 5) :]
    return sum(tail) / len(tail)


def describe(encoding: Encoding, rows: Int[np.ndarray, " pick"], losses: list[float], epochs: int) -> dict[str, Any]:
    """Return an arm's numbers; tokens are counted over all epochs, the template's prefix left out.

    Args:
        encoding: of the pool.
        rows: of the pool that the arm was trained on.
        losses: of each step, nats per token.
        epochs: passes over the rows.
    """
    queries, answers = (
        epochs * sum(len(ids[row]) for row in rows.tolist()) for ids in (encoding.queries, encoding.responses)
    )
    facts = {"rows": len(rows), "epochs": epochs, "steps": len(losses), "losses": losses}
    return {**facts, "tokens": queries + answers, "response_tokens": answers, "final_loss": final_loss(losses)}


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
