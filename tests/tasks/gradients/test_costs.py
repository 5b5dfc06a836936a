"""Operations of gradients are those of the rows that each part passes, alone, and of the warm-up's packed steps."""

from dataclasses import replace

import pytest
import torch
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import FIRST, SMALL, run, sets_of, told

from tamis.training.steps import collate
from tasks import models
from tasks.gradients.costs import count_passes
from tasks.gradients.warmup import plan_warmup

DOUBLE = {"selector": "dualsft", "mask_selector": "fisher"}


@pytest.fixture
def world(tmp_path):
    write_examples(tmp_path / "examples", pool=10, held_out=2, validation=2)
    return tmp_path


def slow(sets, places, size) -> int:
    """2 for each parameter and token of these rows, each run alone."""
    pieces = [piece for place in places for piece in sets.encoding.row(place)]
    return sum(2 * (size.layers * len(piece) + size.head * int(piece.answers.sum())) for piece in pieces)


def test_every_part_is_counted_from_the_tokens_of_its_rows(world, toy):
    sets, size = sets_of(world, toy), models.count_parameters(toy)
    found = count_passes(sets, SMALL, toy, kinds=["dualsft", "fisher"], groups=1, again=True)
    steps = plan_warmup(len(sets.warmup), SMALL)
    packed = [collate(sets.encoding.pick(sets.warmup).pick(step), torch.device("cpu")) for step in steps]
    tokens = sum(one["input_ids"].numel() for one in packed)
    assert found == {
        "warmup": 6 * (size.layers * tokens + size.head * sum(one["logits_to_keep"].numel() for one in packed)),
        "v_new": 3 * slow(sets, sets.validation, size),
        "v_prior": 4 * slow(sets, sets.anchors, size),
        "first_pass": 3 * slow(sets, sets.pool, size),
        "second_pass": 2 * slow(sets, sets.pool, size),
        "fisher": 3 * slow(sets, sets.fisher, size),
    }


def test_groups_pass_again_and_first_order_needs_no_second_pass(world, toy):
    sets = sets_of(world, toy)
    once, thrice = (count_passes(sets, FIRST, toy, kinds=["dualsft"], groups=groups, again=False) for groups in (1, 3))
    assert thrice == {name: flops * (1 if name == "warmup" else 3) for name, flops in once.items()}
    assert once["second_pass"] == 0


def test_they_stand_beside_the_seconds_and_are_the_same_when_all_is_known(world, toy):
    first, again = (run(world, toy, replace(SMALL, fisher_rows=4), **DOUBLE) for _ in range(2))
    assert first["scoring_flops"] == again["scoring_flops"] == sum(told(world / "out")["flops"].values())
    assert told(world / "out")["flops"].keys() == told(world / "out")["seconds"].keys()
