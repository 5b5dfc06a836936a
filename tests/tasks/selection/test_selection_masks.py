"""The stage `selection` choosing rows by phi_data, and rows and parameters freely combined."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds.toy_corpus import TOPICS, write_examples
from worlds.toy_selection import (
    HALF,
    chosen,
    draw_vectors,
    run,
    write_embedding,
    write_phi_data,
    write_phi_param,
    write_utility,
)

from tamis.masks.tensor_layout import MaskError
from tamis.submodular.budgets import BudgetError
from tasks import models
from tasks.artifacts.tables import provenance
from tasks.finetuning.finetuning import read_budget
from tasks.masks.mask_tables import BY_GRADIENTS, list_shapes, read_mask
from tasks.masks.settings import MaskSettings
from tasks.selection.selection import SelectionError

BY_PHI = replace(HALF, selector="dualsft", budget={"count": 4})
PHI = np.random.default_rng(0).normal(size=12)
UNSCORED = (2, 7)  # validation rows
MASKS = get_args(get_type_hints(MaskSettings)["selector"])
DUALSFT = MaskSettings(selector="dualsft")


@pytest.fixture
def world(tmp_path):
    """Twelve rows of the pool, ten of them with phi_data, and all that other selectors read."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=1)
    places = np.delete(np.arange(12), UNSCORED)[::-1]  # not in the pool's order
    write_phi_data(tmp_path, [ids[place] for place in places], PHI[places])
    write_utility(tmp_path / "utility", ids, np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32))
    write_embedding(tmp_path / "embedding", ids, draw_vectors(12))
    return tmp_path, ids


@pytest.fixture
def scored(world, toy):
    """The same with scores of the toy model's parameters."""
    weights = dict(models.language_model(toy).named_parameters())
    generator = torch.Generator().manual_seed(0)
    phi = {name: torch.randn(shape, generator=generator) for name, shape in list_shapes(weights).items()}
    write_phi_param(world[0], phi, model_digest=models.model_digest(toy))
    return *world, toy


def best(ids, wanted=lambda place: True):
    """Return the scored ids, the largest phi_data first, by a plain sort."""
    places = [place for place in range(12) if place not in UNSCORED and wanted(place)]
    return [ids[place] for place in sorted(places, key=lambda place: -PHI[place])]


def test_the_rows_with_the_largest_signed_phi_are_chosen(world):
    folder, ids = world
    subset, facts = run(folder, replace(BY_PHI, budget={"count": 10}))
    assert chosen(subset) == best(ids)
    assert [row["rank"] for row in subset] == [*range(1, 11), None, None]
    assert {row["id"] for row in subset[10:]} == {ids[place] for place in UNSCORED}
    assert {row[name] for row in subset for name in ("gain", "objective", "covered_by", "cover")} == {None}
    assert (facts["not_scored"], facts["ties_left"], facts["selector"]) == (2, 0, "dualsft")
    assert facts["mask"] == {"by": "none", "chosen": 0}


def test_a_larger_budget_goes_on_where_a_smaller_one_ends(world):
    folder, _ = world
    few, more = (chosen(run(folder, replace(BY_PHI, budget={"fraction": share}))[0]) for share in (0.25, 0.5))
    assert (len(few), few) == (3, more[:3])


def test_caps_and_floors_hold_for_phi(world):
    folder, ids = world
    settings = replace(BY_PHI, caps={"sums": 1}, floors={"letters": 2})
    facts = run(folder, settings)[1]
    assert facts["topics"]["sums"] <= 1
    assert facts["topics"]["letters"] >= 2
    none = run(folder, replace(BY_PHI, caps={"sums": 0, "letters": 0}, budget={"count": 3}))[0]
    assert chosen(none) == best(ids, lambda place: TOPICS[place % 3] == "greetings")[:3]


def test_a_token_budget_holds_for_phi(world):
    subset, facts = run(world[0], replace(BY_PHI, budget={"response_tokens": 9}))
    assert facts["budget"]["spent"] == sum(row["response_tokens"] for row in subset if row["chosen"]) <= 9
    assert not {world[1][place] for place in UNSCORED} & set(chosen(subset))


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            {"count": 11},
            r"budget.count allows 11 rows, but only 10 of 12 rows .* have phi_data .*lower the budget to 10",
        ),
        ({"fraction": 1.0}, r"budget.fraction allows 12 rows, but only 10 of 12 rows of the pool have phi_data"),
        (
            {"response_tokens": 36},
            r"allows 36 response tokens, but only 10 of 12 rows .*\(\d+ response tokens\): the oth",
        ),
    ],
)
def test_a_budget_above_the_scored_rows_is_refused(world, budget, text):
    with pytest.raises(SelectionError, match=text):
        run(world[0], replace(BY_PHI, budget=budget))
    assert not (world[0] / "out").exists()


def test_floors_that_scored_rows_cannot_meet_are_named(world):
    with pytest.raises(
        BudgetError, match=r"1 of 3 topics have a floor above their share of the 10 rows of 12 that may"
    ):
        run(world[0], replace(BY_PHI, floors={TOPICS[2 % 3]: 4}))


def test_rows_left_out_with_the_score_of_the_last_chosen_one_are_counted(world):
    folder, ids = world
    write_phi_data(folder, ids, [5.0, 3.0, 3.0, 3.0, 3.0, *[1.0] * 7])
    subset, facts = run(folder, replace(BY_PHI, budget={"count": 3}))
    assert chosen(subset) == ids[:3]
    assert (facts["ties_left"], facts["not_scored"]) == (2, 0)


