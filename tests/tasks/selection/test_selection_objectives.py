"""The stage `selection` with every selector, objective and optimiser."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import oracles
import pytest
from pydantic import ValidationError
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

from tamis.scores.baselines import order_deft_ucs
from tamis.submodular.budgets import BudgetError, draw, resolve
from tamis.submodular.optimisers import OPTIMISERS
from tasks.artifacts import schemas
from tasks.artifacts.tables import Provenance, provenance, write_table
from tasks.selection import inputs, selection
from tasks.selection.selection import SelectionError
from tasks.selection.settings import SelectionSettings

GENERATOR = np.random.default_rng(5)
WHOLE = GENERATOR.normal(size=(15, 15)).astype(np.float32)  # twelve rows of the pool, then three others
OWN, TO_OTHERS, FROM_OTHERS = WHOLE[:12, :12], WHOLE[:12, 12:], WHOLE[12:, :12]
VECTORS = draw_vectors(15)
FORMS = ("saturated", "additive", "queries")


def relu(values):
    return np.maximum(values, 0)


def slow(value, ids, count=6):
    """Plain greedy's ids."""
    return [ids[demo] for demo in oracles.greedy_of(value, 12, count)]


def name(place, split="pool"):
    return row(place, split)["id"]


@pytest.fixture
def learnt(tmp_path):
    """Twelve rows of the pool and three that an earlier version chose."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=0, learnt=3)
    others = [name(place) for place in range(12, 15)]
    write_utility(tmp_path / "utility", ids, OWN, more=[(ids, others, TO_OTHERS)])
    write_embedding(tmp_path / "embedding", [*others, *ids], np.concatenate([VECTORS[12:], VECTORS[:12]]))
    return tmp_path, ids


@pytest.fixture
def task(tmp_path):
    """Twelve rows of the pool and three of the target task."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=0, target=3)
    others = [name(place) for place in range(12, 15)]
    write_utility(tmp_path / "utility", ids, OWN, more=[(ids, others, TO_OTHERS), (others, ids, FROM_OTHERS)])
    write_embedding(tmp_path / "embedding", [*ids, *others], VECTORS)
    return tmp_path, ids


@pytest.fixture
def repeated(tmp_path):
    """A second version that repeats the first: all twelve rows are used, and five of them were learnt."""
    rows = [learn(row(place, "pool")) if place in (1, 3, 4, 8, 11) else row(place, "pool") for place in range(12)]
    ids = write_rows(tmp_path / "examples", rows)
    write_utility(tmp_path / "utility", ids, OWN)
    write_embedding(tmp_path / "embedding", ids, VECTORS[:12])
    return tmp_path, {ids[place] for place in (1, 3, 4, 8, 11)}


@pytest.mark.parametrize("selector", ["delift", "embedding"])
def test_conditional_gain_leaves_out_what_was_learnt(learnt, selector):
    folder, ids = learnt
    cosines = relu(VECTORS @ VECTORS.T)
    own, known = (relu(OWN), relu(TO_OTHERS)) if selector == "delift" else (cosines[:12, :12], cosines[:12, 12:])
    subset, facts = run(folder, replace(HALF, selector=selector, learnt_weight=0.5))
    assert chosen(subset) == slow(lambda picks: oracles.conditional_gain(own, known, 0.5, picks), ids)
    places = [ids.index(each) for each in chosen(subset)]
    assert facts["objective"] == pytest.approx(oracles.conditional_gain(own, known, 0.5, places), rel=1e-5)
    assert (facts["objective_name"], facts["learnt_rows"], facts["target_rows"]) == ("conditional_gain", 3, 0)


@pytest.mark.parametrize("selector", ["delift", "embedding"])
def test_rows_that_were_learnt_add_nothing_to_a_version_that_repeats_them(repeated, selector):
    folder, known = repeated
    subset, facts = run(folder, replace(HALF, selector=selector, budget={"fraction": 1.0}))
    assert {row["id"]: row["gain"] for row in subset if row["id"] in known} == dict.fromkeys(known, 0.0)
    assert facts["objective"] > 0
    assert facts["learnt_rows"] == 5


