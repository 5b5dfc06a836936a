"""Settings of several stages that cannot be together are refused before anything runs, with the ways out."""

from pathlib import Path

import pytest
import yaml

from flows import params
from flows.stage_calls import make_embedding, make_utility

ROOT = Path(__file__).parents[2]
BY_HELP = {"selection.selector": "embedding", "selection.quality": "help"}


def compose(changes: dict) -> params.Params:
    """Return the project's parameters with some settings changed (`section.key`)."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, value in changes.items():
        section, key = dotted.split(".")
        raw[section][key] = value
    return params.compose(raw)


MASKED = {"mask.selector": "dualsft", "finetuning.method": "masked"}


@pytest.mark.parametrize("asked", [{"selection.selector": "dualsft"}, MASKED], ids=["rows", "mask"])
def test_dualsft_with_nothing_to_steer_by_is_refused(asked):
    text = (
        r"^dualsft needs rows that steer it, and examples.validation_every and examples.target are null; set examples"
    )
    with pytest.raises(params.ParamsError, match=text):
        compose(asked)


@pytest.mark.parametrize("rows", [{"examples.validation_every": 10}, {"examples.target": {"topic": "ai"}}])
@pytest.mark.parametrize("asked", [{"selection.selector": "dualsft"}, MASKED], ids=["rows", "mask"])
def test_dualsft_is_steered_by_validation_rows_or_the_target_task(asked, rows):
    compose(asked | rows)


def test_fisher_information_needs_no_validation_rows():
    compose(MASKED | {"mask.selector": "fisher"})


GATE = {"selection.gate": {"by": "help", "drop": 0.8}}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "selection.budget is fraction: 0.3 of the used pool, of which selection.gate takes 0.8 out before; lower"),
        (
            {"selection.gate": {"by": "agreement", "beyond": 2}, "selection.budget": {"fraction": 1.0}},
            "selection.budget is fraction: 1.0, all of the used pool, of which selection.gate takes what looks wrong",
        ),
        (
            {"selection.gate": {"by": "idf"}},
            r"selection.gate is \{'by': 'idf'\} \(did you mean 'ifd'\?\); give by: ifd",
        ),
        (
            {"selection.budget": {"count": 9}, "selection.selector": "fresh"},
            "selection.selector is fresh, which draws other rows of the whole pool in every epoch, and knows nothing",
        ),
        (
            {"selection.budget": {"count": 9}, "utility.kernel": "landmarks"},
            "selection.gate is by help and utility.kernel is landmarks, which scores some rows as demos and no others",
        ),
    ],
)
def test_a_gate_that_leaves_or_knows_too_few_rows_is_refused(asked, text):
    with pytest.raises(params.ParamsError, match=text):
        compose(GATE | asked)


PILOT = {"selection.pilot": {"steps": 2}}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "selection.pilot measures on validation rows, and examples.validation_every and examples.target are null"),
        (
            {"examples.validation_every": 10, "selection.selector": "random"},
            "selection.pilot compares the choice with chance, and selection.selector is random, which is chance; set",
        ),
        (
            {"examples.validation_every": 10, "finetuning.method": "full", "models.dtype": "float16"},
            "selection.pilot trains by finetuning.method full, in which float16 weights underflow; set models.dtype",
        ),
        ({"selection.pilot": {"step": 2}}, r"selection.pilot has an unknown 'step' \(did you mean 'steps'\?\)"),
    ],
)
def test_a_pilot_that_has_nothing_to_measure_on_or_to_compare_is_refused(asked, text):
    with pytest.raises(params.ParamsError, match=text):
        compose(PILOT | asked)


def test_one_validation_prompt_in_one_is_refused():
    with pytest.raises(params.ParamsError, match=r"examples\.validation_every is 1; it must be at least 2"):
        compose({"examples.validation_every": 1})


@pytest.mark.parametrize(
    ("utility", "selection", "said"),
    [
        (
            {"utility.kernel": "none"},
            {"selection.selector": "delift"},
            "utility.kernel is none and selection.selector delift, which chooses by a kernel",
        ),
        (
            {"utility.kernel": "none", "utility.help_targets": 0},
            BY_HELP,
            "selection.quality is help, but utility.kernel none and utility.help_targets 0 score no pair",
        ),
        (
            {"utility.kernel": "none", "utility.help_targets": 0},
            {"selection.selector": "longest", "selection.gate": {"by": "help", "drop": 0.2}},
            "selection.gate is by help, but utility.kernel none and utility.help_targets 0 score no pair",
        ),
        (
            {"utility.kernel": "none", "utility.help_targets": 8},
            {"selection.selector": "embedding", "selection.quality": "neighbours"},
            "selection.quality is neighbours but utility.kernel is none, whose pairs do not say which rows are near",
        ),
        (
            {"utility.kernel": "landmarks", "utility.help_targets": 8},
            BY_HELP,
            "selection.quality is help and utility.kernel is landmarks, which scores some rows as demos and no others",
        ),
    ],
)
def test_to_choose_by_pairs_that_are_not_scored_is_refused(utility, selection, said):
    with pytest.raises(params.ParamsError, match=said):
        compose(utility | selection)


@pytest.mark.parametrize(
    "unread",
    [
        {"selection.selector": "dualsft_cover", "selection.objective": "mutual_information"},
        {"selection.selector": "longest", "selection.objective": "mutual_information"},
        {"selection.selector": "probes", "selection.quality": "neighbours", "utility.kernel": "exact"},
    ],
)
def test_what_a_selector_does_not_read_is_no_reason_to_refuse_it(unread):
    compose({"examples.validation_every": 10} | unread)


@pytest.mark.parametrize(
    ("utility", "selection", "vectors", "pairs"),
    [
        ({}, {}, True, True),
        ({"utility.kernel": "exact"}, {"selection.selector": "delift", "selection.gate": None}, False, True),
        ({}, {"selection.selector": "embedding", "selection.quality": "none"}, True, False),
        ({"utility.kernel": "none", "utility.help_targets": 8}, BY_HELP, True, True),
        ({"utility.kernel": "none"}, {"selection.selector": "random"}, False, False),
    ],
)
def test_stages_compute_what_the_choice_reads(utility, selection, vectors, pairs, monkeypatch):
    from tasks.embedding import embedding as one
    from tasks.utility import utility as other

    wanted = {}
    for name, module in (("embedding", one), ("utility", other)):
        note = lambda *_, name=name, **asked: wanted.update({name: asked["wanted"]})  # noqa: E731
        monkeypatch.setattr(module, f"write_{name}", note)
    values = compose(utility | selection)
    make_embedding(values, None, map)
    make_utility(values, None, map)
    assert wanted == {"embedding": vectors, "utility": pairs}
