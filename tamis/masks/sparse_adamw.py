"""Restricted training: only the entries of a mask move, and only they have optimizer state.

Symbols: entry = one number of one tensor, known by its flat index in the stored (row-major) order; mask = name of a
tensor -> flat indices of its chosen entries, ascending (`tamis.masks.topk`), none for a frozen tensor; delta = chosen
entries and their values after training. Names are those of `named_parameters`: a tensor that is shared has one.

The order of use: `freeze`, `mask_gradients`, then `RestrictedAdamW` over `model.named_parameters()`, all with the model
on its device. Gradients are masked as soon as they are accumulated, so what clips them sees chosen entries only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamis.masks.tensor_layout import MaskError, Shapes, index_type, refuse_other

Mask = Mapping[str, np.ndarray | Tensor]
NAMES = 3  # that an error shows


class RestrictedAdamW(torch.optim.Optimizer):
    """AdamW on the entries of a mask; all other entries, and their gradients, are never read or written.

        m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
        w = w - lr * weight_decay * w - lr * m' / (sqrt(v') + eps),     m' = m / (1 - beta1^t), v' = v / (1 - beta2^t)

    with w, g, m, v vectors over the chosen entries of a tensor, in float32 (float64 weights: in float64).

    **Source**: AdamW, Loshchilov and Hutter, arXiv 1711.05101, as in torch.optim.AdamW, whose steps these are where
    every entry is chosen; DualSFT, arXiv 2605.06166v1, trains inside a mask. Differs: state for chosen entries only,
    decay on these only, and t counted for each entry from its choice (`remask`).

    State of a chosen entry: index (4 bytes; 8 in tensors of more than 2^31 entries), m and v (4 each) and, where the
    weights are narrower than float32, a float32 master copy (4) that is rounded into the weights after each step.

    Args:
        parameters: names and tensors, as `model.named_parameters()` gives them, or groups of these; tensors without
            chosen entries may be among them.
        mask: of the model; indices that are tensors on the weights' device are shared, not copied.
        lr: learning rate; schedules change it by group, as for any optimizer.
        weight_decay: decoupled; a fraction of the weight per unit of learning rate.

    Raises:
        MaskError: parameters without names, a mask of another model, or one without entries.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        mask: Mask,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.remask(mask)

    def named(self) -> dict[str, Tensor]:
        """Return its tensors by name, with and without chosen entries."""
        if not all("param_names" in group for group in self.param_groups):
            raise MaskError("RestrictedAdamW needs names to find a tensor's mask; give it model.named_parameters()")
        pairs = (zip(group["param_names"], group["params"], strict=True) for group in self.param_groups)
        return {name: parameter for some in pairs for name, parameter in some}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the chosen entries of every tensor that has a gradient; return the loss of the closure, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.state and parameter.grad is not None:
                    _move(parameter, self.state[parameter], group)
        return loss

    @torch.no_grad()
    def remask(self, mask: Mask) -> None:
        """Train another mask from now on: entries that stay keep moments, age and master value, new ones begin at 0."""
        named = self.named()
        chosen = indices(named, mask)
        for name, parameter in named.items():
            before = self.state.pop(parameter, None)
            if name in chosen:
                state = _begin(parameter, chosen[name])
                self.state[parameter] = _carry(before, state) if before else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, bit for bit; torch's own would round moments and indices to the weights' type.

        Raises:
            MaskError: it was saved with another mask.
        """
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        named, saved = self.named(), state_dict["state"]
        found = dict(zip(named, (saved.get(number) for number in numbers), strict=False))
        ours = {name: self.state.get(parameter) for name, parameter in named.items()}
        _refuse_other_indices(ours, found)
        super().load_state_dict({**state_dict, "state": {}})
        for name, parameter in named.items():
            if found[name]:
                self.state[parameter] = _copy(found[name], ours[name]["indices"], parameter.device)


@dataclass(frozen=True)
class Delta:
    """The entries that training may have changed, and their values after it."""

    shapes: Shapes  # of every tensor of the model, with and without chosen entries
    indices: Mapping[str, Tensor]  # flat, ascending
    values: Mapping[str, Tensor]  # of the weights' own type


def indices(named: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """Return a mask's indices beside the weights, checked, without the tensors that it leaves alone.

    Args:
        named: the model's tensors by name.
        mask: flat indices by name; a tensor's may be empty.

    Raises:
        MaskError: a name that the model lacks; indices that are not ascending, or beyond the tensor; no entry at all.
    """
    strangers = [name for name in mask if name not in named]
    if strangers:
        raise MaskError(
            f"the mask belongs to another model: {len(strangers)} of its {len(mask)} tensors are unknown here, first "
            f"{strangers[:NAMES]}; make it again for this model"
        )
    found = {name: _beside(named[name], indices) for name, indices in mask.items() if len(indices)}
    wrong = [name for name, indices in found.items() if not _fits(indices, named[name].numel())]
    if wrong:
        raise MaskError(
            f"the mask belongs to another model: the indices of {len(wrong)} of {len(found)} tensors are not ascending "
            f"or lie beyond the tensor, first {wrong[:NAMES]}; make it again for this model"
        )
    if not found:
        raise MaskError("the mask has 0 entries, so nothing would be trained; raise its budget")
    return found


def freeze(model: nn.Module, mask: Mask) -> list[str]:
    """Have a model compute gradients for the tensors with chosen entries only; return the names of the others.

    Raises:
        MaskError: the mask does not fit the model.
    """
    named = dict(model.named_parameters())
    chosen = indices(named, mask)
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return [name for name in named if name not in chosen]


def mask_gradients(model: nn.Module, mask: Mask) -> list[RemovableHandle]:
    """Set unchosen entries of gradients to 0 whenever a gradient has been accumulated; return the hooks' handles.

    Clipping, norms and logs then see chosen entries only. Masking is the same after each of several backward passes as
    once after the last.

    Raises:
        MaskError: the mask does not fit the model.
    """
    named = dict(model.named_parameters())
    return [
        named[name].register_post_accumulate_grad_hook(partial(_keep_chosen, indices=indices))
        for name, indices in indices(named, mask).items()
    ]


def count_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's state, indices and steps counted."""
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def extract_delta(model: nn.Module, before: Mapping[str, Tensor], mask: Mask) -> Delta:
    """Return the chosen entries of a trained model, after making sure that no other entry has changed.

    Args:
        model: after training.
        before: the weights that it started from, by the names of `named_parameters`, of the same types.
        mask: inside which it was trained.

    Raises:
        MaskError: `before` is another model; the mask does not fit; an entry outside the mask has changed, by its bits.
    """
    now = {name: parameter.detach() for name, parameter in model.named_parameters()}
    refuse_other(_shapes(now), _shapes(before), "state before training")
    _refuse_other_types(now, before, "state before training")
    inside = indices(now, mask)
    values = {name: now[name].view(-1)[chosen] for name, chosen in inside.items()}
    moved = [
        name for name in now if not _same_bits(_patch(before[name], inside.get(name), values.get(name)), now[name])
    ]
    if moved:
        raise MaskError(
            f"{len(moved)} of {len(now)} tensors changed outside of the mask, first {moved[:NAMES]}; train with "
            "RestrictedAdamW and this mask alone"
        )
    return Delta(_shapes(now), inside, values)


