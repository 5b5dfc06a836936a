"""Masks: which entries of a model may be trained, cut from scores that are read a tensor at a time.

Symbols: entry = one number of one tensor; `phi` = its score; k = entries to choose; layer and module = where a tensor
stands in the model (`locate`); key = the bits of |phi| (or of phi, moved so that they sort), an unsigned integer;
bin = the first 16 bits of a key; N_t(>= key) = entries of tensor t at or above a key.

Order of entries: larger key first, then the tensor that stands first in the layout, then the lower flat index. Every
quota takes the first of its entries in this order that no quota before it took, so that each tensor's share of the mask
is its own first entries: a count and a threshold key per tensor say all.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from numbers import Real
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from tamis.masks.tensor_layout import MaskError, Shapes, index_type, locate

BINS = 1 << 16
CHUNK = 1 << 20  # entries whose boundary keys are sorted at once

Read = Callable[[str], np.ndarray | Tensor]  # scores of one tensor; the same ones at every call


@dataclass(frozen=True)
class Cut:
    """How many entries of each tensor are chosen, and at which key; with the scores this is the mask."""

    shapes: Shapes
    chosen: Mapping[str, int]  # entries of each tensor
    thresholds: Mapping[str, int]  # key of its last chosen entry; every entry with a larger key is chosen
    signed: bool
    zeros: int  # entries with a score of exactly 0, of all entries
    ties: int  # chosen entries that have the score of one left out by the same quota: their choice is arbitrary
    ties_left: int  # those left out

    @property
    def tie_share(self) -> float:
        """Return the share of chosen entries that were chosen for their place alone, in [0, 1]; 0 is best."""
        return self.ties / sum(self.chosen.values())


@dataclass(frozen=True)
class _Form:
    """How keys are made of the bits of a score."""

    dtype: type  # np.float32 | np.float64
    signed: bool

    @property
    def bits(self) -> type:
        return np.uint32 if self.dtype == np.float32 else np.uint64

    @property
    def shift(self) -> int:
        """Return the bits of a key below its bin."""
        return 8 * np.dtype(self.dtype).itemsize - 16 - (not self.signed)

    @property
    def parts(self) -> tuple[np.uint64, np.uint64, np.uint64, bool]:
        """Return the sign bit, the least magnitude that is not finite, `shift` and `signed`."""
        infinity = np.array(np.inf, self.dtype).view(self.bits)
        return (
            np.uint64(1 << 8 * np.dtype(self.dtype).itemsize - 1),
            np.uint64(infinity),
            np.uint64(self.shift),
            self.signed,
        )


@dataclass(frozen=True)
class _Survey:
    """What two passes over the scores found: N_t at every edge of a bin, and the keys within boundary bins."""

    form: _Form
    above: np.ndarray  # int64 [tensor, bin]: entries in this bin and in those above it; a last column of zeros
    keys: list[np.ndarray]  # per tensor: distinct keys within its boundary bins, ascending
    suffix: list[np.ndarray]  # entries with this key or a larger one among these; a last 0

    def count(self, members: np.ndarray, key: int, side: str = "left") -> np.ndarray:
        """Return N_t(>= key) of some tensors, or N_t(> key) with side `right`, where its bin is a boundary bin."""
        edge = (key >> self.form.shift) + 1
        found, top = self.above[members, edge], (edge << self.form.shift) - 1
        for place, member in enumerate(members.tolist()):
            keys, suffix = self.keys[member], self.suffix[member]
            first = np.searchsorted(keys, np.uint64(key), side)
            found[place] += suffix[first] - suffix[np.searchsorted(keys, np.uint64(top), "right")]
        return found


def resolve(budget: Mapping[str, Any], entries: int) -> int:
    """Return k for a budget: one entry, `count` or `fraction` (of all entries, in (0, 1]; rounded down).

    Raises:
        MaskError: another kind of budget, or one that chooses nothing or more than there is.

    >>> resolve({"fraction": 0.1}, 1234)
    123
    """
    kind = next(iter(budget), None)
    amount = budget.get(kind)
    number = isinstance(amount, Real) and not isinstance(amount, bool) and math.isfinite(amount)
    if len(budget) != 1 or kind not in ("count", "fraction") or not number:
        raise MaskError(f"the mask's budget is {dict(budget)}; give one number, as count or fraction")
    if (kind == "fraction" and amount > 1) or (kind == "count" and int(amount) != amount):
        raise MaskError(f"the mask's budget is {dict(budget)}; a count is a whole number, a fraction at most 1")
    k = int(Fraction(str(amount)) * entries) if kind == "fraction" else int(amount)
    if not 0 < k <= entries:
        raise MaskError(f"the mask's budget {dict(budget)} chooses {k} of {entries} parameters; give 1 to {entries}")
    return k


def cut(
    shapes: Shapes, read: Read, k: int, *, signed: bool = False, layer_share: float = 0.2, module_share: float = 0.2
) -> Cut:
    """Return the cut of the k entries with the largest |phi| (or phi), quotas first.

    floor(layer_share * k) entries are divided equally over layers, then floor(module_share * k) over the module groups
    that the model has, the first ones taking what does not divide; the rest, and what a layer or group is too small to
    take, goes to the largest entries wherever they are. Exactly k are chosen.

    **Source**: DualSFT, arXiv 2605.06166v1, code ChnIRuI/DualSFT @ c8944ce: |phi|, 10% of the entries, quotas 0.20 and
    0.20. Differs: the choice is exact in any memory, and ties go to the lowest place and are counted.

    Args:
        shapes: of every tensor, in the order in which ties are taken.
        read: scores of a tensor (float32, or float64 for all; narrower ones are widened); called twice per tensor.
        k: entries to choose, from `resolve`.
        signed: take the largest phi, not the largest |phi|; -0.0 equals 0.0.
        layer_share, module_share: in [0, 1], at most 1 together.

    Raises:
        MaskError: k or the shares are out of range; scores that are not finite, not floating or of another size.

    Cost: two passes over the scores; memory is the largest tensor, 0.5 MB per tensor, and the distinct keys within the
    boundary bins (float32: at most 65 536 per bin and tensor).

    >>> shapes = {"layers.0.q_proj.weight": (4,), "layers.1.q_proj.weight": (4,)}
    >>> scores = dict(zip(shapes, np.float32([[9, -8, 7, 6], [0, 0, 1, 0]]), strict=True))
    >>> cut(shapes, scores.get, 4, layer_share=0.5, module_share=0.0).chosen
    {'layers.0.q_proj.weight': 3, 'layers.1.q_proj.weight': 1}
    """
    sizes = np.array([int(np.prod(shape)) for shape in shapes.values()], np.int64)
    quotas = _quotas(shapes, sizes, k, layer_share, module_share)
    form, above, zeros = _count_bins(shapes, read, signed)
    wanted, spans = _find_boundaries(above, quotas, k)
    survey = _Survey(form, above, *_collect_keys(shapes, read, wanted, form))
    taken, thresholds, keys = _fill(survey, quotas, spans, k)
    ties, left = _count_ties(survey, quotas, keys, taken)
    chosen, at = (dict(zip(shapes, numbers, strict=True)) for numbers in (taken.tolist(), thresholds))
    return Cut(shapes, chosen, at, signed, zeros, ties, left)


def pick(cut: Cut, read: Read) -> Iterator[tuple[str, Integer[np.ndarray, " entry"]]]:
    """Yield the mask a tensor at a time: its name and the flat indices of its chosen entries, ascending.

    Tensors without chosen entries are left out. Indices are int32, int64 where a tensor has more than 2^31 entries.

    Args:
        cut: from `cut`, with the same scores.
        read: called once per tensor that has chosen entries.

    Raises:
        MaskError: the scores are others than those that the cut was made from.
    """
    for name, count in cut.chosen.items():
        if not count:
            continue
        scores = _flatten(name, cut.shapes[name], read)
        form = _Form(scores.dtype.type, cut.signed)
        found = np.empty(count, index_type(cut.shapes[name]))
        above = _pick(scores.view(form.bits), form.parts, np.uint64(cut.thresholds[name]), found)
        if above != count:
            raise MaskError(f"the scores of {name} changed between two readings: {above} of {count} entries are found")
        yield name, found


def choose(shapes: Shapes, read: Read, k: int, **how: Any) -> tuple[dict[str, np.ndarray], Cut]:
    """Return the mask of all tensors that have chosen entries, by name, and its cut; arguments are those of `cut`."""
    found = cut(shapes, read, k, **how)
    return dict(pick(found, read)), found


def _quotas(shapes: Shapes, sizes: np.ndarray, k: int, layer_share: float, module_share: float) -> list:
    """Return what is filled one after the other: the tensors and how many more entries; None: until k are chosen."""
    shares = (layer_share, module_share)
    if min(shares) < 0 or sum(Fraction(str(share)) for share in shares) > 1:
        raise MaskError(
            f"the quota shares are {layer_share} (layers) and {module_share} (modules); each is at "
            "least 0, together at most 1"
        )
    if not 0 < k <= sizes.sum():
        raise MaskError(f"{k} of {sizes.sum()} parameters are to be chosen; give 1 to {sizes.sum()}")
    places = [locate(name) for name in shapes]
    found = []
    for kind, share in enumerate(shares):
        labels = list(dict.fromkeys(place[kind] for place in places if place[kind] is not None))
        labels = sorted(labels) if kind == 0 else labels
        each, more = divmod(int(Fraction(str(share)) * k), max(len(labels), 1))
        for order, label in enumerate(labels):
            members = np.array([number for number, place in enumerate(places) if place[kind] == label])
            found.append((members, each + (order < more)))
    return [quota for quota in found if quota[1]] + [(np.arange(len(places)), None)]


def _flatten(name: str, shape: tuple[int, ...], read: Read) -> np.ndarray:
    """Return a tensor's scores as a float32 or float64 vector."""
    scores = read(name)
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        scores = (scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores).numpy()
    if scores.dtype == np.float16:
        scores = scores.astype(np.float32)
    if scores.size != int(np.prod(shape)) or scores.dtype not in (np.float32, np.float64):
        raise MaskError(
            f"the scores of {name} are {scores.dtype} {scores.shape}; floating numbers of shape {shape} are wanted"
        )
    return np.ascontiguousarray(scores).reshape(-1)


