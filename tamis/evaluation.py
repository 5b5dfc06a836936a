"""Evaluation: measures of held-out rows, brought together per arm, with bootstrap intervals over the rows.

Symbols: row = a held-out example; run = an arm and a seed (`base` has none); measure = a number per run and row:
`loss` (mean negative log-likelihood of its response, nats per token), `rouge_l`, `similarity`. An arm with several
seeds counts as the mean of its seeds, row by row; intervals say how much the choice of rows matters, not the seed.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from torch import Tensor

MEASURES = ("loss", "rouge_l", "similarity")
ORDER = ("chosen", "random", "full", "base")  # an earlier arm minus a later one


def bootstrap_means(
    values: Float[np.ndarray, "row series"], resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "resample series"]:
    """Return each series' mean over rows drawn with replacement, as many as there are.

    All series share the drawn rows, so differences of two columns are paired. Time resamples x rows x series.

    **Source**: Efron 1979, "Bootstrap methods: another look at the jackknife", section 2.

    >>> bootstrap_means(np.ones((3, 1)), 2, np.random.default_rng(0)).tolist()
    [[1.0], [1.0]]
    """
    rows = len(values)
    found = np.empty((resamples, values.shape[1]))
    for resample in range(resamples):
        found[resample] = values[generator.integers(rows, size=rows)].mean(axis=0)
    return found


def percentile_intervals(
    means: Float[np.ndarray, "resample series"], confidence: float
) -> Float[np.ndarray, "series 2"]:
    """Return the percentile interval of each series: the quantiles (1 - c) / 2 and (1 + c) / 2, linear between values.

    >>> percentile_intervals(np.arange(101.0)[:, None], 0.9).round(6).tolist()
    [[5.0, 95.0]]
    """
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T


def average_seeds(runs: Float[np.ndarray, "seed row measure"]) -> Float[np.ndarray, "row measure"]:
    """Return the mean over an arm's seeds, row by row."""
    return runs.mean(axis=0)


def cosines(
    generated: Float[Tensor, "text width"], reference: Float[Tensor, "text width"], texts: Sequence[str]
) -> Float[np.ndarray, " text"]:
    """Return the cosine similarity of each generated text and its reference, in [-1, 1], 1 is best.

    A text without a visible character says nothing, and its similarity is 0 by definition: an encoder would compare its
    special tokens.

    Args:
        generated: unit vectors.
        reference: unit vectors, row by row.
        texts: what was generated.
    """
    found = (generated * reference).sum(1).double().numpy().clip(-1, 1)
    return np.where([not text.strip() for text in texts], 0.0, found)


def perplexity(loss: Float[np.ndarray, " row"], tokens: Float[np.ndarray, " row"]) -> float:
    """Return exp of the mean negative log-likelihood over all response tokens (rows weigh by their tokens), 1 is best.

    >>> round(perplexity(np.log([2.0, 16.0]), np.array([2.0, 1.0])), 6)
    4.0
    """
    return float(np.exp(np.average(loss, weights=tokens)))


def summarise(
    arms: Mapping[str, Float[np.ndarray, "row measure"]],
    tokens: Float[np.ndarray, " row"],
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return every arm's measures and every pair's difference in loss, each with its bootstrap interval.

    Means are over rows, whatever their length; all intervals come from the same resampled rows.

    Args:
        arms: arm -> `MEASURES` per row, averaged over seeds.
        tokens: response tokens of each row.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        generator: draws the rows.

    Returns:
        `arms`: name -> `loss`, `loss_low`, `loss_high`, likewise for the other measures, and `perplexity`;
        `differences`: `one-other` -> `loss`, `low`, `high`; below 0: the first arm's loss is lower.
    """
    pairs = [pair for pair in combinations(ORDER, 2) if all(name in arms for name in pair)]
    columns = [(name, measure) for name in arms for measure in MEASURES]
    series = [arms[name][:, MEASURES.index(measure)] for name, measure in columns]
    series += [arms[one][:, 0] - arms[other][:, 0] for one, other in pairs]
    values = np.stack(series, axis=1)
    bounds = percentile_intervals(bootstrap_means(values, resamples, generator), confidence)
    means = values.mean(axis=0)
    found: dict[str, dict[str, float]] = {
        name: {"perplexity": perplexity(measures[:, 0], tokens)} for name, measures in arms.items()
    }
    for place, (name, measure) in enumerate(columns):
        low, high = bounds[place].tolist()
        found[name] |= {measure: float(means[place]), f"{measure}_low": low, f"{measure}_high": high}
    differences = {}
    for place, (one, other) in enumerate(pairs, start=len(columns)):
        low, high = bounds[place].tolist()
        differences[f"{one}-{other}"] = {"loss": float(means[place]), "low": low, "high": high}
    return {"arms": found, "differences": differences}
