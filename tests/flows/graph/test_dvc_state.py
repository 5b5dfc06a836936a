"""The contract with DVC's Python interface: what flows/graph/dvc_state.py uses, on the small graph."""

import contextlib
import json
import shutil
import sys

import pytest
from dvc.stage.serialize import to_lockfile
from worlds.projects import GRAPHS, Project, drive_by_dvc, run_dvc

from flows.graph import dvc_files, dvc_state, revisions
from flows.stage import InputsChanged


@pytest.fixture
def project(small_copy) -> Project:
    return small_copy


@pytest.fixture
def tables(project) -> Project:
    """The project with the scores in a file that is called a table, committed."""
    for path in ("dvc.yaml", "small/score.py"):
        text = (project.root / path).read_text()
        (project.root / path).write_text(text.replace("score.txt", "score.parquet"))
    drive_by_dvc(project)
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "made")
    return project


def add_version(project: Project) -> None:
    project.edit("params.yaml", "v1: {raw: raw/v1.txt}", "v1: {raw: raw/v1.txt}\n  v2: {raw: raw/v2.txt}")


def test_plan_is_dvcs_graph_in_order(project):
    add_version(project)
    planned = dvc_state.plan()
    place = {one.address: order for order, one in enumerate(planned)}
    assert len(planned) == 8
    assert all(place[up] < place[one.address] for one in planned for up in one.upstream)
    (score,) = [one for one in planned if one.address == "score@v1"]
    assert score.command == "python -m small.stage score v1"
    assert score.upstream == ("letters@v1",)
    assert score.outputs == ("data/score/version=v1/score.txt", "data/score/version=v1/run.json")


def test_plan_is_version_after_version(project):
    add_version(project)
    assert [one.address.partition("@")[2] for one in dvc_state.plan()] == ["v1"] * 4 + ["v2"] * 4


def test_plan_of_a_version_holds_its_stages_only(project):
    add_version(project)
    assert [one.address for one in dvc_state.plan(["v2"])] == ["letters@v2", "score@v2", "choose@v2", "total@v2"]


@pytest.fixture
def continued(project) -> Project:
    """The project with a second version whose totals read what the first one chose, before its first run."""
    add_version(project)
    old = '"data/choose/version=${key}/chosen.txt", small/total.py'
    project.edit("dvc.yaml", old, old.replace("${key}", "v1"))
    dvc_files.write_copies()
    return project


def test_what_a_version_reads_of_another_one_is_taken_as_recorded(continued):
    planned = dvc_state.plan(["v2"])
    assert [one.address for one in planned] == ["letters@v2", "score@v2", "choose@v2", "total@v2"]
    continued.edit("params.yaml", "rows: 5", "rows: 6")
    planned = dvc_state.plan(["v2"])
    assert {one.version for one in planned} == {"v2"}
    assert list(dvc_state.list_outdated(planned)) == ["v1"]


@pytest.mark.parametrize("harm", ["deleted", "edited", "never made"])
def test_version_whose_artifacts_are_read_and_not_as_recorded_is_planned_too(continued, harm):
    chosen = continued.root / "data/choose/version=v1/chosen.txt"
    if harm == "edited":
        chosen.write_text("by hand")
    else:
        chosen.unlink()
    if harm == "never made":
        (continued.root / "versions/v1/dvc.lock").unlink()
    planned = [one.address for one in dvc_state.plan(["v2"])]
    assert planned == [f"{stage}@{version}" for version in ("v1", "v2") for stage in GRAPHS["small"].stages]


def test_unknown_version_is_refused(project):
    with pytest.raises(dvc_state.StateError, match=r"there is no data version 'v7'; params\.yaml has v1"):
        dvc_state.plan(["v7"])


def test_fresh_stage_is_left_alone(project):
    assert dvc_state.probe("choose@v1") == dvc_state.Probe("fresh", {})


def test_changed_parameter_is_never_answered_with_the_outputs_of_the_old_one(project):
    """DVC's restore() takes the outputs of dvc.lock for those of the inputs that a stage object holds."""
    project.edit("params.yaml", "rows: 5", "rows: 6")
    found = dvc_state.probe("choose@v1")
    assert found.state == "stale"
    assert found.inputs["choose"] == {"rows": 6}
    with dvc_state.claim("choose@v1"):
        assert list((project.root / "data/choose/version=v1").glob("[!.]*")) == []
    project.edit("params.yaml", "rows: 6", "rows: 7")
    assert dvc_state.probe("choose@v1").state == "stale"
    project.edit("params.yaml", "rows: 7", "rows: 6")
    assert dvc_state.probe("choose@v1").state == "stale"
    project.edit("params.yaml", "rows: 6", "rows: 5")
    (project.root / "data/choose/version=v1/chosen.txt").unlink()
    assert dvc_state.probe("choose@v1").state == "restored"
    assert project.status() == {}


def artifacts(project: Project, stage: str) -> dict[str, bytes]:
    """Return the files of a stage's artifacts, by path."""
    files = [path for path in (project.root / f"data/{stage}/version=v1").rglob("*") if path.is_file()]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in files if path.name != ".gitignore"}


