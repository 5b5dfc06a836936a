"""The sum of gradients: shards added in the pool's order, in whatever order they come."""

from itertools import permutations

import numpy as np
import pytest
import torch

from tasks.artifacts.tensors import read
from tasks.gradients import sums

ROWS = (3, 3, 3, 2)  # of the shards


def make_shards() -> list[tuple[int, dict[str, torch.Tensor], dict]]:
    """Sums whose order of addition shows in the bits."""
    draw = np.random.default_rng(0)
    starts = np.cumsum([0, *ROWS[:-1]]).tolist()
    return [
        (
            start,
            {
                name: torch.from_numpy(draw.normal(size=shape).astype(np.float32) * 10.0**place)
                for name, shape in (("b", (4, 3)), ("a", (5,)))
            },
            {"rows": rows, "seconds": 0.5},
        )
        for place, (start, rows) in enumerate(zip(starts, ROWS, strict=True))
    ]


def test_every_order_of_shards_gives_the_bits_of_the_pools_order(tmp_path):
    shards, found = make_shards(), set()
    plain = {name: sum((one[1][name] for one in shards[1:]), shards[0][1][name]) for name in ("a", "b")}
    for number, order in enumerate(permutations(range(len(shards)))):
        total = tmp_path / f"{number}/G-0.safetensors"
        for place in order:
            sums.add(total, *shards[place])
        assert not sums.list_waiting(total)
        found.add(total.read_bytes())
    assert len(found) == 1
    summed, facts = read(total)
    assert facts == {"rows": 11, "seconds": 2.0}
    assert all(torch.equal(summed[name], plain[name]) for name in plain)
    backwards = {name: sum((one[1][name] for one in shards[-2::-1]), shards[-1][1][name]) for name in ("a", "b")}
    assert not all(torch.equal(backwards[name], plain[name]) for name in plain)  # so the bits do tell an order


def test_a_shard_that_is_early_waits_and_is_not_counted(tmp_path):
    first, second, third, _ = make_shards()
    total = tmp_path / "G-0.safetensors"
    sums.add(total, *third)
    sums.add(total, *second)
    assert sums.count_rows(total) == 0
    assert sorted(sums.list_waiting(total)) == [3, 6]
    sums.add(total, *first)
    assert sums.count_rows(total) == 9
    assert sums.list_waiting(total) == {}


def test_rows_that_are_summed_already_are_not_added_again(tmp_path):
    first, second, *_ = make_shards()
    total = tmp_path / "G-0.safetensors"
    for shard in (first, second, first, second):
        sums.add(total, *shard)
    assert sums.count_rows(total) == 6


def test_shards_of_another_size_are_left_once_their_turn_is_over(tmp_path):
    first, second, *_ = make_shards()
    total = tmp_path / "G-0.safetensors"
    sums.add(total, 2, second[1], second[2])
    sums.add(total, *first)
    assert sums.list_waiting(total) == {}
    assert sums.count_rows(total) == 3


@pytest.mark.parametrize("kill", ["before", "after"])
def test_a_kill_while_a_waiting_shard_is_added_counts_it_once(tmp_path, monkeypatch, kill):
    first, second, *_ = make_shards()
    total, joined = tmp_path / "G-0.safetensors", sums._join
    sums.add(total, *second)

    def killed(path, tensors, facts):
        if sums.count_rows(total) == 3:
            if kill == "after":
                joined(path, tensors, facts)
            raise KeyboardInterrupt
        joined(path, tensors, facts)

    with monkeypatch.context() as patch:
        patch.setattr(sums, "_join", killed)
        with pytest.raises(KeyboardInterrupt):
            sums.add(total, *first)
    assert sums.settle(total) == 6
    assert sums.list_waiting(total) == {}
    assert torch.equal(read(total)[0]["a"], first[1]["a"] + second[1]["a"])
