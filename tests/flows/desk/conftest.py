"""A project for the desk: two versions, one of them measured, whose rows say what a page could take for markup."""

import json
from pathlib import Path

import pytest
import yaml
from worlds.made_once import make_once
from worlds.projects import Project, enter_copy, run_stages, toy_row

HOSTILE = "<script>alert(1)</script> **bold** $x^2$ [a](javascript:b) \u202e\x07 `code`"


@pytest.fixture(scope="session")
def made(real_unrun, tmp_path_factory) -> Project:
    """The project, which tests leave as it is."""

    def make(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            write_hostile(enter_copy(real_unrun, home / "project", patch))

    return Project(make_once(tmp_path_factory, "desk", make)[0] / "project")


def write_hostile(project: Project) -> None:
    """Run two versions of a project, which is the current folder, with rows whose text could be taken for markup."""
    path = project.root / "data/raw/v1/toys.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, row in enumerate(rows):
        row["response"] += f" {HOSTILE}" if place % 5 == 0 else ""
        row["topic"] = HOSTILE if place % 9 == 0 else row["topic"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_stages("v1")
    (project.root / "data/raw/v2").mkdir()
    (project.root / "data/raw/v2/toys.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows[4:], *map(toy_row, range(40, 60))])
    )
    settings = yaml.safe_load((project.root / "params.yaml").read_text())
    settings["versions"]["v2"] = {"raw": "data/raw/v2", "previous": "v1"}
    (project.root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stages("v2", until="selection")


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    return enter_copy(made, tmp_path / "project", monkeypatch)


@pytest.fixture
def hostile() -> str:
    """What some responses end with."""
    return HOSTILE
