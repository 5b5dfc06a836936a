"""DELIFT's pairwise utility: how much one example, shown in context, helps the model answer another.

Symbols: i, target: the example that is answered (rows). j, demo: the example shown before it (columns). T_i: response
tokens of i, with the end-of-turn token. p(y_it): probability of the reference token, teacher-forced.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

DISTANCES = ("probability", "log_likelihood")


@dataclass(frozen=True)
class Answer:
    """How well the model expects one response."""

    tokens: int  # T_i
    distance: float  # root mean square of 1 - p, in [0, 1], 0 is best
    log_likelihood: float  # mean log p, nats per response token, 0 is best


@dataclass(frozen=True)
class Missed:
    """What a kernel of some pairs lacks, on a sample of pairs that were scored exactly; 0 is best."""

    mean_absolute: float  # mean |s - kernel|, in units of s
    max_absolute: float
    share_of_helpful_missed: float  # of the pairs with U > 0, in [0, 1]
    mass_missed: float  # their sum of s over the sum of all s, in [0, 1]


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


def approximation_error(utility: Float[np.ndarray, " pair"], known: Bool[np.ndarray, " pair"]) -> Missed:
    """Compare exactly scored pairs with a kernel that holds some of them: s = max(U, 0), absent pairs are 0 in it.

    Args:
        utility: U of every pair of a sample.
        known: which of these pairs the kernel holds; it holds their exact values.

    Raises:
        ValueError: no pair: nothing is known of the error then.

    >>> approximation_error(np.array([0.5, 0.25, 0.25, -1.0]), np.array([True, False, True, False]))
    Missed(mean_absolute=0.0625, max_absolute=0.25, share_of_helpful_missed=0.333..., mass_missed=0.25)
    """
    if not len(utility):
        raise ValueError("no pair was scored exactly, so the error of a kernel is not known; sample some targets")
    exact = np.maximum(utility.astype(np.float64), 0)
    lost = np.where(known, 0.0, exact)
    helpful, total = int((exact > 0).sum()), float(exact.sum())
    return Missed(
        mean_absolute=float(lost.mean()),
        max_absolute=float(lost.max()),
        share_of_helpful_missed=int((lost > 0).sum()) / max(helpful, 1),
        mass_missed=float(lost.sum()) / (total or 1.0),
    )
