"""The interaction of gradients with a direction: the direction u, the scores of parameters, and what a run records.

Symbols (DualSFT, arXiv 2605.06166): v_new = gradient on the target task, v_prior = gradient of what is preserved, c =
diagonal curvature, eta = learning rate, G = sum_n g_n; M[n, k] = u_k g_nk, never stored; phi_param[k] = sum_n M[n, k] =
u_k G_k; phi_data[n] = sum_k M[n, k] = <u, g_n>. A dict holds a tensor per parameter name; tensors are taken one at a
time, so mappings may load them when asked.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CURVATURES = ("raw", "corrected")
PIECE = 1 << 22  # entries that are taken to float64 at once


@dataclass(frozen=True)
class Terms:
    """What the direction is made of."""

    v_new: Mapping[str, Tensor]
    v_prior: Mapping[str, Tensor]
    lambda_new: float = 1.0
    lambda_prior: float = 0.2
    c: Mapping[str, Tensor] | None = None  # None: first order
    eta: float | None = None  # learning rate, above 0; wanted with c


def correct_curvature(
    exp_avg_sq: Mapping[str, Tensor], form: str = "raw", *, beta2: float = 0.999, steps: int = 1
) -> dict[str, Tensor]:
    """Return c, AdamW's second moments of the warm-up as diagonal curvature, float32 or wider.

    raw: exp_avg_sq; corrected: exp_avg_sq / (1 - beta2^steps). **Source**: DualSFT's published code (ChnIRuI/DualSFT @
    c8944ce) takes it raw; the correction is Adam's (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1).

    Args:
        exp_avg_sq: by parameter name, none below 0.
        form: `raw` or `corrected`.
        beta2: of AdamW, in (0, 1).
        steps: that AdamW made, at least 1.

    Raises:
        ValueError: unknown form; steps below 1; a negative entry, with its parameter.

    >>> correct_curvature({"w": torch.tensor([0.5])}, "corrected", beta2=0.5, steps=1)["w"].tolist()
    [1.0]
    """
    if form not in CURVATURES:
        raise ValueError(f"unknown curvature {form!r}; known: {', '.join(CURVATURES)}")
    if steps < 1 or not 0 < beta2 < 1:
        raise ValueError(f"steps is {steps} and beta2 is {beta2}; steps is at least 1, beta2 between 0 and 1")
    factor = 1.0 / (1.0 - beta2**steps) if form == "corrected" else 1.0
    found = {}
    for name, tensor in exp_avg_sq.items():
        if not bool((tensor >= 0).all()):
            raise ValueError(f"{name}: {int((~(tensor >= 0)).sum())} of {tensor.numel()} second moments are not >= 0")
        found[name] = _wide(tensor) * factor
    return found


def direction(terms: Terms, G: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return u / eta = lambda_new v_new + lambda_prior v_prior - 0.5 eta (c o G), by parameter name.

    The last term only where `terms.c` is given (second order). **Source**: DualSFT, arXiv 2605.06166. Differs: eta is
    factored out, in float32 or wider; the published float16 u underflows to 0 wherever |v| is below 1.5e-3.

    Args:
        terms: v_new, v_prior and their weights; c and eta for second order.
        G: sum of the pool's gradients; wanted with c.

    Raises:
        ValueError: parameters that differ between terms; c without G or eta; eta not above 0; an entry not finite.
    """
    parts = _parts(terms, G)
    found = {}
    for name in terms.v_new:
        u = _first(terms, name)
        if terms.c is not None:
            u.sub_(_second(terms, parts[-1], name))
        if not u.isfinite().all():
            raise ValueError(f"{name}: {int((~u.isfinite()).sum())} of {u.numel()} entries of u are not finite")
        found[name] = u
    return found


def _parts(terms: Terms, G: Mapping[str, Tensor] | None) -> list[Mapping[str, Tensor]]:
    """Return the mappings that a direction is made of, checked against each other; G is the last."""
    if terms.c is not None and (G is None or terms.eta is None or not terms.eta > 0):
        raise ValueError(f"second order needs G and an eta above 0; G is {'given' if G else 'absent'}, eta {terms.eta}")
    parts = [terms.v_new, terms.v_prior, *([] if terms.c is None else [terms.c, G])]
    for part in parts[1:]:
        lacking = sorted(set(terms.v_new) ^ set(part))
        if lacking:
            raise ValueError(f"{len(lacking)} parameters are in one term and not in another, first {lacking[:3]}")
    return parts


def _first(terms: Terms, name: str) -> Tensor:
    return _wide(terms.v_new[name]) * terms.lambda_new + _wide(terms.v_prior[name]) * terms.lambda_prior


def _second(terms: Terms, G: Mapping[str, Tensor], name: str) -> Tensor:
    return _wide(terms.c[name]) * G[name] * (0.5 * terms.eta)


