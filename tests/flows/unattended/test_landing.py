"""Whole sub-folders of a landing folder become data versions, once, wherever the folder lies."""

import json
import os
import re
import sys
import time
from pathlib import Path

import fsspec
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from worlds.projects import Project

from flows import params
from flows.graph import versions
from flows.stage import show_plain
from flows.unattended import continual, landing
from flows.unattended.landing import Landed, LandingError, find_inside, take_landed, tell_unfinished
from tasks.settings import LandingSettings

ROWS = [{"prompt": f"what is {k}?", "response": f"it is {k}", "topic": "sums"} for k in range(30)]
DONE = "_DONE"


@pytest.fixture
def project(real_copy) -> Project:
    return real_copy


def listen(project: Project, url: str | Path, **more) -> None:
    """Name a landing folder in params.yaml, and commit that."""
    path = project.root / "params.yaml"
    settings = {"url": str(url), "marker": DONE} | more
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"landing": settings}, sort_keys=False))
    project.git("commit", "--quiet", "--all", "--message", "landing")


def land(url: str | Path, name: str, rows: list[dict] = ROWS, *, whole: bool = True) -> None:
    """Put a folder with rows there."""
    system, root = fsspec.core.url_to_fs(str(url))
    system.makedirs(f"{root}/{name}/part", exist_ok=True)
    system.pipe(f"{root}/{name}/part/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    if whole:
        system.pipe(f"{root}/{name}/{DONE}", b"")


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path) -> str:
    """A landing folder, on this machine's disk or on another file system."""
    if request.param == "folder":
        return str(tmp_path / "in")
    place = f"memory://{tmp_path.name}/in"
    return place


def test_whole_folders_become_versions_in_the_order_of_their_names(project, url, capsys):
    for name in ("2026-11", "2026-10"):
        land(url, name)
    land(url, "2026-12", whole=False)
    listen(project, url)
    assert take_landed(set()) == (["2026-10", "2026-11"], [])
    found = params.read().versions
    assert [(name, one.previous) for name, one in found.items()][1:] == [("2026-10", "v1"), ("2026-11", "2026-10")]
    kept = Path("data/raw/2026-11/part/rows.jsonl")
    assert [json.loads(line) for line in kept.read_text().splitlines()] == ROWS
    assert not list(Path("data/raw").rglob(DONE))
    assert project.git("status", "--porcelain") == ""
    assert project.git("log", "--format=%s", "-2").splitlines() == [
        "Add data version 2026-11",
        "Add data version 2026-10",
    ]
    said = capsys.readouterr().err
    assert f"2026-12 is not taken yet: it has no {DONE}\n" in said
    assert "2026-10 is added: 30 rows, 0 rejected; it continues from v1\n" in said


@pytest.mark.parametrize("staged", [True, False])
def test_what_a_person_has_not_committed_is_in_no_commit_of_ours(project, url, staged):
    land(url, "v6")
    listen(project, url)
    place = project.root / ("notes.txt" if staged else "params.yaml")
    place.write_text(f"{place.read_text() if place.exists() else ''}# by hand\n")
    if staged:
        project.git("add", "notes.txt")
    with pytest.raises(versions.RecordError, match=f"1 file with changes .* first {place.name}"):
        take_landed(set())
    assert project.git("status", "--porcelain", "--untracked-files=no").strip().endswith(place.name)


def test_a_folder_that_is_a_version_is_not_taken_again(project, url):
    land(url, "2026-10")
    listen(project, url)
    take_landed(set())
    before = project.git("log", "--format=%h")
    assert take_landed(set()) == ([], [])
    assert project.git("log", "--format=%h") == before


def test_hidden_folders_are_passed_over(project, url, capsys):
    land(url, ".snapshot")
    land(url, "2026-10")
    listen(project, url)
    assert take_landed(set()) == (["2026-10"], [])
    assert ".snapshot" not in capsys.readouterr().err


def test_nothing_continues_from_a_refused_version(project, url):
    land(url, "2026-10")
    land(url, "2026-11")
    listen(project, url)
    take_landed({"2026-10"})
    assert params.read().versions["2026-11"].previous == "v1"


@pytest.mark.parametrize(
    ("name", "rows", "text"),
    [
        ("a b", ROWS, "a version's name has letters, digits"),
        (
            "2026-10",
            [{"prompt": "x"}] * 30,
            "part/rows.jsonl: the fields prompt fit no known format; set exam",
        ),
        ("2026-10", [{"prompt": "x", "response": ""}] * 30, "none of its 30 rows can be used; first of the commonest"),
        ("2026-10", [], "none of its 0 rows can be used"),
        ("two\nlines", ROWS, "a version's name has letters, digits"),
        ("2026-10", ROWS[:1] * 30, "a run would stop: "),
    ],
)
def test_one_that_cannot_be_added_keeps_no_other_one_out(project, url, name, rows, text, capsys):
    land(url, name, rows)
    land(url, "2026-11")
    listen(project, url)
    taken, (failed,) = take_landed(set())
    assert taken == ["2026-11"]
    assert failed.args[0].startswith(f"{show_plain(name)} in {url} is not added: ")
    assert "\n" not in failed.args[0]
    assert text in str(failed)
    assert str(failed) in capsys.readouterr().err
    assert project.git("status", "--porcelain") == ""
    assert not list(Path(".cache").glob("landing/*"))


