"""Every algorithm again, slow and obvious: the numbers that the library's functions are held against."""

import itertools
import math
from fractions import Fraction

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


def utility(model, alone, prefixes, rows, responses) -> np.ndarray:
    """U[i, j] by a forward pass per pair: rows are targets, columns demos; a row is read alone or after a prefix."""
    count = len(rows)
    found = np.zeros((count, count))
    for target in range(count):
        unaided = distance([math.exp(x) for x in plain_log_probs(model, alone[target], responses[target])])
        for demo in range(count):
            before = prefixes[demo] + rows[target]
            shown = distance([math.exp(x) for x in plain_log_probs(model, before, responses[target])])
            found[target, demo] = unaided - shown
    return found


def nearest(vectors: np.ndarray, count: int) -> list[list[int]]:
    """Each row's nearest other rows by cosine, by sorting all of them."""
    found = []
    for row in range(len(vectors)):
        others = [place for place in range(len(vectors)) if place != row]
        others.sort(key=lambda place: (-float(vectors[row] @ vectors[place]), place))
        found.append(others[:count])
    return found


def jaccard(one: list[str], other: list[str]) -> float:
    """Similarity of two lists of words by their runs of three words; by single words where a list has under eight."""
    ours, theirs = (
        {tuple(words[place : place + size]) for place in range(len(words) - size + 1)}
        for words, size in ((words, 3 if len(words) >= 8 else 1) for words in (one, other))
    )
    return len(ours & theirs) / len(ours | theirs) if ours and theirs else 0.0


def lead(similar: np.ndarray, threshold: float) -> list[int]:
    """For each row the first earlier row that leads and is similar enough to it; -1 where it leads itself."""
    leads: list[int] = []
    for row in range(len(similar)):
        found = [place for place in range(row) if leads[place] < 0 and similar[row, place] >= threshold]
        leads.append(found[0] if found else -1)
    return leads


def training_loss(model, pairs: list[tuple[list[int], list[int]]], loss_per: str) -> float:
    """Mean negative log-likelihood over all answer tokens, or over rows of their means, a forward pass per row."""
    total, count = 0.0, 0
    for before, response in pairs:
        row = -sum(plain_log_probs(model, before, response))
        total += row / len(response) if loss_per == "row" else row
        count += 1 if loss_per == "row" else len(response)
    return total / count


def learning_rates(steps: int, warmup: int) -> list[float]:
    """Up by equal amounts to 1, then down by equal amounts, never 0."""
    up = [(step + 1) / (warmup + 1) for step in range(warmup)]
    down = [1 - step / (steps - warmup) for step in range(steps - warmup)]
    return up + down


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> list[list[float]]:
    """Mean of each series over rows drawn with replacement, a row and a number at a time."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = generator.integers(len(values), size=len(values))
        found.append([sum(float(values[row, one]) for row in drawn) / len(drawn) for one in range(values.shape[1])])
    return found


def resampled_arms(arms: dict[str, np.ndarray], resamples: int, seed: int) -> dict[str, list[list[float]]]:
    """Mean of each arm's measures over drawn seeds and drawn rows (the same for all arms), a number at a time."""
    generator = np.random.default_rng(seed)
    count = len(next(iter(arms.values()))[0])
    rows = [generator.integers(count, size=count) for _ in range(resamples)]
    found: dict[str, list[list[float]]] = {}
    for name, runs in arms.items():
        many = len(runs) > 1
        seeds = generator.integers(len(runs), size=(resamples, len(runs))) if many else [[0]] * resamples
        found[name] = []
        for drawn_rows, drawn_seeds in zip(rows, seeds, strict=True):
            pairs = [(one, row) for one in drawn_seeds for row in drawn_rows]
            sums = [sum(float(runs[one][row][m]) for one, row in pairs) for m in range(len(runs[0][0]))]
            found[name].append([total / len(pairs) for total in sums])
    return found


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the sorted values lies, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def batches(tokens: list[int], new_tokens: int, most_tokens: int) -> list[list[int]]:
    """Take the longest run of the shortest texts left that fits, padded to its longest; one text at least."""
    left, found = sorted((size, place) for place, size in enumerate(tokens)), []
    while left:
        fitting = [n for n in range(1, len(left) + 1) if n * (left[n - 1][0] + new_tokens) <= most_tokens]
        count = max(fitting, default=1)
        found.append([place for _, place in left[:count]])
        left = left[count:]
    return found


def longest_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, by recursion over prefixes."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def greedy_answer(model, before: list[int], new_tokens: int, end: int) -> list[int]:
    """The most likely token again and again, by a whole forward pass each, until the end token."""
    import torch

    found: list[int] = []
    for _ in range(new_tokens):
        with torch.no_grad():
            row = model(input_ids=torch.tensor([before + found]), use_cache=False).logits[0, -1]
        found.append(int(row.argmax()))
        if found[-1] == end:
            break
    return found


def facility_location(kernel, chosen):
    """Return sum_i max_{j in chosen} s_ij, entry by entry and without rounding."""
    return sum(max((Fraction(float(row[demo])) for demo in chosen), default=Fraction(0)) for row in kernel)


