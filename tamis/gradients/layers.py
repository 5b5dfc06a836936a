"""Which modules hold a model's trainable parameters, and what each adds to a gradient or to an inner product with it.

Let z = f(x; w) be a module's output and dz = dL/dz, at one token. For every kind covered here z is affine in w, so
with s the derivative of z by w at x: <u, dL/dw> = <dz, s u>, one number per token, without the gradient dL/dw; and
dL/dw = sum over tokens of s^T dz. Symbols: u = a direction in parameter space, G = the sum of gradients, x = a module's
input, dz = the gradient by its output, *call* = its arguments.

Kinds: `linear` (w [out, in]), `transposed` (w [in, out], as GPT-2's Conv1D), `embedding` (also of positions, also times
a constant), `scale` (a norm's w and b, elementwise). A module's kind is told by what it does to a few made-up tokens,
not by its name; what is none of these is refused.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tamis.language.batches import Batch, BatchTensors

PROBE_ROWS = 2
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named arguments of a module


@dataclass(frozen=True)
class Layer:
    """A module that holds trainable parameters."""

    module: nn.Module
    kind: str  # linear | transposed | embedding | scale
    names: dict[
        str, str
    ]  # weight, bias: the model's name of the trainable ones; a tied weight has one name in two covers
    axis: int  # of the output: where the tokens are; 0: rows and tokens are one dimension
    factor: float = 1.0  # embedding: what its rows are multiplied by
    offset: bool = False  # scale: the output is not 0 where weight and bias are 0 (Gemma)


@dataclass(frozen=True)
class Probe:
    """What a module got and gave in a forward pass of made-up tokens."""

    call: Call
    output: Any


def cover(model: nn.Module) -> list[Layer]:
    """Return the modules that hold the model's trainable parameters, in the order in which they run.

    Cost: one forward pass of a few tokens.

    Args:
        model: a causal language model in eval mode; parameters with `requires_grad` are trainable.

    Raises:
        ValueError: nothing is trainable; parameters of a kind that is not covered or of modules that never run, by
            name; logits that are not the head's output.
    """
    wanted = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    if not wanted:
        raise ValueError(f"{type(model).__name__} has 0 trainable parameters; set requires_grad on some")
    owners = {}
    for module in model.modules():
        own = {
            key: wanted[id(weight)] for key, weight in module.named_parameters(recurse=False) if id(weight) in wanted
        }
        if own:
            owners[module] = own
    tokens = _free_length(model)
    probes = _probe(model, owners, tokens)
    found, reasons = [], {}
    ran = [module for module in probes if module in owners]
    for module in [*ran, *(one for one in owners if one not in probes)]:
        told = _tell(module, owners[module], probes.get(module), tokens)
        if isinstance(told, Layer):
            found.append(told)
        else:
            reasons.update(dict.fromkeys(owners[module].values(), f"{type(module).__name__}: {told}"))
    _refuse(reasons, len(wanted))
    return found


def _refuse(reasons: Mapping[str, str], trainable: int) -> None:
    if reasons:
        first = "; ".join(f"{name} ({why})" for name, why in list(reasons.items())[:3])
        raise ValueError(
            f"{len(reasons)} of {trainable} trainable parameters cannot be covered, first {first}; "
            "freeze them (requires_grad) or leave this model out"
        )


def _free_length(model: nn.Module) -> int:
    """Return a small token count that no dimension of the model has, so that the token axis is told by its size."""
    taken = {size for weight in model.parameters() for size in weight.shape}
    taken |= {value for value in vars(model.config).values() if isinstance(value, int)}
    return next(size for size in count(3) if size not in taken and PROBE_ROWS * size not in taken)


def _probe(model: nn.Module, owners: Mapping[nn.Module, dict[str, str]], tokens: int) -> dict[nn.Module, Probe]:
    """Return each module's first call and output; check that the logits are the head's output."""
    probes: dict[nn.Module, Probe] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        probes.setdefault(module, Probe((args, kwargs), output))

    head, base = model.get_output_embeddings(), model.base_model
    device = next(model.parameters()).device
    words = torch.arange(PROBE_ROWS * tokens, device=device) % model.get_input_embeddings().weight.shape[0]
    places = torch.arange(tokens, device=device).repeat(PROBE_ROWS, 1)
    inputs = {"input_ids": words.view(PROBE_ROWS, tokens), "position_ids": places, "use_cache": False}
    watched = [*owners, *(one for one in (head, base) if one is not None and one not in owners)]
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in watched]
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
            if base not in probes:  # OPT goes past its base to the decoder
                base(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    hidden = probes[base].output.last_hidden_state
    if head not in probes or not (_same(input_of(probes[head].call), hidden) and _same(probes[head].output, logits)):
        raise ValueError(
            f"{type(model).__name__}: its logits are not its head's output (a soft cap or a factor?), which gradients "
            "here need; leave this model out"
        )
    return probes


def _tell(module: nn.Module, names: dict[str, str], probe: Probe | None, tokens: int) -> Layer | str:
    """Return a module's cover, or the reason why there is none."""
    if probe is None:
        return "it does not run in a forward pass"
    own = dict(module.named_parameters(recurse=False))
    if not isinstance(probe.output, Tensor) or "weight" not in own or not set(own) <= {"weight", "bias"}:
        return f"its parameters are {', '.join(own)}, not weight and bias of one output"
    axis = _token_axis(probe.output, tokens)
    if axis is None:
        return f"its output {list(probe.output.shape)} does not have {PROBE_ROWS} rows of {tokens} tokens"
    with torch.no_grad():
        if isinstance(module, nn.Embedding):
            return _tell_embedding(module, names, probe, axis)
        if own["weight"].dim() == 2:
            return _tell_linear(module, names, probe, axis)
        if own["weight"].dim() == 1:
            return _tell_scale(module, names, probe, axis)
    return f"a weight of {own['weight'].dim()} dimensions is not a kind that is covered"


