"""Selectors `ica`, `tov` and `rds` of stage `scores`: rows beside those of the target task, or those that validate."""

import json
import warnings
from dataclasses import replace

import numpy as np
import oracles
import peft
import pytest
import torch
from worlds.places import find_folders
from worlds.token_rows import list_pairs
from worlds.toy_corpus import row, tell, write_examples, write_rows

from tamis.examples.conversations import make_exchange
from tamis.language.chat_templates import Template
from tamis.language.rendering import encode_conversations
from tamis.scores.less import trained
from tamis.scores.references import draw_demos, order_round_robin, score_places
from tamis.training.steps import optimise, plan_steps
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.scores import answers, references, tuning
from tasks.scores.scores import METHODS, write_scores
from tasks.scores.settings import IcaSettings, ScoresSettings, TovSettings
from tasks.scores.work import read_rows
from tasks.settings import RuntimeSettings

SMALL = ScoresSettings(ica=IcaSettings(demos=2), tov=TovSettings(learning_rate=1e-2, lora_rank=2))
SELECTORS = ("ica", "tov", "rds")
RUNTIME = RuntimeSettings(shard_rows=3, pack_tokens=300)


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_examples(tmp_path / "examples", pool=8, target=4)


def run(tmp_path, model, selector, settings=SMALL, *, out="out", store="store", runtime=RUNTIME, **more):
    return write_scores(
        find_folders(tmp_path, scores=tmp_path / out, cache=tmp_path / store),
        model=model,
        settings=settings,
        runtime=runtime,
        selector=selector,
        **more,
    )


def scored(path) -> np.ndarray:
    return read_table(path / "scores.parquet", schemas.SCORES)["score"].to_numpy()


def counted(facts) -> list[int]:
    return [facts[name] for name in ("rows_scored", "rows_known", "shards")]


def rows_of(tmp_path, name):
    return read_rows(tmp_path / "examples/examples.parquet", name)


def encode(model, rows) -> list[tuple[list[int], list[int]]]:
    template = Template(models.tokenizer(model), model.template)
    return list_pairs(encode_conversations(template, [one.conversation for one in rows]))


def test_ica_is_what_two_forward_passes_per_row_give(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy, "ica")
    network, target = models.language_model(toy), rows_of(tmp_path, "target")
    demos = [encode(toy, [target[place]])[0] for place in draw_demos(4, 2, 0)]
    line_end = models.tokenizer(toy)("\n", add_special_tokens=False).input_ids
    shown = [token for before, answer in demos for token in before + answer + line_end]
    slow = []
    for before, answer in encode(toy, rows_of(tmp_path, "ground")):
        alone, after = (oracles.plain_log_probs(network, given, answer) for given in (before, shown + before))
        slow.append(np.mean(after) - np.mean(alone))
    assert read_table(tmp_path / "out/scores.parquet")["id"].to_pylist() == ids
    assert scored(tmp_path / "out") == pytest.approx(np.array(slow), abs=1e-5)
    assert len(set(np.round(slow, 4))) == len(ids)


def plain_loss(network, tokens, answer):
    """The mean loss over response tokens of one unpacked row."""
    logits = network(input_ids=torch.tensor([tokens])).logits[0, -len(answer) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(answer))


