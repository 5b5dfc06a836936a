"""After every comment and docstring of tasks/ and tamis/ is edited, no stage computes anything anew."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from worlds.toy_corpus import write_examples
from worlds.toy_training import make_world, write_mask

from tasks.models import ModelChoice

ROOT = Path(__file__).parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STAGES = (
    "embedding",
    "utility",
    "scores",
    "scores of less",
    "gradients",
    "finetuning",
    "finetuning in a mask",
    "evaluation",
)
TRAINING = ("scores of less", "gradients", "finetuning", "finetuning in a mask")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_folder) -> Path:
    """What the stages read: examples, and two worlds in which arms are trained, one with a mask."""
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(toy_folder, folder / "toy")
    write_examples(folder / "examples", pool=12, held_out=3, validation=2)
    for name in ("lora", "masked"):
        make_world(folder / name)
    write_mask(folder / "masked", ModelChoice(str(folder / "toy"), device="cpu", max_tokens=256), by="dualsft")
    write_examples(folder / "before/examples", pool=0, held_out=0)
    (folder / "before/out/arms").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> tuple[dict, dict]:
    """What all stages did with the code as it is, and then with every comment and docstring edited."""
    copy = tmp_path_factory.mktemp("code")
    for name in ("tasks", "tamis"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (copy / name).rglob("*.py"):
            path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    return run_all(world, ROOT), run_all(world, copy)


def edit(code: str) -> str:
    """Return code with every docstring begun anew and a comment and blank lines before all else.

    >>> print(edit('def f():\\n    \"""Do it.\"""'))
    # Edited.
    <BLANKLINE>
    def f():
        \"""Edited. Do it.\"""
    """
    return "# Edited.\n\n" + re.sub(r'^( *)"""(?=\w)', r'\1"""Edited. ', code, flags=re.MULTILINE)


def run_all(world: Path, code: Path) -> dict:
    """Run all stages by some copy of the code, in a process of its own."""
    paths = os.pathsep.join(map(str, (code, ROOT / "tests")))
    command = [sys.executable, "-m", "worlds.all_stages", str(world)]
    done = subprocess.run(
        command, cwd=world, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_edit_reaches_every_docstring_of_a_module_of_the_arms_key():
    before = (ROOT / "tasks/finetuning/trainer.py").read_text(encoding="utf-8")
    documented = [one for one in ast.walk(ast.parse(before)) if isinstance(one, DOCUMENTED) and ast.get_docstring(one)]
    assert edit(before).count("Edited. ") == len(documented)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_again_and_computes_nothing(runs, stage):
    first, second = (run[stage] for run in runs)
    assert (second["steps"], second["passes"]) == (0, 0)
    assert Path(first["code"]).is_relative_to(ROOT)
    assert "# Edited." in Path(second["code"]).read_text(encoding="utf-8")
    assert first["passes"] > 0
    assert (first["steps"] > 0) == (stage in TRAINING)


@pytest.mark.parametrize("stage", STAGES)
def test_its_artifacts_are_the_same_byte_for_byte(runs, stage):
    first, second = (run[stage]["files"] for run in runs)
    assert first
    assert first == second
