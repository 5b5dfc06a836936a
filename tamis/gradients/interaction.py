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
SQUARES = ("v_new", "v_prior", "G", "u", "c", "first", "second")
SUMS = ("entries", "phi_param", "u_G", "zeros_u", "zeros_phi_param", "new_prior", *SQUARES)


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
        _refuse_others(terms.v_new, part, "in one term and not in another")
    return parts


def _refuse_others(one: Mapping[str, Tensor], other: Mapping[str, Tensor], where: str) -> None:
    lacking = sorted(set(one) ^ set(other))
    if lacking:
        raise ValueError(f"{len(lacking)} parameters are {where}, first {lacking[:3]}")


def _first(terms: Terms, name: str) -> Tensor:
    return _wide(terms.v_new[name]) * terms.lambda_new + _wide(terms.v_prior[name]) * terms.lambda_prior


def _second(terms: Terms, G: Mapping[str, Tensor], name: str) -> Tensor:
    return _wide(terms.c[name]) * G[name] * (0.5 * terms.eta)


def score_parameters(u: Mapping[str, Tensor], G: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return phi_param[k] = u_k G_k, by parameter name, float32 or wider; above 0: descent on k lowers the losses.

    >>> score_parameters({"w": torch.tensor([2.0])}, {"w": torch.tensor([-3.0])})["w"].tolist()
    [-6.0]
    """
    _refuse_others(u, G, "in u or G only")
    return {name: _wide(tensor) * G[name] for name, tensor in u.items()}


def measure(terms: Terms, u: Mapping[str, Tensor], G: Mapping[str, Tensor]) -> dict[str, float]:
    """Return sums over parameters that `diagnose` needs, in float64; those of groups of parameters add up.

    Args:
        terms: that u was made of, of these parameters.
        u: direction, as `direction` gave it (eta factored out).
        G: sum of the pool's gradients.

    Returns:
        `entries`; `phi_param` and `u_G`: their sums; `zeros_u`, `zeros_phi_param`: counts of exact zeros; `v_new`,
        `v_prior`, `G`, `u`, `c`, `first`, `second`: squared norms, of the last two of both terms of u; `new_prior`:
        <v_new, v_prior>.

    Raises:
        ValueError: parameters that differ between terms, u and G.
    """
    _refuse_others(u, G, "in u or G only")
    _refuse_others(u, _parts(terms, G)[0], "in u or its terms only")
    found = dict.fromkeys(SUMS, 0.0)
    for name in u:
        (scores,) = score_parameters({name: u[name]}, {name: G[name]}).values()
        v_new, v_prior = terms.v_new[name], terms.v_prior[name]
        found["entries"] += scores.numel()
        found["phi_param"] += sum(float(piece.sum()) for piece in _pieces(scores))
        found["zeros_u"] += int((u[name] == 0).sum())
        found["zeros_phi_param"] += int((scores == 0).sum())
        found["u_G"] += _dot(u[name], G[name])
        found["new_prior"] += _dot(v_new, v_prior)
        squared = {"v_new": v_new, "v_prior": v_prior, "G": G[name], "u": u[name], "first": _first(terms, name)}
        if terms.c is not None:
            squared |= {"c": terms.c[name], "second": _second(terms, G, name)}
        for key, tensor in squared.items():
            found[key] += _dot(tensor, tensor)
    return found


def diagnose(sums: Mapping[str, float], phi_data: Float[Tensor, " example"] | None) -> dict[str, float | None]:
    """Return what every run records: the law of rows and columns, zeros, norms, and the second-order share.

    Law: sum_n phi_data == sum_k phi_param == <u, G>; `law_residual` = the largest difference of two of these sums over
    sum_n |phi_data[n]| (or the largest of them): about 1e-6 in float32, 1e-14 in float64.

    Args:
        sums: of `measure`, over all parameters.
        phi_data: by example; None: rows were not scored, so the law is that of the other two sums.

    Returns:
        `sum_phi_data`, `sum_phi_param`, `inner_u_G`, `law_residual`; `zeros_u`, `zeros_phi_param`, `zeros_phi_data`:
        shares of exact zeros (the last, as the first sum, None where rows were not scored); `second_over_first`:
        |second-order term| / |first-order term| in norm, 0 at first order; `norm_v_new`, `norm_v_prior`, `norm_G`,
        `norm_u`, `norm_c` (0 at first order); `cosine_v_new_v_prior` (0 where one of them is 0).
    """
    laws = [sums["phi_param"], sums["u_G"]]
    known = torch.empty(0) if phi_data is None else phi_data
    if phi_data is not None:
        laws.append(float(phi_data.sum(dtype=torch.float64)))
    found: dict[str, float | None] = {"sum_phi_data": laws[2] if len(laws) > 2 else None}
    found |= {"sum_phi_param": laws[0], "inner_u_G": laws[1]}
    size = max(float(known.abs().sum(dtype=torch.float64)), *map(abs, laws))
    found["law_residual"] = _ratio(max(laws) - min(laws), size)
    found |= {name: _ratio(sums[name], sums["entries"]) for name in ("zeros_u", "zeros_phi_param")}
    found["zeros_phi_data"] = None if phi_data is None else _ratio(float((known == 0).sum()), float(len(known)))
    norms = {f"norm_{name}": math.sqrt(sums[name]) for name in ("v_new", "v_prior", "G", "u", "c")}
    cosine = _ratio(sums["new_prior"], norms["norm_v_new"] * norms["norm_v_prior"])
    share = _ratio(math.sqrt(sums["second"]), math.sqrt(sums["first"]))
    return {**found, **norms, "cosine_v_new_v_prior": cosine, "second_over_first": share}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(torch.float32, tensor.dtype))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    return (piece.double() for piece in tensor.reshape(-1).split(PIECE))


def _dot(one: Tensor, other: Tensor) -> float:
    """Return <one, other> in float64."""
    return sum(float(a @ b) for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
