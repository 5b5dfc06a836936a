"""Small kernels and budgets for the tests of what chooses by them."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tamis.submodular.budgets import Budget, count_by_topic, resolve
from tamis.submodular.kernels import SparseKernel, gather

EIGHTHS = st.integers(0, 8).map(lambda value: value / 8)
KERNELS = st.tuples(st.integers(1, 6), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=EIGHTHS)
)


def counted(rows: int, count: int) -> Budget:
    """A budget of so many of so many rows."""
    return resolve({"count": count}, topics=["a"] * rows, response_tokens=np.ones(rows, np.int64))


def random_kernel(targets: int, demos: int, seed: int = 0) -> np.ndarray:
    """Clustered, not symmetric, without ties."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(5, 8))
    ones, others = (centres[generator.integers(5, size=rows)] for rows in (targets, demos))
    ones, others = (rows + 0.7 * generator.normal(size=rows.shape) for rows in (ones, others))
    return np.maximum(ones @ others.T, 0).astype(np.float32) / 32


def thin(kernel: np.ndarray) -> SparseKernel:
    """The same kernel, sparse: its zeros are absent."""
    targets, demos = np.nonzero(kernel)
    return gather(targets, demos, kernel[targets, demos], kernel.shape)


@st.composite
def wishes(draw, rows: int):
    """Arguments of any budget that can be kept, with caps, floors and unequal costs."""
    topics = draw(st.lists(st.sampled_from("abc"), min_size=rows, max_size=rows))
    tokens = np.array(draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows)), np.int64)
    sizes = {name: topics.count(name) for name in sorted(set(topics))}
    floors = {name: draw(st.integers(0, min(2, size))) for name, size in sizes.items()}
    caps = {name: draw(st.integers(max(1, floors[name]), size)) for name, size in sizes.items()}
    if draw(st.booleans()):
        budget = {"count": draw(st.integers(max(1, sum(floors.values())), sum(caps.values())))}
    else:
        least = sum(sum(sorted(tokens[np.array(topics) == name].tolist())[: floors[name]]) for name in sizes)
        shortest = int(tokens.min())
        budget = {"response_tokens": draw(st.integers(max(least, shortest), int(tokens.sum())))}
    return {"budget": budget, "topics": topics, "response_tokens": tokens, "caps": caps, "floors": floors}


def keeps(budget: Budget, order: np.ndarray) -> bool:
    """Whether demos are distinct, within budget and caps, meet the floors, and spend a budget of rows to the end."""
    topics = count_by_topic(budget, order.tolist())
    spent, whole = int(budget.costs[order].sum()), budget.kind == "response_tokens" or len(order) == budget.limit
    bounds = (topics >= budget.floors).all() and (topics <= budget.caps).all()
    return bool(bounds and whole and spent <= budget.limit and len(set(order.tolist())) == len(order))


def same(one, other) -> bool:
    """Whether two choices are the same to the last bit."""
    return all(getattr(other, name).tobytes() == value.tobytes() for name, value in vars(one).items())
