"""Continual tuning on the small graph: versions are run in order, committed, tagged and pushed, and never rewritten."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import dulwich.repo
import pytest
import yaml
from worlds.made_once import make_once
from worlds.projects import GRAPHS, KILLER, Project, enter_copy, importing_from, run_child, run_dvc, start_project

from flows import params
from flows.graph import dvc_state
from flows.graph.versions import (
    GIT,
    RecordError,
    push,
    refuse_rewritten,
    refuse_uncommitted,
    unrecorded,
    write,
)
from flows.unattended import continual
from tasks.settings import VersionSettings

VERSIONS = {"v1": {"raw": "raw/v1.txt", "previous": "base"}, "v2": {"raw": "raw/v2.txt", "previous": "v1"}}
CHILD = [sys.executable, "-c", "from flows.unattended import continual; continual.advance()"]


@pytest.fixture(scope="session")
def started(tmp_path_factory, apart) -> Project:
    """The small project with two versions, committed, before its first run; its remote is a folder beside it."""

    def make(home: Path) -> None:
        GRAPHS["small"].make(home / "small", "")
        project = start_project(home / "small")
        set_versions(project, VERSIONS)
        commit(project)

    return Project(make_once(tmp_path_factory, "continual", make)[0] / "small")


@pytest.fixture(scope="session")
def finished(started, server, tmp_path_factory) -> tuple[Project, list[str]]:
    """The same after both versions were recorded, and what `advance` returned."""

    def make(home: Path) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            return advance(enter_copy(started, home / "small", patch))

    home, made = make_once(tmp_path_factory, "finished", make)
    return Project(home / "small"), made


@pytest.fixture
def project(started, server, tmp_path, monkeypatch) -> Project:
    """A copy of the project before its first run, as the current folder."""
    return copied(started, tmp_path, monkeypatch)


@pytest.fixture
def recorded(finished, tmp_path, monkeypatch) -> Project:
    """A copy of the recorded project, as the current folder."""
    return copied(finished[0], tmp_path, monkeypatch)


def copied(made: Project, folder: Path, monkeypatch) -> Project:
    return enter_copy(made, folder / "small", monkeypatch)


def advance(project: Project) -> list[str]:
    with importing_from(project.root):
        return continual.advance()


def set_versions(project: Project, versions: dict) -> None:
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "versions": versions}, sort_keys=False))


def commit(project: Project) -> None:
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "by hand")


def remote_at(project: Project, url: str) -> None:
    """Name another place for the remote, and commit that."""
    project.edit(".dvc/config", "../.dvc-remote", url)
    project.git("commit", "--quiet", "--all", "--message", "another remote")


def tags(project: Project) -> list[str]:
    return project.git("tag", "--list").split()


def subjects(project: Project) -> list[str]:
    """Return the commits, oldest first."""
    return project.git("log", "--reverse", "--format=%s").splitlines()


def test_versions_are_recorded_in_order_each_with_a_commit_and_a_tag(finished):
    project, made = finished
    assert made == ["v1", "v2"]
    assert tags(project) == ["data-v1", "data-v2"]
    assert subjects(project)[-2:] == ["Record data version v1", "Record data version v2"]
    assert project.git("rev-parse", "data-v2^{commit}") == project.git("rev-parse", "HEAD")
    assert project.computed() == GRAPHS["small"].all("v1") + GRAPHS["small"].all("v2")
    assert project.status() == {}


def test_commit_holds_what_the_run_made_and_nothing_else(finished):
    project, _ = finished
    names = project.git("show", "--name-only", "--format=", "data-v2^{commit}").split()
    ignores = [f"data/{stage}/version=v2/.gitignore" for stage in GRAPHS["small"].stages]
    assert sorted(names) == sorted(["dvc.lock", "versions/v2/dvc.lock", "data/total/version=v2/total.json", *ignores])
    assert project.git("status", "--porcelain", "--", ":!.dvc-remote") == ""


def test_second_call_does_nothing(recorded, capsys):
    before = subjects(recorded), recorded.computed(), recorded.records()
    assert advance(recorded) == []
    assert capsys.readouterr().err == "nothing is new: every data version is recorded: v1, v2\n"
    assert (subjects(recorded), recorded.computed(), recorded.records()) == before


def test_new_version_alone_is_run_and_recorded(recorded):
    before = recorded.computed()
    (recorded.root / "raw/v3.txt").write_text("line 1\n")
    set_versions(recorded, {**VERSIONS, "v3": {"raw": "raw/v3.txt", "previous": "v2"}})
    commit(recorded)
    assert advance(recorded) == ["v3"]
    assert recorded.computed() == before + GRAPHS["small"].all("v3")
    assert tags(recorded)[-1] == "data-v3"


def test_version_comes_after_the_one_that_it_continues_from(project):
    later_first = {"v2": VERSIONS["v2"], "v3": {"raw": "raw/v1.txt", "previous": "v1"}, "v1": VERSIONS["v1"]}
    set_versions(project, later_first)
    assert unrecorded(params.read_versions()) == ["v1", "v2", "v3"]


def test_run_that_was_made_by_hand_is_recorded_without_computing(recorded):
    recorded.git("tag", "--delete", "data-v1", "data-v2")
    recorded.git("reset", "--quiet", "--mixed", "HEAD~2")
    before = recorded.computed()
    assert advance(recorded) == ["v1", "v2"]
    assert recorded.computed() == before
    assert subjects(recorded)[-2:] == ["by hand", "Record data version v1"]  # one commit holds both
    assert tags(recorded) == ["data-v1", "data-v2"]


def test_lock_file_that_a_kill_left_unfinished_is_mended(recorded):
    recorded.git("tag", "--delete", "data-v2")
    (recorded.root / ".dvc/tmp/rwlock").write_text("")
    assert advance(recorded) == ["v2"]


def test_killed_run_goes_on_where_it_was(project, server):
    path = f"{KILLER}:{project.root}"
    died = run_child(CHILD, project, KILL_AT="version=v2/chosen.txt:1", PYTHONPATH=path, PREFECT_API_URL=server)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert tags(project) == ["data-v1"]
    before = project.computed()
    assert advance(project) == ["v2"]
    assert project.computed()[len(before) :] == ["choose@v2", "total@v2"]
    assert tags(project) == ["data-v1", "data-v2"]


def test_call_that_was_interrupted_before_the_tag_leaves_only_the_tag_to_do(recorded, monkeypatch):
    recorded.git("tag", "--delete", "data-v2")
    before = subjects(recorded), recorded.computed()
    assert advance(recorded) == ["v2"]
    assert (subjects(recorded), recorded.computed()) == before
    assert recorded.git("rev-parse", "data-v2^{commit}") == recorded.git("rev-parse", "HEAD")


@pytest.mark.parametrize("staged", [False, True])
def test_tracked_file_with_changes_is_refused_before_anything_is_computed(project, staged):
    project.edit("small/choose.py", '"""Keep', '# a comment\n"""Keep')
    (project.root / "small/letters.py").rename(project.root / "small/other.py")
    if staged:
        project.git("add", ".")
    named = (
        r"^[23] files with changes that are not committed, first small/choose\.py, small/letters\.py.*; "
        r"the tag data-v1 could not name what made it: commit first, then run again$"
    )
    with pytest.raises(RecordError, match=named):
        advance(project)
    assert project.computed() == []
    assert tags(project) == []


