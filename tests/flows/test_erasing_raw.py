"""A row erased where its raw file is another one now: in git's history, and in files that no version reads."""

import json
from pathlib import Path

import pytest
from worlds.erasing import erase, find_bytes, list_kinds, make_whole, pick_row, read_examples, write_rows
from worlds.projects import Project, enter_copy, run_stages

from flows.stage_calls import ERASED
from tasks.erasure.record import list_same
from tasks.first_look.kept_files import list_differences, write_record

HISTORY = "git's history still holds data/raw/v1/toys.jsonl with the row"
TAGS = "`git tag --delete data-v1`"


@pytest.fixture(scope="session")
def made(real_unrun, tmp_path_factory) -> Project:
    return make_whole(real_unrun, tmp_path_factory)


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    return enter_copy(made, tmp_path / "project", monkeypatch)


@pytest.fixture
def row(project) -> dict:
    return pick_row()


def take_out(row: dict) -> None:
    path = Path("data/raw/v1/toys.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if row["prompt"] not in line))


def test_history_that_holds_the_row_is_told_of_once_the_line_is_gone(project, row):
    take_out(row)
    for options in ((), ("--yes",), ("--yes",)):  # by hand, by a call, and after it
        done = erase(row["id"], *options)
        assert HISTORY in done.stderr
        assert TAGS in done.stderr
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "erased")
    project.git("tag", "--delete", "data-v1")
    project.git("tag", "data-v1")
    done = erase(row["id"], "--yes")
    assert HISTORY in done.stderr
    assert "git tag --delete" not in done.stderr


def test_tags_of_versions_that_continue_from_one_that_read_the_row_are_named(project, row):
    project.git("tag", "data-v2")
    project.git("tag", "data-v9")  # of a version that params.yaml has no more
    for _ in range(2):
        assert "`git tag --delete data-v1 data-v2`" in erase(row["id"], "--yes").stderr


def test_history_that_holds_more_of_a_row_than_its_beginning_is_told_of_once_the_line_is_gone(project):
    path = project.root / "data/raw/v3/long.jsonl"
    write_rows(project, "v3", range(60, 90))
    turns = [("user", "Who?"), ("assistant", "me"), ("user", "Why?"), ("assistant", "because " * 999)]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    project.edit("params.yaml", "previous: v1\n", "previous: v1\n  v3:\n    raw: data/raw/v3\n    previous: base\n")
    project.edit("params.yaml", "examples:\n", "examples:\n  on_long_row: drop_turns\n")
    run_stages("v3", until="examples")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "a long row")
    path.write_text("")
    (cut,) = [one for one in read_examples("v3") if one["note"]]
    for options in ((), ("--yes",), ("--yes",)):
        done = erase(cut["id"], *options)
        assert "git's history still holds data/raw/v3/long.jsonl with the row" in done.stderr
    other = next(one for one in read_examples("v1") if one["split"] == "pool")
    assert "long.jsonl" not in erase(other["id"]).stderr


def test_row_that_no_commit_holds_is_not_said_to_be_in_git(project, row):
    take_out(row)
    project.git("checkout", "--quiet", "--orphan", "anew")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "never there")
    project.git("tag", "--force", "data-v1")
    with Path("data/raw/v1/toys.jsonl").open("a") as file:
        file.write(json.dumps({name: row[name] for name in ("prompt", "response", "topic")}) + "\n")
    for options in ((), ("--yes",)):
        done = erase(row["id"], "--json", *options)
        assert bool(list_kinds(done).get("raw"))
        assert "git" not in list_kinds(done)
        assert "git's history" not in done.stderr
        assert "git tag --delete" not in done.stderr


def leave_rows(project: Project) -> Path:
    """Take a version out of params.yaml whose raw files stay; returns the file of them."""
    write_rows(project, "v5", range(30))
    record = Path("data/raw/v5.files.json")
    write_record(Path("data/raw/v5"), "data/raw/v5", record)
    return Path("data/raw/v5/toys.jsonl")


def test_raw_files_of_a_version_that_was_taken_out_lose_the_row(project, row):
    path = leave_rows(project)
    Path("data/raw/readme").mkdir()
    Path("data/raw/readme/README.md").write_text("about")
    found = [one["path"] for one in list_kinds(erase(row["id"], "--json"))["raw"]]
    assert f"{path}:{row['line']}" in found
    assert found.count(f"data/raw/v1/toys.jsonl:{row['line']}") == 1
    done = erase(row["id"], "--yes")
    assert find_bytes(project.root, row["prompt"]) == []
    assert "data/raw/v5.files.json" in done.stderr
    assert list_differences(Path("data/raw/v5"), Path("data/raw/v5.files.json")) == []
    assert len(path.read_text().splitlines()) == 29


def test_raw_files_of_no_version_that_cannot_be_read_are_refused_by_name(project, row):
    path = leave_rows(project)
    path.write_bytes(b"\xff\xfe\xff")
    done = erase(row["id"], "--yes")
    assert done.exit_code == 1
    assert "data/raw/v5, which no version of params.yaml reads, may have the row: v5/toys.jsonl" in done.stderr
    assert "or take it out of data/raw, once you know that it has not" in done.stderr
    assert list_same(ERASED) == frozenset()
