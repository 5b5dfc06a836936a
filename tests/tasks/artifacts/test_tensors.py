"""Tensors on disk: what is written is what is read, whole or not at all."""

import pytest
import safetensors.torch
import torch

from tasks.artifacts.tables import ArtifactError, read_facts
from tasks.artifacts.tensors import read, stream, write


@pytest.fixture
def made(tmp_path):
    """Two files of scores of two dtypes, and what is in them."""
    one = {"b": torch.arange(12.0).view(3, 4), "a": torch.tensor([1.5])}
    two = {"c": torch.arange(5, dtype=torch.float64)}
    write(one, tmp_path / "one", {"rows": 1})
    write(two, tmp_path / "two", {"rows": 2})
    return tmp_path, one | two


def test_tensors_and_facts_come_back(tmp_path):
    given = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16(), "n": torch.zeros(0)}
    write(given, tmp_path / "file", {"rows": 3})
    found, facts = read(tmp_path / "file")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert found.keys() == given.keys()
    assert facts == read_facts(tmp_path / "file") == {"rows": 3}


def test_only_tensors_that_are_named_are_read(made):
    folder, _ = made
    assert read(folder / "one", ["a", "other"])[0].keys() == {"a"}
    assert read(folder / "one", ()) == ({}, {"rows": 1})


def test_what_is_streamed_is_read_by_safetensors_and_holds_one_tensor_at_a_time(made):
    folder, given = made
    stream(
        ((name, -given[name]) for name in ("a", "b", "c")), [folder / "one", folder / "two"], folder / "all", {"k": 1}
    )
    found = safetensors.torch.load_file(folder / "all")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], -tensor) for name, tensor in given.items())
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: one.dtype for name, one in given.items()}
    assert read_facts(folder / "all") == {"k": 1}


def test_nothing_streamed_is_a_file_without_tensors(tmp_path):
    stream((), [], tmp_path / "none", {})
    assert safetensors.torch.load_file(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"b": torch.zeros(3, 4)}, r"b .* was given where a .* belongs"),
        ({"a": torch.zeros(2)}, r"a .*\[2\].* was given where a .*\[1\]"),
        ({"a": torch.zeros(1, dtype=torch.float64)}, "a .*F64.* was given where a .*F32"),
        ({"a": torch.zeros(1)}, r"1 of 2 tensors were not given for .*all, first \['b'\]"),
        ({"a": torch.zeros(1), "b": torch.zeros(3, 4), "d": torch.zeros(1)}, "d .* was given where nothing"),
    ],
)
def test_other_tensors_than_those_of_the_sources_are_refused_and_leave_nothing_behind(made, given, why):
    folder, _ = made
    with pytest.raises(ValueError, match=why):
        stream(given.items(), [folder / "one"], folder / "all", {})
    assert {path.name for path in folder.iterdir()} == {"one", "two"}


def test_a_damaged_file_is_named(made):
    folder, _ = made
    (folder / "one").write_bytes((folder / "one").read_bytes()[:100])
    with pytest.raises(ArtifactError, match=rf"{folder / 'one'} is damaged .*; delete it"):
        read(folder / "one")


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ArtifactError, match=r"v could not be written: No space left on device; nothing was"):
        write({"a": torch.zeros(2)}, tmp_path / "v", {})
    assert not [*tmp_path.iterdir()]
