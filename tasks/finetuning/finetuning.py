"""Stage `finetuning`: every arm trained (tasks/finetuning/trainer.py), each into a folder of safetensors.

Checkpoints stay in the scratch folder, in `<key>/checkpoints`, while an arm is in training; `<key>/finished` holds a
trained arm; the key digests all that determines it, and of our code what it does: an edited comment or docstring leaves
it as it is. A run finds both again, also where it was stopped after the last arm and before the artifact was recorded;
it begins by removing what it has no use for. So adapters lie on the disk twice; whole models, being large, leave
scratch once published.
"""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
from accelerate import PartialState

from tamis.language import packing
from tamis.language.encoding import Encoding, refuse_long
from tamis.masks import sparse_adamw, tensor_layout, topk
from tamis.submodular.budgets import Budget, restore
from tamis.training import steps
from tamis.training.arms import REPLAYS, pick_epochs, pick_rows
from tamis.training.chance import name_groups
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.artifacts.row_sets import read_sets
from tasks.artifacts.tables import ArtifactError
from tasks.finetuning import mask_updates, step_trainer, trainer
from tasks.finetuning.costs import count_training
from tasks.finetuning.finished import is_sound, seal
from tasks.finetuning.step_trainer import TrainingError
from tasks.finetuning.trainer import Arm, FinetuningSettings, Recipe, Trained
from tasks.folders import Folders
from tasks.gradients import warmup
from tasks.gradients.settings import GradientsSettings
from tasks.masks import mask_tables, sparse_deltas
from tasks.masks.sparse_deltas import replacing_folder
from tasks.model_files import describe_base, write_base
from tasks.settings import RuntimeSettings
from tasks.tokens import WRITERS, encode_rows

FINISHED = "finished"  # folder of a trained arm in its home
MEASURED = ("held_out", "general")  # splits that no arm may have seen
UNPUBLISHED = ("losses", "seconds")  # of what is known of an arm
LIBRARIES = (torch, transformers, peft, accelerate)  # another release of one of them starts an arm anew
CODE = tables.digest_code(steps, packing, *WRITERS, models, sparse_deltas, trainer, step_trainer, sys.modules[__name__])
MASKED = tables.digest_code(sparse_adamw, tensor_layout, topk, mask_tables, mask_updates)  # of method masked alone


@dataclass(frozen=True)
class Pool:
    """The rows that arms are drawn from, then those that replay adds; tokenised once."""

    ids: list[str]
    chosen: np.ndarray  # bool, per row that an arm is drawn from
    groups: list[str]  # of these rows: what arm balanced draws from alike
    budget: Budget  # what selection was allowed to spend on these
    fresh: bool  # selection says that rows are drawn anew in every epoch; `chosen` are those of the first
    replayed: np.ndarray  # places of the rows that every arm repeats of earlier versions
    encoding: Encoding


