"""A small world in which arms are trained, for tests of finetuning and evaluation."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from tamis.submodular.budgets import record, resolve
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import read_set
from tasks.artifacts.tables import Provenance, digest_inputs, write_json, write_table
from tasks.evaluation.evaluation import write_evaluation
from tasks.evaluation.settings import EvaluationSettings
from tasks.finetuning import trainer
from tasks.finetuning.finetuning import write_finetuning
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import ArmProgress
from tasks.gradients.settings import GradientsSettings
from tasks.masks import mask_tables
from tasks.masks.settings import MaskSettings
from tasks.settings import RuntimeSettings
from worlds.places import find_artifacts, find_folders
from worlds.toy_corpus import learn, row, write_examples, write_rows

ROWS, HELD_OUT = 12, 3
CHOSEN = {1, 4, 6, 9, 10}
SMALL_RUNTIME = RuntimeSettings(pack_tokens=120)


def make_world(folder: Path) -> Path:
    """Write upstream artifacts: twelve rows of the pool, five of them chosen, held-out and validation rows, and no
    version before."""
    ids = write_examples(folder / "examples", pool=ROWS, held_out=HELD_OUT, validation=3)
    write_subset(folder / "selection", ids, CHOSEN)
    (folder / "base/arms").mkdir(parents=True)
    return folder


def write_subset(folder: Path, ids: list[str], chosen: set[int], *, selector: str = "longest", **settings) -> None:
    """Write `subset.parquet` with the ids at these places chosen, and `selection.json` with the selector and the budget
    that the pool of the examples beside it was chosen under: as many rows, unless told else."""
    asked = {"budget": {"count": len(chosen)}} | settings
    ground = read_set(folder.parent / "examples/examples.parquet", "ground")
    tokens = ground["response_tokens"].to_numpy().astype(np.int64)
    budget = resolve(**asked, topics=ground["topic"].to_pylist(), response_tokens=tokens)
    write_json({"selector": selector, "budget": record(budget)}, folder / "selection.json")
    rows = [
        {"id": name, "topic": "t", "response_tokens": 3, "chosen": place in chosen, "gated": False}
        for place, name in enumerate(ids)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.SUBSET)
    write_table(table, folder / "subset.parquet", Provenance("selection", "v1"))


def write_mask(
    folder: Path, model, by: str = "random", fraction: float = 0.1, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Write the mask of a world, by random scores whatever it says that it is by, and return it."""
    source, examples = folder / "gradients/phi_param.safetensors", folder / "examples/examples.parquet"
    settings = MaskSettings(selector=by, budget={"fraction": fraction}, seed=seed)
    source.parent.mkdir(exist_ok=True)
    asked = {"scores": by, "model_digest": models.model_digest(model)}
    record = json.dumps(asdict(Provenance("gradients", "v1", asked, digest_inputs(examples))))
    shapes = mask_tables.list_shapes(dict(models.language_model(model).named_parameters()))
    scores = {name: torch.from_numpy(mask_tables.draw(name, shape, seed)) for name, shape in shapes.items()}
    save_file(scores, source, {"tamis": record})
    mask_tables.write_mask(
        settings, examples=examples, gradients=source.parent, out=folder / "selection", version="v1", model=model
    )
    return {
        name: torch.from_numpy(places) for name, places in mask_tables.read_mask(folder / "selection", model).items()
    }


def make_next(folder: Path, ground_set: str = "new") -> Path:
    """Write the version after `make_world`'s: its pool, kept, then a repeated row of it and eight new rows; held out
    are the last of the rows before, kept, and two new ones. Four new rows are chosen."""
    kept = [learn(row(place, "pool")) for place in range(ROWS)]
    for place, one in enumerate(kept):
        one["earlier"] = "learnt" if place in CHOSEN else "offered"
        one["used"] = ground_set == "all"
    repeated = kept[min(CHOSEN)] | {"row": ROWS, "duplicate_of": min(CHOSEN), "used": False}
    new = [row(place, "pool") for place in range(20, 28)]
    held_out = [row(place, "held_out") for place in (ROWS + HELD_OUT - 1, 30, 31)]
    ids = write_rows(folder / "examples", [*kept, repeated, *new, *held_out])
    write_subset(folder / "selection", ids, set(range(len(ids) - 8, len(ids), 2)))
    return folder


def run(
    world: Path, model, settings: FinetuningSettings, out: str = "out", previous: Path | None = None, **more
) -> Path:
    """Train and return the artifact's folder."""
    write(world, model, settings, out, previous, **more)
    return world / out


def write(
    world: Path,
    model,
    settings: FinetuningSettings,
    out: str = "out",
    previous: Path | None = None,
    update_steps: int | None = None,
    gradients: GradientsSettings | None = None,
    runtime: RuntimeSettings = SMALL_RUNTIME,
) -> dict:
    """Train and return what the run says of itself."""
    return write_finetuning(
        find_folders(
            world, finetuning=world / out, before=find_artifacts(world, "base", finetuning=previous or world / "base")
        ),
        model=model,
        settings=settings,
        runtime=runtime,
        update_steps=update_steps,
        gradients=gradients,
    )


def content(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt(monkeypatch, arm: str, after: int) -> None:
    """Let training break down after so many steps of an arm."""

    class Breaking(ArmProgress):
        def on_step_begin(self, args, state, control, **rest):
            if self.label == arm and state.global_step == after:
                raise RuntimeError("out of power")

    monkeypatch.setattr(trainer, "ArmProgress", Breaking)


def evaluate(world: Path, before: Path, model, settings: EvaluationSettings, **others) -> Path:
    """Evaluate the arms in `out` against those in `before` / `out` and return the artifact's folder."""
    remember(world, before, model, settings, **others)
    return others.get("out", world / "evaluation")


def remember(world: Path, before: Path, model, settings: EvaluationSettings, **others) -> dict:
    """Evaluate likewise and return what the run says of itself."""
    asked = {"out": world / "evaluation", "store": world / "store", "version": "v2", "previous": "v1"} | others
    earlier = find_artifacts(before, asked["previous"], finetuning=before / "out")
    made = {"finetuning": world / "out", "evaluation": asked["out"], "cache": asked["store"]}
    folders = find_folders(world, version=asked["version"], before=earlier, **made)
    return write_evaluation(folders, model=model, embedding_model=model, settings=settings)


def rows_of(table: pa.Table, **fields) -> list[dict]:
    """Return the rows that have these values."""
    return [row for row in table.to_pylist() if fields.items() <= row.items()]
