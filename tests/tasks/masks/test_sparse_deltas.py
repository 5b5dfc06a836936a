"""Sparse deltas: written, read, put into their base and taken out again, merged into a folder."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows import cli
from tamis.masks.sparse_adamw import Delta
from tamis.masks.tensor_layout import MaskError
from tasks import models
from tasks.artifacts.tables import ArtifactError
from tasks.masks import sparse_deltas
from tasks.model_files import write_base
from tasks.models import ModelChoice

ROOT = Path(__file__).parents[3]
IDS = torch.arange(9)[None]
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def make_delta(model: ModelChoice) -> Delta:
    """Some entries of two tensors, with other values than the base's; -0.0 among them."""
    named = dict(models.language_model(model).named_parameters())
    indices = {EMBEDDING: torch.arange(0, 900, 7, dtype=torch.int32), NORM: torch.tensor([2, 5], dtype=torch.int32)}
    values = {name: named[name].detach().view(-1)[places] * 3 for name, places in indices.items()}
    values[NORM][0] = -0.0
    return Delta({name: tuple(weight.shape) for name, weight in named.items()}, indices, values)


@pytest.fixture
def arm(tmp_path, toy) -> Path:
    """The folder of an arm with a delta."""
    folder = tmp_path / "arms/chosen-0"
    folder.mkdir(parents=True)
    sparse_deltas.write_delta(make_delta(toy), folder, toy, {"seed": 0})
    return folder


@pytest.fixture
def base(toy):
    return models.language_model.__wrapped__(toy)


def bits(network) -> list[torch.Tensor]:
    return [weight.detach().clone().view(torch.uint8) for weight in network.parameters()]


def test_a_delta_reads_back_to_the_same_bits(arm, toy):
    made, (found, header) = make_delta(toy), sparse_deltas.read_delta(arm)
    assert found.shapes == made.shapes
    for name in made.indices:
        assert torch.equal(found.indices[name], made.indices[name])
        assert torch.equal(found.values[name].view(torch.uint8), made.values[name].view(torch.uint8))
    assert (header["seed"], header["entries"]) == (0, sparse_deltas.count_entries(made))
    assert header["base"] == {
        "name": toy.label,
        "revision": None,
        "dtype": "float32",
        "digest": models.model_digest(toy),
    }


def test_equal_content_is_equal_bytes(arm, toy, tmp_path):
    made = make_delta(toy)
    turned = Delta(made.shapes, dict(reversed(made.indices.items())), dict(reversed(made.values.items())))
    (tmp_path / "again").mkdir()
    size = sparse_deltas.write_delta(turned, tmp_path / "again", toy, {"seed": 0})
    assert (tmp_path / "again/delta.safetensors").read_bytes() == (arm / "delta.safetensors").read_bytes()
    assert size == (arm / "delta.safetensors").stat().st_size


def test_a_patched_base_has_the_deltas_values_and_afterwards_its_own_bits(arm, toy, base):
    before, made = bits(base), make_delta(toy)
    with sparse_deltas.patched(base, arm, toy) as network:
        named = dict(network.named_parameters())
        for name, places in made.indices.items():
            assert torch.equal(named[name].view(-1)[places], made.values[name])
        changed = sum(int((one != other).any()) for one, other in zip(bits(network), before, strict=True))
        assert changed == 2
    assert all(torch.equal(*pair) for pair in zip(bits(base), before, strict=True))


def test_a_base_is_itself_again_after_an_error_too(arm, toy, base):
    before = bits(base)
    with pytest.raises(RuntimeError, match="inside"), sparse_deltas.patched(base, arm, toy):
        raise RuntimeError("inside")
    assert all(torch.equal(*pair) for pair in zip(bits(base), before, strict=True))