def test_without_anything_learnt_conditional_gain_is_facility_location(task):
    folder, _ = task
    assert run(folder)[0] == run(folder, replace(HALF, objective="facility_location"))[0]


def test_facility_location_looks_at_the_pool_alone(learnt):
    folder, ids = learnt
    subset, _ = run(folder, replace(HALF, objective="facility_location"))
    assert chosen(subset) == slow(lambda picks: oracles.facility_location(relu(OWN), picks), ids)


@pytest.mark.parametrize("selector", ["delift", "embedding"])
@pytest.mark.parametrize("form", FORMS)
def test_mutual_information_chooses_for_the_target_task(task, form, selector):
    folder, ids = task
    cosines = relu(VECTORS @ VECTORS.T)
    blocks = (relu(OWN), relu(FROM_OTHERS), relu(TO_OTHERS))
    if selector == "embedding":
        blocks = (cosines[:12, :12], cosines[12:, :12], cosines[:12, 12:])
    asked = {"objective": "mutual_information", "mutual_information": form, "target_weight": 0.5}
    settings = replace(HALF, selector=selector, **asked)
    subset, facts = run(folder, settings)
    places = [ids.index(each) for each in chosen(subset)]
    gaining = 6 - facts["zero_gain_picks"]
    expected = oracles.greedy_of(lambda picks: oracles.mutual_information(blocks, 0.5, form, picks), 12, 6)
    assert places[:gaining] == expected[:gaining]
    assert facts["objective"] == pytest.approx(oracles.mutual_information(blocks, 0.5, form, places), rel=1e-5)
    assert facts["objective_of_all"] == pytest.approx(
        oracles.mutual_information(blocks, 0.5, form, range(12)), rel=1e-5
    )
    assert facts["target_rows"] == 3


@pytest.mark.parametrize("form", FORMS)
def test_cover_is_the_pools_own_similarity_whatever_the_objective(task, form):
    folder, ids = task
    subset, _ = run(folder, replace(HALF, objective="mutual_information", mutual_information=form))
    places = [ids.index(each) for each in chosen(subset)]
    for each in subset:
        similar = relu(OWN)[ids.index(each["id"]), places]
        assert each["cover"] == similar.max()
        assert each["covered_by"] == (ids[places[similar.argmax()]] if similar.max() > 0 else None)


def test_kernels_that_meet_are_scaled_by_one_minimum_and_maximum(tmp_path):
    ids = write_examples(tmp_path / "examples", pool=2, held_out=0, learnt=1)
    own, known = np.float32([[4, 0], [1, 2]]), np.float32([[1], [0]])
    write_utility(tmp_path / "utility", ids, own, more=[(ids, [name(2)], known)])
    settings = replace(HALF, budget={"count": 1}, scaling="minmax")
    assert chosen(run(tmp_path, settings)[0]) == [ids[0]]  # (4 - 1) + 1 > 2; alone, `known` would become 1 and 0
    assert np.maximum(own / 4 - [[1], [0]], 0).sum(axis=0).argmax() == 1


def test_mutual_information_without_a_target_task_says_what_to_set(learnt):
    text = "selection.objective is mutual_information but no row is of the target task; set examples.target"
    for selector in ("delift", "embedding"):
        with pytest.raises(SelectionError, match=text):
            run(learnt[0], replace(HALF, selector=selector, objective="mutual_information"))


def test_a_kernel_that_the_objective_needs_and_that_was_not_scored_is_named(learnt):
    folder, ids = learnt
    write_utility(folder / "utility", ids, OWN)
    with pytest.raises(SelectionError, match="holds no pair of 12 targets and 3 demos that the objective needs; make"):
        run(folder)


def test_unknown_objectives_forms_and_optimisers_are_named_with_those_known():
    with pytest.raises(ValidationError, match=r"objective\n.*'conditional_gain', 'facility_location' or 'mutual_inf"):
        replace(HALF, objective="cover")
    with pytest.raises(ValidationError, match=r"mutual_information\n.*'saturated', 'additive' or 'queries'.*'full'"):
        replace(HALF, objective="mutual_information", mutual_information="full")
    with pytest.raises(ValidationError, match=r"optimiser\n.*'lazy', 'stochastic' or 'partition'.*'plain'"):
        replace(HALF, optimiser="plain")


