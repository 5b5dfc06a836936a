import builtins
import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from worlds.places import find_folders
from worlds.token_rows import encode_pairs, list_pairs
from worlds.toy_corpus import write_examples
from worlds.toys import CHAT

from tamis.examples.conversations import transcribe
from tamis.scores.baselines import score_ifd, score_perplexity, score_selectit
from tamis.scores.scoring_prompts import RATED, RATING_PROMPTS
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import provenance, read_table
from tasks.scores import answers, scores
from tasks.scores.scores import write_scores
from tasks.scores.settings import ScoresSettings
from tasks.scores.work import read_rows
from tasks.settings import RuntimeSettings

SMALL = RuntimeSettings(shard_rows=2, pack_tokens=300)
ASKING = ("perplexity", "ifd", "selectit")


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_examples(tmp_path / "examples", target=2, learnt=1)


@pytest.fixture
def wide(toy):
    return replace(toy, max_tokens=1024)


def run(tmp_path, model, selector="perplexity", runtime=SMALL, *, out="out", store="store", **how):
    return write_scores(
        find_folders(tmp_path, scores=tmp_path / out, cache=tmp_path / store),
        model=model,
        settings=ScoresSettings(),
        runtime=runtime,
        selector=selector,
        **how,
    )


def scored(path) -> np.ndarray:
    return read_table(path / "scores.parquet", schemas.SCORES)["score"].to_numpy()


def loss(model, before, response) -> float:
    """Mean negative log-likelihood by a whole, unpadded forward pass."""
    return -float(np.mean(oracles.plain_log_probs(models.language_model(model), before, response)))


def losses(tmp_path, model) -> tuple[np.ndarray, np.ndarray]:
    """Each row's loss after its prompt and after none, a forward pass each."""
    rows, tokenizer = read_rows(tmp_path / "examples/examples.parquet", "ground"), models.tokenizer(model)
    prompts, responses = zip(*(transcribe(row.conversation) for row in rows), strict=True)
    code = encode_pairs(tokenizer, model.template, prompts, responses)
    bare = encode_pairs(tokenizer, model.template, [""] * len(rows), responses)
    found = [[loss(model, *pair) for pair in list_pairs(one)] for one in (code, bare)]
    return np.array(found[0]), np.array(found[1])


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_perplexity_is_what_a_forward_pass_per_row_gives(corpus, toy, template):
    tmp_path, ids = corpus
    toy = replace(toy, template=template)
    run(tmp_path, toy, "perplexity")
    assert read_table(tmp_path / "out/scores.parquet")["id"].to_pylist() == ids
    assert scored(tmp_path / "out") == pytest.approx(score_perplexity(losses(tmp_path, toy)[0]))


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_ifd_is_what_two_forward_passes_per_row_give(corpus, toy, template):
    tmp_path, _ = corpus
    toy = replace(toy, template=template)
    run(tmp_path, toy, "ifd")
    assert scored(tmp_path / "out") == pytest.approx(score_ifd(*losses(tmp_path, toy)), abs=1e-5)


def test_selectit_is_what_a_forward_pass_per_row_and_rating_prompt_gives(corpus, wide):
    tmp_path, _ = corpus
    run(tmp_path, wide, "selectit", replace(SMALL, pack_tokens=900))
    tokenizer, network, found = models.tokenizer(wide), models.language_model(wide), []
    for row in read_rows(tmp_path / "examples/examples.parquet", "ground"):
        for question in RATING_PROMPTS:
            prompt, response = transcribe(row.conversation)
            said = RATED.format(question=question, prompt=prompt, response=response)
            asked = [{"role": "user", "content": said}]
            tokens = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True).input_ids
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([tokens])).logits[0, -1].double()
            found.append([float(logits[tokenizer.convert_tokens_to_ids(digit)]) for digit in "12345"])
    slow = score_selectit(np.array(found).reshape(6, len(RATING_PROMPTS), 5))
    assert scored(tmp_path / "out") == pytest.approx(slow, abs=1e-4)
    assert len(set(slow.tolist())) == 6


@pytest.mark.parametrize("selector", ASKING)
def test_only_used_rows_of_the_pool_are_scored_once(corpus, wide, selector):
    tmp_path, ids = corpus
    facts = run(tmp_path, wide, selector)
    again = run(tmp_path, wide, selector, out="again")
    assert [facts[name] for name in ("rows_scored", "rows_known", "shards")] == [len(ids), 0, 3]
    assert [again[name] for name in ("rows_scored", "rows_known", "shards")] == [0, len(ids), 0]
    assert (tmp_path / "out/scores.parquet").read_bytes() == (tmp_path / "again/scores.parquet").read_bytes()


