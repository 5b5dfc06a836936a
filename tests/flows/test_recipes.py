"""Recipes: merged into params.yaml with its comments kept, refused whole where they cannot be used."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import params, recipes
from flows.cli import app

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def strip_blanks(text):
    return re.sub(" +", " ", text)


def test_there_are_the_recipes_that_the_tutorial_names():
    assert NAMES == ["demo", "full", "masked", "scheduled", "target-task", "word-problems"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_says_what_it_is_for(name):
    lines = (ROOT / f"recipes/{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert 5 <= len(lines) <= 15


def test_the_committed_params_are_what_the_demo_gives(project):
    assert recipes.merge("demo") == ""
    assert (project / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_a_recipe_sets_its_values_and_keeps_every_comment(project, name):
    before, was = (project / "params.yaml").read_text(), params.load(project / "params.yaml")
    told = recipes.merge(name)
    after = params.load(project / "params.yaml")
    given = params.load(project / f"recipes/{name}.yaml")
    wanted = [(section, key, value) for section, settings in given.items() for key, value in settings.items()]
    assert all(after[section][key] == value for section, key, value in wanted)
    assert told.count("\n+ ") == sum(was[section][key] != value for section, key, value in wanted) > 0
    comments = re.compile("#.*")
    assert comments.findall((project / "params.yaml").read_text()) == comments.findall(before)
    params.read(project / "params.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_brings_everything_back(project, name):
    recipes.merge(name)
    recipes.merge("demo")
    assert strip_blanks((project / "params.yaml").read_text()) == strip_blanks((ROOT / "params.yaml").read_text())


def test_an_unknown_recipe_is_named_with_the_nearest(project):
    with pytest.raises(params.ParamsError, match=r"no recipe 'maskd' \(did you mean 'masked'\?\); known: demo, full"):
        recipes.merge("maskd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# x\nfinetuning: {method: masked}\n", "finetuning.method is masked and mask.selector is none"),
        ("# x\nfinetunning: {}\n", r"recipes/own.yaml has an unknown 'finetunning' \(did you mean 'finetuning'\?\)"),
        ("", "own.yaml is empty"),
        ("- 1\n", r"own.yaml must hold `name: value` lines, got \[1\]"),
        ("finetuning:\n\tepochs: 1\n", "own.yaml is not valid YAML: line 2, column 1: .* indent with blanks, not tabs"),
        ("mask: {}\nmask: {}\n", r"own.yaml gives mask twice \(line 2\); keep one of them"),
        ("finetuning: [1]\n", r"finetuning in recipes/own.yaml must hold `name: value` lines, got \[1\]"),
        ("# x\nfinetuning: {epoch: 1}\n", r"finetuning has an unknown 'epoch' \(did you mean 'epochs'\?\)"),
    ],
)
def test_a_recipe_that_cannot_be_used_changes_nothing(project, text, message):
    (project / "recipes/own.yaml").write_text(text)
    before = (project / "params.yaml").read_text()
    with pytest.raises(params.ParamsError, match=message):
        recipes.merge("own")
    assert (project / "params.yaml").read_text() == before


def test_the_command_shows_the_difference_line_by_line(project):
    shutil.copy(ROOT / "dvc.yaml", project)
    done = CliRunner().invoke(app, ["recipe", "masked"])
    assert done.exit_code == 0, done.output
    lines = [strip_blanks(line) for line in done.stdout.splitlines()]
    assert "- method: lora # lora | full | masked: adapters | all weights | the parameters of the mask" in lines
    assert "+ method: masked # lora | full | masked: adapters | all weights | the parameters of the mask" in lines
    assert not [line for line in lines if "\\n" in line]
