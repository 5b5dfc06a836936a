"""The mask as an artifact: which parameters may be trained, cut from their scores and read back to the same bits.

`mask.parquet` holds a row per row of a tensor with chosen entries, `tensors.parquet` one per tensor of the model
(`tamis.masks.tensor_layout` says what rows and columns are). Both are written, and scores are read, a tensor at a time.
"""

import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open

from tamis.masks.tensor_layout import (
    MaskError,
    Shapes,
    densities,
    describe_rows,
    join_rows,
    locate,
    refuse_other,
    split_rows,
)
from tamis.masks.topk import Cut, Read, cut, pick, resolve
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import (
    Provenance,
    check_table,
    digest,
    digest_inputs,
    provenance,
    read_facts,
    read_table,
    write_table,
    write_tables,
)
from tasks.masks.settings import MaskSettings

BY_GRADIENTS = ("dualsft", "fisher")  # their scores are read, the others' made
PHI_PARAM = "phi_param.safetensors"
TIES = 1e-4  # share of the mask from which a choice among equal scores is worth a warning


@dataclass(frozen=True)
class MaskPlan:
    """What a mask was cut by, and the model that it was cut for."""

    selector: str  # what scored parameters
    k: int  # chosen entries; 0 where no mask was asked for
    signed: bool
    layer_share: float
    module_share: float
    seed: int | None  # of random scores
    shapes: Shapes  # of every tensor of the model, in its order
    model_digest: str | None


def write_mask(
    settings: MaskSettings, *, examples: Path, gradients: Path, out: Path, version: str, model: models.ModelChoice
) -> dict[str, Any]:
    """Cut the mask, write `mask.parquet` and `tensors.parquet`, and return what was chosen, in numbers.

    Without a mask (`none`) both are empty, and nothing of the model is read.

    Raises:
        MaskError: a budget or shares that cannot be; scores of another kind, of another model, of
            other examples, or not finite.
    """
    source = gradients / PHI_PARAM
    if settings.selector == "none":
        made = Provenance("selection", version, {"selector": "none"}, digest_inputs(examples))
        write_table(schemas.MASK.empty_table(), out / "mask.parquet", made)
        write_table(schemas.TENSORS.empty_table(), out / "tensors.parquet", made)
        return {"by": "none", "chosen": 0}
    shapes, read = open_scores(settings, source, examples, model)
    k = resolve(settings.budget, count_entries(shapes))
    shares = {"layer_share": settings.layer_share, "module_share": settings.module_share}
    found = cut(shapes, read, k, signed=settings.signed, **shares)
    how = {"selector": settings.selector, "budget": dict(settings.budget), "k": k, "signed": settings.signed} | shares
    how |= {"model": model.label, "model_digest": models.model_digest(model)}
    inputs = digest_inputs(examples, *([source] if settings.selector in BY_GRADIENTS else []))
    made = Provenance("selection", version, how, inputs, settings.seed if settings.selector == "random" else None)
    thresholds: dict[str, float] = {}
    write_tables(tabulate_rows(found, read, thresholds), schemas.MASK, out / "mask.parquet", made)
    write_table(tabulate_tensors(found, thresholds), out / "tensors.parquet", made)
    return describe(settings.selector, found)


def open_scores(settings: MaskSettings, source: Path, examples: Path, model: models.ModelChoice) -> tuple[Shapes, Read]:
    """Return the shapes of the model's tensors, in its order, and what reads the scores of one.

    dualsft and fisher: from `phi_param.safetensors`; magnitude: |w| of the base model; random: uniform in [0, 1), by
    seed and name. A tied head stands once. Weights are read for magnitude alone.
    """
    network = models.language_model(model) if settings.selector == "magnitude" else models.skeleton(model)
    weights = dict(network.named_parameters())
    shapes = list_shapes(weights)
    if settings.selector == "magnitude":
        return shapes, lambda name: weights[name].detach().float().abs().cpu().numpy()
    if settings.selector == "random":
        return shapes, lambda name: draw(name, shapes[name], settings.seed)
    refuse_other_scores(settings.selector, source, shapes, model, digest(examples))
    return shapes, lambda name: read_scores(source, name)


