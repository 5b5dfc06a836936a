"""Small artifacts that the stage `selection` reads, and a run of it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch

from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, digest_inputs, read_table, write_table
from tasks.masks.settings import MaskSettings
from tasks.models import ModelChoice
from tasks.selection.selection import write_selection
from tasks.selection.settings import SelectionSettings
from worlds.places import find_folders

HALF = SelectionSettings(budget={"fraction": 0.5})
NO_MASK = MaskSettings(selector="none")
NOWHERE = ModelChoice("nowhere")  # rows are chosen without it


def write_utility(
    folder: Path, ids: list[str], matrix: np.ndarray, *, keep=None, in_kernel=None, more=(), kernel="exact", shuffle=0
):
    """Write the pairs of a matrix over ids, those of which `keep` is true, and of more blocks, in a shuffled order.

    Those of which `in_kernel` is false tell the help of demos alone. A further block is targets' ids, demos' ids and
    their matrix. No target is checked.
    """
    keep = np.ones(matrix.shape, bool) if keep is None else keep
    in_kernel = keep if in_kernel is None else in_kernel
    pairs = [(ids[i], ids[j], matrix[i, j], in_kernel[i, j]) for i, j in np.argwhere(keep)]
    for targets, demos, block in more:
        pairs += _list_pairs(targets, demos, block)
    pairs = [pairs[place] for place in np.random.default_rng(shuffle).permutation(len(pairs))]
    _write_pairs(folder / "utility.parquet", pairs, kernel)
    vectors = folder.parent / "embedding/embedding.parquet"
    if not vectors.exists():
        write_table(schemas.embedding(1).empty_table(), vectors, Provenance("embedding", "v1"))
    _write_pairs(folder / "checked.parquet", [], kernel)


def write_check(folder: Path, targets: list[str], demos: list[str], matrix: np.ndarray):
    """Write whole rows of targets that were scored with every demo."""
    _write_pairs(folder / "checked.parquet", _list_pairs(targets, demos, matrix), "neighbours")


def write_scores(folder: Path, ids: list[str], score: list[float], selector: str = "less"):
    """Write a selector's scores of ids."""
    table = pa.table([ids, pa.array(score, pa.float64())], schema=schemas.SCORES)
    write_table(table, folder / "scores.parquet", Provenance("scores", "v1", {"selector": selector}))


def write_phi_data(
    folder: Path,
    ids: list[str],
    score: list[float],
    order: str | list[str] = "second",
    *,
    sketches: np.ndarray | None = None,
    norm: np.ndarray | float = 2.0,
):
    """Write phi_data of ids and sketches of their gradients, made from the examples beside it."""
    orders = [order] * len(ids) if isinstance(order, str) else order
    found = np.asarray(score, np.float64)
    columns = [pa.array(ids, pa.string()), found, np.full(len(ids), norm), found / norm, np.ones(len(ids)), orders]
    made = Provenance("gradients", "v1", {}, _made_from(folder))
    write_table(pa.table(columns, schema=schemas.PHI_DATA), folder / "gradients/phi_data.parquet", made)
    told = schemas.sketches(1).empty_table()
    if sketches is not None:
        entries = sketches.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(sketches.ravel(), pa.float32()), entries)
        told = pa.table([pa.array(ids, pa.string()), vectors], schema=schemas.sketches(entries))
    write_table(told, folder / "gradients/sketches.parquet", made)


def write_phi_param(folder: Path, tensors: dict[str, torch.Tensor], scores: str | None = "dualsft", **known):
    """Write scores of parameters, made from the examples beside them."""
    record = Provenance("gradients", "v1", {"scores": scores, **known}, _made_from(folder))
    (folder / "gradients").mkdir(exist_ok=True)
    header = {"tamis": json.dumps(asdict(record))}
    safetensors.torch.save_file(tensors, folder / "gradients/phi_param.safetensors", header)


def _made_from(folder: Path) -> dict[str, str]:
    return digest_inputs(folder / "examples/examples.parquet")


def write_embedding(folder: Path, ids: list[str], vectors: np.ndarray):
    """Write unit vectors of ids."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
    table = pa.table([pa.array(ids), values], schema=schemas.embedding(vectors.shape[1]))
    write_table(table, folder / "embedding.parquet", Provenance("embedding", "v1"))


def run(
    folder: Path,
    settings: SelectionSettings = HALF,
    out: str = "out",
    *,
    model: ModelChoice = NOWHERE,
    mask: MaskSettings = NO_MASK,
    diagonal: str = "scored",
    **more,
) -> tuple[list[dict], dict]:
    """Return the subset's rows and the metrics."""
    asked = {"model": model, "settings": settings, "diagonal": diagonal, "mask": mask}
    write_selection(find_folders(folder, selection=folder / out), **asked, **more)
    subset = read_table(folder / out / "subset.parquet", schemas.SUBSET).to_pylist()
    return subset, json.loads((folder / out / "selection.json").read_text())


def chosen(subset: list[dict]) -> list[str]:
    """Return the chosen ids in their order."""
    return [row["id"] for row in subset if row["chosen"]]


def draw_vectors(rows: int, width: int = 6, seed: int = 0) -> np.ndarray:
    """Return unit vectors in all directions."""
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _list_pairs(targets: list[str], demos: list[str], matrix: np.ndarray) -> list[tuple]:
    return [(one, other, matrix[i, j], True) for i, one in enumerate(targets) for j, other in enumerate(demos)]


def _write_pairs(path: Path, pairs: list[tuple], kernel: str):
    columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    columns.append(pa.array([pair[2] for pair in pairs], pa.float32()))
    columns.append(pa.array([bool(pair[3]) for pair in pairs]))
    made = Provenance("utility", "v1", {"kernel": kernel})
    write_table(pa.table(columns, schema=schemas.UTILITY), path, made)
