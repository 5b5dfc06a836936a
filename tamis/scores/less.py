"""Influence of training on an example upon a target task: similarity of gradients as Adam sees them (LESS).

Symbols: g = the gradient of one example's loss (mean negative log-likelihood of its answer tokens) by the trained
weights, flattened in the order of `network.parameters()`; m, v = Adam's two moments of g after `step` updates;
b1, b2 = its betas; d = `dimensions` of a feature; a *feature* is a projected direction of length 1; queries = the rows
of the target task, some to each topic (the paper's subtasks). Rows come as an `Encoding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from numpy.random import Philox
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tamis.language.encoding import Encoding
from tamis.language.packing import packed_attention
from tamis.training.steps import backward, optimise, plan_steps, step_loss

BLOCK = 16384  # weights whose buckets are held at once
ROWS = 16  # rows whose gradients are projected together
BUCKETS = 4  # s: buckets of a weight, one for each word that one count of the generator gives
WARMUP_FRACTION = 0.1  # of the steps over which the learning rate rises


@dataclass(frozen=True)
class Moments:
    """What Adam knows of the trained weights after `step` updates, as it keeps it: without bias correction."""

    mean: Float[Tensor, " weight"]  # m, exp_avg
    square: Float[Tensor, " weight"]  # v, exp_avg_sq
    step: int  # updates made
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True)
class Checkpoint:
    """A network in training, at the end of an epoch."""

    weights: Float[Tensor, " weight"]  # the trained ones
    moments: Moments
    rate: float  # the epoch's mean learning rate


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained, in the order of every vector here."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def pick_warmup(rows: int, share: float, least: int, seed: int) -> Int[np.ndarray, " pick"]:
    """Return the rows of a warm-up, ascending: round(share * rows), at least `least`, all where there are fewer.

    **Source**: LESS, arXiv 2402.04333, section 4 (5% at random; `PERCENTAGE=0.05` in its code's README).

    Args:
        rows: of the ground set.
        share: in (0, 1].
        least: so small a share of few rows would say nothing.
        seed: of the draw.

    >>> len(pick_warmup(1000, 0.05, 8, seed=0)), len(pick_warmup(100, 0.05, 8, seed=0)), len(pick_warmup(3, 0.05, 8, 0))
    (50, 8, 3)
    """
    count = min(rows, max(least, round(share * rows)))
    return np.sort(np.random.default_rng(seed).choice(rows, size=count, replace=False))


def warm_up(
    network: nn.Module, rows: Encoding, *, epochs: int, batch_rows: int, rate: float, seed: int
) -> list[Checkpoint]:
    """Train a network by Adam and return it at the end of every epoch; order, rate and loss are those of finetuning.

    **Source**: LESS, arXiv 2402.04333, section 4, and its code (princeton-nlp/LESS @ 8abf962): one checkpoint per
    epoch, weighted by the epoch's mean learning rate. Differs: whatever the caller made trainable is trained, without
    dropout; the code trains adapters of rank 128 on the attention's four matrices, dropout 0.1, for four epochs.

    Args:
        network: in eval mode; it is changed.
        rows: the warm-up's.
        epochs: passes over them.
        batch_rows: rows per update; Adam's moments say little after few updates.
        rate: peak of the learning rate.
        seed: of the order of rows.

    Raises:
        ValueError: no row; a loss that is not finite.
    """
    steps = plan_steps(len(rows), batch_rows, epochs, seed)
    if not steps:
        raise ValueError("a warm-up needs 1 row at least, and there are 0; the ground set is empty")
    optimizer, schedule = optimise(network, len(steps), rate, WARMUP_FRACTION)
    found, rates = [], []
    with packed_attention(network):
        for number, places in enumerate(steps, start=1):
            loss = backward(network, rows.pick(places))
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the warm-up's loss is {float(loss)} at step {number} of {len(steps)}; lower its learning rate"
                )
            rates.append(float(schedule.get_last_lr()[0]))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if number % (len(steps) // epochs) == 0:
                weights = parameters_to_vector(trained(network)).detach().clone()
                found.append(Checkpoint(weights, read_moments(network, optimizer), sum(rates) / len(rates)))
                rates = []
    return found


def pack(checkpoints: Sequence[Checkpoint]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return checkpoints as tensors on the CPU, one row per checkpoint, and as numbers: what `unpack` makes them of."""
    moments = [one.moments for one in checkpoints]
    vectors = {"weights": [one.weights for one in checkpoints]}
    vectors |= {name: [getattr(one, name) for one in moments] for name in ("mean", "square")}
    facts = {"rates": [one.rate for one in checkpoints], "steps": [one.step for one in moments]}
    facts |= {"betas": [one.betas for one in moments], "eps": [one.eps for one in moments]}
    return {name: torch.stack(each).cpu() for name, each in vectors.items()}, facts


def unpack(tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[Checkpoint]:
    """Return the checkpoints that `pack` was given, on the device of the tensors."""
    numbers = zip(facts["rates"], facts["steps"], facts["betas"], facts["eps"], strict=True)
    return [
        Checkpoint(weights, Moments(mean, square, step, tuple(betas), eps), rate)
        for weights, mean, square, (rate, step, betas, eps) in zip(
            tensors["weights"], tensors["mean"], tensors["square"], numbers, strict=True
        )
    ]


def read_moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """Return a copy of Adam's moments of the trained weights, in their order.

    Raises:
        ValueError: weights that the optimiser has not updated, or not as often as others.
    """
    states = [optimizer.state.get(weight, {}) for weight in trained(network)]
    steps = [int(state["step"]) if "step" in state else 0 for state in states]
    late = [place for place, step in enumerate(steps) if step < max(steps, default=0)]
    if late or not any(steps):
        raise ValueError(
            f"{len(late) or len(steps)} of {len(steps)} trained tensors were updated by Adam fewer times than others "
            f"or never, first places {(late or [0])[:3]}; train those only that every step's loss reaches"
        )
    first = optimizer.param_groups[0]
    return Moments(
        mean=parameters_to_vector([state["exp_avg"] for state in states]),
        square=parameters_to_vector([state["exp_avg_sq"] for state in states]),
        step=max(steps),
        betas=tuple(map(float, first["betas"])),
        eps=float(first["eps"]),
    )


def gradient(network: nn.Module, rows: Encoding, row: int) -> Float[Tensor, " weight"]:
    """Return g of one row, one backward pass of a batch of one; a weight that the loss does not reach has 0.

    The model must attend by packs (`tamis.language.packing.packed_attention`).
    """
    weights = trained(network)
    found = torch.autograd.grad(
        step_loss(network, rows.pick([row])), weights, allow_unused=True, materialize_grads=True
    )
    return torch.cat([one.reshape(-1) for one in found])


def adam_direction(gradient: Float[Tensor, "*row weight"], moments: Moments) -> Float[Tensor, "*row weight"]:
    """Return the update that Adam would make with this gradient, for a learning rate of -1.

    m' = (b1 m + (1 - b1) g) / (1 - b1^t), v' = (b2 v + (1 - b2) g^2) / (1 - b2^t), direction = m' / (sqrt(v') + eps),
    with t = step + 1: the update that comes after the `step` made.

    **Source**: LESS, arXiv 2402.04333, section 3.1; Adam, arXiv 1412.6980, algorithm 1. Differs from LESS's code
    (princeton-nlp/LESS @ 8abf962, collect_grad_reps.py), which corrects no bias and divides by sqrt(v' + eps): the
    corrections are one factor for all weights, which a feature's length of 1 takes out again, but its eps acts as 1e-4
    does here, far above many a sqrt(v') of a small adapter.

    >>> fresh = Moments(torch.zeros(2), torch.zeros(2), step=0)
    >>> adam_direction(torch.tensor([4.0, -0.5]), fresh)
    tensor([ 1., -1.])
    """
    (b1, b2), t = moments.betas, moments.step + 1
    mean = (b1 * moments.mean + (1 - b1) * gradient) / (1 - b1**t)
    square = (b2 * moments.square + (1 - b2) * gradient**2) / (1 - b2**t)
    return mean / (square.sqrt() + moments.eps)


def project(
    vectors: Float[Tensor, "row weight"], dimensions: int, seed: int, block: int = BLOCK
) -> Float[Tensor, "row dimension"]:
    """Return x R for each row x, R a sparse matrix of random signs: inner products are kept on average.

    Each row of R, one per weight, has s entries of +-1 / sqrt(s), one in each of s equal parts of the d dimensions, and
    0 elsewhere. E <x R, y R> = <x, y>, with variance (|x|^2 |y|^2 + <x, y>^2 - 2 sum_k x_k^2 y_k^2) / d, as for a dense
    matrix of signs: the inner product of two unit vectors is kept to about 1 / sqrt(d). R is a function of
    (seed, weight): a counter gives the entries of any weight without those before it, and R is never held.

    **Source**: sparse Johnson-Lindenstrauss transform, Kane and Nelson, arXiv 1012.1577 (the block construction);
    s = 1 is the count sketch. LESS, arXiv 2402.04333, section 4, takes a dense matrix of signs: weights x d per row.

    Args:
        vectors: one per row, on any device; the sums are taken on the CPU.
        dimensions: d; s = `BUCKETS`, or d where that is less.
        seed: of R, >= 0.
        block: weights whose entries are held at once; memory block x (s + rows) x 8 bytes.

    Returns:
        One row per vector; sums are taken in float64 and in the order of the weights: the same bits whatever the block.

    Cost: rows x weights x s additions, and weights x s random words for all rows together.
    """
    total = np.zeros((len(vectors), 2 * dimensions))
    for start in range(0, vectors.shape[1], block):
        part = vectors[:, start : start + block].detach().cpu().double().contiguous()
        _add(part.numpy(), _draw(start, part.shape[1], dimensions, seed), total)
    found = torch.from_numpy(total[:, 0::2] - total[:, 1::2]) / min(BUCKETS, dimensions) ** 0.5
    return found.to(vectors)


def normalise(vectors: Float[Tensor, "row dimension"]) -> Float[Tensor, "row dimension"]:
    """Return vectors of length 1; a vector of zeros stays one and is similar to nothing.

    >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1.0)


def features(
    network: nn.Module, checkpoint: Checkpoint, rows: Encoding, names: Sequence[str], *, dimensions: int, seed: int
) -> tuple[Float[Tensor, "row dimension"], Float[Tensor, "row dimension"]]:
    """Return the features of rows as training examples (Adam's direction) and as queries (the gradient itself).

    Both come of one backward pass per row and of one projection.

    **Source**: LESS, arXiv 2402.04333, sections 3.1 and 4: Adam for the pool, plain gradients for the target task,
    both scaled to length 1, so that short responses, whose gradients are long, are not preferred (section 3.2).

    Args:
        network: in eval mode; its trained weights become those of the checkpoint.
        checkpoint: of its warm-up, on its device.
        rows: of which features are wanted.
        names: of the rows, for errors.
        dimensions: d.
        seed: of the projection; features of one comparison share it.

    Returns:
        Both on the CPU, in the gradient's dtype.

    Raises:
        ValueError: a gradient that is not finite.

    Cost: a forward and a backward pass per row, one at a time, and a projection of 2 x rows vectors; memory
    2 x `ROWS` x weights numbers.
    """
    vector_to_parameters(checkpoint.weights.clone(), trained(network))
    found = []
    for start in range(0, len(names), ROWS):
        block = range(start, min(start + ROWS, len(names)))
        vectors = checkpoint.weights.new_empty(2, len(block), checkpoint.weights.numel())
        with packed_attention(network):
            for place, row in enumerate(block):
                vectors[1, place] = gradient(network, rows, row)
                vectors[0, place] = adam_direction(vectors[1, place], checkpoint.moments)
        made = normalise(project(vectors.flatten(0, 1), dimensions, seed)).cpu()
        found.append(made.view(2, len(block), dimensions))
    adam, plain = torch.cat(found, dim=1)
    broken = [name for name, row in zip(names, plain, strict=True) if not torch.isfinite(row).all()]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(names)} rows have a gradient that is not finite, first {broken[:3]}; "
            "lower the warm-up's learning rate or set models.dtype: float32"
        )
    return adam, plain


def influence(
    pool: Sequence[Float[Tensor, "row dimension"]],
    queries: Sequence[Float[Tensor, "query dimension"]],
    topics: Sequence[str],
    rates: Sequence[float],
) -> Float64[Tensor, " row"]:
    """Return how much each row of the pool, trained on, would lower the loss of the topic that it serves best.

    influence(n) = max over topics T of sum_i w_i * mean over q in T of <pool_i[n], queries_i[q]>, with
    w_i = rate_i / sum of the rates, over checkpoints i.

    **Source**: LESS, arXiv 2402.04333, sections 3.1 and 4; the means of cosines and the weights that sum
    to 1 are its code's (princeton-nlp/LESS @ 8abf962, matching.py).

    Args:
        pool: per checkpoint, Adam's features of the ground set.
        queries: per checkpoint, plain features of the target task.
        topics: of each query.
        rates: per checkpoint, mean learning rate, > 0.

    Returns:
        In [-1, 1], the largest is chosen first; accumulated in float64.

    Raises:
        ValueError: no query.

    Cost: checkpoints x (queries + rows x topics) x d.

    >>> east, north = torch.eye(2)
    >>> influence([torch.stack([east, north])], [torch.stack([east, -north])], ["a", "b"], [1e-4]).tolist()
    [1.0, 0.0]
    """
    if not topics:
        raise ValueError("there are 0 queries, and influence is influence on a target task; give it at least 1 row")
    names = {name: place for place, name in enumerate(sorted(set(topics)))}
    of = torch.tensor([names[topic] for topic in topics])
    total = torch.zeros(len(pool[0]), len(names), dtype=torch.float64)
    for rows, asked, rate in zip(pool, queries, rates, strict=True):
        sums = torch.zeros(len(names), asked.shape[1], dtype=torch.float64).index_add_(0, of, asked.double())
        total += rate / sum(rates) * (rows.double() @ (sums / of.bincount()[:, None]).T)
    return total.amax(1)


def _draw(start: int, count: int, dimensions: int, seed: int) -> Int64[np.ndarray, "weight bucket"]:
    """Return where `count` weights from `start` on are added: column 2 k to dimension k, 2 k + 1 taken away from it.

    Of a word's bits the lowest is the sign and the 31 highest the place, as a fraction of a part of the dimensions.
    """
    words = Philox(key=seed).advance(start).random_raw(count * BUCKETS).reshape(count, BUCKETS)
    words = words[:, : min(BUCKETS, dimensions)]
    edges = np.arange(words.shape[1] + 1, dtype=np.uint64) * np.uint64(dimensions) // np.uint64(words.shape[1])
    places = edges[:-1] + ((words >> np.uint64(33)) * np.diff(edges) >> np.uint64(31))
    return (2 * places + (words & np.uint64(1))).astype(np.int64)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _add(vectors, columns, total):
    """Add each weight of each vector to its columns."""
    for row in range(vectors.shape[0]):
        for weight in range(vectors.shape[1]):
            value = vectors[row, weight]
            for column in columns[weight]:
                total[row, column] += value
