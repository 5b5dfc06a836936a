"""The sets of rows that stages read of an examples artifact, defined once.

ground: the used rows of the pool, which may be chosen. target: those of the target task. validation: those that may
steer or check the choice and are neither chosen nor measured on. learnt, offered: distinct rows of the pool, used or
not, that an earlier version chose, or had in its pool without choosing them. held_out: what is measured on. general:
what must not be forgotten.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table

USED = {"ground": "pool"} | {name: name for name in ("target", "validation", "held_out", "general")}  # set -> split
EARLIER = ("learnt", "offered")
SETS = (*USED, *EARLIER)
FAULTS = ("row", "planted", "duplicate_of", "near_duplicate_of")  # columns that `count_faults` reads
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


def read_references(source: Path, selector: str) -> pa.Table:
    """Return the rows that a selector scores others beside, by row: the target task's, or those that validate.

    Raises:
        ValueError: there is none, with the ways out.
        ArtifactError: the artifact is missing or was edited.
    """
    table, sets = read_sets(source, ("target", "validation"))
    places = sets["target"] if len(sets["target"]) else sets["validation"]
    if not len(places):
        raise ValueError(
            f"selector {selector} scores rows beside those of the target task or those that validate, and {source} has "
            "0 of either; set examples.target or examples.validation_every, or choose by another selector"
        )
    return table.take(places)


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


def count_faults(rows: pa.Table) -> dict[str, Any]:
    """Return how many of some examples are planted, by their word, and how many repeat another one of them.

    Of rows with one text, or with almost the same words, all but one are repeats.

    >>> said = {"row": [0, 1, 2], "planted": ["cut", None, None]}
    >>> count_faults(pa.table(said | {"duplicate_of": [None, 0, None], "near_duplicate_of": [None, None, 0]}))
    {'planted': {'cut': 1}, 'repeats': 2}
    """
    first = pc.coalesce(rows["near_duplicate_of"], rows["duplicate_of"], rows["row"])
    words = Counter(word for word in rows["planted"].to_pylist() if word is not None)
    return {"planted": dict(sorted(words.items())), "repeats": rows.num_rows - pc.count_distinct(first).as_py()}


def name_firsts(rows: pa.Table) -> pa.ChunkedArray:
    """Return for each of some examples the id of the first of them that has its text.

    >>> said = {"id": ["a", "b", "a-2"], "row": [0, 1, 2], "duplicate_of": [None, None, 0]}
    >>> name_firsts(pa.table(said | {"duplicate_of": pa.array([None, None, 0], pa.int64())})).to_pylist()
    ['a', 'b', 'a']
    """
    text = pc.coalesce(rows["duplicate_of"], rows["row"])
    _, first, place = np.unique(np.asarray(text), return_index=True, return_inverse=True)
    return rows["id"].take(first[place])


def mark(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return for each example whether it is in a set."""
    if name in USED:
        return pc.and_(table["used"], pc.equal(table["split"], USED[name]))
    if name not in EARLIER:
        raise ValueError(f"there is no set of rows {name!r}; known: {', '.join(SETS)}")
    earlier = pc.fill_null(pc.equal(table["earlier"], name), False)
    return pc.and_(pc.and_(pc.equal(table["split"], "pool"), pc.is_null(table["duplicate_of"])), earlier)