def score_parameters(u: Mapping[str, Tensor], G: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return phi_param[k] = u_k G_k, by parameter name, float32 or wider; above 0: descent on k lowers the losses.

    >>> score_parameters({"w": torch.tensor([2.0])}, {"w": torch.tensor([-3.0])})["w"].tolist()
    [-6.0]
    """
    lacking = sorted(set(u) ^ set(G))
    if lacking:
        raise ValueError(f"{len(lacking)} parameters are in u or G only, first {lacking[:3]}")
    return {name: _wide(tensor) * G[name] for name, tensor in u.items()}


def diagnose(
    terms: Terms,
    u: Mapping[str, Tensor],
    G: Mapping[str, Tensor],
    phi_data: Float[Tensor, " example"],
    phi_param: Mapping[str, Tensor],
    *,
    threshold_param: float | None = None,
    threshold_data: float | None = None,
) -> dict[str, float]:
    """Return what every run records: the law of rows and columns, zeros, ties, norms, and the second-order share.

    Law: sum_n phi_data == sum_k phi_param == <u, G>; `law_residual` = the largest difference of two of these sums over
    sum_n |phi_data[n]| (or the largest of them): about 1e-6 in float32, 1e-14 in float64. Sums are float64. Cost: a
    few passes over each tensor.

    Args:
        terms: that u was made of.
        u: direction, as `direction` gave it (eta factored out).
        G: sum of the pool's gradients.
        phi_data: by example.
        phi_param: by parameter name.
        threshold_param: |phi_param| of the last entry that a mask holds; None: no ties are counted.
        threshold_data: phi_data of the last example that is chosen; None: no ties are counted.

    Returns:
        `sum_phi_data`, `sum_phi_param`, `inner_u_G`, `law_residual`; `zeros_u`, `zeros_phi_param`, `zeros_phi_data`:
        shares of exact zeros; `ties_param`, `ties_data`: shares at the threshold (0: one entry alone);
        `second_over_first`: |second-order term| / |first-order term| in norm; `norm_v_new`, `norm_v_prior`, `norm_G`,
        `norm_u` (and `norm_c`); `cosine_v_new_v_prior` (0 where one of them is 0).
    """
    rows, columns, inner = float(phi_data.sum(dtype=torch.float64)), _total(phi_param), _inner(u, G)
    sums = (rows, columns, inner)
    found = {"sum_phi_data": rows, "sum_phi_param": columns, "inner_u_G": inner}
    size = max(float(phi_data.abs().sum(dtype=torch.float64)), *map(abs, sums))
    found["law_residual"] = _ratio(max(sums) - min(sums), size)
    data = {"phi_data": phi_data}
    found |= {"zeros_u": _share(u, 0.0), "zeros_phi_param": _share(phi_param, 0.0), "zeros_phi_data": _share(data, 0.0)}
    if threshold_param is not None:
        found["ties_param"] = _ties(phi_param, threshold_param, -threshold_param)
    if threshold_data is not None:
        found["ties_data"] = _ties(data, threshold_data)
    vectors = {"v_new": terms.v_new, "v_prior": terms.v_prior, "G": G, "u": u}
    vectors |= {} if terms.c is None else {"c": terms.c}
    norms = {f"norm_{name}": math.sqrt(_inner(vector, vector)) for name, vector in vectors.items()}
    lengths = norms["norm_v_new"] * norms["norm_v_prior"]
    cosine = _ratio(_inner(terms.v_new, terms.v_prior), lengths)
    return {**found, **norms, "cosine_v_new_v_prior": cosine, "second_over_first": compare_orders(terms, G)}


def compare_orders(terms: Terms, G: Mapping[str, Tensor]) -> float:
    """Return |0.5 eta (c o G)| / |lambda_new v_new + lambda_prior v_prior|, in norm; 0 at first order."""
    if terms.c is None:
        return 0.0
    _parts(terms, G)
    first = second = 0.0
    for name in terms.v_new:
        first += _square(_first(terms, name))
        second += _square(_second(terms, G, name))
    return _ratio(math.sqrt(second), math.sqrt(first))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(torch.float32, tensor.dtype))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    return (piece.double() for piece in tensor.reshape(-1).split(PIECE))


def _total(tensors: Mapping[str, Tensor]) -> float:
    return sum(float(piece.sum()) for tensor in tensors.values() for piece in _pieces(tensor))


def _square(tensor: Tensor) -> float:
    return sum(float(piece.square().sum()) for piece in _pieces(tensor))


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return <one, other> in float64."""
    pairs = ((one[name], other[name]) for name in one)
    return sum(float(a @ b) for left, right in pairs for a, b in zip(_pieces(left), _pieces(right), strict=True))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share(tensors: Mapping[str, Tensor], *values: float) -> float:
    """Return the share of entries that are equal to one of some values."""
    equal = sum(int((tensor == value).sum()) for tensor in tensors.values() for value in {*values})
    return equal / sum(tensor.numel() for tensor in tensors.values())


def _ties(tensors: Mapping[str, Tensor], *thresholds: float) -> float:
    """Return the share of entries at a threshold, 0 where one entry stands there alone."""
    share, entries = _share(tensors, *thresholds), sum(tensor.numel() for tensor in tensors.values())
    return 0.0 if round(share * entries) <= 1 else share