def test_artifacts_of_a_stage_that_fails_stay_and_are_fresh_when_the_parameter_is_changed_back(project):
    before = artifacts(project, "total")
    assert {path.rpartition("/")[2] for path in before} == {"total.txt", "run.json", "total.json"}
    project.edit("params.yaml", "factor: 2", "factor: 3")
    assert dvc_state.probe("total@v1").state == "stale"
    assert artifacts(project, "total") == before

    def fail() -> None:
        with dvc_state.claim("total@v1"):
            assert artifacts(project, "total") == {}
            (project.root / "data/total/version=v1/all").mkdir()
            (project.root / "data/total/version=v1/all/half.txt").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert artifacts(project, "total") == before
    assert not (project.root / ".cache/aside/total@v1").exists()
    project.edit("params.yaml", "factor: 3", "factor: 2")
    assert dvc_state.probe("total@v1").state == "fresh"


def test_artifacts_that_a_kill_left_aside_are_put_back_by_the_next_probe(project):
    before = artifacts(project, "total")
    held = dvc_state.claim("total@v1")
    held.__enter__()
    kept = [path for path in (project.root / ".cache/aside/total@v1").iterdir() if path.name != "places.json"]
    shutil.copytree(project.root / ".cache/aside", project.root / ".cache/killed")
    held.__exit__(None, None, None)
    shutil.rmtree(project.root / "data/total/version=v1")
    (project.root / ".cache/killed").rename(project.root / ".cache/aside")
    (project.root / "data/total/version=v1").mkdir()
    (project.root / "data/total/version=v1/total.json").write_text("half")
    assert len(kept) == 3
    assert dvc_state.probe("total@v1").state == "fresh"
    assert artifacts(project, "total") == before
    assert not (project.root / ".cache/aside/total@v1").exists()


def test_what_a_kill_left_aside_does_not_replace_artifacts_that_were_made_since(project):
    (project.root / ".cache/aside/total@v1").mkdir(parents=True)
    (project.root / ".cache/aside/total@v1/0").write_text("old")
    place = project.root / "data/total/version=v1/total.json"
    (project.root / ".cache/aside/total@v1/places.json").write_text(json.dumps([str(place)]))
    before = artifacts(project, "total")
    assert dvc_state.probe("total@v1").state == "fresh"
    assert artifacts(project, "total") == before
    assert not (project.root / ".cache/aside/total@v1").exists()


def test_artifacts_of_inputs_that_moved_are_replaced_by_the_last_good_ones(project):
    before = artifacts(project, "choose")
    project.edit("params.yaml", "rows: 5", "rows: 6")

    def make_of_others() -> None:
        inputs = dvc_state.probe("choose@v1").inputs
        with dvc_state.claim("choose@v1"):
            for path in before:
                (project.root / path).write_text("of other inputs")
            project.edit("params.yaml", "rows: 6", "rows: 7")
            dvc_state.record("choose@v1", inputs)

    with pytest.raises(InputsChanged):
        make_of_others()
    assert artifacts(project, "choose") == before


def test_missing_input_is_named_before_anything_is_removed(project):
    shutil.rmtree(project.root / "data/score")
    with pytest.raises(dvc_state.NotReady, match=r"choose@v1 cannot run: 1 of 3 inputs are missing, first data/score/"):
        dvc_state.probe("choose@v1")
    assert (project.root / "data/choose/version=v1/chosen.txt").exists()


def test_inputs_that_move_between_probe_and_record_are_not_recorded(project):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    inputs = dvc_state.probe("choose@v1").inputs
    project.edit("params.yaml", "rows: 6", "rows: 7")
    before = (project.root / "versions/v1/dvc.lock").read_text()
    with pytest.raises(InputsChanged, match=r"1 of 3 inputs of choose@v1 changed while it ran: choose"):
        dvc_state.record("choose@v1", inputs)
    assert (project.root / "versions/v1/dvc.lock").read_text() == before


def test_output_that_was_not_written_is_named(project):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    inputs = dvc_state.probe("choose@v1").inputs
    named = r"choose@v1 ran but did not write data/choose/version=v1/chosen\.txt"
    with pytest.raises(dvc_state.StateError, match=named), dvc_state.claim("choose@v1"):
        dvc_state.record("choose@v1", inputs)


def test_references_hold_path_digest_and_size(project):
    (text, _) = dvc_state.files("choose@v1")
    path = project.root / "data/choose/version=v1/chosen.txt"
    assert (text.path, text.size) == ("data/choose/version=v1/chosen.txt", path.stat().st_size)
    assert text.digest.startswith("md5:")


def test_dvc_keeps_off_a_claimed_stage(project):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    with dvc_state.claim("choose@v1"):
        done = run_dvc(project, "repro")
    assert done.returncode != 0
    assert "busy" in done.stdout + done.stderr
    assert drive_by_dvc(project) == ["choose@v1", "total@v1"]