def _beside(parameter: Tensor, indices: np.ndarray | Tensor) -> Tensor:
    """Return indices on the device of their tensor, in the smallest type that holds them."""
    kind = index_type(tuple(parameter.shape))
    if isinstance(indices, np.ndarray):
        indices = torch.from_numpy(np.require(indices, kind, ["C", "W"]))
    return indices.to(parameter.device, torch.int32 if kind == np.int32 else torch.int64)


def _fits(indices: Tensor, size: int) -> bool:
    return bool((indices[1:] > indices[:-1]).all()) and int(indices[0]) >= 0 and int(indices[-1]) < size


def _begin(parameter: Tensor, indices: Tensor) -> dict[str, Tensor]:
    """Return the state of a tensor's chosen entries before their first step."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    values = parameter.detach().view(-1)[indices].to(wide)
    state = {"step": torch.zeros(()), "indices": indices}
    state |= {"exp_avg": torch.zeros_like(values), "exp_avg_sq": torch.zeros_like(values)}
    return state if parameter.dtype == wide else {**state, "master": values}


def _carry(before: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the new state with what entries had that were chosen before; each entry has its own step from then on."""
    old, new = before["indices"], state["indices"]
    if torch.equal(old, new):
        return {**before, "indices": new}  # the tensor that hooks hold, too
    places = torch.searchsorted(old, new).clamp(max=len(old) - 1)
    stays = old[places] == new
    state["step"] = torch.zeros(len(new), device=new.device)
    for key in state.keys() - {"indices"}:
        values = before[key].to(new.device).expand(len(old))
        state[key][stays] = values[places[stays]]
    return state


