"""Baselines: what DELIFT is compared with, each as an order of all rows, so that every budget is a prefix of one order.

Selectors that ask a model come in two steps: `probes` says what it is asked, here its answers become one score per
row, the largest chosen first. Symbols: x a prompt, y its response; L(y|x) = -(1/T) * sum_t log p(y_t | x, y_<t), the
mean negative log-likelihood over the response's T tokens with the end-of-turn token, nats per token; L(y) the same
without the prompt.
"""

from math import ceil, sqrt

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64

ROWS = 8192  # rows of a block of products with centroids; memory: ROWS x clusters x 4 bytes
ROUNDS = 30  # of k-means at most
SAME = 1e-6  # squared distance under which unit vectors differ by rounding only


def score_perplexity(loss: Float[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Return how near each row stands to the middle of the losses, by rank.

    score_i = -|(r_i + 1/2) / n - 1/2|,  r_i the rank of L(y_i|x_i) from 0, equal losses by row

    The largest k scores are then the k rows in the middle of the distribution.

    **Source**: Marion et al. 2023, arXiv 2309.04564: of subsets kept by perplexity the middle one does best; perplexity
    is exp(L), with the same ranks. Differs: there, texts of a pretraining corpus and all of their tokens; here the
    response's tokens, given the prompt.

    Args:
        loss: L(y|x), nats per token, finite.

    Returns:
        In [-1/2, 0]; 0 is the middle.

    >>> score_perplexity(np.array([9.0, 1.0, 2.0, 0.5]))
    array([-0.375, -0.125, -0.125, -0.375])
    """
    count = len(loss)
    rank = np.empty(count, np.int64)
    rank[np.argsort(loss, kind="stable")] = np.arange(count)
    return -np.abs(2 * rank + 1 - count) / (2.0 * max(count, 1))


def score_ifd(conditioned: Float[np.ndarray, " row"], alone: Float[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Return the instruction-following difficulty of each row, negated where the prompt does not help.

    IFD = L(y|x) / L(y);  score = IFD where IFD < 1, else -IFD

    So the largest IFD below 1 is first: the prompt helps, but little. Rows with IFD >= 1 come last, the lowest first.

    **Source**: Li et al. 2023, arXiv 2308.12032; code tianyi-lab/Cherry_LLM @ 6c200ba. Differs: the paper leaves rows
    with IFD > 1 out, here they fill a budget that the others do not; what stands before the response alone, see
    `probes.ask_ifd`.

    Args:
        conditioned: L(y|x), nats per token.
        alone: L(y), nats per token, above 0.

    Raises:
        ValueError: as `measure_ifd`.

    >>> score_ifd(np.array([1.0, 1.5, 3.0]), np.array([2.0, 2.0, 2.0]))
    array([ 0.5 ,  0.75, -1.5 ])
    """
    difficulty = measure_ifd(conditioned, alone)
    return np.where(difficulty < 1, difficulty, -difficulty)


def measure_ifd(
    conditioned: Float[np.ndarray, " row"], alone: Float[np.ndarray, " row"]
) -> Float64[np.ndarray, " row"]:
    """Return the instruction-following difficulty of each row, IFD = L(y|x) / L(y): below 1 where its prompt helps.

    **Source**: as `score_ifd`.

    Args:
        conditioned: L(y|x), nats per token.
        alone: L(y), nats per token, above 0.

    Raises:
        ValueError: a response whose loss alone is 0: the model knows it by heart, and no prompt can help.

    >>> measure_ifd(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    array([0.5, 1.5])
    """
    certain = np.flatnonzero(~(alone > 0))
    if len(certain):
        raise ValueError(
            f"{len(certain)} of {len(alone)} responses have a loss of 0 without their prompt, first places "
            f"{certain[:3].tolist()}; they have no difficulty: take these rows out or choose by another selector"
        )
    return conditioned.astype(np.float64) / alone


def score_selectit(
    log_probs: Float[np.ndarray, "row prompt rating"], alpha: float = 0.2
) -> Float64[np.ndarray, " row"]:
    """Return how highly, how surely and how steadily the model rates each row.

    P'_k = P_k / sum_j P_j                                                 over the ratings 1 .. K
    S_base = argmax_k P'_k                                                 the lowest of equal ones
    S_token = S_base * (1 / (K - 1)) * sum_k |P'_k - P'_base|              one per rating prompt
    S_sentence = mean(S_token) / (1 + alpha * std(S_token))                over the rating prompts

    **Source**: Liu et al. 2024, arXiv 2402.16705, token and sentence level; code Blue-Raincoat/SelectIT @ 1a6fe70
    (population standard deviation). Differs: no model level, which weighs several models by their size; here is one.
    The rating prompts are ours (`probes.RATING_PROMPTS`).

    Args:
        log_probs: log P_k, nats, of each rating as the next token; ratings from 1 up.
        alpha: weight of the disagreement between prompts, >= 0.

    Returns:
        In [0, K]; K is best.

    >>> score_selectit(np.log([[[0.1, 0.3], [0.1, 0.3]], [[0.3, 0.1], [0.1, 0.3]]])).round(4)
    array([1.    , 0.7143])
    """
    exact = log_probs.astype(np.float64)
    share = np.exp(exact - exact.max(axis=2, keepdims=True))
    share /= share.sum(axis=2, keepdims=True)
    sure = np.abs(share - share.max(axis=2, keepdims=True)).sum(axis=2) / (share.shape[2] - 1)
    rating = (share.argmax(axis=2) + 1) * sure
    return rating.mean(axis=1) / (1 + alpha * rating.std(axis=1))


def order_scores(score: Float[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """Return all rows by score, the largest first, equal ones by row.

    Raises:
        ValueError: a score is not finite.

    >>> order_scores(np.array([0.5, 2.0, 0.5]))
    array([1, 0, 2])
    """
    wrong = np.flatnonzero(~np.isfinite(score))
    if len(wrong):
        raise ValueError(f"{len(wrong)} of {len(score)} scores are not finite, first places {wrong[:3].tolist()}")
    return np.argsort(-score, kind="stable").astype(np.int64)


def order_longest(tokens: Int[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """Return all rows by their response tokens, the longest first, equal ones by row.

    **Source**: Zhao et al. 2024, arXiv 2402.04833.

    >>> order_longest(np.array([3, 7, 3]))
    array([1, 0, 2])
    """
    return np.argsort(-tokens.astype(np.int64), kind="stable").astype(np.int64)


def order_deft_ucs(
    vectors: Float32[np.ndarray, "row width"], clusters: int | None, seed: int, *, easy: float = 0.5
) -> Int64[np.ndarray, " row"]:
    """Return all rows, a cluster at a time in turn, of each first its nearest to and its farthest from the centroid.

    Of the first m rows of a cluster, ceil(easy * m) are its nearest and the others its farthest, by cosine. A round
    takes one row of each cluster that has any left, the largest cluster first, so every prefix holds about as many of
    each cluster, and the wanted share of easy ones.

    **Source**: DEFT-UCS, Das and Khetan 2023, arXiv 2310.16776. Differs: there, a fixed number per cluster for one
    budget; here an order, whose prefixes serve all budgets; k-means is ours (`cluster`); there is no set of rows that
    is kept beforehand.

    Args:
        vectors: unit vectors.
        clusters: at least 1; None: ceil(sqrt(row / 2)), a rule of thumb (Mardia, Kent and Bibby 1979).
        seed: of the first centroids.
        easy: share of nearest rows, in [0, 1] (alpha in the paper; the farthest have 1 - alpha).

    Raises:
        ValueError: not one cluster, a share outside [0, 1], a vector that is not finite.

    Cost: at most `ROUNDS` times row x clusters x width.

    >>> order_deft_ucs(np.float32([[1, 0], [0.8, 0.6], [0.96, 0.28], [0, 1]]), 1, seed=0)
    array([1, 3, 2, 0])
    """
    if not 0 <= easy <= 1:
        raise ValueError(f"the share of easy rows is {easy}; it must be between 0 and 1")
    labels, centroids = cluster(vectors, ceil(sqrt(len(vectors) / 2)) if clusters is None else clusters, seed)
    orders = []
    for members, centroid in zip(_members(labels, len(centroids)), centroids, strict=True):
        nearest = members[np.argsort(-(vectors[members] @ centroid), kind="stable")]
        orders.append(nearest[_alternate(len(members), easy)])
    orders.sort(key=lambda order: (-len(order), order.min(initial=len(vectors))))
    turn = np.concatenate([np.arange(len(order)) for order in orders])
    return np.concatenate(orders)[np.argsort(turn, kind="stable")]


def cluster(
    vectors: Float32[np.ndarray, "row width"], clusters: int, seed: int
) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, "cluster width"]]:
    """Return each row's cluster and the clusters' means: k-means, until no row moves or for `ROUNDS` rounds.

    minimises sum_i |v_i - c(i)|^2;  start: each next centroid is a row drawn with weight min_c |v_i - c|^2

    A cluster that loses all its rows keeps its centroid; where there are fewer distinct vectors than `clusters` there
    are so many clusters only. Each row's distances are float32, means are summed in float64.

    **Source**: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++).

    Args:
        vectors: unit vectors.
        clusters: at least 1.
        seed: of the draws.

    Raises:
        ValueError: fewer than one cluster, no vector, or one that is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if clusters < 1 or not len(vectors) or len(broken):
        raise ValueError(
            f"{len(vectors)} vectors, {len(broken)} of them not finite (first places {broken[:3].tolist()}), cannot be "
            f"put in {clusters} clusters; give finite vectors and at least one cluster"
        )
    centroids = vectors[_draw_start(vectors, clusters, np.random.default_rng(seed))]
    labels = _assign(vectors, centroids)
    for _ in range(ROUNDS):
        for place, members in enumerate(_members(labels, len(centroids))):
            if len(members):
                centroids[place] = vectors[members].mean(axis=0, dtype=np.float64)
        before, labels = labels, _assign(vectors, centroids)
        if np.array_equal(before, labels):
            break
    return labels, centroids


def _draw_start(vectors: np.ndarray, clusters: int, generator: np.random.Generator) -> list[int]:
    drawn = [int(generator.integers(len(vectors)))]
    distance = np.full(len(vectors), np.inf)
    while len(drawn) < clusters:
        distance = np.minimum(distance, 2 - 2 * (vectors @ vectors[drawn[-1]]).astype(np.float64))
        distance[distance < SAME] = 0
        if not distance.any():
            break
        drawn.append(int(generator.choice(len(vectors), p=distance / distance.sum())))
    return drawn


def _assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return each row's nearest centroid, the first of equal ones; |v - c|^2 is least where v.c - |c|^2 / 2 is most."""
    half = (centroids**2).sum(axis=1) / 2
    blocks = range(0, len(vectors), ROWS)
    return np.concatenate([(vectors[start : start + ROWS] @ centroids.T - half).argmax(axis=1) for start in blocks])


def _members(labels: np.ndarray, clusters: int) -> list[np.ndarray]:
    """Return the rows of each cluster, in order."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=clusters))[:-1])


def _alternate(count: int, easy: float) -> np.ndarray:
    """Return places 0 .. count - 1 taken from both ends: of the first m, ceil(easy * m) from the front."""
    front = np.ceil(easy * np.arange(count + 1)).astype(np.int64)
    return np.where(np.diff(front) > 0, front[:-1], count - 1 - (np.arange(count) - front[:-1]))
