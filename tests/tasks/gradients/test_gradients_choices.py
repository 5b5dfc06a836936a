"""The stage `gradients`: what `selector` and `mask_selector` make it write, and Fisher information."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import SMALL, content, counted, logits_of, run, scored, sets_of, slow_gradient, told

from flows import params
from flows.stage_calls import name_current
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.tables import Provenance, provenance, read_facts, read_table, write_table
from tasks.gradients import row_scores

STORE = "cache"


@pytest.fixture(scope="module")
def choices(tmp_path_factory, toy_folder):
    """Runs of the four ways to choose by gradients, in one scratch folder and store; what each did."""
    folder = tmp_path_factory.mktemp("choices")
    write_examples(folder / "examples", pool=14, target=3, held_out=2)
    model = models.ModelChoice(name=str(toy_folder), device="cpu", max_tokens=256)
    asked = {"both": ("dualsft", "dualsft"), "rows": ("dualsft", "none"), "mask": ("delift", "dualsft")}
    asked |= {"mixed": ("dualsft", "fisher"), "fisher": ("delift", "fisher"), "cover": ("dualsft_cover", "none")}
    settings = replace(SMALL, fisher_rows=5)
    did = {
        name: run(folder, model, settings, out=name, store=STORE, selector=rows, mask_selector=mask)
        for name, (rows, mask) in asked.items()
    }
    return folder, model, did


def test_the_words_of_both_choices_say_what_is_written(choices):
    folder, _, _ = choices
    written = {
        path.name: (
            bool(scored(path)),
            told(path)["scores"],
            read_facts(path / "phi_param.safetensors")["parameters"]["scores"],
        )
        for path in folder.iterdir()
        if (path / "gradients.json").exists()
    }
    assert written == {
        "both": (True, {"rows": "dualsft", "parameters": "dualsft"}, "dualsft"),
        "rows": (True, {"rows": "dualsft", "parameters": None}, None),
        "mask": (False, {"rows": None, "parameters": "dualsft"}, "dualsft"),
        "cover": (True, {"rows": "dualsft_cover", "parameters": None}, None),
        "mixed": (True, {"rows": "dualsft", "parameters": "fisher"}, "fisher"),
        "fisher": (False, {"rows": None, "parameters": "fisher"}, "fisher"),
    }


def test_choices_share_what_was_computed(choices):
    _, _, did = choices
    assert counted(did["both"]) == [14, 14, 8]
    assert [counted(did[name]) for name in ("rows", "mask", "mixed", "fisher", "cover")] == [[0, 0, 0]] * 5
    assert [did[name]["rows_squared"] for name in did] == [0, 0, 0, 5, 0, 0]
    assert did["mixed"]["scoring_seconds"] == pytest.approx(
        did["both"]["scoring_seconds"] + did["fisher"]["scoring_seconds"], abs=2e-3
    )


def test_each_table_is_the_same_bytes_whatever_the_other_is_chosen_by(choices):
    folder, _, _ = choices
    data, param = ({name: content(folder / name)[side] for name in choices[2]} for side in (0, 1))
    assert data["both"] == data["rows"] == data["mixed"] == data["cover"]
    assert param["both"] == param["mask"]
    assert param["mixed"] == param["fisher"]


def test_fisher_information_is_that_of_the_base_model_by_autograd(choices):
    folder, model, _ = choices
    network, sets = AutoModelForCausalLM.from_pretrained(model.name).eval(), sets_of(folder, model)
    sets = sets_of(folder, model, replace(SMALL, fisher_rows=5))
    assert len(sets.fisher) == 5
    assert set(sets.fisher) < set(sets.pool)
    loss = lambda place: torch.nn.functional.cross_entropy(*logits_of(network, sets, place))  # noqa: E731
    each = [slow_gradient(network, loss(place)) for place in sets.fisher]
    found = safetensors.torch.load_file(folder / "fisher/phi_param.safetensors")
    assert found.keys() == each[0].keys()
    for name, tensor in found.items():
        wanted = sum(one[name] ** 2 for one in each) / 5
        assert (tensor - wanted).abs().max() <= 1e-3 * wanted.max(), name
    assert told(folder / "fisher")["rows"] == {"pool": 14, "fisher": 5, "left_out": 0}


def test_records_hold_what_determines_the_figures_and_nothing_else(choices):
    folder, model, _ = choices
    data = provenance(folder / "mixed/phi_data.parquet")["parameters"]
    param = read_facts(folder / "mixed/phi_param.safetensors")
    assert param["parameters"] == {
        "scores": "fisher",
        "fisher_rows": 5,
        "template": "chat",
        "loss_per": "row",
        "matmul": "float32",
        "model": model.label,
        "model_digest": models.model_digest(model),
    }
    assert param["inputs"] == provenance(folder / "mixed/phi_data.parquet")["inputs"]
    assert data["model_digest"] == models.model_digest(model)
    assert data["curvature"] == "corrected"
    unread = {"shard_rows", "pack_tokens", "block_parameters", "fisher_rows"}
    assert not unread & data.keys()
    (about,) = (folder / "cache").rglob("*.json")
    assert json.loads(about.read_text())["kind"] == "gradients"


def test_phi_param_has_a_tensor_for_every_parameter_under_its_name(choices):
    folder, model, _ = choices
    shapes = {name: weight.shape for name, weight in models.language_model(model).named_parameters()}
    for name in ("both", "fisher"):
        found = safetensors.torch.load_file(folder / name / "phi_param.safetensors")
        assert {name: tensor.shape for name, tensor in found.items()} == shapes
        assert told(folder / name)["parameters"] == sum(tensor.numel() for tensor in found.values())


def test_the_law_of_rows_and_columns_is_recorded(choices):
    folder, _, _ = choices
    found = told(folder / "rows")
    assert found["law_residual"] < 1e-5
    assert found["sum_phi_data"] == pytest.approx(sum(scored(folder / "rows")))
    assert {"norm_v_new", "norm_v_prior", "norm_c", "cosine_v_new_v_prior", "zeros_u"} <= found.keys()


@pytest.fixture
def copied(choices, tmp_path):
    """A copy of these runs, to be changed, in a folder of the same name: records hold the last parts of paths."""
    folder = tmp_path / choices[0].name
    for name in ("examples", "scratch", "cache", "rows"):
        shutil.copytree(choices[0] / name, folder / name)
    return folder, choices[1]


def again(folder, model):
    return run(folder, model, out="again", store=STORE, mask_selector="none")


def test_a_part_of_another_run_breaks_the_law_and_is_refused(copied):
    folder, model = copied
    part = next((folder / "cache").rglob("part-*.parquet"))
    table = read_table(part)
    false = table.set_column(1, "score", pa.array([-9.0] * table.num_rows)).cast(row_scores.STORED)
    write_table(false, part.parent / "part-0.parquet", Provenance("gradients", "store", {"seconds": 0.0}))
    with pytest.raises(ValueError, match=rf"allowed are 0\.001: a part of {part.parent} or of .* is not of this run"):
        again(folder, model)
    assert not (folder / "again").exists()


def test_compacting_the_store_changes_nothing_and_pruning_keeps_what_is_of_this_code(copied):
    folder, model = copied
    (place,) = stores.list_folders(folder / "cache")
    with stores.upkeep(folder / "cache"):
        assert stores.compact(place)[:3] == (4, 14, 0)
        kept = stores.prune(folder / "cache", current(model))
    assert (kept.removed, kept.unknown) == ([], [])
    assert counted(again(folder, model)) == [0, 0, 0]
    assert content(folder / "again") == content(folder / "rows")
    seconds = [told(folder / name)["seconds"]["second_pass"] for name in ("rows", "again")]
    assert seconds[0] == pytest.approx(seconds[1], abs=2e-3)
    assert len(stores.prune(folder / "cache", current(replace(model, dtype="bfloat16"))).removed) == 1


def current(model) -> set[str]:
    """Return the digests of code and models that a project with this model names."""
    values = params.read(Path(__file__).parents[3] / "params.yaml")
    named = replace(values.models, language=model.name, embedding=model.name, device="cpu", dtype=model.dtype)
    return name_current(replace(values, models=replace(named, max_tokens=model.max_tokens)))
