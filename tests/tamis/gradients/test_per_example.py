import pytest
import torch
from worlds.small_models import (
    FAMILIES,
    distance,
    each_gradient,
    inner,
    loss_of,
    random_direction,
    small_model,
    small_pool,
    widen,
)
from worlds.token_rows import batch_rows, make_rows

from tamis.gradients.interaction import Terms, direction
from tamis.gradients.layers import cover
from tamis.gradients.per_example import GradientError, accumulate, group_parameters, score_second, validation_gradient
from tamis.gradients.row_sums import RowSums
from tamis.language.batches import Batch

QUERIES, RESPONSES = small_pool()
PACKED = batch_rows(QUERIES, RESPONSES, tokens=24)


def slow(model, u):
    """G and phi_data from every example's own gradient."""
    gradients = each_gradient(model, QUERIES, RESPONSES)
    G = {name: sum(one[name] for one in gradients) for name in u}
    return G, torch.tensor([inner(u, one) for one in gradients], dtype=torch.float64)


def assert_same_sums(found, wanted):
    least = 1e-6 * max(float(tensor.abs().max()) for tensor in wanted.values())  # key biases: 0 but for rounding
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-8 * max(float(tensor.abs().max()), least), name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_the_sums_and_inner_products_of_each_examples_own_gradient(family, tied, monkeypatch):
    widen(monkeypatch)
    model = small_model(family, tied)
    u = random_direction(model)
    G, phi_data = slow(model, u)
    found = accumulate(model, PACKED, u)
    assert len(PACKED) > 1
    assert distance(found.phi_data, phi_data) <= 1e-8
    assert_same_sums(found.G, G)


@pytest.mark.parametrize("per", ["row", "token"])
def test_rows_that_differ_in_length_only_are_alike_per_row_and_differ_by_their_length_per_token(per, monkeypatch):
    widen(monkeypatch)
    model, lengths = small_model("llama"), [1, 2, 3, 5]  # of one word again and again: every token's gradient is alike
    rows = RowSums(model, cover(model), len(lengths), seed=0, names=None)
    batches = batch_rows([[7, 7]] * len(lengths), [[7] * length for length in lengths], tokens=24)
    found = accumulate(model, batches, random_direction(model), loss_per=per, rows=rows)
    times = torch.tensor(lengths if per == "token" else [1] * len(lengths), dtype=torch.float64)
    assert distance(found.phi_data, times * found.phi_data[0]) <= 1e-6
    assert distance(rows.squared, times**2 * rows.squared[0]) <= 1e-6
    assert distance(rows.sketches.double(), times[:, None] * rows.sketches[0].double()) <= 1e-4


def test_packed_rows_give_what_each_gives_alone():
    model = small_model("llama")
    u = random_direction(model)
    together = accumulate(model, batch_rows(QUERIES, RESPONSES, tokens=10_000), u)
    alone = accumulate(model, batch_rows(QUERIES, RESPONSES, tokens=1), u)
    assert distance(together.phi_data, alone.phi_data) <= 1e-12
    assert distance(together.losses, alone.losses) <= 1e-12
    assert_same_sums(together.G, alone.G)


