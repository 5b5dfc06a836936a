"""Selector `less` of stage `scores`: influence on the target task, by gradients at a warm-up's checkpoints."""

import builtins
import json
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from worlds.places import find_folders
from worlds.token_rows import list_pairs
from worlds.toy_corpus import row, tell, write_examples, write_rows

from tamis.examples.conversations import make_exchange
from tamis.language.chat_templates import Template
from tamis.language.rendering import encode_conversations
from tamis.scores.less import adam_direction, normalise, pick_warmup, project, read_moments, trained
from tamis.training.steps import optimise, plan_steps
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, provenance, read_table
from tasks.scores import scores, tuning
from tasks.scores.scores import write_scores
from tasks.scores.settings import LessSettings, ScoresSettings
from tasks.scores.work import read_rows
from tasks.settings import RuntimeSettings

SMALL = ScoresSettings(
    less=LessSettings(dimensions=64, warmup_share=0.5, learning_rate=1e-2, lora_rank=2, batch_rows=4)
)
SMALL_RUNTIME = RuntimeSettings(shard_rows=3)


def changed(**less) -> ScoresSettings:
    return replace(SMALL, less=replace(SMALL.less, **less))


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_examples(tmp_path / "examples", pool=12, target=4, learnt=1)


def run(tmp_path, model, settings=SMALL, *, out="out", store="store", runtime=SMALL_RUNTIME, map=map):
    return write_scores(
        find_folders(tmp_path, scores=tmp_path / out, cache=tmp_path / store),
        model=model,
        settings=settings,
        runtime=runtime,
        selector="less",
        map=map,
    )


def scored(path) -> np.ndarray:
    return read_table(path / "scores.parquet", schemas.SCORES)["score"].to_numpy()


def counted(facts) -> list[int]:
    return [facts[name] for name in ("rows_scored", "rows_known", "shards")]


def plain_loss(network, tokens, answer):
    """The mean loss over response tokens of one unpacked row."""
    logits = network(input_ids=torch.tensor([tokens])).logits[0, -len(answer) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(answer))


