import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tamis.submodular import objectives
from tamis.submodular.budgets import resolve
from tamis.submodular.greedy import choose, evaluate
from tamis.submodular.kernels import KernelError, SparseKernel, gather, scale, scale_together

FORMS = ("saturated", "additive", "queries")
EIGHTHS = st.integers(0, 8).map(lambda value: value / 8)


@st.composite
def worlds(draw):
    """Kernels of a pool, a task and learnt examples: square over all of them, cut into blocks."""
    pool, task = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    return draw(arrays(np.float32, (pool + task, pool + task), elements=EIGHTHS)), pool


def counted(rows: int, count: int):
    return resolve({"count": count}, topics=["a"] * rows, response_tokens=np.ones(rows, np.int64))


def thin(kernel: np.ndarray):
    targets, demos = np.nonzero(kernel)
    return gather(targets, demos, kernel[targets, demos], kernel.shape)


def value(objective, chosen) -> float:
    """Evaluate an objective on chosen demos."""
    chosen = np.array(chosen, np.int64)
    return evaluate(objective.kernel, chosen) + float(objective.bonus[chosen].sum())


def build(name: str, world, weight: float = 1.0):
    """Return an objective of a world, and its slow loop as a function of the chosen."""
    whole, pool = world
    kernel, queries, others = whole[:pool, :pool], whole[pool:, :pool], whole[:pool, pool:]
    if name == "conditional":
        made = objectives.conditional_gain(kernel, others, nu=weight)
        return made, lambda chosen: oracles.conditional_gain(kernel, others, weight, chosen)
    made = objectives.mutual_information(kernel, queries, others, eta=weight, form=name)
    return made, lambda chosen: oracles.mutual_information((kernel, queries, others), weight, name, chosen)


def subsets(pool: int):
    return st.lists(st.integers(0, pool - 1), unique=True)


@pytest.mark.parametrize("name", [*FORMS, "conditional"])
@settings(deadline=None)
@given(st.data())
def test_an_objective_is_its_slow_loop(name, data):
    world, weight = data.draw(worlds()), data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    chosen = data.draw(subsets(world[1]))
    fast, slow = build(name, world, weight)
    assert value(fast, chosen) == pytest.approx(slow(chosen), abs=1e-6)


@pytest.mark.parametrize("name", [*FORMS, "conditional"])
@settings(deadline=None)
@given(st.data())
def test_an_objective_is_monotone_and_submodular(name, data):
    world = data.draw(worlds())
    large = data.draw(subsets(world[1]))
    small = [demo for demo in large if data.draw(st.booleans())]
    more = data.draw(st.integers(0, world[1] - 1))
    made, _ = build(name, world)
    at_small, at_large = (value(made, sorted({*those, more})) - value(made, those) for those in (small, large))
    assert at_small >= at_large - 1e-6
    assert at_large >= -1e-6


@settings(deadline=None)
@given(worlds(), st.data())
def test_conditional_gain_is_what_the_choice_adds_to_what_is_learnt(world, data):
    whole, pool = world
    chosen = data.draw(subsets(pool))
    learnt = list(range(pool, len(whole)))
    both = evaluate(whole[:pool], np.array(chosen + learnt)) - evaluate(whole[:pool], np.array(learnt))
    assert value(build("conditional", world)[0], chosen) == pytest.approx(both, abs=1e-6)


@settings(deadline=None)
@given(worlds(), st.data())
def test_saturated_mutual_information_is_what_choice_and_task_share(world, data):
    whole, pool = world
    chosen, task = data.draw(subsets(pool)), list(range(pool, len(whole)))
    apart = [evaluate(whole[:pool], np.array(part, np.int64)) for part in (chosen, task, chosen + task)]
    assert value(build("saturated", world)[0], chosen) == pytest.approx(apart[0] + apart[1] - apart[2], abs=1e-6)


@pytest.mark.parametrize("name", [*FORMS, "conditional"])
@settings(deadline=None)
@given(st.data())
def test_greedy_takes_what_plain_greedy_takes(name, data):
    world = data.draw(worlds())
    made, _ = build(name, world)
    count = data.draw(st.integers(1, world[1]))
    order = oracles.greedy_of(lambda chosen: value(made, chosen), world[1], count)
    choice = choose(made.kernel, counted(world[1], count), made.bonus)
    assert choice.objective.tolist() == pytest.approx([value(made, order[: k + 1]) for k in range(count)], abs=1e-6)


@pytest.mark.parametrize("name", [*FORMS, "conditional"])
def test_sparse_kernels_give_the_same_objective(name):
    generator = np.random.default_rng(3)
    whole = np.maximum(generator.normal(size=(12, 12)), 0).astype(np.float32)
    kernel, queries, others = whole[:9, :9], whole[9:, :9], whole[:9, 9:]
    if name == "conditional":
        both = [objectives.conditional_gain(form(kernel), form(others), nu=1.0) for form in (np.array, thin)]
    else:
        both = [
            objectives.mutual_information(form(kernel), form(queries), form(others), eta=1.0, form=name)
            for form in (np.array, thin)
        ]
    assert isinstance(both[1].kernel, SparseKernel)
    for chosen in ([], [0], [2, 5], list(range(9))):
        assert value(both[0], chosen) == pytest.approx(value(both[1], chosen), abs=1e-6)


