"""G, the sum of the gradients of the pool's rows: shards are summed by anybody, and added in the pool's order.

The file of a sum says of how many rows it is, which are the pool's first ones. A shard that is next is added to it; one
that is early waits beside it, in a file named by the place of its first row. So the sum has the same bits whoever
computes the shards, and in whatever order they end; a kill loses shards in hand, and counts none twice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.artifacts.locks import locked
from tasks.artifacts.tensors import read, stream, write


def count_rows(total: Path) -> int:
    """Return how many rows a sum is of, 0 where there is none yet."""
    return read(total, ())[1]["rows"] if total.exists() else 0


def list_waiting(total: Path) -> dict[int, Path]:
    """Return the shards that wait to be added, by the place of their first row."""
    found = total.parent.glob(f"{total.stem}.*{total.suffix}")
    return {int(path.suffixes[-2][1:]): path for path in found if path.suffixes[-2][1:].isdigit()}


def add(total: Path, start: int, sums: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Add a shard's sums to those of the rows before it, and then the shards that waited for it.

    Args:
        total: file of the sum.
        start: place of the shard's first row in the pool.
        sums: by parameter name, float32.
        facts: `rows` of the shard, and the `seconds` that it took.

    Cost: both in memory a tensor at a time; each sum is as large as the parameters, and is read and written whole.
    """
    with locked(total.with_suffix(".lock")):
        known = count_rows(total)
        if start > known:
            write(sums, total.with_name(f"{total.stem}.{start}{total.suffix}"), facts)
        elif start == known:
            _join(total, sums, facts)
        _settle(total)  # a shard of rows that others have summed already is left


def settle(total: Path) -> int:
    """Add the shards that wait and are next; return how many rows the sum then is of."""
    with locked(total.with_suffix(".lock")):
        return _settle(total)


def _settle(total: Path) -> int:
    while path := list_waiting(total).get(count_rows(total)):
        _join(total, *read(path))
        path.unlink()
    for start, path in list_waiting(total).items():
        if start < count_rows(total):  # its turn is over
            path.unlink()
    return count_rows(total)


def _join(total: Path, sums: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    if not total.exists():
        write(sums, total, facts)
        return
    before, known = read(total)
    whole = ((name, tensor + sums[name].cpu()) for name, tensor in before.items())
    stream(whole, [total], total, {name: known[name] + facts[name] for name in ("rows", "seconds")})
