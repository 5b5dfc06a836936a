"""A recorded version is made again from its record alone, bit for bit, and what differs is told by size."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from worlds.projects import GRAPHS, Project, enter, run_stages, start_project

from flows import cli, params, replay, scratch
from flows.graph import dvc_state, versions
from tasks.artifacts.locks import locked


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, toy_folder, apart) -> Project:
    """The toy project with two versions that were run and recorded, with few trainings.

    DVC holds v1's raw data, and git ignores the model.
    """
    root = tmp_path_factory.mktemp("replay") / "project"
    GRAPHS["real"].make(root, "models/toy")
    shutil.copytree(toy_folder, root / "models/toy")
    (root / "models/.gitignore").write_text("*\n")
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["versions"]["v2"] = {"raw": "data/raw/v2", "previous": "v1"}
    values["finetuning"]["arms"] = {"chosen": [0]}
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    project = start_project(root)
    with pytest.MonkeyPatch.context() as patch:
        enter(project, patch)
        project.git("rm", "--quiet", "-r", "--cached", "data/raw/v1")
        project.git("add", *dvc_state.add("data/raw/v1"))
        project.git("commit", "--quiet", "--message", "v1 in DVC")
        for version in ("v1", "v2"):
            run_stages(version)
            versions.write(version)
    return project


@pytest.fixture
def project(recorded, monkeypatch) -> Project:
    enter(recorded, monkeypatch)
    return recorded


def state(project: Project) -> tuple:
    return project.records(), project.git("status", "--porcelain"), project.git("worktree", "list")


@pytest.mark.slow
def test_version_that_continues_from_another_comes_out_as_recorded(project):
    before = state(project)
    done = CliRunner().invoke(cli.app, ["replay", "v2", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["artifact"].split("/")[1] for row in rows} >= {"examples", "utility", "selection", "finetuning"}
    came = [row["came out"] for row in rows]
    assert set(came) <= {replay.SAME, replay.ROUNDED}  # rows that v1's run had scored were packed with others there
    assert f"{came.count(replay.SAME)} of {len(rows)} artifacts came out as recorded" in done.stderr
    apart = {row["artifact"] for row in rows if "/finetuning/" in row["artifact"] and row["artifact"].endswith("arms")}
    assert {row["came out"] for row in rows if row["artifact"] in apart} == {replay.SAME}
    assert state(project) == before


@pytest.mark.slow
def test_other_code_is_told_by_how_much_its_artifacts_differ(project):
    path = project.root / "tasks/selection/outcome.py"
    text = path.read_text()
    old = project.git("rev-parse", "HEAD").strip()
    path.write_text(text.replace('"gain": gain', '"gain": gain + 1e-3'))
    assert path.read_text() != text
    project.git("commit", "--quiet", "--all", "--message", "other code")
    try:
        done = CliRunner().invoke(cli.app, ["replay", "v1", "--revision", "HEAD", "--json"])
        assert done.exit_code == 1, done.output
        differ = {
            row["artifact"]: row["difference"] for row in json.loads(done.stdout) if row["came out"] == replay.OTHER
        }
        assert "gain" in differ["data/selection/version=v1/subset.parquet"]
    finally:
        project.git("reset", "--quiet", "--hard", old)


@pytest.mark.parametrize(
    ("version", "revision", "text"),
    [
        ("v1", "HEAD~5", "HEAD~5"),
        ("v3", None, "v3 is not recorded; `tamis continue` records it, or name a --revision"),
        ("v3", "HEAD", "HEAD records no run of v3; `tamis continue` records one, or name a --revision"),
    ],
)
def test_what_is_not_recorded_is_refused(project, version, revision, text):
    with pytest.raises(ValueError, match=text):
        replay.replay(version, revision)


def test_run_that_fails_is_told_and_leaves_nothing(project, monkeypatch):
    (scratch.REPLAYS / "killed").mkdir(parents=True)
    monkeypatch.setattr(replay.subprocess, "run", fail_at("flows.cli"))
    with pytest.raises(replay.ReplayError, match=r"run v1 --engine local` ended with status 3; what it said"):
        replay.replay("v1")
    assert list(scratch.REPLAYS.iterdir()) == [scratch.REPLAY_LOCK]


def test_one_replay_at_a_time(project):
    with locked(scratch.REPLAY_LOCK), pytest.raises(replay.ReplayError, match="another `tamis replay` is at work"):
        replay.replay("v1")


def fail_at(word: str):
    """Let the commands with a word in them fail."""
    own = subprocess.run

    def run(command, **more):
        if word in command:
            return subprocess.CompletedProcess(command, 3)
        return own(command, **more)

    return run


def in_clone(look) -> Callable[..., subprocess.CompletedProcess]:
    """Look at the clone where a run would start there, which then fails."""
    own = subprocess.run

    def run(command, *, cwd, **more):
        if "flows.cli" not in command:
            return own(command, cwd=cwd, **more)
        with contextlib.chdir(cwd):
            look()
        return subprocess.CompletedProcess(command, 3)

    return run


def test_raw_data_that_dvc_holds_come_out_of_its_cache(project, monkeypatch):
    lines = (project.root / "data/raw/v1/toys.jsonl").read_text()
    found = []
    look = in_clone(lambda: found.append(Path("data/raw/v1/toys.jsonl").read_text()))
    monkeypatch.setattr(replay.subprocess, "run", look)
    with pytest.raises(replay.ReplayError, match="ended with status 3"):
        replay.replay("v1", "HEAD")
    assert found == [lines]


def test_raw_data_of_the_version_before_are_not_asked_for(project, monkeypatch):
    found = []

    def look() -> None:
        versions.refuse_rewritten(params.read_versions(), ["v2"])  # as `tamis run` does first
        found.append(Path("data/raw/v1").exists())
        found.extend(dvc_state.plan(["v2"]))

    monkeypatch.setattr(replay.subprocess, "run", in_clone(look))
    with pytest.raises(replay.ReplayError, match="ended with status 3"):
        replay.replay("v2")
    assert found[0] is False
    assert {one.version for one in found[1:]} == {"v2"}


@pytest.mark.parametrize("inside", [".", "part"])
def test_models_that_git_does_not_hold_are_read_where_they_lie(tmp_path, inside):
    own, project = tmp_path / "own" / inside, tmp_path / "clone" / inside
    for path in (own / "models/toy", own / "held", project / "held", tmp_path / "outside"):
        path.mkdir(parents=True)
    (own / "mine.jinja").write_text("theirs")
    models = {"language": "models/toy", "embedding": "held", "chat_template": "mine.jinja"}
    (project / "params.yaml").write_text(yaml.safe_dump({"models": models}))
    replay._link_models(project, own, tmp_path / "clone")
    assert (project / "models/toy").resolve() == own / "models/toy"
    assert (project / "mine.jinja").read_text() == "theirs"
    assert not (project / "held").is_symlink()
    for name in ("package:a", "owner/name", str(tmp_path / "outside"), "../../outside"):
        (project / "params.yaml").write_text(yaml.safe_dump({"models": {"language": name, "embedding": name}}))
        before = sorted(tmp_path.rglob("*"))
        replay._link_models(project, own, tmp_path / "clone")
        assert sorted(tmp_path.rglob("*")) == before


def test_model_that_was_replaced_since_is_refused(project):
    path = project.root / "models/toy/config.json"
    text = path.read_text()
    path.write_text(f"{text}\n")
    said = r"^models\.language, models/toy, is not the model that data-v1 records \(digest \w{8}, now \w{8}\); bring"
    try:
        with pytest.raises(replay.ReplayError, match=said):
            replay.replay("v1")
    finally:
        path.write_text(text)


def test_work_is_cut_as_the_recorded_run_cut_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("models: {language: a}\nruntime: {pack_tokens: 4096}\n")
    runs = [
        {"runtime": {"pack_tokens": 2048, "shard_rows": 64}, "halved": []},
        {
            "runtime": {"pack_tokens": 2048, "shard_rows": 64},
            "halved": [
                {"what": "pack_tokens", "asked": 2048, "used": 512},
                {"what": "rows per training pass", "asked": 8, "used": 2},
            ],
        },
        {},
    ]
    replay.set_runtime(path, runs)
    found = yaml.safe_load(path.read_text())
    assert found == {"models": {"language": "a"}, "runtime": {"pack_tokens": 512, "shard_rows": 64}}
    replay.set_runtime(path, [{}])
    assert yaml.safe_load(path.read_text()) == found


def test_a_replay_asks_no_mirror_and_no_cache_that_projects_share(project, tmp_path, monkeypatch):
    values = yaml.safe_load((project.root / "params.yaml").read_text()) | {"mirror": {"url": str(tmp_path / "mirror")}}
    (project.root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    config = project.root / ".dvc/config"
    config.write_text(f"{config.read_text()}[cache]\n    dir = {project.root / '.dvc/cache'}\n")
    old = project.git("rev-parse", "HEAD").strip()
    project.git("commit", "--quiet", "--all", "--message", "a mirror and a shared cache")
    found = []

    def look() -> None:
        found.append(params.load(Path("params.yaml"))["mirror"]["url"])
        with dvc_state.opened() as repo:
            found.append(Path(repo.cache.local.path))
        found.append(Path("data/raw/v1/toys.jsonl").exists())

    monkeypatch.setattr(replay.subprocess, "run", in_clone(look))
    try:
        with pytest.raises(replay.ReplayError, match="ended with status 3"):
            replay.replay("v1", "HEAD")
        assert found == [None, scratch.REPLAYS.absolute() / "clone/.dvc/cache/files/md5", True]
    finally:
        project.git("reset", "--quiet", "--hard", old)


@pytest.mark.parametrize(
    ("section", "name", "told"),
    [
        ("versions", "../out", r"^versions\.v1\.raw is \.\./out, a relative path that leads out of the repository"),
        ("models", "../out", r"^models\.language is \.\./out, a relative path that leads out .* its absolute path"),
        ("versions", "part/../in", ""),
        ("versions", "/out", ""),
        ("models", "owner/name", ""),
    ],
)
def test_a_relative_path_out_of_the_repository_is_refused(tmp_path, section, name, told):
    values = {"versions": {"v1": {"raw": "raw"}}, "models": {"language": "models/toy"}}
    values[section] = {"v1": {"raw": name}} if section == "versions" else {"language": name}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(replay.ReplayError, match=told) if told else contextlib.nullcontext():
        replay._refuse_outside(tmp_path, "v1", tmp_path)


@pytest.mark.parametrize("place", ["raw", "raw/part/a.jsonl"])
def test_a_link_that_leads_nowhere_from_a_clone_is_refused(tmp_path, place):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"versions": {"v1": {"raw": "raw"}}}))
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to("../../out")
    told = rf"^versions\.v1\.raw is raw, and {place}, a link to \.\./\.\./out, leads nowhere from a clone; put the file"
    with pytest.raises(replay.ReplayError, match=told):
        replay._refuse_lost(tmp_path, "v1")


def test_a_shallow_repository_is_cloned_with_commits_that_no_branch_leads_to(small_copy, tmp_path, monkeypatch):
    small_copy.git("commit", "--quiet", "--allow-empty", "--message", "recorded")
    small_copy.git("tag", "data-v1")
    commit = small_copy.git("rev-parse", "HEAD").strip()
    small_copy.git("reset", "--quiet", "--hard", "HEAD~1")
    shallow = Project(tmp_path / "shallow")
    small_copy.git("clone", "--quiet", "--depth", "1", f"file://{small_copy.root}", str(shallow.root))
    shallow.git("fetch", "--quiet", "--depth", "1", "origin", "tag", "data-v1")
    monkeypatch.chdir(shallow.root)
    with replay._cloned(shallow.root, commit) as clone:
        assert Project(clone).git("rev-parse", "HEAD").strip() == commit