def test_raw_data_that_git_does_not_know_are_refused_by_name(recorded):
    (recorded.root / "raw/v3.txt").write_text("line 1\n")
    set_versions(recorded, {**VERSIONS, "v3": {"raw": "raw/v3.txt", "previous": "v2"}})
    recorded.git("commit", "--quiet", "--all", "--message", "only params.yaml")
    with pytest.raises(RecordError, match=r"^1 file read by a stage, but not in git, first raw/v3\.txt; "):
        advance(recorded)
    (recorded.root / ".gitignore").write_text("raw/v3.txt\n__pycache__/\n.cache/\n")
    recorded.git("commit", "--quiet", "--all", "--message", "ignored")
    with pytest.raises(RecordError, match=r"first raw/v3\.txt; "):
        advance(recorded)


def test_raw_folder_that_git_knows_in_part_is_refused_by_file(recorded):
    (recorded.root / "raw/v3").mkdir()
    (recorded.root / "raw/v3/a.txt").write_text("line 1\n")
    set_versions(recorded, {**VERSIONS, "v3": {"raw": "raw/v3", "previous": "v2"}})
    commit(recorded)
    (recorded.root / "raw/v3/b.txt").write_text("line 2\n")
    with pytest.raises(RecordError, match=r"^1 file read by a stage, but not in git, first raw/v3/b\.txt; "):
        refuse_uncommitted("v3")


def test_gits_index_is_not_read_for_each_file_that_a_stage_reads(recorded, monkeypatch):
    read, index = [], dulwich.repo.Repo.open_index
    monkeypatch.setattr(dulwich.repo.Repo, "open_index", lambda self, **more: read.append(1) or index(self, **more))
    refuse_uncommitted("v2")
    assert len(read) <= 2 < len({path for one in dvc_state.plan(["v2"]) for path in one.inputs})


