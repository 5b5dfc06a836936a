"""A model's weights are an input: replaced under the same name, they make stale what was computed with the old ones."""

import json
import shutil
import sys

import pytest
from worlds.projects import GRAPHS, Project, run_child, run_dvc, run_stages, start_project

from flows import model_records, params, stage
from flows.graph import dvc_state
from flows.model_records import ModelsChanged
from tasks.artifacts.tables import ArtifactError
from tasks.model_files import ModelError


@pytest.fixture(scope="module")
def made(toy_folder, tmp_path_factory, apart) -> Project:
    """The real graph, run up to the embedding, with a model in a folder of its own."""
    home = tmp_path_factory.mktemp("models")
    shutil.copytree(toy_folder, home / "model")
    GRAPHS["real"].make(home / "project", "../model")
    project = start_project(home / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        run_stages("v1", until="embedding")
    return project


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    """A copy of it and of its model, as the current folder."""
    shutil.copytree(made.root.parent, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home/project")
    return Project(tmp_path / "home/project")


def replace_weights(project: Project) -> None:
    """Change one bit of the weights."""
    path = project.root.parent / "model/model.safetensors"
    text = bytearray(path.read_bytes())
    text[-1] ^= 1
    path.write_bytes(text)


def states(project: Project) -> dict[str, str]:
    return {address.partition("@")[0]: state for address, state, _ in dvc_state.standings(dvc_state.plan(["v1"]))}


def test_record_names_files_and_digests_and_stages_depend_on_it(project):
    record = json.loads((project.root / "data/models/language.json").read_text())
    assert record["name"] == "../model"
    assert (
        record["files"]["model.safetensors"]["size"] == (project.root.parent / "model/model.safetensors").stat().st_size
    )
    assert states(project)["embedding"] == "fresh"


def test_replaced_weights_make_stale_what_was_computed_with_the_old_ones(project):
    replace_weights(project)
    found = states(project)
    assert (found["examples"], found["embedding"]) == ("stale", "stale")
    why = {address: why for address, _, why in dvc_state.standings(dvc_state.plan(["v1"]))}
    assert "data/models/language.json modified" in why["examples@v1"]


def test_weights_that_come_back_are_known_again(project):
    replace_weights(project)
    assert states(project)["examples"] == "stale"
    replace_weights(project)
    assert states(project)["examples"] == "fresh"


def test_stage_started_by_dvc_refuses_weights_that_are_not_recorded(project):
    replace_weights(project)
    project.edit("params.yaml", "held_out_rows: 4", "held_out_rows: 5")
    done = run_dvc(project, "repro", "versions/v1/dvc.yaml:examples@v1")
    assert done.returncode != 0
    said = "models.language, ../model, is not the model that data/models/language.json names"
    assert said in done.stderr
    assert "`tamis models --update` takes it as it is" in done.stderr


def test_models_shows_and_takes_them(project):
    command = [sys.executable, "-m", "flows.cli", "models", "--json"]
    replace_weights(project)
    shown = json.loads(run_child(command, project).stdout)
    assert [(row["model"], row["state"]) for row in shown] == [
        ("language", "not as recorded"),
        ("embedding", "not as recorded"),
    ]
    taken = json.loads(run_child([*command, "--update"], project).stdout)
    assert {row["state"] for row in taken} == {"recorded now"}
    assert {row["state"] for row in json.loads(run_child(command, project).stdout)} == {"as recorded"}


def test_weights_replaced_while_a_stage_runs_are_told_and_nothing_is_recorded(project, monkeypatch):
    real = stage.STAGES["examples"]

    def make_and_replace(*arguments):
        made = real(*arguments)
        replace_weights(project)
        return made

    monkeypatch.setattr(stage, "STAGES", {**stage.STAGES, "examples": make_and_replace})
    with pytest.raises(ModelsChanged, match=r"models\.language, \.\./model, is not the model"):
        stage.run("examples", "v1")


def test_model_that_is_not_here_leaves_its_record_and_what_was_made_can_be_read(project):
    before = (project.root / "data/models/language.json").read_text()
    (project.root.parent / "model").rename(project.root.parent / "away")
    assert states(project)["embedding"] == "fresh"
    assert (project.root / "data/models/language.json").read_text() == before
    (project.root / "data/models/language.json").unlink()
    with pytest.raises(ModelError, match=r"no folder '\.\./model' here"):
        dvc_state.prepare()


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_record_that_cannot_be_read_is_written_anew(project, text):
    path = model_records.place("embedding")
    wanted = path.read_text()
    path.write_text(text)
    assert model_records.write(vars(params.read().models)) == ["embedding"]
    assert path.read_text() == wanted


def test_folder_in_place_of_a_record_is_named(project):
    path = model_records.place("language")
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError, match=f"{path} is a folder where a file belongs: move it away, then run again"):
        model_records.write(vars(params.read().models))


def test_libraries_are_recorded_and_others_are_told_by_status(project):
    run = stage.last_run("examples@v1")
    assert set(run["libraries"]) == {"torch", "transformers", "tokenizers", "numba"}
    assert (run["device"], run["dtype"]) == ("cpu", "float32")
    path = project.root / "data/examples/version=v1/run.json"
    path.write_text(json.dumps(run | {"libraries": run["libraries"] | {"transformers": "5.0"}}))
    command = [sys.executable, "-m", "flows.cli", "status", "v1", "--json"]
    rows = {row["stage"]: row for row in json.loads(run_child(command, project).stdout)}
    here = run["libraries"]["transformers"]
    assert rows["examples@v1"]["why"].endswith(f"made with transformers 5.0, here {here}")
    assert "made with" not in rows["embedding@v1"]["why"]


def test_other_libraries_make_stages_stale_where_that_is_asked_for(project, monkeypatch):
    project.edit("params.yaml", "device: cpu", "device: cpu\n  strict_environment: true")
    assert states(project)["examples"] == "stale"
    run_stages("v1", until="examples")
    assert states(project)["examples"] == "fresh"
    monkeypatch.setattr(model_records, "name_libraries", lambda: {"torch": "9.9"})
    with pytest.raises(ModelsChanged, match="libraries or device are not those that"):
        stage.run("examples", "v1")
    assert states(project)["examples"] == "stale"
    project.edit("params.yaml", "device: cpu\n  strict_environment: true", "device: cpu")
    assert states(project)["examples"] == "stale"  # until it is restored
    assert dvc_state.probe("examples@v1").state == "restored"
