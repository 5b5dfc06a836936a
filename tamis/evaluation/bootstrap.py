"""Evaluation: measures of held-out rows, brought together per arm, with bootstrap intervals over rows and seeds.

Symbols: row = a held-out example; run = an arm and a seed (`base` and `previous`, the model that training started from,
have none); measure = a number per run and row: `loss` (mean negative log-likelihood of its response, nats per token),
`rouge_l`, `similarity` and, where a task metric tells, `correct` (1: the answer is right, else 0), whose mean is a
share of the rows, in [0, 1]. An arm with several seeds counts as the mean of its seeds. Its intervals say how much the
choice of rows and of seeds matters; those of an arm with one seed, and of `base`, can say it of the rows only.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from torch import Tensor

MEASURES = ("loss", "rouge_l", "similarity")
CORRECT = "correct"
ORDER = ("chosen", "random", "balanced", "fresh", "full", "previous", "base")  # an earlier arm minus a later one


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


def resample_arm(
    means: Float[np.ndarray, "resample seed measure"], generator: np.random.Generator
) -> Float[np.ndarray, "resample measure"]:
    """Return an arm's mean over its seeds, which each resample draws with replacement, as many as there are.

    mean[r, m] = (1 / S) * sum_k means[r, s_rk, m], with s_rk uniform over the S seeds. An arm with one seed draws
    nothing. Few seeds show less spread than there is: the variance of what S seeds draw is (S - 1) / S of theirs.

    Args:
        means: of each seed's run, over the rows of each resample.
        generator: draws the seeds.

    >>> resample_arm(np.ones((2, 3, 1)), np.random.default_rng(0)).tolist()
    [[1.0], [1.0]]
    """
    resamples, seeds, _ = means.shape
    if seeds == 1:
        return means[:, 0]
    drawn = generator.integers(seeds, size=(resamples, seeds))
    return np.take_along_axis(means, drawn[:, :, None], axis=1).mean(axis=1)


def plan_batches(tokens: Sequence[int], new_tokens: int, most_tokens: int) -> list[list[int]]:
    """Return batches of texts' places, short texts first, whose padded length is at most `most_tokens` in all.

    rows * (longest + new_tokens) <= most_tokens, but for a single text that is longer than that. Time n log n.

    Args:
        tokens: of each text, before it is continued.
        new_tokens: that each is continued by, at most.
        most_tokens: that a batch may hold, counted with padding and new tokens.

    >>> plan_batches([7, 1, 2, 9], new_tokens=1, most_tokens=6)
    [[1, 2], [0], [3]]
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(tokens)), key=lambda place: (tokens[place], place)):
        if not batches or (len(batches[-1]) + 1) * (tokens[place] + new_tokens) > most_tokens:
            batches.append([])
        batches[-1].append(place)
    return batches


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
    arms: Mapping[str, Float[np.ndarray, "seed row measure"]],
    tokens: Float[np.ndarray, " row"],
    measures: Sequence[str] = MEASURES,
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return every arm's measures and every pair's differences, each with its bootstrap interval.

    Means are over seeds and rows, whatever a row's length. Every resample draws rows once, for all arms, and then seeds
    for each arm that has several; means and differences of arms are taken from these draws.

    **Source**: Davison and Hinkley 1997, "Bootstrap methods and their application", section 3.8 (hierarchical data).
    Differs: rows are not nested in seeds, so both are drawn independently of each other, like the rows and columns of
    the table in Owen 2007, "The pigeonhole bootstrap". With one seed per arm this is Efron's bootstrap of the rows.

    Args:
        arms: arm -> `measures` per seed and row.
        tokens: response tokens of each row.
        measures: names of the measures, the loss first.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        generator: draws the rows of all resamples, then the seeds, arm after arm.

    Returns:
        `arms`: name -> `loss`, `loss_low`, `loss_high`, likewise for the other measures, and `perplexity`;
        `differences`: `one-other` -> `loss`, `low`, `high`; below 0: the first arm's loss is lower; and, where
        answers are right or wrong, `correct`, `correct_low`, `correct_high`; above 0: the first arm has more right.
    """
    drawn = resample_arms(arms, resamples, generator)
    found: dict[str, dict[str, float]] = {}
    for name, runs in arms.items():
        found[name] = {"perplexity": perplexity(runs[:, :, 0].mean(axis=0), tokens)}
        means, bounds = runs.mean(axis=(0, 1)).tolist(), percentile_intervals(drawn[name], confidence).tolist()
        for measure, mean, (low, high) in zip(measures, means, bounds, strict=True):
            found[name] |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
    differences = {}
    for one, other in combinations([name for name in ORDER if name in arms], 2):
        bounds = percentile_intervals(drawn[one] - drawn[other], confidence).tolist()
        change = {"loss": found[one]["loss"] - found[other]["loss"], "low": bounds[0][0], "high": bounds[0][1]}
        if CORRECT in measures:
            low, high = bounds[measures.index(CORRECT)]
            more = found[one][CORRECT] - found[other][CORRECT]
            change |= {CORRECT: more, f"{CORRECT}_low": low, f"{CORRECT}_high": high}
        differences[f"{one}-{other}"] = change
    return {"arms": found, "differences": differences}


def measure_gains(
    arms: Mapping[str, Float[np.ndarray, "seed row measure"]],
    start: str,
    *,
    resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> dict[str, dict[str, float]]:
    """Return how much lower every trained arm's loss is than that of a model that it has come from.

    gain(a) = mean over seeds and rows of loss[start] - loss[a], nats per token: above 0 the arm has learnt, below 0 it
    has forgotten. On held-out rows of the version trained on this is its *plasticity*; on rows of the version before,
    or of a general set, its *stability*. Rows and seeds are resampled as in `summarise`.

    **Source**: backward transfer, Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), section 2. Differs: a loss instead of
    an accuracy, and one earlier version, or general rows, instead of the mean over all tasks.

    Args:
        arms: arm -> measures per seed and row, the loss first.
        start: `base`, or `previous`.
        resamples: bootstrap resamples.
        confidence: of the intervals, in (0, 1).
        generator: draws the rows of all resamples, then the seeds, arm after arm.

    Returns:
        Every arm but `base` and the start -> `loss` (the gain), and its interval `low`, `high`.
    """
    drawn = resample_arms(arms, resamples, generator)
    found = {}
    for name in (name for name in arms if name not in ("base", start)):
        ((low, high),) = percentile_intervals(drawn[start][:, :1] - drawn[name][:, :1], confidence).tolist()
        gain = float(arms[start][:, :, 0].mean() - arms[name][:, :, 0].mean())
        found[name] = {"loss": gain, "low": low, "high": high}
    return found


def resample_arms(
    arms: Mapping[str, Float[np.ndarray, "seed row measure"]], resamples: int, generator: np.random.Generator
) -> dict[str, Float[np.ndarray, "resample measure"]]:
    """Return each arm's means in every resample, over rows that all arms share and seeds of its own.

    Means are linear, so each run is averaged over the drawn rows first, and an arm over its drawn runs then.
    """
    runs = np.concatenate(list(arms.values()))  # run x row x measure
    series = runs.transpose(1, 0, 2).reshape(runs.shape[1], -1)
    means = bootstrap_means(series, resamples, generator).reshape(resamples, len(runs), -1)
    ends = np.cumsum([len(seeds) for seeds in arms.values()])
    return {
        name: resample_arm(means[:, end - len(seeds) : end], generator)
        for (name, seeds), end in zip(arms.items(), ends, strict=True)
    }
