import pytest
import torch
from worlds.small_models import FAMILIES, each_gradient, small_model, small_pool, widen
from worlds.token_rows import batch_rows

from tamis.gradients.fisher import fisher_information
from tamis.gradients.per_example import GradientError, group_parameters

QUERIES, RESPONSES = small_pool()
PACKED = batch_rows(QUERIES, RESPONSES, tokens=24)


def slow(model, loss_per):
    """The mean square of every example's own gradient, by autograd."""
    found = {}
    for one, response in zip(each_gradient(model, QUERIES, RESPONSES), RESPONSES, strict=True):
        tokens = len(response) if loss_per == "token" else 1
        for name, gradient in one.items():
            found[name] = found.get(name, 0.0) + (tokens * gradient) ** 2 / len(QUERIES)
    return found


@pytest.mark.parametrize(("family", "loss_per"), [*((name, "row") for name in FAMILIES), ("gpt2", "token")])
def test_it_is_the_mean_square_of_each_examples_own_gradient(family, loss_per, monkeypatch):
    widen(monkeypatch)
    model = small_model(family)
    found, wanted = fisher_information(model, PACKED, loss_per=loss_per), slow(model, loss_per)
    least = 1e-12 * max(float(tensor.max()) for tensor in wanted.values())  # key biases: 0 but for rounding
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-8 * max(float(tensor.max()), least), name
        assert bool((found[name] >= 0).all())


def test_how_examples_are_batched_does_not_matter():
    model = small_model("llama")
    found = [fisher_information(model, batch_rows(QUERIES, RESPONSES, tokens=size)) for size in (1, 10_000)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_group_of_parameters_at_a_time_gives_the_same_numbers():
    model = small_model("llama")
    whole, found = fisher_information(model, PACKED), {}
    for names in group_parameters(model, largest=900):
        part = fisher_information(model, PACKED, keep=names)
        assert list(part) == names
        found |= part
    assert all(torch.allclose(found[name], whole[name], rtol=1e-12, atol=0) for name in whole)


def test_repeated_examples_change_nothing_and_one_alone_gives_its_square():
    model = small_model("llama")
    twice = fisher_information(model, batch_rows(QUERIES * 2, RESPONSES * 2, tokens=24))
    once = fisher_information(model, PACKED)
    alone = fisher_information(model, batch_rows(QUERIES[2:3], RESPONSES[2:3], tokens=24))
    gradient = each_gradient(model, QUERIES[2:3], RESPONSES[2:3])[0]
    for name in once:
        assert torch.allclose(twice[name], once[name], rtol=1e-12, atol=0)
        assert torch.allclose(alone[name], gradient[name] ** 2, rtol=1e-8, atol=1e-20)


def test_nothing_depends_on_a_seed():
    model, found = small_model("llama"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(fisher_information(model, PACKED))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_of_bfloat16_have_sums_of_float32():
    found = fisher_information(small_model("llama", dtype=torch.bfloat16), PACKED)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_a_gradient_that_is_not_finite_names_the_example():
    model = small_model("llama", tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = torch.nan
    queries = [[33, *query] if row == 4 else [word % 30 for word in query] for row, query in enumerate(QUERIES)]
    batches = batch_rows(queries, [[word % 30 for word in one] for one in RESPONSES], tokens=24)
    with pytest.raises(GradientError, match=r"first places \[4\]") as caught:
        fisher_information(model, batches)
    assert caught.value.examples == [4]


def test_no_example_is_refused():
    with pytest.raises(ValueError, match="0 examples, so Fisher information is not known"):
        fisher_information(small_model("llama"), [])
