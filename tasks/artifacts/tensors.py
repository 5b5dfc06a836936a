"""Tensors on disk: safetensors files, written whole or not at all, one tensor per parameter under its name.

What is known beside the tensors stands in the header, as one JSON text under `tamis`. Tensors that are read lie on the
disk until they are touched, and a file may be written a tensor at a time.
"""

import json
import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tasks.artifacts.tables import ArtifactError, replacing

HEADER = "tamis"
NAMES = {"float32": "F32", "float64": "F64"}  # of the dtypes that scores have
BYTES = {"F32": 4, "F64": 8}
ANEW = "delete it: what it held is computed again"


def write(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, Any]) -> None:
    """Write tensors and what is known of them, whole or not at all; equal content gives equal bytes.

    Raises:
        ArtifactError: the disk is full or refuses the write; what stood at `path` is untouched.
    """
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            safetensors.torch.save_file(found, part, _header(facts))
        except safetensors.SafetensorError as error:
            raise ArtifactError(
                f"{path} could not be written: {error}; nothing was left behind. Free space on that disk or move the "
                "project, then run again"
            ) from error


def stream(
    tensors: Iterable[tuple[str, Tensor]], sources: Sequence[Path], path: Path, facts: Mapping[str, Any]
) -> None:
    """Write tensors one at a time, whole or not at all, so that one is in memory.

    Args:
        tensors: those of the sources in their order, with other values: a file's header comes first.
        sources: files whose tensors have the same names, shapes and dtypes, float32 or float64.
        path: of the new file.
        facts: for its header.

    Raises:
        ValueError: tensors that are not those of the sources.
        ArtifactError: the disk is full or refuses the write; what stood at `path` is untouched.
    """
    layout = _lay_out(sources)
    text = json.dumps({"__metadata__": _header(facts), **layout}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers stand where machines read them at once
    expected = iter(layout.items())
    with replacing(path) as part, open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            known, place = next(expected, ("nothing", {}))
            data = tensor.detach().cpu().contiguous().numpy()
            found = {"dtype": NAMES[data.dtype.name], "shape": list(data.shape)}
            if name != known or not found.items() <= place.items():
                raise ValueError(f"{name} {found} was given where {known} {place} belongs in {path}")
            file.write(data.data)
            del tensor, data  # before the next one is made
        left = [name for name, _ in expected]
        if left:
            raise ValueError(f"{len(left)} of {len(layout)} tensors were not given for {path}, first {left[:3]}")


def read(
    path: Path, names: Collection[str] | None = None, way_out: str = ANEW
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what was written, on the CPU; of the tensors those with these names, in the file's order.

    Args:
        path: of the file.
        names: None: all.
        way_out: that is told where the file is damaged.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            kept = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118 (no mapping)
            return {name: file.get_tensor(name) for name in kept}, json.loads(file.metadata()[HEADER])
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); {way_out}") from error


def _header(facts: Mapping[str, Any]) -> dict[str, str]:
    return {HEADER: json.dumps(facts, sort_keys=True)}


def _lay_out(sources: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return what a file's header says of each tensor, those of several files one after the other."""
    found, start = {}, 0
    for path in sources:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                end = start + BYTES[part.get_dtype()] * math.prod(part.get_shape())
                place = {"dtype": part.get_dtype(), "shape": list(part.get_shape())}
                found[name] = place | {"data_offsets": [start, end]}
                start = end
    return found
