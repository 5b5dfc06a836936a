import math

import pytest
import torch
from worlds.small_models import distance, small_model, small_pool
from worlds.token_rows import batch_rows

from tamis.gradients.distillation import CONFIDENCES, preservation_gradient, weigh

QUERIES, RESPONSES = small_pool()
ANCHORS = batch_rows(QUERIES, RESPONSES, tokens=24)


def slow_confidence(q, confidence):
    """A token's confidence, a word at a time."""
    if confidence == "uniform":
        return 1.0
    if confidence == "max_prob":
        return max(q)
    return 1.0 + sum(word * math.log(word) for word in q) / math.log(len(q))


def slow_loss(model, teacher, confidence, tau, loss_per="row"):
    """L_CWSD as a graph, an example and a token at a time, and the confidences w_n."""
    total, size, weights = 0.0, 0.0, []
    for query, response in zip(QUERIES, RESPONSES, strict=True):
        tokens = torch.tensor([query + response])
        with torch.no_grad():
            told = teacher(input_ids=tokens, use_cache=False).logits[0]
        logits = model(input_ids=tokens, use_cache=False).logits[0]
        divergence, weight = 0.0, 0.0
        for place in range(len(query) - 1, len(query) + len(response) - 1):
            q, p = (told[place] / tau).softmax(-1), (logits[place] / tau).softmax(-1)
            divergence = divergence + sum(q[z] * (q[z].log() - p[z].log()) for z in range(len(q))) / len(response)
            weight += slow_confidence(q.tolist(), confidence) / len(response)
        tokens = len(response) if loss_per == "token" else 1
        total, size = total + tokens * weight * divergence, size + tokens * weight
        weights.append(weight)
    return tau**2 * total / size, weights


@pytest.mark.parametrize(("confidence", "loss_per"), [*((name, "row") for name in CONFIDENCES), ("max_prob", "token")])
def test_the_gradient_is_that_of_the_slow_loop(confidence, loss_per):
    model, teacher = small_model("gpt2", seed=0), small_model("gpt2", seed=3)
    loss, weights = slow_loss(model, teacher, confidence, tau=2.0, loss_per=loss_per)
    names = [name for name, _ in model.named_parameters()]
    wanted = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    found = preservation_gradient(model, teacher, ANCHORS, confidence=confidence, tau=2.0, loss_per=loss_per)
    assert found.loss == pytest.approx(loss.item(), rel=1e-10)
    assert found.weights.tolist() == pytest.approx(weights, rel=1e-10)
    assert max(distance(found.v_prior[name], wanted[name]) for name in names) <= 1e-8


def test_a_model_that_is_its_own_teacher_has_nothing_to_preserve():
    found = preservation_gradient(small_model("opt"), small_model("opt"), ANCHORS)
    assert found.loss == pytest.approx(0.0, abs=1e-12)
    assert max(float(tensor.abs().max()) for tensor in found.v_prior.values()) < 1e-12


def test_divergences_are_not_below_zero():
    found = preservation_gradient(small_model("opt"), small_model("opt", seed=3), ANCHORS)
    assert bool((found.divergences > 0).all())


def test_a_step_against_the_gradient_lowers_the_loss():
    model, teacher = small_model("llama"), small_model("llama", seed=3)
    before = preservation_gradient(model, teacher, ANCHORS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.sub_(before.v_prior[name], alpha=1e-3)
    assert preservation_gradient(model, teacher, ANCHORS).loss < before.loss


def test_a_group_of_parameters_gives_its_part():
    model, teacher = small_model("llama"), small_model("llama", seed=3)
    whole = preservation_gradient(model, teacher, ANCHORS).v_prior
    part = preservation_gradient(model, teacher, ANCHORS, keep=["model.norm.weight"]).v_prior
    assert list(part) == ["model.norm.weight"]
    assert distance(part["model.norm.weight"], whole["model.norm.weight"]) <= 1e-12


def test_the_teacher_is_not_changed():
    model, teacher = small_model("llama"), small_model("llama", seed=3)
    preservation_gradient(model, teacher, ANCHORS)
    before = small_model("llama", seed=3).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())


def test_nothing_depends_on_a_seed():
    found = []
    for seed in (0, 1):
        model, teacher = small_model("llama"), small_model("llama", seed=3)
        torch.manual_seed(seed)
        found.append(preservation_gradient(model, teacher, ANCHORS).v_prior)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_confidence_is_largest_where_the_teacher_is_sure(confidence):
    sure, unsure = weigh(torch.tensor([[99.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), confidence).tolist()
    assert sure == pytest.approx(1.0)
    assert unsure == pytest.approx({"max_prob": 1 / 3, "entropy_inv": 0.0, "uniform": 1.0}[confidence], abs=1e-6)


def test_an_unknown_confidence_is_refused():
    with pytest.raises(ValueError, match="unknown confidence 'margin'; known: max_prob, entropy_inv, uniform"):
        weigh(torch.zeros(1, 2), "margin")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"confidence": "margin"}, "unknown confidence 'margin'"),
        ({"tau": 0.0}, r"tau is 0\.0; it is above 0"),
        ({"batches": []}, "0 anchor examples"),
        ({"teacher": small_model("llama").train()}, "the teacher is in training mode"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changed, why):
    given = {"model": small_model("llama"), "teacher": small_model("llama"), "batches": ANCHORS, **changed}
    with pytest.raises(ValueError, match=why):
        preservation_gradient(given.pop("model"), given.pop("teacher"), given.pop("batches"), **given)


def test_a_teacher_with_another_vocabulary_is_refused():
    teacher = small_model("llama")
    teacher.resize_token_embeddings(40)
    with pytest.raises(ValueError, match="the model has 37 words and the teacher 40"):
        preservation_gradient(small_model("llama"), teacher, ANCHORS)


def test_a_teacher_that_is_nowhere_confident_is_refused():
    teacher = small_model("llama", tied=False)
    torch.nn.init.zeros_(teacher.lm_head.weight)
    with pytest.raises(ValueError, match="confidences of all 7 anchors are 0; set confidence: uniform"):
        preservation_gradient(small_model("llama"), teacher, ANCHORS, confidence="entropy_inv")