def test_losses_are_the_mean_over_response_tokens():
    model = small_model("gpt2")
    found = accumulate(model, PACKED, keep=()).losses
    wanted = [loss_of(model, *row).item() for row in zip(QUERIES, RESPONSES, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_pass_scores_as_the_first(family):
    model = small_model(family)
    u = random_direction(model)
    assert distance(score_second(model, PACKED, u).phi_data, accumulate(model, PACKED, u).phi_data) <= 1e-12


def test_rows_and_columns_of_the_interaction_add_up_to_the_same():
    model = small_model("opt")
    u = random_direction(model)
    found = accumulate(model, PACKED, u)
    assert float(found.phi_data.sum()) == pytest.approx(inner(u, found.G), rel=1e-12)


def test_scores_are_linear_in_the_direction():
    model = small_model("gemma")
    one, two = random_direction(model, 1), random_direction(model, 2)
    both = {name: 3.0 * one[name] - two[name] for name in one}
    wanted = 3.0 * score_second(model, PACKED, one).phi_data - score_second(model, PACKED, two).phi_data
    assert distance(score_second(model, PACKED, both).phi_data, wanted) <= 1e-10


def losses_beside(model, u, step):
    """Every example's loss with the weights moved along u; weights are put back."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(u[name], alpha=step)
        found = [loss_of(model, *row).item() for row in zip(QUERIES, RESPONSES, strict=True)]
    model.load_state_dict(before)
    return torch.tensor(found, dtype=torch.float64)


def test_scores_are_the_slope_of_the_losses_along_the_direction():
    model, step = small_model("gpt2"), 1e-5
    u = random_direction(model)
    slope = (losses_beside(model, u, step) - losses_beside(model, u, -step)) / (2 * step)
    assert distance(score_second(model, PACKED, u).phi_data, slope) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_group_of_parameters_at_a_time_gives_the_same_numbers(family):
    model = small_model(family)
    u = random_direction(model)
    whole = accumulate(model, PACKED, u)
    groups = group_parameters(model, largest=900)
    G, phi_data = {}, torch.zeros(len(QUERIES), dtype=torch.float64)
    for names in groups:
        part = accumulate(model, PACKED, {name: u[name] for name in names}, keep=names)
        assert list(part.G) == names
        phi_data += part.phi_data
        G |= part.G
    assert len(groups) > 2
    assert distance(phi_data, whole.phi_data) <= 1e-12
    assert_same_sums(G, whole.G)


def test_groups_hold_every_trainable_parameter_once_and_are_bounded():
    model = small_model("llama")
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    groups = group_parameters(model, largest=900)
    assert [name for names in groups for name in names] == list(sizes)
    assert all(len(names) == 1 or sum(sizes[name] for name in names) <= 900 for names in groups)


def test_sums_of_shards_go_on_from_each_other():
    model = small_model("llama")
    u = random_direction(model)
    first = accumulate(model, batch_rows(QUERIES[:3], RESPONSES[:3], tokens=24), u)
    second = accumulate(model, batch_rows(QUERIES[3:], RESPONSES[3:], tokens=24), u, G=first.G)
    whole = accumulate(model, PACKED, u)
    assert_same_sums(second.G, whole.G)
    assert distance(torch.cat([first.phi_data, second.phi_data]), whole.phi_data) <= 1e-12


def test_the_validation_gradient_is_the_mean():
    model = small_model("llama")
    gradients = each_gradient(model, QUERIES, RESPONSES)
    wanted = {name: sum(one[name] for one in gradients) / len(gradients) for name in gradients[0]}
    assert_same_sums(validation_gradient(model, PACKED), wanted)


def test_per_token_gradients_are_of_the_sums_over_tokens():
    model = small_model("gpt2")
    u, sizes = random_direction(model), torch.tensor([len(response) for response in RESPONSES])
    gradients = each_gradient(model, QUERIES, RESPONSES)
    total = {name: sum(size * one[name] for size, one in zip(sizes, gradients, strict=True)) for name in u}
    found, rows = accumulate(model, PACKED, u, loss_per="token"), accumulate(model, PACKED, u)
    assert_same_sums(found.G, total)
    assert distance(found.phi_data, rows.phi_data * sizes) <= 1e-6
    assert torch.allclose(found.losses, rows.losses)
    mean = {name: tensor / sizes.sum() for name, tensor in total.items()}
    assert_same_sums(validation_gradient(model, PACKED, loss_per="token"), mean)


def test_sums_of_bfloat16_weights_do_not_depend_on_how_rows_are_batched():
    model = small_model("llama", dtype=torch.bfloat16)
    together, alone = (accumulate(model, batch_rows(QUERIES, RESPONSES, tokens=size)).G for size in (10_000, 1))
    for name, tensor in together.items():  # each product is of float32: no batch's part of the sum is rounded
        assert (tensor - alone[name]).abs().max() <= 1e-5 * alone[name].abs().max(), name


def test_first_order_along_the_validation_gradient_finds_the_row_that_is_the_validation():
    model = small_model("llama")
    v_new = validation_gradient(model, batch_rows(QUERIES[3:4], RESPONSES[3:4], tokens=24))
    u = direction(Terms(v_new, v_new, lambda_prior=0.0))
    phi_data = accumulate(model, PACKED, u).phi_data
    assert float(phi_data[3]) == pytest.approx(inner(v_new, v_new), rel=1e-10)


def test_no_validation_example_is_refused():
    with pytest.raises(ValueError, match="0 validation examples"):
        validation_gradient(small_model("llama"), [])


def test_frozen_parameters_have_no_sum_and_what_was_trainable_stays_so():
    model = small_model("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    found = accumulate(model, PACKED)
    assert "transformer.wpe.weight" not in found.G
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["transformer.wpe.weight"]
    assert all(weight.grad is None for weight in model.parameters())


def test_nothing_depends_on_a_seed():
    found = []
    for seed in (0, 1):
        model = small_model("llama")
        torch.manual_seed(seed)
        found.append(accumulate(model, PACKED, random_direction(model)))
    assert torch.equal(found[0].phi_data, found[1].phi_data)
    assert all(torch.equal(found[0].G[name], found[1].G[name]) for name in found[0].G)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_half_precision_weights_are_single_precision(dtype):
    model = small_model("llama", dtype=dtype)
    u = {name: tensor.float() for name, tensor in random_direction(model).items()}
    found = accumulate(model, PACKED, u)
    wide = small_model("llama")
    assert {tensor.dtype for tensor in found.G.values()} == {torch.float32}
    assert found.phi_data.dtype == torch.float64
    assert distance(found.phi_data, accumulate(wide, PACKED, random_direction(wide)).phi_data) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_by_rows_and_by_parameters_of_half_precision_weights_add_up_to_the_same(dtype):
    model = small_model("llama", dtype=dtype)
    u = {name: tensor.float() for name, tensor in random_direction(model).items()}
    found = accumulate(model, PACKED, u)
    by_parameters = sum(float((u[name].double() * tensor.double()).sum()) for name, tensor in found.G.items())
    off = abs(float(found.phi_data.sum()) - by_parameters)  # no token's score is rounded to the weights' precision
    assert off <= 1e-5 * float(found.phi_data.abs().sum())


def test_single_precision_is_near_double():
    model, wide = small_model("llama", dtype=torch.float32), small_model("llama")
    found = accumulate(model, PACKED, random_direction(model))
    assert distance(found.phi_data, accumulate(wide, PACKED, random_direction(wide)).phi_data) < 1e-5


@pytest.mark.parametrize("scored", [True, False])
def test_a_gradient_that_is_not_finite_names_the_example(scored):
    model = small_model("llama", tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = torch.nan
    queries = [[33, *query] if row == 4 else [word % 30 for word in query] for row, query in enumerate(QUERIES)]
    responses = [[word % 30 for word in response] for response in RESPONSES]
    (batch,) = batch_rows(queries, responses, tokens=10_000)
    with pytest.raises(GradientError, match=r"1 of a batch's 7 examples .* first places \[4\]") as caught:
        accumulate(model, [batch], random_direction(model) if scored else None)
    assert caught.value.examples == [4]


def test_a_gradient_that_is_not_finite_though_the_loss_is_names_the_example():
    model = small_model("llama", tied=False)

    def spoil(module, args, output):
        if output.requires_grad:
            broken = (model.words == 33)[..., None]
            output.register_hook(lambda dz: dz.masked_fill(broken, torch.inf))

    model.model.embed_tokens.register_forward_hook(lambda module, args, output: setattr(model, "words", args[0]))
    model.model.layers[0].mlp.register_forward_hook(spoil)
    queries = [[33, *query] if row == 2 else [word % 30 for word in query] for row, query in enumerate(QUERIES)]
    batches = batch_rows(queries, [[word % 30 for word in response] for response in RESPONSES], tokens=10_000)
    with pytest.raises(GradientError, match=r"first places \[2\]"):
        accumulate(model, batches)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="in training mode"):
        accumulate(small_model("llama").train(), PACKED)


def test_batches_that_lack_an_example_are_refused():
    with pytest.raises(ValueError, match="do not hold each of 0 to 0 once"):
        accumulate(small_model("llama"), [Batch([3], make_rows([[1]], [[2]]))])


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"1 of 1 names are not trainable parameters of the model, first \['other'\]"):
        accumulate(small_model("llama"), PACKED, {"other": torch.zeros(1)})


def test_an_unknown_name_to_keep_is_refused():
    with pytest.raises(ValueError, match=r"first \['other'\]"):
        accumulate(small_model("llama"), PACKED, keep=["other"])


def test_a_direction_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"1 of 1 tensors differ in shape from the model's, first model.norm.weight \[3\]"
    ):
        accumulate(small_model("llama"), PACKED, {"model.norm.weight": torch.zeros(3)})