def test_raw_data_in_dvc_need_their_dvc_file_in_git(recorded):
    (recorded.root / "raw/v3.txt").write_text("line 1\n")
    assert run_dvc(recorded, "add", "raw/v3.txt").returncode == 0
    set_versions(recorded, {**VERSIONS, "v3": {"raw": "raw/v3.txt", "previous": "v2"}})
    recorded.git("commit", "--quiet", "--all", "--message", "only params.yaml")
    with pytest.raises(RecordError, match=r"^1 file read by a stage, but not in git, first raw/v3\.txt\.dvc; "):
        advance(recorded)
    commit(recorded)
    assert advance(recorded) == ["v3"]


def test_file_that_is_edited_while_a_version_runs_keeps_it_from_being_recorded(project, monkeypatch):
    def run_and_edit(*arguments, **options):
        project.edit("small/total.py", "import json", "import json  # edited")

    monkeypatch.setattr(continual.engines, "run", run_and_edit)
    monkeypatch.setattr(dvc_state, "standings", lambda versions: [])
    with pytest.raises(RecordError, match=r"^1 file with changes .*, first small/total\.py; "):
        advance(project)
    assert tags(project) == []


def test_version_that_is_not_up_to_date_is_not_recorded(project):
    with pytest.raises(RecordError, match=r"^v1 is not up to date any more, 4 stages \(letters@v1: .*; run ag"):
        write("v1")


def test_raw_data_changed_after_they_were_recorded_are_refused(recorded):
    recorded.edit("raw/v1.txt", "line 1\n", "line one\n")
    commit(recorded)
    named = (
        r"^v1 is recorded \(tag data-v1\), but its raw data, raw/v1\.txt, have changed since; bring them back and add "
        r"what is new as a version of its own \(previous: v1\), or record anew: `git tag --delete data-v1 data-v2`$"
    )
    with pytest.raises(RecordError, match=named):
        advance(recorded)
    recorded.git("tag", "--delete", "data-v1", "data-v2")
    assert advance(recorded) == ["v1", "v2"]


def test_a_recorded_version_of_which_rows_were_erased_is_recorded_anew(recorded):
    recorded.edit("raw/v1.txt", "line 1\n", "")
    (recorded.root / "data").mkdir(exist_ok=True)
    (recorded.root / "data/erased.json").write_text("[]")
    way = r"have changed since; rows were erased since \(data/erased\.json\): record what is left anew: `git tag --del"
    with pytest.raises(RecordError, match=way):
        refuse_rewritten(params.read_versions())


def test_raw_data_that_are_gone_are_refused(recorded):
    (recorded.root / "raw/v2.txt").unlink()
    with pytest.raises(RecordError, match=r"^v2 is recorded .* raw/v2\.txt, are gone; .* --delete data-v2`$"):
        refuse_rewritten(params.read_versions())


def test_raw_data_may_move(recorded):
    recorded.git("mv", "raw/v2.txt", "raw/moved.txt")
    set_versions(recorded, {**VERSIONS, "v2": {"raw": "raw/moved.txt", "previous": "v1"}})
    refuse_rewritten(params.read_versions())


def test_tag_that_records_no_run_is_refused(project):
    project.git("tag", "data-v1")
    with pytest.raises(RecordError, match=r"^the tag data-v1 records no stage of v1; `git tag --delete data-v1`"):
        refuse_rewritten(params.read_versions())


def test_artifacts_reach_the_remote_and_come_back_in_a_clone(project, tmp_path, capsys):
    set_versions(project, {"v2": {**VERSIONS["v2"], "previous": "base"}})
    remote_at(project, str(tmp_path / "remote"))
    advance(project)
    assert "pushed the artifacts of data-v2 to the DVC remote 'local'\n" in capsys.readouterr().err
    clone = Project(tmp_path / "clone")
    project.git("clone", "--quiet", "--branch", "data-v2", ".", str(clone.root))
    assert run_dvc(clone, "pull").returncode == 0
    assert clone.status() == {}
    chosen = "data/choose/version=v2/chosen.txt"
    assert (clone.root / chosen).read_bytes() == (project.root / chosen).read_bytes()
    assert run_dvc(clone, "fetch", "--all-tags").returncode == 0


