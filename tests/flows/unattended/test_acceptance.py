"""A version that does not pass is kept, marked and reported, and nothing continues from it."""

import http.server
import json
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from worlds.projects import Project, enter, importing_from

from flows import drive, params
from flows.approving import list_artifacts
from flows.graph import dvc_files, dvc_state, versions
from flows.unattended import acceptance, continual, reports
from flows.unattended.acceptance import RefusedError
from tasks.approvals import Approval, add_approval

CHAIN = {
    "v1": {"raw": "raw/v1.txt", "previous": "base"},
    "v2": {"raw": "raw/v2.txt", "previous": "v1"},
    "v3": {"raw": "raw/v1.txt", "previous": "v2"},
    "v4": {"raw": "raw/v2.txt", "previous": "v1"},
}
CLOSED = {"name": "loss", "passed": False, "told": "loss is above", "figures": {}}


@pytest.fixture
def project(small, monkeypatch) -> Project:
    """The small project with four versions, of which two continue from the first and one from the second."""
    enter(small, monkeypatch)
    set_params(small, versions=CHAIN)
    return small


def set_params(project: Project, **sections) -> None:
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}, sort_keys=False))
    project.git("commit", "--quiet", "--all", "--message", "settings")


def advance(project: Project, **asked) -> list[str]:
    with importing_from(project.root):
        return continual.advance(engine="local", **asked)


def refuse(monkeypatch, *names: str) -> None:
    """Let some versions not pass, and note that in the place for it."""

    def decide(version: str) -> dict:
        gates = [CLOSED] if version in names else []
        acceptance.place(version).write_text(json.dumps(gates))
        return {"version": version, "accepted": not gates, "gates": gates}

    monkeypatch.setattr(acceptance, "decide", decide)


def tags(project: Project) -> list[str]:
    return project.git("tag", "--list").split()


def test_refused_version_is_kept_and_marked_and_the_others_are_recorded(project, monkeypatch, capsys):
    refuse(monkeypatch, "v2")
    outcomes = []
    with pytest.raises(RefusedError, match=r"^v2 is refused: loss is above$"):
        advance(project, tell=outcomes.append)
    assert tags(project) == ["data-v1", "data-v4", "refused-v2"]
    assert [(one["version"], one["state"]) for one in outcomes] == [
        ("v1", "recorded"),
        ("v2", "refused"),
        ("v4", "recorded"),
    ]
    kept = project.git("show", "--name-only", "--format=%s", "refused-v2^{commit}").split("\n")
    assert kept[0] == "Keep refused data version v2"
    assert {"versions/v2/acceptance.json", "versions/v2/dvc.lock"} <= set(kept)
    assert project.git("status", "--porcelain", "--", ":!.dvc-remote") == ""
    said = capsys.readouterr().err
    assert "v2 is refused: loss is above; it is kept under the tag refused-v2\n" in said
    assert "v3 is not run: it continues from v2, which was not accepted; set versions.v3.previous to" in said
    assert said.endswith("2 troubles are told above; the first ends this call\n")


def test_what_a_refused_version_made_reaches_the_remote(project, monkeypatch, capsys):
    refuse(monkeypatch, "v1")
    with pytest.raises(RefusedError):
        advance(project)
    assert "pushed the artifacts of refused-v1 to the DVC remote" in capsys.readouterr().err
    outs = dvc_files.list_outs(project.git("show", "refused-v1:versions/v1/dvc.lock"))
    held = [digest for path, digest in outs.items() if not path.endswith("total.json")]  # which git holds
    assert len(held) > 4
    for digest in held:
        assert dvc_files.place_object(project.root / ".dvc-remote/files/md5", digest).exists()
    assert versions.push() == ""


def test_next_call_runs_no_refused_version_again_nor_what_continues_from_it(project, monkeypatch, capsys):
    refuse(monkeypatch, "v2")
    with pytest.raises(RefusedError):
        advance(project)
    before = project.computed()
    with pytest.raises(RefusedError, match="v3 is not run: it continues from v2"):
        advance(project)
    assert project.computed() == before
    set_params(project, versions={name: one for name, one in CHAIN.items() if name != "v3"})
    assert advance(project) == []
    assert "every data version is recorded, or refused (v2): v1, v2, v4" in capsys.readouterr().err