def test_a_marker_alone_is_no_version(project, url):
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(f"{root}/2026-10", exist_ok=True)
    system.pipe(f"{root}/2026-10/{DONE}", b"")
    listen(project, url)
    taken, (failed,) = take_landed(set())
    assert taken == []
    assert (
        str(failed) == f"2026-10 in {url} is not added: it holds no file beside {DONE}; mend it there, or take it out"
    )


def test_a_marker_of_a_part_is_not_that_of_the_folder(project, url):
    land(url, "2026-10", whole=False)
    system, root = fsspec.core.url_to_fs(url)
    system.pipe(f"{root}/2026-10/part/{DONE}", b"")
    listen(project, url)
    assert take_landed(set()) == ([], [])
    system.pipe(f"{root}/2026-10/{DONE}", b"")
    assert take_landed(set()) == (["2026-10"], [])


def test_without_a_marker_a_folder_is_whole_once_it_is_quiet(project, tmp_path):
    land(tmp_path / "in", "2026-10", whole=False)
    listen(project, tmp_path / "in", marker=None, quiet_seconds=60)
    assert take_landed(set()) == ([], [])
    old = time.time() - 61
    os.utime(tmp_path / "in/2026-10/part/rows.jsonl", (old, old))
    assert take_landed(set()) == (["2026-10"], [])


def test_a_file_system_that_tells_no_times_needs_a_marker():
    with pytest.raises(LandingError, match=r"does not say when a file was written; set landing\.marker$"):
        tell_unfinished(Landed("in/a", {"in/a/rows.jsonl": {"size": 1}}, None), LandingSettings())


def test_an_empty_folder_is_not_whole():
    assert tell_unfinished(Landed("in/a", {}, None), LandingSettings(quiet_seconds=0)) == "it is empty"


@pytest.mark.parametrize("url", ["nowhere/at/all", "no-such-system://bucket/in"])
def test_a_landing_folder_that_cannot_be_read_is_named(project, url):
    listen(project, url)
    with pytest.raises(
        LandingError, match=rf"^landing\.url is {url}, which cannot be read \(.*\); mend it, or set it to"
    ):
        take_landed(set())


def test_a_file_in_the_place_of_the_landing_folder_is_named(project, url):
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(root.rpartition("/")[0], exist_ok=True)
    system.pipe(root, b"")
    listen(project, url)
    with pytest.raises(
        LandingError, match=r"^landing\.url is .*/in, which cannot be read \(.*it is a file, and no fol"
    ):
        take_landed(set())


class StrangeError(Exception):
    """What the library of some file system raises, which is no OSError."""


def refuse_listing(monkeypatch, place: str) -> None:
    """Let a folder on this machine's disk be one that cannot be listed."""
    real = LocalFileSystem.ls

    def listed(self, path: str, *arguments: object, **more: object) -> object:
        if path.endswith(place):
            raise StrangeError("no route to host")
        return real(self, path, *arguments, **more)

    monkeypatch.setattr(LocalFileSystem, "ls", listed)


def test_an_address_that_does_not_answer_is_reported_once_and_what_waits_is_run(project, tmp_path, monkeypatch, capsys):
    heard, place = hear(project, tmp_path), tmp_path / "in"
    land(place, "2026-10")
    listen(project, place)
    ran, told = [], []
    monkeypatch.setattr(continual.engines, "run", lambda engine, asked, **_: ran.extend(asked))
    monkeypatch.setattr(continual, "write", lambda version, accepted: None)
    with monkeypatch.context() as patch:
        refuse_listing(patch, "/in")
        for _ in range(2):
            with pytest.raises(LandingError) as caught:
                continual.advance(tell=told.append)
        wanted = (
            f"landing.url is {place}, which cannot be read (StrangeError: no route to host); mend it, or set it to "
        )
        assert str(caught.value).startswith(wanted)
        assert capsys.readouterr().err.count(str(caught.value)) == 2
        assert ran == ["v1"] * 2
        lines = [json.loads(line) for line in heard.read_text().splitlines()]
        outcome = {"version": str(place), "state": "not added", "why": str(caught.value), "gates": []}
        assert [one for one in lines if one["version"] != "v1"] == [outcome]
        assert [one for one in told if one["version"] != "v1"] == [outcome] * 2
    assert take_landed(set()) == (["2026-10"], [])
    with monkeypatch.context() as patch:  # once it could be read, it is reported anew
        refuse_listing(patch, "/in")
        with pytest.raises(LandingError):
            take_landed(set())
    assert json.loads(heard.read_text().splitlines()[-1]) == outcome


