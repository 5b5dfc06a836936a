"""The stage `gradients`, a group of parameters at a time: same numbers, bounded memory, crashes."""

import builtins
import weakref
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from worlds.toy_corpus import write_examples
from worlds.toy_gradients import FIRST, SMALL, SMALL_RUNTIME, content, counted, run, scored, told

import tamis.gradients.distillation
import tamis.gradients.fisher
import tamis.gradients.per_example
from tasks import models
from tasks.gradients import directions, gradients, warmup

BLOCK = 9000  # of 27,000 parameters


@pytest.fixture
def folder(tmp_path):
    write_examples(tmp_path / "examples", pool=8, target=3)
    return tmp_path


def blockwise(settings):
    runtime = replace(SMALL_RUNTIME, block_parameters=BLOCK)
    return {"settings": replace(settings, fisher_rows=3), "runtime": runtime}


@pytest.fixture
def wide(toy, monkeypatch):
    """The toy world in float64, so that 1e-12 can be asked for."""
    monkeypatch.setitem(models.DTYPES, "float64", torch.float64)
    return replace(toy, dtype="float64")


@pytest.mark.parametrize(
    "settings",
    [pytest.param(FIRST, marks=pytest.mark.slow), replace(SMALL, learning_rate=3e-2)],
    ids=["first order", "second order"],
)
@pytest.mark.parametrize("mask_selector", [pytest.param("dualsft", marks=pytest.mark.slow), "fisher"])
def test_groups_give_the_numbers_of_the_whole(folder, wide, settings, mask_selector):
    run(folder, wide, replace(settings, fisher_rows=3), mask_selector=mask_selector)
    whole = safetensors.torch.load_file(folder / "out/phi_param.safetensors")
    run(folder, wide, **blockwise(settings), out="parts", scratch="apart", mask_selector=mask_selector)
    parts, found = safetensors.torch.load_file(folder / "parts/phi_param.safetensors"), told(folder / "parts")
    size = max(map(abs, scored(folder / "out")))
    assert scored(folder / "parts") == pytest.approx(scored(folder / "out"), rel=1e-12, abs=1e-12 * size)
    assert parts.keys() == whole.keys()
    largest = max(float(tensor.abs().max()) for tensor in whole.values())
    for name, tensor in whole.items():
        assert parts[name].dtype == torch.float64
        assert (parts[name] - tensor).abs().max() <= 1e-12 * max(float(tensor.abs().max()), 1e-6 * largest), name
    assert (told(folder / "out")["groups"], found["groups"]) == (1, 4)
    same = [name for name in found if name.startswith(("norm", "cosine", "zeros", "second_", "sum", "largest"))]
    assert {name: found[name] for name in same} == pytest.approx({name: told(folder / "out")[name] for name in same})


def entries_of(folder, model) -> list[int]:
    """Return the number of entries of each group."""
    weights = dict(models.language_model(model).named_parameters())
    groups = warmup.group(model, BLOCK)
    return [sum(weights[name].numel() for name in names or weights) for names in groups]


class Alive:
    """Counts the bytes of tensors while anything holds them."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def watch(self, function):
        def watched(*args, **named):
            found = function(*args, **named)
            for tensor in found.values():
                self.now += tensor.nbytes
                weakref.finalize(tensor, self.forget, tensor.nbytes)
            self.peak = max(self.peak, self.now)
            return found

        return watched

    def forget(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize(
    ("settings", "mask_selector"),
    [(FIRST, "fisher"), pytest.param(SMALL, "dualsft", marks=pytest.mark.slow)],
    ids=["first order and Fisher information", "second order"],
)
def test_sums_and_directions_in_memory_are_those_of_one_group(folder, toy, settings, mask_selector, monkeypatch):
    alive, entries = Alive(), entries_of(folder, toy)
    for module in (tamis.gradients.per_example, tamis.gradients.distillation, tamis.gradients.fisher):
        monkeypatch.setattr(module, "start_sums", alive.watch(module.start_sums))
    for module, name in ((directions, "direction"), (gradients, "score_parameters")):
        monkeypatch.setattr(module, name, alive.watch(getattr(module, name)))
    run(folder, toy, **blockwise(settings), mask_selector=mask_selector)
    assert 4 * max(entries) < alive.peak <= 2 * 4 * max(entries) < 4 * sum(entries)  # two of a group; float32


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FIRST, SMALL], ids=["first order", "second order"])
def test_a_crash_in_a_later_group_loses_one_shard(folder, toy, settings):
    run(folder, toy, **blockwise(settings), out="whole", scratch="whole", store="apart")
    started = []

    def interrupted(function, items):
        for item in items:
            started.append(function.__name__)
            if started.count("add_shard") > 3:
                raise KeyboardInterrupt
            yield from builtins.map(function, [item])

    with pytest.raises(KeyboardInterrupt):
        run(folder, toy, **blockwise(settings), map=interrupted)
    summed, scored_rows = 4 * 3, 4 * started.count("score_shard")
    wanted = [4 * 8 - summed, 4 * 8 - scored_rows if settings.order == "second" else 0]
    assert counted(run(folder, toy, **blockwise(settings)))[:2] == wanted
    assert content(folder / "out") == content(folder / "whole")


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_passes_are_counted_by_group(folder, toy):
    first = run(folder, toy, **blockwise(FIRST), mask_selector="fisher")
    again = run(folder, toy, **blockwise(FIRST), mask_selector="fisher", out="again")
    assert (*counted(first), first["rows_squared"]) == (4 * 8, 0, 4 * 2, 4 * 3)
    assert (*counted(again), again["rows_squared"]) == (0, 0, 0, 0)
    assert content(folder / "again") == content(folder / "out")
    assert again["scoring_seconds"] == first["scoring_seconds"]
