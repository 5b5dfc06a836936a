"""Nothing damaged is served: what is kept is held against what was recorded, and mended."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from worlds.damages import ALL, LINK, damage
from worlds.projects import Project, importing_from, run_child

from flows import drive, erasing_places, undoing
from flows.graph import aside, dvc_files, dvc_state
from flows.verify import verify
from tasks.artifacts.tables import ArtifactError

CHOSEN = Path("data/choose/version=v1/chosen.txt")
PART = Path("data/total/version=v1/all/total.txt")  # in an artifact that is a folder
OTHER = Path("data/score/version=v1/score.txt")
FOLDER_THERE = " is a folder where a file belongs: move it away"


@pytest.fixture
def project(small_copy) -> Project:
    return small_copy


def kept(path: Path) -> Path:
    """Return where DVC's cache holds a file."""
    digest = dvc_files.digest(path)
    return Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]


def flip(path: Path) -> None:
    """Change one bit, and nothing that can be seen from outside."""
    state = path.stat()
    text = bytearray(path.read_bytes())
    text[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(text)
    path.chmod(state.st_mode)  # DVC trusts what is read-only
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_what_is_as_recorded_is_left_alone(project):
    found = verify()
    assert found.findings == ()
    assert found.looked_at["cache"] > 5
    assert found.looked_at["artifact"] == 9


@pytest.mark.parametrize("path", [CHOSEN, PART])
@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_artifact_is_brought_back_from_the_cache(project, path, harm):
    before = path.read_bytes()
    flip(path) if harm == "flipped" else path.unlink()
    (found,) = verify().findings
    assert (found.kind, found.path, found.mended) == ("artifact", str(path), True)
    assert found.done == "brought back from DVC's cache"
    assert path.read_bytes() == before
    assert verify().findings == ()
    assert project.status() == {}


@pytest.mark.parametrize("path", [CHOSEN, PART])
def test_damaged_file_of_the_cache_is_replaced_by_the_artifact(project, path):
    place = kept(path)
    flip(place)
    removed, filled = verify().findings
    assert (removed.problem, removed.done, filled.problem) == ("damaged", "removed", "missing")
    assert place.read_bytes() == path.read_bytes()
    assert verify().findings == ()


@pytest.mark.parametrize("path", [CHOSEN, PART])
def test_what_is_damaged_in_both_places_is_set_aside_and_made_again(project, path):
    before, place = path.read_bytes(), kept(path)
    flip(place)
    flip(path)
    *_, found = verify().findings
    assert (found.kind, found.mended) == ("artifact", False)
    assert not path.exists()
    with importing_from(project.root):
        drive.run()
    assert path.read_bytes() == before
    assert verify().findings == ()


def test_list_of_a_folder_that_is_damaged_leaves_it_to_the_next_run(project):
    lock = dvc_files.parse_lock(Path("versions/v1/dvc.lock").read_text())
    (digest,) = [out["md5"] for out in lock["total@v1"]["outs"] if out["path"].endswith("all")]
    flip(Path(".dvc/cache/files/md5") / digest[:2] / digest[2:])
    assert [one.mended for one in verify().findings] == [True, False]


@pytest.mark.parametrize("path", [CHOSEN, PART])
def test_run_does_not_bring_back_what_the_cache_has_damaged(project, path, capsys):
    before = path.read_bytes()
    flip(kept(path))
    path.unlink()
    with importing_from(project.root):
        outcomes = {one.address: one.how for one in drive.run()}
    address = f"{path.parts[1]}@v1"
    assert outcomes[address] == "computed"
    assert f"DVC's cache had {path} damaged: it is made again" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert verify().findings == ()


def test_command_ends_with_status_one_where_something_is_left_to_do(project):
    flip(CHOSEN)
    done = run_child([sys.executable, "-c", CODE], project, PYTHONPATH=str(project.root))
    assert (done.returncode, json.loads(done.stdout)[0]["done"]) == (0, "brought back from DVC's cache")
    flip(kept(CHOSEN))
    flip(CHOSEN)
    done = run_child([sys.executable, "-c", CODE], project, PYTHONPATH=str(project.root))
    assert done.returncode == 1
    assert "1 is not mended yet" in done.stderr


CODE = """
import sys
from flows import cli, params
params.read = lambda **how: None  # the small project has settings of its own
sys.argv = ["tamis", "verify", "--json"]
cli.app()
"""


@pytest.mark.parametrize("left", [None, "", "\n", "stages: {}\n", "schema: '2.0'\nstages: [a]\n"])
def test_lock_file_that_a_kill_left_unreadable_is_brought_back_by_the_next_command(project, capsys, left):
    path = Path("versions/v1/dvc.lock")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2] + "\n  x: [" if left is None else left)
    (found,) = [one for one in verify().findings if one.kind == "lock"]
    assert found.path == str(path)
    assert [state for _, state, _ in dvc_state.standings(dvc_state.plan())] == ["fresh"] * 4
    assert path.read_text() == whole
    assert (
        "versions/v1/dvc.lock could not be read, as a kill leaves it; it is what git holds" in capsys.readouterr().err
    )


