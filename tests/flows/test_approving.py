"""Sign-off on the real graph with the toy model: bound to digests, refused where a promise is broken, told of."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from worlds.commands import ask, tamis
from worlds.projects import Project, run_stages

from flows import stage
from flows.stage_calls import folder
from tasks.audit.audit import Check

BROKEN = Check("leakage", True, ["0f (held out)"], "No.")


@pytest.fixture
def project(two_versions) -> Project:
    """Two versions, as the current folder."""
    return two_versions


def test_an_approval_is_bound_to_what_was_made_and_tells_what_changed_since(project):
    assert [one["state"] for one in ask("approvals")] == ["not approved", "not approved"]
    done = tamis("approve", "v1", "--by", "Ann", "--note", "looks <b>good</b>")
    assert done.exit_code == 0, done.output
    assert "v1 is approved by Ann" in done.stderr
    (line,) = Path("data/approvals.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert (said["version"], said["by"], said["note"], said["despite"]) == ("v1", "Ann", "looks <b>good</b>", [])
    assert "data/selection/version=v1/subset.parquet" in said["artifacts"]
    first, second = ask("approvals")
    assert (first["state"], first["by"], second["state"]) == ("approved", "Ann", "not approved")
    ((row),) = json.loads(tamis("sql", 'SELECT version, "by" FROM approvals', "--json").stdout)
    assert row == {"version": "v1", "by": "Ann"}
    project.edit("params.yaml", "selector: delift", "selector: longest")
    assert [(one["state"], one["settings"]) for one in ask("approvals")] == [
        ("approved", "selection.selector"),  # what was approved is there; what params.yaml asks for is not
        ("not approved", "selection.selector"),
    ]
    run_stages("v1")
    first, second = ask("approvals")
    assert (first["state"], first["settings"], second["settings"]) == ("changed since", "", "selection.selector")
    assert "data/selection/version=v1/subset.parquet" in first["changed"].split(", ")
    assert "data/examples/version=v1/examples.parquet" not in first["changed"].split(", ")
    assert tamis("approve", "v1").exit_code == 0  # by git's user
    assert len(Path("data/approvals.jsonl").read_text().splitlines()) == 2
    assert ask("approvals")[0]["state"] == "approved"


def test_what_a_version_was_made_from_and_is_another_now_is_named_beside_its_approval(project):
    def list_inputs() -> list[str]:
        return [one["inputs"] for one in ask("approvals")]

    assert tamis("approve", "v1", "--by", "Ann").exit_code == 0
    assert list_inputs() == ["", ""]
    row = json.loads(tamis("sql", "SELECT min(id) AS id FROM subset WHERE version = 'v1'", "--json").stdout)[0]["id"]
    assert tamis("veto", row, "--because", "wrong", "--by", "Ann", "--version", "v1").exit_code == 0
    first, second = ask("approvals")
    assert (first["state"], first["inputs"]) == ("approved", "versions/v1/decisions.json")
    assert second["inputs"] == "versions/v2/decisions.json"
    assert tamis("release", row).exit_code == 0
    assert list_inputs() == ["", ""]
    raw = Path("data/raw/v2")
    (raw / "more.jsonl").write_text("{}\n")
    assert list_inputs() == ["", "data/raw/v2"]
    shutil.rmtree(raw)  # that it is elsewhere says nothing of what it holds
    assert list_inputs() == ["", ""]


def test_a_version_that_is_made_anew_with_equal_results_stays_approved(project):
    assert tamis("approve", "v1", "--by", "Ann").exit_code == 0
    path = folder("selection", "v1") / "run.json"
    before = path.read_text()
    for one in (path, folder("selection", "v1") / "subset.parquet"):
        one.unlink()
    shutil.rmtree(".dvc/cache")
    run_stages("v1")
    assert path.read_text() != before  # when it ran
    first, _ = ask("approvals")
    assert (first["state"], first["changed"]) == ("approved", "")


def test_a_damaged_lock_is_told_of_and_hides_no_other_version(project):
    assert tamis("approve", "v2", "--by", "Ann").exit_code == 0
    for content in (b"stages: [", b"stages: {a: []}", b"stages: {a: {outs: [{md5: 0}]}}", b"\xff"):
        Path("versions/v1/dvc.lock").write_bytes(content)
        first, second = ask("approvals")
        assert (first["state"], second["state"]) == ("not known", "approved"), content
        assert first["damaged"].startswith("versions/v1/dvc.lock cannot be read")
        assert "`tamis run` brings it back from git" in first["damaged"]


def test_what_is_stale_or_broken_is_not_approved(project):
    project.edit("params.yaml", "selector: delift", "selector: longest")
    done = tamis("approve", "v1", "--by", "Ann")
    assert done.exit_code == 1
    assert "`tamis run v1` first" in done.stderr
    project.edit("params.yaml", "selector: longest", "selector: delift")
    path = folder("gradients", "v1") / "gradients.json"
    assert path.exists()
    assert "'v9'" in tamis("approve", "v9").stderr
    done = tamis("approve", "v1", "--by", "Ann", "--despite", "leakages")
    assert done.exit_code == 1
    assert "'leakages' is no promise (did you mean 'leakage'?)" in done.stderr
    assert not Path("data/approvals.jsonl").exists()


def test_a_broken_promise_is_accepted_by_name_alone(project, monkeypatch):
    from tasks.audit import audit

    own = audit.check_version
    monkeypatch.setattr(audit, "check_version", lambda *args, **more: [*own(*args, **more), BROKEN])
    done = tamis("approve", "v1", "--by", "Ann")
    assert done.exit_code == 1
    assert "1 promises of v1 are broken (leakage: 0f (held out)); mend that, or give --despite leakage" in done.stderr
    assert tamis("approve", "v1", "--by", "Ann", "--despite", "leakage").exit_code == 0
    assert ask("approvals")[0]["despite"] == "leakage"


def test_a_promise_that_a_run_broke_is_accepted_though_its_audit_cannot_be_made(project, monkeypatch):
    from tasks.audit import audit

    path = Path("versions/v1/dvc.lock")
    lock = yaml.safe_load(path.read_text())
    assert lock["stages"].pop("audit@v1")
    path.write_text(yaml.safe_dump(lock))
    shutil.rmtree(".dvc/cache/runs")  # by which it would be restored
    assert tamis("approve", "v1", "--by", "Ann").stderr.startswith("error: audit@v1 is ")
    own, name = audit.run_checks, BROKEN.name
    monkeypatch.setattr(audit, "run_checks", lambda asked: [BROKEN if one.name == name else one for one in own(asked)])
    with pytest.raises(audit.AuditError, match="promises of v1 are broken: leakage"):
        stage.run("audit", "v1")
    assert "mend that, or give --despite leakage" in tamis("approve", "v1", "--by", "Ann").stderr
    assert tamis("approve", "v1", "--by", "Ann", "--despite", "leakage").exit_code == 0
    first, _ = ask("approvals")
    assert (first["state"], first["despite"]) == ("approved", "leakage")


def test_a_sound_version_is_not_said_to_be_accepted_despite_anything(project):
    assert tamis("approve", "v1", "--by", "Ann", "--despite", "budget").exit_code == 0
    assert json.loads(Path("data/approvals.jsonl").read_text())["despite"] == []


def test_blank_lines_among_approvals_say_nothing(project):
    assert tamis("approve", "v1", "--by", "Ann").exit_code == 0
    path = Path("data/approvals.jsonl")
    path.write_text(path.read_text() + "\n\n")
    assert ask("approvals")[0]["state"] == "approved"


@pytest.mark.parametrize("line", [b"\xff", b"[1]", b'{"version": "v1"}', b"{"])
def test_verify_names_a_line_that_is_no_approval(project, line):
    Path("data/approvals.jsonl").write_bytes(line + b"\n")
    done = tamis("verify")
    assert done.exit_code == 1
    assert "data/approvals.jsonl:1 is no approval" in done.stdout


def test_a_line_that_is_no_approval_is_named(project):
    Path("data/approvals.jsonl").write_text('{"version": "v1"}\n')
    done = tamis("approvals")
    assert done.exit_code == 1
    assert "data/approvals.jsonl:1 is no approval" in done.stderr
    assert tamis("approve", "v1", "--by", "Ann").exit_code == 1
    assert Path("data/approvals.jsonl").read_text() == '{"version": "v1"}\n'
    assert tamis("sql", "FROM subset LIMIT 1").exit_code == 0


def test_approvals_of_a_revision_are_asked_without_a_checkout(project):
    assert tamis("approve", "v1", "--by", "Ann").exit_code == 0
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "approved")
    sql = 'SELECT "by" FROM approvals'
    assert json.loads(tamis("sql", sql, "--revision", "HEAD", "--json").stdout) == [{"by": "Ann"}]
    assert json.loads(tamis("sql", sql, "--revision", "data-v1", "--json").stdout) == []


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_an_approval_does_not_stand_for_artifacts_that_are_damaged(project, harm):
    assert tamis("approve", "v1", "--by", "Ann").exit_code == 0
    path = folder("selection", "v1") / "subset.parquet"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10])
    first, _ = ask("approvals")
    assert first["state"] == "changed since"
    assert first["changed"] == path.as_posix()
