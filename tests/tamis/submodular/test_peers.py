"""The functions of apricot and submodlib beside ours, on kernels of the kinds that their own tests have.

Gains are compared pick by pick. Where two demos gain the same, either library may take either; from there on only
gains are compared.
"""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from worlds.toy_kernels import counted

from tamis.submodular import objectives
from tamis.submodular.greedy import choose
from tamis.submodular.kernels import gather

pytestmark = pytest.mark.filterwarnings("ignore")  # names that scipy and numpy took away, in both libraries
SIZES, LARGE, PICKS = (12, 46), 46, 10
WEIGHTS = (0.0, 0.4, 1.0, 1.6)


def draw_points(rows: int, seed: int) -> np.ndarray:
    """Return points in four clusters, as their tests draw them."""
    draw = np.random.default_rng(seed)
    centres = draw.uniform(0.5, 9.0, size=(4, 3))
    return centres[np.arange(rows) % 4] + draw.normal(scale=0.6, size=(rows, 3))


def similar(measure: str, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return similarities of points, none below 0."""
    if measure == "euclidean":
        return (1.0 / (1.0 + np.linalg.norm(ones[:, None] - others[None], axis=2))).astype(np.float32)
    if measure == "correlation":
        ones, others = (each - each.mean(axis=1, keepdims=True) for each in (ones, others))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ones, others)]
    return (np.maximum(unit[0] @ unit[1].T, 0.0) ** 2).astype(np.float32)


def thin(kernel: np.ndarray, count: int, both: bool = False):
    """Return the largest `count` similarities of each target (and of each demo), others absent: ours and scipy's."""
    kept = np.zeros(kernel.shape, dtype=bool)
    np.put_along_axis(kept, np.argsort(-kernel, axis=1, kind="stable")[:, :count], True, axis=1)
    targets, demos = np.nonzero(kept | kept.T if both else kept)
    values = kernel[targets, demos]
    return gather(targets, demos, values, kernel.shape), csr_matrix((values, (targets, demos)), kernel.shape)


def assert_same(choice, picks, gains) -> None:
    """Gains are the same; so are picks, up to the first two demos that gain the same."""
    assert choice.gain == pytest.approx(gains, rel=2e-5, abs=2e-5)
    order = choice.order.tolist()
    differ = next((place for place, (one, other) in enumerate(zip(order, picks, strict=True)) if one != other), None)
    if differ is not None:
        assert choice.gain[differ] == pytest.approx(gains[differ], rel=2e-6)


def ask_submodlib(function, budget: int, optimizer: str = "NaiveGreedy"):
    found = function.maximize(
        budget=budget, optimizer=optimizer, stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return [demo for demo, _ in found], [gain for _, gain in found]


MEASURES = ("cosine", "euclidean", "correlation")


# apricot compiles its gains anew for every choice, which takes seconds: the daily suite has some of its cases.
DAILY = {("cosine", 12, "naive"), ("euclidean", 46, "lazy"), ("correlation", 46, "naive")}
CASES = [
    case if case in DAILY else pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(MEASURES, SIZES, ("naive", "lazy"))
]


@pytest.mark.parametrize(("measure", "rows", "optimizer"), CASES)
def test_facility_location_gains_what_apricot_gains(measure, rows, optimizer):
    from apricot import FacilityLocationSelection

    points = draw_points(rows, seed=rows)
    kernel = similar(measure, points, points)
    theirs = FacilityLocationSelection(PICKS, "precomputed", optimizer=optimizer).fit(kernel.astype(np.float64))
    assert_same(choose(kernel, counted(rows, PICKS)), theirs.ranking.tolist(), theirs.gains)


@pytest.mark.parametrize("measure", ["cosine", *(pytest.param(one, marks=pytest.mark.slow) for one in MEASURES[1:])])
def test_a_sparse_kernel_gains_what_apricot_gains(measure):
    from apricot import FacilityLocationSelection

    points = draw_points(LARGE, seed=LARGE + 1)
    ours, theirs = thin(similar(measure, points, points), 6)
    found = FacilityLocationSelection(PICKS, "precomputed", optimizer="naive").fit(
        theirs.T.tocsr().astype(float)
    )  # its LARGE are demos
    assert_same(choose(ours, counted(LARGE, PICKS)), found.ranking.tolist(), found.gains)


@pytest.mark.parametrize(
    ("measure", "rows", "optimizer"), list(itertools.product(MEASURES, SIZES, ("NaiveGreedy", "LazyGreedy")))
)
def test_facility_location_gains_what_submodlib_gains(measure, rows, optimizer):
    from submodlib import FacilityLocationFunction

    points = draw_points(rows, seed=rows + 2)
    kernel = similar(measure, points, points)
    theirs = FacilityLocationFunction(n=rows, mode="dense", sijs=kernel, separate_rep=False)
    assert_same(choose(kernel, counted(rows, PICKS)), *ask_submodlib(theirs, PICKS, optimizer))


@pytest.mark.parametrize(("measure", "rows"), list(itertools.product(MEASURES[:2], SIZES)))
def test_a_sparse_kernel_gains_what_submodlib_gains(measure, rows):
    from submodlib import FacilityLocationFunction

    points = draw_points(rows, seed=rows + 11)
    # Symmetric, since theirs reads rows and columns of a sparse kernel alike.
    ours, theirs = thin(similar(measure, points, points), 6, both=True)
    found = FacilityLocationFunction(n=rows, mode="sparse", sijs=theirs, num_neighbors=6)
    assert_same(choose(ours, counted(rows, PICKS)), *ask_submodlib(found, PICKS))


@pytest.mark.parametrize(("measure", "rows"), list(itertools.product(MEASURES, SIZES)))
def test_targets_that_are_no_demos_gain_what_submodlib_gains(measure, rows):
    from submodlib import FacilityLocationFunction

    points, others = draw_points(rows, seed=rows + 3), draw_points(7, seed=rows + 4)
    kernel = similar(measure, others, points)
    theirs = FacilityLocationFunction(n=rows, mode="dense", sijs=kernel, separate_rep=True, n_rep=7)
    assert_same(choose(kernel, counted(rows, PICKS)), *ask_submodlib(theirs, PICKS))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("measure", MEASURES[:2])
def test_conditional_gain_is_what_submodlib_gains(measure, weight):
    from submodlib import FacilityLocationConditionalGainFunction

    points, learnt = draw_points(24, seed=5), draw_points(6, seed=6)
    own, known = similar(measure, points, points), similar(measure, points, learnt)
    theirs = FacilityLocationConditionalGainFunction(
        n=24, num_privates=6, data_sijs=own, private_sijs=known, privacyHardness=weight
    )
    made = objectives.conditional_gain(own, known, nu=weight)
    assert_same(choose(made.kernel, counted(24, PICKS), made.bonus), *ask_submodlib(theirs, PICKS))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("measure", MEASURES[:2])
def test_saturated_mutual_information_is_what_submodlib_gains(measure, weight):
    from submodlib import FacilityLocationMutualInformationFunction

    points, task = draw_points(24, seed=7), draw_points(6, seed=8)
    own, asked = similar(measure, points, points), similar(measure, points, task)
    theirs = FacilityLocationMutualInformationFunction(
        n=24, num_queries=6, data_sijs=own, query_sijs=asked, magnificationEta=weight
    )
    made = objectives.mutual_information(own, asked.T, asked, eta=weight, form="saturated")
    assert_same(choose(made.kernel, counted(24, PICKS), made.bonus), *ask_submodlib(theirs, PICKS))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("measure", MEASURES[:2])
def test_mutual_information_over_queries_is_what_submodlib_gains(measure, weight):
    from submodlib import FacilityLocationVariantMutualInformationFunction

    points, task = draw_points(24, seed=9), draw_points(6, seed=10)
    own, asked = similar(measure, points, points), similar(measure, points, task)
    theirs = FacilityLocationVariantMutualInformationFunction(
        n=24, num_queries=6, query_sijs=asked, queryDiversityEta=weight
    )
    made = objectives.mutual_information(own, asked.T, asked, eta=weight, form="queries")
    assert_same(choose(made.kernel, counted(24, PICKS), made.bonus), *ask_submodlib(theirs, PICKS))
