"""What fine-tuning must preserve, as a gradient: confidence-weighted self-distillation on anchor examples.

Symbols (DualSFT, arXiv 2605.06166): q = softmax(teacher logits / tau), teacher = the base model; p = softmax(student
logits / tau), student = the model at the warm-up checkpoint; z runs over the vocabulary, t over an example's response
tokens; w_n = the teacher's confidence in example n; v_prior = the gradient of the loss L_CWSD.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tamis.gradients.layers import GradientSums, cover
from tamis.gradients.per_example import CHUNK, Criterion, backpropagate, start_sums
from tamis.language.batches import Batch, BatchTensors, lay_out
from tamis.language.packing import packed_attention

CONFIDENCES = ("max_prob", "entropy_inv", "uniform")


@dataclass(frozen=True)
class Preservation:
    """The gradient that preserves, and what it was made of."""

    v_prior: dict[str, Tensor]  # by parameter name
    loss: float  # L_CWSD, nats
    weights: Float[Tensor, " example"]  # w_n, float64
    divergences: Float[Tensor, " example"]  # KL_n, float64, nats


def preservation_gradient(
    model: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Batch],
    *,
    confidence: str = "max_prob",
    tau: float = 2.0,
    keep: Collection[str] | None = None,
    loss_per: str = "row",
) -> Preservation:
    """Return v_prior, the gradient of the confidence-weighted self-distillation loss.

    L_CWSD = tau^2 * sum_n w_n KL_n / sum_n w_n, KL_n = mean_t sum_z q (log q - log p), w_n = mean_t of `weigh`; where
    each token counts alike, w_n times the example's response tokens in place of w_n.
    **Source**: DualSFT, arXiv 2605.06166, its preservation term; tau^2 as in Hinton et al. 2015 (arXiv 1503.02531).
    Differs: exact over the whole vocabulary; anchors are summed before they are divided, so batches do not matter.

    Cost: a forward pass of the teacher, whose head runs twice, and a forward-backward pass of the model.

    Args:
        model: the student, in eval mode; parameters with `requires_grad` are covered.
        teacher: the base model, in eval mode, with the same vocabulary.
        batches: of the anchors, each once.
        confidence: `max_prob`, `entropy_inv` or `uniform`.
        tau: temperature, above 0.
        keep: names of parameters whose gradient is wanted; None: all trainable ones.
        loss_per: `row` or `token`: what counts alike.

    Raises:
        ValueError: no anchor; unknown confidence; tau not above 0; vocabularies that differ; all confidences 0;
            and as `tamis.gradients.per_example.accumulate`.
    """
    _check(model, teacher, batches, confidence, tau)
    covers = cover(model)
    found, total = torch.zeros(2, sum(len(batch.examples) for batch in batches), dtype=torch.float64)

    def criterion(batch: Batch, sheet: BatchTensors) -> Criterion:
        hidden = _hidden(teacher, batch)
        confidences = _weigh_rows(teacher, hidden, sheet, confidence, tau)
        weights = confidences * sheet.sizes if loss_per == "token" else confidences
        found[batch.examples], total[batch.examples] = confidences.cpu(), weights.cpu()
        return _divergence(teacher, hidden, sheet, weights, tau)

    G = start_sums(model, covers, keep)
    _, divergences = backpropagate(model, covers, batches, criterion, GradientSums({}, G))
    if not total.sum() > 0:
        raise ValueError(f"the confidences of all {len(total)} anchors are 0; set confidence: uniform")
    for tensor in G.values():
        tensor.div_(float(total.sum()))
    loss = tau**2 * float((total * divergences.cpu()).sum() / total.sum())
    return Preservation(G, loss, found, divergences.cpu())


def weigh(logits: Float[Tensor, "token vocabulary"], confidence: str, tau: float = 1.0) -> Float[Tensor, " token"]:
    """Return the teacher's confidence at each token, in [0, 1].

    max_prob: max_z q(z); entropy_inv: 1 - H(q) / log|V|, H in nats; uniform: 1; q = softmax(logits / tau).

    Raises:
        ValueError: unknown confidence.

    >>> weigh(torch.zeros(1, 4), "max_prob").tolist(), weigh(torch.zeros(1, 4), "uniform").tolist()
    ([0.25], [1.0])
    """
    if confidence not in CONFIDENCES:
        raise ValueError(f"unknown confidence {confidence!r}; known: {', '.join(CONFIDENCES)}")
    if confidence == "uniform":
        return torch.ones_like(logits[:, 0])
    log_q = (logits / tau).log_softmax(-1)
    if confidence == "max_prob":
        return log_q.amax(-1).exp()
    return (1.0 + (log_q.exp() * log_q).sum(-1) / math.log(logits.shape[1])).clamp(0.0, 1.0)


def _check(model: nn.Module, teacher: nn.Module, batches: Sequence[Batch], confidence: str, tau: float) -> None:
    if not batches:
        raise ValueError("0 anchor examples, so v_prior is not known; give some")
    if confidence not in CONFIDENCES:
        raise ValueError(f"unknown confidence {confidence!r}; known: {', '.join(CONFIDENCES)}")
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it is above 0")
    if teacher.training:
        raise ValueError("the teacher is in training mode, where dropout would enter; call eval() first")
    mine, other = (one.get_output_embeddings().weight.shape[0] for one in (model, teacher))
    if mine != other:
        raise ValueError(f"the model has {mine} words and the teacher {other}; the teacher is the model's base")


def _hidden(teacher: nn.Module, batch: Batch) -> Float[Tensor, "kept width"]:
    """Return what the teacher's head gets at the tokens that predict a response token."""
    sheet = lay_out(batch, teacher)
    with packed_attention(teacher), torch.no_grad():
        return teacher.base_model(**sheet.inputs).last_hidden_state.flatten(0, 1)[sheet.places]


def _weigh_rows(teacher: nn.Module, hidden: Tensor, sheet: BatchTensors, confidence: str, tau: float) -> Tensor:
    """Return w_n of a batch's rows, the mean over their response tokens, float64."""
    found = []
    for rows in hidden.split(CHUNK):
        found.append(weigh(_logits(teacher, rows), confidence, tau).double())
    total = torch.zeros(len(sheet.sizes), dtype=torch.float64, device=hidden.device)
    return total.index_add_(0, sheet.answers, torch.cat(found)) / sheet.sizes


def _logits(teacher: nn.Module, rows: Tensor) -> Tensor:
    with torch.no_grad():
        logits = teacher.get_output_embeddings()(rows)
    return logits.to(torch.promote_types(torch.float32, logits.dtype))


def _divergence(teacher: nn.Module, hidden: Tensor, sheet: BatchTensors, weights: Tensor, tau: float) -> Criterion:
    """Return the judge of one batch: KL_n by parts, and the gradient of tau^2 * sum_n w_n KL_n by the logits.

    d(sum_z q (log q - log p)) / d logits = (p - q) / tau.
    """

    def judge(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_q = (_logits(teacher, hidden[part]) / tau).log_softmax(-1)
        log_p = (logits.to(log_q.dtype) / tau).log_softmax(-1)
        q = log_q.exp()
        rows = sheet.answers[part]
        values = (log_q.sub_(log_p).mul_(q)).sum(-1) / sheet.sizes[rows]
        factor = (tau * weights[rows] / sheet.sizes[rows]).to(q.dtype)
        return values, log_p.exp_().sub_(q).mul_(factor[:, None])

    return judge
