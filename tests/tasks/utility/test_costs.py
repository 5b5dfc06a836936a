"""Operations of scored pairs are those of packs that hold each demo once, whatever was stored and how it was cut."""

import json
from dataclasses import replace

import numpy as np
import pytest
from worlds.toy_corpus import write_examples
from worlds.toy_pairs import EXACT, SMALL, embed, run

from tamis.evaluation.costs import Passed, count_flops
from tamis.language.packing import plan_packs
from tasks import models
from tasks.utility.costs import count_pairs
from tasks.utility.pool import read_pool
from tasks.utility.utility import _groups

CHECKED = replace(EXACT, kernel="neighbours", neighbours=2, check_targets=2, help_targets=1)


@pytest.fixture
def world(tmp_path, toy):
    write_examples(tmp_path / "examples")
    embed(tmp_path, toy)
    return tmp_path


@pytest.mark.parametrize("answer_tokens", [None, 2])
def test_tokens_are_those_of_one_pack_of_every_demo_with_its_targets(world, toy, answer_tokens):
    pool = read_pool(world / "examples/examples.parquet", "again", toy, answer_tokens)
    pairs = np.array([[0, -1], [1, -1], [0, 0], [1, 0], [3, 0], [1, 5]])
    members = {(0, -1): [0, 1], (0, 0): [0, 1, 3], (0, 5): [1]}
    (pack,) = plan_packs(_groups(pool, members), 100_000)
    assert count_pairs(pool, pairs) == Passed(len(pack.tokens), sum(map(len, pack.predicting)))


def test_operations_do_not_depend_on_shards_packs_and_what_was_scored_before(world, toy):
    first = run(world, toy, CHECKED)["scoring_flops"]
    assert run(world, toy, CHECKED, out="again")["scoring_flops"] == first > 0
    other = replace(SMALL, shard_pairs=3, pack_tokens=60)
    assert run(world, toy, CHECKED, runtime=other, store="other", out="cut")["scoring_flops"] == first
    assert json.loads((world / "cut/utility.json").read_text())["flops"] == first


def test_pairs_of_the_check_are_not_counted_and_those_of_help_are(world, toy):
    flops = {
        name: run(world, toy, replace(CHECKED, **changes), out=name)["scoring_flops"]
        for name, changes in {"all": {}, "unchecked": {"check_targets": 0}, "kernel": {"help_targets": 0}}.items()
    }
    assert flops["all"] == flops["unchecked"] > flops["kernel"]


def test_the_parameters_that_take_part_are_all_but_the_embeddings_and_the_head_apart(toy):
    layers = 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    size = models.count_parameters(toy)
    words = len(models.tokenizer(toy))
    assert (size.layers, size.head) == (layers, 32 * words)
    assert count_flops(Passed(3, 1), size) == 2 * (3 * layers + 32 * words)
    assert models.count_parameters(toy, encoder=True).layers == layers
    assert models.count_parameters(toy, encoder=True).head == 0