def test_merging_writes_a_folder_that_transformers_loads_with_the_same_logits(arm, toy, base, tmp_path):
    sparse_deltas.merge(arm, toy, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with sparse_deltas.patched(base, arm, toy) as network:
        assert torch.equal(merged(IDS).logits, network(IDS).logits)
    assert merged.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == models.tokenizer(toy).chat_template


def test_adapters_are_merged_too(toy, base, tmp_path):
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with sparse_deltas.quiet_peft():
        network = peft.get_peft_model(base, config)
        network.peft_config["default"].base_model_name_or_path = toy.label
        network.save_pretrained(tmp_path / "arms/chosen-0", save_embedding_layers=False)
        write_base(tmp_path / "arms/chosen-0", toy.name, None)
        wanted = network.eval()(IDS).logits
        sparse_deltas.merge(tmp_path / "arms/chosen-0", toy, tmp_path / "merged")
        other = replace(toy, name=str(shutil.copytree(toy.name, tmp_path / "other")))
        with pytest.raises(MaskError, match=rf"chosen-0 was trained on {toy.label} .*, not on {other.label} "):
            sparse_deltas.merge(tmp_path / "arms/chosen-0", other, tmp_path / "elsewhere")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    (tmp_path / "arms/chosen-0/adapter_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"adapter_config.json is missing; run `tamis run`"):
        sparse_deltas.merge(tmp_path / "arms/chosen-0", toy, tmp_path / "elsewhere")


def test_a_base_with_other_weights_is_refused_by_its_digest(arm, toy, base, tmp_path):
    other = replace(toy, name=str(shutil.copytree(toy.name, tmp_path / "other")))
    with torch.no_grad():
        base.model.norm.weight.add_(1)
    base.save_pretrained(other.name)
    text = f"delta.safetensors was made on another base, models.language: {toy.label}, not folder:other, its digest"
    with pytest.raises(MaskError, match=re.escape(text)):
        sparse_deltas.merge(arm, other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_of_the_same_content_elsewhere_is_taken(arm, toy, tmp_path):
    moved = shutil.copytree(toy.name, tmp_path / "moved")
    sparse_deltas.merge(arm, replace(toy, name=str(moved)), tmp_path / "merged")
    assert (tmp_path / "merged/model.safetensors").exists()


def test_a_base_in_another_type_is_refused_by_name(arm, toy, tmp_path):
    with pytest.raises(MaskError, match=r"made on another base, models.dtype: float32, not bfloat16, its digest"):
        sparse_deltas.merge(arm, replace(toy, dtype="bfloat16"), tmp_path / "merged")


def test_a_base_with_other_tensors_is_refused_with_the_first_that_differ(arm, toy, tmp_path):
    config = AutoConfig.from_pretrained(toy.name)
    config.intermediate_size = 48
    other = shutil.copytree(toy.name, tmp_path / "other")
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    text = r"belongs to another model: 6 of \d+ tensors differ, first model.layers.0.mlp.gate_proj.weight: \(48, 32\)"
    with pytest.raises(MaskError, match=text):
        sparse_deltas.merge(arm, replace(toy, name=str(other)), tmp_path / "merged")


def test_a_folder_that_is_not_empty_is_left_alone(arm, toy, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"merged is there and is not empty; give another folder"):
        sparse_deltas.merge(arm, toy, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_merge_that_fails_leaves_nothing_behind(arm, toy, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparse_deltas, "save_whole", full)
    with pytest.raises(ArtifactError, match=r"merged could not be written: No space left on device; nothing was left"):
        sparse_deltas.merge(arm, toy, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arms"]


def test_an_arm_that_is_not_there_names_those_that_are(arm, toy, tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no arm .*/random-7; .*/arms has chosen-0"):
        sparse_deltas.merge(arm.parent / "random-7", toy, tmp_path / "merged")


def test_a_whole_model_needs_no_merging(toy, tmp_path):
    with pytest.raises(ArtifactError, match=r"is a whole model already: use it as it is"):
        sparse_deltas.merge(Path(toy.name), toy, tmp_path / "merged")


@pytest.mark.parametrize("size", [0, 300, -64], ids=["empty", "in the header", "in the values"])
def test_a_delta_that_is_cut_short_is_refused_with_the_way_out(arm, size):
    path = arm / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"delta.safetensors .*restore it with `dvc checkout"):
        sparse_deltas.read_delta(arm)


def test_a_delta_that_the_disk_refuses_names_the_way_out(arm, toy, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = (arm / "delta.safetensors").read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ArtifactError, match=r"delta.safetensors could not be written: No space left on device"):
        sparse_deltas.write_delta(make_delta(toy), arm, toy, {})
    assert (arm / "delta.safetensors").read_bytes() == before


def test_the_command_merges_an_arm_of_a_version(arm, toy, tmp_path, monkeypatch):
    text = re.sub(r"(?m)^  language: .*$", f"  language: {toy.name}", (ROOT / "params.yaml").read_text())
    text = re.sub(r"(?m)^  device: .*$", "  device: cpu", text)
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^  max_tokens: \d+", "  max_tokens: 256", text))
    shutil.copytree(arm, tmp_path / "data/finetuning/version=v1/arms/chosen-0")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["merge", "v1", "merged"])
    assert done.exit_code == 0, done.output
    assert "merged" in done.stderr
    assert load_file(tmp_path / "merged/model.safetensors")[NORM][2] == 0
    again = CliRunner().invoke(cli.app, ["merge", "v1", "elsewhere", "--arm", "full-3"])
    assert again.exit_code == 1
    assert "there is no arm" in again.stderr
    assert json.loads((tmp_path / "merged/config.json").read_text())["use_cache"]
