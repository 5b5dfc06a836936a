"""A data version is added to params.yaml behind the others, in their way of writing, and every comment stays."""

import os
from pathlib import Path

import pytest
import yaml
from worlds.projects import ROOT

from flows import params
from flows.adding import AddError, name_next, name_paths, plan_addition
from flows.checks import ParamsError
from tasks.artifacts.tables import ArtifactError

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


@pytest.mark.parametrize("none", ["{}", "", "{}  # none yet", " # none yet"])
@pytest.mark.parametrize("behind", ["", "\n", "\n# the models\n"])
def test_a_file_without_versions_gains_the_first(none, behind):
    rest = TEXT[TEXT.index("models:") :]
    before = f"# all\nversions: {none}\n{behind}{rest}"
    after = params.add_version(before, "v1", {"raw": "a", "previous": "base"})
    kept = "  # none yet" if "none" in none else ""
    assert " ".join(after[: after.index("models:")].split()) == " ".join(
        f"# all versions:{kept} v1: {{raw: a, previous: base}} {behind}".split()
    )
    lines = after[: after.index("models:")].splitlines()
    assert lines[1:3] == [lines[1], "  v1: {raw: a, previous: base}"]
    assert after.endswith(rest)


def test_line_ends_stay_as_they_are(tmp_path):
    path = tmp_path / "params.yaml"
    for ends in ("\n", "\r\n"):
        path.write_text(TEXT, newline=ends)
        params.write(path, params.add_version(path.read_text(), "v3", VERSION))
        changed = path.read_bytes().decode()
        assert changed.count(ends) == changed.count("\n") == TEXT.count("\n") + 1
        assert ("\r" in changed) == (ends == "\r\n")


def test_a_project_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    def refuse(self, *rest, **options):
        raise PermissionError(13, "Permission denied", str(self))

    path = tmp_path / "params.yaml"
    path.write_text("a: 1\n")
    monkeypatch.setattr(Path, "write_text", refuse)
    text = f"^{path} could not be written: Permission denied; nothing was left behind. Allow writing in {tmp_path}, "
    with pytest.raises(ArtifactError, match=text):
        params.write(path, "a: 2\n")
    assert [one.name for one in tmp_path.iterdir()] == ["params.yaml"]


def test_paths_are_quoted_for_a_shell_and_right_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["params.yaml", "data/raw/v2.dvc", "my rows/#1's.jsonl", "-x.csv"]
    told = name_paths(paths, tmp_path)
    assert told == """params.yaml data/raw/v2.dvc 'my rows/#1'"'"'s.jsonl' ./-x.csv"""
    assert name_paths(paths[:3], tmp_path / "my rows") == """../params.yaml ../data/raw/v2.dvc '#1'"'"'s.jsonl'"""


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(AddError, match=r"rows cannot be read: Permission denied; allow it, or give another path$"):
        plan_addition(tmp_path / "rows", {})


def test_a_path_that_is_not_utf8_is_refused_unless_it_is_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    path = tmp_path / os.fsdecode(b"caf\xe9/rows.jsonl")
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(
        AddError, match=r"^caf\\xe9/rows.jsonl is no name in UTF-8, and params.yaml cannot hold it; ren"
    ):
        plan_addition(path, params.read().versions)
    assert plan_addition(path, params.read().versions, copy=True).raw == "data/raw/v3"


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
