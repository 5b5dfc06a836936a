"""What lies in .cache beside the stores: shown, and removed where no run has use for it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from worlds.projects import Project, copy_real, start_project

from flows import cli, params, scratch, stage, trials
from flows.stage_calls import folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, toy_folder) -> Project:
    root = tmp_path_factory.mktemp("scratch") / "project"
    copy_real(root, str(toy_folder))
    return start_project(root)


@pytest.fixture
def kept(project, monkeypatch) -> dict[str, str]:
    """A trial of today's code, and by hand what else there can be: what is kept, by a word for it."""
    monkeypatch.chdir(project.root)
    trial = trials.attempt("examples", "v1", params.read(), {}, stage.sources(["examples@v1"]))
    places = {
        "trial": str(trial.folder),
        "trial of other code": make("trials/examples/old", {"code": "0" * 32}),
        "trial that was interrupted": make("trials/selection/broken"),
        "warm-up of a version": make("warmup/version=v1"),
        "warm-up of a trial": make(f"warmup/{trial.key}"),
        "warm-up of a trial that is gone": make("warmup/0123"),
        "arms that are not published": make("finetuning/v1/chosen-0/finished"),
        "arms of a version that is gone": make("finetuning/v0/chosen-0/finished"),
        "clone of a replay that was killed": make("replays/clone"),
        "damaged artifact": make("damaged/chosen.parquet.d"),
    }
    return {word: str(Path(place).relative_to(".cache")) for word, place in places.items()}


def make(place: str, done: dict | None = None) -> str:
    """Make a folder with a thousand bytes in it."""
    home = Path(".cache", place)
    home.mkdir(parents=True, exist_ok=True)
    (home / "weights.bin").write_bytes(bytes(1000))
    if done is not None:
        (home / "done.json").write_text(json.dumps({"seconds": 1, "resumed": False, "notes": {}} | done))
    return f".cache/{'/'.join(place.split('/')[:2])}" if place.startswith("finetuning") else str(home)


def standing() -> dict[str, bool | None]:
    return {one.key: one.current for one in scratch.survey(params.read())}


def test_what_is_of_use_is_known(kept):
    found = standing()
    useless = {word for word, key in kept.items() if found[key] is False}
    assert useless == {
        "trial of other code",
        "warm-up of a trial that is gone",
        "clone of a replay that was killed",
        "arms of a version that is gone",
        "damaged artifact",
    }
    assert {word for word, key in kept.items() if found[key] is None} == {"trial that was interrupted"}


def test_published_arms_are_of_no_use(kept):
    listing = folder("finetuning", "v1") / "finetuning.json"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("{}")
    try:
        assert standing()[kept["arms that are not published"]] is False
    finally:
        listing.unlink()


def test_prune_removes_what_is_of_no_use_and_says_what_that_frees(kept, project):
    before = CliRunner().invoke(cli.app, ["store"])
    assert before.exit_code == 0, before.output
    assert "`tamis store --prune` frees 0.0 MB" in before.stderr
    assert "5 of these are of no use to a run" in before.stderr
    done = CliRunner().invoke(cli.app, ["store", "--prune", "--json"])
    assert done.stderr.startswith("removed 5 folders, 0.0 MB")
    left = {row["key"] for row in json.loads(done.stdout)}
    assert {word for word, key in kept.items() if key not in left} == {
        "trial of other code",
        "warm-up of a trial that is gone",
        "clone of a replay that was killed",
        "arms of a version that is gone",
        "damaged artifact",
    }
    assert CliRunner().invoke(cli.app, ["store", "--prune", "--unknown"]).stderr.startswith("removed 1 folders")


def test_a_trial_is_of_no_use_once_a_module_of_its_stage_has_changed(kept, project):
    path = project.root / "tasks/examples/division.py"
    before = path.read_text()
    try:
        path.write_text(before + "# edited\n")
        assert standing()[kept["trial"]] is False
    finally:
        path.write_text(before)
    assert standing()[kept["trial"]] is True
