"""Rows of one exchange: their figures are those that were computed when an example was a prompt and a response.

`one_exchange_figures.json` was written by the code of that time (commit c012454; scores of gradients at e91c863), from
the same rows and the toy model. Losses were means over a step's tokens then: gradients are of steps of one row.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import toy_corpus, toy_gradients, toy_pairs, toy_training

from tamis.language.delift import BASE
from tasks.artifacts.tables import read_table
from tasks.evaluation.evaluation import measure_losses
from tasks.finetuning.settings import FinetuningSettings

FIGURES = json.loads((Path(__file__).parent / "one_exchange_figures.json").read_text())
DRAWN = "{:032x}"  # ids that rows had then: seeded draws go by them
VALIDATES = 2  # place of the row that was drawn to validate


@pytest.fixture(autouse=True)
def numbered(monkeypatch):
    """Rows have ids that do not depend on how an id is made."""
    plain = toy_corpus.row
    monkeypatch.setattr(
        toy_corpus, "row", lambda place, split, used=True: plain(place, split, used) | {"id": DRAWN.format(place)}
    )


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_distances_and_utility_are_as_before(template, toy, tmp_path):
    model, wanted = replace(toy, template=template), FIGURES[template]
    ids = toy_corpus.write_examples(tmp_path / "examples", pool=6, held_out=2)
    place = {name: str(number) for number, name in enumerate(ids)}
    toy_pairs.embed(tmp_path, model)
    toy_pairs.run(tmp_path, model)
    pairs = toy_pairs.pairs_of(tmp_path / "out/utility.parquet")
    found = {f"{place[target]} {place[demo]}": utility for (target, demo), utility in pairs.items()}
    assert found == pytest.approx(wanted["utility"], abs=1e-6)
    rows = read_table(tmp_path / "out/distances.parquet").to_pylist()
    for name in ("distance", "log_likelihood"):
        assert {place[row["id"]]: row[name] for row in rows} == pytest.approx(wanted[name], rel=1e-5)


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_held_out_losses_are_as_before(template, toy, tmp_path):
    model = replace(toy, template=template)
    toy_corpus.write_examples(tmp_path / "examples", pool=6, held_out=2)
    found = measure_losses(
        examples=tmp_path / "examples", arms=None, store=tmp_path / "store", model=model, new_tokens=0
    )
    assert found["losses"]["base"] == pytest.approx(FIGURES[template]["losses"], rel=1e-6)


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_gradient_scores_are_as_before(template, toy, tmp_path):
    splits = ["validation" if place == VALIDATES else "pool" if place < 12 else "held_out" for place in range(14)]
    rows = [toy_corpus.row(place, split) for place, split in enumerate(splits)]
    toy_corpus.write_rows(tmp_path / "examples", rows)
    settings = replace(toy_gradients.SMALL, batch_rows=1)
    toy_gradients.run(tmp_path, replace(toy, template=template), settings)
    assert toy_gradients.scored(tmp_path / "out") == pytest.approx(FIGURES[template]["phi_data"], rel=1e-3)


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_training_is_as_before(template, toy, tmp_path):
    settings = FinetuningSettings(arms={"chosen": [0]}, batch_rows=2, loss_per="token")
    out = toy_training.run(toy_training.make_world(tmp_path), replace(toy, template=template), settings)
    told, wanted = json.loads((out / "finetuning.json").read_text())["arms"]["chosen-0"], FIGURES[template]["training"]
    if template == "delift":  # they were counted without the instruction, a token per character
        wanted = wanted | {"tokens": wanted["tokens"] + told["rows"] * told["epochs"] * len(BASE)}
    assert {name: told[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