def test_settings_name_what_the_library_knows():
    known = get_type_hints(SelectionSettings)
    assert get_args(known["objective"]) == tuple(selection.objectives.OBJECTIVES)
    assert get_args(known["mutual_information"]) == tuple(selection.objectives.FORMS)
    assert get_args(known["optimiser"]) == OPTIMISERS


SCORED_DEMOS = np.array([2, 5, 7, 10])


@pytest.fixture
def landmarks(learnt):
    """As `learnt`, but only four rows of the pool are scored as demos."""
    folder, ids = learnt
    keep = np.zeros((12, 12), bool)
    keep[:, SCORED_DEMOS] = True
    others = [name(place) for place in range(12, 15)]
    more = [(ids, others, TO_OTHERS)]
    write_utility(folder / "utility", ids, OWN, keep=keep, more=more, kernel="landmarks")
    return folder, ids


def test_only_landmarks_are_chosen(landmarks):
    folder, ids = landmarks
    subset, facts = run(folder, replace(HALF, budget={"count": 3}))
    own, known = relu(OWN)[:, SCORED_DEMOS], relu(TO_OTHERS)
    picks = oracles.greedy_of(lambda picks: oracles.conditional_gain(own, known, 1.0, picks), 4, 3)
    assert chosen(subset) == [ids[SCORED_DEMOS[pick]] for pick in picks]
    assert len(subset) == facts["pool_rows"] == 12
    for each in subset:
        similar = own[ids.index(each["id"]), picks]
        assert each["cover"] == similar.max()
        assert each["covered_by"] == (ids[SCORED_DEMOS[picks[similar.argmax()]]] if similar.max() > 0 else None)


def test_a_budget_above_the_landmarks_names_them_and_the_way_out(landmarks):
    folder, _ = landmarks
    text = r"count allows 6 rows, but only 4 landmarks of 12 rows are scored .*raise utility.landmarks, or lower the bu"
    with pytest.raises(BudgetError, match=text):
        run(folder, replace(HALF, budget={"count": 6}))
    with pytest.raises(BudgetError, match=r"only 4 landmarks of 12 rows are scored as demos .* response tokens\); r"):
        run(folder, replace(HALF, budget={"response_tokens": 30}))
    assert len(chosen(run(folder, replace(HALF, budget={"count": 4}))[0])) == 4


def test_floors_that_landmarks_cannot_meet_are_named(landmarks):
    text = r"1 of 3 topics have a floor above their share of the 4 rows of 12 that may be chosen, first \['greetings'\]"
    with pytest.raises(BudgetError, match=text):
        run(landmarks[0], replace(HALF, budget={"count": 4}, floors={"greetings": 3}))


@pytest.mark.parametrize(("world", "objective"), [("learnt", "conditional_gain"), ("task", "mutual_information")])
def test_a_large_pool_is_compared_with_its_nearest_rows_only(world, objective, request, monkeypatch):
    folder, ids = request.getfixturevalue(world)
    monkeypatch.setattr(inputs, "DENSE_ROWS", 11)
    monkeypatch.setattr(inputs, "NEAREST", 3)
    settings = replace(HALF, selector="embedding", objective=objective, mutual_information="saturated")
    subset, facts = run(folder, settings)
    cosines = relu(VECTORS @ VECTORS.T)
    own = np.where(cosines[:12, :12] >= np.sort(cosines[:12, :12], axis=1)[:, [-4]], cosines[:12, :12], 0)
    blocks = own, cosines[12:, :12], cosines[:12, 12:]
    if objective == "conditional_gain":
        expected = slow(lambda picks: oracles.conditional_gain(own, blocks[2], 1.0, picks), ids)
    else:
        expected = slow(lambda picks: oracles.mutual_information(blocks, 1.0, "saturated", picks), ids)
    gained = [row["id"] for row in subset if row["gain"]]
    assert gained == expected[: len(gained)]
    assert len(gained) > 2
    assert (facts["kernel"], facts["neighbour_recall"]) == ("sparse", 1)


