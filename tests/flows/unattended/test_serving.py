"""Serving: a schedule on a real Prefect server starts runs that record new data versions."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from worlds.projects import ROOT, Project, enter, environment, importing_from

from flows.unattended import acceptance
from flows.unattended import serving as schedule

SERVE = [sys.executable, "-c", "import sys; from flows.unattended import serving; serving.serve(int(sys.argv[1]))"]


@pytest.fixture(scope="module")
def scheduler(apart) -> Iterator[str]:
    """The address of a Prefect server that keeps schedules, which the one of the test harness does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    home = Path(os.environ["PREFECT_HOME"]) / "scheduler"
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=environment(PREFECT_HOME=str(home)), stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}/api"
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            assert wait_until(answers, 120), log.read_text()
            yield url
    finally:
        process.terminate()
        process.wait(30)


def answers() -> bool:
    with get_client(sync_client=True) as client:
        return client.api_healthcheck() is None


def wait_until(holds: Callable[[], object], seconds: float) -> bool:
    """Return whether something comes to hold in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def project(small, monkeypatch) -> Project:
    """The small project with one version that continues from nothing, as the current folder."""
    path = small.root / "params.yaml"
    versions = {"v1": {"raw": "raw/v1.txt", "previous": "base"}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "versions": versions}, sort_keys=False))
    small.git("commit", "--quiet", "--all", "--message", "versions")
    monkeypatch.chdir(small.root)
    return small


@pytest.fixture
def serving(project, scheduler, tmp_path) -> Iterator[subprocess.Popen]:
    """A process that serves the project every 3 seconds; what it says stands in said.txt."""
    more = {"PREFECT_API_URL": scheduler, "PREFECT_RUNNER_POLL_FREQUENCY": "1", "PYTHONPATH": str(project.root)}
    with open(tmp_path / "said.txt", "w") as out:
        said = {"stdout": out, "stderr": out, "start_new_session": True}
        process = subprocess.Popen([*SERVE, "3"], cwd=project.root, env=environment(**more), **said)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def runs_by_state() -> dict[str, int]:
    """Return how many of the schedule's runs are in each state."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_task_run_id={"is_null_": True}))
    names = [run.state.name for run in found if run.state]
    return {name: names.count(name) for name in names}


def test_scheduled_runs_record_new_versions_until_they_are_stopped(serving, project, tmp_path):
    said = tmp_path / "said.txt"
    assert wait_until(lambda: runs_by_state().get("Completed"), 90), said.read_text()
    assert project.git("tag", "--list").split() == ["data-v1"]
    project.edit("params.yaml", "score:", "  v2: {raw: raw/v2.txt, previous: v1}\nscore:")
    project.git("commit", "--quiet", "--all", "--message", "v2")
    assert wait_until(lambda: "data-v2" in project.git("tag", "--list"), 60), said.read_text()
    with pytest.raises(schedule.ServerError, match=r"^`tamis serve` is at work in this project already; stop it f"):
        schedule.serve(3)
    os.killpg(serving.pid, signal.SIGINT)  # as a terminal does
    assert serving.wait(30) == 0
    lines = said.read_text().splitlines()
    assert lines[0] == "looking for new data versions every 3 seconds; Ctrl-C stops"
    assert lines[-1] == "stopped"
    assert not runs_by_state().keys() & {"Scheduled", "Late", "Failed"}


def test_schedule_needs_a_server(monkeypatch):
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(schedule.ServerError, match=r"^a schedule needs a Prefect server: run `prefect server start` in"),
    ):
        schedule.serve(3)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://192.0.2.1:4200/api", r"^PREFECT_API_URL is http://192\.0\.2\.1:4200/api, on another machine; "),
        (
            "http://127.0.0.1:9/api",
            r"^no Prefect server answers at http://127\.0\.0\.1:9/api \(ConnectError\): run `pr",
        ),
    ],
)
def test_server_must_answer_and_be_on_this_machine(url, text):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(schedule.ServerError, match=text):
        schedule.serve(3)


def test_projects_are_served_under_names_of_their_own(tmp_path, monkeypatch):
    names = []
    for folder in (tmp_path / "a/same", tmp_path / "b/same"):
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        names.append(schedule.deployment_name())
    assert len(set(names)) == 2
    assert all(name.startswith("same-") for name in names)


def test_both_times_or_none_of_a_crontab_are_refused(monkeypatch):
    with pytest.raises(schedule.ServerError, match=r"^--interval 3 and --cron '0 3 \* \* \*' are given; give one"):
        schedule.serve(3, "0 3 * * *")
    with pytest.raises(schedule.ServerError, match=r"^--cron 'at night' are no times of a crontab; as '0 3 "):
        schedule.serve(cron="at night")


@pytest.mark.parametrize("cron", ["0 3 31 2 *", "0 3 31 4,6 *"])
def test_times_that_never_come_are_refused(cron):
    with pytest.raises(schedule.ServerError, match=rf"^--cron '{re.escape(cron)}' are times that never come; as '0 3 "):
        schedule.serve(cron=cron)


def test_a_day_that_comes_every_four_years_is_taken():
    assert schedule.plan_schedule(None, "0 3 29 2 *")[1] == "at the times '0 3 29 2 *'"


def test_deployment_for_a_work_pool_names_the_flow():
    (deployment,) = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    found = load_flow_from_entrypoint(str(ROOT / deployment["entrypoint"]))
    assert found.name == schedule.scheduled.name
    assert set(deployment["parameters"]) == set(inspect.signature(schedule.scheduled.fn).parameters)
    assert schedule.plan_schedule(None, deployment["schedules"][0]["cron"])


@pytest.mark.slow
def test_deployment_is_taken_by_a_server_with_a_work_pool(scheduler, tmp_path):
    env = environment(PREFECT_API_URL=scheduler)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    for command in (["work-pool", "create", "tamis", "--type", "process"], ["deploy", "--name", "nightly"]):
        done = subprocess.run([*prefect, *command], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("tamis continue/nightly")
        assert (found.work_pool_name, found.schedules[0].schedule.cron) == ("tamis", "0 3 * * *")
        client.delete_deployment(found.id)


def test_what_became_of_each_version_is_an_artifact_and_a_refused_one_fails_the_run(project, server, monkeypatch):
    closed = {"name": "loss", "passed": False, "told": "loss is above", "figures": {}}
    monkeypatch.setattr(
        acceptance, "decide", lambda version: {"version": version, "accepted": False, "gates": [closed]}
    )
    enter(project, monkeypatch)
    with importing_from(project.root):
        state = schedule.scheduled("threads", "1", return_state=True)
    assert state.is_failed()
    assert project.git("tag", "--list").split() == ["refused-v1"]
    with get_client(sync_client=True) as client:
        ours = {"key": {"any_": [schedule.ARTIFACT]}, "flow_run_id": {"any_": [state.state_details.flow_run_id]}}
        (found,) = client.read_artifacts(artifact_filter=ArtifactFilter(**ours))
    assert json.loads(found.data) == [{"version": "v1", "state": "refused", "why": "v1 is refused: loss is above"}]


def test_error_of_a_scheduled_run_is_said_where_it_is_served(project, server, capsys):
    project.edit("small/letters.py", "import os", "import os  # edited")
    state = schedule.scheduled("threads", "1", return_state=True)
    assert state.is_failed()
    assert "error: 1 file with changes that are not committed, first small/letters.py; " in capsys.readouterr().err
