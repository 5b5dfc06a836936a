"""DELIFT's objectives, each as facility location on a changed kernel plus a bonus per demo.

Symbols: i in V targets (rows), j in V demos (columns), `s_ij >= 0` similarity, A the chosen demos; Q the target task's
examples, P what has been learnt already; eta, nu >= 0 weights. Every objective is monotone and submodular, so greedy
reaches 1 - 1/e of the best.

    f(A) = sum_i max_{j in A} kernel_ij + sum_{j in A} bonus_j

Kernels that meet in one objective must be scaled together (`kernels.scale_together`).
"""

from dataclasses import dataclass, replace
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int64

from tamis.submodular.kernels import Kernel, KernelError, Other, SparseKernel, list_targets

OBJECTIVES = ("conditional_gain", "facility_location", "mutual_information")
FORMS = ("saturated", "additive", "queries")


@dataclass(frozen=True)
class Objective:
    """A monotone submodular function of chosen demos."""

    kernel: Kernel
    bonus: Float64[np.ndarray, " demo"]


@dataclass(frozen=True)
class Kernels:
    """Similarities, all on one scale; what the objective does not need is None."""

    own: Kernel  # s_ij, targets of the pool by demos of the pool
    learnt: Other | None = None  # s_ip, targets of the pool by demos already learnt
    queries: Other | None = None  # s_qj, targets of the task by demos of the pool
    asked: Other | None = None  # s_iq, targets of the pool by demos of the task


