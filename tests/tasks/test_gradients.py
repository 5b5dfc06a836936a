"""The room `gradients`: figures against plain autograd, crashes, artifacts."""

import builtins
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from toy_corpus import write_examples
from toy_gradients import FIRST, SMALL, content, counted, run, scored, sets_of, told
from transformers import AutoModelForCausalLM

from tamis.finetuning import plan_steps, scale_rate
from tasks import gradients, groundwork, models
from tasks.artifacts import Provenance, provenance, read_table, write_table

pytestmark = pytest.mark.slow  # a minute in all

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


def logits_of(network, sets, place):
    """Return the logits that predict a row's response, and the response, by one plain pass."""
    before, answer = sets.encoding.base + sets.encoding.queries[place], sets.encoding.responses[place]
    logits = network(input_ids=torch.tensor([before + answer]), use_cache=False).logits[0]
    return logits[len(before) - 1 : -1], torch.tensor(answer)


def slow_gradient(network, loss):
    return dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, [*network.parameters()]), strict=True))


def slow_warm_up(network, sets, settings):
    """Train in place by plain passes; return AdamW's second moments and the number of steps."""
    steps = plan_steps(len(sets.warmup), settings.batch_rows, 1, settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    for number, places in enumerate(steps):
        optimizer.param_groups[0]["lr"] = settings.eta * scale_rate(number, len(steps), 0.1)
        rows = [logits_of(network, sets, sets.warmup[place]) for place in places]
        logits, answers = (torch.cat(side) for side in zip(*rows, strict=True))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, answers).backward()
        optimizer.step()
    return {name: optimizer.state[weight]["exp_avg_sq"] for name, weight in network.named_parameters()}, len(steps)


def slow_prior(network, teacher, sets, settings):
    """The gradient of L_CWSD with weights by the largest probability, an anchor at a time."""
    total, weights = 0.0, 0.0
    for place in sets.anchors:
        with torch.no_grad():
            q = (logits_of(teacher, sets, place)[0] / settings.tau).softmax(-1)
        p = (logits_of(network, sets, place)[0] / settings.tau).log_softmax(-1)
        weight = q.amax(-1).mean()
        total = total + weight * (q * (q.log() - p)).sum(-1).mean()
        weights = weights + weight
    return slow_gradient(network, settings.tau**2 * total / weights)


def slow_scores(model, sets, settings):
    """phi_data and phi_param from every row's own gradient."""
    network, teacher = (AutoModelForCausalLM.from_pretrained(model.name).eval() for _ in range(2))
    moments, steps = slow_warm_up(network, sets, settings)
    loss = lambda place: torch.nn.functional.cross_entropy(*logits_of(network, sets, place))  # noqa: E731
    steering = [slow_gradient(network, loss(place)) for place in sets.validation]
    each = [slow_gradient(network, loss(place)) for place in sets.pool]
    prior, u, G = slow_prior(network, teacher, sets, settings), {}, {}
    for name, moment in moments.items():
        G[name] = sum(one[name] for one in each)
        u[name] = settings.lambda_new * sum(one[name] for one in steering) / len(steering)
        u[name] = u[name] + settings.lambda_prior * prior[name]
        if settings.order == "second":
            c = moment / (1 - BETA2**steps) if settings.curvature == "corrected" else moment
            u[name] = u[name] - 0.5 * settings.eta * c * G[name]
    phi_data = [float(sum((u[name] * one[name]).sum() for name in u)) for one in each]
    return np.array(phi_data), {name: u[name] * G[name] for name in u}


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("curvature", ["raw", "corrected"])
def test_figures_are_those_of_every_rows_own_gradient(corpus, toy, order, curvature):
    tmp_path, ids = corpus
    settings = replace(SMALL, order=order, curvature=curvature, eta=3e-2)
    run(tmp_path, toy, settings)
    phi_data, phi_param = slow_scores(toy, sets_of(tmp_path, toy, settings), settings)
    table = read_table(tmp_path / "out/phi_data.parquet", gradients.PHI_DATA)
    found = safetensors.torch.load_file(tmp_path / "out/phi_param.safetensors")
    assert table["id"].to_pylist() == ids
    assert set(table["order"].to_pylist()) == {order}
    assert table["score"].to_numpy() == pytest.approx(phi_data, abs=2e-3 * np.abs(phi_data).max())
    assert found.keys() == phi_param.keys()
    for name, wanted in phi_param.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - wanted).abs().max() <= 5e-3 * wanted.abs().max(), name


