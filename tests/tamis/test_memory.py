"""Work that is cut smaller where memory is short: sizes, what counts as short, and the scores that come out."""

import pytest
import torch
from worlds.small_models import small_model, small_pool

from tamis import memory
from tamis.language import packing
from tamis.memory import Halving, MemoryShort, fitting, is_short, take_halvings


@pytest.fixture(autouse=True)
def anew():
    take_halvings()
    yield
    take_halvings()


def short_above(largest: int, error: Exception):
    def run(size: int) -> int:
        if size > largest:
            raise error
        return size

    return run


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
    ],
)
def test_what_says_that_memory_is_short_halves_the_size(error):
    assert is_short(error)
    assert fitting("rows", 100, short_above(30, error)) == 25
    assert take_halvings() == [Halving("rows", 100, 25)]


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("shapes differ"), KeyboardInterrupt(), OSError("no space left")]
)
def test_any_other_error_is_raised_at_once(error):
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        raise error

    with pytest.raises(type(error)):
        fitting("rows", 8, run)
    assert tried == [8]
    assert take_halvings() == []


def test_the_size_that_fitted_is_tried_first_for_the_rest_of_a_stage():
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        if size > 3:
            raise MemoryError

    fitting("rows", 8, run)
    fitting("rows", 8, run)
    fitting("others", 8, lambda size: None)
    fitting("rows", 1, run)
    take_halvings()
    fitting("rows", 8, run)
    assert tried == [8, 4, 2, 2, 1, 8, 4, 2]


def test_where_one_does_not_fit_the_error_names_the_ways_out():
    with pytest.raises(MemoryShort, match=r"the smallest pass \(rows 1 of 8\): MemoryError; lower models.max_tokens"):
        fitting("rows", 8, short_above(0, MemoryError()))


def test_what_another_process_halved_is_added():
    memory.add_halvings([Halving("rows", 64, 16)])
    memory.add_halvings([Halving("rows", 64, 32), Halving("others", 8, 4)])
    assert take_halvings() == [Halving("rows", 64, 16), Halving("others", 8, 4)]


def test_scores_in_smaller_packs_are_the_same(monkeypatch):
    model, real, sizes = small_model("llama"), packing._run, []
    queries, responses = small_pool(rows=7)
    groups = [packing.make_group([], [query], [response]) for query, response in zip(queries, responses, strict=True)]
    whole = packing.score_responses(model, groups, 1000)

    def short(model, pack):
        sizes.append(len(pack.tokens))
        if len(pack.tokens) > 20:
            raise MemoryError
        return real(model, pack)

    monkeypatch.setattr(packing, "_run", short)
    found = packing.score_responses(model, groups, 1000)
    assert max(sizes) > 20 >= sizes[-1]
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(torch.cat(one), torch.cat(other), rtol=1e-5, atol=1e-6)
    assert take_halvings()[0].asked == 1000