def slow_scores(model, ground, queries, settings):
    """Scores by plain passes: a warm-up whose steps take the mean of rows' losses, and a gradient per row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
        network = peft.get_peft_model(models.language_model.__wrapped__(model), config).eval()

    def rows_of(some):
        code = encode_conversations(Template(models.tokenizer(model)), [one.conversation for one in some])
        return [(before + answer, answer) for before, answer in list_pairs(code)]

    def gradient_of(tokens, answer):
        found = torch.autograd.grad(plain_loss(network, tokens, answer), trained(network))
        return torch.cat([each.flatten() for each in found])

    warm = rows_of([ground[place] for place in pick_warmup(len(ground), settings.less.warmup_share, 8, settings.seed)])
    steps = plan_steps(len(warm), settings.less.batch_rows, settings.less.epochs, settings.seed)
    optimizer, schedule = optimise(network, len(steps), settings.less.learning_rate, 0.1)
    total, weight, rates = 0.0, 0.0, []
    for number, places in enumerate(steps, start=1):
        optimizer.zero_grad()
        (sum(plain_loss(network, *warm[place]) for place in places) / len(places)).backward()
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        if number % (len(steps) // settings.less.epochs) == 0:
            moments = read_moments(network, optimizer)
            pool = [adam_direction(gradient_of(*one), moments) for one in rows_of(ground)]
            asked = [gradient_of(*one) for one in rows_of(queries)]
            pool, asked = (normalise(project(torch.stack(each), 64, settings.seed)) for each in (pool, asked))
            total = total + np.mean(rates) * (pool @ asked.T).numpy()
            weight += np.mean(rates)
            rates = []
    topics = np.array([one.topic for one in queries])
    return np.max([total[:, topics == topic].mean(1) / weight for topic in set(topics.tolist())], axis=0)


@pytest.mark.parametrize("epochs", [1, 2])
def test_scores_are_those_of_plain_passes_row_by_row(corpus, toy, epochs):
    tmp_path, ids = corpus
    settings = changed(epochs=epochs)
    run(tmp_path, toy, settings)
    source = tmp_path / "examples/examples.parquet"
    expected = slow_scores(toy, read_rows(source, "ground"), read_rows(source, "target"), settings)
    assert read_table(tmp_path / "out/scores.parquet")["id"].to_pylist() == ids
    assert scored(tmp_path / "out") == pytest.approx(expected, abs=2e-3)
    assert len(set(expected.round(3).tolist())) > 6


def test_where_there_is_no_target_task_the_ground_set_is_its_own(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=9)
    run(tmp_path, toy)
    ground = read_rows(tmp_path / "examples/examples.parquet", "ground")
    assert scored(tmp_path / "out") == pytest.approx(slow_scores(toy, ground, ground, SMALL), abs=2e-3)
    assert json.loads((tmp_path / "out/scores.json").read_text())["queries"] == "pool"


def test_the_json_says_that_the_queries_are_the_target_tasks(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    found = scored(tmp_path / "out")
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert told.pop("flops") > 0
    assert told == {
        "wanted": True,
        "selector": "less",
        "queries": "target",
        "rows": len(ids),
        "min": found.min(),
        "median": np.median(found),
        "max": found.max(),
    }


def test_rows_of_the_target_task_in_the_pool_come_first(tmp_path, toy):
    def write(place, split, prompt, response):
        return row(place, split) | tell(make_exchange(prompt, response)) | {"topic": "any"}

    target = [write(place, "target", f"zz {place}", "qqq" + "x" * place) for place in range(4)]
    alike = [write(10 + place, "pool", f"zz {10 + place}", "qqq" + "x" * (5 + place)) for place in range(3)]
    others = [write(20 + place, "pool", f"what is {place}?", f"{place} is a number") for place in range(12)]
    ids = write_rows(tmp_path / "examples", [*target, *alike, *others])
    run(tmp_path, toy, changed(dimensions=512))
    best = np.argsort(-scored(tmp_path / "out"))[:3]
    assert {ids[place] for place in best} == {one["id"] for one in alike}


def test_a_second_run_trains_and_measures_nothing_and_gives_the_same_bytes(corpus, toy, monkeypatch):
    tmp_path, ids = corpus
    first = run(tmp_path, toy)
    monkeypatch.setattr(tuning, "train", None)
    again = run(tmp_path, toy, out="again")
    assert counted(first) == [len(ids) + 4, 0, 6]
    assert counted(again) == [0, len(ids) + 4, 0]
    assert again["scoring_seconds"] == first["scoring_seconds"]
    assert (tmp_path / "out/scores.parquet").read_bytes() == (tmp_path / "again/scores.parquet").read_bytes()


def test_the_seconds_of_the_warm_up_are_part_of_the_cost(corpus, toy):
    tmp_path, _ = corpus
    facts = run(tmp_path, toy)
    parts = [provenance(part)["parameters"]["seconds"] for part in (tmp_path / "store").rglob("part-*.parquet")]
    assert facts["scoring_seconds"] > sum(parts) > 0


def test_another_target_task_costs_its_own_rows_only(corpus, toy, monkeypatch):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    monkeypatch.setattr(tuning, "train", None)
    more = [row(40 + place, "target") for place in range(2)]
    write_rows(tmp_path / "examples", [*(row(place, "pool") for place in range(12)), *more])
    assert counted(run(tmp_path, toy)) == [2, len(ids), 1]


def test_finished_parts_and_the_warm_up_survive_a_crash(corpus, toy, monkeypatch):
    tmp_path, _ = corpus

    def interrupted(function, shards):
        yield from builtins.map(function, shards[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy, map=interrupted)
    monkeypatch.setattr(tuning, "train", None)
    assert counted(run(tmp_path, toy)) == [10, 6, 4]


def test_a_warm_up_that_is_lost_is_trained_again_to_the_same_scores(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    (warmup,) = (tmp_path / "store").rglob("*.safetensors")
    for path in warmup.parent.iterdir():
        path.unlink()
    run(tmp_path, toy, out="again")
    assert (tmp_path / "out/scores.parquet").read_bytes() == (tmp_path / "again/scores.parquet").read_bytes()


def test_a_damaged_warm_up_is_named(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    (warmup,) = (tmp_path / "store").rglob("*.safetensors")
    warmup.write_bytes(warmup.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=rf"warmup\.safetensors, a warm-up, is damaged .*; delete {warmup.parent}"):
        run(tmp_path, toy)


def test_the_store_holds_safetensors_parquet_and_what_it_says_of_them(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    (about,) = (tmp_path / "store").rglob("*.json")
    assert {path.suffix for path in about.parent.iterdir()} == {".parquet", ".safetensors", ".json", ".lock"}
    assert json.loads(about.read_text()) == {
        "kind": "scores",
        "model": toy.label,
        "model_digest": models.model_digest(toy),
        "code": scores.METHODS["less"].code,
        "template": "chat",
        "matmul": "float32",
        "selector": "less",
    }


def test_how_parts_are_cut_is_no_part_of_the_scores(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    run(tmp_path, toy, runtime=RuntimeSettings(shard_rows=50), out="other", store="apart")
    assert scored(tmp_path / "other") == pytest.approx(scored(tmp_path / "out"), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "template"),
    [
        pytest.param(replace(SMALL, seed=1), "chat", id="seed"),
        pytest.param(changed(dimensions=32), "chat", id="dimensions"),
        pytest.param(changed(epochs=2), "chat", id="epochs"),
        pytest.param(changed(learning_rate=1e-3), "chat", id="learning_rate"),
        pytest.param(changed(lora_rank=3), "chat", id="lora_rank"),
        pytest.param(changed(batch_rows=2), "chat", id="batch_rows"),
        pytest.param(changed(warmup_share=0.75), "chat", id="warmup_share"),
        pytest.param(SMALL, "delift", id="template"),
    ],
)
def test_other_settings_share_no_features(corpus, toy, settings, template):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    assert run(tmp_path, replace(toy, template=template), settings, out="other")["rows_known"] == 0
    assert scored(tmp_path / "other").tolist() != scored(tmp_path / "out").tolist()


def test_the_model_that_others_use_is_left_without_adapters(corpus, toy):
    tmp_path, _ = corpus
    before = models.language_model(toy).state_dict().keys()
    run(tmp_path, toy)
    assert models.language_model(toy).state_dict().keys() == before
    assert not any("lora" in name for name in before)


def test_scoring_does_not_touch_the_global_generator(corpus, toy):
    tmp_path, _ = corpus
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, toy)
    assert torch.equal(torch.rand(3), expected)


def test_weights_of_half_precision_are_scored_by_adapters_of_float32(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, replace(toy, dtype="bfloat16"))
    assert np.isfinite(scored(tmp_path / "out")).all()
    assert len(scored(tmp_path / "out")) == len(ids)


def test_a_row_that_does_not_fit_is_refused_before_anything_is_trained(corpus, toy):
    tmp_path, _ = corpus
    with pytest.raises(ValueError, match=r"of 16 rows to be scored are longer than models\.max_tokens = 20 as less"):
        run(tmp_path, replace(toy, max_tokens=20))
    assert not (tmp_path / "store").exists()


def test_a_gradient_that_is_not_finite_names_its_row(corpus, toy, monkeypatch):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    for part in (tmp_path / "store").rglob("part-*.parquet"):
        part.unlink()

    whole = tuning.adapt

    def broken(*asked):
        network = whole(*asked)
        with torch.no_grad():
            network.get_input_embeddings().weight.fill_(torch.nan)
        return network

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "adapt", broken)
        with pytest.raises(ValueError, match=rf"3 of 3 rows have a gradient that is not finite, first \['{ids[0]}'"):
            run(tmp_path, toy)
    tuning.adapt.cache_clear()


def test_a_version_without_news_trains_nothing(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=0, target=2)
    facts = run(tmp_path, toy)
    assert facts == {"rows_scored": 0, "rows_known": 0, "shards": 0, "scoring_seconds": 0.0, "scoring_flops": 0}
    assert not (tmp_path / "store").exists()


def test_the_artifact_says_what_its_gradients_depend_on(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    parameters = provenance(tmp_path / "out/scores.parquet")["parameters"]
    assert (parameters["queries"], parameters["seed"]) == ("target", 0)
    assert (parameters["less"]["dimensions"], parameters["less"]["lora_rank"]) == (64, 2)
