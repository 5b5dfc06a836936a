"""The server that a run starts for itself: what it cannot start with is named, others are shut out, none is left."""

import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    temporary_settings,
)
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING as SERVER_AUTH
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL as DATABASE
from worlds.projects import ROOT, Project, importing_from, run_child

from flows import pipeline, prefect_server
from flows.prefect_server import LEFT, PrefectError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Prefect's folder, without a server that is named."""
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_HOME: tmp_path / "prefect"}, restore_defaults={PREFECT_API_URL, DATABASE}):
        yield tmp_path / "prefect"


def test_folder_that_is_none_is_named_with_two_ways_out(home):
    home.write_text("a file")
    with pytest.raises(
        PrefectError, match=r"^PREFECT_HOME, .*/prefect, cannot be written .*; allow it, .*--engine local$"
    ):
        prefect_server.refuse_unusable()


@pytest.mark.parametrize("harm", ["text", "cut", "newer", "locked", "folder"])
def test_database_that_cannot_be_used_is_named_within_seconds(home, harm, monkeypatch):
    monkeypatch.setattr(prefect_server, "PATIENCE", 0.2)
    home.mkdir()
    path = home / "prefect.db"
    held = None
    if harm == "folder":
        path.mkdir()
    else:
        held = sqlite3.connect(path, isolation_level=None)
        held.execute("CREATE TABLE alembic_version (version_num)")
        held.execute("INSERT INTO alembic_version VALUES (?)", ("ffffffffffff" if harm == "newer" else "27d8f4e1a6c9",))
    if harm == "locked":
        held.execute("BEGIN EXCLUSIVE")
    elif harm == "text":
        path.write_text("no database, but long enough to be taken for one\n" * 9)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:1500])
    start = time.monotonic()
    with pytest.raises(PrefectError, match=r"^Prefect's database, .*prefect\.db, cannot be used .*--engine local$"):
        prefect_server.refuse_unusable()
    assert time.monotonic() - start < 10
    if held:
        held.close()


def test_database_that_can_be_used_is_left_as_it_is(home):
    home.mkdir()
    with sqlite3.connect(home / "prefect.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (sorted(prefect_server._list_migrations())[0],))
    before = (home / "prefect.db").read_bytes()
    prefect_server.refuse_unusable()
    assert (home / "prefect.db").read_bytes() == before


def test_server_that_is_named_and_does_not_answer_is_told(home):
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PrefectError, match=r"^no Prefect server answers at http://127\.0\.0\.1:9/api \(.*local$"),
        prefect_server.kept(),
    ):
        pass


def test_server_of_its_own_has_a_password_and_one_that_is_named_has_not(home, server, monkeypatch):
    monkeypatch.setattr(prefect_server, "_start", lambda: None)
    with prefect_server.kept():
        first = PREFECT_API_AUTH_STRING.value()
        assert SERVER_AUTH.value() == first
        assert len(first) > 40
        assert PREFECT_CLIENT_MAX_RETRIES.value() == prefect_server.RETRIES  # what a dead one keeps a run waiting for
    with prefect_server.kept():
        assert PREFECT_API_AUTH_STRING.value() == first  # Prefect's server lives as long as the process
    assert prefect_server._draw_password(os.getpid() + 1) != first
    with temporary_settings({PREFECT_API_URL: server}), prefect_server.kept():
        assert PREFECT_API_AUTH_STRING.value() is None


ASK = """
import json, os, threading, time, urllib.error, urllib.request
from pathlib import Path
from flows import pipeline, prefect_server

def ask():
    while not prefect_server.LEFT.exists():
        time.sleep(0.02)
    process = json.loads(prefect_server.LEFT.read_text())["process"]
    words = Path(f"/proc/{process}/cmdline").read_text().split(chr(0))
    assert f"PREFECT_SERVER_API_AUTH_STRING=tamis:{os.getpid()}-" in Path(f"/proc/{process}/environ").read_text()
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/api/flow_runs/count"
    headers = {"content-type": "application/json", "Origin": "http://elsewhere.example"}
    try:
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}", headers=headers))
    except urllib.error.HTTPError as error:
        Path("answer").write_text(str(error.code))

thread = threading.Thread(target=ask)
thread.start()
pipeline.run()
thread.join()
"""


