"""The lock holds the whole environment at exact versions, and resolves for Python 3.12."""

import re
import subprocess
import sys
from importlib.metadata import distributions

import lock
import pytest

LINES = [line for line in lock.LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
LINE = re.compile(r'([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][a-z0-9.]*)(?: ; python_version (<|>=) "3\.12")?')
NO_WHEELS = ("antlr4-python3-runtime", "apricot-select", "rouge-score")


def read_pins() -> dict[str, set[str]]:
    """Return the versions of each package in the lock: one, or two under markers."""
    pins: dict[str, set[str]] = {}
    for line in LINES:
        name, version, _ = LINE.fullmatch(line).groups()
        pins.setdefault(name, set()).add(version)
    return pins


def find_strangers(found: dict[str, str]) -> dict[str, str]:
    """Return the packages that do not stand in the lock at their version."""
    pins = read_pins()
    return {name: version for name, version in found.items() if version not in pins.get(name, ())}


def test_every_line_is_one_package_at_one_version_without_a_path_or_a_host():
    assert [line for line in LINES if not LINE.fullmatch(line)] == []


def test_lines_are_sorted_and_the_project_itself_is_not_among_them():
    names = [line.partition("==")[0] for line in LINES]
    assert names == sorted(names)
    assert "tamis" not in names


def test_pip_and_what_builds_the_project_stand_in_the_lock():
    needed = [re.match(r"[\w.-]+", each)[0] for each in lock.list_build_requirements()]
    assert {"pip", *needed} <= set(read_pins())


def test_what_is_installed_is_what_the_lock_says(request):
    if request.config.getoption("latest"):
        pytest.skip("the latest packages are installed without the lock")
    found = {lock.normalise(each.name): each.version.partition("+")[0] for each in distributions()}
    del found["tamis"]
    assert find_strangers(found) == {}, "run `make setup`, or `make lock` after a change of pyproject.toml"


def test_a_marker_stands_only_where_both_pythons_need_other_versions():
    old = {"both": "1", "apart": "1", "old": "1"}
    new = {"both": "1", "apart": "2", "new": "2"}
    assert list(lock.merge(old, new)) == [
        'apart==1 ; python_version < "3.12"',
        'apart==2 ; python_version >= "3.12"',
        "both==1",
        "new==2",
        "old==1",
    ]


@pytest.mark.slow
def test_the_lock_resolves_for_python_3_12(tmp_path):
    """Wheels are made of the few packages that have none, as pip resolves for another Python from wheels alone."""
    pip = [sys.executable, "-m", "pip"]
    held = ["--constraint", str(lock.LOCK)]
    build = [*held, "--build-constraint", str(lock.LOCK), "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", "--quiet", *build, *NO_WHEELS], check=True)
    only = ["--only-binary=:all:", "--python-version", "3.12", "--find-links", str(tmp_path)]
    found = lock.resolve(pip, *only, *held, *lock.PROJECT)
    assert find_strangers(found) == {}
    assert {"torch", "transformers", "prefect"} <= set(found)


@pytest.mark.slow
def test_python_3_12_itself_finds_all_that_it_needs_in_the_lock(tmp_path):
    """Another Python's pip reads the markers of 3.11, so that only this one sees what 3.12 alone needs."""
    if subprocess.run(["python3.12", "--version"], capture_output=True).returncode:
        pytest.skip("there is no python3.12 on the PATH")
    pip = lock.make_pip("python3.12", tmp_path / "bare")
    found = lock.resolve(pip, "--constraint", str(lock.LOCK), "pip", *lock.list_build_requirements(), *lock.PROJECT)
    assert find_strangers(found) == {}
