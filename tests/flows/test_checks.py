"""Settings of several stages that cannot be together are refused before anything runs, with the ways out."""

from pathlib import Path

import pytest
import yaml

from flows import params

ROOT = Path(__file__).parents[2]


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