def test_finished_shards_survive_a_crash(corpus, toy):
    tmp_path, _ = corpus

    def interrupted(function, shards):
        yield from builtins.map(function, shards[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy, map=interrupted)
    facts = run(tmp_path, toy)
    assert [facts[name] for name in ("rows_scored", "rows_known", "shards")] == [4, 2, 2]


def test_a_failure_within_a_shard_leaves_those_before_it(corpus, toy, monkeypatch):
    tmp_path, ids = corpus
    method = scores.METHODS["ifd"]

    def fail_at_the_second(shard, groups):
        if shard.rows[0].id == ids[2]:
            raise OSError("pulled the plug")
        return method.measure(shard, groups)

    with monkeypatch.context() as patch:
        patch.setitem(scores.METHODS, "ifd", replace(method, measure=fail_at_the_second))
        with pytest.raises(OSError, match="pulled the plug"):
            run(tmp_path, toy, "ifd")
    assert run(tmp_path, toy, "ifd")["rows_scored"] == 4


def test_a_new_row_costs_itself_only(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    write_examples(tmp_path / "examples", pool=8)
    facts = run(tmp_path, toy)
    assert (facts["rows_scored"], facts["rows_known"]) == (2, len(ids))


def test_how_shards_are_cut_is_no_part_of_the_scores(corpus, wide):
    tmp_path, _ = corpus
    for selector in ASKING:
        run(tmp_path, wide, selector)
        run(tmp_path, wide, selector, RuntimeSettings(shard_rows=5, pack_tokens=900), out="other", store="apart")
        assert scored(tmp_path / "other") == pytest.approx(scored(tmp_path / "out"), abs=1e-5)


def test_selectors_templates_and_models_do_not_share_figures(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    assert run(tmp_path, toy, "ifd")["rows_known"] == 0
    assert run(tmp_path, replace(toy, template="delift"))["rows_known"] == 0
    assert run(tmp_path, replace(toy, dtype="bfloat16"))["rows_known"] == 0


def test_every_part_says_how_long_it_took_and_the_stage_what_its_rows_cost(corpus, toy):
    tmp_path, _ = corpus
    facts = run(tmp_path, toy)
    parts = sorted((tmp_path / "store").rglob("part-*.parquet"))
    seconds = [provenance(part)["parameters"]["seconds"] for part in parts]
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert facts["scoring_seconds"] == pytest.approx(sum(seconds), abs=1e-3)
    assert run(tmp_path, toy)["scoring_seconds"] == facts["scoring_seconds"]


def test_rows_that_are_no_more_are_no_part_of_the_cost(corpus, toy):
    tmp_path, _ = corpus
    whole = run(tmp_path, toy, runtime=replace(SMALL, shard_rows=6))["scoring_seconds"]
    write_examples(tmp_path / "examples", pool=3)
    assert run(tmp_path, toy)["scoring_seconds"] == pytest.approx(whole / 2, abs=1e-3)


@pytest.mark.parametrize("selector", ASKING)
def test_the_store_says_what_it_holds(corpus, wide, selector):
    tmp_path, _ = corpus
    run(tmp_path, wide, selector)
    (about,) = (tmp_path / "store").rglob("store.json")
    assert list(about.parent.glob("part-*.parquet"))
    assert json.loads(about.read_text()) == {
        "kind": "scores",
        "model": wide.label,
        "model_digest": models.model_digest(wide),
        "code": scores.METHODS[selector].code,
        "template": "chat",
        "matmul": "float32",
        "selector": selector,
    }


def test_what_a_damaged_part_held_is_computed_again(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    part = next((tmp_path / "store").rglob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-4] + b"PAR2")
    with pytest.warns(UserWarning, match="a part of a store, was damaged and stands aside"):
        run(tmp_path, toy)
    assert list((tmp_path / "store").rglob("part-*.parquet")) != []


@pytest.mark.parametrize("selector", ["delift", "random", "longest", "embedding", "deft_ucs", "bm25", "fresh"])
def test_a_selector_without_scores_writes_an_empty_artifact_that_says_so(corpus, toy, selector):
    tmp_path, _ = corpus
    facts = run(tmp_path, toy, selector, wanted=False)
    assert (facts["rows_scored"], facts["scoring_seconds"]) == (0, 0.0)
    facts = json.loads((tmp_path / "out/scores.json").read_text())
    assert read_table(tmp_path / "out/scores.parquet", schemas.SCORES).num_rows == 0
    assert facts["wanted"] is False
    assert facts["why"] == f"selection.selector: {selector} needs no score of a row by itself"


@pytest.mark.parametrize("selector", ["delift", "perplexity", "ifd"])
def test_the_gates_difficulty_is_the_ratio_of_both_losses_whatever_the_selector(corpus, toy, selector):
    tmp_path, ids = corpus
    facts = run(tmp_path, toy, selector, wanted=selector != "delift", gate=True)
    table = read_table(tmp_path / "out/ifd.parquet", schemas.SCORES)
    whole, alone = losses(tmp_path, toy)
    assert table["id"].to_pylist() == ids
    assert table["score"].to_numpy() == pytest.approx(whole / alone)
    assert facts["rows_scored"] + facts["rows_known"] == len(ids) * (2 if selector == "perplexity" else 1)
    assert facts["scoring_seconds"] > 0


def test_without_a_gate_its_table_is_empty(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    assert read_table(tmp_path / "out/ifd.parquet", schemas.SCORES).num_rows == 0


def test_the_json_tells_how_scores_are_spread(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy, "ifd")
    found = scored(tmp_path / "out")
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert told.pop("flops") > 0
    assert told == {
        "wanted": True,
        "selector": "ifd",
        "rows": len(ids),
        "min": found.min(),
        "median": np.median(found),
        "max": found.max(),
    }


def test_a_version_without_news_has_no_scores(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=0)
    facts = run(tmp_path, toy)
    assert facts == {"rows_scored": 0, "rows_known": 0, "shards": 0, "scoring_seconds": 0.0, "scoring_flops": 0}
    assert json.loads((tmp_path / "out/scores.json").read_text())["median"] is None


def test_the_artifact_says_where_it_comes_from(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy, "ifd")
    record = provenance(tmp_path / "out/scores.parquet")
    digest = models.model_digest(toy)
    assert record["parameters"] == {
        "selector": "ifd",
        "template": "chat",
        "matmul": "float32",
        "model": toy.label,
        "model_digest": digest,
    }
    assert len(record["inputs"]) == 1


def test_a_template_that_refuses_what_is_asked_names_the_selector_and_the_row(corpus, toy):
    tmp_path, ids = corpus
    refusing = "{% if not messages[0].content %}{{ raise_exception('say something') }}{% endif %}"
    (tmp_path / "refusing.jinja").write_text(refusing + CHAT)
    refused = replace(toy, chat_template=str(tmp_path / "refusing.jinja"))
    with pytest.raises(
        ValueError, match=rf"row {ids[0]} of these: .* questions emptied, as selector ifd .* say something"
    ):
        run(tmp_path, refused, "ifd")


def test_a_row_that_does_not_fit_is_refused_before_anything_is_scored(corpus, toy):
    tmp_path, ids = corpus
    with pytest.raises(ValueError, match=r"2 of 6 rows to be scored are longer than models\.max_tokens = 20 as perpl"):
        run(tmp_path, replace(toy, max_tokens=20))
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match=rf"6 of 6 rows.* as selectit shows them, first ids \['{ids[0]}'"):
        run(tmp_path, replace(toy, max_tokens=40), "selectit")


@pytest.mark.parametrize("selector", ASKING)
def test_a_figure_that_is_not_finite_stops_the_run_and_names_the_row(corpus, wide, selector, monkeypatch):
    tmp_path, ids = corpus
    broken = type(models.language_model(wide)).from_pretrained(wide.name).eval()
    digit = models.tokenizer(wide).convert_tokens_to_ids("6")  # stands in the fourth row's response only
    with torch.no_grad():
        broken.lm_head.weight = torch.nn.Parameter(broken.lm_head.weight.clone())
        broken.get_input_embeddings().weight[digit] = float("nan")
    monkeypatch.setattr(answers, "scoring_model", lambda choice: broken)
    with pytest.raises(ValueError, match=rf"the {selector} figures of row {ids[3]} are not finite; set models\.dtype"):
        run(tmp_path, wide, selector)
