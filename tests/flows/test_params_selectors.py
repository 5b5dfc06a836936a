"""The selectors' words are the same wherever they are told apart, and are refused where they lack what they read."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from flows import checks, compare, params
from tasks.masks.settings import MaskSettings
from tasks.selection.selectors import SELECTORS
from tasks.selection.settings import SelectionSettings

ROOT = Path(__file__).parents[2]
BESIDE_OTHERS = [name for name, one in SELECTORS.items() if one.references]


def read(folder: Path, **changes) -> params.Params:
    """Read the project's params.yaml with some values changed (`section__key`)."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        raw[section][key] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return params.read(folder / "params.yaml")


@pytest.mark.parametrize("selector", BESIDE_OTHERS)
def test_a_selector_that_scores_rows_beside_others_is_refused_where_there_are_none(tmp_path, selector):
    said = (
        rf"selection\.selector is {selector}, which scores rows beside reference rows, and examples\.target and "
        r"examples\.validation_every are null; name the target task's rows, .* or set examples\.validation_every: 10"
    )
    with pytest.raises(params.ParamsError, match=said):
        read(tmp_path, selection__selector=selector)
    for way in ({"examples__target": {"topic": "coding", "rows": 8}}, {"examples__validation_every": 10}):
        assert read(tmp_path, selection__selector=selector, **way).selection.selector == selector


def test_selectors_are_the_same_words_wherever_they_are_told_apart():
    from tasks.gradients import gradients
    from tasks.masks import mask_tables
    from tasks.scores import scores
    from tasks.selection import selection

    known = get_type_hints(SelectionSettings)["selector"]
    assert get_args(known) == tuple(SELECTORS)
    assert {name for name, one in SELECTORS.items() if one.reads == "scores"} == set(scores.METHODS)
    assert {one.reads for one in SELECTORS.values()} == {None, *selection.READ}
    assert [name for name, one in SELECTORS.items() if one.references] == ["ica", "tov", "rds", "bm25"]
    masks = get_args(get_type_hints(MaskSettings)["selector"])
    assert masks == compare.MASKS
    by_rows = {name for name, one in SELECTORS.items() if one.reads == "gradients"}
    assert by_rows == set(gradients.BY_ROWS)
    assert by_rows | set(mask_tables.BY_GRADIENTS) == checks.BY_GRADIENTS
    assert set(mask_tables.BY_GRADIENTS) < set(masks)
