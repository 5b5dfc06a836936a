"""The mask as an artifact: what is written, that it reads back to the same bits, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from worlds.small_models import small_model
from worlds.toy_corpus import write_examples
from worlds.toy_selection import write_phi_param

from tamis.masks import topk
from tamis.masks.tensor_layout import MaskError
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, provenance, read_table
from tasks.masks import mask_tables
from tasks.masks.mask_tables import read_mask, read_plan, write_mask
from tasks.masks.settings import MaskSettings
from tasks.models import ModelChoice

RANDOM = MaskSettings(selector="random", budget={"fraction": 0.1})
DUALSFT = replace(RANDOM, selector="dualsft")
SHAPES = {"model.layers.0.mlp.up_proj.weight": (3, 4), "model.layers.0.mlp.up_proj.bias": (3,), "odd": (2, 3, 2)}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Examples, and no model but what a test says."""
    write_examples(tmp_path / "examples")
    monkeypatch.setattr(models, "model_digest", lambda choice: f"digest of {choice.name}")
    return tmp_path


def pretend(monkeypatch, weights: dict[str, torch.Tensor], name: str = "toy") -> ModelChoice:
    """Let a model with these parameters stand for every choice."""
    network = torch.nn.Module()
    network.named_parameters = lambda: iter(weights.items())
    monkeypatch.setattr(models, "skeleton", lambda choice: network)
    monkeypatch.setattr(models, "language_model", lambda choice: network)
    return ModelChoice(name)


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, model, settings=RANDOM, out="out"):
    facts = write_mask(
        settings,
        examples=folder / "examples/examples.parquet",
        gradients=folder / "gradients",
        out=folder / out,
        version="v1",
        model=model,
    )
    return facts, read_mask(folder / out, model) if settings.selector != "none" else {}


def tables(folder, out="out"):
    read = lambda name, schema: read_table(folder / out / f"{name}.parquet", schema).to_pylist()  # noqa: E731
    return read("mask", schemas.MASK), read("tensors", schemas.TENSORS)


def scores_of(mask: dict[str, np.ndarray], scores: dict[str, torch.Tensor]) -> list[tuple]:
    """List the rows of a mask entry by entry: tensor, row, columns and scores."""
    rows = {}
    for name, indices in mask.items():
        shape = scores[name].shape
        for flat in indices.tolist():
            row, column = divmod(flat, scores[name][0].numel()) if len(shape) > 1 else (0, flat)
            rows.setdefault((name, row), []).append((column, float(scores[name].reshape(-1)[flat])))
    return [(*place, [column for column, _ in found], [score for _, score in found]) for place, found in rows.items()]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("by", ["dualsft", "magnitude", "random"])
def test_a_mask_reads_back_to_the_same_bits(world, monkeypatch, family, by):
    network = small_model(family, tied=family != "llama", dtype=torch.float32)  # llama's has biases
    weights = {**dict(network.named_parameters()), **draw({"odd.weight": (5, 3, 4), "odd.bias": (7,)})}
    model, shapes = pretend(monkeypatch, weights), mask_tables.list_shapes(weights)
    phi = draw(shapes)
    write_phi_param(world, phi, model_digest="digest of toy")
    _, found = write(world, model, replace(RANDOM, selector=by))
    read = {
        "dualsft": phi.get,
        "magnitude": lambda name: weights[name].detach().abs(),
        "random": lambda name: mask_tables.draw(name, shapes[name], 0),
    }[by]
    k = int(0.1 * sum(weight.numel() for weight in weights.values()))
    wanted, _ = topk.choose(shapes, read, k)
    assert list(found) == list(wanted)
    for name, indices in wanted.items():
        assert found[name].dtype == indices.dtype == np.int32
        assert np.array_equal(found[name], indices)
    assert {"odd.weight", *(name for name in weights if name.endswith("fc1.bias") or "c_fc.bias" in name)} <= set(found)