def build(
    kernels: Kernels, objective: str, *, information: str = "saturated", eta: float = 1.0, nu: float = 1.0
) -> Objective:
    """Return the objective of a name; conditional gain is facility location where nothing has been learnt.

    Args:
        kernels: those that the objective needs; others are not looked at.
        objective: one of `OBJECTIVES`.
        information, eta: form and weight of mutual information.
        nu: weight of what has been learnt in conditional gain.

    Raises:
        KernelError: unknown name or form, mutual information without a target task, a negative weight.
    """
    if objective not in OBJECTIVES:
        raise KernelError(f"selection.objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
    if objective == "mutual_information":
        if kernels.queries is None or kernels.asked is None:
            raise KernelError("mutual information needs the similarities of pool and target task, both ways")
        return mutual_information(kernels.own, kernels.queries, kernels.asked, eta=eta, form=information)
    if objective == "conditional_gain" and kernels.learnt is not None:
        return conditional_gain(kernels.own, kernels.learnt, nu=nu)
    return facility_location(kernels.own)


def facility_location(kernel: Kernel) -> Objective:
    """Return f(A) = sum_i max_{j in A} s_ij: every target has a chosen demo that helps it.

    **Source**: DELIFT, arXiv 2411.04425v3, section 3.2 (instruction tuning).
    """
    return Objective(kernel, np.zeros(kernel.shape[1]))


def mutual_information(kernel: Kernel, queries: Other, asked: Other, *, eta: float, form: str) -> Objective:
    """Return the facility-location mutual information of the choice and a target task.

    saturated: f(A) = sum_{i in V} min( max_{j in A} s_ij, eta * max_{q in Q} s_iq )
    additive:  f(A) = sum_{i in V} max_{j in A} s_ij + eta * sum_{j in A} max_{q in Q} s_qj
    queries:   f(A) = sum_{q in Q} max_{j in A} s_qj + eta * sum_{j in A} max_{q in Q} s_qj

    **Source**: additive DELIFT (arXiv 2411.04425v3, section 3.2, task-specific tuning); saturated and queries
    FacilityLocationMutualInformation and FacilityLocationVariantMutualInformation of submodlib (Iyer et al. 2021, arXiv
    2006.15412).

    Args:
        kernel: s_ij, targets of the pool by demos of the pool.
        queries: s_qj, targets of the task by demos of the pool.
        asked: s_iq, targets of the pool by demos of the task.
        eta: how much the task weighs, >= 0.
        form: saturated, additive or queries.

    Raises:
        KernelError: unknown form, no query, a negative eta, or kernels of other shapes.
    """
    if form not in FORMS:
        raise KernelError(f"unknown form of mutual information {form!r}; known: {', '.join(FORMS)}")
    _check_weight("eta", eta)
    wanted = (queries.shape[0], kernel.shape[1]), (kernel.shape[0], queries.shape[0])
    if not queries.shape[0] or (queries.shape, asked.shape) != wanted:
        raise KernelError(
            f"the kernels of pool and task have shapes {kernel.shape}, {queries.shape}, {asked.shape}; they must be "
            "pool x pool, task x pool, pool x task, with at least one row of the task"
        )
    if form == "saturated":
        return facility_location(cut_above(kernel, eta * best_per_target(asked).astype(np.float64)))
    bonus = eta * best_per_demo(queries).astype(np.float64)
    return Objective(kernel if form == "additive" else queries, bonus)


def conditional_gain(kernel: Kernel, learnt: Other, *, nu: float) -> Objective:
    """Return f(A) = sum_i max( max_{j in A} s_ij - nu * max_{p in P} s_ip, 0 ): what P does not yet cover.

    **Source**: DELIFT, arXiv 2411.04425v3, section 3.2 (continual tuning); submodlib's
    FacilityLocationConditionalGain (arXiv 2006.15412).

    Args:
        kernel: s_ij, targets of the pool by demos of the pool.
        learnt: s_ip, targets of the pool by demos already learnt; none gives plain facility location.
        nu: how much what is learnt weighs, >= 0.

    Raises:
        KernelError: a negative nu, or kernels of other targets.
    """
    _check_weight("nu", nu)
    if learnt.shape[0] != kernel.shape[0]:
        raise KernelError(
            f"the kernel has {kernel.shape[0]} targets and that of the learnt examples {learnt.shape[0]}; "
            "both must have the pool's"
        )
    return facility_location(subtract(kernel, nu * best_per_target(learnt).astype(np.float64)))


def best_per_target(kernel: Kernel) -> Float32[np.ndarray, " target"]:
    """Return max_j s_ij of each target, 0 where there is no pair.

    >>> best_per_target(np.float32([[1, 3], [2, 0]]))
    array([3., 2.], dtype=float32)
    """
    if not isinstance(kernel, SparseKernel):
        return kernel.max(axis=1, initial=0.0)
    best = np.zeros(kernel.shape[0], np.float32)
    np.maximum.at(best, list_targets(kernel), kernel.values)
    return best


def best_per_demo(kernel: Kernel) -> Float32[np.ndarray, " demo"]:
    """Return max_i s_ij of each demo, 0 where there is no pair.

    >>> best_per_demo(np.float32([[1, 3], [2, 0]]))
    array([2., 3.], dtype=float32)
    """
    if not isinstance(kernel, SparseKernel):
        return kernel.max(axis=0, initial=0.0)
    best = np.zeros(kernel.shape[1], np.float32)
    np.maximum.at(best, kernel.indices, kernel.values)
    return best


def cover(
    kernel: Kernel, chosen: Int64[np.ndarray, " pick"]
) -> tuple[Int64[np.ndarray, " target"], Float32[np.ndarray, " target"]]:
    """Return the chosen demo that is most similar to each target, and its similarity.

    by_i = argmax_{j in chosen} s_ij, the first pick of equal ones; -1 where that similarity is 0 or nothing is chosen

    Args:
        kernel: similarities >= 0.
        chosen: demos in the order of choice, each once.

    >>> cover(np.float32([[1, 3], [2, 2], [0, 0]]), np.array([1, 0]))
    (array([ 1,  1, -1]), array([3., 2., 0.], dtype=float32))
    """
    if isinstance(kernel, SparseKernel):
        rank = np.full(kernel.shape[1], -1)
        rank[chosen] = np.arange(len(chosen))
        return _cover_sparse(kernel.indptr, kernel.indices, kernel.values, rank)
    if not len(chosen):
        return np.full(kernel.shape[0], -1), np.zeros(kernel.shape[0], np.float32)
    columns = kernel[:, chosen]
    best = columns.max(axis=1)
    return np.where(best > 0, chosen[columns.argmax(axis=1)], -1), best


def cut_above(kernel: Kernel, ceiling: Float64[np.ndarray, " target"]) -> Kernel:
    """Return min(s_ij, ceiling_i).

    >>> cut_above(np.float32([[1, 3], [2, 0]]), np.array([2.0, 1.0])).tolist()
    [[1.0, 2.0], [1.0, 0.0]]
    """
    top = ceiling.astype(np.float32)
    if not isinstance(kernel, SparseKernel):
        return np.minimum(kernel, top[:, None])
    return replace(kernel, values=np.minimum(kernel.values, top[list_targets(kernel)]))


def subtract(kernel: Kernel, floor: Float64[np.ndarray, " target"]) -> Kernel:
    """Return max(s_ij - floor_i, 0), computed in float64.

    >>> subtract(np.float32([[1, 3], [2, 0]]), np.array([2.0, 1.0])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if not isinstance(kernel, SparseKernel):
        return np.maximum(kernel - floor[:, None], 0).astype(np.float32)
    return replace(kernel, values=np.maximum(kernel.values - floor[list_targets(kernel)], 0).astype(np.float32))


def weigh(kernels: Kernels, weights: Float64[np.ndarray, " target"]) -> Kernels:
    """Return similarities whose targets of the pool count so many times each: w_i * s_ij, w_i * s_ip and w_i * s_iq.

    Every objective is then a sum over the pool's targets with these weights: f(A) = sum_i w_i * (...).

    Args:
        kernels: similarities.
        weights: of the targets of the pool, at least 0.

    >>> weigh(Kernels(np.float32([[1, 3], [2, 0]])), np.array([2.0, 1.0])).own.tolist()
    [[2.0, 6.0], [2.0, 0.0]]
    """
    return replace(
        kernels,
        own=_weigh(kernels.own, weights),
        **{
            name: _weigh(kernel, weights)
            for name in ("learnt", "asked")
            if (kernel := getattr(kernels, name)) is not None
        },
    )


def _weigh(kernel: Other, weights: Float64[np.ndarray, " target"]) -> Other:
    times = weights.astype(np.float32)
    if not isinstance(kernel, SparseKernel):
        return kernel * times[:, None]
    return replace(kernel, values=kernel.values * times[list_targets(kernel)])


@numba.njit(cache=True, nogil=True)
@no_type_check
def _cover_sparse(indptr, indices, values, rank):
    """Return what `cover` does, of demos with a rank of at least 0: their place among the chosen ones."""
    by, best = np.full(len(indptr) - 1, -1), np.zeros(len(indptr) - 1, np.float32)
    for i in range(len(by)):
        for entry in range(indptr[i], indptr[i + 1]):
            demo, value = indices[entry], values[entry]
            if rank[demo] < 0 or value <= 0 or value < best[i]:
                continue
            if value > best[i] or rank[demo] < rank[by[i]]:
                by[i], best[i] = demo, value
    return by, best


def _check_weight(name: str, weight: float) -> None:
    if not 0 <= weight < np.inf:
        raise KernelError(f"{name} is {weight}; it must be a number of at least 0")