def test_server_of_a_run_answers_no_stranger_and_is_forgotten_at_the_end(small):
    more = {"PREFECT_HOME": str(small.root / ".prefect"), "PYTHONPATH": f"{small.root}:{ROOT}", "PREFECT_API_URL": ""}
    done = run_child([sys.executable, "-c", ASK], small, **more)
    assert done.returncode == 0, done.stderr
    assert (small.root / "answer").read_text() == "401"
    assert not (small.root / LEFT).exists()


KILL = """
import sys
from flows import pipeline, prefect_server

server = prefect_server._get_server()
bring, start, killed = pipeline.bring, type(server)._run_uvicorn_command, []

def bring_and_kill(planned, loaded, shards):
    found = bring(planned, loaded, shards)
    if not killed:
        killed.append(planned.address)
        server.server_process.kill()
        server.server_process.wait()
    return found

def start_and_kill(self):
    process = start(self)
    process.kill()
    return process

if sys.argv[1] == "in mid-run":
    pipeline.bring = bring_and_kill
else:
    type(server)._run_uvicorn_command = start_and_kill
try:
    print([one.how for one in pipeline.run()])
except prefect_server.PrefectError as error:
    print(error)
"""


def kill_server(small: Project, when: str) -> subprocess.CompletedProcess:
    """Run the project with a server of its own that is killed."""
    more = {"PREFECT_HOME": str(small.root / ".prefect"), "PYTHONPATH": f"{small.root}:{ROOT}", "PREFECT_API_URL": ""}
    return run_child([sys.executable, "-c", KILL, when], small, **more)


def test_server_that_is_killed_in_mid_run_keeps_no_stage_waiting(small):
    done = kill_server(small, "in mid-run")
    assert (done.returncode, done.stdout) == (0, f"{['computed'] * 4}\n"), done.stderr
    assert done.stderr.count("the Prefect server is gone") == 1
    assert "Prefect's page does not show its result" not in done.stderr  # no stage has asked a server that is gone
    assert Project(small.root).computed() == ["letters@v1", "score@v1", "choose@v1", "total@v1"]


def test_server_that_ends_as_it_starts_is_told_of_at_once(small):
    done = kill_server(small, "as it starts")
    told = "Prefect's server ended as it started, with exit status -9; run again, or run without a server: "
    assert (done.returncode, done.stdout) == (0, f"{told}--engine local\n"), done.stderr


@pytest.mark.slow
def test_several_runs_of_one_process_share_its_server(small):
    """As `tamis continue` runs one version after another."""
    small.edit("params.yaml", "v1: {raw: raw/v1.txt}", "v1: {raw: raw/v1.txt}\n  v2: {raw: raw/v2.txt}")
    (small.root / "raw/v2.txt").write_text("one\ntwo\n")
    code = "from flows import pipeline; print([len(pipeline.run([version])) for version in ('v1', 'v2')])"
    more = {"PREFECT_HOME": str(small.root / ".prefect"), "PYTHONPATH": f"{small.root}:{ROOT}", "PREFECT_API_URL": ""}
    done = run_child([sys.executable, "-c", code], small, **more)
    assert (done.returncode, done.stdout) == (0, "[4, 4]\n"), done.stderr


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A process whose command is that of a server."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", prefect_server.APP])
    yield process
    process.kill()
    process.wait()


def leave(process: int, started: float) -> None:
    LEFT.parent.mkdir(exist_ok=True)
    LEFT.write_text(json.dumps({"process": process, "started": started}))


