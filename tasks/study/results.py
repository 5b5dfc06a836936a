"""Finished cells of a study: one Parquet table per pool, small enough to stand in git, a row per training.

A sitting adds rows and the next one, on another machine, goes on from what is there. The held-out losses stand in each
row, so that every figure of the report can be made again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.submodular import cosines
from tamis.submodular.optimisers import share_of_all
from tasks.artifacts.row_sets import read_set
from tasks.artifacts.tables import Provenance, read_lists, read_table, write_table

IDENTITY = ("pool", "selector", "budget", "mask", "seed")
MADE_FROM = ("pool_digest", "asked", "model")  # a cell with the same three need not be run again
CORRUPTED = ("exchanged", "cut")  # words of `planted`
SCHEMA = pa.schema(
    [
        pa.field("pool", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),  # design | confirm
        pa.field("selector", pa.string(), nullable=False),  # its name in the study
        pa.field("budget", pa.string(), nullable=False),  # as it was asked for; "" where the selector has its own
        pa.field("mask", pa.string(), nullable=False),  # none: every parameter that the method trains
        pa.field("seed", pa.int32(), nullable=False),  # of the pool's rows and of the training
        pa.field("pool_digest", pa.string(), nullable=False),  # of the raw rows
        pa.field("asked", pa.string(), nullable=False),  # digest of all settings that are not at their defaults
        pa.field("rule", pa.string(), nullable=False),  # the same but for seeds: cells of one group share it
        pa.field("model", pa.string(), nullable=False),  # digest of the language model
        pa.field("commit", pa.string(), nullable=False),  # of the project; with a + where files were edited
        pa.field("code", pa.string(), nullable=False),  # digest of the modules of all stages
        pa.field("machine", pa.string(), nullable=False),  # a short name that does not tell its own
        pa.field("pool_rows", pa.int32(), nullable=False),  # that could be chosen
        pa.field("chosen_rows", pa.int32(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),  # optimiser steps
        pa.field("epochs", pa.int32(), nullable=False),  # over the chosen rows
        pa.field("corrupted", pa.int32(), nullable=False),  # chosen rows with another's response, or one that is cut
        pa.field("pool_corrupted", pa.int32(), nullable=False),
        pa.field("repeats", pa.int32(), nullable=False),  # chosen rows that say what another chosen one says
        pa.field("pool_repeats", pa.int32(), nullable=False),
        pa.field("of_target", pa.int32()),  # chosen rows of the target task; null where there is none
        pa.field("pool_target", pa.int32()),
        pa.field("coverage", pa.float64()),  # of clean rows left out, by embedding; share of what is attainable
        pa.field("chosen", pa.list_(pa.string()), nullable=False),  # ids, in the order of choice
        pa.field("ids", pa.list_(pa.string()), nullable=False),  # held-out rows
        pa.field("losses", pa.list_(pa.float32()), nullable=False),  # on them, nats per response token
        pa.field("base_losses", pa.list_(pa.float32()), nullable=False),  # of the model before any training
        pa.field("correct", pa.list_(pa.bool_()), nullable=False),  # by the task metric; empty without one
        pa.field("base_correct", pa.list_(pa.bool_()), nullable=False),
        pa.field("scoring_seconds", pa.float64(), nullable=False),
        pa.field("selecting_seconds", pa.float64(), nullable=False),
        pa.field("training_seconds", pa.float64(), nullable=False),
        pa.field("resumed", pa.int32(), nullable=False),  # parts of these whose interrupted attempts are left out
        pa.field("scoring_flops", pa.float64()),  # floating-point operations, counted; null where they were not
        pa.field("training_flops", pa.float64()),
        pa.field("full_flops", pa.float64()),  # of training as many epochs on all rows of the pool
        pa.field("pilot", pa.string()),  # JSON: what selection.pilot decided; null where it was off
    ]
)


def find_file(root: Path, pool: str) -> Path:
    """Return the file of a pool's cells."""
    return root / f"{pool}.parquet"


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a file, none where there is no file.

    Raises:
        ArtifactError: it was edited, or has other columns.
    """
    return read_table(path, SCHEMA).to_pylist() if path.exists() else []


def read_all(root: Path) -> list[dict[str, Any]]:
    """Return the cells of all pools under a folder."""
    return [row for path in sorted(root.rglob("*.parquet")) for row in read_cells(path)]


def index_cells(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return cells by what they were made from."""
    return {tuple(row[name] for name in MADE_FROM): row for row in rows}