def _count_bins(shapes: Shapes, read: Read, signed: bool) -> tuple[_Form, np.ndarray, int]:
    """Return N_t at every edge of a bin, and how many scores are 0; the first pass."""
    form, zeros = None, 0
    above = np.zeros((len(shapes), BINS + 1), np.int64)
    for counts, (name, shape) in zip(above, shapes.items(), strict=True):
        scores = _flatten(name, shape, read)
        form = form or _Form(scores.dtype.type, signed)
        if scores.dtype != form.dtype:
            raise MaskError(
                f"the scores of {name} are {scores.dtype} and those before it {form.dtype.__name__}; give one type"
            )
        bad, none = _count(scores.view(form.bits), form.parts, counts)
        if bad >= 0:
            count = int((~np.isfinite(scores)).sum())
            raise MaskError(
                f"{count} of {scores.size} scores of {name} are not finite, first entry {bad}: {scores[bad]}; "
                "look at the gradients of this tensor"
            )
        zeros += none
        counts[:] = counts[::-1].cumsum()[::-1]
    return form, above, zeros


def _above(above: np.ndarray, members: np.ndarray, place: int) -> np.ndarray:
    """Return N_t at the lower edge of a bin."""
    return above[members, place]


def _reach(count: Callable[[int], np.ndarray], taken: np.ndarray, total: int, span: tuple[int, int]) -> int:
    """Return the largest place within a span at which tensors hold `total` entries: sum_t max(N_t, taken_t) >= total.

    N_t falls with the place. The span's first place is returned where there are not so many at any.
    """
    low, high = span
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.maximum(count(middle), taken).sum() >= total else (low, middle - 1)
    return low


