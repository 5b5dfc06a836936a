"""The rows that selection is about, and which of them have one text."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.examples.conversations import join_texts
from tasks.artifacts.row_sets import FAULTS, name_firsts, read_references, read_set, read_sets
from tasks.conversations import read_conversation


class SelectionError(ValueError):
    """The rows cannot be chosen as asked."""


@dataclass(frozen=True)
class Rows:
    """The examples by what they are for."""

    ground: pa.Table  # the used pool, by row: what may be chosen, and what is to be covered; `first`: see `Texts`
    target: list[str]  # ids of the target task
    learnt: list[str]  # ids of what an earlier version chose, whether they may be chosen again or not
    scored: list[str]  # ids of the first row of each text of the used pool, those that left before the choice too
    gated: list[str] = field(default_factory=list)  # ids of the used pool that left before the choice
    pinned: list[str] = field(default_factory=list)  # ids of the used pool that a person wants to be chosen

    def find_pinned(self) -> np.ndarray:
        """Return the places of the pinned rows in the pool."""
        marks = pc.is_in(self.ground["id"], value_set=pa.array(self.pinned, pa.string()))
        return np.flatnonzero(marks.to_numpy())


@dataclass(frozen=True, eq=False)
class Texts:
    """The distinct texts of the pool; pairs are scored for the first row of each, and hold for all."""

    ids: list[str]  # of the first row of each text in the used pool
    places: np.ndarray  # int64, of each row of the pool among the texts
    topics: list[str]  # of each text, that of its first row which is there


def read_rows(source: Path, pinned: Collection[str] = ()) -> Rows:
    """Return the used rows of the pool, those of the target task, and what an earlier version chose.

    Args:
        source: `examples.parquet`.
        pinned: `same_as` of rows that are to be chosen where the pool has them; of repetitions the first.
    """
    columns = ["id", "same_as", "topic", "source", "response_tokens", "weight", *FAULTS]
    table, sets = read_sets(source, ("ground", "target", "learnt"), columns)
    target, learnt = (table["id"].take(sets[name]).to_pylist() for name in ("target", "learnt"))
    ground = table.take(sets["ground"])
    firsts = name_firsts(ground)
    known = dict(zip(reversed(ground["same_as"].to_pylist()), reversed(ground["id"].to_pylist()), strict=True))
    wanted = [known[same] for same in sorted(pinned) if same in known]
    ground = ground.append_column("first", firsts)
    return Rows(ground, target, learnt, pc.unique(firsts).to_pylist(), pinned=wanted)


def list_texts(rows: Rows) -> Texts:
    """Return the distinct texts of the pool, in the order in which they come."""
    firsts = rows.ground["first"].combine_chunks().dictionary_encode()
    places = firsts.indices.to_numpy().astype(np.int64)
    topics = rows.ground["topic"].take(np.unique(places, return_index=True)[1])
    return Texts(firsts.dictionary.to_pylist(), places, topics.to_pylist())


def read_texts(source: Path, selector: str, ids: list[str]) -> tuple[list[str], list[str]]:
    """Return all that is said in each of some rows of the pool, by row, and in each reference row.

    Raises:
        ValueError: there is no reference row.
    """
    pool = read_set(source, "ground")
    tables = pool.filter(pc.is_in(pool["id"], pa.array(ids, pa.string()))), read_references(source, selector)
    ground, references = ([join_texts(read_conversation(row)) for row in table.to_pylist()] for table in tables)
    return ground, references


def wanted_rows(rows: Rows, objective: str) -> Rows:
    """Return the rows with those learnt and those of the target task only where the objective needs them.

    Raises:
        SelectionError: mutual information without a target task.
    """
    if objective == "mutual_information" and not rows.target:
        raise SelectionError(
            "selection.objective is mutual_information but no row is of the target task; set examples.target"
        )
    learnt = rows.learnt if objective == "conditional_gain" else []
    return replace(rows, target=rows.target if objective == "mutual_information" else [], learnt=learnt)