def add_cell(path: Path, row: Mapping[str, Any]) -> None:
    """Add a cell to a pool's file, in place of an earlier one of the same name; whole or not at all."""
    identity = [row[name] for name in IDENTITY]
    kept = [each for each in read_cells(path) if [each[name] for name in IDENTITY] != identity]
    rows = sorted([*kept, dict(row)], key=lambda each: tuple(str(each[name]) for name in IDENTITY))
    made = Provenance("study", row["pool"], {}, {})
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, made)


def describe_choice(examples: Path, embedding: Path, selection: Path) -> dict[str, Any]:
    """Return what a choice took of a pool: rows that are wrong, repeated, of the target task, and what it covers.

    Args:
        examples, embedding, selection: folders of artifacts; the vectors are of all used rows.
    """
    source = examples / "examples.parquet"
    ground = read_set(source, "ground").select(["id", "topic", "planted", "kept"]).to_pylist()
    target = set(read_set(source, "target")["topic"].to_pylist())
    subset = read_table(selection / "subset.parquet")
    chosen = subset.filter(subset["chosen"]).sort_by("rank")["id"].to_pylist()
    place = {row["id"]: number for number, row in enumerate(ground)}
    picks = [ground[place[name]] for name in chosen]
    counts = {
        "corrupted": lambda rows: sum(row["planted"] in CORRUPTED for row in rows),
        "repeats": lambda rows: len(rows) - len({name_group(row) for row in rows}),
        "target": lambda rows: sum(row["topic"] in target for row in rows) if target else None,
    }
    found = {"pool_rows": len(ground), "chosen_rows": len(picks), "chosen": chosen}
    for name, count in counts.items():
        found |= {"of_target" if name == "target" else name: count(picks), f"pool_{name}": count(ground)}
    clean = np.array([row["planted"] not in CORRUPTED for row in ground])
    order = np.array([place[name] for name in chosen], np.int64)
    return found | {"coverage": measure_coverage(read_vectors(embedding, list(place)), order, clean)}


def name_group(row: Mapping[str, Any]) -> str:
    """Return what rows that say the same have in common: the group that their maker gave them, else their text.

    >>> name_group({"id": "ab-1", "kept": None}), name_group({"id": "ab", "kept": '{"group": "x"}'})
    ('ab', 'x')
    """
    group = json.loads(row["kept"]).get("group") if row["kept"] else None
    return group or row["id"].partition("-")[0]


def read_vectors(embedding: Path, ids: list[str]) -> np.ndarray:
    """Return the embeddings of some rows."""
    source = embedding / "embedding.parquet"
    place = {name: number for number, name in enumerate(read_table(source, columns=["id"])["id"].to_pylist())}
    return read_lists(source, "embedding")[[place[name] for name in ids]]


def measure_coverage(vectors: np.ndarray, chosen: np.ndarray, clean: np.ndarray) -> float | None:
    """Return how well the chosen rows stand for the clean ones that are left out.

    sum_i max_{j chosen} s_ij / sum_i max_{j != i} s_ij over clean rows i that are not chosen, s = max(cosine, 0)

    Returns:
        In [0, 1]; None where every clean row is chosen.
    """
    kernel = cosines.compare(vectors, vectors).copy()
    np.fill_diagonal(kernel, 0)
    left = clean.copy()
    left[chosen] = False
    return share_of_all(kernel[left], chosen) if left.any() else None