def test_raw_data_in_dvc_reach_the_remote_and_come_back_in_a_clone(recorded, tmp_path):
    (recorded.root / "raw/v3.txt").write_text("line 1\n")
    assert dvc_state.add("raw/v3.txt") == ["raw/v3.txt.dvc", "raw/.gitignore"]
    set_versions(recorded, {**VERSIONS, "v3": {"raw": "raw/v3.txt", "previous": "v2"}})
    remote_at(recorded, str(tmp_path / "remote"))
    commit(recorded)
    advance(recorded)
    clone = Project(tmp_path / "clone")
    recorded.git("clone", "--quiet", "--branch", "data-v3", ".", str(clone.root))
    assert run_dvc(clone, "pull", "raw/v3.txt").returncode == 0
    assert (clone.root / "raw/v3.txt").read_text() == "line 1\n"


def test_raw_data_outside_of_the_project_are_recorded_by_their_digests(recorded, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("line 1\n")
    set_versions(recorded, {**VERSIONS, "v3": {"raw": str(outside), "previous": "v2"}})
    commit(recorded)
    assert advance(recorded) == ["v3"]
    outside.write_text("line one\n")
    with pytest.raises(RecordError, match=r"^v3 is recorded \(tag data-v3\), but its raw data, .*outside\.txt, have"):
        refuse_rewritten(params.read_versions())


def test_relative_remote_lies_where_dvc_looks_for_it(recorded):
    folders = [recorded.root / ".dvc-remote/files", recorded.root / ".dvc/cache/files"]
    held, cached = ({path.relative_to(folder) for path in folder.rglob("*")} for folder in folders)
    assert held
    assert held <= cached
    assert run_dvc(recorded, "push").stdout == "Everything is up to date.\n"


def test_failing_remote_is_said_and_tried_again_while_the_record_stands(recorded, tmp_path, capsys):
    (tmp_path / "remote").write_text("a file, and no folder")
    remote_at(recorded, str(tmp_path / "remote"))
    recorded.git("tag", "--delete", "data-v1", "data-v2")
    failing = r"^data-v1, data-v2 stand, but the DVC remote 'local' did not take their artifacts: .*; mend it: the next"
    with pytest.raises(RecordError, match=failing):
        advance(recorded)
    assert "not pushed: data-v1 stand, but the DVC remote" in capsys.readouterr().err
    assert tags(recorded) == ["data-v1", "data-v2"]
    with pytest.raises(RecordError, match=failing):
        advance(recorded)
    (tmp_path / "remote").unlink()
    capsys.readouterr()
    assert advance(recorded) == []
    assert "pushed the artifacts of data-v1, data-v2 to the DVC remote 'local'\n" in capsys.readouterr().err
    assert push() == ""


def test_project_without_a_remote_is_told_so_in_a_line(recorded, capsys):
    (recorded.root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    commit(recorded)
    recorded.git("tag", "--delete", "data-v2")
    advance(recorded)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "remote" in line]
    assert said == "no DVC remote is set: the artifacts of data-v2 stand in this clone only"


def test_project_without_git_is_refused(tmp_path, monkeypatch):
    GRAPHS["small"].make(tmp_path / "small", "")
    (tmp_path / "small/.dvc").mkdir()
    (tmp_path / "small/.dvc/config").touch()
    set_versions(Project(tmp_path / "small"), VERSIONS)
    monkeypatch.chdir(tmp_path / "small")
    with pytest.raises(ValueError, match=r"^git: .*small is not a git repository") as caught:
        continual.advance()
    assert caught.value.__notes__ == [GIT]
    (tmp_path / "small/.dvc/config").write_text("[core]\n    no_scm = true\n")
    refuse_rewritten(params.read_versions())
    with pytest.raises(ValueError, match="Only supported for Git"):
        continual.advance()


def test_project_without_a_commit_is_refused(tmp_path, monkeypatch):
    GRAPHS["small"].make(tmp_path / "small", "")
    project = start_project(tmp_path / "small")
    set_versions(project, VERSIONS)
    monkeypatch.chdir(project.root)
    shutil.rmtree(project.root / ".git")
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=project.root, env={**os.environ})
    with pytest.raises(RecordError, match=r"^nothing is committed here; data versions are recorded as git tags: "):
        continual.advance()


def test_name_that_git_does_not_take_is_refused(project):
    set_versions(project, {"v 1": VERSIONS["v1"]})
    with pytest.raises(params.ParamsError, match=r"^versions names 'v 1'; a version's name has letters, digits, and"):
        continual.advance()
    with pytest.raises(RecordError, match=r"^the version's name 'v 1' cannot be part of a git tag; name it as"):
        unrecorded({"v 1": VersionSettings(**VERSIONS["v1"])})