def _token_axis(output: Tensor, tokens: int) -> int | None:
    shape = list(output.shape)
    if shape[0] == PROBE_ROWS and tokens in shape[1:-1]:
        return shape.index(tokens, 1)
    return 0 if shape[0] == PROBE_ROWS * tokens else None


def _tell_embedding(module: nn.Embedding, names: dict[str, str], probe: Probe, axis: int) -> Layer | str:
    if module.max_norm is not None or module.scale_grad_by_freq:
        return "an embedding with max_norm or scale_grad_by_freq is not covered"
    ones = torch.ones_like(module.weight[:, :1])
    factor = float(_evaluate(module, probe.call, weight=ones).flatten()[0])
    found = Layer(module, "embedding", names, axis, factor=factor)
    if not _same(probe.output, (module.weight[look_up(found, probe.call)] * factor).view(probe.output.shape)):
        return "an embedding whose output is not its rows times a constant is not covered"
    return found


def _tell_linear(module: nn.Module, names: dict[str, str], probe: Probe, axis: int) -> Layer | str:
    if type(module).forward is nn.Linear.forward:
        return Layer(module, "linear", names, axis)
    x, weight = input_of(probe.call), module.weight
    made = torch.arange(weight.numel(), device=weight.device).sin().to(weight.dtype).view(weight.shape)
    output = _evaluate(module, probe.call, weight=made, bias=weight.new_zeros(probe.output.shape[-1]))
    for kind, form in (("linear", made), ("transposed", made.T)):
        if isinstance(x, Tensor) and x.shape[-1] == form.shape[1] and _same(output, nn.functional.linear(x, form)):
            return Layer(module, kind, names, axis)
    return "its output is not a product of input and weight"


