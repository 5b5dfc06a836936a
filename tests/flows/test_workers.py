"""Worker processes: one per device, what runs in them, and what becomes of their errors."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest
from worlds import shards

from flows import workers
from flows.workers import WorkersError


@pytest.fixture
def pool():
    """Two workers on this machine's processor."""
    with workers.opened("2", "cpu") as found:
        yield found


def run_all(pool: workers.Pool, function, items) -> list:
    with ThreadPoolExecutor(pool.size) as threads:
        return list(threads.map(partial(pool.run, function), items))


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_of_workers_is_refused(asked):
    with pytest.raises(WorkersError, match=r"give auto, one per CUDA device, or a number from 1"):
        workers.read_workers(asked)


def test_a_worker_per_device_and_further_ones_share_them(monkeypatch):
    monkeypatch.setattr(workers, "list_devices", lambda: ["4", "6"])
    assert workers.plan_workers("auto", "auto") == ["4", "6"]
    assert workers.plan_workers("3", "cuda") == ["4", "6", "4"]
    assert workers.plan_workers("1", "auto") == ["4"]
    assert workers.plan_workers("auto", "cpu") == [None]
    assert workers.plan_workers("2", "cpu") == [None, None]


def test_the_devices_are_those_that_this_process_sees(monkeypatch):
    import torch

    monkeypatch.setattr(workers, "DRIVERS", (os.devnull,))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.list_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-77")
    assert workers.list_devices() == ["3", "GPU-77"]


def test_one_worker_is_this_process():
    with workers.opened("1", "cpu") as pool:
        assert run_all(pool, shards.tell_process, shards.make_items(3)) == [os.getpid()] * 3


def test_items_run_in_processes_at_once_and_give_results_in_order(pool):
    assert run_all(pool, shards.square, shards.make_items(6)) == [0, 1, 4, 9, 16, 25]
    told = run_all(pool, shards.tell_process, shards.make_items(6))
    assert os.getpid() not in told
    assert len({*told}) == 2


def test_what_asks_no_model_stays_in_this_process(pool):
    assert run_all(pool, shards.tell_process, shards.make_items(2, model=None)) == [os.getpid()] * 2
    assert run_all(pool, lambda item: item + 1, [1, 2]) == [2, 3]


def test_a_worker_sees_its_own_device_alone():
    pool = workers.Pool(["5", "7"])
    try:
        assert {*run_all(pool, shards.tell_device, shards.make_items(8))} == {"5", "7"}
    finally:
        pool.end()


def test_an_error_of_ours_is_told_as_it_is_and_any_other_by_its_kind(pool):
    (item,) = shards.make_items(1)
    with pytest.raises(ValueError, match=r"^item 0 is not finite; set models.dtype: float32$") as found:
        pool.run(shards.refuse, item)
    assert "in refuse" in str(found.value.__cause__)  # where it was raised
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero$"):
        pool.run(shards.stumble, item)
    assert pool.run(shards.square, item) == 0


def test_a_worker_that_dies_is_told_of_and_replaced(pool):
    (item,) = shards.make_items(1)
    with pytest.raises(WorkersError, match=r"a worker has died \(exit status 9\); what it had finished is kept"):
        pool.run(shards.die, item)
    assert run_all(pool, shards.square, shards.make_items(4)) == [0, 1, 4, 9]


def test_a_worker_that_died_between_two_items_is_told_of_and_replaced(pool):
    (item,) = shards.make_items(1)
    for process in {*run_all(pool, shards.tell_process, shards.make_items(6))}:
        psutil.Process(process).kill()
    time.sleep(0.5)
    for _ in range(2):
        with pytest.raises(WorkersError, match=r"a worker has died \(exit status -9\)"):
            pool.run(shards.square, item)
    assert run_all(pool, shards.square, shards.make_items(4)) == [0, 1, 4, 9]


def test_no_process_is_left_behind():
    with workers.opened("2", "cpu") as pool:
        told = run_all(pool, shards.tell_process, shards.make_items(4))
    time.sleep(0.1)
    assert not [process for process in told if psutil.pid_exists(process)]


def test_this_process_lets_go_of_its_models_before_workers_load_theirs(pool, monkeypatch):
    from tasks import models

    made = []
    monkeypatch.setattr(models, "_keeping", [])
    keeping = models.kept(made.append)
    keeping("a model")
    keeping("a model")
    pool.run(shards.square, shards.make_items(1)[0])
    keeping("a model")
    assert made == ["a model", "a model"]
