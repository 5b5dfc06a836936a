"""Small files that a run keeps, damaged in every way: a memory is found again, of an artifact it is told."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner
from worlds.damages import ALL, DAMAGES, FOLDER, IN_PLACE, damage
from worlds.projects import Project

from flows import cli, compare, erasing, params, scratch, stage, trials, undoing
from flows.graph import aside, dvc_files, dvc_locks, versions
from flows.trials import TRIALS, Trial
from tasks.artifacts import stores
from tasks.artifacts.tables import ArtifactError
from tasks.evaluation import evaluation, inputs
from tasks.finetuning import trainer
from tasks.finetuning.finished import is_sound, seal
from tasks.finetuning.settings import FinetuningSettings
from tasks.masks import sparse_deltas
from tasks.models import ModelChoice
from tasks.selection import pilot

FOLDER_THERE = r"^{} is a folder where a file belongs: move it away, then run again$"
TRIAL = Trial("key", TRIALS / "selection/key", 1.0, False, {})


@pytest.fixture
def project(real_copy) -> Project:
    return real_copy


def find_again(path: Path, how: str, find: Callable[[], object], calls: list[str]) -> None:
    """Damage what is kept: what it held is found once more and kept again; of a folder it is told before that."""
    first = find()
    damage(path, how)
    before = list(calls)
    if how == FOLDER:
        with pytest.raises(ArtifactError, match=FOLDER_THERE.format(path)):
            find()
        assert calls == before
        return
    assert find() == first
    assert len(calls) == len(before) + 1
    assert find() == first
    assert len(calls) == len(before) + 1


@pytest.mark.parametrize("how", ALL)
def test_a_trial_whose_record_is_damaged_is_made_again(project, monkeypatch, how):
    calls: list[str] = []
    monkeypatch.setitem(trials.STAGES, "examples", lambda values, folders, map: calls.append("examples"))

    def find() -> dict:
        made = trials.attempt("examples", "v1", params.read(), {}, stage.sources(["examples@v1"]))
        return {"folder": made.folder, "notes": made.notes}

    find_again(find()["folder"] / trials.DONE, how, find, calls)


@pytest.mark.parametrize("how", ALL)
def test_what_is_kept_is_listed_beside_a_trial_whose_record_is_damaged(project, how):
    damage(TRIAL.folder / trials.DONE, how)
    assert [(one.key, one.current) for one in scratch.survey(params.read())] == [("trials/selection/key", None)]


@pytest.mark.parametrize("how", ALL)
def test_losses_that_are_damaged_are_measured_again(project, monkeypatch, how):
    calls: list[str] = []

    def measure(arms: Path | None, **asked: object) -> dict:
        calls.append("trained" if arms else "base")
        losses = {"losses": {"any": [0.5]}, "general_losses": {}, "correct": {}}
        return {"ids": ["a"], "general_ids": []} | losses

    monkeypatch.setattr(evaluation, "measure_losses", measure)
    done = {name: Trial("key", TRIALS / name / "key", 1.0, False, {}) for name in ("examples", "finetuning")}
    loaded = stage.sources(["evaluation@v1"])

    def find() -> tuple:
        return compare.measure(params.read(), "v1", done, loaded)

    find()
    assert calls == ["trained", "base"]
    (kept,) = done["finetuning"].folder.glob("losses-*.json")
    find_again(kept, how, find, calls)


@pytest.mark.parametrize("how", ALL)
def test_a_pilots_measurement_that_is_damaged_is_made_again(tmp_path, monkeypatch, how):
    calls: list[str] = []
    monkeypatch.setattr(pilot, "digest", lambda place, brief: "digest")
    monkeypatch.setattr(pilot, "train", lambda place, brief, label: calls.append(label) or torch.nn.Identity())
    monkeypatch.setattr(pilot, "score_rows", lambda network, rows, tokens: [torch.tensor([-0.5])])
    where = SimpleNamespace(cache=tmp_path, model=ModelChoice("none"), runtime=SimpleNamespace(pack_tokens=1))
    brief = SimpleNamespace(measured=None, measured_ids=["a"])
    find_again(tmp_path / "digest.json", how, lambda: pilot.measure(where, brief, "choice-0")["losses"] == [0.5], calls)


@pytest.mark.parametrize("how", ALL)
def test_of_a_damaged_list_of_what_is_not_pushed_all_that_is_here_is_pushed(small_copy, how):
    small_copy.git("tag", "data-v1")
    small_copy.git("tag", "data-v0")  # nothing is recorded of it
    small_copy.git("tag", "mine")
    damage(versions.UNPUSHED, how)
    if how == FOLDER:
        with pytest.raises(ArtifactError, match=FOLDER_THERE.format(versions.UNPUSHED)):
            versions.push()
        return
    assert versions.push() == "pushed the artifacts of data-v1 to the DVC remote 'local'"
    assert versions.push() == ""


COMMANDS = {
    "status": ["status"],
    "verify": ["verify"],
    "store": ["store", "--prune"],
}
BY_DVC = ("status", "verify")  # commands that open the project by DVC
LOCKED = {
    ".dvc/tmp/lock": BY_DVC,
    ".dvc/tmp/rwlock": BY_DVC,
    ".dvc/tmp/rwlock.lock": BY_DVC,
    ".dvc/tmp/btime": ("verify",),
    ".cache/flow.lock": ("verify",),
    ".cache/store.lock": ("verify", "store"),
}


def call(command: str) -> str:
    """Run a command that is to be refused in words of ours, and return what it says."""
    dvc_locks.close_project()
    done = CliRunner().invoke(cli.app, COMMANDS[command])
    assert done.exit_code == 1, done.output
    assert "shows where" not in done.stderr
    assert "<version>.raw" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("how", IN_PLACE)
@pytest.mark.parametrize(("path", "command"), [(path, one) for path, several in LOCKED.items() for one in several])
def test_what_stands_in_the_place_of_a_lock_is_named(project, path, command, how):
    if path.endswith("btime") and how == FOLDER:
        pytest.skip("a folder tells DVC the same: it asks for the time alone")
    damage(Path(path), how)
    told = call(command)
    assert re.search(rf"{path} is a (folder|link that leads nowhere) where a file belongs: move it away", told), told
    assert "git init" not in told


@pytest.mark.parametrize("how", sorted(DAMAGES.keys() - {"empty", "nested too deep"}))  # DVC reads that for minutes
@pytest.mark.parametrize("path", [".dvc/config", ".dvc/config.local"])
@pytest.mark.parametrize("command", BY_DVC)
def test_settings_of_dvc_that_are_damaged_are_named_with_the_way_out(project, path, command, how):
    damage(Path(path), how)
    told = call(command)
    way_out = f"; mend {path}" + (f", or `git checkout {path}` brings" if path == ".dvc/config" else "")
    assert way_out in told


@pytest.mark.parametrize("command", BY_DVC)
def test_a_folder_in_the_place_of_dvcs_settings_is_named(project, command):
    damage(Path(".dvc/config"), FOLDER)
    assert ".dvc/config is a folder where a file belongs: move it away" in call(command)


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("selection.json", lambda home: trials.read_choice(Trial("key", home, 1.0, False, {}))),
    ("rows.json", lambda home: inputs.read_faults(home, [inputs.Run("chosen", 0, inputs.TRAINED, 2, home)])),
    ("finetuning.json", lambda home: inputs.read_runs(home, None)),
    ("adapter_config.json", lambda home: trainer.refuse_other(home, ModelChoice("any"), FinetuningSettings())),
    ("adapter_config.json", lambda home: sparse_deltas.load_merged(home, ModelChoice("any"))),
]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(("name", "read"), READERS)
@pytest.mark.parametrize("home", [Path("data/made/version=v1"), TRIAL.folder])
def test_an_artifact_that_is_damaged_is_told_with_the_way_out(tmp_path, monkeypatch, home, name, read, how):
    monkeypatch.chdir(tmp_path)
    for function in ((inputs, "read_table"), (sparse_deltas.models.language_model, "__wrapped__")):
        monkeypatch.setattr(*function, lambda *_: None)
    damage(home / name, how)
    again = rf"restore it with `dvc checkout --force {home / name}` or make it again with `tamis run`"
    if home == TRIAL.folder:
        again = rf"delete {home}, and it is made again"
    wanted = FOLDER_THERE.format(home / name) if how == FOLDER else rf"^{home / name} .*; {again}$"
    with pytest.raises(ArtifactError, match=wanted):
        read(home)


NOTES: list[tuple[Path, Callable[[Path], object], str]] = [
    (Path(".cache/adding.json"), lambda _: undoing.take_back_killed(), "take that back by hand, as `git status` shows"),
    (
        Path(".cache/erasing.json"),
        lambda _: erasing.read_clearing(),
        "`dvc add` them, then delete .cache/erasing.json",
    ),
    (
        Path(".cache/aside/x@v1/places.json"),
        lambda _: aside.put_back("x@v1"),
        "delete .cache/aside/x@v1, then run agai",
    ),
    (Path(".cache/pairs/x/store.json"), stores.read_about, "delete it, and the next run that uses this folder writes"),
    (Path(".dvc/cache/files/md5/0a/1.dir"), dvc_files.read_listing, "`tamis verify` removes it, and `dvc fetch` bring"),
]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(("path", "read", "way_out"), NOTES)
def test_notes_that_are_damaged_are_told_with_what_to_do(tmp_path, monkeypatch, path, read, way_out, how):
    monkeypatch.chdir(tmp_path)
    damage(path, how)
    with pytest.raises(ValueError, match=rf"^{path}[ ,].*{way_out}"):
        read(path)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("name", ["log.json", "weights/rows.json", "digests.json"])
def test_a_finished_arm_with_a_damaged_file_is_not_sound(tmp_path, name, how):
    for place in ("log.json", "weights/rows.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("{}")
    seal(tmp_path)
    assert is_sound(tmp_path)
    damage(tmp_path / name, how)
    assert not is_sound(tmp_path)