def _tell_scale(module: nn.Module, names: dict[str, str], probe: Probe, axis: int) -> Layer | str:
    weight = module.weight
    if weight.shape[0] != probe.output.shape[-1]:
        return "its output is not as wide as its weight"
    made = torch.linspace(0.5, 1.5, len(weight), device=weight.device, dtype=weight.dtype)
    zero = torch.zeros_like(weight)
    offset = _evaluate(module, probe.call, weight=zero, bias=zero)
    found = Layer(module, "scale", names, axis, offset=bool(offset.any()))
    shift = 0.0 if getattr(module, "bias", None) is None else made
    expected = offset + made * slope_of(found, probe.call) + shift
    if not _same(_evaluate(module, probe.call, weight=made, bias=made), expected):
        return "its output is not affine in its weight, element by element"
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two results of one formula are equal up to rounding; norms round to float32 in any model."""
    epsilon = max(torch.finfo(dtype).eps for dtype in (torch.float32, one.dtype, other.dtype))
    one, other = one.double().nan_to_num(0, 0, 0), other.double().nan_to_num(0, 0, 0)
    return one.shape == other.shape and bool((one - other).abs().max() <= 64 * epsilon * other.abs().max())


def _evaluate(module: nn.Module, call: Call, **parameters: Tensor) -> Tensor:
    """Return a module's output for other parameters, without its hooks; a parameter that it has not is left out."""
    twin = copy.copy(module)
    own = module._parameters
    twin.__dict__["_parameters"] = {key: None if own[key] is None else parameters[key] for key in own}
    args, kwargs = call
    return twin.forward(*args, **kwargs)


def input_of(call: Call) -> Any:
    args, kwargs = call
    return next(iter((*args, *kwargs.values())), None)


def look_up(cover: Layer, call: Call) -> Int[Tensor, " token"]:
    """Return which rows of an embedding a call gathers; modules that shift or make their ids are asked by columns."""
    if type(cover.module).forward is nn.Embedding.forward:
        return input_of(call).flatten()
    weight = cover.module.weight
    column = torch.arange(len(weight), device=weight.device, dtype=torch.float64)[:, None]
    shown, unit = (_evaluate(cover.module, call, weight=one) for one in (column, torch.ones_like(column)))
    return (shown / unit).round().long().flatten()


def slope_of(cover: Layer, call: Call) -> Tensor:
    """Return the derivative of a norm's output by its weight, element by element."""
    weight = cover.module.weight
    zero, one = torch.zeros_like(weight), torch.ones_like(weight)
    slope = _evaluate(cover.module, call, weight=one, bias=zero)
    return slope - _evaluate(cover.module, call, weight=zero, bias=zero) if cover.offset else slope


@runtime_checkable
class Observer(Protocol):
    """What gets, beside the sums, what each module gives in a backward pass."""

    def open(self, batch: Batch, sheet: BatchTensors) -> None:
        """Begin a batch."""

    def add(self, cover: Layer, call: Call, dz: Tensor, owner: Int[Tensor, " token"]) -> None:
        """Take what one module gives: its arguments, the gradient by its output, and each token's example."""


class GradientSums:
    """What backward passes add up: G where it is kept, and <u, g_n> of a batch where u is known.

    Args:
        u: direction by parameter name; parameters that it lacks add nothing to the scores.
        G: sums by parameter name, changed in place; others are not summed.
        observer: gets the batches and what every module gives, too; None: nobody does.
    """

    def __init__(self, u: Mapping[str, Tensor], G: Mapping[str, Tensor], observer: Observer | None = None) -> None:
        self.u, self.G, self.observer = u, G, observer
        self.owner = torch.empty(0, dtype=torch.long)
        self.scores = torch.empty(0, dtype=torch.float64)
        self.lowest: Layer | None = None

    def open(self, batch: Batch, sheet: BatchTensors) -> None:
        """Begin a batch: one score per example."""
        self.owner = sheet.owner
        self.scores = torch.zeros(len(batch.examples), dtype=torch.float64, device=sheet.owner.device)
        if self.observer is not None:
            self.observer.open(batch, sheet)

    def wants(self, cover: Layer) -> bool:
        """Return whether a module has a parameter that is scored or summed."""
        return any(name in self.u or name in self.G for name in cover.names.values())

    def add(self, cover: Layer, call: Call, dz: Tensor, owner: Int[Tensor, " token"]) -> None:
        """Add what one module gives, once the gradient by its output is known."""
        dz = flatten_rows(dz, cover.axis)
        if self.observer is not None:
            self.observer.add(cover, call, dz, owner)
        found = CONTRACTIONS[cover.kind](self, cover, call, dz)
        if found is None and cover is self.lowest:  # what is not finite above comes down to here: 0 * inf is NaN
            found = (dz * 0.0).sum(1)
        if found is not None:
            self.scores.index_add_(0, owner, found.double().view(len(owner), -1).sum(1))

    def parts(self, cover: Layer, key: str) -> tuple[Tensor | None, Tensor | None]:
        """Return u and G of a module's weight or bias, None where absent."""
        name = cover.names.get(key, "")
        return self.u.get(name), self.G.get(name)


