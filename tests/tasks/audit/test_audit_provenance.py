"""Artifacts that are not of one run: what the audit says of them."""

import json
from pathlib import Path

import pytest
import safetensors.numpy
from worlds.toy_project import World, make_world

from tasks.artifacts.tables import (
    ArtifactError,
    Provenance,
    digest,
    digest_inputs,
    provenance,
    read_facts,
    read_table,
    write_json,
    write_table,
)
from tasks.audit import audit
from tasks.examples.files import name_inputs


@pytest.fixture
def world(tmp_path) -> World:
    """A project in which every promise is kept."""
    return make_world(tmp_path)


def test_an_artifact_made_from_other_examples_is_named(world):
    world.write()
    remake(world.folder("examples") / "examples.parquet", parameters={"seed": 1})
    text = "provenance: 10, first embedding.parquet was made from another examples/version=v1/examples.parquet than"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def remake(path: Path, parameters: dict, inputs: dict | None = None) -> None:
    """Put an artifact of another run in a table's place, with the same inputs or others."""
    made = provenance(path)
    there = Provenance(made["stage"], made["version"], parameters, inputs or made["inputs"])
    write_table(read_table(path), path, there)


@pytest.mark.parametrize(
    ("swapped", "follower"),
    [
        ("selection/version=v1/subset.parquet", "finetuning.json"),
        ("embedding/version=v1/embedding.parquet", "utility.parquet"),
        ("utility/version=v1/utility.parquet", "subset.parquet"),
        ("scores/version=v1/scores.parquet", "subset.parquet"),
        ("gradients/version=v1/phi_data.parquet", "subset.parquet"),
    ],
)
def test_an_artifact_swapped_for_that_of_another_run_is_named(world, swapped, follower):
    path = world.write().root / "data" / swapped
    remake(path, parameters={"seed": 1})
    text = f"provenance: 1, first {follower} was made from another {swapped} than the one there is"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_scores_of_parameters_swapped_for_those_of_another_run_are_named(world):
    path = world.write().folder("gradients") / "phi_param.safetensors"
    record = read_facts(path) | {"parameters": {"seed": 1}}
    safetensors.numpy.save_file({}, path, {"tamis": json.dumps(record)})
    text = "provenance: 2, first mask.parquet was made from another gradients/version=v1/phi_param.safetensors than the"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_scores_of_parameters_made_from_other_examples_are_named(world):
    path = world.write().folder("gradients") / "phi_param.safetensors"
    record = read_facts(path) | {"inputs": {"examples/version=v1/examples.parquet": "0" * 64}}
    safetensors.numpy.save_file({}, path, {"tamis": json.dumps(record)})
    with pytest.raises(audit.AuditError, match=r"phi_param.safetensors was made from another examples/version=v1/exa"):
        world.check()


def test_scores_of_parameters_without_a_record_are_refused(world):
    path = world.write().folder("gradients") / "phi_param.safetensors"
    safetensors.numpy.save_file({}, path)
    with pytest.raises(ArtifactError, match=r"phi_param.safetensors carries no readable record"):
        world.check()


def test_a_listing_of_arms_that_was_changed_is_named(world):
    path = world.write().folder("finetuning") / "finetuning.json"
    write_json(json.loads(path.read_text()) | {"arms": {"chosen-0": {}}}, path)
    with pytest.raises(
        audit.AuditError, match=r"provenance: 1, first evaluation.parquet was made from another .*finetun"
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
        with pytest.raises(
            audit.AuditError, match=r"examples.parquet was made from another raw/v1/toy.jsonl than the one"
        ):
            world.check(raw=raw)
    beside = world.root / "data/raw/v1"
    beside.mkdir(parents=True)
    with pytest.raises(audit.AuditError, match=r"examples.parquet was made from raw/v1/toy.jsonl, which is not there"):
        world.check()


def test_a_changed_raw_file_is_seen_though_another_ends_with_the_same_folders(world):
    raw = world.write().root / "data/raw/v1"
    files = [raw / language / "p/a/x.jsonl" for language in ("en", "de")]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text(str(path.relative_to(raw)))
    examples, before = world.folder("examples"), world.folder("examples", "base")
    inputs = {name: digest(path) for name, path in name_inputs(raw, files).items()}
    for name in ("examples", "lingering", "withdrawn"):
        remake(examples / f"{name}.parquet", parameters={}, inputs=inputs)
    records = audit.read_records([examples])
    assert audit.trace(records, audit.digest_files(records, raw, before), "v1") == []
    files[0].write_text("edited")
    assert audit.trace(records, audit.digest_files(records, raw, before), "v1") == [
        f"{name}.parquet was made from another raw/v1/en/p/a/x.jsonl than the one there is"
        for name in ("examples", "lingering", "withdrawn")
    ]


def test_the_audit_names_all_that_it_was_made_from(world):
    world.write().check()
    made = provenance(world.folder("audit") / "audit.parquet")
    files = [path for path in (world.root / "data").rglob("*.*") if path.is_file() and path.parts[-3] != "audit"]
    assert made["inputs"] == digest_inputs(*files)


@pytest.mark.parametrize(
    "swapped", [f"{name}.parquet" for name in ("examples/version=base/examples", "selection/version=base/subset")]
)
def test_another_version_before_than_the_one_that_examples_were_made_from_is_named(world, swapped):
    remake(world.write().root / "data" / swapped, parameters={"seed": 1})
    text = rf"provenance: 3, first examples.parquet was made from another {swapped} .*, lingering.parquet was made from"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


def test_a_missing_artifact_of_the_version_before_is_named_even_without_raw_rows(world):
    (world.write().folder("selection", "base") / "subset.parquet").unlink()
    text = "examples.parquet was made from selection/version=base/subset.parquet, which is not there"
    with pytest.raises(audit.AuditError, match=text):
        world.check()


@pytest.mark.parametrize("file", ["finetuning.json", "arms/chosen-0/adapter_model.safetensors"])
def test_training_is_traced_to_the_model_that_it_continues_from(world, file):
    earlier = world.write().folder("finetuning", "base") / file
    earlier.parent.mkdir(parents=True)
    earlier.write_text("weights")
    listing = world.folder("finetuning") / "finetuning.json"
    made = json.loads(listing.read_text())
    write_json(made | {"inputs": made["inputs"] | digest_inputs(earlier)}, listing)
    table = world.folder("evaluation") / "evaluation.parquet"
    remake(table, parameters={}, inputs=digest_inputs(world.folder("examples") / "examples.parquet", listing))
    assert all(world.check()["passed"].to_pylist())
    earlier.write_text("other weights")
    with pytest.raises(audit.AuditError, match=rf"finetuning.json was made from another .*{earlier.name} than the one"):
        world.check()


def test_a_file_of_a_version_that_this_one_does_not_continue_from_is_not_there(world):
    path = world.write().folder("selection") / "subset.parquet"
    other = world.folder("selection", "v0") / "subset.parquet"
    other.parent.mkdir(parents=True)
    other.write_bytes(path.read_bytes())
    remake(path, parameters={}, inputs=digest_inputs(other))
    with pytest.raises(
        audit.AuditError, match=r"subset.parquet was made from selection/version=v0/subset.parquet, whi"
    ):
        world.check()


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
    with pytest.raises(
        audit.AuditError, match=r"subset.parquet was made from another examples/version=v1/examples.parquet"
    ):
        world.check()
