"""A project with all that can hold a row that is to be erased."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows import cli, params, stage, trials
from flows.graph import dvc_state, revisions
from flows.stage_calls import ERASED, folder
from worlds.made_once import make_once
from worlds.projects import GRAPHS, Project, enter_copy, run_stages, toy_row


def make_whole(real_unrun: Project, factory: pytest.TempPathFactory) -> Project:
    """Two versions, the second trained on from the first; recorded, pushed, and with all that `.cache` can hold."""

    def make(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _write_whole(enter_copy(real_unrun, home / "project", patch))

    return Project(make_once(factory, "whole", make)[0] / "project")


def _write_whole(project: Project) -> None:
    write_rows(project, "v2", range(25, 60))
    project.apply(GRAPHS["real"].version)
    run_stages("v1")
    run_stages("v2", until="finetuning")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "made")
    project.git("tag", "data-v1")
    with dvc_state.opened() as repo:
        revisions.push(repo, [("v1", "data-v1")])
    trials.attempt("examples", "v1", params.read(), {}, stage.sources(["examples@v1"]))
    make_file(Path(".cache/warmup/version=v1/v_new.safetensors"))
    left = Path(".cache/damaged/data/examples/version=v1/examples.parquet")
    left.parent.mkdir(parents=True)
    shutil.copy(folder("examples", "v1") / "examples.parquet", left)


def pick_row() -> dict:
    """A row that the first version chose."""
    chosen = pq.read_table(folder("selection", "v1") / "subset.parquet").to_pylist()
    ids = {one["id"] for one in chosen if one["chosen"]}
    return next(one for one in read_examples("v1") if one["id"] in ids)


def write_rows(project: Project, version: str, places: range, name: str = "toys", **more: str) -> None:
    """Write a raw file with toy rows, of which each can have other fields."""
    home = project.root / f"data/raw/{version}"
    home.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(toy_row(place) | more) + "\n" for place in places]
    (home / f"{name}.jsonl").write_text("".join(lines))


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))


def read_examples(version: str) -> list[dict]:
    return pq.read_table(folder("examples", version) / "examples.parquet", partitioning=None).to_pylist()


def find_bytes(root: Path, *texts: str) -> list[str]:
    """Return the files that hold a text as they are or, of tables, once they are decoded; but git's and the record."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        inside = path.relative_to(root)
        if ".git" in inside.parts or inside == ERASED:
            continue
        content = path.read_bytes()
        if content.startswith(b"PAR1"):
            content += repr(pq.read_table(path, partitioning=None).to_pydict()).encode()
        found += [f"{inside}: {text}" for text in texts if text.encode() in content]
    return found


def erase(id: str, *options: str):
    return CliRunner().invoke(cli.app, ["erase", id, "--because", "asked by its author", *options])


def list_kinds(done) -> dict[str, list[dict]]:
    assert done.exit_code == 0, done.output
    found: dict[str, list[dict]] = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["kind"], []).append(one)
    return found