def test_server_that_a_killed_run_left_is_ended_by_the_next_one(stranger, capsys, monkeypatch):
    monkeypatch.setattr(prefect_server, "list_descendants", lambda: [1, stranger.pid])
    prefect_server.remember()
    assert not LEFT.exists()  # it is not of a run
    monkeypatch.setattr(prefect_server, "_owners", {os.getpid()})
    prefect_server.remember()
    assert json.loads(LEFT.read_text())["process"] == stranger.pid
    prefect_server.end_left()
    assert stranger.wait(5) != 0
    assert not LEFT.exists()
    assert "ended the Prefect server that a killed run had left behind" in capsys.readouterr().err


@pytest.mark.parametrize(("owner", "ends"), [("gone", True), ("here", False), ("nobody", False)])
def test_server_of_a_run_that_was_killed_before_it_noted_it_is_ended(tmp_path, monkeypatch, owner, ends):
    monkeypatch.chdir(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    password = {"gone": f"tamis:{gone.pid}-x", "here": f"tamis:{os.getpid()}-x", "nobody": "own:password"}[owner]
    env = {**os.environ, "PREFECT_SERVER_API_AUTH_STRING": password}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", prefect_server.APP], env=env)
    try:
        prefect_server.end_left()
        assert (process.poll() is not None or process.wait(1) is not None) if ends else process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": "x", "started": "1"}', '{"process": 1}'])
def test_note_that_cannot_be_read_ends_nothing(stranger, text):
    LEFT.parent.mkdir()
    LEFT.write_text(text)
    prefect_server.end_left()
    assert stranger.poll() is None


def test_process_that_only_has_the_number_of_the_server_is_left_alone(stranger):
    leave(stranger.pid, 1.0)
    prefect_server.end_left()
    assert stranger.poll() is None


def test_server_that_dies_in_mid_run_fails_nothing(small, server, monkeypatch, capsys):
    import httpx

    monkeypatch.chdir(small.root)
    real = pipeline.pipeline

    def die(*arguments):
        real.fn(*arguments)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(type(real), "with_options", lambda self, **options: die)
    monkeypatch.setattr(pipeline, "stage", Plain())
    told = []
    with importing_from(small.root):
        outcomes = pipeline.run(tell=lambda version, stages: told.append(version))
    assert [one.how for one in outcomes] == ["computed"] * 4
    assert told == ["v1"]
    assert "the Prefect server is gone (refused)" in capsys.readouterr().err
    assert Project(small.root).computed() == ["letters@v1", "score@v1", "choose@v1", "total@v1"]


def test_machine_that_a_stage_does_not_reach_is_not_taken_for_the_server(small, server, monkeypatch, capsys):
    import httpx

    monkeypatch.chdir(small.root)

    def fail(*arguments):
        raise httpx.ConnectError("refused", request=httpx.Request("GET", "https://hub.example/model"))

    monkeypatch.setattr(type(pipeline.pipeline), "with_options", lambda self, **options: fail)
    with pytest.raises(httpx.ConnectError):
        pipeline.run()
    assert "server is gone" not in capsys.readouterr().err


class Plain:
    """A task without an engine."""

    def with_options(self, **options):
        from prefect.states import Completed

        from flows.drive import bring

        def run(planned, loaded, shards, wait_for, return_state):
            _, files = bring(planned, loaded, lambda function, items, label: map(function, items))
            return Completed(data=files)

        return run


def test_run_goes_on_without_a_server_that_dies_before_the_last_stage(small, server, monkeypatch, capsys):
    import httpx

    monkeypatch.chdir(small.root)

    def die(*arguments):
        raise httpx.ReadError("cut off")

    monkeypatch.setattr(type(pipeline.pipeline), "with_options", lambda self, **options: die)
    with importing_from(small.root):
        outcomes = pipeline.run()
    assert [one.how for one in outcomes] == ["computed"] * 4
    assert "the Prefect server is gone (cut off)" in capsys.readouterr().err
