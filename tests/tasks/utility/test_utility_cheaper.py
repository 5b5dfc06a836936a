"""Stage `utility`: fewer answer tokens of a target, and each demo's help on a few random targets."""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
from worlds.token_rows import cut_pair
from worlds.toy_corpus import write_conversations, write_examples
from worlds.toy_pairs import EXACT, embed, run

from tamis.utility.pairs import pairs_of_help
from tasks import models
from tasks.artifacts.tables import provenance, read_table
from tasks.utility.utility import read_pool

FIRST = replace(EXACT, answer_tokens=1)
NEAR = replace(EXACT, kernel="neighbours", neighbours=1, check_targets=0)
HELPED = replace(NEAR, help_targets=2)
ALONE = replace(EXACT, kernel="none", help_targets=2)


@pytest.fixture
def folders(tmp_path, toy):
    ids = write_examples(tmp_path / "examples")
    embed(tmp_path, toy)
    return tmp_path, ids


def rows_of(path) -> list[dict]:
    return read_table(path / "utility.parquet").to_pylist()


def test_the_first_answer_tokens_are_scored_and_the_demo_is_shown_whole(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, FIRST)
    pool, network = read_pool(tmp_path / "examples/examples.parquet", "whole", toy), models.language_model(toy)
    for row in rows_of(tmp_path / "out"):
        target, demo = ids.index(row["target_id"]), ids.index(row["demo_id"])
        before, answer = cut_pair(pool.encoding.row(target))
        shown, same = cut_pair(pool.answered(target, demo))
        assert same == answer
        (alone,) = oracles.plain_log_probs(network, before, answer[:1])
        (after,) = oracles.plain_log_probs(network, pool.prefix(0, demo).tolist() + shown, answer[:1])
        assert row["utility"] == pytest.approx((1 - np.exp(alone)) - (1 - np.exp(after)), abs=1e-5)


def test_scored_tokens_are_counted_and_recorded(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, replace(EXACT, answer_tokens=3))
    pool = read_pool(tmp_path / "examples/examples.parquet", "whole", toy)
    counted = [row["tokens"] for row in read_table(tmp_path / "out/distances.parquet").to_pylist()]
    assert counted == np.minimum(pool.encoding.answer_tokens[: len(counted)], 3).tolist()
    assert provenance(tmp_path / "out/utility.parquet")["parameters"]["answer_tokens"] == 3
    assert json.loads((tmp_path / "out/utility.json").read_text())["answer_tokens"] == 3


