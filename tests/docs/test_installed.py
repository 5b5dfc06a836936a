"""What only a built wheel or the real models can show: blocks of kind `wheel` and `slow`."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from worlds.documents import Block, list_lines, list_pages, read_blocks, read_columns
from worlds.projects import ROOT, Project, environment, start_project

pytestmark = pytest.mark.slow
BLOCKS = [block for page in list_pages() for block in read_blocks(page)]


def run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A Python where the wheel of this project is installed; all other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("tamis", "tasks", "flows"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(folder / "source")])
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    python = folder / "venv/bin/python"
    run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)])
    shown = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    others = Path(shown.strip()) / "others.pth"  # a plain line: editable installs of that folder are not followed
    others.write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.kind == "wheel"], ids=lambda block: block.place)
def test_python_runs_from_the_installed_wheel(block, installed, tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = f"{block.text}\nimport tamis.submodular.greedy as used\nprint(used.__file__)\n"
    shown = run([str(installed), "-c", program], cwd=tmp_path, env=clean)
    assert str(installed.parents[1]) in shown.splitlines()[-1]
    assert len([line for line in block.text.splitlines() if line and not line.startswith(("import", "from"))]) <= 10


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Project:
    """A copy of what git knows of this project, under a git of its own."""
    root = tmp_path_factory.mktemp("clone") / "project"
    for name in run(["git", "ls-files"], cwd=ROOT).splitlines():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    kept = (root / ".gitignore").read_text()
    shutil.rmtree(root / ".dvc")
    project = start_project(root)
    (root / ".gitignore").write_text(kept)
    project.git("commit", "--quiet", "--all", "--message", "ignore artifacts")
    return project


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.kind == "slow"], ids=lambda block: block.place)
def test_lines_run_with_the_real_models(block, clone, tmp_path):
    places = {"PYTHONPATH": str(clone.root), "DVC_SITE_CACHE_DIR": str(tmp_path), "PREFECT_HOME": str(tmp_path / "p")}
    printed = [run(["bash", "-ec", line], cwd=clone.root, env=environment(**places)) for line in list_lines(block)]
    shown = next_text(block)
    assert shown is None or read_columns(shown.text) == read_columns(printed[-1])[: len(read_columns(shown.text))]
    assert clone.git("status", "--porcelain", "--untracked-files=no") == ""


def next_text(block: Block) -> Block | None:
    """Return the block of text right after a block."""
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    return next((one for one in following if one.language == "text" and one.page == block.page), None)