def refuse(folder, text, settings=BY_PHI):
    with pytest.raises(SelectionError, match=text):
        run(folder, settings)


def test_phi_data_of_another_run_is_refused(world):
    folder, ids = world
    write_phi_data(folder, ["stranger", *ids[:5]], PHI[:6])
    refuse(folder, r"1 of 6 rows of .*phi_data.parquet are not of the pool's 12 used rows .*'stranger'")
    write_phi_data(folder, [*ids[:5], ids[0]], PHI[:6])
    refuse(folder, r"phi_data.parquet .*each id may stand there once; make them again: `tamis run`")
    write_phi_data(folder, ids, [*PHI[:11], np.nan])
    refuse(folder, r"1 of 12 rows of .* have a score that is not finite, first \[.*nan")
    write_phi_data(folder, ids, PHI, order=["first"] * 6 + ["second"] * 6)
    refuse(folder, r"phi_data.parquet holds scores of 2 orders, \['first', 'second'\], so of two runs")
    write_phi_data(folder, [], [])
    refuse(folder, r"phi_data.parquet holds no row; set selection.selector to one of DualSFT's and make them again")


def test_phi_data_of_other_examples_is_refused(world):
    folder, _ = world
    write_examples(folder / "examples", pool=12, held_out=2)
    refuse(folder, r"phi_data.parquet was made from other examples than those there are; make them again")


@pytest.mark.parametrize("selector", ["delift", "random", "embedding", "dualsft"])
@pytest.mark.parametrize("mask_selector", [name for name in MASKS if name != "fisher"])
def test_rows_and_parameters_are_chosen_apart(scored, selector, mask_selector):
    folder, _, toy = scored
    rows, mask = replace(BY_PHI, selector=selector), MaskSettings(selector=mask_selector)
    run(folder, rows, model=toy, mask=mask)
    run(folder, rows, "rows")
    run(folder, replace(HALF, selector="longest"), "parameters", model=toy, mask=mask)
    for name, other in (("subset", "rows"), ("mask", "parameters"), ("tensors", "parameters")):
        both, alone = (folder / out / f"{name}.parquet" for out in ("out", other))
        assert both.read_bytes() == alone.read_bytes(), name


def test_settings_of_the_mask_leave_the_subset_and_change_the_mask(scored):
    folder, _, toy = scored
    other = replace(DUALSFT, budget={"count": 99}, signed=True, layer_share=0.0, module_share=0.5)
    asked = ((DUALSFT, "out"), (other, "other"))
    facts = [run(folder, BY_PHI, out, model=toy, mask=mask)[1]["mask"] for mask, out in asked]
    assert [one["chosen"] for one in facts] == [int(0.1 * facts[0]["entries"]), 99]
    same = [(folder / "out" / name).read_bytes() == (folder / "other" / name).read_bytes() for name in FILES]
    assert same == [True, False, False]
    assert sum(map(len, read_mask(folder / "other", toy).values())) == 99


FILES = ("subset.parquet", "mask.parquet", "tensors.parquet")


def test_fisher_reads_scores_of_fisher_only(scored):
    folder, _, toy = scored
    with pytest.raises(MaskError, match=r"holds scores of dualsft and mask.selector is fisher; make it again"):
        run(folder, BY_PHI, model=toy, mask=replace(DUALSFT, selector="fisher"))
    shapes = list_shapes(dict(models.language_model(toy).named_parameters()))
    generator = torch.Generator().manual_seed(1)
    information = {name: torch.randn(shape, generator=generator) ** 2 for name, shape in shapes.items()}
    write_phi_param(folder, information, "fisher", model_digest=models.model_digest(toy))
    facts = run(folder, BY_PHI, model=toy, mask=replace(DUALSFT, selector="fisher"))[1]
    assert facts["mask"]["by"] == "fisher"
    assert set(BY_GRADIENTS) == {"dualsft", "fisher"}


def test_the_subset_records_the_budget_that_finetuning_reads_and_phi_data(scored):
    folder, _, toy = scored
    run(folder, replace(BY_PHI, caps={"sums": 2}), model=toy, mask=DUALSFT)
    made = provenance(folder / "out/subset.parquet")
    assert not [name for name in made["parameters"] if name.startswith("mask")]
    assert [name.rsplit("/")[-1] for name in made["inputs"]] == ["examples.parquet", "phi_data.parquet"]
    ground = [{"response_tokens": 3, "topic": TOPICS[place % 3]} for place in range(12)]
    budget = read_budget(folder / "out/selection.json", ground)
    assert (budget.limit, budget.caps[budget.topics.index("sums")]) == (4, 2)


def test_a_mask_that_cannot_be_cut_leaves_no_subset(scored):
    folder, _, toy = scored
    with pytest.raises(MaskError, match="chooses 0 of"):
        run(folder, BY_PHI, model=toy, mask=MaskSettings(selector="random", budget={"fraction": 1e-9}))
    assert not (folder / "out").exists()


def test_a_mask_of_nothing_is_refused_when_it_is_asked_for():
    with pytest.raises(ValidationError, match="is count: 0, which chooses nothing; it must be above 0"):
        replace(DUALSFT, budget={"count": 0})