def test_rows_hold_columns_and_their_scores(world, monkeypatch):
    phi = draw(SHAPES)
    model = pretend(monkeypatch, draw(SHAPES, seed=9))
    write_phi_param(world, phi, model_digest="digest of toy")
    _, mask = write(world, model, replace(DUALSFT, budget={"count": 11}))
    rows, _ = tables(world)
    wanted = scores_of(mask, phi)
    assert [(row["tensor"], row["row"], row["columns"], row["chosen"]) for row in rows] == [
        (name, row, columns, len(columns)) for name, row, columns, _ in wanted
    ]
    for row, (*_, scores) in zip(rows, wanted, strict=True):
        assert (row["least"], row["largest"]) == (min(scores), max(scores))
        assert row["mean"] == pytest.approx(np.mean(scores))
    places = {(row["tensor"], row["layer"], row["module"]) for row in rows}
    assert places == {(name, None if name == "odd" else 0, "other" if name == "odd" else "up") for name in SHAPES}


@pytest.mark.parametrize("signed", [False, True])
def test_every_tensor_has_its_density_and_threshold(world, monkeypatch, signed):
    phi = draw(SHAPES) | {"empty": torch.full((5,), -0.01)}
    model = pretend(monkeypatch, phi)
    write_phi_param(world, phi, model_digest="digest of toy")
    settings = replace(DUALSFT, budget={"count": 9}, signed=signed, layer_share=0.0, module_share=0.0)
    facts, mask = write(world, model, settings)
    _, found = tables(world)
    assert [row["tensor"] for row in found] == list(phi)
    for row in found:
        name, scores = row["tensor"], phi[row["tensor"]].numpy().reshape(-1)
        there = scores[mask[name]] if name in mask else np.array([])
        assert row["shape"] == list(phi[name].shape)
        assert (row["entries"], row["chosen"]) == (phi[name].numel(), len(there))
        assert row["density"] == len(there) / phi[name].numel()
        least = (there if signed else np.abs(there)).min() if len(there) else None
        assert row["threshold"] == (None if least is None else float(least))
    assert found[-1]["chosen"] == 0
    assert (facts["entries"], facts["chosen"], facts["density"]) == (32, 9, 9 / 32)
    assert facts["density_of_modules"]["up"] == sum(row["chosen"] for row in found[:2]) / 15


def test_the_plan_says_what_a_mask_was_cut_by(world, monkeypatch):
    model = pretend(monkeypatch, draw(SHAPES))
    write(
        world,
        model,
        MaskSettings(
            selector="random", budget={"fraction": 0.5}, signed=True, layer_share=0.1, module_share=0.3, seed=7
        ),
    )
    plan = read_plan(world / "out")
    assert plan == mask_tables.MaskPlan("random", 13, True, 0.1, 0.3, 7, SHAPES, "digest of toy")
    assert list(plan.shapes) == list(SHAPES)


def test_without_a_mask_both_tables_are_empty_and_no_model_is_read(world):
    facts, _ = write(world, ModelChoice("nowhere"), replace(RANDOM, selector="none"))
    assert facts == {"by": "none", "chosen": 0}
    assert tables(world) == ([], [])
    assert (read_plan(world / "out").selector, read_plan(world / "out").k) == ("none", 0)
    with pytest.raises(MaskError, match=r"mask.parquet is empty: mask.selector is none; name what scores"):
        read_mask(world / "out", ModelChoice("nowhere"))


def test_random_masks_follow_their_seed_alone(world, monkeypatch):
    shapes = {f"layers.{place}.fc1.weight": (20, 30) for place in range(3)}
    model = pretend(monkeypatch, draw(shapes))
    seeds = {"one": 0, "two": 0, "three": 1}
    found = {out: write(world, model, replace(RANDOM, seed=seed), out)[1] for out, seed in seeds.items()}
    content = [(world / out / name).read_bytes() for name in ("mask.parquet", "tensors.parquet") for out in seeds]
    assert content[0] == content[1] != content[2]
    assert content[3] == content[4] != content[5]
    assert any(not np.array_equal(found["one"].get(name), found["three"].get(name)) for name in shapes)
    scores = [mask_tables.draw(name, (1000,), 0) for name in shapes]
    assert abs(np.corrcoef(scores)[np.triu_indices(3, 1)]).max() < 0.15
    assert scores[0].dtype == np.float32