def flatten_rows(tensor: Tensor, axis: int) -> Float[Tensor, "row width"]:
    """Return [row, width] with the tokens of all rows in their order, each with its heads, if any, side by side."""
    return (tensor.movedim(axis, 1) if axis > 1 else tensor).reshape(-1, tensor.shape[-1])


def widen(tensor: Tensor) -> Tensor:
    """Return operands of a product in float32 at least: half-width sums round every batch's part of G, and u."""
    return tensor.to(torch.promote_types(torch.float32, tensor.dtype))


def _contract_linear(tally: GradientSums, cover: Layer, call: Call, dz: Tensor) -> Tensor | None:
    dz, x = widen(dz), widen(flatten_rows(input_of(call), cover.axis))
    u, G = tally.parts(cover, "weight")
    left, right = (dz, x) if cover.kind == "linear" else (x, dz)  # w is shaped as left^T right
    found = None
    if G is not None:
        G.addmm_(left.T.to(G.dtype), right.to(G.dtype))
    if u is not None:
        u = u.to(dz.dtype)
        narrow = left.shape[1] >= right.shape[1]  # the side whose product with u is smaller
        found = (left @ u).mul_(right).sum(1) if narrow else (right @ u.T).mul_(left).sum(1)
    return _contract_bias(tally, cover, dz, found)


def _contract_bias(tally: GradientSums, cover: Layer, dz: Tensor, found: Tensor | None) -> Tensor | None:
    u, G = tally.parts(cover, "bias")
    if G is not None:
        G.add_(dz.sum(0, dtype=G.dtype))
    if u is None:
        return found
    return dz @ u.to(dz.dtype) + (0.0 if found is None else found)


def _contract_embedding(tally: GradientSums, cover: Layer, call: Call, dz: Tensor) -> Tensor | None:
    ids, (u, G) = look_up(cover, call), tally.parts(cover, "weight")
    padding = cover.module.padding_idx
    if padding is not None:  # autograd gives the padding row no gradient
        dz = dz.masked_fill((ids == padding)[:, None], 0.0)
    if G is not None:
        G.index_add_(0, ids, dz.to(G.dtype), alpha=cover.factor)
    return None if u is None else (u[ids] * dz).sum(1) * cover.factor


def _contract_scale(tally: GradientSums, cover: Layer, call: Call, dz: Tensor) -> Tensor | None:
    u, G = tally.parts(cover, "weight")
    found = None
    if u is not None or G is not None:
        with torch.no_grad():
            product = flatten_rows(slope_of(cover, call), cover.axis) * widen(dz)
        if G is not None:
            G.add_(product.sum(0, dtype=G.dtype))
        if u is not None:
            found = product.to(u.dtype) @ u
    return _contract_bias(tally, cover, widen(dz), found)


CONTRACTIONS = {
    "linear": _contract_linear,
    "transposed": _contract_linear,
    "embedding": _contract_embedding,
    "scale": _contract_scale,
}


@contextmanager
def watch(covers: list[Layer], tally: GradientSums) -> Iterator[None]:
    """Let a tally take part in every backward pass through these modules; their weights need no `requires_grad`.

    Inputs are held from the forward to the backward pass, as autograd itself holds them in training.
    """

    def hook(cover: Layer, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        if not output.requires_grad:  # the lowest module of its branch: the backward pass ends here
            output = output.requires_grad_().clone()
        held = [(tuple(map(_detached, args)), {key: _detached(value) for key, value in kwargs.items()})]
        owner = tally.owner
        output.register_hook(lambda dz: tally.add(cover, held.pop(), dz, owner))
        return output

    wanted = [one for one in covers if tally.wants(one)]
    tally.lowest = wanted[0] if wanted else None
    handles = [
        one.module.register_forward_hook(
            lambda module, args, kwargs, output, one=one: hook(one, args, kwargs, output), with_kwargs=True
        )
        for one in wanted
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
