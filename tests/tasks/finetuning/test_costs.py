"""Operations of a training are those of the packed steps that it takes, and seconds are no part of the artifact."""

import json

import numpy as np
import pytest
import torch
from worlds.toy_training import CHOSEN, ROWS, make_world, write, write_mask

from tamis.training.steps import collate, plan_steps
from tasks import models
from tasks.finetuning.costs import count_training
from tasks.finetuning.finetuning import read_pool
from tasks.finetuning.mask_updates import read_restriction
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import Recipe
from tasks.gradients.settings import GradientsSettings
from tasks.settings import RuntimeSettings

TWICE = FinetuningSettings(arms={"chosen": [3], "full": [3]}, method="lora", epochs=2, batch_rows=2, lora_rank=2)
SCORED = GradientsSettings(anchor_share=0.3, batch_rows=3)


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


def passes(encoding, places, size) -> int:
    """One operation for each parameter and token of these rows, each run alone."""
    pieces = [piece for place in places for piece in encoding.row(place)]
    return sum(size.layers * len(piece) + size.head * int(piece.answers.sum()) for piece in pieces)


def packed(encoding, rows, seed, size) -> int:
    """One operation for each parameter and token of the packs of every step."""
    steps = plan_steps(len(rows), TWICE.batch_rows, TWICE.epochs, seed)
    laid = [collate(encoding.pick(rows).pick(step), torch.device("cpu")) for step in steps]
    return sum(size.layers * one["input_ids"].numel() + size.head * one["logits_to_keep"].numel() for one in laid)


def test_arms_and_a_training_on_all_rows_are_counted_from_their_steps(world, toy):
    facts = write(world, toy, TWICE)
    pool = read_pool(world / "examples", world / "selection", toy, TWICE)
    size = models.count_parameters(toy)
    wanted = {
        label: 6 * packed(pool.encoding, np.array(rows), 3, size)
        for label, rows in {"chosen-3": sorted(CHOSEN), "full-3": range(ROWS)}.items()
    }
    assert {label: one["flops"] for label, one in facts["training"].items()} == wanted
    assert facts["full_flops"] == wanted["full-3"]
    assert all(one["seconds"] > 0 for one in facts["training"].values())


def test_operations_stand_in_the_artifact_and_seconds_are_told_again_for_arms_that_are_found(world, toy):
    first, again = (write(world, toy, TWICE) for _ in range(2))
    assert (first["arms_trained"], again["arms_found"]) == (2, 2)
    assert again["training"] == first["training"]
    arms = json.loads((world / "out/finetuning.json").read_text())["arms"]
    assert {label: arm["flops"] for label, arm in arms.items()} == {
        label: one["flops"] for label, one in first["training"].items()
    }
    assert not any("seconds" in arm for arm in arms.values())


@pytest.mark.parametrize("block_parameters", [None, 2000])
def test_new_cuts_of_a_mask_are_counted(world, toy, block_parameters):
    write_mask(world, toy, "dualsft")
    runtime = RuntimeSettings(pack_tokens=120, block_parameters=block_parameters)
    asked = {"every": 2, "settings": SCORED, "runtime": runtime, "loss_per": "row"}
    restriction = read_restriction(world / "examples/examples.parquet", world / "selection", toy, **asked)
    pool, rows = read_pool(world / "examples", world / "selection", toy, TWICE), np.array(sorted(CHOSEN))
    taken = [np.arange(len(rows))] * 2
    recipes = [Recipe(toy, TWICE, None, one) for one in (None, restriction)]
    plain, cut = (count_training(pool.encoding, rows, taken, 3, recipe) for recipe in recipes)
    sets, size = restriction.scoring.sets, models.count_parameters(toy)
    each = 6 * passes(pool.encoding, rows, size) + 6 * passes(sets.encoding, sets.validation, size)
    each += 8 * passes(sets.encoding, sets.anchors, size)
    groups = 1
    if block_parameters:
        from tamis.gradients.per_example import group_parameters

        groups = len(group_parameters(models.skeleton(toy), block_parameters))
        assert groups > 1
    assert cut - plain == 2 * groups * each  # 6 steps: cuts after the second and the fourth
