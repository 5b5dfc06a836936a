"""Stage `selection`: the diagonal, the quality of demos, and picks that gain nothing."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
from worlds.toy_corpus import learn, row, write_examples, write_rows
from worlds.toy_selection import (
    HALF,
    chosen,
    draw_vectors,
    run,
    write_check,
    write_embedding,
    write_scores,
    write_utility,
)

from tasks.artifacts.tables import provenance, read_table

UTILITY = np.random.default_rng(3).normal(size=(12, 12)).astype(np.float32) + np.eye(12, dtype=np.float32) * 5
VECTORS = draw_vectors(12)
RELU = np.maximum(UTILITY, 0)
OFF = np.where(np.eye(12, dtype=bool), np.nan, UTILITY)
HELP = np.nanmean(OFF, axis=0)


def cap(kernel: np.ndarray) -> np.ndarray:
    """A kernel whose diagonal is at most the best other entry of its row."""
    others = np.where(np.eye(len(kernel), dtype=bool), 0, kernel).max(axis=1)
    return np.where(np.eye(len(kernel), dtype=bool), np.minimum(kernel, others[:, None]), kernel)


def places_of(subset: list[dict], ids: list[str]) -> list[int]:
    return [ids.index(each) for each in chosen(subset)]


@pytest.fixture
def world(tmp_path):
    """A pool of twelve rows whose diagonal is large."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=0)
    write_utility(tmp_path / "utility", ids, UTILITY)
    write_embedding(tmp_path / "embedding", ids, VECTORS)
    return tmp_path, ids


@pytest.mark.parametrize(
    ("diagonal", "kernel"),
    [("scored", RELU), ("capped", cap(RELU)), ("excluded", np.where(np.eye(12, dtype=bool), 0, RELU))],
)
def test_the_choice_is_that_of_the_kernel_with_its_diagonal_scored_capped_or_left_out(world, diagonal, kernel):
    folder, ids = world
    subset, facts = run(folder, diagonal=diagonal)
    assert places_of(subset, ids) == oracles.greedy_of(lambda picks: oracles.facility_location(kernel, picks), 12, 6)
    assert facts["objective_of_all"] == pytest.approx(kernel.max(axis=1).sum())
    assert provenance(folder / "out/subset.parquet")["parameters"]["diagonal"] == diagonal


def test_the_three_choices_differ(world):
    folder, ids = world
    found = {tuple(places_of(run(folder, diagonal=how)[0], ids)) for how in ("scored", "capped", "excluded")}
    assert len(found) == 3


def test_with_quality_a_demo_counts_by_its_mean_help_for_the_others(world):
    folder, ids = world
    kernel = cap(RELU) * np.maximum(HELP, 0)
    subset, facts = run(folder, replace(HALF, quality="help"), diagonal="capped")
    picks = places_of(subset, ids)
    expected = oracles.greedy_of(lambda some: oracles.facility_location(kernel, some), 12, 6)
    gaining = 6 - facts["zero_gain_picks"]
    assert 0 < gaining < 6
    assert picks[:gaining] == expected[:gaining]
    rest = [int(place) for place in np.argsort(-HELP) if place not in picks[:gaining]]
    assert picks[gaining:] == rest[: 6 - gaining]
    assert facts["rows_without_quality"] == 0


@pytest.mark.parametrize("selector", ["delift", "embedding"])
@pytest.mark.parametrize("prior", [2.0, 1e9])
def test_with_a_prior_what_pairs_say_is_drawn_to_the_median_of_all_demos(world, selector, prior):
    folder, ids = world
    utility = UTILITY + 1  # so that most help
    write_utility(folder / "utility", ids, utility)
    sums = np.where(np.eye(12, dtype=bool), 0, utility).sum(axis=0)
    worth = np.maximum((sums + prior * np.median(sums / 11)) / (11 + prior), 0)
    similar = {"delift": cap(np.maximum(utility, 0)), "embedding": COSINES}[selector]
    asked = replace(HALF, selector=selector, quality="help", quality_prior=prior, budget={"count": 4})
    picks = places_of(run(folder, asked, diagonal="capped")[0], ids)
    kernel = (similar * worth).astype(np.float32)
    assert picks == oracles.greedy_of(lambda some: oracles.facility_location(kernel, some), 12, 4)
    plain = places_of(run(folder, replace(asked, quality="none"), "plain", diagonal="capped")[0], ids)
    assert (picks == plain) == (prior == 1e9)


def test_quality_of_neighbours_is_of_both_directions(world):
    folder, ids = world
    both = np.nanmean(np.stack([np.nanmean(OFF, axis=0), np.nanmean(OFF, axis=1)]), axis=0)
    kernel = cap(RELU) * np.maximum(both, 0)
    subset, _ = run(folder, replace(HALF, quality="neighbours", budget={"count": 2}), diagonal="capped")
    assert places_of(subset, ids) == oracles.greedy_of(lambda some: oracles.facility_location(kernel, some), 12, 2)