def test_person_can_take_a_refused_version_nevertheless(project, monkeypatch):
    refuse(monkeypatch, "v2")
    with pytest.raises(RefusedError):
        advance(project)
    project.git("tag", "data-v2", "refused-v2^{}")
    assert versions.list_refused() == set()
    assert advance(project) == ["v3"]


def test_version_whose_run_fails_is_reported_and_tried_again(project, capsys):
    (project.root / "raw/v2.txt").write_text("")
    project.git("commit", "--quiet", "--all", "--message", "empty")
    outcomes = []
    with pytest.raises(ValueError, match="must not be zero"):
        advance(project, tell=outcomes.append)
    assert tags(project) == ["data-v1"]
    assert [(one["version"], one["state"]) for one in outcomes] == [
        ("v1", "recorded"),
        ("v2", "failed"),
        ("v4", "failed"),
    ]
    assert outcomes[1]["why"]
    assert "v3 is not run: it continues from v2, which failed; set versions.v3.previous to one that is recorded" in (
        capsys.readouterr().err
    )
    (project.root / "raw/v2.txt").write_text("b a\n")
    project.git("commit", "--quiet", "--all", "--message", "whole")
    assert advance(project) == ["v2", "v3", "v4"]


def test_gates_are_asked_once_and_before_the_stage_that_reads_held_out_rows(project, monkeypatch):
    asked = []
    monkeypatch.setattr(acceptance, "decide", lambda version: asked.append((version, list(done))) or PASSED)
    done = []

    def run(version, before):
        for address in (f"finetuning@{version}", f"evaluation@{version}"):
            if address in before:
                before[address]()
            done.append(address)

    monkeypatch.setattr(continual, "write", lambda version, accepted: None)
    outcome, error = continual._try("v1", run)
    assert (asked, outcome["state"], error) == ([("v1", ["finetuning@v1"])], "recorded", None)
    assert done == ["finetuning@v1", "evaluation@v1"]


PASSED = {"version": "v1", "accepted": True, "gates": []}


def test_what_comes_before_a_stage_is_done_before_it_is_looked_at(project):
    seen = []
    with importing_from(project.root):
        drive.run(["v1"], before={"choose@v1": lambda: seen.append(project.computed())})
    assert seen == [["letters@v1", "score@v1"]]


def test_without_gates_nothing_is_measured_and_nothing_written(project):
    assert acceptance.decide("v1") == PASSED
    assert not acceptance.place("v1").exists()


def test_settings_are_checked_whatever_else_the_file_holds(project):
    set_params(project, acceptance={"loss": -1})
    with pytest.raises(params.ParamsError, match=r"acceptance\.loss"):
        acceptance.read_settings()


class Listener(http.server.BaseHTTPRequestHandler):
    """A server that keeps what is posted to it."""

    heard: ClassVar[list[dict]] = []
    answer = 200

    def do_POST(self):
        self.heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def listener():
    Listener.heard.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_command_and_url_are_told_the_same(tmp_path, listener):
    outcome = {"version": "v2", "state": "refused", "why": "so", "gates": []}
    keep = tmp_path / "keep.py"
    keep.write_text(f"import sys; open({str(tmp_path / 'heard.json')!r}, 'w').write(sys.stdin.read())")
    reports.send(f"{sys.executable} {keep}", outcome)
    reports.send(listener, outcome)
    assert [json.loads((tmp_path / "heard.json").read_text()), *Listener.heard] == [outcome, outcome]


@pytest.mark.parametrize(
    "report", ["false", "/no/such/command", "http://127.0.0.1:9", "http://[password", "'unclosed", "URL"]
)
def test_report_that_nobody_takes_is_said_and_fails_nothing(report, listener, monkeypatch, capsys):
    monkeypatch.setattr(Listener, "answer", 500)
    address = listener.replace("//", "//us:password@")
    reports.send(report.replace("URL", address).replace("false", "false password"), {"version": "v2"})
    said = capsys.readouterr().err
    assert said.startswith("acceptance.report did not take what became of v2: ")
    assert "password" not in said


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ("false password", "false ended with status 1"),
        ("/no/such/hook password", "/no/such/hook cannot be started: No such file or directory; name a program"),
        ("sleep 60", "sleep did not end within 1 s"),
    ],
)
def test_a_command_that_does_not_take_a_report_is_named_with_what_it_did(report, why, monkeypatch, capsys):
    monkeypatch.setattr(reports, "PATIENCE", 1)
    reports.send(report, {"version": "v2"})
    assert capsys.readouterr().err.startswith(f"acceptance.report did not take what became of v2: {why}")


