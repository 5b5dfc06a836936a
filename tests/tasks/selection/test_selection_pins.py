"""Rows that a person pinned are chosen before all others, by every selector, and refused where they cannot be."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
from worlds.toy_corpus import row, write_examples
from worlds.toy_selection import chosen, draw_vectors, run, write_embedding, write_scores, write_utility

from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.decisions import Decision, write_decisions
from tasks.selection.rows import SelectionError
from tasks.selection.settings import SelectionSettings

FOUR = SelectionSettings(budget={"count": 4}, selector="delift", quality="none", gate=None, stratify="none")
SELECTORS = ("delift", "embedding", "random", "fresh", "balanced", "longest", "less")


@pytest.fixture
def world(tmp_path):
    """A pool of twelve rows with what these selectors read."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=2, validation=2)
    write_embedding(tmp_path / "embedding", ids, draw_vectors(12))
    matrix = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    write_utility(tmp_path / "utility", ids, matrix)
    write_scores(tmp_path / "scores", ids, [float(place) for place in range(12)])
    return tmp_path, ids, matrix


def pin(folder, *ids, kind="pin", more=()):
    """Write decisions on some rows, and on digests of texts that the pool does not have."""
    table = read_table(folder / "examples/examples.parquet", schemas.EXAMPLES, ["id", "same_as"]).to_pylist()
    same = {one["id"]: one["same_as"] for one in table}
    found = [Decision(id, same[id], kind, "asked", "Ann", "2026-01-01T00:00:00+00:00") for id in ids]
    found += [Decision(one, one, kind, "asked", "Ann", "2026-01-01T00:00:00+00:00") for one in more]
    path = folder / "decisions.json"
    write_decisions(found, path)
    return path


@pytest.mark.parametrize("selector", SELECTORS)
def test_pinned_rows_come_first_and_the_budget_is_kept(world, selector):
    folder, ids, _ = world
    settings = replace(FOUR, selector=selector)
    free = chosen(run(folder, settings, "free")[0])
    wanted = [id for id in ids if id not in free][:2]
    subset, facts = run(folder, settings, decisions=pin(folder, *wanted, more=["gone"]))
    picks = chosen(subset)
    assert set(picks[:2]) == set(wanted)
    assert len(picks) == 4
    assert facts["pins"] == {"chosen": 2, "not_in_the_pool": 1}
    if selector not in ("delift", "embedding"):
        assert picks[2:] == free[:2]


def test_the_others_are_chosen_greedily_beside_the_pinned_ones(world):
    folder, ids, matrix = world
    free = chosen(run(folder, FOUR, "free")[0])
    wanted = next(id for id in ids if id not in free)
    subset, _ = run(folder, FOUR, decisions=pin(folder, wanted))
    picks, kernel = [ids.index(id) for id in chosen(subset)], np.maximum(matrix, 0)
    for count in range(1, 4):
        covered = kernel[:, picks[:count]].max(1)
        gains = {
            place: float(np.maximum(kernel[:, place] - covered, 0).sum())
            for place in range(12)
            if place not in picks[:count]
        }
        assert picks[count] == max(gains, key=gains.get)
    assert subset[-1]["gain"] is None
    objective = oracles.facility_location(kernel, picks)
    assert subset[3]["objective"] == pytest.approx(objective)


def test_a_gate_lets_pinned_rows_pass(world):
    folder, ids, _ = world
    write_scores(folder / "aside", ids, [float(place == 5) for place in range(12)])
    (folder / "aside/scores.parquet").rename(folder / "scores/ifd.parquet")
    gated = replace(FOUR, gate={"by": "ifd", "drop": 0.1})
    subset, _ = run(folder, gated, "free")
    assert next(one for one in subset if one["id"] == ids[5])["gated"]
    subset, _ = run(folder, gated, decisions=pin(folder, ids[5]))
    assert chosen(subset)[0] == ids[5]
    assert not any(one["gated"] for one in subset if one["id"] == ids[5])


def test_a_persons_word_outweighs_a_topics_share(world):
    folder, ids, _ = world
    one_topic = [id for place, id in enumerate(ids[:12]) if row(place, "pool")["topic"] == "sums"]
    shared = replace(FOUR, stratify="topic")
    assert run(folder, shared, "free")[1]["strata"] is not None
    subset, _ = run(folder, shared, decisions=pin(folder, *one_topic[:4]))
    assert set(chosen(subset)) == set(one_topic[:4])


@pytest.mark.parametrize("selector", ["delift", "random"])
def test_pinned_rows_that_cannot_be_chosen_are_refused_by_name(world, selector):
    folder, ids, _ = world
    settings = replace(FOUR, selector=selector)
    with pytest.raises(SelectionError, match=r"1 of 5 pinned rows cannot be chosen, first .*: the budget, a floor or"):
        run(folder, settings, decisions=pin(folder, *ids[:5]))
    capped = replace(settings, caps={row(0, "pool")["topic"]: 0})
    with pytest.raises(SelectionError, match=rf"first {ids[0]}: the budget, a floor or a cap leaves no room"):
        run(folder, capped, decisions=pin(folder, ids[0]))


def test_pins_are_of_the_choices_record_and_vetoes_are_not(world):
    folder, ids, _ = world
    run(folder, FOUR, "free")
    run(folder, FOUR, "vetoed", decisions=pin(folder, ids[0], kind="veto"))
    run(folder, FOUR, "pinned", decisions=pin(folder, ids[0]))
    free, vetoed, pinned = (
        provenance(folder / name / "subset.parquet")["parameters"] for name in ("free", "vetoed", "pinned")
    )
    assert free == vetoed
    assert len(pinned["pinned"]) == 1
