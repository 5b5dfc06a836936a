import builtins
import json
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import oracles
import pytest
import torch
from pydantic import ValidationError
from worlds.token_rows import cut_pair
from worlds.toy_corpus import write_examples
from worlds.toy_pairs import EXACT, SMALL, embed, run

from tamis.utility import pairs
from tamis.utility.utility import DISTANCES
from tasks import models
from tasks.artifacts.tables import provenance, read_table
from tasks.utility import utility
from tasks.utility.settings import UtilitySettings
from tasks.utility.utility import read_pool

NEIGHBOURS = replace(EXACT, kernel="neighbours", neighbours=2, check_targets=0)


@pytest.fixture
def folders(tmp_path, toy):
    ids = write_examples(tmp_path / "examples")
    embed(tmp_path, toy)
    return tmp_path, ids


def matrix(path, ids) -> np.ndarray:
    table, place = read_table(path / "utility.parquet"), {name: row for row, name in enumerate(ids)}
    found = np.full((len(ids), len(ids)), np.nan)
    for row in table.to_pylist():
        found[place[row["target_id"]], place[row["demo_id"]]] = row["utility"]
    return found


def segments_of(pool) -> tuple[list, list, list, list]:
    """What stands before each row's answer, the prefix that shows it, what stands between a prefix and its answer."""
    places = range(len(pool.ids))
    prefixes = [pool.prefix(0, place).tolist() for place in places]
    alone = [cut_pair(pool.encoding.row(place))[0] for place in places]
    rows, answers = zip(*(cut_pair(pool.answered(place, 0)) for place in places), strict=True)
    return alone, prefixes, list(rows), list(answers)


@pytest.mark.parametrize("template", ["chat", "delift"])
def test_the_kernel_is_what_a_forward_pass_per_pair_gives(folders, toy, template):
    tmp_path, ids = folders
    toy = replace(toy, max_tokens=512, template=template)
    run(tmp_path, toy)
    source = tmp_path / "examples/examples.parquet"
    slow = oracles.utility(models.language_model(toy), *segments_of(read_pool(source, "again", toy)))
    assert matrix(tmp_path / "out", ids) == pytest.approx(slow, abs=1e-5)


def test_the_log_likelihood_form_is_the_difference_of_mean_log_likelihoods(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, replace(EXACT, distance="log_likelihood"))
    pool = read_pool(tmp_path / "examples/examples.parquet", "again", toy)
    before, prefixes, rows, answers = segments_of(pool)
    network = models.language_model(toy)
    alone = np.mean(oracles.plain_log_probs(network, before[1], answers[1]))
    shown = np.mean(oracles.plain_log_probs(network, prefixes[3] + rows[1], answers[1]))
    assert matrix(tmp_path / "out", ids)[1, 3] == pytest.approx(shown - alone, abs=1e-5)


def test_both_distances_are_served_by_one_scoring(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    facts = run(tmp_path, toy, replace(EXACT, distance="log_likelihood"), out="other")
    assert facts["pairs_scored"] == 0


def test_pairs_of_another_way_of_multiplying_are_scored_anew_and_say_so(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    rounded = replace(toy, matmul="bf16")
    facts = run(tmp_path, rounded, out="other")
    assert (facts["pairs_scored"], facts["pairs_known"]) == (36, 0)
    assert facts["matmul_rounds"] == models.rounds_products(rounded)
    for out, said in (("out", "float32"), ("other", "bf16")):
        assert provenance(tmp_path / out / "utility.parquet")["parameters"]["matmul"] == said


def test_neighbours_score_each_target_with_itself_and_k_demos(folders, toy):
    tmp_path, ids = folders
    facts = run(tmp_path, toy, NEIGHBOURS)
    found = matrix(tmp_path / "out", ids)
    assert (~np.isnan(found)).sum(1).tolist() == [3] * 6
    assert not np.isnan(np.diag(found)).any()
    assert facts["pairs_scored"] == 18
    assert facts["alone_scored"] == 6


def test_a_sparse_kernel_agrees_with_the_exact_one_where_it_has_pairs(folders, toy):
    tmp_path, ids = folders
    run(tmp_path, toy, NEIGHBOURS, out="sparse")
    sparse = matrix(tmp_path / "sparse", ids)
    run(tmp_path, toy)
    there = ~np.isnan(sparse)
    assert np.array_equal(matrix(tmp_path / "out", ids)[there], sparse[there])


def test_finished_shards_survive_a_crash(folders, toy):
    tmp_path, _ = folders

    def interrupted(function, shards):
        for number, shard in enumerate(shards):
            if number == 2:
                raise KeyboardInterrupt
            yield function(shard)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy, map=interrupted)
    facts = run(tmp_path, toy)
    assert facts.pop("scoring_seconds") > 0
    assert facts.pop("scoring_flops") > 0
    assert facts.pop("kernel") == "exact"
    assert facts == {"pairs_scored": 22, "pairs_known": 14, "alone_scored": 0, "alone_known": 6, "shards": 3}


def test_the_bytes_do_not_depend_on_where_a_crash_was(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, store="whole")
    once = (tmp_path / "out/utility.parquet").read_bytes()
    for finished in (1, 3):

        def interrupted(function, shards, finished=finished):
            yield from builtins.map(function, shards[:finished])
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, toy, store=f"crashed-{finished}", map=interrupted)
        facts = run(tmp_path, toy, store=f"crashed-{finished}", out="resumed")
        assert facts["pairs_known"] + facts["alone_known"] == 10 * finished
        assert (tmp_path / "resumed/utility.parquet").read_bytes() == once