def _find_boundaries(above: np.ndarray, quotas: list, k: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the bins of each tensor in which a threshold may lie, and between which bins each quota's lies.

    A quota's bin depends on how many entries those before it took, which bins tell only between bounds, `least` and
    `most`. A bin whose entries are all taken whatever the threshold is left out.
    """
    wanted, spans = np.zeros((len(above), BINS), bool), []
    least, most = np.zeros(len(above), np.int64), np.zeros(len(above), np.int64)
    for members, quota in quotas:
        found = []
        for taken in (least[members], most[members]):
            total = k if quota is None else quota + int(taken.sum())
            found.append(_reach(partial(_above, above, members), taken, total, (0, BINS - 1)))
        low, high = min(found), max(found)
        wanted[members, low : high + 1] |= above[members, low : high + 1] > least[members, None]
        least[members] = np.maximum(least[members], above[members, high + 1])
        most[members] = np.maximum(most[members], above[members, low])
        spans.append((low, high))
    return wanted, spans


def _collect_keys(shapes: Shapes, read: Read, wanted: np.ndarray, form: _Form) -> tuple[list, list]:
    """Return the distinct keys of each tensor within its boundary bins and their counts from above; the second pass."""
    keys, suffix, buffer = [], [], np.empty(CHUNK, np.uint64)
    for bins, (name, shape) in zip(wanted, shapes.items(), strict=True):
        parts = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
        bits = _flatten(name, shape, read).view(form.bits) if bins.any() else np.empty(0, form.bits)
        for start in range(0, len(bits), CHUNK):
            size = _collect(bits[start : start + CHUNK], form.parts, bins, buffer)
            parts.append(np.unique(buffer[:size], return_counts=True))
        distinct, place = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
        counts = np.zeros(len(distinct) + 1, np.int64)
        np.add.at(counts, place, np.concatenate([part for _, part in parts]))
        keys.append(distinct)
        suffix.append(counts[::-1].cumsum()[::-1])
    return keys, suffix


def _fill(survey: _Survey, quotas: list, spans: list, k: int) -> tuple[np.ndarray, list[int], list[int]]:
    """Return how many entries of each tensor are chosen, its threshold key, and the threshold of every quota."""
    taken, thresholds, keys = np.zeros(len(survey.above), np.int64), [0] * len(survey.above), []
    for (members, quota), (low, high) in zip(quotas, spans, strict=True):
        before = taken[members]
        total = k if quota is None else quota + int(before.sum())
        if total == before.sum():  # the quotas chose all
            break
        span = low << survey.form.shift, ((high + 1) << survey.form.shift) - 1
        key = _reach(partial(survey.count, members), before, total, span)
        larger = np.maximum(survey.count(members, key, "right"), before)
        tied = np.maximum(survey.count(members, key), before) - larger
        earlier = np.cumsum(tied) - tied
        taken[members] = larger + np.clip(total - larger.sum() - earlier, 0, tied)
        for member in members[taken[members] > before].tolist():
            thresholds[member] = key
        keys.append(key)
    return taken, thresholds, keys


def _count_ties(survey: _Survey, quotas: list, keys: list[int], taken: np.ndarray) -> tuple[int, int]:
    """Return how many entries with a threshold's score are chosen and how many left out, where both are."""
    found = {}
    for (members, _), key in zip(quotas, keys, strict=False):
        larger = survey.count(members, key, "right")
        tied = survey.count(members, key) - larger
        chosen = np.clip(taken[members] - larger, 0, tied)
        if chosen.any() and (chosen < tied).any():
            found |= {
                (member, key): pair
                for member, *pair in zip(members.tolist(), chosen.tolist(), (tied - chosen).tolist(), strict=True)
            }
    return sum(chosen for chosen, _ in found.values()), sum(left for _, left in found.values())


@numba.njit(cache=True, nogil=True, inline="always")
@no_type_check
def _key(bits, parts):
    sign, _, _, signed = parts
    size = np.uint64(bits) & (sign - np.uint64(1))
    if not signed:
        return size
    return sign - size if np.uint64(bits) & sign else sign + size


@numba.njit(cache=True, nogil=True)
@no_type_check
def _count(bits, parts, counts):
    """Add a tensor's keys to the counts of their bins; return the first place that is not finite, and the zeros."""
    sign, infinity, shift, _ = parts
    zeros = 0
    for place in range(len(bits)):
        size = np.uint64(bits[place]) & (sign - np.uint64(1))
        if size >= infinity:
            return place, zeros
        zeros += size == 0
        counts[_key(bits[place], parts) >> shift] += 1
    return -1, zeros


@numba.njit(cache=True, nogil=True)
@no_type_check
def _collect(bits, parts, wanted, out):
    """Write the keys whose bin is wanted, and return how many."""
    size = 0
    for place in range(len(bits)):
        key = _key(bits[place], parts)
        out[size] = key
        size += wanted[key >> parts[2]]
    return size


@numba.njit(cache=True, nogil=True)
@no_type_check
def _pick(bits, parts, threshold, out):
    """Write the places of keys above the threshold and of the first ones at it, as many as fit; return the count."""
    larger = 0
    for place in range(len(bits)):
        larger += _key(bits[place], parts) > threshold
    ties, size = len(out) - larger, 0
    for place in range(len(bits)):
        key = _key(bits[place], parts)
        if key > threshold or (key == threshold and ties > 0):
            ties -= key == threshold
            if size < len(out):
                out[size] = place
            size += 1
    return size
