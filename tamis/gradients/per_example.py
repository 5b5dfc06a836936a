"""Gradients of a pool of examples: their sum, and each one's inner product with a direction, without each gradient.

Symbols (DualSFT, methods of arXiv 2605.06166): g_n = gradient of the mean answer-token negative log-likelihood of
example n, model in eval mode; G = sum_n g_n; u = a direction in parameter space; phi_data[n] = <u, g_n>.

A backward pass of the batch's summed losses carries each example's gradient at its own tokens, since examples do not
see each other. So per-token products, summed by example, are exact: `tamis.gradients.layers` has them for every kind of
parameter. Weights are frozen meanwhile; autograd computes gradients by activations only, and G is summed in place,
without a copy and without the dense gradient of an embedding.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.gradients.layers import GradientSums, Layer, cover, watch
from tamis.gradients.row_sums import RowSums
from tamis.language.batches import Batch, BatchTensors, lay_out, plan_batches, split
from tamis.language.encoding import TokenSequence, make_sequence
from tamis.language.packing import packed_attention

CHUNK = 256  # answer positions per application of the head: 50 MB of logits at 49k words in float32
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}  # relative
# Of the largest gradient's entries: what another number of threads alone makes of small ones, as autograd gives them.
# SmolLM2-135M with 2 threads less 1: 0.0034 of a norm's gradient, whose entries are 500 times smaller than the largest.
ROUNDING = {dtype: 100 * torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}

Criterion = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # logits, which kept tokens -> losses, gradient by logits
Opener = Callable[[Batch, BatchTensors], Criterion]


class GradientError(ValueError):
    """The gradient of some examples is NaN or infinite; `examples` are their places in the pool."""

    def __init__(self, examples: list[int], batch: int) -> None:
        super().__init__(
            f"{len(examples)} of a batch's {batch} examples have a loss or a gradient that is not finite, first places "
            f"{examples[:3]}; leave them out, or check the model's weights and the direction"
        )
        self.examples = examples


@dataclass(frozen=True)
class Interaction:
    """What one pass over a pool gives."""

    G: dict[str, Tensor]  # by parameter name; those that were kept
    phi_data: Float[Tensor, " example"]  # float64; 0 for parameters that u lacks
    losses: Float[Tensor, " example"]  # float64, mean over answer tokens, nats


def accumulate(
    model: nn.Module,
    batches: Sequence[Batch],
    u: Mapping[str, Tensor] | None = None,
    *,
    keep: Collection[str] | None = None,
    G: Mapping[str, Tensor] | None = None,
    loss_per: str = "row",
    rows: RowSums | None = None,
) -> Interaction:
    """Return G = sum_n g_n and phi_data[n] = <u, g_n> of a pool by one forward-backward pass.

    phi_data[n] = sum over modules and over the tokens t of n of <dL/dz_t, s_t u>, z = the module's output, s_t = its
    derivative by its parameters (`tamis.gradients.layers`). **Source**: DualSFT, arXiv 2605.06166, section on data
    utility; the product of layer input and output gradient as in ghost clipping (Li et al. 2021, arXiv 2110.05679).
    Differs: all trainable parameters, where the published scorer (ChnIRuI/DualSFT @ c8944ce) has those of nn.Linear;
    one pass.

    Parameters may be taken a group at a time: `keep` and a `u` that has this group's tensors only bound the memory by
    the group; the phi_data of all groups add up to that of the whole.

    Cost: a forward-backward pass and a third of its products again, for u; memory: G, u and the activations.

    Args:
        model: a causal language model in eval mode; parameters with `requires_grad` are covered.
        batches: of the pool, each example once (`plan_batches`); places index the result.
        u: direction by parameter name, float32 or wider; None: no scores.
        keep: names of parameters whose G is wanted; None: all trainable ones.
        G: sums of earlier shards, to be added to in place (`keep` is then not read); None: zeros.
        loss_per: `row`: g_n is of the mean over the example's answer tokens; `token`: of their sum.
        rows: gets each example's squared norm and sketch, by the same pass; None: they are not wanted.

    Raises:
        ValueError: a model in training mode; a parameter that cannot be covered; unknown names; shapes that differ.
        GradientError: a loss or a gradient that is not finite, with the examples.
    """
    covers = cover(model)
    sums = start_sums(model, covers, keep) if G is None else dict(G)
    tally = GradientSums(u or {}, sums, rows)
    phi_data, losses = backpropagate(model, covers, batches, partial(_likelihood, loss_per=loss_per), tally)
    return Interaction(sums, phi_data, losses)


def score_second(
    model: nn.Module,
    batches: Sequence[Batch],
    u: Mapping[str, Tensor],
    *,
    loss_per: str = "row",
    rows: RowSums | None = None,
) -> Interaction:
    """Return phi_data[n] = <u, g_n> for a u that depends on G: the second pass, without weight gradients.

    Args and errors as `accumulate`. Cost: two thirds of a forward-backward pass, and a third for u.
    """
    return accumulate(model, batches, u, keep=(), loss_per=loss_per, rows=rows)


def validation_gradient(
    model: nn.Module, batches: Sequence[Batch], keep: Collection[str] | None = None, loss_per: str = "row"
) -> dict[str, Tensor]:
    """Return v_new = the gradient of the validation loss, by parameter name.

    row: the mean over examples of the gradient of each one's mean; token: the mean over all their answer tokens.

    Args and errors as `accumulate`; no batch is an error.
    """
    if not batches:
        raise ValueError("0 validation examples, so v_new is not known; give some")
    total = accumulate(model, batches, keep=keep, loss_per=loss_per)
    answers = sum(int(piece.answers.sum()) for batch in batches for row in batch.rows for piece in row)
    for tensor in total.G.values():
        tensor.div_(answers if loss_per == "token" else len(total.losses))
    return total.G


def group_parameters(model: nn.Module, largest: int) -> list[list[str]]:
    """Return names of the trainable parameters in groups of at most `largest` entries (one tensor at least)."""
    groups: list[list[str]] = []
    filled = 0
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if not groups or filled + weight.numel() > largest:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += weight.numel()
    return groups


def start_sums(model: nn.Module, covers: Sequence[Layer], keep: Collection[str] | None) -> dict[str, Tensor]:
    """Return zeros for the parameters that are kept, float32 or the weights' dtype where that is wider."""
    known = {name for one in covers for name in one.names.values()}
    kept = known if keep is None else set(keep)
    _refuse_unknown(kept - known, len(kept))
    return {
        name: torch.zeros_like(weight, dtype=torch.promote_types(torch.float32, weight.dtype), requires_grad=False)
        for name, weight in model.named_parameters()
        if name in kept
    }


