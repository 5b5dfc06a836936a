"""Where tensors stand, and entries as rows."""

from itertools import pairwise

import numpy as np
import pytest

from tamis.masks import tensor_layout
from tamis.masks.tensor_layout import MaskError


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.11.self_attn.k_proj.weight", (11, "k")),
        ("model.layers.0.self_attn.q_proj.bias", (0, "q")),  # Qwen
        ("model.layers.0.self_attn.q_norm.weight", (0, "norm")),
        ("model.layers.2.mlp.down_proj.weight", (2, "down")),
        ("model.layers.2.pre_feedforward_layernorm.weight", (2, "norm")),  # Gemma
        ("model.embed_tokens.weight", (None, "embedding")),
        ("model.norm.weight", (None, "norm")),
        ("lm_head.weight", (None, "embedding")),
        ("transformer.wpe.weight", (None, "embedding")),
        ("transformer.h.7.attn.c_attn.weight", (7, "qkv")),
        ("transformer.h.7.attn.c_proj.bias", (7, "o")),
        ("transformer.h.7.mlp.c_proj.weight", (7, "down")),
        ("transformer.h.7.mlp.c_fc.weight", (7, "up")),
        ("transformer.h.7.ln_1.weight", (7, "norm")),
        ("transformer.ln_f.bias", (None, "norm")),
        ("model.decoder.layers.5.self_attn.out_proj.weight", (5, "o")),
        ("model.decoder.layers.5.fc1.weight", (5, "up")),
        ("model.decoder.layers.5.fc2.bias", (5, "down")),
        ("model.decoder.layers.5.self_attn_layer_norm.weight", (5, "norm")),
        ("model.decoder.final_layer_norm.weight", (None, "norm")),
        ("model.decoder.embed_positions.weight", (None, "embedding")),
        ("model.decoder.project_in.weight", (None, "other")),
        ("score", (None, "other")),
    ],
)
def test_a_name_tells_layer_and_module(name, place):
    assert tensor_layout.locate(name) == place


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "GPT2", "OPT"])
def test_every_parameter_of_the_known_families_has_a_module(family):
    import torch
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    config = getattr(transformers, f"{family}Config")(**sizes, **more(family))
    with torch.device("meta"):
        model = getattr(transformers, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")(config)
    places = {name: tensor_layout.locate(name) for name, _ in model.named_parameters()}
    assert [name for name, place in places.items() if place[1] == "other"] == []
    assert {place[0] for place in places.values()} == {None, 0, 1}


def more(family):
    """What else a small model of a family needs."""
    special = {"GPT2": {}, "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16}}
    return special.get(family, {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8})


@pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 3, 2), (), (1, 9), (9, 1)])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_rows_join_to_the_same_bits(shape, kind, monkeypatch):
    monkeypatch.setattr(tensor_layout, "index_type", lambda shape: kind)
    size = int(np.prod(shape))
    for count in {0, 1, size // 2, size}:
        indices = np.sort(np.random.default_rng(count).choice(size, count, replace=False)).astype(kind)
        joined = tensor_layout.join_rows(*tensor_layout.split_rows(indices, shape), shape)
        assert joined.dtype == kind
        assert joined.tobytes() == indices.tobytes()


def test_rows_are_those_of_a_loop_over_entries():
    indices = np.sort(np.random.default_rng(0).choice(60, 20, replace=False)).astype(np.int32)
    rows, offsets, columns = tensor_layout.split_rows(indices, (12, 5))
    found = {row: columns[offsets[n] : offsets[n + 1]].tolist() for n, row in enumerate(rows.tolist())}
    slow = {}
    for index in indices.tolist():
        slow.setdefault(index // 5, []).append(index % 5)
    assert found == slow


def test_a_vector_is_one_row():
    rows, offsets, columns = tensor_layout.split_rows(np.int32([1, 4]), (6,))
    assert (rows.tolist(), offsets.tolist(), columns.tolist()) == ([0], [0, 2], [1, 4])


def test_indices_beyond_two_to_the_31_join_without_overflow():
    shape = (3, 1 << 31)
    indices = np.array([5, (1 << 31) + 5, 3 * (1 << 31) - 1])
    rows, offsets, columns = tensor_layout.split_rows(indices, shape)
    assert rows.tolist() == [0, 1, 2]
    assert tensor_layout.join_rows(rows, offsets, columns.astype(np.int32), shape).tolist() == indices.tolist()
    assert tensor_layout.index_type(shape) == np.int64


def test_row_statistics_are_those_of_a_loop_over_rows():
    values, offsets = np.random.default_rng(0).normal(size=9).astype(np.float32), np.array([0, 2, 3, 9])
    found = tensor_layout.describe_rows(values, offsets)
    rows = [values[start:end].astype(float).tolist() for start, end in pairwise(offsets)]
    assert found["least"].tolist() == [min(row) for row in rows]
    assert found["largest"].tolist() == [max(row) for row in rows]
    assert found["mean"].tolist() == pytest.approx([sum(row) / len(row) for row in rows], rel=1e-15)


def test_densities_of_layers_and_modules_add_up_to_those_of_tensors():
    shapes = {"layers.0.fc1.weight": (4, 2), "layers.0.fc2.weight": (2, 4), "layers.1.fc1.weight": (4, 2), "wte": (3,)}
    found = tensor_layout.densities(shapes, {"layers.0.fc1.weight": 5, "layers.1.fc1.weight": 1, "wte": 3})
    assert found["tensor"]["layers.0.fc2.weight"] == {"entries": 8, "chosen": 0, "density": 0.0}
    assert found["layer"] == {
        0: {"entries": 16, "chosen": 5, "density": 5 / 16},
        1: {"entries": 8, "chosen": 1, "density": 1 / 8},
        None: {"entries": 3, "chosen": 3, "density": 1.0},
    }
    assert found["module"]["up"] == {"entries": 16, "chosen": 6, "density": 6 / 16}


def test_a_mask_of_another_model_is_refused_and_the_first_differences_are_named():
    shapes = {"a": (2, 2), "b": (3,), "c": (1,)}
    tensor_layout.refuse_other(shapes, dict(shapes), "mask")
    with pytest.raises(MaskError, match=r"the mask belongs to another model: 3 of 4 tensors differ, first a: ") as told:
        tensor_layout.refuse_other(shapes, {"a": (2, 3), "b": (3,), "d": (1,)}, "mask")
    assert "a: (2, 2) here, (2, 3) there; c: (1,) here, absent there; d: absent here, (1,) there." in str(told.value)
