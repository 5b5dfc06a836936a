"""DELIFT's pairwise utility: how much one example, shown in context, helps the model answer another.

Symbols: i, target: the example that is answered (rows). j, demo: the example shown before it (columns). T_i: response
tokens of i, with the end-of-turn token. p(y_it): probability of the reference token, teacher-forced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DISTANCES = ("probability", "log_likelihood")
KERNELS = ("exact", "neighbours")


@dataclass(frozen=True)
class Answer:
    """How well the model expects one response."""

    tokens: int  # T_i
    distance: float  # root mean square of 1 - p, in [0, 1], 0 is best
    log_likelihood: float  # mean log p, nats per response token, 0 is best


def measure(log_probs: Float[Tensor, " token"]) -> Answer:
    """Reduce a response's log-probabilities to its two distances, in float64.

    distance = sqrt( (1/T) * sum_t (1 - p_t)^2 ),  log_likelihood = (1/T) * sum_t log p_t

    **Source**: DELIFT, arXiv 2411.04425v3, section 3.1: the distance between the predicted probabilities and 1; its
    KL form is the difference of mean log-likelihoods.

    Args:
        log_probs: log p(y_t) in nats, one per response token, at least one.

    Raises:
        ValueError: no token.

    >>> measure(torch.log(torch.tensor([1.0, 0.4])))
    Answer(tokens=2, distance=0.424264..., log_likelihood=-0.458145...)
    """
    if len(log_probs) == 0:
        raise ValueError("a response without tokens has no distance; leave such examples out")
    exact = log_probs.double()
    miss = -torch.expm1(exact)
    return Answer(len(exact), float(miss.square().mean().sqrt()), float(exact.mean()))


def gain(
    shown: Float[np.ndarray, " pair"], alone: Float[np.ndarray, " pair"], distance: str
) -> Float[np.ndarray, " pair"]:
    """Return the utility of each pair: what showing the demo changed for the target; > 0: it helped.

    probability: U = d_i(nothing) - d_i(demo);  log_likelihood: U = ll_i(demo) - ll_i(nothing)

    **Source**: DELIFT, arXiv 2411.04425v3, equation 1.

    Args:
        shown: the measure with the demo in context, per pair.
        alone: the same target's measure without a demo, per pair.
        distance: `probability` (root mean square of 1 - p) or `log_likelihood` (mean log p).

    >>> gain(np.array([0.25]), np.array([0.75]), "probability")
    array([0.5])
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; known: {', '.join(DISTANCES)}")
    return alone - shown if distance == "probability" else shown - alone


def pairs_of_all(examples: int) -> Int[np.ndarray, "pair 2"]:
    """Return every (target, demo) pair, an example with itself too; memory: 16 bytes per pair.

    >>> pairs_of_all(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return np.indices((examples, examples)).reshape(2, -1).T


def pairs_of_neighbours(nearest: Int[np.ndarray, "target neighbour"]) -> Int[np.ndarray, "pair 2"]:
    """Return each target with itself and with its nearest demos, sorted by target, then demo.

    >>> pairs_of_neighbours(np.array([[1], [0], [0]])).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 2]]
    """
    own = np.arange(len(nearest))
    demos = np.sort(np.column_stack([own, nearest]), axis=1)
    return np.column_stack([np.repeat(own, demos.shape[1]), demos.ravel()])


def fits(
    prefixes: Sequence[int], targets: Sequence[int], pairs: Int[np.ndarray, "pair 2"], max_tokens: int
) -> Bool[np.ndarray, " pair"]:
    """Tell which pairs fit in the context whole: prefix tokens + target tokens <= max_tokens; nothing is ever cut.

    >>> fits([3, 9], [4, 4], np.array([[0, 0], [0, 1]]), 8)
    array([ True, False])
    """
    target, demo = pairs[:, 0], pairs[:, 1]
    return np.asarray(prefixes)[demo] + np.asarray(targets)[target] <= max_tokens
