"""Writes constraints.txt: every package that `make setup` installs, at one exact version for Python 3.11 and 3.12.

It stands here, not in the Makefile, as tests/test_install.py resolves with the same functions. Nothing is installed:
pip answers from the metadata of the registry. Run it by `make lock`, which gives it the names of the models.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
PROJECT = ("--editable", ".[all]")
PYTHONS = ("python3.11", "python3.12")
HEADER = """\
# Written by `make lock`, never by hand: every package of the environment, pip and what builds included.
# For Python 3.11 and 3.12. A line installs nothing: of cuda, nvidia and triton, only a torch with CUDA needs any.
"""


def make_pip(python: str, folder: Path) -> list[str]:
    """Make an environment that holds the newest pip alone, and return the command that runs this pip."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin/pip"), "install", "--quiet", "--upgrade", "pip"], check=True)
    return [str(folder / "bin/pip")]


def resolve(pip: Sequence[str], *arguments: str) -> dict[str, str]:
    """Return the version of each package of a registry that `pip install` with these arguments would install.

    Names are in their normal form; what only says how a wheel was built, as in 2.13.0+cpu, is left out.
    """
    command = [*pip, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *arguments]
    report = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = [each["metadata"] for each in report["install"] if "dir_info" not in each["download_info"]]
    return {normalise(each["name"]): each["version"].partition("+")[0] for each in found}


def normalise(name: str) -> str:
    """Return the normal form of a package's name, in which pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def list_build_requirements() -> list[str]:
    """Return what pyproject.toml needs to be built."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]


def merge(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Yield the lines for what Python 3.11 and 3.12 install; with markers where both do, at different versions."""
    for name in sorted(old | new):
        versions = {found[name] for found in (old, new) if name in found}
        if len(versions) == 1:
            yield f"{name}=={versions.pop()}"
        else:
            yield f'{name}=={old[name]} ; python_version < "3.12"'
            yield f'{name}=={new[name]} ; python_version >= "3.12"'


def lock(models: Sequence[str]) -> str:
    """Return the text of constraints.txt, with the newest versions that pyproject.toml admits.

    Python 3.12 gets the versions of 3.11, so that the tests on one speak for the other, unless it has none of them.
    """
    wanted = [*PROJECT, "pip", *list_build_requirements()]
    with tempfile.TemporaryDirectory() as folder:
        first, second = (make_pip(python, Path(folder, python)) for python in PYTHONS)
        old = resolve(first, *wanted) | resolve(first, "--no-deps", *models)
        held = Path(folder, "held.txt")
        held.write_text("\n".join(merge(old, old)))
        try:
            new = resolve(second, *wanted, "--constraint", str(held))
        except subprocess.CalledProcessError:
            new = resolve(second, *wanted)
    return HEADER + "\n".join(merge(old, new)) + "\n"


if __name__ == "__main__":
    LOCK.write_text(lock(sys.argv[1:]), encoding="utf-8")