@contextlib.contextmanager
def claimed_by_another(address: str, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["another", "command"])
        held = dvc_state.claim(address)
        held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def test_stage_that_another_process_holds_is_busy(project, monkeypatch):
    project.edit("params.yaml", "rows: 5", "rows: 6")
    with claimed_by_another("choose@v1", monkeypatch):
        with pytest.raises(dvc_state.Busy, match="another command"):
            dvc_state.probe("choose@v1")
        assert dvc_state.standings(dvc_state.plan())[2][1] == "running"
    assert dvc_state.probe("choose@v1").state == "stale"


def test_standings_say_what_and_why(project):
    assert [(state, why) for _, state, why in dvc_state.standings(dvc_state.plan())] == [("fresh", "")] * 4
    project.edit("params.yaml", "rows: 5", "rows: 6")
    assert dvc_state.standings(dvc_state.plan())[2:] == [
        ("choose@v1", "stale", "changed deps: choose modified"),
        ("total@v1", "waits", "for choose@v1"),
    ]
    (project.root / "data/choose/version=v1/chosen.txt").unlink()
    _, *missing = dvc_state.standings(dvc_state.plan())[2]
    assert missing == ["missing", "1 of 2 artifacts: data/choose/version=v1/chosen.txt"]


def test_a_stage_that_the_lock_file_lost_is_told_of_and_no_input_is_blamed(project):
    path = dvc_files.place_lock("v1")
    stages = dvc_files.parse_lock(path.read_text())
    del stages["choose@v1"]
    path.unlink()
    dvc_files.record(path, stages)
    assert dvc_state.standings(dvc_state.plan())[2:] == [
        ("choose@v1", "stale", "dvc.lock does not record it; `tamis verify` says whether git does"),
        ("total@v1", "waits", "for choose@v1"),
    ]


def test_tables_of_a_revision_stand_in_the_cache_and_are_laid_out_as_in_a_project(tables):
    path = "data/score/version=v1/score.parquet"
    old = (tables.root / path).read_bytes()
    tables.edit("params.yaml", "scale: 3", "scale: 4")
    drive_by_dvc(tables)
    assert (tables.root / path).read_bytes() != old
    with revisions.at_revision("HEAD") as root:
        assert [str(found.relative_to(root)) for found in root.rglob("*.parquet")] == [path]
        assert (root / path).read_bytes() == old
    assert not root.exists()
    assert tables.status() == {}


def test_table_of_a_revision_that_the_cache_lacks_is_named(tables):
    with revisions.at_revision("HEAD") as root:
        (held,) = (found.resolve() for found in root.rglob("*.parquet"))
    held.unlink()
    named = r"1 of 1 tables of HEAD are not in the local cache, first data/score/.*score\.parquet; .*`dvc fetch -T`"
    with pytest.raises(dvc_state.StateError, match=named), revisions.at_revision("HEAD"):
        pass


def test_revision_that_cannot_be_read_is_refused_by_name(tables):
    none = r"'HEAD~1' holds no tables; name a revision whose dvc\.lock files rec"
    for revision, told in (("nowhere", "nowhere"), ("HEAD~1", none)):
        with pytest.raises(dvc_state.StateError, match=told), revisions.at_revision(revision):
            pass


def test_graph_that_dvc_cannot_read_is_an_error_of_ours(project):
    project.edit("dvc.yaml", "params: [total]", "params: {total: 1}")
    with pytest.raises(dvc_state.StateError, match="DVC: "):
        dvc_state.standings(dvc_state.plan())


@pytest.mark.parametrize("fault", ["nowhere.jsonl", ".dvcignore"])
def test_raw_data_that_dvc_cannot_digest_is_an_error_of_ours(project, fault):
    raw = project.root / "raw/folder"
    raw.mkdir()
    (raw / fault).symlink_to("/nowhere") if "nowhere" in fault else (raw / fault).touch()
    project.edit("params.yaml", "raw/v1.txt", "raw/folder")
    said = f"DVC cannot read what a stage depends on: .*{raw}.*; mend it, or name other versions"
    with pytest.raises(dvc_state.StateError, match=said):
        dvc_state.standings(dvc_state.plan())


def test_lock_file_is_written_byte_for_byte_as_dvc_writes_it(project, monkeypatch):
    project.edit(
        "params.yaml", "choose: {rows: 5}", "choose: {rows: 5, none: null, rate: 1.0e-05, text: 'a: b', on: 'yes'}"
    )
    project.edit(
        "dvc.yaml", "params: [choose]", "params: [choose.rows, choose.none, choose.rate, choose.text, choose.on]"
    )
    dvc_files.write_copies()
    lock = project.root / dvc_files.place_lock("v1")
    written = {}
    for how in ("theirs", "ours"):
        lock.unlink()
        with dvc_state.opened() as repo:
            for stage in repo.stage.load_all(str(dvc_files.place("v1"))):
                stage.save()
                if how == "theirs":
                    stage.dump(update_pipeline=False)
                else:
                    dvc_files.record(lock, to_lockfile(stage))
        written[how] = lock.read_bytes()
    assert b"rate: 1e-05" in written["theirs"] or b"rate: 1.0e-05" in written["theirs"]
    assert written["ours"] == written["theirs"]
