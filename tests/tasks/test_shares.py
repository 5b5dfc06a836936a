"""Shares of a stage: together they do what one run does, in any order, each once and none of another's."""

import builtins
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from worlds import toy_gradients, toy_pairs
from worlds.places import find_folders
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import FIRST

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.scores.scores import write_scores
from tasks.scores.settings import ScoresSettings
from tasks.settings import RuntimeSettings
from tasks.shares import Share, Unfinished

COUNT = 3
ORDERS = ([1, 2, 3], [3, 1, 2])


@pytest.fixture
def world(tmp_path, toy):
    """A corpus with embeddings."""
    write_examples(tmp_path / "examples", pool=14, target=3, held_out=2, learnt=1)
    toy_pairs.embed(tmp_path, toy)
    return tmp_path


def fill(order: list[int], run: Callable) -> list[list]:
    """Run shares in rounds until all is there; returns the items that each call computed."""
    computed = []
    for _ in range(6):
        whole = []
        for number in order:
            seen: list = []

            def note(function, items, seen=seen):
                seen.extend(items)
                return builtins.map(function, items)

            with suppress(Unfinished):
                run(Share(note, number, COUNT))
                whole.append(number)
            computed.append(seen)
        if len(whole) == COUNT:
            return computed
    raise AssertionError("the shares do not come to an end")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", ["exact", "landmarks"])
def test_shares_score_every_pair_once(world, toy, kernel, order):
    settings = replace(toy_pairs.EXACT, kernel=kernel, landmarks=3, landmark_targets=6, check_targets=0)
    toy_pairs.run(world, toy, settings, store="alone", out="alone_out")
    computed = fill(order, lambda map: toy_pairs.run(world, toy, settings, map=map, store="shared", out="unread"))
    pairs = [tuple(pair) for items in computed for shard in items for pair in shard.pairs.tolist()]
    assert len(pairs) == len({*pairs})
    assert min(sum(len(shard.pairs) for shard in items) for items in computed[:COUNT]) > 0
    did = toy_pairs.run(world, toy, settings, store="shared", out="out")
    assert (did["pairs_scored"], did["alone_scored"]) == (0, 0)
    found, alone = (toy_pairs.pairs_of(world / name / "utility.parquet") for name in ("out", "alone_out"))
    assert found == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("selector", ["perplexity", "tov"])
def test_shares_measure_every_row_once(world, toy, selector):
    def run(map=map, *, store="shared", out="out"):
        return write_scores(
            find_folders(world, scores=world / out, cache=world / store),
            model=toy,
            settings=ScoresSettings(),
            runtime=RuntimeSettings(shard_rows=2, pack_tokens=200),
            selector=selector,
            gate=True,
            map=map,
        )

    run(store="alone", out="alone_out")
    computed = fill([2, 3, 1], lambda map: run(map, out="unread"))
    rows = [(shard.selector, row.id) for items in computed for shard in items for row in shard.rows]
    assert len(rows) == len({*rows})
    assert run()["rows_scored"] == 0
    found, alone = (read_table(world / name / "scores.parquet", schemas.SCORES) for name in ("out", "alone_out"))
    assert found["id"] == alone["id"]
    assert np.asarray(found["score"]) == pytest.approx(np.asarray(alone["score"]), abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("settings", [FIRST, pytest.param(toy_gradients.SMALL, marks=pytest.mark.slow)])
def test_shares_sum_every_row_once_and_to_the_same_bits(world, toy, settings, order):
    toy_gradients.run(world, toy, settings, out="alone", scratch="alone_scratch", store="alone_store")

    def run(map=map, out="unread"):
        return toy_gradients.run(world, toy, settings, out=out, scratch="shared", store="store", map=map)

    computed = fill(order, run)
    starts = [shard.start for items in computed for shard in items if not shard.places]
    assert sorted(starts) == [0, 4, 8, 12]
    assert toy_gradients.counted(run(out="out")) == [0, 0, 0]
    (scores, sums), (alone, alone_sums) = (toy_gradients.content(world / name) for name in ("out", "alone"))
    assert sums == alone_sums
    if settings is FIRST:
        assert scores == alone
    assert toy_gradients.scored(world / "out") == pytest.approx(toy_gradients.scored(world / "alone"), rel=1e-4)


def test_a_share_does_not_clear_what_another_one_is_at(world, toy):
    """A process that begins while others are at work deletes none of their files."""
    left = world / "shared/G-of-another-process.safetensors"

    def begin_another(function, items):
        left.write_bytes(b"")
        with pytest.raises(Unfinished):
            toy_gradients.run(world, toy, FIRST, scratch="shared", map=Share(map, 2, COUNT))
        assert left.exists()
        return builtins.map(function, items)

    with pytest.raises(Unfinished):
        toy_gradients.run(world, toy, FIRST, scratch="shared", map=Share(begin_another, 1, COUNT))
    toy_gradients.run(world, toy, FIRST, scratch="shared")
    assert not left.exists()
