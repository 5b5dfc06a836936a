"""The stage `finetuning`: arm random is drawn under the budget, the caps and the floors of the choice."""

from pathlib import Path

import pytest
from worlds.toy_corpus import TOPICS, row, write_rows
from worlds.toy_training import CHOSEN, ROWS, make_next, write_subset

from tamis.submodular.budgets import BudgetError, draw
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.finetuning.finetuning import plan_arms, read_pool
from tasks.finetuning.settings import FinetuningSettings
from tasks.finetuning.trainer import Recipe

SEEDS = list(range(6))
SETTINGS = FinetuningSettings(arms={"chosen": [0], "random": SEEDS, "full": [0]})


@pytest.fixture
def world(tmp_path) -> Path:
    """Upstream artifacts: thirty rows of the pool of three topics, with responses of 2 to 5 tokens."""
    write_rows(tmp_path / "examples", [row(place, "pool") for place in range(30)])
    return tmp_path


def choose(world: Path, chosen: set[int], **settings) -> None:
    write_subset(world / "selection", [row(place, "pool")["id"] for place in range(30)], chosen, **settings)


def plan(world: Path, toy, settings: FinetuningSettings = SETTINGS):
    """Return the pool and its arms by their labels."""
    pool = read_pool(world / "examples", world / "selection", toy, settings)
    return pool, {arm.label: arm for arm in plan_arms(pool, Recipe(toy, settings))}


def test_tokens_of_random_rows_reach_the_budget_but_for_less_than_the_longest_row(world, toy):
    choose(world, {0, 3}, budget={"response_tokens": 40})
    _, arms = plan(world, toy)
    tokens = [row(place, "pool")["response_tokens"] for place in range(30)]
    for seed in SEEDS:
        spent = sum(tokens[place] for place in arms[f"random-{seed}"].rows)
        assert 40 - max(tokens) <= spent <= 40


def test_random_rows_keep_the_caps_and_floors_of_the_choice(world, toy):
    choose(world, {0, 1, 4, 7, 2}, budget={"count": 5}, caps={"*": 1, TOPICS[1]: 9}, floors={TOPICS[1]: 3})
    _, arms = plan(world, toy)
    for seed in SEEDS:
        topics = (arms[f"random-{seed}"].rows % 3).tolist()
        assert len(topics) == 5
        assert topics.count(1) >= 3
        assert max(topics.count(0), topics.count(2)) <= 1


def test_random_rows_are_as_many_as_the_chosen_ones_under_a_fraction(world, toy):
    choose(world, set(range(9)), budget={"fraction": 0.3})
    _, arms = plan(world, toy)
    assert {len(arms[f"random-{seed}"].rows) for seed in SEEDS} == {len(arms["chosen-0"].rows)} == {9}


def test_seeds_draw_other_rows_and_the_same_seed_the_same(world, toy):
    choose(world, set(range(9)), budget={"fraction": 0.3})
    (_, arms), (_, again) = plan(world, toy), plan(world, toy)
    assert len({tuple(arms[f"random-{seed}"].rows) for seed in SEEDS}) == len(SEEDS)
    assert {label: arm.key for label, arm in arms.items()} == {label: arm.key for label, arm in again.items()}


def test_random_rows_are_those_of_the_selector_random_with_that_seed(world, toy):
    choose(world, set(range(9)), budget={"fraction": 0.3})
    pool, arms = plan(world, toy)
    assert arms["random-2"].rows.tolist() == sorted(draw(pool.budget, seed=2).tolist())


@pytest.mark.parametrize("replay", ["none", "subset", "all"])
@pytest.mark.parametrize("again", [set(), {1, 4}, CHOSEN], ids=["no", "some", "all"])
def test_replay_does_not_shrink_the_random_arm(tmp_path, toy, replay, again):
    """All rows may be chosen, of which `again` were chosen before."""
    world = make_next(tmp_path, ground_set="all")
    ids = read_table(world / "selection/subset.parquet")["id"].to_pylist()
    write_subset(world / "selection", ids, {*again, ROWS, ROWS + 2})
    settings = FinetuningSettings(arms=SETTINGS.arms, replay=replay)
    _, arms = plan(world, toy, settings)
    sizes = {(len(arms[label].rows), arms[label].replayed) for label in arms if label != "full-0"}
    assert sizes == {(len(arms["chosen-0"].rows), arms["chosen-0"].replayed)}


def test_a_choice_without_its_record_is_refused(world, toy):
    choose(world, {0, 1})
    (world / "selection/selection.json").unlink()
    with pytest.raises(ArtifactError, match=r"selection.json is missing; run `tamis run`"):
        plan(world, toy)


def test_a_choice_of_other_topics_is_refused(world, toy):
    choose(world, {0, 1})
    write_rows(world / "examples", [row(place, "pool") | {"topic": "other"} for place in range(30)])
    with pytest.raises(BudgetError, match=r"resolved for 3 topics and these rows have 1, .*choose again"):
        plan(world, toy)