def write_finetuning(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: FinetuningSettings,
    runtime: RuntimeSettings,
    update_steps: int | None = None,
    gradients: GradientsSettings | None = None,
) -> Mapping[str, Any]:
    """Train every arm of `settings.arms`, write `arms/`, `curve.csv` and `finetuning.json`, say what this run did.

    Args:
        folders: the arms train on the ground set and on replayed rows; the mask is read by method masked alone; the
            `arms/` of the version before may be empty; scratch keeps adapters for the next run.
        runtime: how a mask is cut anew, without a part in what comes out.
        update_steps: optimiser steps after which a mask by dualsft is cut anew; None: never.
        gradients: what it is cut anew by; wanted with `update_steps`.

    Raises:
        ArtifactError: an input is missing or does not fit the other, or the disk is full.
        TrainingError: settings that cannot be trained, or that are not those of the version before; a loss that is not
            finite; a row to measure on that the model which is continued from was trained on.
        ValueError: a row that is too long; an arm without rows; a budget that the pool cannot keep; a mask of another
            model.
    """
    examples, subset = folders.here.examples, folders.here.selection
    out, scratch, version = folders.here.finetuning, folders.scratch, folders.here.version
    source, files = examples / "examples.parquet", ["subset.parquet"]
    recipe = find_recipe(folders, model, settings)
    refuse_known(recipe, source)
    if settings.method == "masked":
        restriction = mask_updates.read_restriction(
            source,
            subset,
            model,
            every=update_steps,
            settings=gradients,
            runtime=runtime,
            loss_per=settings.loss_per,
        )
        recipe, files = replace(recipe, restriction=restriction), [*files, "mask.parquet"]
    pool = read_pool(examples, subset, model, settings)
    arms = plan_arms(pool, recipe)
    clear(scratch, keep={arm.key for arm in arms})
    found = sum((scratch / arm.key / FINISHED).exists() for arm in arms)
    homes = {arm.label: finish_arm(arm, pool, scratch / arm.key, recipe) for arm in arms}
    inputs = tables.digest_inputs(source, *(subset / file for file in files))
    inputs |= recipe.start.digest if recipe.start else {}
    flops = {arm.label: count_training(pool.encoding, arm.rows, arm.epochs, arm.seed, recipe) for arm in arms}
    seconds = publish(homes, out, {"version": version, "inputs": inputs} | describe_start(recipe), flops)
    clear(scratch, keep={arm.key for arm in arms if not trainer.is_whole(arm, settings)})
    training = {label: {"seconds": seconds[label], "flops": flops[label]} for label in flops}
    costs = {"training": training, "full_flops": count_full(pool, arms[0].seed, recipe)}
    return {"arms_trained": len(arms) - found, "arms_found": found} | costs | models.note_products(model)


def find_recipe(folders: Folders, model: models.ModelChoice, settings: FinetuningSettings) -> Recipe:
    """Return what all arms share, but for a mask."""
    return Recipe(model, settings, trainer.find_start(folders.before.finetuning, model, settings))


def refuse_known(recipe: Recipe, examples: Path) -> None:
    """Check that nothing is measured on which the model that is continued from was trained on.

    Stage examples knows which rows earlier versions chose; arms may have seen more: `finetuning.replay: all` repeats
    what was only offered, and rows of selector `fresh` are others in every epoch.

    Raises:
        TrainingError: how many held-out or general rows it was trained on, and the first.
    """
    if recipe.start is None:
        return
    known = set(tables.read_texts(recipe.start.folder / "rows.json"))
    rows = tables.read_table(examples, schemas.EXAMPLES, ["id", "split", "used"]).to_pylist()
    measured = {row["id"]: row["split"] for row in rows if row["used"] and row["split"] in MEASURED}
    again = sorted(known & measured.keys())
    if again:
        sides = " and ".join(name for name in MEASURED if name in {measured[id] for id in again}).replace("_", "-")
        raise TrainingError(
            f"{recipe.start.folder}, from which training goes on, was trained on {len(again)} of {len(measured)} "
            f"{sides} rows, first {again[0]}: what is measured on was not trained on; take them out of these rows, or "
            "leave them in the pool"
        )


def train_arms(folders: Folders, *, model: models.ModelChoice, settings: FinetuningSettings) -> None:
    """Train the arms that are not finished together with other processes (`accelerate launch`), into scratch.

    Raises:
        TrainingError: method masked; and as `write_finetuning`.
    """
    if settings.method == "masked":
        raise TrainingError(
            "finetuning.method is masked, which is trained on one device: `tamis run` does; lora and full are trained "
            "on several"
        )
    state, recipe = PartialState(cpu=models.device(model).type == "cpu"), find_recipe(folders, model, settings)
    pool = read_pool(folders.here.examples, folders.here.selection, model, settings)
    for arm in plan_arms(pool, recipe):
        home = folders.scratch / arm.key
        if state.is_main_process:
            drop_damaged(arm, home / FINISHED)
        state.wait_for_everyone()
        if (home / FINISHED).exists():
            continue
        trained = trainer.train(arm, pool.encoding, home / "checkpoints", recipe)
        if state.is_main_process:
            keep_arm(trained, arm, pool, home / FINISHED, recipe)
        state.wait_for_everyone()


