import math

import numpy as np
import pytest

from tamis.submodular.kernels import KernelError, SparseKernel, gather, repeat, scale, take

NEGATIVE = np.float32([[1, -2, 3], [-4, 5, -6], [7, -8, 9]])


def utilities(targets: int, demos: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(targets, demos)).astype(np.float32)


def thin(kernel: np.ndarray) -> SparseKernel:
    """The same kernel, sparse: its first column is absent."""
    targets, demos = np.divmod(np.arange(kernel.size), kernel.shape[1])
    kept = demos > 0
    return gather(targets[kept], demos[kept], kernel.ravel()[kept], kernel.shape)


def test_pairs_in_any_order_gather_to_the_same_kernel():
    kernel = utilities(6, 5)
    targets, demos = np.divmod(np.random.default_rng(0).permutation(30), 5)
    assert gather(targets, demos, kernel[targets, demos], (6, 5)).tolist() == kernel.tolist()
    some = gather(targets[:20], demos[:20], kernel[targets, demos][:20], (6, 5))
    held = np.zeros((6, 5), np.float32)
    held[np.repeat(np.arange(6), np.diff(some.indptr)), some.indices] = some.values
    assert held[targets[:20], demos[:20]].tolist() == kernel[targets, demos][:20].tolist()
    assert np.count_nonzero(held) == np.count_nonzero(kernel[targets, demos][:20])


def test_a_pair_that_comes_twice_is_named():
    twice = np.array([1, 0, 1]), np.array([0, 1, 0])
    with pytest.raises(KernelError, match=r"1 of 3 pairs come twice, first pairs \(target, demo\) \[\(1, 0\)\]; keep"):
        gather(*twice, np.float32([1, 2, 3]), (2, 2))


def test_relu_keeps_what_is_above_zero():
    assert scale(np.float32([[-1, 2], [0, -3]]), "relu").tolist() == [[0, 2], [0, 0]]


def test_minmax_runs_from_zero_to_one():
    utility = utilities(4, 4)
    scaled = scale(utility, "minmax")
    assert (scaled.min(), scaled.max()) == (0, 1)
    slow = [[(u - utility.min()) / (utility.max() - utility.min()) for u in row] for row in utility]
    assert scaled == pytest.approx(np.array(slow))


def test_minmax_of_a_sparse_kernel_leaves_absent_pairs_at_zero():
    sparse = gather(np.array([0, 1, 1]), np.array([1, 0, 1]), np.float32([-2, 0, 2]), (2, 2))
    scaled = scale(sparse, "minmax")
    assert scaled.values.tolist() == [0, 0.5, 1]
    assert scaled.indices.tolist() == sparse.indices.tolist()


def test_none_leaves_similarities_as_they_are():
    kernel = np.abs(utilities(4, 4))
    assert scale(kernel, "none") is kernel


def test_a_constant_kernel_cannot_be_scaled_by_minmax():
    with pytest.raises(
        KernelError, match=r"all 4 utilities are 0.5, a constant kernel .* set selection.scaling to relu"
    ):
        scale(np.full((2, 2), 0.5, np.float32), "minmax")


def test_an_unknown_scaling_is_named():
    with pytest.raises(KernelError, match=r"selection.scaling is 'softmax'; it must be one of relu, minmax, none"):
        scale(np.ones((2, 2), np.float32), "softmax")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            np.asarray,
            r"4 of 9 similarities are negative, first pairs \(target, demo\) \[\(0, 1\), \(1, 0\), \(1, 2\)\]; set",
        ),
        (
            thin,
            r"3 of 6 similarities are negative, first pairs \(target, demo\) \[\(0, 1\), \(1, 2\), \(2, 1\)\]; set sel",
        ),
    ],
)
def test_negative_similarities_are_counted_and_named(form, text):
    with pytest.raises(KernelError, match=text):
        scale(form(NEGATIVE), "none")