def test_demos_without_a_pair_have_their_topics_median_and_are_counted(world):
    folder, ids = world
    keep = np.ones((12, 12), bool)
    keep[:, 4] = False
    keep[4, 4] = True
    write_utility(folder / "utility", ids, UTILITY, keep=keep, kernel="neighbours")
    _, facts = run(folder, replace(HALF, quality="help"), diagonal="capped")
    assert facts["rows_without_quality"] == 1


def test_picks_that_gain_nothing_follow_by_quality_and_then_by_what_covers_them_least(world):
    folder, ids = world
    utility = -np.ones((12, 12), np.float32)
    utility[:, 7] = 1  # the one row that helps
    utility[1:, 9] = -0.5  # and the next best
    write_utility(folder / "utility", ids, utility)
    subset, facts = run(folder, diagonal="capped")
    picks = places_of(subset, ids)
    cover = np.maximum(VECTORS @ VECTORS[7], 0)
    rest = sorted(set(range(12)) - {7, 9}, key=lambda place: cover[place])
    assert picks == [7, 9, *rest[:4]]
    assert facts["zero_gain_picks"] == 5
    assert [each["gain"] for each in subset[1:6]] == [0.0] * 5


def test_a_learnt_row_that_may_be_chosen_again_covers_itself_no_better_than_others_may(tmp_path):
    rows = [learn(row(place, "pool")) if place == 2 else row(place, "pool") for place in range(12)]
    ids = write_rows(tmp_path / "examples", rows)
    write_utility(tmp_path / "utility", ids, UTILITY)
    write_embedding(tmp_path / "embedding", ids, VECTORS)
    capped = cap(RELU)
    subset, _ = run(tmp_path, replace(HALF, objective="conditional_gain", learnt_weight=0.5), diagonal="capped")
    learnt = capped[:, [2]]
    expected = oracles.greedy_of(lambda some: oracles.conditional_gain(capped, learnt, 0.5, some), 12, 6)
    assert places_of(subset, ids) == expected


def test_what_a_check_says_leaves_out_that_rows_cover_themselves(world):
    folder, ids = world
    write_check(folder / "utility", [ids[0], ids[5]], ids, UTILITY[[0, 5]])
    subset, facts = run(folder, diagonal="capped")
    picks = places_of(subset, ids)
    kernel = np.maximum(OFF[[0, 5]], 0)
    expected = np.nanmax(kernel[:, picks], axis=1).sum() / np.nanmax(kernel, axis=1).sum()
    assert facts["checked"]["facility_location_share"] == pytest.approx(expected)
    assert json.loads((folder / "out/selection.json").read_text())["checked"]["targets"] == 2


@pytest.mark.parametrize("budget", [{"count": 6}, {"response_tokens": 22}])
def test_picks_without_a_gain_are_counted_as_they_stand_in_the_subset(world, budget):
    folder, ids = world
    utility = -np.ones((12, 12), np.float32)
    utility[:, 7] = 1
    write_utility(folder / "utility", ids, utility)
    subset, facts = run(folder, replace(HALF, budget=budget), diagonal="capped")
    gains = [each["gain"] for each in subset if each["chosen"]]
    assert facts["zero_gain_picks"] == gains.count(0.0) == len(gains) - 1


COSINES = np.maximum(VECTORS @ VECTORS.T, 0)


def mark_help(folder, ids, kernel: np.ndarray, helped: np.ndarray) -> None:
    """Write utilities of which some stand in the kernel and others tell the help of demos alone."""
    write_utility(folder / "utility", ids, UTILITY, keep=kernel | helped, in_kernel=kernel, kernel="neighbours")


def test_pairs_beside_the_kernel_tell_help_and_cover_nothing(world):
    folder, ids = world
    kernel = np.eye(12, dtype=bool) | (np.random.default_rng(5).random((12, 12)) < 0.4)
    helped = np.zeros((12, 12), bool)
    helped[[2, 9]] = True
    mark_help(folder, ids, kernel, helped & ~np.eye(12, dtype=bool))
    similar = cap(np.where(kernel, RELU, 0))
    worth = np.nanmean(np.where(kernel | helped, OFF, np.nan), axis=0)
    subset, facts = run(folder, replace(HALF, quality="help", budget={"count": 3}), diagonal="capped")
    wanted = similar * np.maximum(worth, 0)
    expected = oracles.greedy_of(lambda some: oracles.facility_location(wanted.astype(np.float32), some), 12, 3)
    assert facts["zero_gain_picks"] == 0
    assert places_of(subset, ids) == expected
    run(folder, replace(HALF, budget={"count": 3}), "plain", diagonal="capped")
    write_utility(folder / "utility", ids, UTILITY, keep=kernel, kernel="neighbours")
    run(folder, replace(HALF, budget={"count": 3}), "alone", diagonal="capped")
    picks = [chosen(read_table(folder / name / "subset.parquet").to_pylist()) for name in ("plain", "alone")]
    assert picks[0] == picks[1]


