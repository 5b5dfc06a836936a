"""Two hundred data versions in one process, as `tamis continue` runs many that wait: flat memory, and bounded disk.

`tamis serve` looks for versions in a process of its own each time.
"""

import gc
import json
import shutil
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from worlds import yaml_texts
from worlds.projects import ROOT, Project, run_child, toy_row

from flows.stage_calls import CACHE
from flows.unattended import continual
from tasks.artifacts import stores

VERSIONS, EVERY = 200, 20
ROWS = 24  # new ones of each version


@pytest.fixture
def project(real_copy, monkeypatch) -> Project:
    """The real graph with the toy model and no version yet; each trains on the chosen rows alone."""
    monkeypatch.setattr(yaml_texts, "MOST", 1)  # what tests keep is none of a run, and grows with versions
    shutil.rmtree(real_copy.root / "data/raw")
    path = real_copy.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["finetuning"]["arms"] = {"chosen": [0]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return real_copy


def add(project: Project, number: int) -> None:
    """Add a version that continues from the one before, and commit it."""
    home = project.root / f"data/raw/v{number}"
    home.mkdir(parents=True)
    rows = [toy_row(place) for place in range(number * ROWS, (number + 1) * ROWS)]
    (home / "toys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = project.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    versions = values["versions"] if number > 1 else {}
    previous = f"v{number - 1}" if number > 1 else "base"
    values["versions"] = versions | {f"v{number}": {"raw": f"data/raw/v{number}", "previous": previous}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", f"v{number}")


def resident() -> float:
    """Return the megabytes that this process holds."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def measure(path: Path) -> float:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 1e6


def tidy(project: Project) -> None:
    """Run `tamis store --prune --compact`, which is a process of its own."""
    command = [sys.executable, "-m", "flows.cli", "store", "--prune", "--compact"]
    done = run_child(command, project, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_memory_is_flat_and_disk_bounded(project):
    found, known = [], CACHE / "raw.json"
    for number in range(1, VERSIONS + 1):
        add(project, number)
        assert continual.advance(engine="local") == [f"v{number}"]
        if number % EVERY == 0:
            tidy(project)
            kept = sum(measure(CACHE / kind) for kind in stores.KINDS)
            assert known.stat().st_size < 400 * number  # a digest of each raw file
            rest = measure(CACHE) - kept - known.stat().st_size / 1e6
            found.append((number, resident(), kept, rest, measure(Path("data")) + measure(Path(".dvc"))))
            print(*(round(figure, 2) for figure in found[-1]), flush=True)
    _, memory, kept, rest, tree = zip(*found, strict=True)
    assert memory[-1] < memory[0] * 1.1
    assert max(rest) < 2 * rest[0]  # what no later version asks
    assert kept[-1] < 1.2 * kept[0] * VERSIONS / EVERY  # figures of rows, which grow with the rows
    assert tree[-1] < 1.2 * tree[0] * VERSIONS / EVERY  # artifacts, each version's