def test_the_checkpoint_is_that_of_plain_steps_of_adamw(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    network, sets = AutoModelForCausalLM.from_pretrained(toy.name).eval(), sets_of(tmp_path, toy)
    expected, steps = slow_warm_up(network, sets, SMALL)
    moments, facts = groundwork.read(next((tmp_path / "scratch").glob("moments-*.safetensors")))
    weights, _ = groundwork.read(next((tmp_path / "scratch").glob("weights-*.safetensors")))
    assert (facts["steps"], facts["beta2"]) == (steps, BETA2)
    for name, weight in network.named_parameters():
        assert (moments[name] - expected[name]).abs().max() <= 1e-4 * expected[name].max(), name
        assert (weights[name] - weight).abs().max() <= 0.1 * SMALL.eta, name


def test_the_second_order_term_is_of_weight_in_these_tests(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, replace(SMALL, eta=3e-2))
    assert told(tmp_path / "out")["second_over_first"] > 0.01


def test_the_law_of_rows_and_columns_is_recorded(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    found = told(tmp_path / "out")
    assert found["law_residual"] < 1e-5
    assert found["sum_phi_data"] == pytest.approx(sum(scored(tmp_path / "out")))
    assert {"norm_v_new", "norm_v_prior", "norm_c", "cosine_v_new_v_prior", "zeros_u"} <= found.keys()


def test_a_part_of_another_run_breaks_the_law_and_is_refused(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    part = next((tmp_path / "store").rglob("part-*.parquet"))
    false = pa.table([ids[:4], [-9.0] * 4], schema=gradients.STORED)
    write_table(false, part.parent / "part-0.parquet", Provenance("gradients", "store", {"seconds": 0.0}))
    with pytest.raises(ValueError, match=rf"allowed are 0\.001: a part of {part.parent} or of .* is not of this run"):
        run(tmp_path, toy, out="again")
    assert not (tmp_path / "again").exists()


def test_how_the_work_is_cut_is_no_part_of_the_figures(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    run(tmp_path, toy, replace(SMALL, shard_rows=50, pack_tokens=4000), out="other", scratch="other", store="apart")
    assert scored(tmp_path / "other") == pytest.approx(scored(tmp_path / "out"), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "at", "left"),
    [(FIRST, "add_shard", [6, 0, 2]), (SMALL, "add_shard", [6, 14, 6]), (SMALL, "score_shard", [0, 6, 2])],
    ids=["first order", "second order, first pass", "second order, second pass"],
)
def test_a_crash_loses_one_shard_and_the_next_run_gives_the_same_bytes(corpus, toy, settings, at, left):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings, out="whole", scratch="whole", store="apart")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy, settings, map=stop_after(2, at))
    assert counted(run(tmp_path, toy, settings)) == left
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("settings", [FIRST, SMALL], ids=["first order", "second order"])
def test_a_kill_before_a_shards_sum_is_kept_counts_none_twice(corpus, toy, settings, monkeypatch):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings, out="whole", scratch="whole", store="apart")
    whole, written = groundwork.write, []

    def killed(tensors, path, facts):
        written.append(path.name[0])
        if written.count("G") == 3:
            (path.parent / f".{path.name}.stray.part").write_bytes(b"half of it")
            raise KeyboardInterrupt
        whole(tensors, path, facts)

    with monkeypatch.context() as patch:
        patch.setattr(groundwork, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, toy, settings)
    assert run(tmp_path, toy, settings)["rows_summed"] == 14 - 8
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not [*(tmp_path / "scratch").glob("*.part")]


@pytest.mark.parametrize("lost", ["weights", "moments", "v_new", "v_prior", "G"])
def test_what_scratch_has_lost_is_made_again_to_the_same_bytes(corpus, toy, lost):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    next((tmp_path / "scratch").glob(f"{lost}-*.safetensors")).unlink()
    run(tmp_path, toy, out="again")
    assert content(tmp_path / "again") == content(tmp_path / "out")


@pytest.mark.parametrize("settings", [FIRST, SMALL], ids=["first order", "second order"])
def test_shards_that_run_at_once_give_the_same_bytes(corpus, toy, settings):
    tmp_path, _ = corpus
    run(tmp_path, toy, settings)
    with ThreadPoolExecutor(4) as pool:
        run(tmp_path, toy, settings, out="other", scratch="other", store="apart", map=pool.map)
    assert content(tmp_path / "other") == content(tmp_path / "out")


def test_one_sum_of_gradients_is_kept_whatever_the_number_of_shards(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, replace(SMALL, shard_rows=1))
    kinds = sorted(path.name.split("-")[0] for path in (tmp_path / "scratch").glob("*.safetensors"))
    assert kinds == ["G", "moments", "v_new", "v_prior", "weights"]


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(corpus, toy):
    tmp_path, _ = corpus
    first = run(tmp_path, toy)
    again = run(tmp_path, toy, out="again")
    assert counted(first) == [14, 14, 8]
    assert counted(again) == [0, 0, 0]
    assert again["scoring_seconds"] == first["scoring_seconds"]
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert (tmp_path / "again/gradients.json").read_bytes() == (tmp_path / "out/gradients.json").read_bytes()


def test_another_direction_does_not_sum_the_pool_again(corpus, toy):
    tmp_path, _ = corpus
    changed = replace(FIRST, lambda_prior=3.0)
    run(tmp_path, toy, FIRST)
    assert counted(run(tmp_path, toy, changed)) == [0, 14, 4]
    run(tmp_path, toy, changed, out="other", scratch="other", store="apart")
    assert scored(tmp_path / "out") == pytest.approx(scored(tmp_path / "other"), rel=1e-4)


def test_where_gradients_are_not_wanted_the_tables_are_empty_and_the_json_says_so(corpus, toy):
    tmp_path, _ = corpus
    facts = run(tmp_path, toy, wanted=False)
    assert facts == {"rows_summed": 0, "rows_scored": 0, "shards": 0, "scoring_seconds": 0.0}
    assert told(tmp_path / "out")["wanted"] is False
    assert scored(tmp_path / "out") == []
    assert groundwork.read(tmp_path / "out/phi_param.safetensors")[0] == {}
    assert not (tmp_path / "scratch").exists()


def test_artifacts_and_store_say_what_they_are_made_of(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    record = provenance(tmp_path / "out/phi_data.parquet")
    kept = groundwork.read_facts(tmp_path / "out/phi_param.safetensors")
    assert record["parameters"]["model_digest"] == models.model_digest(toy)
    assert "shard_rows" not in record["parameters"]
    assert kept.items() <= record.items()
    (about,) = (tmp_path / "store").rglob("*.json")
    assert json.loads(about.read_text())["kind"] == "gradients"


def test_phi_param_has_a_tensor_for_every_parameter_under_its_name(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    found = safetensors.torch.load_file(tmp_path / "out/phi_param.safetensors")
    shapes = {name: weight.shape for name, weight in models.language_model(toy).named_parameters()}
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert told(tmp_path / "out")["parameters"] == sum(tensor.numel() for tensor in found.values())
