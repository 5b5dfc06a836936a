"""What lies in .cache beside the stores: shown, and removed where no run has use for it."""

import json
import shutil
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


@pytest.fixture
def arms(kept):
    """Add files of arms, by path, beside an artifact that is published; they are removed again."""
    scratch_home, artifact = Path(".cache/finetuning/v1"), folder("finetuning", "v1")
    shutil.rmtree(scratch_home)

    def add(files: dict[str, bytes]) -> None:
        for name, content in {"published/finetuning.json": b"{}", **files}.items():
            first, *rest = Path(name).parts
            path = {"scratch": scratch_home, "published": artifact}[first].joinpath(*rest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    yield add
    shutil.rmtree(scratch_home)
    shutil.rmtree(artifact)


FIRST = {"scratch/key0/finished/weights/model.bin": b"first", "scratch/key0/finished/log.json": b"{}"}
PUBLISHED = {"published/arms/chosen-0/model.bin": b"first"}


@pytest.mark.parametrize(
    ("files", "useful"),
    [
        (FIRST | PUBLISHED, False),
        (FIRST | {"published/arms/chosen-0/model.bin": b"other"}, True),
        (FIRST, True),
        (FIRST | PUBLISHED | {"scratch/key1/finished/weights/model.bin": b"second"}, True),
        (FIRST | PUBLISHED | {"scratch/key1/checkpoints/step.bin": b"half"}, True),
    ],
)
def test_arms_are_of_use_until_all_of_them_stand_in_the_artifact(kept, arms, files, useful):
    """What an interrupted run had finished stands beside the artifact of the run before, which is put back."""
    arms(files)
    assert standing()[kept["arms that are not published"]] is useful


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
