import math
from dataclasses import replace

import numpy as np
import oracles
import pyarrow as pa
import pytest
from pydantic import ValidationError
from worlds.toy_corpus import TOPICS, row, write_examples, write_rows
from worlds.toy_selection import HALF, run, write_utility

from tamis.submodular.budgets import BudgetError
from tamis.submodular.kernels import KernelError
from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, provenance, read_table, write_table
from tasks.selection.selection import SelectionError, resolve_budget
from tasks.selection.selectors import SELECTORS
from tasks.selection.settings import SelectionSettings

GROUND = pa.table({"topic": [TOPICS[place % 3] for place in range(12)], "response_tokens": [1] * 12})


@pytest.fixture
def world(tmp_path):
    """A pool of twelve rows, three held out, and a utility with both signs."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=3)
    matrix = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    write_utility(tmp_path / "utility", ids, matrix)
    return tmp_path, ids, matrix


def test_the_subset_is_plain_greedys_with_rank_gain_objective_and_cover(world):
    folder, ids, matrix = world
    kernel = np.maximum(matrix, 0)
    subset, facts = run(folder)
    order, gains = oracles.greedy(kernel, resolve_budget(GROUND, HALF))
    assert [row["id"] for row in subset[:6]] == [ids[row] for row in order]
    assert [row["rank"] for row in subset] == [1, 2, 3, 4, 5, 6, *[None] * 6]
    assert [row["chosen"] for row in subset] == [True] * 6 + [False] * 6
    assert [row["gain"] for row in subset[:6]] == pytest.approx([float(gain) for gain in gains])
    assert [row["objective"] for row in subset[:6]] == pytest.approx(np.cumsum([float(gain) for gain in gains]))
    for one in subset:
        similar = kernel[ids.index(one["id"]), order]
        assert one["cover"] == similar.max()
        assert one["covered_by"] == (ids[order[similar.argmax()]] if similar.max() > 0 else None)
    assert facts["objective"] == pytest.approx(subset[5]["objective"])


def test_rows_that_are_not_chosen_stand_in_the_order_of_the_pool_without_rank_or_gain(world):
    folder, ids, _ = world
    rest = run(folder)[0][6:]
    assert [ids.index(row["id"]) for row in rest] == sorted(ids.index(row["id"]) for row in rest)
    assert {(row["rank"], row["gain"], row["objective"]) for row in rest} == {(None, None, None)}


def test_a_row_that_stands_for_its_near_duplicates_counts_as_many_times_in_the_objective(world):
    folder, ids, matrix = world
    plain, facts = run(folder, replace(HALF, budget={"count": 3}))
    weight = [1.0] * 11 + [40.0]
    rows = [row(place, "pool") | {"weight": heavy} for place, heavy in enumerate(weight)]
    assert write_rows(folder / "examples", rows) == ids
    weighed, more = run(folder, replace(HALF, budget={"count": 3}))
    kernel = np.float32(weight)[:, None] * np.maximum(matrix, 0)
    order, gains = oracles.greedy(kernel, resolve_budget(GROUND, replace(HALF, budget={"count": 3})))
    assert [one["id"] for one in weighed[:3]] == [ids[place] for place in order] != [one["id"] for one in plain[:3]]
    assert [one["gain"] for one in weighed[:3]] == pytest.approx([float(gain) for gain in gains])
    assert more["objective"] > facts["objective"]


def test_the_metrics_say_what_was_chosen(world):
    folder, _, matrix = world
    subset, facts = run(folder, replace(HALF, budget={"count": 3}))
    chosen = subset[:3]
    tokens = sum(row["response_tokens"] for row in chosen)
    full = np.maximum(matrix, 0).max(axis=1).sum()
    assert (facts["kernel"], facts["neighbour_recall"]) == ("dense", None)
    assert (facts["pool_rows"], facts["chosen_rows"], facts["chosen_fraction"]) == (12, 3, 0.25)
    assert facts["chosen_response_tokens"] == tokens
    assert facts["chosen_response_tokens_fraction"] == tokens / sum(row["response_tokens"] for row in subset)
    bounds = {"floors": dict.fromkeys(TOPICS, 0), "caps": dict.fromkeys(TOPICS, 4)}
    assert facts["budget"] == {"kind": "count", "limit": 3, "spent": 3} | bounds
    assert facts["objective_of_none"] == 0
    assert facts["objective_of_all"] == pytest.approx(full, rel=1e-6)
    assert facts["objective_share"] == pytest.approx(facts["objective"] / full, rel=1e-6)
    assert facts["zero_gain_picks"] == 0
    assert facts["rows_covered_by_none"] == sum(row["covered_by"] is None for row in subset)
    assert facts["topics"] == {name: sum(row["topic"] == name for row in chosen) for name in TOPICS}


def test_rows_that_are_known_to_be_wrong_are_counted_in_pool_and_choice(world):
    folder, _, _ = world
    words = {0: "cut", 5: "cut", 7: "exchanged"}
    rows = [row(place, "pool") | {"planted": words.get(place)} for place in range(12)]
    rows[9]["near_duplicate_of"] = rows[10]["near_duplicate_of"] = 2
    write_rows(folder / "examples", rows)
    subset, facts = run(folder)
    order = {one["id"]: place for place, one in enumerate(rows)}
    chosen = [order[one["id"]] for one in subset if one["chosen"]]
    taken = [words[place] for place in chosen if place in words]
    assert facts["faults"]["pool"] == {"planted": {"cut": 2, "exchanged": 1}, "repeats": 2}
    assert facts["faults"]["chosen"] == {
        "planted": {word: taken.count(word) for word in sorted(set(taken))},
        "repeats": max(0, len({2, 9, 10} & set(chosen)) - 1),
    }


def test_what_is_chosen_does_not_depend_on_what_is_planted(world):
    folder, _, _ = world
    plain = run(folder)[0]
    write_rows(folder / "examples", [row(place, "pool") | {"planted": "cut"} for place in range(12)])
    assert run(folder, out="again")[0] == plain


def test_the_order_of_the_utility_rows_does_not_matter(world):
    folder, ids, matrix = world
    first = run(folder)
    write_utility(folder / "utility", ids, matrix, shuffle=1)
    assert run(folder, out="again") == first


def test_missing_pairs_count_as_zero(world):
    folder, ids, matrix = world
    keep = np.random.default_rng(1).random((12, 12)) < 0.5
    write_utility(folder / "utility", ids, matrix, keep=keep)
    sparse, facts = run(folder)
    write_utility(folder / "utility", ids, np.where(keep, matrix, 0).astype(np.float32))
    dense, others = run(folder, out="dense")
    assert sparse == dense
    assert facts == {**others, "kernel": "sparse"}


def test_equal_inputs_give_equal_bytes(world):
    folder, *_ = world
    run(folder)
    run(folder, out="again")
    for name in ("subset.parquet", "selection.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_the_subset_says_where_it_comes_from(world):
    folder, *_ = world
    run(folder)
    record = provenance(folder / "out/subset.parquet")
    assert (record["stage"], record["version"], record["rows"], record["seed"]) == ("selection", "v1", 12, None)
    assert record["parameters"]["budget"] == {"fraction": 0.5}
    assert sorted(path.rsplit("/")[-1] for path in record["inputs"]) == [
        "checked.parquet",
        "embedding.parquet",
        "examples.parquet",
        "utility.parquet",
    ]


@pytest.mark.parametrize("optimiser", ["lazy", "stochastic", "partition"])
def test_stratified_no_topic_has_more_than_its_share_of_the_rows(world, optimiser):
    folder, ids, matrix = world
    few = [place % 3 == 0 for place in range(12)]  # the topic that the objective would take whole
    write_utility(folder / "utility", ids, np.where(few, 5, 0.1) * np.abs(matrix))
    plain = run(folder, HALF, "plain")[1]
    facts = run(folder, replace(HALF, stratify="topic", optimiser=optimiser))[1]
    assert plain["topics"][TOPICS[0]] == 4
    assert facts["topics"] == facts["strata"] == dict.fromkeys(sorted(TOPICS), 2)
    assert plain["strata"] is None


@pytest.mark.parametrize("other", [{"selector": "random"}, {"budget": {"response_tokens": 9}}])
def test_shares_of_topics_are_of_an_objective_and_a_budget_of_rows(world, other):
    folder, *_ = world
    asked = replace(HALF, stratify="topic", **other)
    subset, facts = run(folder, asked)
    assert facts["strata"] is None
    assert subset == run(folder, replace(asked, stratify="none"), "free")[0]


@pytest.mark.parametrize("selector", ["delift", "random"])
def test_caps_and_floors_are_kept(world, selector):
    folder, *_ = world
    settings = replace(HALF, selector=selector, caps={"*": 2, "sums": 3}, floors={"letters": 2, "greetings": 1})
    topics = run(folder, settings)[1]["topics"]
    assert topics["sums"] <= 3
    assert topics["letters"] == 2
    assert 1 <= topics["greetings"] <= 2
    assert sum(topics.values()) == 6


@pytest.mark.parametrize("selector", ["delift", "random"])
def test_a_token_budget_is_kept(world, selector):
    subset, facts = run(world[0], SelectionSettings(selector=selector, budget={"response_tokens": 11}))
    assert facts["budget"]["kind"] == "response_tokens"
    assert facts["budget"]["spent"] == facts["chosen_response_tokens"] <= 11
    assert facts["chosen_response_tokens"] == sum(row["response_tokens"] for row in subset if row["chosen"])


def test_rows_at_random_need_no_utility_and_have_no_gains(world):
    folder, ids, _ = world
    write_table(schemas.UTILITY.empty_table(), folder / "utility/utility.parquet", Provenance("utility", "v1"))
    subset, facts = run(folder, replace(HALF, selector="random"))
    assert sum(row["chosen"] for row in subset) == 6
    assert sorted(row["id"] for row in subset) == sorted(ids)
    assert {row[name] for row in subset for name in ("gain", "objective", "covered_by", "cover")} == {None}
    assert facts["objective"] is facts["kernel"] is facts["zero_gain_picks"] is None
    assert provenance(folder / "out/subset.parquet")["seed"] == 0


def test_the_same_seed_draws_the_same_rows(world):
    random = replace(HALF, selector="random")
    assert run(world[0], random) == run(world[0], random, out="again")
    assert run(world[0], random)[0] != run(world[0], replace(random, seed=1), out="other")[0]


def test_unused_and_held_out_rows_are_neither_chosen_nor_covered(world):
    folder, ids, matrix = world
    source = folder / "examples/examples.parquet"
    rows = read_table(source, schemas.EXAMPLES).to_pylist()
    rows[4].update(used=False, unused_because="not sampled")
    write_table(pa.Table.from_pylist(rows[::-1], schema=schemas.EXAMPLES), source, Provenance("examples", "v1"))
    left = np.delete(np.arange(12), 4)
    write_utility(folder / "utility", [ids[row] for row in left], matrix[np.ix_(left, left)])
    subset, facts = run(folder)
    assert sorted(row["id"] for row in subset) == sorted(ids[row] for row in left)
    assert facts["chosen_rows"] == 5


def test_identical_utilities_are_chosen_in_order_and_the_empty_gains_counted(world):
    folder, ids, matrix = world
    write_utility(folder / "utility", ids, np.ones_like(matrix))
    subset, facts = run(folder)
    assert [row["id"] for row in subset] == ids
    assert facts["zero_gain_picks"] == 5


def test_where_no_demo_helps_every_pick_is_without_gain(world):
    folder, ids, matrix = world
    write_utility(folder / "utility", ids, -np.abs(matrix))
    _, facts = run(folder)
    assert (facts["zero_gain_picks"], facts["rows_covered_by_none"], facts["objective_share"]) == (6, 12, None)


def test_identical_utilities_cannot_be_scaled_by_minmax(world):
    folder, ids, matrix = world
    write_utility(folder / "utility", ids, np.ones_like(matrix))
    with pytest.raises(
        KernelError, match=r"all 144 utilities are 1.0, a constant kernel .* set selection.scaling to relu"
    ):
        run(folder, replace(HALF, scaling="minmax"))


def test_a_utility_that_is_not_a_number_is_named_by_its_ids(world):
    folder, ids, matrix = world
    matrix[3, 7] = math.nan
    write_utility(folder / "utility", ids, matrix)
    with pytest.raises(
        KernelError, match=rf"1 of 144 utilities are not finite, .* \[\('{ids[3]}', '{ids[7]}'\)\]; score"
    ):
        run(folder)


def test_negative_utilities_without_scaling_are_counted(world):
    folder, _, matrix = world
    with pytest.raises(KernelError, match=rf"{(matrix < 0).sum()} of 144 similarities are negative, first pairs"):
        run(folder, replace(HALF, scaling="none"))


def test_an_unknown_selector_is_named_with_those_known():
    with pytest.raises(ValidationError, match=r"selector\n.*'delift', 'random', 'balanced', 'fre") as caught:
        replace(HALF, selector="loss")
    assert all(f"'{name}'" in str(caught.value) for name in SELECTORS)


def test_pairs_of_another_pool_are_named(world):
    folder, ids, matrix = world
    write_utility(folder / "utility", ["stranger", *ids[1:]], matrix)
    with pytest.raises(
        SelectionError, match=r"23 of 144 pairs in .* not of the pool's 12 used texts, 0 learnt ones .*'stranger'"
    ):
        run(folder)


def test_an_empty_utility_says_how_to_make_it_again(world):
    folder, *_ = world
    write_table(schemas.UTILITY.empty_table(), folder / "utility/utility.parquet", Provenance("utility", "v1"))
    with pytest.raises(
        SelectionError, match=r"utility.parquet holds no pair of 12 targets and 12 demos .*; make it again with sel"
    ):
        run(folder)


def test_a_single_example_leaves_nothing_to_choose(tmp_path):
    ids = write_examples(tmp_path / "examples", pool=1, held_out=1)
    write_utility(tmp_path / "utility", ids, np.ones((1, 1), np.float32))
    with pytest.raises(BudgetError, match="the ground set holds 1 of the 2 rows that a choice needs"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"budget": {"count": 13}}, "count is 13, but the ground set holds 12 rows"),
        ({"budget": {"count": 2}, "floors": {"sums": 3}}, "need at least 3 rows, but .*count allows 2"),
        ({"caps": {"rhymes": 1}}, r"caps name 1 of 1 topics that no row has, first \['rhymes'\]"),
    ],
)
def test_a_budget_that_cannot_be_kept_writes_nothing(world, changes, text):
    folder, *_ = world
    with pytest.raises(BudgetError, match=text):
        run(folder, replace(HALF, **changes))
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"budget": {"count": 0}}, "is count: 0, which chooses nothing; it must be above 0"),
        ({"budget": {"fraction": 1.5}}, "is fraction: 1.5, over 100% of the pool; 0.3 stands for 30%"),
        ({"caps": {"sums": -1}}, "greater than or equal to 0"),
        ({"epsilon": 1.0}, "less than 1"),
        ({"partitions": 0}, "greater than or equal to 1"),
        ({"target_weight": -0.5}, "greater than or equal to 0"),
        ({"learnt_weight": -0.5}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(changes, text):
    with pytest.raises(ValidationError, match=text):
        replace(HALF, **changes)