def backpropagate(
    model: nn.Module, covers: Sequence[Layer], batches: Sequence[Batch], criterion: Opener, tally: GradientSums
) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
    """Run batches forward and backward for what a tally sums; return scores and losses by example, float64.

    Args:
        model: in eval mode.
        covers: of its trainable parameters.
        batches: each example once.
        criterion: opens a batch; what it returns gives, for some of the batch's logits, each one's part of its
            example's loss and the gradient of the batch's summed loss.
        tally: changed in place.
    """
    _check(model, covers, batches, tally)
    device = next(model.parameters()).device
    total = sum(len(batch.examples) for batch in batches)
    scores, losses = (torch.zeros(total, dtype=torch.float64, device=device) for _ in range(2))
    with _frozen(model), watch(covers, tally):
        for batch in batches:
            found = _run(model, batch, criterion, tally)
            if not torch.stack(found).isfinite().all():
                raise GradientError(_blame(model, batch, criterion, tally), len(batch.examples))
            rows = torch.tensor(batch.examples, device=device)
            scores[rows], losses[rows] = found
    broken = [name for name, tensor in tally.G.items() if not tensor.sum().isfinite()]
    if broken:
        raise ValueError(f"{len(broken)} of {len(tally.G)} summed gradients are not finite, first {broken[:3]}")
    return scores, losses


def _check(model: nn.Module, covers: Sequence[Layer], batches: Sequence[Batch], tally: GradientSums) -> None:
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode, where dropout would enter; call eval() first")
    examples = sorted(example for batch in batches for example in batch.examples)
    if examples != list(range(len(examples))):
        raise ValueError(f"batches of {len(examples)} examples do not hold each of 0 to {len(examples) - 1} once")
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    known = {name for one in covers for name in one.names.values()}
    for given in (tally.u, tally.G):
        _refuse_unknown(set(given) - known, len(given))
        wrong = [name for name, tensor in given.items() if tensor.shape != shapes[name]]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(given)} tensors differ in shape from the model's, first {wrong[0]} "
                f"{list(given[wrong[0]].shape)} instead of {list(shapes[wrong[0]])}"
            )


def _refuse_unknown(names: set[str], given: int) -> None:
    if names:
        raise ValueError(
            f"{len(names)} of {given} names are not trainable parameters of the model, first {sorted(names)[:3]}"
        )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Keep autograd from the weights while the context lasts."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


def _run(model: nn.Module, batch: Batch, criterion: Opener, tally: GradientSums) -> tuple[Tensor, Tensor]:
    """Run one batch forward and backward; return its scores and losses by row."""
    sheet = lay_out(batch, model)
    rows = len(batch.examples)
    tally.open(batch, sheet)
    with packed_attention(model):
        hidden = model.base_model(**sheet.inputs).last_hidden_state
    kept = hidden.flatten(0, 1)[sheet.places]
    losses = torch.zeros(rows, dtype=torch.float64, device=kept.device)
    judge, head, found = criterion(batch, sheet), model.get_output_embeddings(), []
    for part in _cut(sheet.answers, whole=tally.observer is not None):
        leaf = kept[part].detach()[None].requires_grad_(kept.requires_grad)
        tally.owner = sheet.answers[part]
        logits = head(leaf)
        values, gradient = judge(logits.detach()[0], part)
        losses.index_add_(0, sheet.answers[part], values.double())
        if logits.requires_grad:
            logits.backward(gradient[None].to(logits.dtype))
        found.append(leaf.grad)
    if kept.requires_grad:
        kept.backward(torch.cat(found, dim=1)[0])
    return tally.scores, losses