def test_a_part_that_cannot_be_read_is_none_that_is_empty(project, tmp_path, monkeypatch):
    land(tmp_path / "in", "2026-10")
    land(tmp_path / "in", "2026-11")
    listen(project, tmp_path / "in")
    refuse_listing(monkeypatch, "2026-10/part")
    taken, (failed,) = take_landed(set())
    assert taken == ["2026-11"]
    assert str(failed).endswith("is not added: StrangeError: no route to host; mend it there, or take it out")


def test_a_password_in_the_address_is_not_said(project):
    listen(project, "no-such-system://key:password@bucket/in")
    with pytest.raises(LandingError) as caught:
        take_landed(set())
    assert "no-such-system://***@bucket/in" in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("path", ["in/a/../../b", "in/ab/rows.jsonl", "in/a/", "in/a"])
def test_an_object_that_is_named_out_of_its_folder_is_refused(path):
    with pytest.raises(LandingError, match="does not lie within its folder; rename it"):
        find_inside(path, "in/a")


def test_without_a_landing_folder_nothing_is_looked_at(project):
    assert take_landed(set()) == ([], [])


def test_continue_takes_what_landed_and_runs_it(project, url, monkeypatch):
    land(url, "2026-10")
    listen(project, url)
    ran = []
    monkeypatch.setattr(continual.engines, "run", lambda engine, asked, **_: ran.extend(asked))
    monkeypatch.setattr(continual, "write", lambda version, accepted: project.git("tag", versions.tag_of(version)))
    assert continual.advance() == ["v1", "2026-10"]
    assert ran == ["v1", "2026-10"]


def test_rows_that_the_version_before_has_are_no_version(two_versions, tmp_path):
    known = [json.loads(line) for line in Path("data/raw/v2/toys.jsonl").read_text().splitlines()]
    land(tmp_path / "in", "v3", known)
    land(tmp_path / "in", "v4")
    listen(two_versions, tmp_path / "in")
    taken, (error,) = take_landed(set())
    assert taken == ["v4"]
    assert re.search(r"v3 in .* is not added: a run would stop: .* 30 kept from the version before", str(error))


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo"])
def test_links_and_what_is_no_file_bring_nothing_from_elsewhere(project, tmp_path, kind):
    land(tmp_path / "in", "2026-10")
    place = tmp_path / "in/2026-10/part/other.jsonl"
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("/etc/passwd" if kind == "link" else "gone.jsonl")
    listen(project, tmp_path / "in")
    before = project.git("log", "--format=%h")
    taken, (failed,) = take_landed(set())
    assert taken == []
    assert "is a link, or no plain file; put the file itself there; mend it there, or take it out" in str(failed)
    assert project.git("log", "--format=%h") == before


def hear(project: Project, tmp_path: Path) -> Path:
    """Set a report that keeps what it is told, a line each; returns where."""
    heard, program = tmp_path / "heard.jsonl", tmp_path / "hear.py"
    program.write_text(f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read() + chr(10))")
    path = project.root / "params.yaml"
    values = yaml.safe_load(path.read_text()) | {"acceptance": {"report": f"{sys.executable} {program}"}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return heard


def test_one_that_cannot_be_added_is_reported_once_until_it_changes(project, url, tmp_path):
    heard = hear(project, tmp_path)
    land(url, "2026-10", [])
    listen(project, url)
    told = []
    for _ in range(2):
        _, (failed,) = take_landed(set(), told.append)
    outcome = {"version": "2026-10", "state": "not added", "why": str(failed), "gates": []}
    assert [json.loads(line) for line in heard.read_text().splitlines()] == [outcome]
    assert told == [outcome] * 2  # each look's own page has it
    land(url, "2026-10", [{"prompt": "x", "response": ""}])
    _, (failed,) = take_landed(set())
    assert [json.loads(line)["why"] for line in heard.read_text().splitlines()] == [outcome["why"], str(failed)]


@pytest.mark.parametrize("harm", ["not taken", "note unreadable", "note unwritable"])
def test_a_report_that_was_not_taken_or_noted_is_made_again(project, tmp_path, harm, capsys):
    heard = hear(project, tmp_path)
    land(tmp_path / "in", "2026-10", [])
    listen(project, tmp_path / "in")
    if harm == "note unwritable":
        landing.REPORTED.mkdir(parents=True)
        (landing.REPORTED / "x").touch()
    if harm == "not taken":
        (tmp_path / "hear.py").rename(tmp_path / "away.py")
    take_landed(set())
    if harm == "not taken":
        assert not landing.REPORTED.exists()
        (tmp_path / "away.py").rename(tmp_path / "hear.py")
    if harm == "note unreadable":
        landing.REPORTED.write_text("{")
    take_landed(set())
    assert len(heard.read_text().splitlines()) == (1 if harm == "not taken" else 2)
    if harm == "note unwritable":
        assert "2026-10 is reported again by the next look: " in capsys.readouterr().err
