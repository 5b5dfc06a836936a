"""The sets of rows that stages read of an examples artifact, defined once.

ground: the used rows of the pool, which may be chosen. target: those of the target task. validation: those that may
steer or check the choice and are neither chosen nor measured on. learnt, offered: distinct rows of the pool, used or
not, that an earlier version chose, or had in its pool without choosing them. held_out: what is measured on. general:
what must not be forgotten.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table

USED = {"ground": "pool"} | {name: name for name in ("target", "validation", "held_out", "general")}  # set -> split
EARLIER = ("learnt", "offered")
SETS = (*USED, *EARLIER)
MARKS = ("row", "split", "used", "earlier", "duplicate_of")  # columns that tell the sets, and the rows' order


def read_set(source: Path, name: str) -> pa.Table:
    """Return the examples of a set, by row.

    Args:
        source: `examples.parquet`.
        name: one of `SETS`.

    Raises:
        ArtifactError: the artifact is missing or was edited.
    """
    table = read_table(source, schemas.EXAMPLES)
    return table.filter(mark(table, name)).sort_by("row")


def read_sets(
    source: Path, names: Sequence[str] = SETS, columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Return the examples of some sets, each once and by row, and the ascending positions of each set among them.

    Args:
        source: `examples.parquet`.
        names: some of `SETS`.
        columns: of the examples, those that are wanted; only these come into memory. None: all.

    Raises:
        ArtifactError: the artifact is missing or was edited.
    """
    wanted = schemas.EXAMPLES.names if columns is None else list(columns)
    table = read_table(source, schemas.EXAMPLES, list(dict.fromkeys([*wanted, *MARKS]))).sort_by("row")
    members = {name: np.asarray(mark(table, name)) for name in names}
    some = np.logical_or.reduce(list(members.values()))
    return table.select(wanted).filter(some), {name: np.flatnonzero(mask[some]) for name, mask in members.items()}


def mark(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return for each example whether it is in a set."""
    if name in USED:
        return pc.and_(table["used"], pc.equal(table["split"], USED[name]))
    if name not in EARLIER:
        raise ValueError(f"there is no set of rows {name!r}; known: {', '.join(SETS)}")
    earlier = pc.fill_null(pc.equal(table["earlier"], name), False)
    return pc.and_(pc.and_(pc.equal(table["split"], "pool"), pc.is_null(table["duplicate_of"])), earlier)