def _cut(answers: Int[Tensor, " kept"], whole: bool) -> Iterator[slice]:
    """Yield what the head is applied to at once: `CHUNK` answer positions, or the whole rows that fit in so many (one
    at least), for products of a row's tokens with each other."""
    if not whole:
        yield from (slice(start, start + CHUNK) for start in range(0, len(answers), CHUNK))
        return
    start = stop = 0
    for size in answers.bincount().tolist():
        if stop > start and stop + size - start > CHUNK:
            yield slice(start, stop)
            start = stop
        stop += size
    yield slice(start, stop)


def _blame(model: nn.Module, batch: Batch, criterion: Opener, tally: GradientSums) -> list[int]:
    """Return the examples of a batch that are not finite when run alone; all, where each alone is finite."""
    found = []
    for one in split(batch):
        if not torch.stack(_run(model, one, criterion, tally)).isfinite().all():
            found += one.examples
    return found or batch.examples


def _likelihood(batch: Batch, sheet: BatchTensors, loss_per: str) -> Criterion:
    """Open a batch for the negative log-likelihood of each example's answer tokens: losses are their means, gradients
    those of the means or, per token, of the sums."""

    def judge(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        labels = sheet.labels[part, None]
        share = 1.0 / sheet.sizes[sheet.answers[part]].to(torch.promote_types(torch.float32, logits.dtype))
        log_p = logits.to(share.dtype).log_softmax(-1)
        values = -log_p.gather(1, labels)[:, 0] * share
        weight = torch.ones_like(share) if loss_per == "token" else share
        gradient = log_p.exp_().mul_(weight[:, None])
        return values, gradient.scatter_add_(1, labels, -weight[:, None])

    return judge


def verify_coverage(model: nn.Module, tolerance: float | None = None, largest: int | None = None) -> None:
    """Compare G of a few made-up tokens with autograd's, parameter by parameter; cost: eight short passes per group.

    A weight that the model uses without calling its module, or in two ways of which one is not seen, is found here and
    not in the results. Memory: two gradients of a group.

    Args:
        model: in eval mode.
        tolerance: largest |difference| over largest |entry| of a gradient; by dtype (`TOLERANCE`) where absent. What
            is below `ROUNDING` of the largest entry of all gradients is no difference.
        largest: entries of a group of parameters (`group_parameters`); None: all parameters at once.

    Raises:
        ValueError: naming the parameters whose gradients differ.
    """
    words = model.get_input_embeddings().weight.shape[0]
    made = [[(7 * step + 3 * place) % words for step in range(4 + place)] for place in range(4)]
    rows = [make_sequence(context, answer) for context, answer in zip(made, made[::-1], strict=True)]
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found: dict[str, tuple[float, float]] = {}  # largest |difference| and |entry|
    for names in [list(weights)] if largest is None else group_parameters(model, largest):
        G = accumulate(model, plan_batches([[row] for row in rows], tokens=64), keep=names).G
        plain = torch.autograd.grad(_plain_loss(model, rows), [weights[name] for name in names])
        for name, gradient in zip(names, plain, strict=True):
            found[name] = float((G[name] - gradient).abs().max()), float(gradient.abs().max())
        del G, plain  # before those of the next group
    dtype = next(model.parameters()).dtype
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    least = max(allowed**2, ROUNDING.get(dtype, 0.0)) * max(size for _, size in found.values())
    wrong = [name for name, (off, size) in found.items() if not off <= max(allowed * size, least)]
    if wrong:
        raise ValueError(
            f"{type(model).__name__}: {len(wrong)} of {len(weights)} gradients differ from autograd's by more than "
            f"{allowed:g}, first {wrong[:3]}; freeze these parameters or leave this model out"
        )


def _plain_loss(model: nn.Module, rows: Sequence[TokenSequence]) -> Tensor:
    """Return the sum over rows of their mean loss per answer token, by whole, unpadded passes."""
    losses = []
    for row in rows:
        tokens = torch.from_numpy(row.tokens).long()[None].to(next(model.parameters()).device)
        answers = torch.from_numpy(np.flatnonzero(row.answers)).to(tokens.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, answers - 1]
        losses.append(nn.functional.cross_entropy(logits, tokens[0, answers]))
    return torch.stack(losses).sum()