def test_copies_of_one_row_are_chosen_once_by_embedding(tmp_path):
    ids = write_examples(tmp_path / "examples", pool=60, held_out=0)
    write_embedding(tmp_path / "embedding", ids, draw_vectors(30)[[*range(30), *[4] * 30]])
    subset, _ = run(tmp_path, replace(HALF, selector="embedding"))
    copies = {ids[4], *ids[30:]}
    assert len(copies & set(chosen(subset)[:29])) == 1
    assert len(copies & set(chosen(run(tmp_path, replace(HALF, selector="random"), "random")[0]))) > 10


def test_an_embedding_of_another_run_is_named(learnt):
    folder, ids = learnt
    write_embedding(folder / "embedding", ids[3:], VECTORS[3:12])
    with pytest.raises(SelectionError, match=rf"embedding.parquet lacks 3 of 12 rows, first ids \['{ids[0]}', .*run`"):
        run(folder, replace(HALF, selector="embedding", objective="facility_location"))


@pytest.mark.parametrize("selector", ["embedding", "deft_ucs"])
def test_an_embedding_that_was_not_wanted_is_named(task, selector):
    folder, _ = task
    nothing = schemas.embedding(1).empty_table()
    write_table(nothing, folder / "embedding/embedding.parquet", Provenance("embedding", "v1", {"wanted": False}))
    with pytest.raises(SelectionError, match=r"lacks 12 of 12 rows, .* or of another selector: make both again"):
        run(folder, replace(HALF, selector=selector))


@pytest.mark.parametrize("selector", ["perplexity", "ifd", "selectit", "less"])
def test_scored_rows_are_chosen_by_score_and_equal_ones_by_row(task, selector):
    folder, ids = task
    write_scores(folder / "scores", ids[::-1], [0.5, 3.0, 2.0, *[-1.0] * 8, 2.0], selector)
    subset, facts = run(folder, replace(HALF, selector=selector, budget={"count": 5}))
    assert chosen(subset) == [ids[10], ids[0], ids[9], ids[11], ids[1]]
    assert {subset[0][name] for name in ("gain", "objective", "covered_by", "cover")} == {None}
    assert (facts["selector"], facts["objective_name"], facts["checked"]) == (selector, None, None)
    record = provenance(folder / "out/subset.parquet")
    assert sorted(path.rsplit("/")[-1] for path in record["inputs"]) == ["examples.parquet", "scores.parquet"]


def test_caps_floors_and_tokens_hold_for_an_order_by_score(task):
    folder, ids = task
    write_scores(folder / "scores", ids, list(range(12)), "ifd")
    settings = replace(HALF, selector="ifd", budget={"response_tokens": 14}, caps={"greetings": 1}, floors={"sums": 2})
    subset, facts = run(folder, settings)
    assert chosen(subset)[:3] == [ids[9], ids[6], ids[11]]
    assert facts["topics"]["greetings"] == 1
    assert facts["chosen_response_tokens"] <= 14


def test_scores_that_lack_rows_or_are_not_numbers_are_refused(task):
    folder, ids = task
    write_scores(folder / "scores", ids[:-2], [0.0] * 10)
    with pytest.raises(SelectionError, match=rf"scores.parquet lacks 2 of 12 rows, first ids \['{ids[10]}', '"):
        run(folder, replace(HALF, selector="less"))
    write_scores(folder / "scores", ids, [0.0] * 11 + [float("nan")])
    with pytest.raises(ValueError, match=r"1 of 12 scores are not finite, first places \[11\]"):
        run(folder, replace(HALF, selector="less"))


def test_scores_of_another_selector_are_refused(task):
    folder, ids = task
    write_scores(folder / "scores", ids, [0.0] * 12, "ifd")
    with pytest.raises(SelectionError, match=r"scores.parquet holds scores of ifd, not of less; make it again: `tamis"):
        run(folder, replace(HALF, selector="less"))


