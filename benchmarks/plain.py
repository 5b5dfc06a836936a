"""The published recipes, written well: what our own paths are measured against."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 32  # pairs per forward pass
ROWS = 8  # examples per forward-backward pass
UNSEEN = -100  # label of a token that has no loss


def score_pairs(
    model: nn.Module, sequences: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[list[Tensor], int]:
    """Return log p of each response's tokens, one whole sequence per pair, and the padded tokens run.

    A sequence is (before, response).

    Pairs are sorted by length, padded on the right in batches of 32, and run with logits at every position; the softmax
    is taken at response positions only.
    """
    order = sorted(range(len(sequences)), key=lambda place: sum(map(len, sequences[place])))
    scores: list[Tensor] = [torch.empty(0)] * len(sequences)
    run = 0
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            rows = [torch.tensor(sequences[place][0] + sequences[place][1]) for place in places]
            tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            run += tokens.numel()
            for row, place in enumerate(places):
                before, response = sequences[place]
                wanted = torch.tensor(response)
                picked = logits[row, len(before) - 1 : len(before) + len(response) - 1].log_softmax(-1)
                scores[place] = picked.gather(1, wanted[:, None])[:, 0]
    return scores, run


@dataclass(frozen=True)
class Padded:
    """A batch of whole rows, padded on the right."""

    places: list[int]
    inputs: dict[str, Any]  # of the model
    labels: Tensor  # [row, token]; UNSEEN where no response token is predicted


def pad_batches(sequences: Sequence[tuple[list[int], list[int]]], pad: int) -> list[Padded]:
    """Return (query, response) pairs in batches of 8, shortest first."""
    order = sorted(range(len(sequences)), key=lambda place: sum(map(len, sequences[place])))
    return [_pad(order[start : start + ROWS], sequences, pad) for start in range(0, len(order), ROWS)]


def _pad(places: list[int], sequences: Sequence[tuple[list[int], list[int]]], pad: int) -> Padded:
    rows = [torch.tensor(query + response) for query, response in (sequences[place] for place in places)]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = torch.full_like(tokens, UNSEEN)
    for row, place in enumerate(places):
        query, response = sequences[place]
        labels[row, len(query) : len(query) + len(response)] = torch.tensor(response)
    return Padded(places, {"input_ids": tokens, "attention_mask": mask, "use_cache": False}, labels)


def find_losses(model: nn.Module, batch: Padded) -> Tensor:
    """Return the mean response-token loss of each row, from logits at every position."""
    logits, labels = model(**batch.inputs).logits[:, :-1], batch.labels[:, 1:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNSEEN, reduction="none")
    return losses.view(labels.shape).sum(1) / (labels != UNSEEN).sum(1)


def find_losses_alone(model: nn.Module, batch: Padded) -> Tensor:
    """Return what `find_losses` does, from logits at response positions alone."""
    labels = batch.labels[:, 1:]
    wanted = labels != UNSEEN
    hidden = model.base_model(**batch.inputs).last_hidden_state[:, :-1][wanted]
    losses = nn.functional.cross_entropy(model.get_output_embeddings()(hidden), labels[wanted], reduction="none")
    rows = wanted.nonzero()[:, 0]
    return torch.zeros(len(labels), dtype=losses.dtype).index_add(0, rows, losses) / wanted.sum(1)


def train(
    model: nn.Module, batches: Sequence[Padded], find: Callable[[nn.Module, Padded], Tensor] = find_losses
) -> None:
    """Run the forward and backward passes of a training without its steps; gradients add up in `.grad`."""
    for batch in batches:
        find(model, batch).sum().backward()


def lay_flat(model: nn.Module) -> dict[str, slice]:
    """Return the place of each trainable parameter in one flat vector."""
    found, end = {}, 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            found[name] = slice(end, end + weight.numel())
            end += weight.numel()
    return found


def sum_gradients(model: nn.Module, batches: Sequence[Padded]) -> Tensor:
    """Return G as one flat vector on the CPU, to which each batch's gradients are added."""
    layout = lay_flat(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    total = torch.zeros(sum(weight.numel() for weight in weights))
    for batch in batches:
        gradients = torch.autograd.grad(find_losses(model, batch).sum(), weights)
        for place, gradient in zip(layout.values(), gradients, strict=True):
            total[place].add_(gradient.reshape(-1).cpu())
    return total


def score_linear(model: nn.Module, batches: Sequence[Padded], u: Tensor) -> Tensor:
    """Return <u, g_n> over the weights and biases of nn.Linear by one pass; gradients of weights are computed, too.

    For each such layer sum_t <dL/dz_t, u_W a_t> of each row's tokens, at the backward pass through the layer. A head
    that is the embedding's weight is none: its weight goes by the embedding's name.
    """
    scores = torch.zeros(sum(len(batch.places) for batch in batches))
    part = torch.zeros(0)

    def add(dz: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        if weight is not None:
            part.add_((dz * (x @ weight.T)).flatten(1).sum(1))
        if bias is not None:
            part.add_((dz @ bias).sum(1))

    with _linear_hooks(model, u, add):
        for batch in batches:
            part = torch.zeros(len(batch.places))
            model.zero_grad()
            find_losses(model, batch).sum().backward()
            scores[batch.places] = part
    model.zero_grad()
    return scores


@contextmanager
def _linear_hooks(model: nn.Module, u: Tensor, add: Callable[..., None]) -> Iterator[None]:
    """Have every nn.Linear hand its output's gradient, its input and its parts of u to `add`."""
    handles = []
    for name, (weight, bias) in find_linear(model, u).items():

        def hook(module: nn.Module, args: tuple, output: Tensor, parts: tuple = (weight, bias)) -> None:
            x = args[0].detach()
            output.register_hook(lambda dz: add(dz, x, *parts))

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_linear(model: nn.Module, u: Tensor) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return u's part for weight and bias of every nn.Linear that has one in the flat vector, by module name."""
    layout = lay_flat(model)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    found = {}
    for home, module in model.named_modules():
        names = [f"{home}.{key}" for key in ("weight", "bias")]
        if isinstance(module, nn.Linear) and any(name in layout for name in names):
            found[home] = tuple(u[layout[name]].view(shapes[name]) if name in layout else None for name in names)
    return found


def score_exact(model: nn.Module, batches: Sequence[Padded], u: Tensor) -> Tensor:
    """Return <u, g_n> over all parameters: a backward pass per row through its batch's graph, and a flat product."""
    layout = lay_flat(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    scores = torch.zeros(sum(len(batch.places) for batch in batches))
    for batch in batches:
        losses = find_losses(model, batch)
        for row, place in enumerate(batch.places):
            gradients = torch.autograd.grad(losses[row], weights, retain_graph=row < len(losses) - 1)
            products = [u[part] @ one.reshape(-1) for part, one in zip(layout.values(), gradients, strict=True)]
            scores[place] = torch.stack(products).sum()
    return scores


def flatten(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return tensors by parameter name as one flat vector."""
    return torch.cat([tensors[name].reshape(-1) for name in lay_flat(model)])
