"""The size and the direction of each example's gradient, by the backward pass that sums all of them.

Symbols: g_n = gradient of example n's loss. At token t of n a module's part of g_n is the outer product of `left_t` and
`right_t`, laid out as the weight is (for a linear layer the gradient by its output, and its input); for a vector, such
as a norm's weight, `left_t` alone. No g_n is ever formed: its norm comes out of products of tokens with tokens, as in
ghost clipping, and its direction is kept as a sketch: inner products of sketches are nearly those of gradients.
"""

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor, nn

from tamis.gradients.layers import Call, Layer, flatten_rows, input_of, look_up, slope_of, widen
from tamis.language.batches import Batch, BatchTensors

SIDE = 48  # a module's sketch: so many random sums of its outputs, by so many of its inputs
BUCKETS = 4  # sketches in which those of modules are added up
WIDTH = BUCKETS * SIDE * SIDE  # entries of an example's sketch


@dataclass(frozen=True)
class Part:
    """What some tokens add to the gradient by one parameter."""

    name: str  # of the parameter
    left: Tensor  # [token, height], or [token]: the one row of the weight that each token touches
    right: Tensor | None  # [token, width]; None: the parameter is a vector
    height: int  # of the parameter


class RowSums:
    """Squared norms and sketches of the gradients of a pool's examples.

    ||g_n||^2 = sum over parameters of sum_{t,s} (left_t . left_s)(right_t . right_s), t and s over n's tokens
    sketch_n  = sum over a bucket's parameters of sum_t (P left_t)(Q right_t)^T / SIDE, P and Q random signs

    A weight that is embedding and head is one parameter: twice the product of its two parts is added to the norm. The
    mean of <sketch_n, sketch_m> over signs is <g_n, g_m>; cosines of SmolLM2-135M's gradients are off by 0.03 in root
    mean square (a slow test holds it below 0.05).

    **Source**: products of tokens as in ghost clipping (Li et al. 2021, arXiv 2110.05679), where norms are for
    clipping; random signs as in Achlioptas 2003 (Journal of Computer and System Sciences 66). Differs: the sketches of
    modules are added up in buckets, by a checksum of the parameter's name, so their size does not grow with the model.

    Cost: for a module and an example of T tokens the smaller of T^2 (height + width) and T height width.

    Args:
        model: whose head may run several times in a pass; every other module once.
        covers: of its trainable parameters.
        examples: of the pool.
        seed: of the signs.
        names: parameters that count; None: all.

    Raises:
        ValueError: a parameter that other modules share than an embedding and the head.
    """

    def __init__(
        self, model: nn.Module, covers: Sequence[Layer], examples: int, *, seed: int, names: Collection[str] | None
    ) -> None:
        known = [name for one in covers for name in one.names.values()]
        self.head, self.seed = model.get_output_embeddings(), seed
        self.names = set(known) if names is None else set(names)
        self.tied = {name for name in known if known.count(name) > 1}
        _refuse_shared(covers, self.tied, self.head)
        device = next(model.parameters()).device
        self.squared: Float64[Tensor, " example"] = torch.zeros(examples, dtype=torch.float64, device=device)
        self.sketches: Float32[Tensor, "example entry"] = torch.zeros(examples, WIDTH, device=device)
        self._signs: dict[tuple[str, str], Tensor] = {}
        self._ran: set[nn.Module] = set()

    def open(self, batch: Batch, sheet: BatchTensors) -> None:
        """Begin a batch, whose examples' sums start anew."""
        self._rows = torch.tensor(batch.examples, device=sheet.owner.device)
        self._tokens, self._sizes = sheet.inputs["input_ids"][0], sheet.owner.bincount().tolist()
        self._at_head: dict[str, Tensor] = {}  # of a tied weight: the head's part of its rows at the batch's tokens
        self.squared[self._rows], self.sketches[self._rows] = 0.0, 0.0
        self._ran.clear()

    def add(self, cover: Layer, call: Call, dz: Tensor, owner: Int[Tensor, " token"]) -> None:
        """Add what one module gives.

        Args:
            cover: the module.
            call: its arguments.
            dz: gradient by its output, by token.
            owner: each token's example in the batch, ascending.

        Raises:
            ValueError: a module that runs more than once in a pass, so that its parts would have to be multiplied.
        """
        if cover.module is not self.head:
            if cover.module in self._ran:
                raise ValueError(
                    f"{', '.join(cover.names.values())} is used more than once in a pass, so the norm of an example's "
                    "gradient is not known; freeze it or choose rows by another selector than dualsft_cover"
                )
            self._ran.add(cover.module)
        places, sizes = owner.unique_consecutive(return_counts=True)
        sizes = [size * (len(dz) // len(owner)) for size in sizes.tolist()]  # a token's heads each have a row
        for part in split_parts(cover, call, dz):
            if part.name in self.names:
                self._add_part(part, places, sizes)
                if part.name in self.tied:
                    self._cross(cover, part, places.tolist(), sizes)

    def _add_part(self, part: Part, places: Tensor, sizes: list[int]) -> None:
        left, right = part.left, part.right
        short, other = self._project(part, "left"), self._project(part, "right")
        bucket = zlib.crc32(part.name.encode()) % BUCKETS
        entries = slice(bucket * SIDE * SIDE, (bucket + 1) * SIDE * SIDE)
        rights = [None] * len(sizes) if right is None else right.split(sizes)
        squares = [square_norm(one, two) for one, two in zip(left.split(sizes), rights, strict=True)]
        sketches = [one.T @ two for one, two in zip(short.split(sizes), other.split(sizes), strict=True)]
        rows = self._rows[places]
        self.squared.index_add_(0, rows, torch.stack(squares))
        self.sketches[rows, entries] += torch.stack(sketches).flatten(1) / SIDE

    def _cross(self, cover: Layer, part: Part, places: list[int], sizes: list[int]) -> None:
        """Add to the norms twice the product of a tied weight's part as head and its part as embedding.

        The head comes first, as a backward pass ends at the embedding: of its part only the rows of the tokens that the
        example has are kept.
        """
        starts = [sum(self._sizes[:place]) for place in range(len(self._sizes) + 1)]
        if cover.module is self.head:
            if part.name not in self._at_head:
                self._at_head[part.name] = part.right.new_zeros(len(self._tokens), part.right.shape[1])
            for place, dz, x in zip(places, part.left.split(sizes), part.right.split(sizes), strict=True):
                own = slice(starts[place], starts[place + 1])
                self._at_head[part.name][own] += dz[:, self._tokens[own]].T @ x
            return
        product = 2.0 * (self._at_head[part.name] * part.right).sum(1, dtype=torch.float64)
        for place, some in zip(places, product.split(sizes), strict=True):
            self.squared[self._rows[place]] += some.sum()

    def _project(self, part: Part, side: str) -> Tensor:
        """Return random sums of a part's left or right side, [token, SIDE]."""
        name, tensor = part.name, part.left if side == "left" else part.right
        if tensor is None:
            return self._sign(name, side, 1, part.left.device).expand(len(part.left), -1)
        if tensor.dim() == 1:
            return self._sign(name, side, part.height, tensor.device)[tensor]
        return tensor.float() @ self._sign(name, side, tensor.shape[1], tensor.device)

    def _sign(self, name: str, side: str, size: int, device: torch.device) -> Float32[Tensor, "size side"]:
        """Return the random signs of a side of a parameter, drawn once from the seed and its name."""
        if (name, side) not in self._signs:
            drawn = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name} {side}".encode()))
            signs = torch.randint(0, 2, (size, SIDE), generator=drawn).mul_(2).sub_(1).float()
            self._signs[name, side] = signs.to(device)
        return self._signs[name, side]


def split_parts(cover: Layer, call: Call, dz: Tensor) -> Iterator[Part]:
    """Yield what a module's tokens add to the gradients by its weight and its bias."""
    dz, name = widen(dz), cover.names.get("weight")
    if name is not None:
        with torch.no_grad():
            yield _split_weight(cover, call, dz, name)
    if "bias" in cover.names:
        yield Part(cover.names["bias"], dz, None, dz.shape[1])


def _split_weight(cover: Layer, call: Call, dz: Tensor, name: str) -> Part:
    if cover.kind == "scale":
        return Part(name, flatten_rows(slope_of(cover, call), cover.axis) * dz, None, dz.shape[1])
    if cover.kind == "embedding":
        ids, padding = look_up(cover, call), cover.module.padding_idx
        if padding is not None:
            dz = dz.masked_fill((ids == padding)[:, None], 0.0)
        return Part(name, ids, dz * cover.factor, len(cover.module.weight))
    x = widen(flatten_rows(input_of(call), cover.axis))
    left, right = (dz, x) if cover.kind == "linear" else (x, dz)
    return Part(name, left, right, left.shape[1])


def square_norm(left: Tensor, right: Tensor | None) -> Float64[Tensor, ""]:
    """Return || sum_t left_t right_t^T ||^2 over the tokens of one example, in whichever way is shorter.

    >>> left, right = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [1.0]])
    >>> float(square_norm(left, right)), float(square_norm(torch.tensor([1, 1]), right)), float(square_norm(left, None))
    (5.0, 4.0, 5.0)
    """
    if right is None:
        return left.sum(0, dtype=torch.float64).square().sum()
    if left.dim() == 1:
        alike = left[:, None] == left[None]
        return (right @ right.T).mul_(alike).sum(dtype=torch.float64)
    tokens, (height, width) = len(left), (left.shape[1], right.shape[1])
    if tokens * (height + width) <= height * width:
        return (left @ left.T).mul_(right @ right.T).sum(dtype=torch.float64)
    return (left.T @ right).square().sum(dtype=torch.float64)


def _refuse_shared(covers: Sequence[Layer], tied: Collection[str], head: nn.Module) -> None:
    for name in tied:
        kinds = [one for one in covers if name in one.names.values()]
        if sorted(one.kind for one in kinds) != ["embedding", "linear"] or all(one.module is not head for one in kinds):
            raise ValueError(
                f"{name} is shared by {len(kinds)} modules that are not one embedding and the head, so the norm of an "
                "example's gradient is not known; freeze it or choose rows by another selector"
            )