def test_the_longest_rows_have_the_most_response_tokens(task):
    subset, _ = run(task[0], replace(HALF, selector="longest"))
    tokens = [row["response_tokens"] for row in subset]
    assert tokens[:6] == sorted(tokens, reverse=True)[:6]


def test_deft_ucs_fills_the_budget_from_clusters_of_embeddings(task):
    folder, ids = task
    subset, facts = run(folder, replace(HALF, selector="deft_ucs", seed=3))
    assert chosen(subset) == [ids[place] for place in order_deft_ucs(VECTORS[:12], None, 3)[:6]]
    assert facts["kernel"] is None
    assert provenance(folder / "out/subset.parquet")["seed"] == 3


@pytest.mark.parametrize("optimiser", ["stochastic", "partition"])
def test_every_optimiser_reaches_most_of_what_lazy_greedy_does(learnt, optimiser):
    folder, _ = learnt
    settings = replace(HALF, optimiser=optimiser, partitions=3, caps={"*": 3}, seed=7)
    _, facts = run(folder, settings)
    _, lazy = run(folder, replace(settings, optimiser="lazy"), "lazy")
    assert facts["objective"] >= 0.7 * lazy["objective"]
    assert (facts["optimiser"], facts["chosen_rows"]) == (optimiser, 6)
    assert provenance(folder / "out/subset.parquet")["seed"] == 7
    assert provenance(folder / "lazy/subset.parquet")["seed"] is None


def test_partitions_are_run_by_the_map_that_is_handed_in(learnt):
    folder, _ = learnt
    parts = []

    def noting(function, items):
        parts.extend(items)
        return [function(item) for item in parts]

    subset, _ = run(folder, replace(HALF, optimiser="partition", partitions=3), map=noting)
    assert len(parts) == 3
    assert subset == run(folder, replace(HALF, optimiser="partition", partitions=3), "again")[0]


@pytest.mark.parametrize("objective", selection.objectives.OBJECTIVES)
def test_a_smaller_budget_of_rows_is_the_beginning_of_a_larger_one(task, objective):
    settings = replace(HALF, objective=objective, caps={"sums": 2, "*": 4})
    ten, four, two = (
        chosen(run(task[0], replace(settings, budget=budget))[0])
        for budget in ({"count": 10}, {"count": 4}, {"fraction": 0.2})
    )
    assert (ten[:4], ten[:2]) == (four, two)


def test_the_choice_is_checked_on_targets_scored_with_every_demo(task):
    folder, ids = task
    keep = np.random.default_rng(0).random((12, 12)) < 0.5
    others = [name(place) for place in range(12, 15)]
    more = [(ids, others, TO_OTHERS), (others, ids, FROM_OTHERS)]
    write_utility(folder / "utility", ids, OWN, keep=keep, more=more, kernel="neighbours")
    write_check(folder / "utility", [ids[3], ids[8]], ids, OWN[[3, 8]])
    subset, facts = run(folder)
    exact, full = relu(OWN[[3, 8]]), relu(OWN[[3, 8]]).max(axis=1).sum()
    places = [ids.index(each) for each in chosen(subset)]
    budget = resolve(
        HALF.budget, topics=[row["topic"] for row in subset], response_tokens=np.ones(12, np.int64)
    )  # six of twelve rows
    drawn = [exact[:, draw(budget, seed=seed)].max(axis=1).sum() / full for seed in range(5)]
    assert facts["checked"]["targets"] == 2
    assert facts["checked"]["facility_location_share"] == pytest.approx(exact[:, places].max(axis=1).sum() / full)
    assert facts["checked"]["random_share"] == pytest.approx(np.mean(drawn))


def test_a_check_of_another_run_is_named(task):
    folder, ids = task
    write_check(folder / "utility", ["stranger"], ids, OWN[:1])
    with pytest.raises(SelectionError, match=r"12 of 12 pairs in .*checked.parquet are not of the pool's 12 used"):
        run(folder)


def test_without_checked_targets_nothing_is_said_of_them(task):
    assert run(task[0])[1]["checked"] is None