def test_how_shards_are_cut_and_run_is_no_part_of_the_bytes(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    run(tmp_path, toy, runtime=replace(SMALL, shard_pairs=7, pack_tokens=300), store="again", out="other")
    assert (tmp_path / "out/utility.parquet").read_bytes() == (tmp_path / "other/utility.parquet").read_bytes()


def test_a_new_example_costs_only_its_pairs(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    write_examples(tmp_path / "examples", pool=7)
    embed(tmp_path, toy)
    facts = run(tmp_path, toy)
    assert (facts["pairs_scored"], facts["alone_scored"]) == (7 * 7 - 6 * 6, 1)


def test_a_pair_that_does_not_fit_is_skipped_and_named(folders, toy):
    tmp_path, _ = folders
    small = replace(toy, max_tokens=40)
    run(tmp_path, small)
    skipped = read_table(tmp_path / "out/skipped.parquet").to_pylist()
    scored = read_table(tmp_path / "out/utility.parquet").num_rows
    assert 0 < len(skipped) < 36
    assert scored + len(skipped) == 36
    assert skipped[0]["reason"] == "demo and target together are longer than 40 tokens"
    assert json.loads((tmp_path / "out/utility.json").read_text())["pairs_skipped"] == len(skipped)


def test_a_target_that_does_not_fit_alone_is_refused(folders, toy):
    tmp_path, _ = folders
    with pytest.raises(ValueError, match=r"2 of 6 examples are longer than models\.max_tokens = 20, first ids"):
        run(tmp_path, replace(toy, max_tokens=20))


def test_a_single_example_is_refused(tmp_path, toy):
    write_examples(tmp_path / "examples", pool=1)
    (tmp_path / "embedding").mkdir()
    (tmp_path / "embedding/embedding.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="the pool has 1 used text; utility needs at least 2"):
        run(tmp_path, toy)


def test_a_non_finite_utility_stops_the_run_and_names_the_pair(folders, toy, monkeypatch):
    tmp_path, ids = folders
    broken = type(models.language_model(toy)).from_pretrained(toy.name).eval()
    digit = models.tokenizer(toy)("5", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        broken.get_input_embeddings().weight[digit] = float("nan")
    monkeypatch.setattr(utility, "scoring_model", lambda choice: broken)
    with pytest.raises(ValueError, match=rf"the score of target {ids[0]} with demo nothing is not finite"):
        run(tmp_path, toy)


@pytest.mark.parametrize(("kernel", "recall"), [("exact", None), ("neighbours", 0.75), ("landmarks", None)])
def test_the_recall_of_the_neighbours_is_told_where_any_are_looked_for(folders, toy, monkeypatch, kernel, recall):
    tmp_path, _ = folders
    found = pairs.find_neighbours
    monkeypatch.setattr(pairs, "find_neighbours", lambda *asked: replace(found(*asked), recall=0.75))
    run(tmp_path, toy, replace(NEIGHBOURS, kernel=kernel, landmarks=2))
    assert json.loads((tmp_path / "out/utility.json").read_text())["neighbour_recall"] == recall


def test_a_stage_that_nobody_asked_for_writes_empty_artifacts_that_say_so(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy, wanted=False)
    assert read_table(tmp_path / "out/utility.parquet").num_rows == 0
    facts = json.loads((tmp_path / "out/utility.json").read_text())
    assert facts["wanted"] is False
    assert "selection.selector" in facts["why"]


def test_the_artifact_says_where_it_comes_from(folders, toy):
    tmp_path, _ = folders
    run(tmp_path, toy)
    record = provenance(tmp_path / "out/utility.parquet")
    assert record["parameters"]["template"] == "chat"
    assert record["parameters"]["model_digest"] == models.model_digest(toy)
    assert len(record["inputs"]) == 2


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValidationError, match=r"kernel\n.*'exact', 'neighbours', 'landmarks' or 'none'.*'polynomial'"):
        replace(EXACT, kernel="polynomial")


@pytest.mark.parametrize("name", ["neighbours", "landmarks", "landmark_targets"])
def test_a_kernel_of_nothing_is_refused(name):
    with pytest.raises(ValidationError, match=rf"{name}\n.*greater than or equal to 1"):
        replace(EXACT, **{name: 0})


def test_settings_name_what_the_library_knows():
    known = get_type_hints(UtilitySettings)
    assert get_args(known["kernel"]) == tuple(pairs.KERNELS)
    assert get_args(known["distance"]) == tuple(DISTANCES)
