"""By how much two artifacts of one name differ: tables, tensors and records, number by number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from safetensors.numpy import load

ROUNDING = 1e-5  # of a number, or of 1 where that is larger: what sums of float32 in another order may differ by
READ = "inputs."  # digests of what was read, which is compared itself
MOMENTS = ("created", "seconds", "machine")  # of a run, not of what it made


class Difference(NamedTuple):
    """By how much an artifact differs from what it was."""

    told: str  # in words; "" where its values are the same
    rounding: bool  # there is none, or none of more than ROUNDING, and only between numbers with a fraction


SAME = Difference("", True)


def find_difference(old: Path | bytes, new: Path) -> Difference:
    """Return by how much a file differs from what it was.

    Args:
        old: the file, or its content.
        new: the file of today; its ending says what it holds.
    """
    if not new.exists():
        return Difference("it was not made", False)
    if isinstance(old, Path) and not old.exists():
        return Difference("what was recorded is not in DVC's cache", False)
    before, after = old if isinstance(old, bytes) else old.read_bytes(), new.read_bytes()
    if before == after:
        return SAME
    try:
        if new.suffix == ".parquet":
            return _compare(_read_table(before), _read_table(after))
        if new.suffix == ".safetensors":
            return _compare(load(before), load(after))
        if new.suffix == ".json":
            return _compare(dict(_flatten(json.loads(before))), dict(_flatten(json.loads(after))))
        if new.suffix == ".csv":
            return _compare(_read_csv(before), _read_csv(after))
    except (ValueError, OSError, pa.ArrowException) as error:
        return Difference(f"it cannot be compared ({type(error).__name__})", False)
    return Difference(f"{len(before):,} bytes were other ones, {len(after):,}", False)


def _compare(old: dict[str, Any], new: dict[str, Any]) -> Difference:
    """Return the largest difference of numbers, and which values that are no numbers differ."""
    if old.keys() != new.keys():
        names = sorted(old.keys() ^ new.keys())
        return Difference(f"{len(names)} of its parts are on one side only, first {names[0]}", False)
    largest, where, others, rounding = 0.0, "", [], True
    for name, one in old.items():
        two = new[name]
        if np.shape(one) != np.shape(two):
            return Difference(f"{name} has shape {np.shape(one)}, now {np.shape(two)}", False)
        one, two = np.asarray(one), np.asarray(two)
        if one.dtype.kind in "fiub" and two.dtype.kind in "fiub":
            counted = one.dtype.kind != "f" and two.dtype.kind != "f"
            one, two = one.astype(np.float64), two.astype(np.float64)
            gap = np.where(np.isnan(one) & np.isnan(two), 0.0, np.nan_to_num(np.abs(one - two), nan=np.inf))
            most = float(gap.max(initial=0.0))
            allowed = 0.0 if counted else ROUNDING * np.fmax(np.abs(one), 1)
            rounding = rounding and bool((gap <= allowed).all())
            if most > largest:
                largest, where = most, name
        elif one.tolist() != two.tolist():
            others.append(name)
    told = [f"numbers by at most {largest:.2g} ({where})"] if largest else []
    told += [f"other values of {', '.join(others[:3])}"] if others else []
    return Difference("; ".join(told), rounding and all(name.startswith(READ) for name in others))


def _read_csv(content: bytes) -> dict[str, Any]:
    table = csv.read_csv(pa.BufferReader(content))
    return {name: table[name].to_numpy() for name in table.column_names}


def _read_table(content: bytes) -> dict[str, Any]:
    """Return a table's columns; of lists, their values behind each other."""
    table = pq.read_table(pa.BufferReader(content))
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            columns[f"{name} (lengths)"] = [None if one is None else len(one) for one in column.to_pylist()]
            column = column.flatten()
        columns[name] = column.to_pylist() if pa.types.is_nested(column.type) else column.to_numpy(zero_copy_only=False)
    return columns


def _flatten(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a record by its dotted name, but what tells when and how fast it was made."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in MOMENTS and not key.endswith("_seconds"):
                yield from _flatten(one, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _flatten(one, f"{place}[{number}]")
    else:
        yield place, value
