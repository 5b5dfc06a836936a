"""A row erased where its raw file is another one now: in git's history, and in files that no version reads."""

import json
import os
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
from worlds.erasing import erase, find_bytes, list_kinds, make_whole, pick_row, read_examples, write_rows
from worlds.projects import Project, enter_copy, run_stages

from flows.graph import dvc_state
from flows.stage_calls import ERASED
from tasks.artifacts.tables import digest
from tasks.erasure import raw_rows
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


def leave_drafts() -> list[Path]:
    """Write what kills leave of raw rows: in the making here, beside a raw file as once, and of a folder's copy."""
    raw = Path("data/raw/v1/toys.jsonl")
    left = [Path(".cache/erasing/.toys.jsonl.x1y2z3_0.part"), raw.with_name(".toys.jsonl.abcd1234.part")]
    inside = [*left, Path("data/raw/.v5.abcd1234.part/deep/toys.jsonl"), Path(".cache/landing/w1/toys.jsonl")]
    for path in inside:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(raw, path)
    return [*left, Path("data/raw/.v5.abcd1234.part"), Path(".cache/landing/w1")]


def test_raw_rows_that_kills_have_left_are_listed_and_removed(project, row):
    left = leave_drafts()
    mine = Path("data/raw/v1/.notes.part")
    mine.write_text("by hand")
    found = {one["path"]: one["what"] for one in list_kinds(erase(row["id"], "--json"))["leftover"]}
    for path in left:
        assert found.pop(str(path)) == "what a call that was broken off was writing"
    assert all(path.startswith(".cache/") for path in found)
    done = erase(row["id"], "--yes")
    assert done.exit_code == 0, done.output
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert not any(map(os.path.lexists, left))
    assert mine.read_text() == "by hand"


def test_what_git_and_dvc_hold_is_read_where_the_next_call_finds_what_a_kill_leaves(project, row, monkeypatch):
    real, read = raw_rows.find_in_file, []

    def note(path: Path, *asked: object, **how: object) -> bool:
        read.append(path.parent)
        return real(path, *asked, **how)

    monkeypatch.setattr(raw_rows, "find_in_file", note)
    assert erase(row["id"]).exit_code == 0
    assert read
    assert {path.parent for path in read} == {Path(".cache/erasing")}
    assert not list(Path(".cache/erasing").iterdir())


def test_hidden_raw_files_lose_the_row_too(project, row):
    raw = Path("data/raw/v1/toys.jsonl")
    hidden = [raw.with_name(".copy.jsonl"), Path("data/raw/v1/.checkpoints/toys.jsonl"), Path("data/raw/.toys.jsonl")]
    for path in hidden:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(raw, path)
    found = {one["path"] for one in list_kinds(erase(row["id"], "--json"))["raw"]}
    assert {f"{path}:{row['line']}" for path in hidden} <= found
    done = erase(row["id"], "--yes")
    assert done.exit_code == 0, done.output
    assert find_bytes(project.root, row["prompt"]) == []


def test_a_hidden_raw_file_that_cannot_be_read_is_refused_by_name(project, row):
    Path("data/raw/v1/.copy.jsonl").write_bytes(b"\xff\xfe\xff")
    done = erase(row["id"], "--yes")
    assert done.exit_code == 1
    assert "a hidden file in data/raw, which no run reads, may have the row: raw/v1/.copy.jsonl" in done.stderr
    assert list_same(ERASED) == frozenset()


def digest_tree(root: Path) -> dict[str, str]:
    """Return the digests of all files but git's, DVC's own and locks."""
    return {
        str(path.relative_to(root)): digest(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not {".git", "tmp"} & set(path.relative_to(root).parts)
        and path.suffix not in (".lock", ".tmp")
        and path.name not in ("run.json", "raw.json")
    }


def call_killed(patch: pytest.MonkeyPatch, id: str, stop: int) -> int:
    """Erase a row in a process that is killed before it renames or deletes for a certain time; returns how often."""
    count = Path(".cache/count")
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real, *given, **named):
            nonlocal calls
            calls += 1
            count.write_text(str(calls))
            if calls == stop:
                os._exit(9)
            return real(*given, **named)

        for name in ("replace", "rename", "unlink", "remove", "rmdir"):
            patch.setattr(os, name, partial(counted, getattr(os, name)))
        done = erase(id, "--yes")
        os._exit(done.exit_code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if stop else 0)
    calls = int(count.read_text())
    count.unlink()
    return calls


def test_call_that_is_killed_anywhere_is_finished_by_the_next(project, row, monkeypatch, tmp_path):
    write_rows(project, "v4", range(30))
    dvc_state.add("data/raw/v4")
    write_record(Path("data/raw/v4"), "data/raw/v4", Path("data/raw/v4.files.json"))
    project.git("add", ".")
    whole = enter_copy(project, tmp_path / "whole", monkeypatch)
    calls = call_killed(monkeypatch, row["id"], 0)
    wanted = digest_tree(whole.root)
    seeded, last = random.Random(0), calls - 24  # from there on raw files are rewritten, and DVC takes them in
    for stop in (1, *seeded.sample(range(2, last), 2), *seeded.sample(range(last, calls + 1), 7)):
        there = enter_copy(project, tmp_path / f"killed-{stop}", monkeypatch)
        call_killed(monkeypatch, row["id"], stop)
        assert [path for path in Path("data/raw").rglob(".*.part") if path.parent != Path("data/raw")] == []
        done = erase(row["id"], "--yes")
        assert done.exit_code == 0, done.output
        assert find_bytes(there.root, row["id"], row["prompt"]) == []
        assert digest_tree(there.root) == wanted, stop
        shutil.rmtree(there.root)
