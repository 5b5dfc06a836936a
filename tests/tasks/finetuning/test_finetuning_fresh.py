"""The stage `finetuning`: arms that draw new rows in every epoch, and rows balanced over groups."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds.toy_corpus import row, write_rows
from worlds.toy_training import CHOSEN, HELD_OUT, ROWS, content, interrupt, make_next, make_world, run, write_subset

from tamis.submodular.budgets import draw
from tasks.artifacts.row_sets import read_set
from tasks.finetuning.finetuning import plan_arms, read_pool
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import Recipe

SETTINGS = FinetuningSettings(
    arms={"chosen": [0], "fresh": [0, 1]}, epochs=2, learning_rate=1e-2, batch_rows=2, save_steps=2
)
ONE = replace(SETTINGS, arms={"chosen": [3]})


@pytest.fixture
def world(tmp_path) -> Path:
    return make_world(tmp_path)


def find_ids(world: Path) -> list[str]:
    return read_set(world / "examples/examples.parquet", "ground")["id"].to_pylist()


def draw_anew(world: Path) -> None:
    """Say that the choice was that of selector fresh."""
    write_subset(world / "selection", find_ids(world), CHOSEN, selector="fresh")


def plan(world: Path, toy, settings: FinetuningSettings):
    pool = read_pool(world / "examples", world / "selection", toy, settings)
    return pool, {arm.label: arm for arm in plan_arms(pool, Recipe(toy, settings))}


def test_the_first_epoch_of_arm_fresh_is_arm_random_and_the_next_takes_rows_that_were_not_seen(world, toy):
    pool, arms = plan(world, toy, SETTINGS)
    for seed in (0, 1):
        arm = arms[f"fresh-{seed}"]
        first, second = (arm.rows[each].tolist() for each in arm.epochs)
        assert first == sorted(draw(pool.budget, seed=seed).tolist())
        assert len(second) == len(CHOSEN)
        assert not set(first) & set(second)


def test_a_choice_by_selector_fresh_is_the_first_epoch_and_other_rows_follow(world, toy):
    draw_anew(world)
    _, arms = plan(world, toy, replace(ONE, epochs=3))
    epochs = [set(arms["chosen-3"].rows[each].tolist()) for each in arms["chosen-3"].epochs]
    assert epochs[0] == CHOSEN
    assert [len(rows) for rows in epochs] == [len(CHOSEN)] * 3
    assert set.union(*epochs) == set(range(ROWS))


def test_any_other_choice_is_repeated_in_every_epoch(world, toy):
    _, arms = plan(world, toy, SETTINGS)
    assert [each.tolist() for each in arms["chosen-0"].epochs] == [list(range(len(CHOSEN)))] * 2


def test_what_is_replayed_is_in_every_epoch(tmp_path, toy):
    world = make_next(tmp_path, ground_set="all")
    settings = replace(SETTINGS, replay="subset")
    pool, arms = plan(world, toy, settings)
    for each in arms["fresh-0"].epochs:
        assert set(pool.replayed.tolist()) <= set(arms["fresh-0"].rows[each].tolist())
    assert {len(each) for each in arms["fresh-0"].epochs} == {len(arms["chosen-0"].rows)}


def test_numbers_hold_the_rows_that_were_seen_and_as_many_steps_as_one_choice_takes(world, toy):
    made = run(world, toy, SETTINGS)
    arms = json.loads((made / "finetuning.json").read_text())["arms"]
    assert {arm["steps"] for arm in arms.values()} == {6}
    assert (arms["fresh-0"]["rows"], arms["chosen-0"]["rows"]) == (2 * len(CHOSEN), len(CHOSEN))
    for label, arm in arms.items():
        assert len(json.loads((made / f"arms/{label}/rows.json").read_text())) == arm["rows"]


def test_the_same_seed_gives_the_same_bits_and_an_interrupted_training_resumes(world, toy, monkeypatch):
    draw_anew(world)
    whole = content(run(world, toy, ONE))
    shutil.rmtree(world / "scratch")
    interrupt(monkeypatch, "chosen-3", after=3)
    with pytest.raises(RuntimeError, match="out of power"):
        run(world, toy, ONE, "again")
    monkeypatch.undo()
    assert content(run(world, toy, ONE, "again")) == whole


def test_a_choice_that_is_drawn_anew_is_another_training_than_one_that_is_kept(world, toy):
    _, kept = plan(world, toy, ONE)
    draw_anew(world)
    _, anew = plan(world, toy, ONE)
    assert anew["chosen-3"].key != kept["chosen-3"].key


def test_arm_balanced_takes_every_topic_alike_and_every_source_where_there_is_one_topic(tmp_path, toy):
    topics = ["sums"] * 9 + ["letters"] * 3
    for told in ("topic", "source"):
        rows = [row(place, "pool") | {"topic": "one", told: topics[place]} for place in range(ROWS)]
        write_rows(tmp_path / "examples", [*rows, *(row(ROWS + place, "held_out") for place in range(HELD_OUT))])
        write_subset(tmp_path / "selection", find_ids(tmp_path), {0, 1, 2, 3, 4, 5})
        _, arms = plan(tmp_path, toy, FinetuningSettings(arms={"chosen": [0], "balanced": [0, 1]}))
        for seed in (0, 1):
            assert np.bincount(arms[f"balanced-{seed}"].rows >= 9).tolist() == [3, 3]