def _move(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Take one step on the chosen entries of a tensor, in the order of operations of torch.optim.AdamW."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    flat, indices, first, second = parameter.view(-1), state["indices"], state["exp_avg"], state["exp_avg_sq"]
    grad = parameter.grad.view(-1).index_select(0, indices).to(first.dtype)
    values = state["master"] if "master" in state else flat.index_select(0, indices)
    state["step"] += 1
    values.mul_(1 - lr * group["weight_decay"])
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if state["step"].dim():
        steps = state["step"].double()
        sizes, roots = lr / (1 - beta1**steps), (1 - beta2**steps).sqrt()
        denominator = (second.sqrt() / roots.to(first.dtype)).add_(group["eps"])
        values.sub_(first * sizes.to(first.dtype) / denominator)
    else:
        step = state["step"].item()
        denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        values.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))
    flat[indices] = values.to(flat.dtype)


def _copy(state: Mapping[str, Tensor], indices: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Return a copy of a saved state, a common step on the CPU, all else beside the weights; its indices are those at
    hand, which are equal and which hooks hold, too."""
    found = {key: value for key, value in state.items() if key != "indices"}
    moved = {key: value.to(device if value.dim() else "cpu", copy=True) for key, value in found.items()}
    return {"indices": indices, **moved}


def _refuse_other_indices(ours: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise MaskError where a saved state is not of the mask at hand."""
    wrong = [name for name in ours if not _same_indices(ours[name], saved.get(name))]
    if wrong or len(ours) != len(saved):
        raise MaskError(
            f"the saved state was made with another mask: {len(wrong)} of {len(ours)} tensors differ, first "
            f"{wrong[:NAMES]}; go on with the mask that it was made with, or begin anew without it"
        )


def _same_indices(one: Mapping[str, Tensor] | None, other: Mapping[str, Tensor] | None) -> bool:
    if not one or not other:
        return not one and not other
    return torch.equal(one["indices"].cpu(), other["indices"].cpu())


def _keep_chosen(parameter: Tensor, *, indices: Tensor) -> None:
    """Set a gradient to 0 but for its chosen entries."""
    flat = parameter.grad.view(-1)
    kept = flat.index_select(0, indices)
    flat.zero_()[indices] = kept


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _refuse_other_types(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], what: str) -> None:
    wrong = [name for name in others if tensors[name].dtype != others[name].dtype]
    if wrong:
        pairs = ", ".join(f"{name}: {tensors[name].dtype} here, {others[name].dtype} there" for name in wrong[:NAMES])
        raise MaskError(
            f"the {what} has another type in {len(wrong)} of {len(others)} tensors, first {pairs}; "
            "load the model in the type that it was trained in"
        )


def _patch(tensor: Tensor, indices: Tensor | None, values: Tensor | None) -> Tensor:
    """Return a copy of a tensor with other values at some flat indices; without indices the tensor itself."""
    if indices is None:
        return tensor
    found = tensor.detach().clone(memory_format=torch.contiguous_format)
    found.view(-1)[indices.to(found.device)] = values.to(found.device)
    return found


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape and type have the same bits; -0.0 differs from 0.0."""
    bits = (tensor.detach().cpu().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)
