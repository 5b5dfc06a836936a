"""What params.yaml says of a model's chat template is refused by name where it cannot be used."""

from pathlib import Path

import pytest

from flows import params

ROOT = Path(__file__).parents[2]


def read(folder: Path, old: str, new: str) -> params.Params:
    """Read the project's params.yaml with one of its lines begun otherwise."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (folder / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return params.read(folder / "params.yaml")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "{date_string: 2026-07-26}",
            "has date_string: 2026-07-26, which YAML reads as a date; write '2026-07-26' in qu",
        ),
        (
            "{days: [{first: 2026-07-26}]}",
            "has days: 2026-07-26, which YAML reads as a date; write '2026-07-26' in quot",
        ),
        (
            "{day: 2026-07-26 10:00:00}",
            "has day: 2026-07-26 10:00:00, which YAML reads as a date; write '2026-07-26 10",
        ),
        (
            "{names: {2026-07-26: one}}",
            "has names: 2026-07-26, which YAML reads as a date; write '2026-07-26' in quotes",
        ),
        ("{names: {1: one}}", "has names: {1: 'one'}, which JSON cannot say; give texts, numbers, true, false, null"),
        ("silent", "must be `name: value` pairs, got 'silent'"),
    ],
)
def test_arguments_that_yaml_reads_otherwise_than_they_are_written_are_refused(tmp_path, written, said):
    with pytest.raises(params.ParamsError) as caught:
        read(tmp_path, "  template_arguments: {} ", f"  template_arguments: {written} ")
    assert f"models.template_arguments {said}" in str(caught.value)


def test_arguments_are_read_as_they_are_written(tmp_path):
    written = "{date_string: '2026-07-26', day: 26 Jul 2026, enable_thinking: false, depth: [1, 2.5, null, {a: b}]}"
    found = read(tmp_path, "  template_arguments: {} ", f"  template_arguments: {written} ")
    assert found.models.template_arguments == {
        "date_string": "2026-07-26",
        "day": "26 Jul 2026",
        "enable_thinking": False,
        "depth": [1, 2.5, None, {"a": "b"}],
    }


def test_a_chat_template_is_named_by_a_text(tmp_path):
    with pytest.raises(params.ParamsError, match=r"models\.chat_template must be text or null, got 7"):
        read(tmp_path, "  chat_template: null ", "  chat_template: 7 ")
    assert read(tmp_path, "  chat_template: null ", "  chat_template: own.jinja ").models.chat_template == "own.jinja"


def test_what_becomes_of_control_tokens_texts_is_one_of_two(tmp_path):
    with pytest.raises(params.ParamsError, match=r"on_special_tokens must be reject or as_text, got 'keep'"):
        read(tmp_path, "  on_bad_row: stop ", "  on_special_tokens: keep\n  on_bad_row: stop ")
    assert read(tmp_path, "  on_bad_row: stop ", "  on_bad_row: stop ").examples.on_special_tokens == "reject"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  dtype: float32  ",
            "  dtype: bfloat16  ",
            "models.matmul is bf16 and models.dtype bfloat16; it is of",
        ),
        ("  device: auto  ", "  device: cuda  ", "models.matmul is bf16 and models.device cuda; it is of CPUs: set"),
    ],
    ids=["dtype", "device"],
)
def test_a_way_of_multiplying_that_would_do_nothing_is_refused_with_the_ways_out(tmp_path, old, new, said):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("  matmul: float32 ", "  matmul: bf16 ")
    assert text.count(old) == 1
    (tmp_path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(params.ParamsError, match=said):
        params.read(tmp_path / "params.yaml")
