"""Every algorithm again, slow and obvious: the numbers that the library's functions are held against."""

import math

import numpy as np


def plain_log_probs(model, before: list[int], response: list[int]):
    """log p of each response token by one whole, unpadded forward pass."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([before + response]), use_cache=False).logits[0]
    found = []
    for step, token in enumerate(response):
        row = logits[len(before) + step - 1]
        found.append(float(torch.log(torch.exp(row - row.max())[token] / torch.exp(row - row.max()).sum())))
    return found


def distance(probabilities: list[float]) -> float:
    """Root mean square of 1 - p, a token at a time."""
    total = 0.0
    for probability in probabilities:
        total += (1 - probability) ** 2
    return math.sqrt(total / len(probabilities))


def utility(model, base, prefixes, queries, responses) -> np.ndarray:
    """U[i, j] by a forward pass per pair: rows are targets, columns demos."""
    count = len(queries)
    found = np.zeros((count, count))
    for target in range(count):
        before = base + queries[target]
        alone = distance([math.exp(x) for x in plain_log_probs(model, before, responses[target])])
        for demo in range(count):
            before = prefixes[demo] + queries[target]
            shown = distance([math.exp(x) for x in plain_log_probs(model, before, responses[target])])
            found[target, demo] = alone - shown
    return found


def nearest(vectors: np.ndarray, count: int) -> list[list[int]]:
    """Each row's nearest other rows by cosine, by sorting all of them."""
    found = []
    for row in range(len(vectors)):
        others = [place for place in range(len(vectors)) if place != row]
        others.sort(key=lambda place: (-float(vectors[row] @ vectors[place]), place))
        found.append(others[:count])
    return found
