"""The pilot: brief trainings of the choice, of chance and of a mixture say what is trained on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds.toy_corpus import row, write_examples, write_rows
from worlds.toy_selection import chosen, run, write_scores
from worlds.toy_training import write_mask

from tamis.language.packing import score_rows
from tamis.training import pilot as arms
from tamis.training.steps import collate, plan_steps
from tasks import models
from tasks.artifacts.row_sets import read_set
from tasks.finetuning import trainer
from tasks.finetuning.mask_updates import Restriction
from tasks.finetuning.settings import FinetuningSettings
from tasks.masks.mask_tables import read_mask
from tasks.masks.settings import MaskSettings
from tasks.selection import pilot
from tasks.selection.pilot import Brief, Place, Training
from tasks.selection.selection import SelectionError, resolve_budget
from tasks.selection.settings import SelectionSettings
from tasks.settings import RuntimeSettings
from tasks.tokens import encode_rows

RUNTIME = RuntimeSettings(pack_tokens=120)
TRAINING = Training("lora", 1e-2, 0.1, 2, "row", 4, 8)
SETTINGS = SelectionSettings(selector="less", budget={"count": 6}, pilot={"steps": 2, "seeds": 2, "rows": 0.5}, seed=3)


@pytest.fixture
def world(tmp_path):
    """A pool of twelve rows, two held out, three for validation, and scores by which the first rows are chosen."""
    ids = write_examples(tmp_path / "examples", pool=12, held_out=2, validation=3)
    write_scores(tmp_path / "scores", ids, [-float(place) for place in range(12)])
    return tmp_path, ids


@pytest.fixture
def tried(world, toy):
    """Return the subset and the metrics of a run with a pilot."""

    def call(settings=SETTINGS, training=TRAINING, **more):
        return run(world[0], settings, model=toy, training=training, runtime=RUNTIME, **more)

    return call


@pytest.fixture
def found(monkeypatch):
    """Let every brief training find made-up losses: of the choice less those of the others, by so much."""

    def set_losses(shift):
        def measure(place, brief, label):
            own = np.linspace(1, 2, len(brief.measured_ids)) + (shift if label.startswith("choice") else 0)
            return {"losses": own.tolist(), "seconds": 0.5}

        monkeypatch.setattr(pilot, "measure", measure)

    return set_losses


@pytest.mark.parametrize(("shift", "decision"), [(-0.1, "choice"), (0.1, "chance"), (0.0, "mixture")])
def test_what_serves_the_validation_rows_is_the_subset(world, tried, found, shift, decision):
    folder, ids = world
    found(shift)
    subset, facts = tried()
    plain, _ = run(folder, replace(SETTINGS, pilot=None), out="plain")
    budget = resolve_budget(read_set(folder / "examples/examples.parquet", "ground"), SETTINGS)
    order = np.array([ids.index(each) for each in chosen(plain)])
    taken = arms.take_rows(decision, order, budget, seed=3)
    assert chosen(subset) == [ids[place] for place in taken]
    assert facts["pilot"]["decision"] == decision
    assert facts["chosen_rows"] == 6
    if decision == "choice":
        assert subset == plain


def test_it_is_recorded_what_was_done_and_why(tried, found):
    found(0.1)
    _, facts = tried()
    told = facts["pilot"]
    assert told["difference"] == pytest.approx({"loss": 0.1, "low": 0.1, "high": 0.1})
    assert told["losses"]["choice"] == pytest.approx([1.6, 1.6])
    assert told["why"].endswith("above chance, so random rows take its place")
    assert (told["steps"], told["rows"]) == (2, 3)
    assert told["seconds"] in (2.0, 2.5, 3.0)  # two arms may be of the same rows
    assert told["validation"] == {"rows": 3, "of": "validation"}
    assert told["flops"] > 0


def test_without_a_pilot_nothing_is_trained(world, monkeypatch):
    monkeypatch.setattr(pilot, "train", None)
    assert run(world[0], replace(SETTINGS, pilot=None))[1]["pilot"] is None


def test_rows_of_the_target_task_are_measured_on_where_there_are_any(world, tried, found):
    folder, ids = world
    found(0.0)
    rows = read_set(folder / "examples/examples.parquet", "ground").to_pylist()
    rows += [row(30, "target"), row(31, "target"), row(32, "validation")]
    assert write_rows(folder / "examples", rows) == ids
    assert tried()[1]["pilot"]["validation"] == {"rows": 2, "of": "target"}


def test_a_row_that_left_may_be_taken_by_chance(world, tried, found):
    folder, ids = world
    found(0.1)
    write_scores(folder / "aside", ids, [float(place) for place in range(12)])
    (folder / "aside/scores.parquet").rename(folder / "scores/ifd.parquet")
    subset, _ = tried(replace(SETTINGS, gate={"by": "ifd", "drop": 0.5}))
    assert any(one["gated"] and one["chosen"] for one in subset)
    assert {one["gain"] for one in subset} == {None}


METHODS = ["lora", "full", "masked"]


def make_place(folder, toy, method):
    training = replace(TRAINING, method=method, learning_rate=1e-2 if method != "full" else 1e-3)
    mask = None
    if method == "masked":
        (folder / "selection").mkdir(exist_ok=True)
        write_mask(folder, toy)
        mask = read_mask(folder / "selection", toy)
    return Place(folder / "examples/examples.parquet", folder / "pilots", toy, training, RUNTIME, mask)


def make_brief(place, seed=1, steps=4):
    sets = [read_set(place.source, name).to_pylist() for name in ("ground", "validation")]
    ground, measured = (encode_rows(rows, place.model) for rows in sets)
    ids, known = ([one["id"] for one in rows] for rows in sets)
    return Brief(ground.pick(range(4)), ids[:4], seed, steps, measured, known)


@pytest.mark.parametrize("method", METHODS)
def test_a_brief_training_is_that_of_finetuning(world, toy, tmp_path, method):
    place = make_place(world[0], toy, method)
    brief = make_brief(place)
    losses = pilot.measure(place, brief, "choice-0")["losses"]
    how = place.training
    settings = FinetuningSettings(
        method=method, learning_rate=how.learning_rate, batch_rows=2, epochs=2, lora_rank=4, lora_alpha=8
    )
    restriction = Restriction(place.mask) if place.mask else None
    recipe = trainer.Recipe(toy, settings, restriction=restriction)
    rows = np.arange(4)
    arm = trainer.Arm("chosen", 1, rows, ids=tuple(brief.ids), epochs=[rows, rows], replayed=0, key="key")
    trained = trainer.train(arm, brief.rows, tmp_path / "checkpoints", recipe).network.eval()
    base = trained.get_base_model() if method == "lora" else trained
    base.set_attn_implementation(models.language_model(toy).config._attn_implementation)
    expected = [-float(each.double().mean()) for each in score_rows(base, brief.measured, 120)]
    untrained = [-float(each.double().mean()) for each in score_rows(models.language_model(toy), brief.measured, 120)]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses != pytest.approx(untrained, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_does_not_depend_on_those_before_it(world, toy, method):
    place = make_place(world[0], toy, method)
    first, second = make_brief(place, seed=1), make_brief(place, seed=2)
    alone = pilot.measure(place, second, "choice-0")["losses"]
    pilot.load.cache_clear()
    again = replace(place, cache=world[0] / "again")
    pilot.measure(again, first, "choice-0")
    assert pilot.measure(again, second, "choice-1")["losses"] == alone
    pilot.load.cache_clear()


def test_a_training_ends_after_its_steps_and_goes_through_few_rows_again(world, toy):
    place = make_place(world[0], toy, "lora")
    losses = [pilot.measure(place, make_brief(place, steps=steps), "choice-0")["losses"] for steps in (1, 2, 5)]
    assert len({tuple(each) for each in losses}) == 3


def test_another_run_finds_what_was_trained_and_gives_the_same_bytes(world, tried, monkeypatch):
    tried()
    monkeypatch.setattr(pilot, "train", None)
    tried(out="again")
    for name in ("subset.parquet", "selection.json"):
        assert (world[0] / "out" / name).read_bytes() == (world[0] / "again" / name).read_bytes()


def test_trained_anew_it_gives_the_same_losses(world, tried):
    _, first = tried()
    for path in (world[0] / "pilots").glob("*.json"):
        path.unlink()
    torch.manual_seed(8)
    _, again = tried(out="again")
    assert again["pilot"] | {"seconds": 0} == first["pilot"] | {"seconds": 0}


def test_what_is_kept_is_known_by_all_that_determines_it(world, toy):
    place = make_place(world[0], toy, "lora")
    brief = make_brief(place)
    others = [
        (place, replace(brief, seed=2)),
        (place, replace(brief, steps=5)),
        (place, replace(brief, ids=brief.ids[::-1])),
        (place, replace(brief, measured_ids=brief.measured_ids[:2])),
        (replace(place, training=replace(TRAINING, loss_per="token")), brief),
        (replace(place, mask={"w": np.array([1])}), brief),
        (replace(place, model=replace(toy, template="delift")), brief),
    ]
    digests = [pilot.digest(*each) for each in [(place, brief), *others]]
    assert len(set(digests)) == len(digests)
    assert pilot.digest(replace(place, runtime=RuntimeSettings()), brief) == digests[0]


def test_neither_the_global_generator_nor_the_model_that_others_use_is_touched(tried, toy):
    before = {name: tensor.clone() for name, tensor in models.language_model(toy).state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tried()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in models.language_model(toy).state_dict().items())


def test_a_mask_is_trained_in(world, tried, toy):
    write_mask(world[0], toy)
    (world[0] / "selection").rename(world[0] / "unused")
    mask = MaskSettings(selector="random", budget={"fraction": 0.1})
    _, facts = tried(training=replace(TRAINING, method="masked"), mask=mask)
    assert facts["mask"]["by"] == "random"
    assert len(facts["pilot"]["losses"]["choice"]) == 2


def test_no_validation_row_is_refused(world, tried):
    write_rows(world[0] / "examples", read_set(world[0] / "examples/examples.parquet", "ground").to_pylist())
    with pytest.raises(
        SelectionError, match=r"selection.pilot measures on validation rows, and .* has none; set examples"
    ):
        tried()


def test_a_loss_that_is_not_finite_is_refused(tried):
    how = replace(TRAINING, method="full", learning_rate=1e30)
    with pytest.raises(
        SelectionError, match=r"the pilot's loss of choice-0 on a validation row is not finite; lower fine"
    ):
        tried(training=how)
    longer = replace(SETTINGS, pilot={"steps": 3, "seeds": 1, "rows": 1.0})
    with pytest.raises(SelectionError, match=r"the pilot's loss of choice-0 is nan at step \d of 3; lower finetuning"):
        tried(longer, how)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"step": 3}, "has an unknown 'step' .*known: steps, seeds, rows"),
        ({"steps": 0}, "has steps: 0; it must be a whole number, at least 1"),
        ({"seeds": 1.5}, "has seeds: 1.5; it must be a whole number"),
        ({"rows": 1.5}, "has rows: 1.5; it is a share of the choice, above 0 and at most 1"),
    ],
)
def test_a_pilot_that_cannot_be_is_refused(asked, text):
    with pytest.raises(ValidationError, match=text):
        SelectionSettings(pilot=asked)


def test_a_pilot_has_eight_steps_three_seeds_and_a_tenth_unless_told_else():
    assert SelectionSettings(pilot={}).pilot == {"steps": 8, "seeds": 3, "rows": 0.1}


def test_what_is_kept_says_losses_and_seconds(world, tried):
    tried()
    kept = [json.loads(path.read_text()) for path in (world[0] / "pilots").glob("*.json")]
    assert 4 <= len(kept) <= 6  # two arms may be of the same rows
    assert all(len(one["losses"]) == 3 and one["seconds"] > 0 for one in kept)


def test_operations_are_those_of_the_steps_and_of_one_pass_over_the_validation_rows(world, toy):
    source, size = world[0] / "examples/examples.parquet", models.count_parameters(toy)
    rows, measured = (read_set(source, name).to_pylist() for name in ("ground", "validation"))
    some, known = encode_rows(rows[:5], toy), encode_rows(measured, toy)
    brief = Brief(some, [one["id"] for one in rows[:5]], 3, 4, known, [one["id"] for one in measured])
    place = Place(source, world[0], toy, TRAINING, RUNTIME)
    steps = plan_steps(5, TRAINING.batch_rows, 2, 3)[:4]
    laid = [collate(some.pick(step), torch.device("cpu")) for step in steps] + [collate(known, torch.device("cpu"))]
    each = [size.layers * one["input_ids"].numel() + size.head * one["logits_to_keep"].numel() for one in laid]
    assert pilot.count_brief(place, brief) == 6 * sum(each[:-1]) + 2 * each[-1]
