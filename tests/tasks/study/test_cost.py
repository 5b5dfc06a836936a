"""The cost of a study: what cells share counts once, trainings by their steps, and known rates need no measuring."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows import params
from tasks.estimate import plan, rates
from tasks.estimate.rates import Models, Rates
from tasks.settings import VersionSettings
from tasks.study import cost
from tasks.study.cost import Asked, Cost, Costs, estimate_pool

ROOT = Path(__file__).parents[3]
SECONDS = {"load": 0.0, "start": 0.0, "row": 0.0, "forward": 1.0, "backward": 1.0, "generated": 1.0}


@pytest.fixture
def raw(tmp_path) -> Path:
    for name, rows in (("pool", range(20)), ("held_out", range(100, 104))):
        lines = [json.dumps({"prompt": f"question {n}", "response": "yes" * (1 + n % 3), "topic": "a"}) for n in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def models(toy):
    return Models(toy, toy)


@pytest.fixture
def known(models):
    found = rates.keep(Rates(), rates.name_stage(rates.LANGUAGE, models), SECONDS)
    return rates.keep(found, rates.name_stage(rates.ENCODER, models), {"encoded": 0.0})


def ask(selector="delift", steps=None, rows=8, **utility) -> Asked:
    values = params.read(ROOT / "params.yaml")
    examples = replace(values.examples, held_out={"path": "held_out.jsonl"}, pool_rows=None, held_out_rows=None)
    selection = replace(values.selection, selector=selector, budget={"count": rows}, caps={}, floors={}, gate=None)
    version = {"now": VersionSettings(raw="raw", previous="base")}
    settings = replace(values.finetuning, batch_rows=8, arms={"chosen": [0]})
    values = replace(values, versions=version, examples=examples, selection=selection, finetuning=settings)
    return Asked(replace(values, utility=replace(values.utility, **utility)), steps)


def estimate(raw, cells, models, known) -> Cost:
    costs = estimate_pool(raw, cells, models, known, same_rows=False)[0]
    assert costs.again == costs.first
    return costs.first


def test_what_selectors_share_counts_once_and_every_cell_trains(raw, models, known):
    one = estimate(raw, [ask()], models, known)
    two = estimate(raw, [ask(), ask(diagonal="capped")], models, known)
    other = estimate(raw, [ask(), ask(neighbours=5)], models, known)
    assert (one.rows, one.trainings, two.trainings) == (20, 1, 2)
    assert one.scored == two.scored < other.scored
    assert two.seconds < 2 * one.seconds


def test_scorings_of_other_selectors_add_up_and_chance_has_none(raw, models, known):
    chance, delift, ifd, both = (
        estimate(raw, [ask(name) for name in names], models, known)
        for names in (("random",), ("delift",), ("ifd",), ("delift", "ifd"))
    )
    assert chance.scored == 0
    assert both.scored == delift.scored + ifd.scored > 0


def test_trainings_cost_what_their_steps_do_to_whole_epochs(raw, models, known):
    def training(steps):
        return estimate(raw, [ask("random", steps=steps)], models, known).tokens

    once = training(1)
    measuring = 2 * once - training(2)
    assert training(3) - measuring == 3 * (once - measuring) > 0


def test_seconds_are_tokens_times_the_rates(raw, models, known):
    found = estimate(raw, [ask("random", steps=1)], models, known)
    assert found.seconds == pytest.approx(found.tokens)


def test_what_no_rate_is_known_of_is_measured_and_kept(raw, models, monkeypatch):
    asked = []

    def calibrate(given, gaps, models):
        asked.append(gaps)
        return rates.keep(given, rates.name_stage(rates.LANGUAGE, models), SECONDS)

    monkeypatch.setattr(plan, "calibrate", calibrate)
    _, learnt = estimate_pool(raw, [ask("random")], models, Rates(), same_rows=False)
    estimate_pool(raw, [ask("random")], models, learnt, same_rows=False)
    assert asked == [{rates.LANGUAGE}, set()]


def test_seeds_multiply_what_a_pool_costs():
    costs = {"a": Costs(*[Cost(10, 5, 2, 100, 1.5)] * 2), "b": Costs(*[Cost(20, 0, 1, 10, 0.5)] * 2)}
    assert cost.total(costs, {"a": 3, "b": 1}) == Cost(30, 15, 7, 310, 5.0)


def test_a_version_before_adds_to_each_seed():
    whole = cost.add(Costs(Cost(10, 5, 2, 100, 1.5), Cost(10, 0, 2, 90, 1.0)), Costs(*[Cost(8, 0, 1, 50, 1.0)] * 2))
    assert whole == Costs(Cost(10, 5, 3, 150, 2.5), Cost(10, 0, 3, 140, 2.0))


def test_rows_that_all_seeds_share_are_scored_once(raw, models, known):
    costs, _ = estimate_pool(raw, [ask(), ask("random")], models, known, same_rows=True)
    assert costs.first.scored > costs.again.scored == 0
    assert costs.again.trainings == costs.first.trainings == 2
    alone, _ = estimate_pool(raw, [ask("random"), ask("random")], models, known, same_rows=True)
    assert costs.again.tokens == alone.first.tokens == alone.again.tokens < costs.first.tokens