def test_embeddings_are_multiplied_by_the_help_of_demos_on_random_targets(world):
    folder, ids = world
    helped = np.zeros((12, 12), bool)
    helped[[1, 6, 8]] = True
    helped &= ~np.eye(12, dtype=bool)
    mark_help(folder, ids, np.zeros((12, 12), bool), helped)
    worth = np.nanmean(np.where(helped, OFF, np.nan), axis=0)
    kernel = COSINES * np.maximum(worth, 0)
    settings = replace(HALF, selector="embedding", quality="help", budget={"count": 4})
    subset, facts = run(folder, settings)
    expected = oracles.greedy_of(lambda some: oracles.facility_location(kernel.astype(np.float32), some), 12, 4)
    assert places_of(subset, ids) == expected
    assert facts["rows_without_quality"] == 0
    assert chosen(run(folder, replace(settings, quality="none"), "plain")[0]) != chosen(subset)
    assert "utility/utility.parquet" in str(provenance(folder / "out/subset.parquet")["inputs"])


def test_what_was_learnt_covers_by_its_own_help_where_embeddings_have_one(tmp_path):
    rows = [learn(row(place, "pool")) if place == 2 else row(place, "pool") for place in range(12)]
    ids = write_rows(tmp_path / "examples", rows)
    write_embedding(tmp_path / "embedding", ids, VECTORS)
    mark_help(tmp_path, ids, np.zeros((12, 12), bool), ~np.eye(12, dtype=bool))
    kernel = (COSINES * np.maximum(HELP, 0)).astype(np.float32)
    asked = {"selector": "embedding", "quality": "help", "budget": {"count": 3}, "learnt_weight": 0.5}
    subset, _ = run(tmp_path, replace(HALF, objective="conditional_gain", **asked))
    expected = oracles.greedy_of(lambda some: oracles.conditional_gain(kernel, kernel[:, [2]], 0.5, some), 12, 3)
    assert places_of(subset, ids) == expected


@pytest.mark.parametrize("selector", ["delift", "embedding"])
def test_with_a_target_task_help_is_that_for_its_rows(tmp_path, selector):
    ids = write_examples(tmp_path / "examples", pool=9, held_out=0, target=3)
    target = sorted(set(read_table(tmp_path / "examples/examples.parquet")["id"].to_pylist()) - set(ids))
    whole, keep = [*ids, *target], np.ones((12, 12), bool)
    write_utility(tmp_path / "utility", whole, UTILITY, keep=keep, in_kernel=keep, kernel="exact")
    write_embedding(tmp_path / "embedding", whole, VECTORS)
    similar = {"delift": RELU, "embedding": COSINES}[selector][9:, :9]
    kernel = (similar * np.maximum(UTILITY[9:, :9].mean(axis=0), 0)).astype(np.float32)
    asked = {"selector": selector, "quality": "help", "budget": {"count": 3}}
    subset, _ = run(tmp_path, replace(HALF, objective="mutual_information", **asked), diagonal="capped")
    expected = oracles.greedy_of(
        lambda some: oracles.facility_location(kernel, some) + kernel[:, some].max(axis=0).sum(), 9, 3
    )
    assert places_of(subset, ids) == expected


def test_help_is_that_for_rows_that_left_where_no_other_is_measured(world):
    folder, ids = world
    helped = np.zeros((12, 12), bool)
    helped[[3, 5, 7]] = True
    helped &= ~np.eye(12, dtype=bool)
    mark_help(folder, ids, np.zeros((12, 12), bool), helped)
    asked = replace(HALF, selector="embedding", quality="help", budget={"count": 3})
    for left in ([3], [3, 5, 7]):
        scores = np.where(np.isin(np.arange(12), left), 2.0, 0.5)
        write_scores(folder / "aside", ids, scores.tolist(), "ifd")
        (folder / "scores").mkdir(exist_ok=True)
        (folder / "aside/scores.parquet").rename(folder / "scores/ifd.parquet")
        subset, facts = run(folder, replace(asked, gate={"by": "ifd", "drop": len(left) / 12 + 0.01}))
        kept = [place for place in range(12) if place not in left]
        told = [place for place in (3, 5, 7) if place not in left] or left
        worth = np.array([np.mean([UTILITY[i, j] for i in told if i != j]) for j in kept])
        kernel = (COSINES[np.ix_(kept, kept)] * np.maximum(worth, 0)).astype(np.float32)
        expected = oracles.greedy_of(lambda some, kernel=kernel: oracles.facility_location(kernel, some), len(kept), 3)
        assert places_of(subset, ids) == [kept[place] for place in expected]
        assert facts["gate"]["gated_rows"] == len(left)
