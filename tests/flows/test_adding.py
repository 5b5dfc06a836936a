"""A data version is added to params.yaml behind the others, in their way of writing, and every comment stays."""

import pytest
import yaml
from worlds.projects import ROOT

from flows import params
from flows.adding import name_next, plan_addition
from flows.checks import ParamsError

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
VERSION = {"raw": "data/raw/new", "previous": "v2"}
BLOCK = """versions:  # all of them
  v1:
    raw: data/raw/v1
    previous: base  # the first
  v2:
    raw: data/raw/v2
    previous: v1

# the models
"""


def test_the_committed_params_gain_one_line():
    before, after = TEXT.splitlines(), params.add_version(TEXT, "v3", VERSION).splitlines()
    place = before.index("  v2: {raw: data/raw/v2, previous: v1}") + 1
    assert after == [*before[:place], "  v3: {raw: data/raw/new, previous: v2}", *before[place:]]


def test_versions_written_in_blocks_gain_a_block_and_what_stood_behind_them_stays_there():
    rest = TEXT[TEXT.index("models:") :]
    after = params.add_version(BLOCK + rest, "v3", VERSION)
    assert after.startswith(BLOCK.replace("\n\n#", "\n  v3:\n    raw: data/raw/new\n    previous: v2\n\n#"))
    assert yaml.safe_load(after)["models"] == yaml.safe_load(TEXT)["models"]


def test_what_is_said_of_its_files_stands_in_section_examples():
    sources = [{"path": "*", "fields": {}}, {"path": "a.csv", "format": "alpaca"}]
    after = params.add_version(TEXT, "v3", VERSION, sources)
    assert yaml.safe_load(after)["examples"]["sources"] == {"v3": sources}
    again = params.add_version(after, "v4", VERSION, sources[:1])
    assert list(yaml.safe_load(again)["examples"]["sources"]) == ["v3", "v4"]
    assert len(again.splitlines()) == len(after.splitlines()) + 3
    lines = after.splitlines()
    place = lines.index("  sources:")
    assert lines[place - 1].startswith("  fields: {}")
    assert lines[place + 1 : place + 3] == ["    v3:", "    - {path: '*', fields: {}}"]
    assert [line for line in lines if line not in TEXT.splitlines()] == [
        "  v3: {raw: data/raw/new, previous: v2}",
        *lines[place : place + 4],
    ]


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("v2", VERSION, r"there is a data version 'v2' already \(data/raw/v2\); give another name"),
        ("base", VERSION, "versions names 'base', which stands for what was before any version; give another name"),
        ("v3", VERSION | {"previous": "v9"}, "versions.v3 continues from 'v9', which is not there"),
    ],
)
def test_a_version_that_cannot_be_one_is_refused(name, version, text):
    with pytest.raises(ParamsError, match=text):
        params.add_version(TEXT, name, version)


def test_the_next_name_follows_the_largest_number():
    assert name_next(["v2", "v10", "mine", "v3b"]) == "v11"


def test_a_version_continues_from_the_newest_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "own.jsonl").write_text("")
    found = plan_addition(tmp_path / "own.jsonl", params.read().versions)
    assert (found.version, found.previous, found.raw, found.copied) == ("v3", "v2", "own.jsonl", False)


def test_with_a_copy_a_name_is_free_where_no_folder_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "own.jsonl").write_text("")
    (tmp_path / "data/raw/v7").mkdir(parents=True)
    assert plan_addition(tmp_path / "own.jsonl", params.read().versions, copy=True).raw == "data/raw/v8"
