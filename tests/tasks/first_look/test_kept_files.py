"""What raw files were when a version was added, how later ones differ, and their copies."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from worlds.raw_rows import ROWS, dump, write_saved, write_saved_splits

from tasks.artifacts.tables import ArtifactError, digest
from tasks.examples.files import list_files
from tasks.examples.records import read_records
from tasks.first_look.kept_files import copy_files, describe_files, find_beside, list_differences, write_record


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw folder with two files, one in a sub-folder, and what is no data."""
    folder = tmp_path / "project/data/raw/v1"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text(dump(ROWS[:3]))
    (folder / "deep/b.csv").write_text("prompt,response\nx,y\n")
    (folder / "NOTICE.txt").write_text("from there")
    return folder


def test_size_and_digest_of_every_data_file_are_recorded(raw):
    found = describe_files(raw)
    assert list(found) == ["a.jsonl", "deep/b.csv"]
    assert found["a.jsonl"] == {"bytes": (raw / "a.jsonl").stat().st_size, "sha256": digest(raw / "a.jsonl")}


def test_files_of_a_saved_data_set_are_recorded_each(tmp_path):
    (tmp_path / "v1").mkdir()
    write_saved(tmp_path / "v1")
    assert {"toy/data-00000-of-00001.arrow", "toy/state.json"} <= set(describe_files(tmp_path / "v1"))


def test_files_that_differ_later_are_named(raw, tmp_path):
    record = tmp_path / "v1.files.json"
    write_record(raw, "data/raw/v1", record)
    assert list_differences(raw, record) == []
    (raw / "a.jsonl").write_text(dump(ROWS[1:4]))
    (raw / "deep/b.csv").rename(raw / "c.csv")
    assert list_differences(raw, record) == ["a.jsonl has changed", "c.csv is new", "deep/b.csv is gone"]
    assert json.loads(record.read_text())["raw"] == "data/raw/v1"


def test_without_a_record_nothing_differs(raw, tmp_path):
    assert list_differences(raw, tmp_path / "none.json") == []


def test_a_record_that_is_none_is_refused_with_the_way_out(raw, tmp_path):
    (tmp_path / "v1.files.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"is no record of raw files .*; bring it back with `git checkout "):
        list_differences(raw, tmp_path / "v1.files.json")


def test_what_tells_of_data_lies_in_its_folder_or_else_beside_it_in_the_project(raw):
    root = raw.parents[2]
    (raw.parent / "LICENSE.corpus").write_text("CC0")
    (root / "LICENSE").write_text("MIT")
    assert [path.name for path in find_beside(raw, root)] == ["NOTICE.txt"]
    assert [path.name for path in find_beside(raw / "a.jsonl", root)] == ["NOTICE.txt"]
    (raw / "NOTICE.txt").unlink()
    assert [path.name for path in find_beside(raw, root)] == ["LICENSE.corpus"]
    assert find_beside(root / "data", root) == []
    outside = root.parent / "other"
    outside.mkdir()
    (root.parent / "README.md").write_text("of something else")
    assert find_beside(outside, root) == []


def test_a_copy_has_the_data_files_and_what_tells_of_them(raw, tmp_path):
    (raw / "notes.txt").write_text("not data")
    copy_files(raw, raw.parents[2], tmp_path / "v2")
    copied = sorted(path.relative_to(tmp_path / "v2").as_posix() for path in (tmp_path / "v2").rglob("*.*"))
    assert copied == ["NOTICE.txt", "a.jsonl", "deep/b.csv"]
    assert describe_files(tmp_path / "v2") == describe_files(raw)


def test_a_copy_of_what_a_pattern_matches_has_these_alone(raw, tmp_path):
    copy_files(raw / "**/*.csv", raw.parents[2], tmp_path / "v2")
    assert list(describe_files(tmp_path / "v2")) == ["deep/b.csv"]


def test_a_copy_of_saved_splits_is_read_as_they_are(tmp_path):
    (tmp_path / "v1").mkdir()
    write_saved_splits(tmp_path / "v1")
    copy_files(tmp_path / "v1", tmp_path / "project", tmp_path / "v2")
    kinds = [[(file.kind, file.split) for file in list_files(tmp_path / name, {})[0]] for name in ("v1", "v2")]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 2


@pytest.mark.parametrize("raw", ["first", "fir*"])
def test_a_copy_of_one_split_has_no_description_of_the_others(tmp_path, raw):
    (tmp_path / "v1").mkdir()
    write_saved_splits(tmp_path / "v1")
    copy_files(tmp_path / "v1/toy" / raw, tmp_path / "project", tmp_path / "v2")
    assert [path.name for path in (tmp_path / "v2").iterdir()] == ["first"]
    ((file,), _) = list_files(tmp_path / "v2", {})
    assert len(list(read_records(file))) == 10


def test_data_beside_a_file_is_not_copied_whatever_its_name(raw, tmp_path):
    (raw / "README.jsonl").write_text(dump(ROWS[:1]))
    copy_files(raw / "a.jsonl", raw.parents[2], tmp_path / "v2")
    assert sorted(path.name for path in (tmp_path / "v2").iterdir()) == ["NOTICE.txt", "a.jsonl"]


def test_a_place_that_cannot_be_written_is_named(raw, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuse)
        text = f"v2 could not be written: Permission denied. Allow writing in {tmp_path}, then run again$"
        with pytest.raises(ArtifactError, match=text):
            copy_files(raw, raw.parents[2], tmp_path / "v2")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"file/v2 could not be written: (File exists|Not a directory)"):
        copy_files(raw, raw.parents[2], tmp_path / "file/v2")


def test_what_cannot_be_read_is_named_and_not_the_copy(raw, tmp_path, monkeypatch):
    def refuse(path, place):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(ArtifactError, match=r"NOTICE.txt cannot be read: Permission denied; allow it, or take it out"):
        copy_files(raw, raw.parents[2], tmp_path / "v2")
    assert not (tmp_path / "v2").exists()


def test_a_place_that_holds_something_is_no_place_for_a_copy(raw, tmp_path):
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2/x").write_text("x")
    with pytest.raises(ArtifactError, match=r"v2 is there and is not empty; remove it, or give the version another"):
        copy_files(raw, raw.parents[2], tmp_path / "v2")
