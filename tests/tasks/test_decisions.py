"""The list of vetoed and pinned rows: read as it was written, and refused where it is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.artifacts.tables import ArtifactError
from tasks.decisions import (
    Decision,
    find_decisions,
    list_decided,
    read_decisions,
    tabulate_decisions,
    write_decisions,
)

VETO = Decision("b1", "sb", "veto", "wrong answer", "Ann", "2026-01-02T03:04:05+00:00")
PIN = replace(VETO, id="a1", same_as="sa", kind="pin", because="a rule of ours")


def test_decisions_are_read_as_they_were_written_sorted_by_id(tmp_path):
    path = find_decisions(tmp_path, "v1")
    path.parent.mkdir(parents=True)
    write_decisions([VETO, PIN], path)
    assert read_decisions(path) == [PIN, VETO]
    assert list_decided(path, "veto") == {"sb"}
    assert list_decided(path, "pin") == {"sa"}
    table = tabulate_decisions(tmp_path, ["v0", "v1"])
    assert table["version"].to_pylist() == ["v1", "v1"]
    assert table["because"].to_pylist() == ["a rule of ours", "wrong answer"]


def test_without_a_file_nothing_is_decided(tmp_path):
    assert read_decisions(tmp_path / "decisions.json") == []
    assert list_decided(None, "veto") == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "3",
        '[{"id": "a"}]',
        json.dumps([vars(VETO) | {"kind": "maybe"}]),
        json.dumps([vars(VETO) | {"x": 1}]),
    ],
)
def test_what_is_no_such_list_is_refused_by_name(tmp_path, text):
    path = Path(tmp_path / "decisions.json")
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"decisions\.json is no list of decision rows .*git checkout"):
        read_decisions(path)