def count_full(pool: Pool, seed: int, recipe: Recipe) -> int:
    """Return the operations of training on all rows of the pool, whether an arm does or not."""
    rows = np.union1d(np.arange(len(pool.chosen)), pool.replayed)
    epochs = [np.arange(len(rows))] * recipe.settings.epochs
    return count_training(pool.encoding, rows, epochs, seed, recipe)


def read_pool(examples: Path, subset: Path, model: models.ModelChoice, settings: FinetuningSettings) -> Pool:
    """Read and tokenise the pool; which rows are chosen, and under which budget, comes from `subset`."""
    table, sets = read_sets(examples / "examples.parquet", ("ground", *REPLAYS[settings.replay]))
    found = table.to_pylist()
    ground = [found[index] for index in sets["ground"]]
    if not ground:
        raise ArtifactError(
            f"{examples / 'examples.parquet'} has 0 used rows in its pool; raise examples.pool_rows or, where the "
            "version before has all of them, set examples.ground_set: all"
        )
    chosen = read_chosen(examples, subset, {row["id"] for row in ground})
    budget = read_budget(subset / "selection.json", ground)
    again = {found[index]["id"] for name in REPLAYS[settings.replay] for index in sets[name]}
    rows = ground + [row for row in found if not row["used"]]
    encoding = encode_rows(rows, model)
    refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    picked = np.array([row["id"] in chosen for row in ground])
    replayed = np.flatnonzero([row["id"] in again for row in rows])
    groups = name_groups([row["topic"] for row in ground], [row["source"] for row in ground])
    fresh = read_record(subset / "selection.json")["selector"] == "fresh"
    return Pool([row["id"] for row in rows], picked, groups, budget, fresh, replayed, encoding)


def read_chosen(examples: Path, subset: Path, ground: set[str]) -> set[str]:
    """Return the ids that selection chose, all of which must be in the pool."""
    picked = tables.read_table(subset / "subset.parquet", schemas.SUBSET)
    chosen = {row["id"] for row in picked.to_pylist() if row["chosen"]}
    strangers = sorted(chosen - ground)
    if strangers:
        raise ArtifactError(
            f"{len(strangers)} of {len(chosen)} chosen ids are not in the pool, first {strangers[:3]}; "
            f"{subset} and {examples} belong to different runs: make them again with `tamis run`"
        )
    return chosen


def read_budget(path: Path, ground: list[dict[str, Any]]) -> Budget:
    """Return what selection resolved that may be spent on the pool's used rows, from its `selection.json`."""
    tokens = np.array([row["response_tokens"] for row in ground], np.int64)
    return restore(read_record(path)["budget"], topics=[row["topic"] for row in ground], response_tokens=tokens)


def read_record(path: Path) -> dict[str, Any]:
    """Return what selection says of itself."""
    return tables.read_json(path, ["budget", "selector"])


def plan_arms(pool: Pool, recipe: Recipe) -> list[Arm]:
    """Return one arm per name and seed, in the order of `settings.arms`, replayed rows added to each."""
    arms, settings = [], recipe.settings
    for name, seed in ((name, seed) for name, seeds in settings.arms.items() for seed in seeds):
        taken = draw_epochs(name, seed, pool, settings.epochs)
        rows = np.union1d(np.concatenate(taken), pool.replayed)
        ids = tuple(pool.ids[row] for row in rows)
        epochs = tuple(np.searchsorted(rows, np.union1d(each, pool.replayed)) for each in taken)
        replayed = len(epochs[0]) - len(taken[0])
        arms.append(Arm(name, seed, rows, epochs, ids, replayed, _key(name, seed, ids, epochs, recipe)))
    return arms


def draw_epochs(name: str, seed: int, pool: Pool, epochs: int) -> list[np.ndarray]:
    """Return the rows that each epoch of an arm takes besides replayed ones, places in the pool."""
    asked = {"budget": pool.budget, "replayed": pool.replayed, "seed": seed}
    first = pick_rows(name, pool.chosen, groups=pool.groups, **asked)
    if name == "fresh" or (name == "chosen" and pool.fresh):
        return pick_epochs(first, pool.chosen, epochs=epochs, **asked)
    return [first] * epochs


def clear(scratch: Path, keep: set[str]) -> None:
    """Remove the arms in scratch, finished or not, but for those of these keys."""
    for home in (home for home in scratch.glob("*") if home.name not in keep):
        shutil.rmtree(home, ignore_errors=True)