def test_only_what_a_mask_is_cut_by_is_recorded_with_it(world, monkeypatch):
    model = pretend(monkeypatch, draw(SHAPES))
    write_phi_param(world, draw(SHAPES), model_digest="digest of toy")
    write(world, model, replace(DUALSFT, seed=0))
    write(world, model, replace(DUALSFT, seed=1), "again")
    for name in ("mask.parquet", "tensors.parquet"):
        assert (world / "out" / name).read_bytes() == (world / "again" / name).read_bytes()
    made = provenance(world / "out/mask.parquet")
    assert [name.rsplit("/")[-1] for name in made["inputs"]] == ["examples.parquet", "phi_param.safetensors"]
    assert (made["parameters"]["selector"], made["parameters"]["k"], made["seed"]) == ("dualsft", 2, None)
    write(world, model, replace(RANDOM, selector="magnitude"))
    made = provenance(world / "out/mask.parquet")
    assert [name.rsplit("/")[-1] for name in made["inputs"]] == ["examples.parquet"]


@pytest.mark.parametrize("by", ["dualsft", "fisher", "random"])
def test_weights_are_not_read_for_a_mask_that_is_not_cut_by_them(world, monkeypatch, by):
    model = pretend(monkeypatch, draw(SHAPES))
    monkeypatch.delattr(models, "language_model")
    write_phi_param(world, draw(SHAPES), scores=by, model_digest="digest of toy")
    facts, _ = write(world, model, replace(RANDOM, selector=by))
    assert facts["chosen"] == 2


def test_a_tied_head_stands_once(world, toy):
    write(world, toy, replace(RANDOM, budget={"fraction": 0.5}))
    names = [row["tensor"] for row in tables(world)[1]]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_scores_of_a_narrow_model_are_compared_as_float32(world, monkeypatch):
    weights = {name: weight.to(torch.bfloat16) for name, weight in draw(SHAPES).items()}
    model = pretend(monkeypatch, weights)
    _, found = write(world, model, replace(RANDOM, selector="magnitude", budget={"count": 1}))
    ((name, (place,)),) = found.items()
    largest = max(weights, key=lambda one: float(weights[one].abs().max()))
    assert (name, place) == (largest, int(weights[largest].float().abs().argmax()))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.0] * 12, r"100.00% of the 4 entries .* 8 entries with .* left out: .*12 of all 12 scores are 0 \(100.0%\)"),
        ([1.0, 2.0] + [0.0] * 10, r"50.00% of the 4 entries .* 8 entries .* 10 of all 12 scores are 0 \(83.3%\)"),
        (
            [5.0] + [3.0] * 5 + [1.0] * 6,
            r"75.00% of the 4 entries of the mask by dualsft .* 2 entries .* lowest indices",
        ),
    ],
)
def test_ties_at_the_threshold_are_told_with_their_share_and_go_to_the_first(world, monkeypatch, values, text):
    phi = {"odd": torch.tensor(values).reshape(3, 4)}
    model = pretend(monkeypatch, phi)
    write_phi_param(world, phi, model_digest="digest of toy")
    settings = replace(DUALSFT, budget={"count": 4}, layer_share=0.0, module_share=0.0)
    with pytest.warns(UserWarning, match=text):
        facts, found = write(world, model, settings)
    assert found["odd"].tolist() == [0, 1, 2, 3]
    assert facts["zeros"] == values.count(0.0)
    assert facts["tie_share"] == (4 - len([value for value in values if value > values[3]])) / 4


def test_a_mask_of_everything_leaves_nothing_to_chance(world, monkeypatch):
    phi = {"odd": torch.zeros(3, 4)}
    model = pretend(monkeypatch, phi)
    write_phi_param(world, phi, model_digest="digest of toy")
    facts, found = write(world, model, replace(DUALSFT, budget={"fraction": 1}))
    assert (facts["tie_share"], len(found["odd"])) == (0, 12)