def list_shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by their names."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def count_entries(shapes: Shapes) -> int:
    """Return the number of all entries."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return uniform float32 scores of a tensor: the same ones for the same seed, name and shape, on any machine."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).random(shape, np.float32)


def read_scores(source: Path, name: str) -> np.ndarray:
    """Return the stored scores of one tensor, float32, or float64 where they are."""
    with safe_open(source, "pt") as file:
        scores = file.get_tensor(name)
    return (scores if scores.dtype == torch.float64 else scores.float()).numpy()


def refuse_other_scores(by: str, source: Path, shapes: Shapes, model: models.ModelChoice, examples: str) -> None:
    """Refuse scores of another kind, of other examples (by their digest) or of another model.

    Raises:
        MaskError: naming what differs.
        ArtifactError: the file is missing or damaged.
    """
    record = read_facts(source)
    kind, known = record["parameters"].get("scores"), record["parameters"].get("model_digest")
    if kind != by:
        raise MaskError(
            f"{source} holds {f'scores of {kind}' if kind else 'no scores'} and mask.selector is {by}; make it "
            "again: `tamis run`"
        )
    if examples not in record["inputs"].values():
        raise MaskError(f"{source} was made from other examples than those there are; make both again: `tamis run`")
    with safe_open(source, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
    refuse_other(shapes, {name: stored[name] for name in [*shapes, *stored] if name in stored}, f"score file {source}")
    refuse_digest(models.model_digest(model), known, f"score file {source}")


def refuse_digest(here: str, there: str | None, what: str) -> None:
    """Raise MaskError where a model is another although its tensors have the same names and shapes."""
    if here != there:
        raise MaskError(
            f"the {what} belongs to another model: all tensors have the same names and shapes, but the digest of its "
            f"weights, configuration, tokenizer and dtype is {here} here, {there} there. Make it again for this model "
            "(`tamis run`), or use the model that it was made for"
        )


def tabulate_rows(cut: Cut, read: Read, thresholds: dict[str, float]) -> Iterator[pa.Table]:
    """Yield each tensor's part of `mask.parquet`, and note its threshold: the least |score|, or score, chosen in it."""
    for name, indices in pick(cut, read):
        layer, module = locate(name)
        rows, offsets, columns = split_rows(indices, cut.shapes[name])
        values = read(name).reshape(-1)[indices]
        thresholds[name] = float((values if cut.signed else np.abs(values)).min())
        parts = {
            "tensor": pa.repeat(name, len(rows)),
            "layer": pa.nulls(len(rows), pa.int32())
            if layer is None
            else pa.repeat(pa.scalar(layer, pa.int32()), len(rows)),
            "module": pa.repeat(module, len(rows)),
            "row": rows,
            "columns": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(columns, pa.int32())),
            "chosen": np.diff(offsets),
            **describe_rows(values, offsets),
        }
        yield pa.table(list(parts.values()), schema=schemas.MASK)


def tabulate_tensors(cut: Cut, thresholds: Mapping[str, float]) -> pa.Table:
    """Return `tensors.parquet`: a row for every tensor of the model, those without chosen entries, too."""
    found = densities(cut.shapes, cut.chosen)["tensor"]
    rows = [
        {"tensor": name, "layer": locate(name)[0], "module": locate(name)[1], "shape": list(shape)}
        | found[name]
        | {"threshold": thresholds.get(name)}
        for name, shape in cut.shapes.items()
    ]
    return pa.Table.from_pylist(rows, schema=schemas.TENSORS)


