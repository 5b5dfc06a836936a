import copy

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM
from worlds.small_models import FAMILIES, random_direction, small_model, small_pool
from worlds.token_rows import batch_rows

from tamis.gradients.layers import GradientSums, cover, watch
from tamis.gradients.per_example import accumulate, verify_coverage


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_is_covered_once_or_as_tied(family, tied):
    model = small_model(family, tied)
    names = [name for one in cover(model) for name in one.names.values()]
    twice = {model.get_input_embeddings().weight} if tied else set()
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert len(names) == len(set(names)) + len(twice)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", {"embedding", "scale", "linear"}),
        ("gpt2", {"embedding", "scale", "transposed", "linear"}),
        ("opt", {"embedding", "scale", "linear"}),
    ],
)
def test_kinds_are_told_by_what_modules_do(family, kinds):
    assert {one.kind for one in cover(small_model(family))} == kinds


def test_a_frozen_parameter_is_not_covered():
    model = small_model("opt")
    model.model.decoder.layers[0].fc1.weight.requires_grad_(False)
    names = {name for one in cover(model) for name in one.names.values()}
    assert "model.decoder.layers.0.fc1.weight" not in names
    assert "model.decoder.layers.0.fc1.bias" in names


def test_covers_come_in_the_order_in_which_they_run():
    kinds = [one.kind for one in cover(small_model("llama", tied=False))]
    assert kinds[:3] == ["embedding", "scale", "linear"]
    assert kinds[-2:] == ["scale", "linear"]


def test_a_model_without_trainable_parameters_is_refused():
    model = small_model("llama").requires_grad_(False)
    with pytest.raises(ValueError, match="LlamaForCausalLM has 0 trainable parameters"):
        cover(model)


class Squared(nn.Module):
    """A norm's shape, but not affine in its weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight**2


class Filter(nn.Module):
    """A convolution over channels: a weight of three dimensions."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width, dtype=torch.float64)[:, :, None])

    def forward(self, x):
        return nn.functional.conv1d(x.transpose(1, 2), self.weight).transpose(1, 2)


class Added(nn.Module):
    """A bare parameter with a name of its own."""

    def __init__(self, width):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width, dtype=torch.float64))

    def forward(self, x):
        return x + self.shift


class Bent(nn.Module):
    """A weight with two dimensions, but no product."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width, dtype=torch.float64))
        self.bias = None

    def forward(self, x):
        return (x @ self.weight).relu()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Squared, r"norm.weight \(Squared: its output is not affine in its weight"),
        (Filter, r"norm.weight \(Filter: a weight of 3 dimensions is not a kind"),
        (Added, r"norm.shift \(Added: its parameters are shift, not weight and bias"),
        (Bent, r"norm.weight \(Bent: its output is not a product"),
    ],
)
def test_an_unknown_kind_is_refused_by_name(kind, why):
    model = small_model("llama")
    model.model.norm = kind(16)
    with pytest.raises(ValueError, match=r"1 of 20 trainable parameters cannot be covered, first model\." + why):
        cover(model)


def test_a_parameter_whose_module_never_runs_is_refused():
    model = small_model("llama")
    model.model.spare = nn.Linear(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"2 of 22 .*model\.spare\.weight \(Linear: it does not run in a forward pass"):
        cover(model)


def test_an_embedding_that_renormalises_its_rows_is_refused():
    model = small_model("llama", tied=False)
    model.model.embed_tokens.max_norm = 1.0
    with pytest.raises(ValueError, match="max_norm or scale_grad_by_freq is not covered"):
        cover(model)


def test_a_model_that_caps_its_logits_is_refused():
    config = Gemma2Config(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=0, pad_token_id=0, final_logit_softcapping=0.05,
    )  # fmt: skip
    with pytest.raises(ValueError, match="its logits are not its head's output"):
        cover(Gemma2ForCausalLM(config).eval())


def test_telling_kinds_changes_nothing():
    model = small_model("gpt2")
    before = copy.deepcopy(model.state_dict())
    cover(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_weight_that_is_used_beside_its_module_is_found():
    model = small_model("llama")
    norm = model.model.norm
    gate = model.model.layers[0].mlp.gate_proj
    norm.register_forward_hook(
        lambda module, args, output: output + nn.functional.linear(args[0], gate.weight)[..., :16]
    )
    with pytest.raises(
        ValueError, match=r"1 of 20 gradients differ from autograd's.*layers\.0\.mlp\.gate_proj\.weight"
    ):
        verify_coverage(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_coverage_of_known_families_is_verified(family):
    verify_coverage(small_model(family))


def test_coverage_is_verified_in_single_and_half_precision():
    verify_coverage(small_model("llama", dtype=torch.float32))
    verify_coverage(small_model("llama", dtype=torch.bfloat16))


def test_hooks_are_gone_after_an_error():
    model = small_model("llama")
    with pytest.raises(RuntimeError), watch(cover(model), GradientSums(random_direction(model), {})):
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.modules())


def test_norms_by_head_are_summed_over_heads_where_tokens_and_heads_are_of_equal_number():
    model = small_model("qwen3")
    u = random_direction(model)
    queries, responses = small_pool(3)
    alone = accumulate(model, batch_rows([queries[1][:2]], [responses[1][:2]], tokens=4), u)
    assert sum(map(len, [queries[1][:2], responses[1][:2]])) == model.config.num_attention_heads
    inner = sum(float((u[name] * alone.G[name]).sum()) for name in u)
    assert alone.phi_data.tolist() == pytest.approx([inner], rel=1e-12)
