"""Teacher-forced scoring of answers by a causal language model, without padding and without full logits.

A *group* is one prefix and the targets that follow it, each a row of one or more sequences. Groups are packed into one
flat sequence: the prefix stands once, its targets' sequences after it, each with positions that go on from the prefix's
end. All token-wise layers (nine tenths of the work) then run on real tokens only; attention gathers, for sequences of
about equal length, each one's keys from its prefix and itself. The head is applied where an answer token is predicted
only, a chunk of these at a time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface

from tamis.language.encoding import Encoding, TokenSequence, make_sequence
from tamis.memory import fitting

ATTENTION = "tamis_packed"  # the name under which packed attention is known to transformers
HEAD_ROWS = 128  # predicted tokens per application of the head: 25 MB of logits at 49k words
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 0.1}  # nats
STRETCH = 1.25  # rows share an attention call while the longest is at most so many times the shortest


class NonFiniteError(ValueError):
    """A log-probability is NaN or infinite; `group` and `target` say where."""

    def __init__(self, group: int, target: int) -> None:
        super().__init__(f"group {group}, target {target}: a log-probability is not finite; check the model's weights")
        self.group, self.target = group, target


@dataclass(frozen=True, eq=False)
class Group:
    """One prefix and the targets that share it."""

    prefix: Sequence[int] | Int[np.ndarray, " token"]
    targets: Sequence[Sequence[TokenSequence]]  # per target: what follows the prefix, one sequence as a rule


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


@dataclass(frozen=True, eq=False)
class Pack:
    """One forward pass: tokens of several groups in one flat sequence."""

    members: list[tuple[int, int, int]]  # (group, target, which of its sequences) in the order of their tokens
    tokens: Int[np.ndarray, " token"]
    positions: Int[np.ndarray, " token"]
    spans: list[Span]
    predicting: list[np.ndarray]  # int64; per member: the places just before its answer tokens


def make_group(prefix: Sequence[int], contexts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Group:
    """Return a group whose targets are one sequence each, of a context and the answer that ends it."""
    pairs = zip(contexts, answers, strict=True)
    return Group(prefix, [[make_sequence(context, answer)] for context, answer in pairs])


def group_rows(rows: Encoding) -> list[Group]:
    """Return rows as groups, those with the same head in one."""
    return [
        Group(head, [rows.row(place, headless=True) for place in places])
        for head, places in rows.by_head(range(len(rows)))
    ]


def score_rows(model: nn.Module, rows: Encoding, pack_tokens: int) -> list[Float[Tensor, " token"]]:
    """Return log p of every answer token of every row, each head run once; as `score_responses`.

    Raises:
        NonFiniteError: `target` is the row's place.
    """
    members = [places for _, places in rows.by_head(range(len(rows)))]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    try:
        scored = score_responses(model, group_rows(rows), pack_tokens)
    except NonFiniteError as error:
        raise NonFiniteError(0, members[error.group][error.target]) from error
    for places, scores in zip(members, scored, strict=True):
        for place, score in zip(places, scores, strict=True):
            found[place] = score
    return found


def score_responses(model: nn.Module, groups: Sequence[Group], pack_tokens: int) -> list[list[Float[Tensor, " token"]]]:
    """Return log p(y_t | prefix, what stands before y_t) for every answer token of every target of every group.

    Cost: each prefix is run once per pack that holds its targets (once, where a group fits in a pack); the head runs
    where answer tokens are predicted only; attention is linear in tokens times (prefix + own length).

    Args:
        model: a causal language model in eval mode, with transformers' attention interface.
        groups: prefixes with their targets.
        pack_tokens: tokens per forward pass, fewer where memory is short; a single longer sequence is still run whole.

    Returns:
        Per group, per target: float32 log-probabilities in nats, one per answer token in the order of its sequences,
        on the CPU.

    Raises:
        ValueError: a sequence without an answer, or whose first token is one.
        NonFiniteError: a log-probability is not finite.
    """
    _check(groups)
    return fitting("pack_tokens", pack_tokens, partial(_score, model, groups))


def _score(model: nn.Module, groups: Sequence[Group], pack_tokens: int) -> list[list[Float[Tensor, " token"]]]:
    scores: list[list[list[Tensor]]] = [[[torch.empty(0)] * len(each) for each in group.targets] for group in groups]
    with packed_attention(model), torch.inference_mode():
        for pack in plan_packs(groups, pack_tokens):
            for (group, target, piece), row in zip(pack.members, _run(model, pack), strict=True):
                if not torch.isfinite(row).all():
                    raise NonFiniteError(group, target)
                scores[group][target][piece] = row
    return [[torch.cat(pieces) for pieces in targets] for targets in scores]


def plan_packs(groups: Sequence[Group], pack_tokens: int) -> Iterator[Pack]:
    """Yield packs of at most `pack_tokens` tokens (one sequence at least) that hold every sequence of all targets once.

    Sequences of a group are taken by length, so that those which meet in one attention call need little padding. A
    group that would fit in a pack of its own is not split when the current pack is more than half full.
    """
    pack = _Filling()
    for number, group in enumerate(groups):
        pieces = [(len(each), place, part) for place, row in enumerate(group.targets) for part, each in enumerate(row)]
        whole = len(group.prefix) + sum(length for length, *_ in pieces)
        if pack.size + whole > pack_tokens and (whole <= pack_tokens and 2 * pack.size > pack_tokens):
            yield pack.close()
            pack = _Filling()
        opened = -1
        for length, target, part in sorted(pieces):
            needed = length + (len(group.prefix) if opened < 0 else 0)
            if pack.members and pack.size + needed > pack_tokens:
                yield pack.close()
                pack, opened = _Filling(), -1
            if opened < 0:
                opened = pack.open(group.prefix)
            pack.add((number, target, part), opened, group)
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
    tokens = torch.from_numpy(pack.tokens).long().to(device)
    hidden = model.base_model(
        input_ids=tokens[None],
        position_ids=torch.from_numpy(pack.positions).long().to(device)[None],
        use_cache=False,
        pack=[ready(bucket, model) for bucket in bucket_spans(pack.spans, device)],
    ).last_hidden_state[0]
    places = torch.from_numpy(np.concatenate(pack.predicting)).to(device)
    scores = log_probs(model, hidden[places], tokens[places + 1]).cpu()
    return list(scores.split([len(each) for each in pack.predicting]))


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
    asked = [(made[1], made[:2], made[2:]), (made[3], made[1:3], made[:2])]
    worst = 0.0
    scored = score_responses(model, [make_group(*each) for each in asked], pack_tokens=64)
    for (prefix, contexts, answers), rows in zip(asked, scored, strict=True):
        for context, answer, row in zip(contexts, answers, rows, strict=True):
            worst = max(worst, float((row - _plain(model, prefix + context, answer)).abs().max()))
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
        for target, row in enumerate(group.targets):
            if not row or not all(each.answers.any() for each in row):
                raise ValueError(f"group {number}, target {target}: no token is an answer's; leave such examples out")
            if any(each.answers[0] for each in row):
                raise ValueError(
                    f"group {number}, target {target}: the answer has no token before it; leave such examples out"
                )


class _Filling:
    """A pack while it is being filled."""

    def __init__(self) -> None:
        self.size = 0  # tokens
        self.members: list[tuple[int, int, int]] = []
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.spans: list[Span] = []
        self.predicting: list[np.ndarray] = []

    def open(self, prefix: Sequence[int] | np.ndarray) -> int:
        start = self._append(np.asarray(prefix, np.int32), 0)
        if len(prefix):
            self.spans.append(Span(start, len(prefix), 0, 0))
        return start

    def add(self, member: tuple[int, int, int], opened: int, group: Group) -> None:
        sequence = group.targets[member[1]][member[2]]
        start = self._append(sequence.tokens, len(group.prefix))
        self.spans.append(Span(start, len(sequence), opened, len(group.prefix)))
        self.predicting.append(start - 1 + np.flatnonzero(sequence.answers))
        self.members.append(member)

    def close(self) -> Pack:
        joined = (np.concatenate(parts) for parts in (self.tokens, self.positions))
        return Pack(self.members, *joined, self.spans, self.predicting)

    def _append(self, tokens: np.ndarray, position: int) -> int:
        start = self.size
        self.tokens.append(tokens)
        self.positions.append(np.arange(position, position + len(tokens)))
        self.size += len(tokens)
        return start