REFUSED = {
    "kind": (
        {"scores": "fisher"},
        SHAPES,
        r"phi_param.safetensors holds scores of fisher and mask.selector is dual",
    ),
    "nothing": ({"scores": None}, {}, r"holds no scores and mask.selector is dualsft; make it again: `tamis run`"),
    "digest": (
        {"model_digest": "another"},
        SHAPES,
        r"belongs to another model: .*dtype is digest of toy here, another",
    ),
    "shape": ({}, SHAPES | {"odd": (2, 3)}, r"1 of 3 tensors differ, first odd: \(2, 3, 2\) here, \(2, 3\) there"),
    "names": ({}, {"x": (1,), **SHAPES}, r"1 of 4 tensors differ, first x: absent here, \(1,\) there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scores_of_another_kind_or_model_are_refused(world, monkeypatch, case):
    known, shapes, text = REFUSED[case]
    write_phi_param(world, draw(shapes), **({"model_digest": "digest of toy"} | known))
    with pytest.raises(MaskError, match=text):
        write(world, pretend(monkeypatch, draw(SHAPES)), DUALSFT)
    assert not (world / "out").exists()


def test_scores_of_other_examples_are_refused(world, monkeypatch):
    write_phi_param(world, draw(SHAPES), model_digest="digest of toy")
    write_examples(world / "examples", pool=7)
    with pytest.raises(
        MaskError, match=r"phi_param.safetensors was made from other examples than those there are; make"
    ):
        write(world, pretend(monkeypatch, draw(SHAPES)), DUALSFT)


def test_scores_that_are_not_finite_are_named_by_their_tensor(world, monkeypatch):
    phi = draw(SHAPES)
    phi["odd"][1, 0, 0] = torch.nan
    write_phi_param(world, phi, model_digest="digest of toy")
    with pytest.raises(MaskError, match=r"1 of 12 scores of odd are not finite, first entry 6: nan; look at"):
        write(world, pretend(monkeypatch, draw(SHAPES)), DUALSFT)


def test_scores_that_are_missing_or_damaged_say_how_to_make_them(world, monkeypatch):
    model = pretend(monkeypatch, draw(SHAPES))
    path = world / "gradients/phi_param.safetensors"
    path.parent.mkdir()
    with pytest.raises(ArtifactError, match=r"phi_param.safetensors is missing; run `tamis run`"):
        write(world, model, DUALSFT)
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match=r"phi_param.safetensors carries no readable record .*or make it again"):
        write(world, model, DUALSFT)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"budget": {"fraction": 0.01}}, r"budget \{'fraction': 0.01\} chooses 0 of 27 parameters; give 1 to 27"),
        ({"budget": {"count": 28}}, r"chooses 28 of 27 parameters"),
        (
            {"layer_share": 0.6, "module_share": 0.5},
            r"quota shares are 0.6 \(layers\) and 0.5 \(modules\); .* at most 1",
        ),
    ],
)
def test_a_mask_that_cannot_be_cut_is_refused_and_nothing_written(world, monkeypatch, changes, text):
    with pytest.raises(MaskError, match=text):
        write(world, pretend(monkeypatch, draw(SHAPES)), replace(RANDOM, **changes))
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("selector", "loss", "Input should be 'none', 'dualsft', 'fisher', 'magnitude' or 'random'"),
        ("budget", {"count": 0}, "Value error, is count: 0, which chooses nothing; it must be above 0"),
        ("budget", {"fraction": 1.5}, "Value error, is fraction: 1.5, over 100% of the parameters"),
        ("layer_share", -0.1, "Input should be greater than or equal to 0"),
        ("module_share", 1.1, "Input should be less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, value, why):
    with pytest.raises(ValidationError, match=rf"(?m)^{name}\n  {why}"):
        replace(RANDOM, **{name: value})


def test_a_mask_for_another_model_is_refused_by_what_differs(world, monkeypatch):
    write(world, pretend(monkeypatch, draw(SHAPES)))
    other = pretend(monkeypatch, draw({name: (*shape, 2) for name, shape in SHAPES.items()}), "other")
    with pytest.raises(
        MaskError, match=r"mask.parquet belongs to another model: 3 of 3 tensors differ, first model.la"
    ):
        read_mask(world / "out", other)
    same = pretend(monkeypatch, draw(SHAPES), "other")
    with pytest.raises(
        MaskError, match=r"same names and shapes, but the digest .* is digest of other here, digest of t"
    ):
        read_mask(world / "out", same)


def test_a_mask_beside_the_tensors_of_another_run_is_refused(world, monkeypatch):
    model = pretend(monkeypatch, draw(SHAPES))
    write(world, model)
    write(world, model, replace(RANDOM, seed=1), "other")
    (world / "other/mask.parquet").replace(world / "out/mask.parquet")
    with pytest.raises(MaskError, match=r"mask.parquet and tensors.parquet in .*out are of two runs"):
        read_mask(world / "out", model)


def test_an_edited_mask_is_refused(world, monkeypatch):
    model = pretend(monkeypatch, draw(SHAPES))
    write(world, model)
    path = world / "out/mask.parquet"
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"mask.parquet was changed after it was written"):
        read_mask(world / "out", model)
