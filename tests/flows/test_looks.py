"""Rows that are looked at lie meanwhile where something can be written."""

import tempfile

import pytest

from flows.checks import ParamsError
from flows.looks import open_scratch


def test_rows_lie_in_the_cache_or_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert open_scratch(tmp_path / ".cache/look") == tmp_path / ".cache/look"
    (tmp_path / "file").write_text("")
    assert open_scratch(tmp_path / "file/look").parent == tmp_path / "temporary"


def test_where_neither_can_be_written_both_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    text = r"file cannot be written \(.*\), nor can a temporary folder; allow one of them, or set TMPDIR to a folder"
    with pytest.raises(ParamsError, match=text):
        open_scratch(tmp_path / "file/look")