def greedy(kernel, budget):
    """Return plain greedy's order and gains: every allowed demo is evaluated before every pick."""
    costs, topic_of = budget.costs.tolist(), budget.topic_of.tolist()

    def gain(order, row):
        return facility_location(kernel, [*order, row]) - facility_location(kernel, order)

    def still_needed(order):
        total = 0
        for topic, floor in enumerate(budget.floors.tolist()):
            free = sorted(costs[row] for row, name in enumerate(topic_of) if name == topic and row not in order)
            total += sum(free[: max(0, floor - sum(topic_of[row] == topic for row in order))])
        return total

    def allowed(order, row, quota):
        grown = [*order, row]
        within = sum(topic_of[other] == topic_of[row] for other in grown) <= quota[topic_of[row]]
        return row not in order and within and sum(costs[each] for each in grown) + still_needed(grown) <= budget.limit

    def extend(order, quota):
        while rows := [row for row in range(len(costs)) if allowed(order, row, quota)]:
            order = [*order, max(rows, key=lambda row: (gain(order, row) / costs[row], -row))]
        return order

    after_floors = extend([], budget.floors)
    order = extend(after_floors, budget.caps)
    singles = [row for row in range(len(costs)) if allowed(after_floors, row, budget.caps)]
    if singles and len(set(costs)) > 1:
        single = max(singles, key=lambda row: (gain(after_floors, row), -row))
        rival = extend([*after_floors, single], budget.caps)
        order = max(order, rival, key=lambda rows: facility_location(kernel, rows))
    return order, [gain(order[:place], row) for place, row in enumerate(order)]


def best_subset(kernel, size):
    """Return the largest facility location of any so many demos."""
    return max(facility_location(kernel, rows) for rows in itertools.combinations(range(kernel.shape[1]), size))


def largest_remainders(sizes: dict, rows: int) -> dict:
    """Give every topic the whole part of its quota, then single rows by what is left of the quotas, one at a time."""
    total = sum(sizes.values())
    quota = {topic: Fraction(rows * size, total) for topic, size in sizes.items()}
    given = {topic: math.floor(share) for topic, share in quota.items()}
    for _ in range(rows - sum(given.values())):
        left = {topic: quota[topic] - given[topic] for topic in sorted(sizes)}
        given[max(left, key=left.get)] += 1
    return given


def mutual_information(kernels, eta: float, form: str, chosen: list[int]) -> float:
    """Facility-location mutual information, term by term; kernels: pool x pool, task x pool, pool x task."""
    kernel, queries, asked = kernels
    targets, task = len(kernel), len(queries)

    def most(values) -> float:
        return max([float(value) for value in values], default=0.0)

    bonus = eta * sum(most(queries[q][j] for q in range(task)) for j in chosen)
    if form == "queries":
        return sum(most(queries[q][j] for j in chosen) for q in range(task)) + bonus
    covers = [most(kernel[i][j] for j in chosen) for i in range(targets)]
    if form == "additive":
        return sum(covers) + bonus
    return sum(min(cover, eta * most(asked[i][q] for q in range(task))) for i, cover in enumerate(covers))


def conditional_gain(kernel, learnt, nu: float, chosen: list[int]) -> float:
    """What chosen demos cover beyond nu times what learnt ones cover, target by target."""
    total = 0.0
    for target in range(len(kernel)):
        cover = max([float(kernel[target][demo]) for demo in chosen], default=0.0)
        total += max(cover - nu * max([float(value) for value in learnt[target]], default=0.0), 0.0)
    return total


def greedy_of(value, demos: int, count: int) -> list[int]:
    """Plain greedy on any function of chosen demos; ties go to the lowest index."""
    chosen: list[int] = []
    for _ in range(count):
        left = [demo for demo in range(demos) if demo not in chosen]
        chosen.append(max(left, key=lambda demo: (value([*chosen, demo]), -demo)))
    return chosen


def holm_rejects(p: list[float], level: float) -> list[bool]:
    """Holm's procedure a step at a time: the smallest p left against level / (how many are left), until one fails."""
    rejected, left = [False] * len(p), list(range(len(p)))
    while left:
        smallest = min(left, key=lambda place: p[place])
        if p[smallest] > level / len(left):
            break
        rejected[smallest] = True
        left.remove(smallest)
    return rejected


def bootstrap_p(means: list[float]) -> float:
    """Twice the share of resamples on the rarer side of 0, the sample itself counted as one of them."""
    below = above = 1
    for mean in means:
        below += mean <= 0
        above += mean >= 0
    return min(1.0, 2 * min(below, above) / (len(means) + 1))


def crossed_means(differences: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Mean of a table over rows drawn with replacement, then seeds drawn with replacement, a number at a time."""
    generator = np.random.default_rng(seed)
    seeds, rows = differences.shape
    drawn_rows = [generator.integers(rows, size=rows) for _ in range(resamples)]
    drawn_seeds = [[0]] * resamples if seeds == 1 else generator.integers(seeds, size=(resamples, seeds))
    found = []
    for some, several in zip(drawn_rows, drawn_seeds, strict=True):
        total = 0.0
        for seed_drawn in several:
            for row in some:
                total += float(differences[seed_drawn, row])
        found.append(total / (len(several) * rows))
    return found
