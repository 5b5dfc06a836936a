"""The pages of docs/reference/ are what docs/generate.py writes, and leave nothing out."""

import importlib.util
import json

import pytest
import yaml
from worlds.projects import ROOT

from flows.graph.stages import read_stages
from flows.params import SECTIONS
from tasks.selection.selectors import SELECTORS


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What docs/generate.py writes, by the names of the pages."""
    described = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module.write_pages()


def test_generating_changes_nothing(pages):
    for name, text in pages.items():
        committed = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
        assert text == committed, f"docs/reference/{name} is not what the code says; run `python docs/generate.py`"
    assert {path.name for path in (ROOT / "docs/reference").iterdir()} == {*pages}


def test_every_setting_of_params_yaml_stands_in_its_section(pages):
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = {text.partition("\n")[0]: text for text in pages["params.md"].split("\n## ")[1:]}
    for section in SECTIONS:
        for setting in values[section]:
            assert f"| `{setting}` |" in sections[section], f"{section}.{setting}"


def test_defaults_ranges_and_words_are_told(pages):
    rows = {line.split(" | ")[0].strip("| `"): line for line in pages["params.md"].splitlines()}
    assert "`exact` or `neighbours` or `landmarks` or `none` |  | `neighbours` |" in rows["kernel"]
    assert "whole number or null | at least 1 | `null` |" in rows["block_parameters"]
    assert "`{fraction: 0.1}`" in rows["budget"]
    assert "below 1 | `0.05` |" in rows["less.warmup_share"]
    assert "`{chosen: [0]}`" in rows["arms"]


def test_the_schema_knows_every_section_and_refuses_others(pages):
    schema = json.loads(pages["params.schema.json"])
    assert list(schema["properties"]) == ["versions", *SECTIONS]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["selection"]["properties"]["selector"]["enum"] == list(SELECTORS)


def test_a_column_has_its_type_and_the_comment_behind_it(pages):
    assert (
        "| `rank` | `int32` | may be null | from 1, in the order of choice; null where not chosen |"
        in (pages["tables.md"])
    )
    assert "## pairs\n\nIn .cache/pairs/" in pages["tables.md"]


def test_every_stage_command_and_selector_has_its_place(pages):
    assert [name for name in read_stages(ROOT) if f"\n## {name}\n" not in pages["stages.md"]] == []
    assert "tamis merge [options] VERSION OUT" in pages["commands.md"]
    assert [name for name in SELECTORS if f"| `{name}` |" not in pages["selectors.md"]] == []
