"""Pairs beyond the pool's own: with the target task, with what was learnt, and with another version's rows."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds.toy_corpus import learn, reword, row, write_examples, write_rows
from worlds.toy_pairs import EXACT, embed, pairs_of, run

from tamis.utility.pairs import representatives
from tasks.artifacts.tables import provenance, read_table

NEIGHBOURS = replace(EXACT, kernel="neighbours", neighbours=1, check_targets=0)
LANDMARKS = replace(EXACT, kernel="landmarks", landmarks=2, check_targets=0)


def ids_of(root, split="pool", used=True) -> list[str]:
    rows = read_table(root / "examples/examples.parquet").to_pylist()
    return [one["id"] for one in rows if (one["split"], one["used"]) == (split, used)]


def cross(targets, demos) -> set:
    return {(target, demo) for target in targets for demo in demos}


@pytest.fixture
def sets(tmp_path, toy):
    """A pool V of 4, a target task Q of 2, and P: 2 unused rows that were learnt."""
    write_examples(tmp_path / "examples", pool=4, held_out=1, target=2, learnt=2)
    embed(tmp_path, toy)
    return tmp_path, ids_of(tmp_path), ids_of(tmp_path, "target"), ids_of(tmp_path, used=False)


def test_the_pool_is_scored_with_itself_with_the_task_both_ways_and_with_what_was_learnt(sets, toy):
    root, v, q, p = sets
    facts = run(root, toy)
    assert set(pairs_of(root / "out/utility.parquet")) == cross(v, v + p + q) | cross(q, v)
    assert facts["pairs_scored"] == 4 * 4 + 4 * 2 + 4 * 2 + 2 * 4


def test_only_pool_and_task_are_scored_alone(sets, toy):
    root, v, q, _ = sets
    assert run(root, toy)["alone_scored"] == 6
    assert sorted(read_table(root / "out/distances.parquet")["id"].to_pylist()) == sorted(v + q)


def test_a_pair_means_the_same_in_whatever_block_it_stands(sets, toy):
    """The learnt rows as rows of the pool: the same pairs, the same utilities."""
    root, v, _, p = sets
    run(root, toy)
    apart = pairs_of(root / "out/utility.parquet")
    rows = read_table(root / "examples/examples.parquet").to_pylist()
    write_rows(root / "examples", [one | {"used": True, "unused_because": None} for one in rows])
    run(root, toy, out="within", store="other")
    within = pairs_of(root / "within/utility.parquet")
    assert within[v[1], p[0]] == pytest.approx(apart[v[1], p[0]], abs=1e-6)
    assert (p[0], v[1]) in within


def test_learnt_rows_inside_the_pool_add_no_pair(tmp_path, toy):
    write_rows(tmp_path / "examples", [row(0, "pool"), learn(row(1, "pool")), learn(row(2, "pool"))])
    assert run_exact(tmp_path, toy)["pairs_scored"] == 9


def test_a_second_version_scores_exactly_the_pairs_of_its_news(tmp_path, toy):
    """N1 = 5 and N2 = 6 rows of which K = 3 are the same: the second version scores N2^2 - K^2 pairs."""
    first = [row(place, "pool") for place in range(5)]
    kept = [learn(first[2]), first[3] | {"change": "kept", "earlier": "offered"}, learn(first[4])]
    write_rows(tmp_path / "examples", first)
    assert run_exact(tmp_path, toy)["pairs_scored"] == 5 * 5
    write_rows(tmp_path / "examples", [*kept, *(row(place, "pool") for place in (7, 8, 9))])
    facts = run_exact(tmp_path, toy)
    assert (facts["pairs_scored"], facts["pairs_known"]) == (6 * 6 - 3 * 3, 3 * 3)
    assert (facts["alone_scored"], facts["alone_known"]) == (3, 3)


def test_with_task_and_learnt_rows_nothing_is_scored_twice(tmp_path, toy):
    """Version 2 learnt 2 of the 3 rows that it shares with version 1, and has a task of 2."""
    write_rows(tmp_path / "examples", [row(place, "pool") for place in range(4)])
    run_exact(tmp_path, toy)
    shared = [learn(row(1, "pool")), learn(row(2, "pool")), row(3, "pool")]
    rows = [*shared, row(6, "pool"), row(7, "target"), row(8, "target")]
    write_rows(tmp_path / "examples", rows)
    facts = run_exact(tmp_path, toy)
    assert facts["pairs_scored"] == (4 * 4 - 3 * 3) + 4 * 2 + 2 * 4
    again = run_exact(tmp_path, toy)
    assert (again["pairs_scored"], again["alone_scored"]) == (0, 0)
    assert again["pairs_known"] == 4 * 4 + 4 * 2 + 2 * 4


def test_a_learnt_row_is_no_target_and_may_be_too_long_for_one(sets, toy):
    root, v, q, p = sets
    rows = read_table(root / "examples/examples.parquet").to_pylist()
    rows[-1] = reword(rows[-1], response="long " * 60)
    write_rows(root / "examples", rows)
    run_exact(root, toy)
    assert {demo for _, demo in pairs_of(root / "out/utility.parquet")} == {*v, *q, p[0]}
    assert {one["demo_id"] for one in read_table(root / "out/skipped.parquet").to_pylist()} == {p[1]}


def test_neighbours_are_taken_block_by_block(sets, toy):
    root, v, q, p = sets
    run(root, toy, NEIGHBOURS)
    found = pairs_of(root / "out/utility.parquet")
    for target in v:
        counts = [len([demo for demo in demos if (target, demo) in found]) for demos in (v, p, q)]
        assert counts == [2, 1, 1]
        assert (target, target) in found
    assert all(len([demo for demo in v if (target, demo) in found]) == 1 for target in q)


def test_landmarks_are_a_few_demos_of_each_set_for_all_targets(sets, toy):
    root, v, q, p = sets
    run(root, toy, LANDMARKS)
    found = set(pairs_of(root / "out/utility.parquet"))
    chosen = {demo for _, demo in found} & set(v)
    assert len(chosen) == 2
    assert found == cross(v, chosen | set(p) | set(q)) | cross(q, chosen)


def test_landmarks_may_be_scored_on_a_few_targets_and_on_themselves(sets, toy):
    root, v, q, p = sets
    run(root, toy, replace(LANDMARKS, landmark_targets=1))
    found = set(pairs_of(root / "out/utility.parquet"))
    (answered,) = {target for target, demo in found if demo in p}
    chosen = {demo for _, demo in found} & set(v)
    assert found == cross([answered], chosen | set(p) | set(q)) | cross(q, chosen) | {(one, one) for one in chosen}


def test_landmarks_are_those_that_help_most_on_targets_that_were_tried(tmp_path, toy):
    """Two rounds before the last: 8 demos, the better 4 of them, the best 2."""
    ids = write_examples(tmp_path / "examples", pool=9)
    embed(tmp_path, toy)
    run(tmp_path, toy, out="exact", store="other")
    exact = pairs_of(tmp_path / "exact/utility.parquet")
    targets = [ids[place] for place in np.random.default_rng(5).permutation(9)]
    vectors = read_table(tmp_path / "embedding/embedding.parquet")["embedding"].to_pylist()
    left = [ids[place] for place in representatives(np.array(vectors[:9], np.float32), 8)]

    for answered, count in ((1, 4), (4, 2)):  # 9 / 7 and 27 / 7 of 9 targets
        means = {}
        for demo in left:
            helped = [max(exact[target, demo], 0) for target in targets[:answered] if target != demo]
            means[demo] = sum(helped) / max(1, len(helped))
        left = sorted(left, key=lambda demo: -means[demo])[:count]

    run(tmp_path, toy, replace(LANDMARKS, seed=5))
    assert {demo for _, demo in pairs_of(tmp_path / "out/utility.parquet")} == set(left)


def test_what_was_tried_is_counted_and_known_again(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=9)
    embed(tmp_path, toy)
    first = run(tmp_path, toy, LANDMARKS)
    kernel = len(pairs_of(tmp_path / "out/utility.parquet"))
    assert (first["pairs_known"], first["alone_scored"]) == (0, 9)
    assert first["pairs_scored"] == kernel + (8 - 4) * 1 + (4 - 2) * 4 == 9 * 2 + 12
    again = run(tmp_path, toy, LANDMARKS, out="again")
    assert (again["pairs_scored"], again["pairs_known"], again["shards"]) == (0, first["pairs_scored"], 0)
    assert (tmp_path / "out/utility.parquet").read_bytes() == (tmp_path / "again/utility.parquet").read_bytes()


def test_as_many_landmarks_as_rows_give_the_exact_kernel(sets, toy):
    root, *_ = sets
    run(root, toy, replace(LANDMARKS, landmarks=4))
    run(root, toy, out="exact")
    assert pairs_of(root / "out/utility.parquet") == pairs_of(root / "exact/utility.parquet")


def test_a_kernel_is_checked_on_whole_rows_scored_exactly(sets, toy):
    root, v, *_ = sets
    run(root, toy, out="exact", store="other")
    exact = pairs_of(root / "exact/utility.parquet")
    facts = run(root, toy, replace(NEIGHBOURS, check_targets=2))
    check, kernel = (pairs_of(root / f"out/{name}.parquet") for name in ("checked", "utility"))
    drawn = {target for target, _ in check}
    assert len(drawn) == 2
    assert set(check) == cross(drawn, v)
    assert facts["pairs_scored"] == len(set(check) | set(kernel))
    assert all(value == pytest.approx(exact[pair], abs=1e-6) for pair, value in check.items())
    error = json.loads((root / "out/utility.json").read_text())["error"]
    lost = [max(value, 0) * (pair not in kernel) for pair, value in check.items()]
    helpful = [pair for pair, value in check.items() if value > 0]
    assert (error["targets"], error["pairs"]) == (2, 8)
    assert error["mean_absolute"] == pytest.approx(sum(lost) / 8)
    assert error["max_absolute"] == pytest.approx(max(lost))
    assert error["share_of_helpful_missed"] == sum(pair not in kernel for pair in helpful) / max(1, len(helpful))


def test_the_checked_targets_are_drawn_by_the_seed(sets, toy):
    root, *_ = sets
    drawn = []
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        run(root, toy, replace(NEIGHBOURS, check_targets=1, seed=seed), out=f"out{number}")
        drawn.append({target for target, _ in pairs_of(root / f"out{number}/checked.parquet")})
    assert drawn[0] == drawn[1]
    assert len(set.union(*drawn)) > 1


@pytest.mark.parametrize("settings", [EXACT, NEIGHBOURS])
def test_nothing_checked_is_written_as_such(sets, toy, settings):
    root, *_ = sets
    run(root, toy, settings)
    assert read_table(root / "out/checked.parquet").num_rows == 0
    error = json.loads((root / "out/utility.json").read_text())["error"]
    assert (error["targets"], error["pairs"], error["mass_missed"]) == (0, 0, None)


def test_what_pairs_cost_is_told_again_when_they_are_known(sets, toy):
    root, *_ = sets
    first = run(root, toy)["scoring_seconds"]
    assert run(root, toy, out="again")["scoring_seconds"] == pytest.approx(first)
    assert 0 < run(root, toy, NEIGHBOURS, out="fewer")["scoring_seconds"] < first


def run_exact(root, toy):
    embed(root, toy)
    return run(root, toy)


@pytest.mark.parametrize("settings", [EXACT, NEIGHBOURS, LANDMARKS])
def test_rows_of_one_text_are_scored_once(tmp_path, toy, settings):
    rows = [row(place, "pool") for place in range(5)]
    again = [
        rows[place] | {"id": f"{rows[place]['id']}-{number}", "duplicate_of": place}
        for place, number in ((1, 2), (1, 3))
    ]
    write_rows(tmp_path / "alone/examples", rows)
    write_rows(tmp_path / "twice/examples", [one | {"row": place} for place, one in enumerate([*rows, *again])])
    found = []
    for name in ("alone", "twice"):
        embed(tmp_path / name, toy)
        run(tmp_path / name, toy, settings)
        found.append(pairs_of(tmp_path / name / "out/utility.parquet"))
    assert found[0] == found[1]


@pytest.mark.parametrize("settings", [EXACT, NEIGHBOURS, LANDMARKS])
@pytest.mark.parametrize(("task", "quality", "helped"), [(0, "help", "v"), (2, "help", "q"), (2, "neighbours", "v")])
def test_where_quality_alone_is_read_only_what_tells_it_is_scored(tmp_path, toy, settings, task, quality, helped):
    write_examples(tmp_path / "examples", pool=5, target=task, learnt=2)
    embed(tmp_path, toy)
    nearest = settings is NEIGHBOURS and quality == "help"  # each demo with the row nearest to it
    run(tmp_path, toy, EXACT if nearest else settings, out="whole")
    told = run(tmp_path, toy, settings, quality=quality, store="other")
    sets = {"v": ids_of(tmp_path), "q": ids_of(tmp_path, "target")}
    whole, found = (pairs_of(tmp_path / f"{name}/utility.parquet") for name in ("whole", "out"))
    wanted = {(i, j): utility for (i, j), utility in whole.items() if i in sets[helped] and j in sets["v"] and i != j}
    if nearest:
        assert sorted(demo for _, demo in found) == sorted(sets["v"])
        wanted = {pair: wanted[pair] for pair in found}
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found
    recorded = [provenance(tmp_path / f"{name}/utility.parquet")["parameters"]["quality"] for name in ("whole", "out")]
    assert recorded == [None, quality]
    if settings is not LANDMARKS:
        assert told["alone_scored"] == len({target for target, _ in found})
