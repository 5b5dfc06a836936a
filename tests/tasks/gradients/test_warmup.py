"""What stage `gradients` stands on: the rows that are drawn, what is kept in scratch, and what is refused."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from worlds.toy_corpus import reword, row, tell, write_examples, write_rows
from worlds.toy_gradients import FIRST, SMALL, SMALL_RUNTIME, content, counted, run, scored, sets_of, told

from tamis.examples.conversations import make_exchange
from tamis.gradients.per_example import GradientError
from tasks import models
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.artifacts.tensors import read
from tasks.gradients import gradients, warmup


@pytest.fixture
def corpus(tmp_path):
    return tmp_path, write_examples(tmp_path / "examples", pool=14, target=3, held_out=2, learnt=1)


@pytest.mark.parametrize("target", [0, 3], ids=["validation", "target"])
def test_validation_rows_never_meet_the_rows_that_are_scored_or_trained_on(tmp_path, toy, target):
    write_examples(tmp_path / "examples", pool=20, target=target, validation=2)
    sets = sets_of(tmp_path, toy)
    rows = {one["id"]: one["split"] for one in read_table(tmp_path / "examples/examples.parquet").to_pylist()}
    assert len(sets.validation) == (target or 2)
    assert {rows[sets.ids[place]] for place in sets.validation} == {sets.steered_by}
    assert sets.steered_by == ("target" if target else "validation")
    assert not set(sets.validation) & {*sets.pool, *sets.warmup, *sets.anchors}
    assert len(sets.pool) == 20
    assert (sets.left_out, len(sets.ids)) == (0, 20 + len(sets.validation))
    assert {*sets.warmup, *sets.anchors} <= set(sets.pool)


def answer(place, split, prompt, response):
    return row(place, split) | tell(make_exchange(prompt, response))


@pytest.mark.slow
def test_pool_rows_with_a_prompt_of_the_target_task_are_left_out_and_counted(tmp_path, toy):
    rows = [row(place, "pool") for place in range(8)]
    rows += [answer(8, "target", "the  TASK", "yes"), answer(9, "pool", "The task", "no")]
    write_rows(tmp_path / "examples", rows)
    run(tmp_path, toy)
    assert rows[9]["id"] not in read_table(tmp_path / "out/phi_data.parquet")["id"].to_pylist()
    assert told(tmp_path / "out")["rows"]["left_out"] == 1


def test_general_rows_are_neither_scored_nor_trained_on_nor_preserved(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=20, held_out=2, general=5)
    sets = sets_of(tmp_path, toy)
    rows = read_table(tmp_path / "examples/examples.parquet").to_pylist()
    assert set(sets.ids) == {one["id"] for one in rows if one["split"] == "pool"}


@pytest.mark.slow
def test_held_out_rows_are_not_read(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    rows = read_table(tmp_path / "examples/examples.parquet").to_pylist()
    long = [reword(one, prompt="?" * 999, response="") if one["split"] == "held_out" else one for one in rows]
    write_rows(tmp_path / "examples", long)
    assert counted(run(tmp_path, toy, out="again")) == [0, 0, 0]
    assert scored(tmp_path / "again") == scored(tmp_path / "out")


def test_overlaps_and_counts_are_recorded(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, toy)
    found, sets = told(tmp_path / "out"), sets_of(tmp_path, toy)
    assert found["rows"] == {"pool": len(ids), "validation": 3, "warmup": 7, "anchors": 4, "left_out": 0}
    both = len(set(sets.warmup) & set(sets.anchors))
    assert found["overlaps"] == {
        "warmup_pool": 7,
        "anchors_pool": 4,
        "warmup_anchors": both,
        "validation_pool": 0,
        "validation_warmup": 0,
        "validation_anchors": 0,
    }
    assert found["seconds"].keys() == {"warmup", "v_new", "v_prior", "first_pass", "second_pass"}
    assert min(found["seconds"].values()) > 0
    assert 0 < found["warmup"]["moved"] <= 1


def test_draws_of_warm_up_and_anchors_are_not_of_the_same_rows(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=60)
    sets = sets_of(tmp_path, toy)
    assert 0 < len(set(sets.warmup) & set(sets.anchors)) < len(sets.anchors)


@pytest.mark.parametrize(("asked", "rows"), [(5, 5), (99, 14)])
def test_fisher_information_has_rows_of_the_pool_only(corpus, toy, asked, rows):
    tmp_path, _ = corpus
    sets = sets_of(tmp_path, toy, replace(SMALL, fisher_rows=asked))
    assert len(sets.fisher) == rows
    assert set(sets.fisher) <= set(sets.pool)


def test_small_shares_are_raised_to_a_batch(corpus, toy):
    tmp_path, _ = corpus
    sets = sets_of(tmp_path, toy, replace(SMALL, warmup_share=0.01, anchor_share=0.01))
    assert (len(sets.warmup), len(sets.anchors)) == (3, 3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    torch.manual_seed(5)
    run(tmp_path, toy, out="again", scratch="again", store="apart")
    assert content(tmp_path / "again") == content(tmp_path / "out")
    first, other = (sets_of(tmp_path, toy, replace(SMALL, seed=seed)) for seed in (0, 1))
    assert (first.warmup, first.anchors) != (other.warmup, other.anchors)


@pytest.mark.slow
def test_a_run_touches_neither_the_global_generator_nor_the_model_that_others_use(corpus, toy):
    tmp_path, _ = corpus
    before = {name: tensor.clone() for name, tensor in models.language_model(toy).state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, toy)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in models.language_model(toy).state_dict().items())


def test_no_validation_row_is_refused(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=9)
    with pytest.raises(ValueError, match=r"0 of 9 rows validate, .* examples.validation_every: 10, or name the target"):
        run(tmp_path, toy)


def test_fisher_information_needs_no_validation_row(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=9)
    run(tmp_path, toy, selector="delift", mask_selector="fisher")
    assert told(tmp_path / "out")["rows"] == {"pool": 9, "fisher": 9, "left_out": 0}


def test_anchors_fewer_than_a_batch_are_refused(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=2, target=2)
    with pytest.raises(ValueError, match=r"anchors fewer than a batch: the pool has 2 rows, .*batch_rows is 3; lower"):
        run(tmp_path, toy)


def test_a_response_that_would_be_cut_is_refused_before_anything_is_trained(corpus, toy):
    tmp_path, _ = corpus
    with pytest.raises(ValueError, match=r"of 17 rows are longer than models\.max_tokens \(20; the longest has"):
        run(tmp_path, replace(toy, max_tokens=20))
    assert not [*(tmp_path / "scratch").glob("*.safetensors")]


def broken(*examples):
    def fail(*_, **__):
        raise GradientError(list(examples), 4)

    return fail


@pytest.mark.parametrize(
    ("settings", "module", "name", "place"),
    [
        (FIRST, gradients, "accumulate", "pool"),
        pytest.param(SMALL, gradients, "score_second", "pool", marks=pytest.mark.slow),
        pytest.param(SMALL, warmup, "validation_gradient", "validation", marks=pytest.mark.slow),
        pytest.param(SMALL, warmup, "preservation_gradient", "anchors", marks=pytest.mark.slow),
        (replace(SMALL, fisher_rows=9), warmup, "fisher_information", "fisher"),
    ],
)
def test_a_gradient_that_is_not_finite_names_its_row(corpus, toy, monkeypatch, settings, module, name, place):
    tmp_path, _ = corpus
    sets, kind = sets_of(tmp_path, toy, settings), "fisher" if place == "fisher" else "dualsft"
    monkeypatch.setattr(module, name, broken(2))
    selector = "dualsft" if name == "score_second" else "delift"  # only rows that are to be scored have a second pass
    with pytest.raises(ValueError, match=rf"1 of \d rows .* first ids \['{sets.ids[getattr(sets, place)[2]]}'\]"):
        run(tmp_path, toy, settings, selector=selector, mask_selector=kind)


def test_a_parameter_that_cannot_be_covered_is_refused_by_name_before_anything_is_trained(corpus, toy, monkeypatch):
    tmp_path, _ = corpus
    whole = warmup.load

    def load(choice):
        network = whole(choice)
        network.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
        return network

    monkeypatch.setattr(warmup, "load", load)
    with pytest.raises(
        ValueError, match=r"1 of \d+ trainable parameters cannot be covered, first model\.extra \(Llama"
    ):
        run(tmp_path, toy)
    assert not [*(tmp_path / "scratch").glob("*.safetensors")]


def test_a_warm_up_that_diverges_is_refused(corpus, toy, monkeypatch):
    tmp_path, _ = corpus
    monkeypatch.setattr(warmup, "backward", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(ValueError, match=r"the warm-up's loss is nan at step 1 of 3; lower gradients\.learning_rate"):
        run(tmp_path, toy)


def trained(folder, toy, settings):
    """What is recorded of a warm-up, and the weights that it gave."""
    sets = sets_of(folder, toy, settings)
    files = warmup.plan_files(folder / "scratch", sets, toy, settings)
    warmup.train(warmup.Work(folder, "", files, folder, toy, settings, SMALL_RUNTIME), sets)
    weights, facts = read(files.weights)
    return facts, weights


def test_the_share_of_entries_that_the_warm_up_moved_is_recorded(corpus, toy):
    facts, weights = trained(corpus[0], toy, SMALL)
    base = dict(models.language_model(toy).named_parameters())
    moved = sum(int((weights[name] != weight).sum()) for name, weight in base.items())
    assert facts["moved"] == moved / sum(map(torch.numel, weights.values()))
    assert facts["moved"] > 0.9


def test_a_warm_up_that_rounding_to_bfloat16_undoes_is_told_with_its_share(corpus, toy):
    half = replace(toy, dtype="bfloat16")
    text = r"the warm-up moved \d\.\d% of all entries, .*raise gradients\.learning_rate or set models\.dtype: float32"
    with pytest.warns(UserWarning, match=text):
        facts, _ = trained(corpus[0], half, replace(SMALL, learning_rate=2e-6))
    assert 0 < facts["moved"] < 0.1


@pytest.mark.parametrize(
    ("settings", "name", "value", "why"),
    [
        (SMALL, "order", "third", "Input should be 'first' or 'second'"),
        (SMALL, "confidence", "margin", "Input should be 'max_prob', 'entropy_inv' or 'uniform'"),
        (SMALL, "curvature", "exact", "Input should be 'raw' or 'corrected'"),
        (SMALL, "learning_rate", 0.0, "Input should be greater than 0"),
        (SMALL, "temperature", 0.0, "Input should be greater than 0"),
        (SMALL, "batch_rows", 0, "Input should be greater than or equal to 1"),
        (SMALL, "fisher_rows", 0, "Input should be greater than or equal to 1"),
        (SMALL_RUNTIME, "shard_rows", 0, "Input should be greater than or equal to 1"),
        (SMALL_RUNTIME, "block_parameters", 0, "Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, name, value, why):
    with pytest.raises(ValidationError, match=rf"(?m)^{name}\n  {why} "):
        replace(settings, **{name: value})


def test_float16_is_refused(corpus, toy):
    tmp_path, _ = corpus
    with pytest.raises(ValueError, match="underflow to 0; set bfloat16 or float32"):
        run(tmp_path, replace(toy, dtype="float16"))


@pytest.mark.slow
def test_weights_of_bfloat16_are_warmed_up_with_moments_of_float32(corpus, toy):
    tmp_path, ids = corpus
    run(tmp_path, replace(toy, dtype="bfloat16"))
    kept = {path.name.split("-")[0]: read(path)[0] for path in (tmp_path / "scratch").glob("*.safetensors")}
    kinds = {name: {str(tensor.dtype) for tensor in tensors.values()} for name, tensors in kept.items()}
    assert kinds.pop("weights") == {"torch.bfloat16"}
    assert kinds == {name: {"torch.float32"} for name in ("moments", "v_new", "v_prior", "G")}
    assert len(scored(tmp_path / "out")) == len(ids)


@pytest.mark.slow
def test_scratch_keeps_what_this_run_has_use_for(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    before = {path.stem for path in (tmp_path / "scratch").glob("v_*")}
    run(tmp_path, toy, replace(SMALL, temperature=1.0))
    after = {path.stem for path in (tmp_path / "scratch").glob("v_*")}
    assert [name[:5] for name in before & after] == ["v_new"]
    assert len(after) == 2


@pytest.mark.slow
def test_a_damaged_file_of_scratch_is_named(corpus, toy):
    tmp_path, _ = corpus
    run(tmp_path, toy)
    path = next((tmp_path / "scratch").glob("v_new-*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=rf"{path} is damaged .*; delete it"):
        run(tmp_path, toy)
