"""A version's copy of dvc.yaml, kept up to date, and its dvc.lock."""

from pathlib import Path

import pytest
import yaml
from worlds.projects import GRAPHS, Project

from flows import params
from flows.graph import dvc_files

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(tmp_path) -> Project:
    """The small project with its copies."""
    GRAPHS["small"].make(tmp_path / "small", "")
    dvc_files.write_copies(tmp_path / "small")
    return Project(tmp_path / "small")


def test_copies_of_this_project_are_up_to_date():
    assert dvc_files.find_stale(ROOT) == {}


def test_copy_is_the_graph_for_one_version(small):
    copy = yaml.safe_load((small.root / "versions/v1/dvc.yaml").read_text())
    assert copy["vars"] == [{"copied": {"v1": {"raw": "raw/v1.txt"}}}]
    assert list(copy["stages"]) == list(GRAPHS["small"].stages)
    assert {stage["do"].pop("wdir") for stage in copy["stages"].values()} == {"../.."}
    graph = yaml.safe_load((small.root / "dvc.yaml").read_text())["stages"]
    assert copy["stages"] == {name: stage for name, stage in graph.items() if name != "all"}


def test_only_copies_that_differ_are_written(small):
    assert dvc_files.write_copies(small.root) == []
    small.edit("params.yaml", "v1: {raw: raw/v1.txt}", "v1: {raw: raw/v1.txt}\n  v2: {raw: raw/v2.txt}")
    assert dvc_files.write_copies(small.root) == [Path("versions/v2/dvc.yaml")]
    small.edit("params.yaml", "raw/v1.txt", "raw/other.txt")
    assert dvc_files.write_copies(small.root) == [Path("versions/v1/dvc.yaml")]
    small.edit("dvc.yaml", "params: [total]", "params: [total.factor]")
    assert len(dvc_files.write_copies(small.root)) == 2
    (small.root / "versions/v1/dvc.yaml").write_text("by hand")
    assert list(dvc_files.find_stale(small.root)) == [Path("versions/v1/dvc.yaml")]


def test_copy_of_no_version_is_deleted_and_its_lock_kept(small):
    for name in ("v2", "v3"):
        (small.root / "versions" / name).mkdir()
        (small.root / "versions" / name / "dvc.yaml").write_text("")
    (small.root / "versions/v3/dvc.lock").write_text("")
    assert len(dvc_files.write_copies(small.root)) == 2
    assert sorted(str(path.relative_to(small.root)) for path in (small.root / "versions").rglob("*")) == [
        "versions/v1",
        "versions/v1/dvc.yaml",
        "versions/v3",
        "versions/v3/dvc.lock",
    ]
    assert dvc_files.list_left(small.root) == {Path("versions/v3"): ["dvc.lock"]}


@pytest.mark.parametrize("name", ["../up", "a/b", "v;touch x", "v 1"])
def test_name_that_cannot_be_a_folder_writes_nothing(small, name):
    small.edit("params.yaml", "  v1: {raw", f"  {name!r}: {{raw: x}}\n  v1: {{raw")
    before = sorted(small.root.parent.rglob("*"))
    with pytest.raises(params.ParamsError, match="a version's name has letters"):
        dvc_files.write_copies(small.root)
    assert sorted(small.root.parent.rglob("*")) == before


def test_stages_of_a_lock_file_stay_beside_the_one_that_is_recorded(tmp_path):
    path = tmp_path / "dvc.lock"
    dvc_files.record(path, {"a@v1": {"cmd": "a", "deps": [{"path": "x", "md5": "1"}]}})
    dvc_files.record(path, {"b@v1": {"cmd": "b", "params": {"params.yaml": {"none": None, "text": "c: d"}}}})
    dvc_files.record(path, {"a@v1": {"cmd": "a", "deps": [{"path": "x", "md5": "2"}]}})
    assert dvc_files.parse_lock(path.read_text()) == {
        "a@v1": {"cmd": "a", "deps": [{"path": "x", "md5": "2"}]},
        "b@v1": {"cmd": "b", "params": {"params.yaml": {"none": None, "text": "c: d"}}},
    }


@pytest.mark.parametrize(
    "text", ["stages: [1", "- a", "stages: 5", "\0", "stages: {a: []}", "stages: {a: {outs: [{}]}}"]
)
def test_lock_file_that_is_none_is_an_error_of_ours(text):
    with pytest.raises(dvc_files.LockError, match=r"^not a lock file of DVC: (?!not a lock)"):
        dvc_files.parse_lock(text)