def test_a_blank_report_is_none(capsys):
    for blank in (None, "", "  "):
        reports.send(blank, {"version": "v2"})
    assert capsys.readouterr().err == ""


def test_every_version_is_reported(project, monkeypatch):
    heard: list[tuple[str | None, str]] = []
    refuse(monkeypatch, "v4")
    monkeypatch.setattr(reports, "send", lambda report, outcome: heard.append((report, outcome["state"])))
    set_params(project, acceptance={"report": "mail-us"})
    with pytest.raises(RefusedError):
        advance(project)
    assert heard == [("mail-us", "recorded")] * 3 + [("mail-us", "refused")]


def test_branch_must_be_checked_out(project):
    project.git("checkout", "--quiet", "--detach")
    before = project.git("log", "--format=%h")
    with pytest.raises(versions.RecordError, match=r"^no branch is checked out .*; `git switch main`, or another"):
        advance(project)
    assert (project.git("log", "--format=%h"), project.computed()) == (before, [])


def test_hook_of_git_that_refuses_is_told_in_a_line_and_the_next_run_goes_on(project):
    hook = Path(".git/hooks/pre-commit")
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(versions.RecordError, match=r"^git did not commit \(.*\); `git commit` here shows more"):
        advance(project)
    assert tags(project) == []
    hook.unlink()
    before = project.computed()
    assert advance(project)[0] == "v1"
    assert project.computed()[: len(before)] == before


def test_signature_that_git_cannot_make_is_told_in_a_line(project):
    for name in ("commit.gpgsign", "tag.gpgsign"):
        project.git("config", name, "true")
    project.git("config", "user.signingkey", "nobody")
    with pytest.raises(versions.RecordError, match=r"^git did not (commit|tag) \(.*\); `git (commit|tag)` here shows"):
        advance(project)
    for name in ("commit.gpgsign", "tag.gpgsign"):
        project.git("config", name, "false")
    assert advance(project) == list(CHAIN)


@pytest.mark.parametrize("error", [dvc_state.GitError("who are you?"), OSError(28, "No space left on device")])
def test_what_git_refuses_is_told_in_a_line(error):
    told = r"^git did not commit \(.*(who are you|No space left)"
    with pytest.raises(versions.RecordError, match=told), versions._telling("commit", versions.MADE):
        raise error


def test_a_version_waits_until_somebody_has_approved_the_one_before(project, monkeypatch, capsys):
    refuse(monkeypatch)
    set_params(project, acceptance={"approval": True})
    assert advance(project) == ["v1"]
    said = capsys.readouterr().err
    for version in ("v2", "v4"):
        assert f"{version} waits: v1 is not approved; look at it and `tamis approve v1`\n" in said
    assert "v3 waits: it continues from v2, which waits\n" in said
    assert tags(project) == ["data-v1"]
    approved = Approval("v1", "Ann", "2026-01-01T00:00:00+00:00", "", (), list_artifacts("v1"))
    add_approval(Path("."), approved)
    project.git("add", "data/approvals.jsonl")
    project.git("commit", "--quiet", "--message", "approved")
    assert advance(project) == ["v2", "v4"]
    assert "v3 waits: v2 is not approved" in capsys.readouterr().err


def test_an_approval_of_other_artifacts_does_not_count(project, monkeypatch, capsys):
    refuse(monkeypatch)
    set_params(project, acceptance={"approval": True})
    assert advance(project) == ["v1"]
    other = dict.fromkeys(list_artifacts("v1"), "0" * 32)
    add_approval(Path("."), Approval("v1", "Ann", "2026-01-01T00:00:00+00:00", "", (), other))
    assert advance(project) == []
    assert f"v2 waits: v1 is changed since ({len(other)} artifacts are other ones since)" in capsys.readouterr().err