def test_lock_file_that_git_does_not_hold_is_filled_from_dvcs_run_cache(project, capsys):
    path = Path("versions/v1/dvc.lock")
    project.git("rm", "--quiet", "--cached", str(path))
    project.git("commit", "--quiet", "--message", "no lock")
    path.write_bytes(b"\0" * 500)
    with importing_from(project.root):
        assert [one.how for one in drive.run()] == ["restored"] * 4
    assert "could not be read, as a kill leaves it; what it recorded is looked up" in capsys.readouterr().err
    assert project.status() == {}


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_record_that_lacks_stages_which_git_has_is_told_of(project, harm):
    path = project.root / dvc_files.place_lock("v1")
    stages = dvc_files.parse_lock(path.read_text())
    if harm == "gone":
        path.unlink()
    else:
        first = next(iter(stages))
        path.write_text(yaml.safe_dump({"schema": "2.0", "stages": {first: stages[first]}}))
    (found,) = [one for one in verify().findings if one.kind == "lock"]
    assert (found.path, found.mended) == (dvc_files.place_lock("v1").as_posix(), False)
    assert "stages that git has, first " in found.done
    assert f"`git checkout {found.path}`" in found.done


def test_record_of_a_store_that_is_damaged_is_removed(project):
    (about,) = [*Path(".cache").glob("*/*/store.json")][:1] or [make_about()]
    about.write_text("{")
    (found,) = [one for one in verify().findings if one.kind == "store"]
    assert (found.path, found.mended, about.exists()) == (str(about), True, False)


def test_folder_in_place_of_the_record_of_a_store_is_named_and_left(project):
    about = make_about()
    about.mkdir()
    (found,) = [one for one in verify().findings if one.kind == "store"]
    assert (found.path, found.mended, about.is_dir()) == (str(about), False, True)
    assert FOLDER_THERE in found.done


def make_about() -> Path:
    path = Path(".cache/pairs") / ("0" * 32) / "store.json"
    path.parent.mkdir(parents=True)
    return path


def test_file_of_dvc_that_is_no_text_is_named_and_what_is_generated_is_written_again(project):
    copy, lock = Path("versions/v1/dvc.yaml"), Path("versions/v1/dvc.lock")
    whole = copy.read_text(), lock.read_text()
    copy.write_bytes(b"\xff\xfe")
    assert [state for _, state, _ in dvc_state.standings(dvc_state.plan())] == ["fresh"] * 4
    lock.write_bytes(b"\xff\xfe")
    (found,) = [one for one in verify().findings if one.kind == "lock"]
    assert "versions/v1/dvc.lock is no file of DVC, which is text in UTF-8" in found.done
    assert [state for _, state, _ in dvc_state.standings(dvc_state.plan())] == ["fresh"] * 4
    assert (copy.read_text(), lock.read_text()) == whole


@pytest.mark.parametrize("path", [CHOSEN, PART])
def test_folder_in_place_of_an_artifact_is_set_aside_and_the_others_are_looked_at(project, path):
    before = path.read_bytes()
    path.unlink()
    (path / "inside").mkdir(parents=True)
    flip(OTHER)
    found = {one.path: one for one in verify().findings}
    assert found.keys() == {str(path), str(OTHER)}
    assert found[str(path)].done == f"set aside as .cache/damaged/{path}; brought back from DVC's cache"
    assert path.read_bytes() == before
    assert verify().findings == ()


