"""Artifacts that are not of one run: what the audit says of them."""

import json
from pathlib import Path

import pytest
from toy_project import World, make_world

from tasks import audit
from tasks.artifacts import Provenance, digest_inputs, provenance, read_table, write_json, write_table


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


def test_an_artifact_made_from_other_examples_is_named(world):
    world.write()
    remake(world.folder("examples") / "examples.parquet", parameters={"seed": 1})
    text = "provenance: 5, first embedding.parquet was made from another examples.parquet than the one there is"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def remake(path: Path, parameters: dict) -> None:
    """Put an artifact of another run in a table's place, with the same inputs."""
    made = provenance(path)
    write_table(read_table(path), path, Provenance(made["stage"], made["version"], parameters, made["inputs"]))


@pytest.mark.parametrize(
    ("swapped", "follower"),
    [
        ("selection/version=v1/subset.parquet", "finetuning.json"),
        ("embedding/version=v1/embedding.parquet", "utility.parquet"),
        ("utility/version=v1/utility.parquet", "subset.parquet"),
    ],
)
def test_an_artifact_swapped_for_that_of_another_run_is_named(world, swapped, follower):
    path = world.write().root / "data" / swapped
    remake(path, parameters={"seed": 1})
    text = f"provenance: 1, first {follower} was made from another {path.name} than the one there is"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_a_listing_of_arms_that_was_changed_is_named(world):
    path = world.write().folder("finetuning") / "finetuning.json"
    write_json(json.loads(path.read_text()) | {"arms": {"chosen-0": {}}}, path)
    with pytest.raises(
        audit.AuditError, match=r"provenance: 1, first evaluation.parquet was made from another finetun"
    ):
        world.check()


@pytest.mark.parametrize(
    ("gone", "follower"),
    [("finetuning/version=v1/finetuning.json", "evaluation"), ("embedding/version=v1/embedding.parquet", "utility")],
)
def test_an_input_that_is_not_there_is_named(world, gone, follower):
    (world.write().root / "data" / gone).unlink()
    text = f"provenance: 1, first {follower}.parquet was made from {gone}, which is not there"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_a_listing_of_arms_without_inputs_or_version_is_named(world):
    path = world.write().folder("finetuning") / "finetuning.json"
    write_json({"arms": {}}, path)
    remake_evaluation = Provenance("evaluation", "v1", {}, digest_inputs(path))
    table = world.folder("evaluation") / "evaluation.parquet"
    write_table(read_table(table), table, remake_evaluation)
    with pytest.raises(audit.AuditError, match=r"finetuning.json is of version None, not v1, finetuning.json does not"):
        world.check()


def test_raw_rows_are_traced_where_they_are_known(world):
    world.write()
    elsewhere = world.root / "elsewhere/raw/v1/toy.jsonl"
    elsewhere.parent.mkdir(parents=True)
    with pytest.raises(audit.AuditError, match=r"examples.parquet was made from raw/v1/toy.jsonl, which is not there"):
        world.check(raw=elsewhere.parent)
    elsewhere.write_text("another")
    for raw in (elsewhere, elsewhere.parent):
        with pytest.raises(audit.AuditError, match=r"examples.parquet was made from another toy.jsonl than the one"):
            world.check(raw=raw)
    beside = world.root / "data/raw/v1"
    beside.mkdir(parents=True)
    with pytest.raises(audit.AuditError, match=r"examples.parquet was made from raw/v1/toy.jsonl, which is not there"):
        world.check()


def test_the_audit_names_all_that_it_was_made_from(world):
    world.write().check()
    made = provenance(world.folder("audit") / "audit.parquet")
    files = [path for path in (world.root / "data").rglob("*.*") if path.is_file() and path.parts[-3] != "audit"]
    assert made["inputs"] == digest_inputs(*files)


def test_an_artifact_without_inputs_or_of_another_version_is_named(world):
    path = world.write().folder("selection") / "subset.parquet"
    write_table(read_table(path), path, Provenance("selection", "v0"))
    text = r"subset.parquet is of version v0, not v1, subset.parquet does not say what it was made from"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_the_paths_in_a_provenance_record_may_be_whole_ones(world):
    path = world.write().folder("selection") / "subset.parquet"
    source = world.folder("examples") / "examples.parquet"
    write_table(read_table(path), path, Provenance("selection", "v1", inputs={str(source): "0" * 64}))
    with pytest.raises(audit.AuditError, match=r"subset.parquet was made from another examples.parquet"):
        world.check()
