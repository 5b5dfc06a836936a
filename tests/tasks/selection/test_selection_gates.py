"""A gate before the choice: the worst rows of the pool are neither chosen nor covered, and stand there with why."""

from dataclasses import replace

import numpy as np
import oracles
import pyarrow as pa
import pytest
from pydantic import ValidationError
from worlds.toy_corpus import row, write_examples, write_rows
from worlds.toy_selection import (
    chosen,
    draw_vectors,
    run,
    write_check,
    write_embedding,
    write_phi_data,
    write_scores,
    write_utility,
)

from tamis.scores.gates import level
from tamis.submodular.budgets import BudgetError, draw, narrow, resolve
from tasks.selection.gates import refuse_whole
from tasks.selection.selection import resolve_budget
from tasks.selection.settings import SelectionSettings

SCORES = np.array([0.5, 1.4, 0.2, 0.9, 1.2, 0.1, 0.3, 0.4, 0.6, 0.7, 0.8, 0.95])
WORST = {1, 4, 11}  # of twelve, a quarter
FOUR = SelectionSettings(budget={"fraction": 0.34}, gate={"by": "ifd", "drop": 0.25})  # four rows of twelve


@pytest.fixture
def world(tmp_path):
    """A pool of twelve rows, and what every gate and selector reads of it."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=2, validation=2)
    matrix = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    write_utility(tmp_path / "utility", ids, matrix)
    write_gate(tmp_path, ids, SCORES)
    write_scores(tmp_path / "scores", ids, SCORES.tolist())
    return tmp_path, ids, matrix


def write_gate(folder, ids, scores, stage="scores", name="ifd"):
    write_scores(folder / "aside", ids, list(scores))
    (folder / stage).mkdir(exist_ok=True)
    (folder / "aside/scores.parquet").rename(folder / stage / f"{name}.parquet")


def places(ids, some):
    return [ids.index(each) for each in some]


def test_the_choice_is_that_of_a_pool_without_the_rows_that_left(world):
    folder, ids, matrix = world
    subset, facts = run(folder, FOUR)
    kept = [place for place in range(12) if place not in WORST]
    full = resolve_budget(ground_of(ids), FOUR)
    order, gains = oracles.greedy(np.maximum(matrix, 0)[np.ix_(kept, kept)], narrow(full, np.array(kept)))
    assert places(ids, chosen(subset)) == [kept[place] for place in order]
    assert [one["gain"] for one in subset[:4]] == pytest.approx([float(gain) for gain in gains])
    assert facts["budget"]["limit"] == 4
    assert facts["pool_rows"] == 12


def ground_of(ids):
    topics = [row(place, "pool")["topic"] for place in range(len(ids))]
    return pa.table({"topic": topics, "response_tokens": [1] * len(ids)})


def test_rows_that_left_stand_there_with_their_score_and_without_cover(world):
    folder, ids, matrix = world
    subset, facts = run(folder, FOUR)
    for one in subset:
        place = ids.index(one["id"])
        assert one["gate_score"] == SCORES[place]
        assert one["gated"] == (place in WORST)
        if one["gated"]:
            assert (one["chosen"], one["covered_by"], one["cover"]) == (False, None, None)
        else:
            similar = np.maximum(matrix, 0)[place, places(ids, chosen(subset))]
            assert one["cover"] == similar.max()
            assert one["covered_by"] in (chosen(subset)[int(similar.argmax())], None)
    over = -level(-SCORES, ground_of(ids)["topic"].to_pylist())  # what is usual in the topic
    assert [one["gate_score"] - one["gate_usual"] for one in subset] == pytest.approx(
        [over[ids.index(one["id"])] for one in subset]
    )
    assert facts["gate"]["worst_kept"] == pytest.approx(max(over[place] for place in range(12) if place not in WORST))
    apart = {one["id"]: one["gate_score"] - one["gate_usual"] for one in subset}
    assert min(apart[one["id"]] for one in subset if one["gated"]) >= facts["gate"]["worst_kept"]
    assert {name: facts["gate"][name] for name in ("by", "drop", "gated_rows", "unscored")} == {
        "by": "ifd",
        "drop": 0.25,
        "gated_rows": 3,
        "unscored": 0,
    }


def test_rows_that_do_not_stand_out_stay(world):
    folder, *_ = world
    subset, facts = run(folder, replace(FOUR, gate={"by": "ifd", "beyond": 1000}))
    assert not any(one["gated"] for one in subset)
    assert (facts["gate"]["drop"], facts["gate"]["beyond"], facts["gate"]["gated_rows"]) == (0.5, 1000, 0)


def test_planted_rows_that_left_are_counted(world):
    folder, ids, _ = world
    rows = [row(place, "pool") | {"planted": "cut" if place in (1, 2) else None} for place in range(12)]
    assert write_rows(folder / "examples", rows) == ids
    assert run(folder, FOUR)[1]["gate"]["faults"] == {"planted": {"cut": 1}, "repeats": 0}


def test_a_pinned_row_stays_so_that_a_gate_takes_less_out():
    gate, tokens = {"by": "ifd", "drop": 0.25, "beyond": None}, np.ones(12, np.int64)
    budget = resolve({"count": 10}, topics=["ai"] * 12, response_tokens=tokens, caps={}, floors={})
    with pytest.raises(BudgetError):
        refuse_whole(budget, gate)
    refuse_whole(budget, gate, pinned=1)


def test_without_a_gate_no_row_leaves_and_none_has_a_score(world):
    folder, *_ = world
    subset, facts = run(folder, replace(FOUR, gate=None))
    assert {(one["gated"], one["gate_score"], one["gate_usual"]) for one in subset} == {(False, None, None)}
    assert facts["gate"] is None


@pytest.mark.parametrize(
    "selector", ["embedding", "less", "longest", "deft_ucs", "random", "balanced", "bm25", "dualsft"]
)
def test_every_selector_chooses_among_the_others(world, selector):
    folder, ids, _ = world
    write_embedding(folder / "embedding", ids, draw_vectors(12))
    write_phi_data(folder, ids, SCORES.tolist())
    subset, facts = run(folder, replace(FOUR, selector=selector))
    assert len(chosen(subset)) == 4
    assert not WORST & set(places(ids, chosen(subset)))
    if selector in ("less", "dualsft"):
        assert places(ids, chosen(subset)) == [3, 10, 9, 8]
        assert facts["not_scored"] == 0
    if selector == "random":
        budget = narrow(resolve_budget(ground_of(ids), FOUR), np.array(sorted(set(range(12)) - WORST)))
        kept = sorted(set(range(12)) - WORST)
        assert places(ids, chosen(subset)) == [kept[place] for place in draw(budget, seed=0)]


@pytest.mark.parametrize("kernel", ["exact", "neighbours"])
def test_help_is_measured_over_the_pairs_that_are_scored(world, kernel):
    folder, ids, matrix = world
    write_utility(folder / "utility", ids, matrix, kernel=kernel)
    subset, _ = run(folder, replace(FOUR, gate={"by": "help", "drop": 0.25}, selector="longest"))
    off = ~np.eye(12, dtype=bool)
    given, taken = ([matrix[:, j][off[:, j]].mean() for j in range(12)], [matrix[j][off[j]].mean() for j in range(12)])
    slow = np.array(given) if kernel == "exact" else (np.array(given) + np.array(taken)) / 2
    found = {one["id"]: one["gate_score"] for one in subset}
    assert [found[each] for each in ids] == pytest.approx(slow.tolist(), rel=1e-5)
    assert {ids.index(one["id"]) for one in subset if one["gated"]} == set(np.argsort(slow)[:3].tolist())


def test_rows_that_help_nobody_are_those_that_leave(world):
    folder, ids, _ = world
    wrong = [2, 7, 9]
    matrix = 0.1 * np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32) + 0.3
    matrix[:, wrong] -= 0.3  # shown before another row they help as much as nothing
    np.fill_diagonal(matrix, 5)  # and are copied as well as any other
    write_utility(folder / "utility", ids, matrix)
    subset, _ = run(folder, replace(FOUR, gate={"by": "help", "drop": 0.25}))
    assert sorted(ids.index(one["id"]) for one in subset if one["gated"]) == wrong


def test_a_row_without_a_scored_pair_stays(world):
    folder, ids, matrix = world
    keep = np.ones((12, 12), bool)
    keep[:, 5] = False
    write_utility(folder / "utility", ids, matrix, keep=keep)
    subset, facts = run(
        folder, replace(FOUR, gate={"by": "help", "drop": 0.9}, selector="longest", budget={"count": 2})
    )
    assert facts["gate"]["unscored"] == 1
    assert next(one for one in subset if one["id"] == ids[5])["gated"] is False


def test_agreement_leaves_where_prompt_and_response_are_least_alike(world):
    folder, ids, _ = world
    write_gate(folder, ids, SCORES, "embedding", "agreement")
    subset, _ = run(folder, replace(FOUR, gate={"by": "agreement", "drop": 0.25}))
    unlike = level(SCORES, [row(place, "pool")["topic"] for place in range(12)])
    assert {ids.index(one["id"]) for one in subset if one["gated"]} == set(np.argsort(unlike)[:3].tolist())


def test_the_check_leaves_out_targets_that_left(world):
    folder, ids, matrix = world
    write_check(folder / "utility", [ids[1], ids[2]], ids, matrix[[1, 2]])
    assert run(folder, FOUR)[1]["checked"]["targets"] == 1
    write_check(folder / "utility", [ids[1]], ids, matrix[[1]])
    assert run(folder, FOUR)[1]["checked"] is None


def test_a_budget_that_the_others_cannot_keep_is_refused(world):
    folder, *_ = world
    text = r"selection.gate takes 3 of the pool's 12 rows out, and of the others: .*; or let fewer leave, by a lower"
    with pytest.raises(BudgetError, match=text):
        run(folder, replace(FOUR, budget={"count": 10}))
    with pytest.raises(BudgetError, match=text):
        run(folder, replace(FOUR, floors={"letters": 3}))


def test_equal_inputs_give_equal_bytes(world):
    folder, *_ = world
    run(folder, FOUR)
    run(folder, FOUR, out="again")
    assert (folder / "out/subset.parquet").read_bytes() == (folder / "again/subset.parquet").read_bytes()


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        (
            {"by": "idf"},
            r"is \{'by': 'idf'\} \(did you mean 'ifd'\?\); give by: ifd or help or agreement, such as",
        ),
        ({"drop": 0.3}, "give by: ifd or help or agreement"),
        ({"by": "ifd", "drop": 1.0}, "has drop: 1.0; it is a share of the pool, above 0 and below 1"),
        ({"by": "ifd", "drop": 0.0}, "has drop: 0.0"),
        ({"by": "ifd", "share": 0.1}, "has an unknown 'share'; known: by, drop, beyond"),
        ({"by": "ifd", "beyond": 0}, "has beyond: 0; it is a number of standard deviations, above 0, or null"),
        (
            {},
            r"is \{\}; give by: ifd or help or agreement, such as \{by: ifd, .*\} or \{by: agreement, .*\}, or null",
        ),
        ("help", "is 'help'; give by: ifd or help or agreement, such as"),
        ({"by": ["ifd"]}, r"is \{'by': \['ifd'\]\} .*; give by: ifd or help or agreement, such as"),
    ],
)
def test_a_gate_that_is_none_is_refused(gate, text):
    with pytest.raises(ValidationError, match=text):
        SelectionSettings(gate=gate)


def test_a_gate_takes_a_fifth_out_unless_told_else():
    assert SelectionSettings(gate={"by": "help"}).gate == {"by": "help", "drop": 0.2, "beyond": None}
    assert SelectionSettings(gate={"by": "help", "beyond": 2}).gate == {"by": "help", "drop": 0.5, "beyond": 2}