def test_a_weight_of_zero_leaves_facility_location():
    whole = np.random.default_rng(0).random((6, 6)).astype(np.float32)
    plain = objectives.facility_location(whole[:4, :4])
    assert np.array_equal(objectives.conditional_gain(whole[:4, :4], whole[:4, 4:], nu=0.0).kernel, plain.kernel)


def test_bad_weights_forms_and_shapes_are_refused():
    kernel = np.ones((3, 3), np.float32)
    with pytest.raises(KernelError, match="unknown form of mutual information 'full'; known: saturated, additive"):
        objectives.mutual_information(kernel, kernel[:1], kernel[:, :1], eta=1.0, form="full")
    with pytest.raises(KernelError, match=r"eta is -1\.0; it must be a number of at least 0"):
        objectives.mutual_information(kernel, kernel[:1], kernel[:, :1], eta=-1.0, form="additive")
    with pytest.raises(KernelError, match="nu is nan; it must be a number of at least 0"):
        objectives.conditional_gain(kernel, kernel[:, :1], nu=float("nan"))
    with pytest.raises(KernelError, match=r"they must be pool x pool, task x pool, pool x task"):
        objectives.mutual_information(kernel, kernel[:2], kernel[:, :1], eta=1.0, form="additive")
    with pytest.raises(KernelError, match="the kernel has 3 targets and that of the learnt examples 2"):
        objectives.conditional_gain(kernel, kernel[:2], nu=1.0)


def test_one_scale_for_two_kernels_where_two_scales_change_the_choice():
    """What is learnt helps little: on one scale it covers almost nothing, on its own scale all of a target."""
    pool = np.float32([[0.9, 0.0], [0.0, 0.8]])
    learnt = np.float32([[0.09], [0.0]])
    together = scale_together([pool, learnt], "minmax", [None, None])
    apart = [scale(pool, "minmax"), scale(learnt, "minmax")]
    choices = [
        choose(objectives.conditional_gain(*pair, nu=1.0).kernel, counted(2, 1)).order.tolist()
        for pair in (together, apart)
    ]
    assert choices == [[0], [1]]


@settings(deadline=None)
@given(worlds(), st.data())
def test_cover_is_the_first_of_the_most_similar_picks(world, data):
    kernel = world[0]
    chosen = np.array(data.draw(subsets(len(kernel))), np.int64)
    for form in (kernel, thin(kernel)):
        by, best = objectives.cover(form, chosen)
        for target, row in enumerate(kernel):
            similar = [float(row[demo]) for demo in chosen]
            largest = max(similar, default=0.0)
            assert best[target] == largest
            assert by[target] == (chosen[similar.index(largest)] if largest > 0 else -1)


def test_an_objective_is_built_by_its_name_from_the_kernels_that_it_needs():
    whole = np.random.default_rng(2).random((9, 9)).astype(np.float32)
    own, queries, others = whole[:6, :6], whole[6:, :6], whole[:6, 6:]
    kernels = objectives.Kernels(own, learnt=others, queries=queries, asked=others)
    made = {
        "conditional_gain": objectives.conditional_gain(own, others, nu=0.5),
        "facility_location": objectives.facility_location(own),
        "mutual_information": objectives.mutual_information(own, queries, others, eta=2.0, form="queries"),
    }
    for name, expected in made.items():
        found = objectives.build(kernels, name, information="queries", eta=2.0, nu=0.5)
        assert (found.kernel.tolist(), found.bonus.tolist()) == (expected.kernel.tolist(), expected.bonus.tolist())


def test_where_nothing_was_learnt_conditional_gain_is_facility_location():
    kernels = objectives.Kernels(np.ones((3, 3), np.float32))
    assert objectives.build(kernels, "conditional_gain").kernel.tolist() == kernels.own.tolist()


def test_unknown_objectives_and_missing_kernels_are_refused():
    kernels = objectives.Kernels(np.ones((3, 3), np.float32))
    with pytest.raises(KernelError, match=r"selection.objective is 'cover'; it must be one of conditional_gain, facil"):
        objectives.build(kernels, "cover")
    with pytest.raises(KernelError, match="mutual information needs the similarities of pool and target task, both"):
        objectives.build(kernels, "mutual_information")


@pytest.mark.parametrize("name", ["facility_location", "conditional_gain"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_target_of_weight_two_counts_as_two_targets(name, sparse):
    generator = np.random.default_rng(0)
    own, learnt = (generator.random((4, count), np.float32) for count in (4, 2))
    if sparse:
        own[own < 0.3] = 0
    pair = (np.vstack([own, own[:1]]), np.vstack([learnt, learnt[:1]]))  # the first target again
    weights = np.array([2.0, 1, 1, 1])
    one = objectives.build(objectives.weigh(objectives.Kernels(pack(own, sparse), learnt), weights), name)
    other = objectives.build(objectives.Kernels(pack(pair[0], sparse), pair[1]), name)
    for chosen in ([0], [1, 3], [0, 1, 2, 3]):
        values = [objectives.cover(each.kernel, np.array(chosen))[1].sum() for each in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def pack(kernel: np.ndarray, sparse: bool):
    """A dense kernel, or its entries above 0."""
    if not sparse:
        return kernel
    targets, demos = np.nonzero(kernel)
    return gather(targets, demos, kernel[targets, demos], kernel.shape)
