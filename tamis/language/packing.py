"""Teacher-forced scoring of responses by a causal language model, without padding and without full logits.

A *group* is one prefix and the targets (query + response) that follow it. Groups are packed into one flat sequence: the
prefix stands once, its targets after it, each with positions that go on from the prefix's end. All token-wise layers
(nine tenths of the work) then run on real tokens only; attention gathers, for rows of about equal length, each target's
keys from its prefix and itself. The head is applied at response positions only, a chunk of rows at a time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "tamis_packed"  # the name under which packed attention is known to transformers
HEAD_ROWS = 128  # response positions per application of the head: 25 MB of logits at 49k words
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 0.1}  # nats
STRETCH = 1.25  # rows share an attention call while the longest is at most so many times the shortest


class NonFiniteError(ValueError):
    """A log-probability is NaN or infinite; `group` and `target` say where."""

    def __init__(self, group: int, target: int) -> None:
        super().__init__(f"group {group}, target {target}: a log-probability is not finite; check the model's weights")
        self.group, self.target = group, target


@dataclass(frozen=True)
class Group:
    """One prefix and the targets that share it."""

    prefix: list[int]
    queries: list[list[int]]  # one per target, at least one token each
    responses: list[list[int]]  # one per target, at least one token each


@dataclass(frozen=True)
class Span:
    """A run of tokens in the flat sequence that attends to its prefix and, causally, to itself."""

    start: int
    length: int
    prefix_start: int
    prefix_length: int  # 0 for a prefix itself


@dataclass(frozen=True)
class Bucket:
    """Spans of about equal length as index tensors; padding points at token 0 and is masked."""

    queries: Int[Tensor, "span query"]
    keys: Int[Tensor, "span key"]
    mask: Shaped[Tensor, "span 1 row key"]  # True, or 0, where a query sees a key; else False, or -inf
    real: Bool[Tensor, "span query"]  # False at padding


@dataclass(frozen=True)
class Pack:
    """One forward pass: tokens of several groups in one flat sequence."""

    members: list[tuple[int, int]]  # (group, target) in the order of their tokens
    tokens: list[int]
    positions: list[int]
    spans: list[Span]
    responses: list[tuple[int, int]]  # per member: first predicting position, count of response tokens


def score_responses(model: nn.Module, groups: Sequence[Group], pack_tokens: int) -> list[list[Float[Tensor, " token"]]]:
    """Return log p(y_t | prefix, query, y_<t) for every response token of every target of every group.

    Cost: each prefix is run once per pack that holds its targets (once, where a group fits in a pack); the head runs at
    response tokens only; attention is linear in tokens times (prefix + own length).

    Args:
        model: a causal language model in eval mode, with transformers' attention interface.
        groups: prefixes with their targets.
        pack_tokens: tokens per forward pass; a single longer target is still run whole.

    Returns:
        Per group, per target: float32 log-probabilities in nats, one per response token, on the CPU.

    Raises:
        ValueError: an empty query or response.
        NonFiniteError: a log-probability is not finite.
    """
    _check(groups)
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(group.queries) for group in groups]
    with packed_attention(model), torch.inference_mode():
        for pack in plan_packs(groups, pack_tokens):
            for (group, target), row in zip(pack.members, _run(model, pack), strict=True):
                if not torch.isfinite(row).all():
                    raise NonFiniteError(group, target)
                scores[group][target] = row
    return scores


def plan_packs(groups: Sequence[Group], pack_tokens: int) -> Iterator[Pack]:
    """Yield packs of at most `pack_tokens` tokens (one target at least) that hold every target of every group once.

    Targets of a group are taken by length, so that those which meet in one attention call need little padding. A group
    that would fit in a pack of its own is not split when the current pack is more than half full.
    """
    pack = _Filling()
    for number, group in enumerate(groups):
        lengths = [len(query) + len(answer) for query, answer in zip(group.queries, group.responses, strict=True)]
        whole = len(group.prefix) + sum(lengths)
        if len(pack.tokens) + whole > pack_tokens and (whole <= pack_tokens and 2 * len(pack.tokens) > pack_tokens):
            yield pack.close()
            pack = _Filling()
        opened = -1
        for target in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
            needed = lengths[target] + (len(group.prefix) if opened < 0 else 0)
            if pack.members and len(pack.tokens) + needed > pack_tokens:
                yield pack.close()
                pack, opened = _Filling(), -1
            if opened < 0:
                opened = pack.open(group.prefix)
            pack.add(number, target, opened, group)
    if pack.members:
        yield pack.close()


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Let the model attend by packs while the context lasts."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 head token width"],
    key: Float[Tensor, "1 shared token width"],
    value: Float[Tensor, "1 shared token width"],
    attention_mask: Tensor | None,
    *,
    pack: list[Bucket],
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "1 token head width"], None]:
    """Compute scaled dot-product attention of a pack; query heads that share a key head become rows of one product.

    Raises:
        ValueError: the model asks for an attention that packs do not offer (soft caps, sinks, a window shorter than a
            sequence).
    """
    refused = [name for name in ("softcap", "s_aux", "head_mask") if options.get(name) is not None]
    window = options.get("sliding_window")
    if window is not None and max(bucket.keys.shape[1] for bucket in pack) > window:
        refused.append(f"a sliding window of {window} tokens, shorter than a sequence here,")
    if refused:
        raise ValueError(f"{type(module).__name__} needs attention with {', '.join(refused)}, which packs do not offer")
    heads, shared = query.shape[1], key.shape[1]
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for bucket in pack:
        spans, length = bucket.queries.shape
        rows = q[bucket.queries].view(spans, length, shared, heads // shared, -1).permute(0, 2, 3, 1, 4)
        mask = bucket.mask  # ready, or to be repeated for the query heads of one key head
        mask = mask if mask.shape[2] == rows.shape[2] * length else mask.repeat(1, 1, heads // shared, 1)
        found = nn.functional.scaled_dot_product_attention(
            rows.reshape(spans, shared, -1, q.shape[-1]),
            k[bucket.keys].transpose(1, 2),
            v[bucket.keys].transpose(1, 2),
            attn_mask=mask,
            scale=scaling,
        )
        found = found.view(spans, shared, heads // shared, length, -1).permute(0, 3, 1, 2, 4)
        out[bucket.queries[bucket.real]] = found.reshape(spans, length, heads, -1)[bucket.real]
    return out[None], None


AttentionInterface.register(ATTENTION, attend)


def bucket_spans(spans: Sequence[Span], device: torch.device) -> list[Bucket]:
    """Turn spans into index tensors, those of about equal length (factor `STRETCH`) together; masks are bool."""

    def kind(span: Span) -> tuple[int, int]:
        return bool(span.prefix_length), math.ceil(math.log(span.length, STRETCH))

    return [_bucket(list(alike), device) for _, alike in groupby(sorted(spans, key=kind), key=kind)]


def ready(bucket: Bucket, model: nn.Module) -> Bucket:
    """Return a bucket with its mask made once for all layers: to be added, repeated for heads that share keys."""
    config = model.config
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    added = torch.zeros(bucket.mask.shape, dtype=model.dtype, device=bucket.mask.device)
    added.masked_fill_(~bucket.mask, -torch.inf)
    return replace(bucket, mask=added.repeat(1, 1, config.num_attention_heads // shared, 1))


def _bucket(spans: list[Span], device: torch.device) -> Bucket:
    length, before = max(span.length for span in spans), max(span.prefix_length for span in spans)
    step, back = torch.arange(length), torch.arange(before)
    start, own = _column(span.start for span in spans), _column(span.length for span in spans)
    first, shown = _column(span.prefix_start for span in spans), _column(span.prefix_length for span in spans)
    real, seen = step < own, back < shown
    queries, prefix = (start + step) * real, (first + back) * seen
    causal = (step[:, None] >= step)[None].expand(len(spans), -1, -1)
    mask = torch.cat([seen[:, None].expand(-1, length, -1), causal], dim=2)
    return Bucket(
        queries=queries.to(device),
        keys=torch.cat([prefix, queries], dim=1).to(device),
        mask=mask[:, None].to(device),
        real=real.to(device),
    )


def _column(values: Iterator[int]) -> Int[Tensor, "span 1"]:
    return torch.tensor(list(values))[:, None]


def _run(model: nn.Module, pack: Pack) -> list[Float[Tensor, " token"]]:
    """Run one pack and return each member's log-probabilities."""
    device = next(model.parameters()).device
    tokens = torch.tensor(pack.tokens, device=device)
    hidden = model.base_model(
        input_ids=tokens[None],
        position_ids=torch.tensor(pack.positions, device=device)[None],
        use_cache=False,
        pack=[ready(bucket, model) for bucket in bucket_spans(pack.spans, device)],
    ).last_hidden_state[0]
    places = torch.cat([torch.arange(start, start + count) for start, count in pack.responses]).to(device)
    scores = log_probs(model, hidden[places], tokens[places + 1]).cpu()
    return list(scores.split([count for _, count in pack.responses]))