def test_file_in_place_of_an_artifact_that_is_a_folder_is_set_aside(project):
    before = PART.read_bytes()
    shutil.rmtree(PART.parent)
    PART.parent.write_text("no folder")
    done = [one.done for one in verify().findings]
    assert done[0] == f"set aside as .cache/damaged/{PART.parent}; brought back from DVC's cache"
    assert PART.read_bytes() == before


def test_artifact_that_cannot_be_brought_back_does_not_end_the_look(project, monkeypatch):
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    CHOSEN.unlink()
    flip(OTHER)
    monkeypatch.setattr(shutil, "copyfile", fail)
    found = verify().findings
    assert {one.path for one in found} == {str(CHOSEN), str(OTHER)}
    assert all("could not be written" in one.done and not one.mended for one in found)


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
def test_folder_in_place_of_a_file_of_dvc_is_named(project, name):
    path = Path("versions/v1") / name
    path.unlink()
    path.mkdir()
    with pytest.raises((dvc_state.StateError, ArtifactError), match=f"{path}{FOLDER_THERE}"):
        dvc_state.plan()
    if name == "dvc.lock":
        (found,) = [one for one in verify().findings if one.kind == "lock"]
        assert FOLDER_THERE in found.done


@pytest.mark.parametrize("path", ["data/approvals.jsonl", "data/erased.json", "versions/v1/decisions.json"])
@pytest.mark.parametrize("harm", ["garbage", "no text", "folder"])
def test_record_of_what_people_said_that_is_damaged_is_told_of(project, path, harm):
    place = Path(path)
    if harm == "folder":
        place.mkdir()
    else:
        place.write_bytes(b"{" if harm == "garbage" else b"\xff\xfe")
    (found,) = [one for one in verify().findings if one.kind in ("approvals", "erased", "decisions")]
    assert (found.path, found.mended) == (path, False)
    assert f"git checkout {path}" in found.done
    assert (FOLDER_THERE in found.done) == (harm == "folder")


@pytest.mark.parametrize("path", [CHOSEN, PART])
@pytest.mark.parametrize("damaged", [False, True])
def test_folder_in_place_of_a_file_in_the_cache_is_named_and_the_rest_is_looked_at(project, path, damaged):
    inside = kept(path).absolute()
    inside.unlink()
    inside.mkdir()
    if damaged:
        flip(path)
    flip(OTHER)
    found = {one.path: one for one in verify().findings}
    assert found.keys() == {str(inside), str(OTHER)} | ({str(path)} if damaged else set())
    assert FOLDER_THERE in found[str(inside)].done
    assert [one.mended for one in found.values()].count(False) == (2 if damaged else 1)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("path", [undoing.NOTES, erasing_places.CLEARING, aside.ASIDE / "examples@v1" / aside.PLACES])
def test_notes_of_what_a_kill_left_half_done_that_are_damaged_are_told_of(project, path, how):
    damage(path, how)
    (found,) = [one for one in verify().findings if one.kind == "notes"]
    assert (found.path, found.problem, found.mended) == (str(path), "damaged", False)
    assert "delete .cache/" in found.done


def test_list_of_erased_rows_that_is_gone_is_told_of_and_never_taken_for_an_empty_one(two_versions):
    assert [one for one in verify().findings if one.kind == "erased"] == []
    place = Path("data/erased.json")
    place.unlink()
    (found,) = [one for one in verify().findings if one.kind == "erased"]
    assert (found.problem, found.mended) == ("missing", False)
    assert "`git checkout data/erased.json` brings it back" in found.done
    damage(place, LINK)
    (found,) = [one for one in verify().findings if one.kind == "erased"]
    assert "data/erased.json is a link that leads nowhere where a file belongs" in found.done
    with pytest.raises(dvc_state.StateError, match=r"^data/erased\.json is a link that leads nowhere where a file bel"):
        list(dvc_state.standings(dvc_state.plan()))