def describe(by: str, cut: Cut) -> dict[str, Any]:
    """Return what was chosen, in numbers; warn where much of it was chosen for its place, not for its score."""
    entries, chosen = count_entries(cut.shapes), sum(cut.chosen.values())
    if cut.tie_share >= TIES:
        zeros = f"{cut.zeros} of all {entries} scores are 0 ({cut.zeros / entries:.1%}); lower mask.budget or "
        warnings.warn(
            f"{cut.tie_share:.2%} of the {chosen} entries of the mask by {by} are chosen among equal scores, "
            f"{cut.ties_left} entries with these scores are left out: the first tensors and the lowest indices are "
            f"taken. {zeros}choose by another mask.selector where this is not wanted",
            stacklevel=2,
        )
    modules = densities(cut.shapes, cut.chosen)["module"]
    return {
        "by": by,
        "entries": entries,
        "chosen": chosen,
        "zeros": cut.zeros,
        "tie_share": cut.tie_share,
        "ties_left": cut.ties_left,
        "density": chosen / entries,
        "density_of_modules": {module: facts["density"] for module, facts in modules.items()},
    }


def read_plan(selection: Path) -> MaskPlan:
    """Return what the mask in a folder was cut by; k is 0 where none was asked for.

    Raises:
        ArtifactError: `tensors.parquet` is missing or was edited.
    """
    path = selection / "tensors.parquet"
    table, record = read_table(path, schemas.TENSORS), provenance(path)
    how = record["parameters"]
    shapes = {row["tensor"]: tuple(row["shape"]) for row in table.select(["tensor", "shape"]).to_pylist()}
    return MaskPlan(
        selector=how["selector"],
        k=how.get("k", 0),
        signed=how.get("signed", False),
        layer_share=how.get("layer_share", 0.0),
        module_share=how.get("module_share", 0.0),
        seed=record["seed"],
        shapes=shapes,
        model_digest=how.get("model_digest"),
    )


def read_mask(selection: Path, model: models.ModelChoice) -> dict[str, np.ndarray]:
    """Return the mask in a folder: flat indices of chosen entries, ascending, by tensor, in the model's order.

    Args:
        selection: folder of the selection artifact.
        model: that is to be trained.

    Raises:
        MaskError: there is none, it is of another model, or its two tables are of two runs.
        ArtifactError: a table is missing or was edited.
    """
    plan, path = read_plan(selection), selection / "mask.parquet"
    if not plan.k:
        raise MaskError(f"{path} is empty: mask.selector is {plan.selector}; name what scores parameters")
    refuse_other_model(plan, model, path)
    check_table(path, schemas.MASK)
    if tell(path) != tell(selection / "tensors.parquet"):
        raise MaskError(
            f"mask.parquet and tensors.parquet in {selection} are of two runs: they record other settings or inputs; "
            "make them again: `tamis run`"
        )
    parts: dict[str, list[np.ndarray]] = {}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["tensor", "row", "columns"]).combine_chunks()
            name, columns = table["tensor"][0].as_py(), table["columns"].chunk(0)
            found = join_rows(
                table["row"].to_numpy(),
                columns.offsets.to_numpy(),
                columns.values.to_numpy(),
                plan.shapes[name],
            )
            parts.setdefault(name, []).append(found)
    return {name: np.concatenate(parts[name]) for name in plan.shapes if name in parts}


def refuse_other_model(plan: MaskPlan, model: models.ModelChoice, path: Path) -> None:
    """Refuse a model that the mask was not cut for; its tensors are looked at only where its digest differs."""
    known = models.model_digest(model)
    if known != plan.model_digest:
        shapes = list_shapes(dict(models.skeleton(model).named_parameters()))
        refuse_other(shapes, plan.shapes, f"mask {path}")
        refuse_digest(known, plan.model_digest, f"mask {path}")


def tell(path: Path) -> dict[str, Any]:
    """Return a table's provenance without its number of rows."""
    return {name: value for name, value in provenance(path).items() if name != "rows"}