@pytest.mark.parametrize("scaling", ["relu", "minmax", "none"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("form", "pairs"), [(np.asarray, 9), (thin, 6)])
def test_a_value_that_is_not_finite_is_named(form, pairs, scaling, value):
    kernel = np.ones((3, 3), np.float32)
    kernel[2, 1] = value
    names = (["p", "q", "r"], ["x", "y", "z"])
    text = rf"1 of {pairs} utilities are not finite, first pairs \(target, demo\) \[\('r', 'y'\)\]; score these pairs"
    with pytest.raises(KernelError, match=text):
        scale(form(kernel), scaling, names)


def test_the_same_pairs_give_the_same_bits_in_any_order():
    kernel = utilities(7, 5)
    targets, demos = np.divmod(np.random.default_rng(1).permutation(35)[:20], 5)
    again = np.argsort(demos, kind="stable")
    first = gather(targets, demos, kernel[targets, demos], (7, 5))
    other = gather(targets[again], demos[again], kernel[targets, demos][again], (7, 5))
    assert all(
        getattr(other, name).tobytes() == getattr(first, name).tobytes() for name in ("indptr", "indices", "values")
    )


@pytest.mark.parametrize("scaling", ["relu", "minmax"])
def test_scaling_keeps_the_order_of_utilities(scaling):
    utility = utilities(6, 6)
    rising = scale(utility, scaling).ravel()[np.argsort(utility.ravel())]
    assert (np.diff(rising) >= 0).all()
    assert rising[0] == 0


@pytest.mark.parametrize("targets", [None, [3, 0, 5]])
@pytest.mark.parametrize("demos", [None, [4, 1, 0]])
def test_some_targets_and_demos_are_taken_in_the_order_given(targets, demos):
    kernel = utilities(6, 5)
    slow = [[kernel[i, j] for j in demos or range(5)] for i in targets or range(6)]
    targets, demos = (None if places is None else np.array(places) for places in (targets, demos))
    assert take(kernel, targets, demos).tolist() == slow
    held, some = np.zeros((len(slow), len(slow[0])), np.float32), take(thin(kernel), targets, demos)
    held[np.repeat(np.arange(len(slow)), np.diff(some.indptr)), some.indices] = some.values
    absent = np.array(range(5) if demos is None else demos) == 0  # the first column, which the sparse kernel lacks
    assert held.tolist() == np.where(absent, 0, slow).tolist()
    assert some.shape == held.shape


def test_no_target_and_no_demo_can_be_taken():
    nothing = np.empty(0, np.int64)
    for kernel in (utilities(3, 3), thin(utilities(3, 3))):
        assert take(kernel, nothing, None).shape == (0, 3)
        assert take(kernel, None, nothing).shape == (3, 0)


@pytest.mark.parametrize("targets", [None, [3, 0, 3, 5]])
@pytest.mark.parametrize("demos", [None, [4, 1, 4, 0, 1]])
def test_targets_and_demos_stand_as_often_as_they_are_given(targets, demos):
    targets, demos = (None if places is None else np.array(places) for places in (targets, demos))
    for kernel in (utilities(6, 5), thin(utilities(6, 5))):
        whole = take(kernel, np.arange(6), None) if isinstance(kernel, np.ndarray) else fill(kernel)
        slow = whole[targets if targets is not None else np.arange(6)]
        slow = slow[:, demos if demos is not None else np.arange(5)]
        found = repeat(kernel, targets, demos)
        assert found.shape == slow.shape
        if not isinstance(found, np.ndarray):
            rising = [np.diff(found.indices[a:b]) > 0 for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)]
            assert all(each.all() for each in rising)
            found = fill(found)
        assert found.tolist() == slow.tolist()


def fill(kernel: SparseKernel) -> np.ndarray:
    """The same kernel, dense: absent pairs are 0."""
    held = np.zeros(kernel.shape, np.float32)
    held[np.repeat(np.arange(kernel.shape[0]), np.diff(kernel.indptr)), kernel.indices] = kernel.values
    return held
