"""A model's files: found, and digested once as long as they stay what they are."""

import json
import shutil

import pytest

from tasks import model_files, models
from tasks.model_files import ModelError


@pytest.fixture
def copy(toy_folder, tmp_path, monkeypatch):
    """A copy of the toy model; the cache is beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_folder, tmp_path / "model")
    return tmp_path / "model"


def test_description_names_each_file_that_decides_a_result_with_size_and_digest(copy):
    (copy / "README.md").write_text("not read")
    about = model_files.describe(str(copy), None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(about["files"])
    assert "README.md" not in about["files"]
    assert about["files"]["config.json"]["size"] == (copy / "config.json").stat().st_size
    assert about["digest"] == model_files.digest(about["files"])


@pytest.mark.parametrize("change", ["bytes", "name", "gone", "more"])
def test_digest_follows_contents_and_names(copy, change):
    before = model_files.describe(str(copy), None)["digest"]
    config = copy / "generation_config.json"
    if change == "bytes":
        text = bytearray((copy / "model.safetensors").read_bytes())
        text[-1] ^= 1
        (copy / "model.safetensors").write_bytes(text)
    elif change == "name":
        config.rename(copy / "other.json")
    elif change == "gone":
        config.unlink()
    else:
        (copy / "more.json").write_text("{}")
    assert model_files.describe(str(copy), None)["digest"] != before


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (
            {"weight_map": {"a": "../other/model.safetensors"}},
            r"names '\.\./other/model\.safetensors', outside of its f",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, r"names '/etc/passwd', outside of its folder; fetch"),
        ({"weight_map": {"a": "model-2.safetensors"}}, r"names 'model-2\.safetensors', which is not there; fetch"),
        ({"weights": {}}, "is no index of weights"),
        ([1], "is no index of weights"),
    ],
)
def test_index_that_leads_elsewhere_is_refused(copy, index, said):
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=said):
        model_files.refuse_strange_index(copy, "toy")
    (copy / "model.safetensors").rename(copy.parent / "model.safetensors")
    with pytest.raises(ModelError, match=said):  # and not that the folder has no weights
        models.folder(models.ModelChoice(str(copy)))