def log_probs(
    model: nn.Module, hidden: Float[Tensor, "row width"], labels: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Return log p(label) at each row, in float32; logits live for `HEAD_ROWS` rows at a time."""
    head = model.get_output_embeddings()
    found = []
    for rows, wanted in zip(hidden.split(HEAD_ROWS), labels.split(HEAD_ROWS), strict=True):
        logits = head(rows).float()
        picked = logits.gather(1, wanted[:, None])[:, 0]
        top = logits.amax(1, keepdim=True)
        total = logits.sub_(top).exp_().sum(1).log() + top[:, 0]
        found.append(picked - total)
    return torch.cat(found)


def verify_packing(model: nn.Module, tolerance: float | None = None) -> None:
    """Compare packed scoring with plain forward passes on a few made-up tokens; cost: four short passes.

    Packs replace the model's attention, so a kind of model that does more in its attention than packs offer (sliding
    windows shorter than the probe, positions inside the scores, scaled logits) is found here and not in the results.

    Args:
        model: a causal language model in eval mode.
        tolerance: largest difference allowed, in nats; by the weights' dtype (`TOLERANCE`) where absent.

    Raises:
        ValueError: naming the model's class and the largest difference, in nats.
    """
    words = model.get_input_embeddings().weight.shape[0]
    made = [[(7 * step + 3 * place) % words for step in range(4 + place)] for place in range(4)]
    groups = [Group(made[1], made[:2], made[2:]), Group(made[3], made[1:3], made[:2])]
    worst = 0.0
    for group, rows in zip(groups, score_responses(model, groups, pack_tokens=64), strict=True):
        for query, response, row in zip(group.queries, group.responses, rows, strict=True):
            worst = max(worst, float((row - _plain(model, group.prefix + query, response)).abs().max()))
    tolerance = TOLERANCE[next(model.parameters()).dtype] if tolerance is None else tolerance
    if not worst <= tolerance:
        raise ValueError(
            f"{type(model).__name__} scores differ by {worst:.2g} nats between packed and plain passes (allowed "
            f"{tolerance:g}); this kind of model cannot be scored by packs"
        )


def _plain(model: nn.Module, before: list[int], response: list[int]) -> Float[Tensor, " token"]:
    tokens = torch.tensor([before + response], device=next(model.parameters()).device)
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(before) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, len(before) :, None])[:, 0].cpu()


def _check(groups: Sequence[Group]) -> None:
    for number, group in enumerate(groups):
        for target, (query, response) in enumerate(zip(group.queries, group.responses, strict=True)):
            if not query or not response:
                which = "query" if not query else "response"
                raise ValueError(f"group {number}, target {target}: the {which} has no token; leave such examples out")


class _Filling:
    """A pack while it is being filled."""

    def __init__(self) -> None:
        self.members: list[tuple[int, int]] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.spans: list[Span] = []
        self.responses: list[tuple[int, int]] = []

    def open(self, prefix: list[int]) -> int:
        start = len(self.tokens)
        self._append(prefix, 0)
        if prefix:
            self.spans.append(Span(start, len(prefix), 0, 0))
        return start

    def add(self, number: int, target: int, opened: int, group: Group) -> None:
        query, response = group.queries[target], group.responses[target]
        start = len(self.tokens)
        self._append(query + response, len(group.prefix))
        self.spans.append(Span(start, len(query) + len(response), opened, len(group.prefix)))
        self.responses.append((start + len(query) - 1, len(response)))
        self.members.append((number, target))

    def close(self) -> Pack:
        return Pack(self.members, self.tokens, self.positions, self.spans, self.responses)

    def _append(self, tokens: list[int], position: int) -> None:
        self.tokens.extend(tokens)
        self.positions.extend(range(position, position + len(tokens)))
