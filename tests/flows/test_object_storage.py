"""Raw data, stores and artifacts in buckets of S3, which knows no renaming: moto's server stands for it.

Needs `pip install 'moto[server]' dvc-s3`.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from worlds.projects import Project, environment

pytestmark = pytest.mark.slow

BUCKET = "tamis-data"
ROWS = [{"prompt": f"what is {k}?", "response": f"it is {k}", "topic": "sums"} for k in range(30)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a local S3."""
    for package in ("moto.server", "s3fs", "dvc_s3"):
        pytest.importorskip(package)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with closing(socket.socket()) as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def system(endpoint, monkeypatch):
    """Its file system, with an empty bucket."""
    for name, value in list_names(endpoint).items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    found = s3fs.S3FileSystem()
    if found.exists(BUCKET):
        found.rm(BUCKET, recursive=True)
    found.mkdir(BUCKET)
    return found


def list_names(endpoint: str) -> dict[str, str]:
    """Return what tells every client of S3 where it is."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret-word",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def project(real_copy, system, endpoint) -> Project:
    """A project that takes its data from there, and keeps there what it makes."""
    path = real_copy.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["landing"] = {"url": f"s3://{BUCKET}/in", "marker": "_DONE"}
    values["mirror"] = {"url": f"s3://{BUCKET}/stores"}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    config = real_copy.root / ".dvc/config"
    config.write_text(f"[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://{BUCKET}/dvc\n")
    real_copy.git("commit", "--quiet", "--all", "--message", "s3")
    return real_copy


def tamis(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=project.root, env=environment(), capture_output=True, text=True)


def test_a_version_lands_is_run_and_pushed_and_another_clone_computes_nothing(project, system, tmp_path):
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    system.pipe(f"{BUCKET}/in/v2/part/rows.jsonl", rows.encode())
    system.pipe(f"{BUCKET}/in/v2/_DONE", b"")
    done = tamis(project, "continue", "--engine", "local")
    assert done.returncode == 0, done.stderr
    assert project.git("tag").split() == ["data-v1", "data-v2"]
    assert system.find(f"{BUCKET}/dvc/files")
    assert [path for path in system.find(f"{BUCKET}/stores/pairs") if path.endswith(".parquet")]
    assert "secret-word" not in done.stdout + done.stderr

    other = Project(tmp_path / "other")
    project.git("clone", "--quiet", str(project.root), str(other.root))
    pulled = subprocess.run(
        [sys.executable, "-m", "dvc", "pull", "--quiet"],
        cwd=other.root,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert pulled.returncode == 0, pulled.stderr
    shown = tamis(other, "status", "--json")
    assert {one["state"] for one in json.loads(shown.stdout)} == {"fresh"}, shown.stderr

    shutil.rmtree(other.root / "data/utility/version=v2")
    shutil.rmtree(other.root / ".dvc/cache")
    again = tamis(other, "run", "v2", "--engine", "local")
    assert again.returncode == 0, again.stderr
    assert "parts of stores came from s3://" in again.stderr
    record = json.loads((other.root / "data/utility/version=v2/run.json").read_text())
    assert record["pairs_scored"] == 0


def test_shares_of_machines_that_share_a_bucket_alone(project, system, tmp_path):
    assert tamis(project, "run", "v1", "--engine", "local").returncode == 0
    other = Project(Path(shutil.copytree(project.root, tmp_path / "other", symlinks=True)))
    system.rm(f"{BUCKET}/stores", recursive=True)
    for one in (project, other):
        for place in (one.root / ".cache").glob("pairs"):
            shutil.rmtree(place)
    first = tamis(project, "shard", "utility", "v1", "1/2", "--json")
    second = tamis(other, "shard", "utility", "v1", "2/2", "--json")
    assert [json.loads(done.stdout)[0]["whole"] for done in (first, second)] == [False, True]


def test_a_bucket_that_is_not_there_is_told_of(project):
    project.edit("params.yaml", f"s3://{BUCKET}/stores", "s3://no-such-bucket/stores")
    done = tamis(project, "run", "v1", "--engine", "local")
    assert done.returncode == 1
    assert "mirror.url is s3://no-such-bucket/stores, which cannot be" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