def test_answer_tokens_are_part_of_a_pairs_key(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    assert run(tmp_path, toy, FIRST, out="first")["pairs_known"] == 0
    assert run(tmp_path, toy, FIRST, out="again")["pairs_scored"] == 0
    assert run(tmp_path, toy, replace(EXACT, answer_tokens=2), out="other")["pairs_known"] == 0


def test_as_many_answer_tokens_as_there_are_change_no_score(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    run(tmp_path, toy, replace(EXACT, answer_tokens=1000), out="other")
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "other")


def test_of_a_conversation_the_first_answer_tokens_of_all_its_turns_are_scored(tmp_path, toy):
    write_conversations(tmp_path / "examples")
    embed(tmp_path, toy)
    run(tmp_path, replace(toy, max_tokens=512), FIRST)
    assert {row["tokens"] for row in read_table(tmp_path / "out/distances.parquet").to_pylist()} == {1}


def test_each_demo_is_scored_with_the_same_random_targets_besides_the_kernel(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, NEAR, out="plain")
    facts = run(tmp_path, toy, HELPED)
    rows = rows_of(tmp_path / "out")
    kernel = {(row["target_id"], row["demo_id"]) for row in rows if row["kernel"]}
    scored = {(row["target_id"], row["demo_id"]) for row in rows}
    assert kernel == {(row["target_id"], row["demo_id"]) for row in rows_of(tmp_path / "plain")}
    drawn = {ids[target] for target, _ in pairs_of_help(np.arange(6), np.arange(6), 2, 0)}
    asked = {(target, demo) for target in drawn for demo in ids if target != demo}
    assert len(drawn) == 2
    assert scored == kernel | asked
    assert facts["pairs_scored"] == len(asked - kernel)
    told = json.loads((tmp_path / "out/utility.json").read_text())
    assert (told["pairs_scored"], told["pairs_of_help"]) == (len(scored), len(scored - kernel))


def test_another_seed_draws_other_targets_and_the_same_seed_the_same(folders, toy):
    tmp_path, _ = folders
    drawn = []
    for number, seed in enumerate((0, 0, 1, 2)):
        run(tmp_path, toy, replace(ALONE, seed=seed), out=f"out-{number}")
        drawn.append({row["target_id"] for row in rows_of(tmp_path / f"out-{number}")})
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[0] or drawn[3] != drawn[0]


def test_without_a_kernel_only_the_drawn_targets_are_scored_alone(folders, toy):
    tmp_path, _ = folders
    facts = run(tmp_path, toy, ALONE)
    rows = rows_of(tmp_path / "out")
    assert not any(row["kernel"] for row in rows)
    assert (facts["pairs_scored"], facts["alone_scored"]) == (len(rows), 2) == (10, 2)
    assert read_table(tmp_path / "out/checked.parquet").num_rows == 0
    assert json.loads((tmp_path / "out/utility.json").read_text())["kernel"] == "none"


def test_the_help_of_demos_is_the_mean_of_the_exact_utilities(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    run(tmp_path, toy, replace(ALONE, help_targets=3), out="help")
    exact = {(row["target_id"], row["demo_id"]): row["utility"] for row in rows_of(tmp_path / "out")}
    found = rows_of(tmp_path / "help")
    assert len(found) == 15
    assert all(row["utility"] == exact[row["target_id"], row["demo_id"]] for row in found)


def test_rows_of_all_sets_are_scored_as_demos_and_of_landmarks_those_alone(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=8, held_out=0, target=2, learnt=2)
    embed(tmp_path, toy)
    run(tmp_path, toy, ALONE)
    assert len({row["demo_id"] for row in rows_of(tmp_path / "out")}) == 12
    few = replace(EXACT, kernel="landmarks", landmarks=2, landmark_targets=3, check_targets=0)
    run(tmp_path, toy, few, out="few")
    run(tmp_path, toy, replace(few, help_targets=8), out="more")
    demos = [{row["demo_id"] for row in rows_of(tmp_path / name)} for name in ("few", "more")]
    assert demos[0] == demos[1]


def test_help_is_measured_on_rows_of_the_target_task_where_there_is_one(tmp_path, toy):
    ids = write_examples(tmp_path / "examples", pool=8, held_out=0, target=3)
    embed(tmp_path, toy)
    run(tmp_path, toy, ALONE)
    found = rows_of(tmp_path / "out")
    target = set(read_table(tmp_path / "examples/examples.parquet")["id"].to_pylist()) - set(ids)
    helped = {row["target_id"] for row in found}
    assert len(target) == 3
    assert len(helped) == 2
    assert helped < target
    assert {row["demo_id"] for row in found} == {*ids, *target}


def test_of_help_alone_every_demo_of_the_pool_is_known_by_the_targets_row_nearest_to_it(tmp_path, toy):
    ids = write_examples(tmp_path / "examples", pool=8, held_out=0, target=3)
    embed(tmp_path, toy)
    run(tmp_path, toy)
    run(tmp_path, toy, NEAR, out="help", quality="help")
    table = read_table(tmp_path / "embedding/embedding.parquet")
    vectors = dict(zip(table["id"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))
    target = sorted(set(vectors) - set(ids))
    found, exact = rows_of(tmp_path / "help"), rows_of(tmp_path / "out")
    assert len(target) == 3
    assert sorted(row["demo_id"] for row in found) == sorted(ids)
    for row in found:
        nearest = max(float(vectors[row["demo_id"]] @ vectors[name]) for name in target)
        assert float(vectors[row["demo_id"]] @ vectors[row["target_id"]]) == pytest.approx(nearest, abs=1e-6)
    whole = {(row["target_id"], row["demo_id"]): row["utility"] for row in exact}
    assert all(row["utility"] == whole[row["target_id"], row["demo_id"]] for row in found)
