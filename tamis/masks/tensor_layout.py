"""Layouts: where a model's tensors stand, and a tensor's entries as rows and columns.

Symbols: entry = one number of one tensor; its flat index counts in the stored (row-major) order; row = index along
dimension 0 of the stored tensor (a vector is one row); column = flat index within a row.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
NORM = re.compile(r"norm|^ln_")
MODULES = {
    **{f"{name}_proj": name for name in ("q", "k", "v", "o", "gate", "up", "down")},
    **{"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},  # GPT-2: q, k, v are one
    **{"self_attn.out_proj": "o", "fc1": "up", "fc2": "down"},  # OPT
    **dict.fromkeys(("embed_tokens", "embed_positions", "wte", "wpe", "lm_head"), "embedding"),
}

Shapes = Mapping[str, tuple[int, ...]]  # name -> shape of the stored tensor, in the model's order


class MaskError(ValueError):
    """A mask that cannot be cut, or that belongs to another model."""


def locate(name: str) -> tuple[int | None, str]:
    """Return the layer (None outside of any) and the module group of a parameter by its name.

    Groups: q, k, v, o, gate, up, down, embedding (input, position and output), norm; `qkv` where one tensor holds all
    three (GPT-2); else `other`. A bias belongs to its weight's group. Knows Llama, Qwen, Gemma, GPT-2 and OPT names.

    >>> locate("model.layers.3.self_attn.q_proj.bias"), locate("transformer.h.0.mlp.c_proj.weight"), locate("lm_head")
    ((3, 'q'), (0, 'down'), (None, 'embedding'))
    """
    layer = LAYER.search(name)
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    known = next((MODULES[end] for end in (parts[-1], ".".join(parts[-2:])) if end in MODULES), None)
    module = known or ("norm" if NORM.search(parts[-1]) else "other")
    return (int(layer[1]) if layer else None), module


def index_type(shape: tuple[int, ...]) -> type:
    """Return the type of flat indices: int32, or int64 where a tensor has more than 2^31 entries."""
    return np.int32 if int(np.prod(shape)) <= 1 << 31 else np.int64


def split_rows(indices: Integer[np.ndarray, " entry"], shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return flat indices as rows: which rows (index along dimension 0), where each begins, and the columns.

    A vector is one row. A column is the flat index within a row, whatever the number of dimensions.

    Returns:
        `rows` int64, ascending, those with at least one entry; `offsets` int64 [row + 1], as Parquet lists have them;
        `columns` of the type of `indices`: row n has `columns[offsets[n]:offsets[n + 1]]`.

    >>> [part.tolist() for part in split_rows(np.int32([1, 2, 9]), (3, 4))]
    [[0, 2], [0, 2, 3], [1, 2, 1]]
    """
    width = _width(shape)
    row_of = indices // width
    starts = np.flatnonzero(np.diff(row_of, prepend=-1))
    offsets = np.append(starts, len(indices)).astype(np.int64)
    return row_of[starts].astype(np.int64), offsets, (indices - row_of * width).astype(indices.dtype)


def join_rows(
    rows: Integer[np.ndarray, " row"],
    offsets: Integer[np.ndarray, " edge"],
    columns: Integer[np.ndarray, " entry"],
    shape: tuple[int, ...],
) -> Integer[np.ndarray, " entry"]:
    """Return the flat indices that `split_rows` took apart, the same bits.

    >>> join_rows(np.array([0, 2]), np.array([0, 2, 3]), np.int32([1, 2, 1]), (3, 4))
    array([1, 2, 9], dtype=int32)
    """
    flat = np.repeat(rows, np.diff(offsets)) * _width(shape) + columns
    return flat.astype(index_type(shape))


def describe_rows(values: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Return the least, mean and largest score of each row's chosen entries, float64; `offsets` from `split_rows`.

    >>> describe_rows(np.float32([1, -3, 5]), np.array([0, 2, 3]))["mean"].tolist()
    [-1.0, 5.0]
    """
    values, starts = values.astype(np.float64), offsets[:-1]
    mean = np.add.reduceat(values, starts) / np.diff(offsets)
    return {"least": np.minimum.reduceat(values, starts), "mean": mean, "largest": np.maximum.reduceat(values, starts)}


def densities(shapes: Shapes, chosen: Mapping[str, int]) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return entries, chosen ones and their share by `tensor`, `layer` (None outside of any) and `module`.

    >>> densities({"layers.0.fc1.weight": (2, 2), "wte.weight": (4, 1)}, {"wte.weight": 1})["module"]["embedding"]
    {'entries': 4, 'chosen': 1, 'density': 0.25}
    """
    found: dict[str, dict[Any, dict[str, Any]]] = {"tensor": {}, "layer": {}, "module": {}}
    for name, shape in shapes.items():
        for kind, label in zip(found, (name, *locate(name)), strict=True):
            facts = found[kind].setdefault(label, {"entries": 0, "chosen": 0})
            facts["entries"] += int(np.prod(shape))
            facts["chosen"] += chosen.get(name, 0)
    for facts in (facts for labels in found.values() for facts in labels.values()):
        facts["density"] = facts["chosen"] / max(facts["entries"], 1)
    return found


def refuse_other(shapes: Shapes, others: Shapes, what: str) -> None:
    """Raise MaskError where two models' tensors have other names or shapes, naming the first differences.

    Args:
        shapes: of the model at hand.
        others: of the model that `what` (a mask, a delta) was made for.
    """
    names = list(dict.fromkeys([*shapes, *others]))
    wrong = [name for name in names if shapes.get(name) != others.get(name)]
    if wrong:
        pairs = ((name, shapes.get(name, "absent"), others.get(name, "absent")) for name in wrong[:3])
        places = "; ".join(f"{name}: {here} here, {there} there" for name, here, there in pairs)
        raise MaskError(
            f"the {what} belongs to another model: {len(wrong)} of {len(names)} tensors differ, first {places}. "
            "Make it again for this model, or use the model that it was made for"
        )


def _width(shape: tuple[int, ...]) -> int:
    """Return the entries of one row."""
    return max(int(np.prod(shape[1:] if len(shape) > 1 else shape)), 1)
