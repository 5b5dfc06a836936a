"""Rates: kept, learnt from runs, filled by a calibration; counts of large sets against the pairs themselves."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tamis.utility.pairs import pair_all, pairs_of_all, pairs_of_help, pairs_of_neighbours, pairs_of_quality, unite
from tamis.utility.probes import pairs_of_probes
from tasks.estimate import calibration, plan, rates
from tasks.estimate.pairs import count_pairs
from tasks.estimate.plan import Planned
from tasks.estimate.rates import Models, Rates
from tasks.estimate.work import Work, scale
from tasks.utility.settings import UtilitySettings

KNOWN = {"load": 1.0, "forward": 0.01, "backward": 0.02, "generated": 0.05}
VALUES = SimpleNamespace(
    finetuning=SimpleNamespace(method="lora"),
    selection=SimpleNamespace(selector="delift"),
    gradients=SimpleNamespace(order="first"),
)
UTILITY = Work(rows=10, pairs=90, forward=4000, loads=1)


@pytest.fixture
def models(toy):
    return Models(toy, toy)


def planned(address: str, work: Work) -> dict[str, Planned]:
    return {address: Planned(address, work, work)}


def run_of(seconds: float, created: str = "2026-01-01T00:00:00+00:00", **counts) -> dict:
    return {"seconds": seconds, "created": created, **counts}


def test_a_run_teaches_the_seconds_of_its_stage(models):
    about = planned("utility@v1", UTILITY)
    known = rates.keep(Rates(), rates.name_stage(rates.LANGUAGE, models), KNOWN)
    run = {"utility@v1": run_of(81.5, pairs_scored=90)}
    learnt = plan.learn_runs(known, about, run, VALUES, models)
    assert plan.predict(learnt, about["utility@v1"], VALUES, models) == pytest.approx(81.5)
    assert plan.predict(known, about["utility@v1"], VALUES, models) == pytest.approx(41.5, abs=0.1)


def test_a_run_that_knew_half_of_its_pairs_teaches_the_seconds_of_the_other_half(models):
    about = planned("utility@v1", UTILITY)
    known = rates.keep(Rates(), rates.name_stage(rates.LANGUAGE, models), KNOWN)
    learnt = plan.learn_runs(known, about, {"utility@v1": run_of(41.5, pairs_scored=45)}, VALUES, models)
    assert plan.predict(learnt, about["utility@v1"], VALUES, models) == pytest.approx(81.5, rel=0.01)


def test_an_earlier_run_leaves_nothing_to_calibrate(models):
    about = planned("utility@v1", UTILITY)
    assert plan.find_gaps(Rates(), about, VALUES, models) == {rates.LANGUAGE}
    learnt = plan.learn_runs(Rates(), about, {"utility@v1": run_of(40.0, pairs_scored=90)}, VALUES, models)
    assert plan.find_gaps(learnt, about, VALUES, models) == set()
    assert plan.predict(learnt, about["utility@v1"], VALUES, models) == pytest.approx(40.0)
    assert plan.find_gaps(learnt, planned("embedding@v1", Work(texts=3, encoded=60)), VALUES, models) == {rates.ENCODER}


def test_the_newest_run_counts_and_none_counts_twice(models):
    about = planned("utility@v1", UTILITY) | planned("utility@v2", UTILITY)
    runs = {"utility@v2": run_of(80.0, "2026-01-02", pairs_scored=90), "utility@v1": run_of(20.0, pairs_scored=90)}
    learnt = plan.learn_runs(Rates(), about, runs, VALUES, models)
    assert plan.predict(learnt, about["utility@v1"], VALUES, models) == pytest.approx(80.0)
    assert plan.learn_runs(learnt, about, runs, VALUES, models) == learnt


def test_a_short_run_says_nothing_of_what_grows_with_the_rows():
    seconds = {"start": 0.5, "row": 0.0, **KNOWN}
    learnt = rates.learn(Work(pairs=2, forward=50, loads=1), seconds, took=9.0)
    assert learnt["forward"] == KNOWN["forward"]
    assert rates.predict(Work(pairs=2, forward=50, loads=1), learnt) == pytest.approx(9.0)


def test_a_calibration_measures_every_unit_and_is_kept(models, tmp_path):
    known = plan.calibrate(Rates(), {rates.LANGUAGE, rates.ENCODER}, models)
    rates.write_rates(known, tmp_path / "rates.json")
    assert rates.read_rates(tmp_path / "rates.json") == known
    seconds = rates.find(known, "evaluation", models)
    assert set(seconds) == set(rates.UNITS)
    assert all(each > 0 for each in seconds.values())
    dear = rates.find(known, "finetuning masked", models)["backward"]
    assert dear == pytest.approx(rates.DENSE * rates.find(known, "finetuning lora", models)["backward"])


def test_a_calibration_leaves_the_model_as_it_was(toy):
    from tasks.models import language_model

    network = language_model(toy)
    before = {name: weight.requires_grad for name, weight in network.named_parameters()}
    attention = network.config._attn_implementation
    calibration.calibrate_language(toy)
    assert {name: weight.requires_grad for name, weight in network.named_parameters()} == before
    assert network.config._attn_implementation == attention
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"seconds": {"start": "x"}}}'])
def test_a_damaged_file_of_rates_is_measured_again(text, tmp_path):
    (tmp_path / "rates.json").write_text(text)
    assert rates.read_rates(tmp_path / "rates.json") == Rates()


def test_rates_are_of_a_model_a_device_a_dtype_and_threads(toy, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rates.name_entry("utility", toy) == f"utility | {toy.name} | cpu | float32 | 3 threads"


@pytest.mark.parametrize("kernel", ["exact", "neighbours", "probes", "none"])
def test_pairs_of_large_sets_are_counted_without_listing_them(kernel):
    sets = {"ground": np.arange(40), "task": np.arange(40, 46), "learnt": np.arange(46, 57)}
    settings = UtilitySettings(neighbours=7, check_targets=3)
    vectors = np.random.default_rng(0).standard_normal((57, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    check = pair_all(np.arange(3), sets["ground"])
    listed = {
        "exact": lambda: pairs_of_all(sets),
        "neighbours": lambda: unite([pairs_of_neighbours(sets, vectors, 7)[0], check]),
        "probes": lambda: pairs_of_probes(
            sets["ground"], vectors[:40], np.arange(40.0), nearest=32, clusters=5, probes=16, seed=0
        )[0],
        "none": lambda: pairs_of_help(sets["ground"], np.arange(57), 5, 0),
    }[kernel]()
    settings = replace(settings, help_targets=5 if kernel == "none" else 0)
    sizes = {name: len(places) for name, places in sets.items()}
    assert count_pairs(sizes, settings, kernel) == len(listed)
    if kernel in ("exact", "neighbours"):
        for quality in ("help", "neighbours"):
            for some in (sets, sets | {"task": np.arange(0)}):
                found = pairs_of_quality(listed, some, quality)
                sizes = {name: len(places) for name, places in some.items()}
                if kernel == "neighbours":
                    found = pairs_of_quality(pairs_of_neighbours(some, vectors, 7, quality)[0], some, quality)
                assert count_pairs(sizes, settings, kernel, quality=quality) == len(found)


def test_nothing_left_loads_no_weights():
    assert scale(UTILITY, 0.0) == Work()
    assert scale(UTILITY, 0.5) == Work(rows=5, pairs=45, forward=2000, loads=1)


def test_rates_hold_numbers_alone(models, tmp_path):
    rates.write_rates(rates.keep(Rates(), "utility", {"start": 1.0}, "2026-01-01"), tmp_path / "rates.json")
    assert json.loads((tmp_path / "rates.json").read_text()) == {
        "utility": {"run": "2026-01-01", "seconds": {"start": 1.0}}
    }