def finish_arm(arm: Arm, pool: Pool, home: Path, recipe: Recipe) -> Path:
    """Return the folder of a trained arm, training it unless it stands there already.

    It holds `weights/`, with the ids of the rows that made them, and `log.json`; checkpoints beside it are removed once
    it is whole.
    """
    finished = home / FINISHED
    drop_damaged(arm, finished)
    if not finished.exists():
        try:
            trained = trainer.train(arm, pool.encoding, home / "checkpoints", recipe)
            keep_arm(trained, arm, pool, finished, recipe)
        except Exception as error:
            error.add_note(f"arm {arm.label}; the next run goes on from what {home.parent} holds")
            raise
    shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return finished


def drop_damaged(arm: Arm, finished: Path) -> None:
    """Remove a finished arm that is not as it was sealed."""
    if finished.exists() and not is_sound(finished):
        warnings.warn(f"{finished}, arm {arm.label}, was damaged and is trained again", stacklevel=2)
        shutil.rmtree(finished)


def keep_arm(trained: Trained, arm: Arm, pool: Pool, finished: Path, recipe: Recipe) -> None:
    """Write a trained arm, whole or not at all, and seal it."""
    with replacing_folder(finished) as part:
        facts = trainer.save(trained, part / "weights", arm, recipe)
        tables.write_json(arm.ids, part / "weights/rows.json")
        write_base(part / "weights", recipe.model.name, recipe.model.revision)
        record = steps.describe(pool.encoding, [arm.rows[each] for each in arm.epochs], trained.losses)
        record |= {"replayed": arm.replayed, "seconds": round(trained.seconds, 3)}
        tables.write_json(record | facts, part / "log.json")
        seal(part)


def describe_start(recipe: Recipe) -> dict[str, Any]:
    """Return what `finetuning.json` says of how its arms were trained and from what."""
    start = recipe.start
    return {
        "method": recipe.settings.method,
        "base": describe_base(recipe.model.name, recipe.model.revision),
        "matmul": recipe.model.matmul,
        "replay": recipe.settings.replay,
        "continues_from": start.label if start else None,
        "continues_from_digest": start.digest if start else None,
    }


def publish(
    homes: Mapping[str, Path], out: Path, made: Mapping[str, Any], flops: Mapping[str, int]
) -> dict[str, float]:
    """Copy finished arms into the artifact and write their curve and numbers, and what they were made from.

    Returns:
        The seconds that each took, which are no part of the artifact: another run takes others.
    """
    logs = {label: json.loads((home / "log.json").read_text()) for label, home in homes.items()}
    with replacing_folder(out / "arms") as part:
        for label, home in homes.items():
            shutil.copytree(home / "weights", part / label)
    tables.write_text(steps.tabulate_curve(logs), out / "curve.csv")
    kept = {label: {name: log[name] for name in log if name not in UNPUBLISHED} for label, log in logs.items()}
    arms = {label: {**log, "flops": flops[label]} for label, log in kept.items()}
    tables.write_json({**made, "arms": arms}, out / "finetuning.json")
    return {label: log["seconds"] for label, log in logs.items()}


def _key(name: str, seed: int, ids: Sequence[str], epochs: Sequence[np.ndarray], recipe: Recipe) -> str:
    """Return a digest of all that determines an arm: rows, model, start, mask, settings, our code and the libraries."""
    model, start, restriction = recipe.model, recipe.start, recipe.restriction
    code = [CODE, *([MASKED] if restriction else []), *([warmup.CODE] if restriction and restriction.scoring else [])]
    facts = {
        **{key: value for key, value in asdict(recipe.settings).items() if key not in ("arms", "replay")},
        "arm": (name, seed, ids, [each.tolist() for each in epochs]),
        "model": (models.model_digest(model), str(models.device(model)), model.dtype, model.template),
        "name": (model.name, model.revision),
        "start": start.digest if start else None,
        "restriction": restriction.describe() if restriction else None,
        "code": code,
        "libraries": [library.__version__ for library in LIBRARIES],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