def slow_moves(model, tuned, ground) -> np.ndarray:
    """Moves by plain passes: a step per row of the target task, and each row before and after."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
        network = peft.get_peft_model(models.language_model.__wrapped__(model), config).eval()
    asked = [(before + answer, answer) for before, answer in encode(model, ground)]
    warm = [(before + answer, answer) for before, answer in encode(model, tuned)]
    with torch.no_grad():
        before = [float(plain_loss(network, *one)) for one in asked]
    steps = plan_steps(len(warm), 1, 1, 0)
    optimizer, schedule = optimise(network, len(steps), 1e-2, 0.1)
    for (place,) in steps:
        optimizer.zero_grad()
        plain_loss(network, *warm[place]).backward()
        optimizer.step()
        schedule.step()
    assert trained(network)
    with torch.no_grad():
        return np.abs(np.array(before) - [float(plain_loss(network, *one)) for one in asked])


def test_tov_is_what_plain_passes_before_and_after_a_tuning_give(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy, "tov")
    slow = slow_moves(toy, rows_of(tmp_path, "target"), rows_of(tmp_path, "ground"))
    assert read_table(tmp_path / "out/scores.parquet")["id"].to_pylist() == ids
    assert scored(tmp_path / "out") == pytest.approx(slow, abs=1e-3)
    assert slow.min() > 0.01


def test_rds_is_the_round_robin_of_whole_passes(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy, "rds")
    network, vectors = models.language_model(toy), []
    for before, answer in encode(toy, [*rows_of(tmp_path, "ground"), *rows_of(tmp_path, "target")]):
        with torch.no_grad():
            states = network(input_ids=torch.tensor([before + answer]), output_hidden_states=True).hidden_states[-1][0]
        mean = np.average(states.double().numpy(), axis=0, weights=np.arange(1, len(before + answer) + 1))
        vectors.append(mean / np.linalg.norm(mean))
    cosines = np.array(vectors[len(ids) :]) @ np.array(vectors[: len(ids)]).T
    assert read_table(tmp_path / "out/scores.parquet")["id"].to_pylist() == ids
    assert scored(tmp_path / "out").tolist() == score_places(order_round_robin(cosines)).tolist()


@pytest.mark.parametrize("selector", SELECTORS)
def test_rows_that_validate_serve_where_there_is_no_target_task(corpus, toy, selector):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    splits = ["pool"] * 8 + ["held_out"] * 2 + ["validation"] * 4  # the rows of the target task, on another side
    write_rows(tmp_path / "examples", [row(place, split) for place, split in enumerate(splits)])
    run(tmp_path, toy, selector, out="other", store="apart")
    assert scored(tmp_path / "other").tolist() == scored(tmp_path / "out").tolist()
    told = [json.loads((tmp_path / out / "scores.json").read_text()) for out in ("out", "other")]
    assert [one["reference"] for one in told] == ["target", "validation"]
    assert [one["reference_rows"] for one in told] == [4, 4]


@pytest.mark.parametrize("selector", SELECTORS)
def test_rows_that_validate_are_left_alone_where_there_is_a_target_task(corpus, toy, selector):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    splits = ["pool"] * 8 + ["held_out"] * 2 + ["target"] * 4 + ["validation"] * 3
    write_rows(tmp_path / "examples", [row(place, split) for place, split in enumerate(splits)])
    run(tmp_path, toy, selector, out="other", store="apart")
    assert scored(tmp_path / "other").tolist() == scored(tmp_path / "out").tolist()


@pytest.mark.parametrize("selector", SELECTORS)
def test_without_reference_rows_the_selector_is_refused_with_the_ways_out(tmp_path, toy, selector):
    write_examples(tmp_path / "examples", pool=4)
    with pytest.raises(
        ValueError, match=rf"selector {selector} .* has 0 of either; set examples.target or examples\.v"
    ):
        run(tmp_path, toy, selector)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_second_run_asks_the_model_nothing_and_gives_the_same_bytes(corpus, toy, selector, monkeypatch):
    tmp_path, _ = corpus
    first = run(tmp_path, toy, selector)
    for module, name in ((tuning, "train"), (answers, "score_rows"), (references, "mean_states")):
        monkeypatch.setattr(module, name, None)
    again = run(tmp_path, toy, selector, out="again")
    assert counted(again)[::2] == [0, 0]
    assert again["scoring_seconds"] == first["scoring_seconds"] > 0
    assert (tmp_path / "out/scores.parquet").read_bytes() == (tmp_path / "again/scores.parquet").read_bytes()


@pytest.mark.parametrize("selector", SELECTORS)
def test_how_parts_are_cut_is_no_part_of_the_scores(corpus, toy, selector):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    run(tmp_path, toy, selector, runtime=RuntimeSettings(shard_rows=50), out="other", store="apart")
    assert scored(tmp_path / "other") == pytest.approx(scored(tmp_path / "out"), abs=1e-5)


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_same_seed_gives_the_same_bytes_from_nothing(corpus, toy, selector):
    tmp_path, _ = corpus
    for out in ("one", "two"):
        run(tmp_path, toy, selector, out=out, store=f"store-{out}")
        tuning.adapt.cache_clear()
    assert (tmp_path / "one/scores.parquet").read_bytes() == (tmp_path / "two/scores.parquet").read_bytes()


@pytest.mark.parametrize(("selector", "again"), [("ica", 8), ("tov", 8), ("rds", 1)])
def test_another_target_task_costs_what_depends_on_it(corpus, toy, selector, again):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    splits = ["pool"] * 8 + ["held_out"] * 2 + ["target"] * 5
    write_rows(tmp_path / "examples", [row(place, split) for place, split in enumerate(splits)])
    assert run(tmp_path, toy, selector)["rows_scored"] == again


@pytest.mark.parametrize(
    ("selector", "settings"),
    [
        pytest.param("ica", replace(SMALL, ica=IcaSettings(demos=1)), id="demos"),
        pytest.param("ica", replace(SMALL, seed=1), id="ica-seed"),
        pytest.param("tov", replace(SMALL, tov=replace(SMALL.tov, epochs=2)), id="epochs"),
        pytest.param("tov", replace(SMALL, tov=replace(SMALL.tov, learning_rate=1e-3)), id="learning_rate"),
        pytest.param("tov", replace(SMALL, seed=1), id="tov-seed"),
    ],
)
def test_other_settings_share_no_figures(corpus, toy, selector, settings):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    assert run(tmp_path, toy, selector, settings, out="other")["rows_known"] == 0
    assert scored(tmp_path / "other").tolist() != scored(tmp_path / "out").tolist()


def test_settings_of_other_selectors_are_no_part_of_the_figures(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy, "tov")
    assert run(tmp_path, toy, "tov", replace(SMALL, ica=IcaSettings(demos=1)))["rows_known"] == len(ids)


@pytest.mark.parametrize("selector", ["tov", "rds"])  # a random model learns nothing in context
def test_rows_like_the_target_task_come_first(tmp_path, toy, selector):
    def write(place, split, prompt, response):
        return row(place, split) | tell(make_exchange(prompt, response)) | {"topic": "any"}

    target = [write(place, "target", f"zz {place}", "qqqqq" + "x" * place) for place in range(6)]
    alike = [write(10 + place, "pool", f"zz {10 + place}", "qqqqq" + "x" * (3 + place)) for place in range(3)]
    others = [write(20 + place, "pool", f"what is {place}?", f"{place} is a number") for place in range(9)]
    ids = write_rows(tmp_path / "examples", [*target, *alike, *others])
    run(tmp_path, toy, selector)
    best = np.argsort(-scored(tmp_path / "out"))[:3]
    assert {ids[place] for place in best} == {one["id"] for one in alike}


def test_tov_leaves_the_model_that_others_use_without_adapters(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, "tov")
    assert not any("lora" in name for name in models.language_model(toy).state_dict())


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_artifact_says_what_its_figures_depend_on(corpus, toy, selector):
    tmp_path, _ = corpus
    run(tmp_path, toy, selector)
    parameters = provenance(tmp_path / "out/scores.parquet")["parameters"]
    assert (parameters["reference"], parameters["reference_rows"]) == ("target", 4)
    assert len(parameters.get("demos", [])) == (2 if selector == "ica" else 0)
    assert parameters.get("tov", {}).get("lora_rank") == (2 if selector == "tov" else None)


def test_demos_that_leave_no_room_for_rows_are_refused_before_anything_is_asked(corpus, toy):
    tmp_path, _ = corpus
    with pytest.raises(ValueError, match=r"8 of 8 rows to be scored are longer than models\.max_tokens = 60 as ica"):
        run(tmp_path, replace(toy, max_tokens=60), "ica")
    assert not (tmp_path / "store").exists()


def test_rows_of_the_target_task_that_do_not_fit_are_refused_before_the_tuning(tmp_path, toy):
    long = row(9, "target") | tell(make_exchange("x" * 90, "y"))
    write_rows(tmp_path / "examples", [*(row(place, "pool") for place in range(4)), long])
    with pytest.raises(ValueError, match=r"1 of 5 rows to be scored are longer than models\.max_tokens = 60 as tov"):
        run(tmp_path, replace(toy, max_tokens=60), "tov")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("selector", ["ica", "rds"])
def test_a_figure_that_is_not_finite_names_its_row(corpus, toy, selector, monkeypatch):
    tmp_path, ids = corpus
    broken = type(models.language_model(toy)).from_pretrained(toy.name).eval()
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(float("nan"))
    for module in (answers, references):
        monkeypatch.setattr(module, "scoring_model", lambda choice: broken)
    with pytest.raises(ValueError, match=rf"the {selector} figures of .*{ids[0]}.* not finite|not finite.*{ids[0]}"):
        run(tmp_path, toy, selector)


def test_a_version_without_news_has_no_scores_and_tunes_nothing(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=0, target=2)
    for selector in ("ica", "tov"):
        facts = run(tmp_path, toy, selector)
        assert facts == {"rows_scored": 0, "rows_known": 0, "shards": 0, "scoring_seconds": 0.0, "scoring_flops": 0}
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_half_precision_is_measured_too(corpus, toy):
    tmp_path, ids = corpus
    for selector in SELECTORS:
        run(tmp_path, replace(toy, dtype="bfloat16"), selector, out=selector)
        assert np.isfinite(scored(tmp_path / selector)).sum() == len(ids)
    assert set(SELECTORS) <= set(METHODS)
