"""Planted truths: pools whose best choice is known before anything is chosen."""

import numpy as np
import pytest

from tamis.submodular import objectives
from tamis.submodular.budgets import draw, resolve
from tamis.submodular.cosines import compare
from tamis.submodular.greedy import choose, evaluate
from tamis.submodular.kernels import gather
from tamis.submodular.objectives import Kernels
from tamis.submodular.optimisers import maximise

WIDTH = 32
COPIES = 40  # of one row


def count(rows: int, budget: int):
    return resolve({"count": budget}, topics=["a"] * rows, response_tokens=np.ones(rows, np.int64))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def scatter(labels: np.ndarray, generator: np.random.Generator, noise: float) -> np.ndarray:
    """Return unit vectors around the axes that the labels name."""
    return unit(np.eye(WIDTH)[labels] + noise * generator.normal(size=(len(labels), WIDTH)))


def plant_clusters(clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a shuffled pool's vectors and clusters: 12 rows each, 40 copies of one row, and noise rows of none (-1).

    A noise row points away from every cluster, so it is near to nothing but itself.
    """
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), 12)
    vectors = scatter(labels, generator, 0.08)
    noise = unit(-np.eye(WIDTH)[WIDTH - 1 - np.arange(6)] + 0.05 * generator.normal(size=(6, WIDTH)))
    vectors = np.concatenate([vectors, np.repeat(vectors[:1], COPIES, axis=0), noise])
    labels = np.concatenate([labels, np.zeros(COPIES, np.int64), np.full(6, -1)])
    order = generator.permutation(len(labels))
    return vectors[order], labels[order]


@pytest.mark.parametrize("optimiser", ["lazy", "stochastic", "partition"])
@pytest.mark.parametrize("seed", range(3))
def test_facility_location_takes_one_row_of_each_cluster(seed, optimiser):
    vectors, labels = plant_clusters(8, seed)
    objective = objectives.facility_location(compare(vectors, vectors))
    choice = maximise(objective, count(len(labels), 8), optimiser, epsilon=0.01, partitions=2, seed=seed)
    assert sorted(labels[choice.order].tolist()) == list(range(8))


@pytest.mark.parametrize("seed", range(3))
def test_facility_location_does_so_on_a_sparse_kernel(seed):
    vectors, labels = plant_clusters(8, seed)
    kernel = compare(vectors, vectors)
    targets, demos = np.nonzero(kernel > 0.5)
    sparse = gather(targets, demos, kernel[targets, demos], kernel.shape)
    assert sorted(labels[choose(sparse, count(len(labels), 8)).order].tolist()) == list(range(8))


def test_random_rows_are_mostly_copies_and_leave_clusters_out():
    _, labels = plant_clusters(8, 0)
    drawn = [labels[draw(count(len(labels), 8), seed=seed)] for seed in range(20)]
    assert np.mean([len(set(rows.tolist()) - {-1}) for rows in drawn]) < 6


def plant_task(seed: int) -> tuple[Kernels, np.ndarray]:
    """Return kernels of a pool of ten commands, one of them the target task, and which rows are of it: 10%.

    A command has ten topics, of which the pool holds two rows each and the target task's examples one or two. Cosines
    are about 0.8 within a topic, 0.4 within a command and 0.1 between commands.
    """
    generator = np.random.default_rng(seed)
    axes = np.eye(111)

    def draw_rows(commands: np.ndarray, topics: np.ndarray) -> np.ndarray:
        vectors = np.sqrt(0.1) * axes[0] + np.sqrt(0.3) * axes[1 + commands] + np.sqrt(0.4) * axes[11 + topics]
        return unit(vectors + 0.04 * generator.normal(size=vectors.shape))

    topics = generator.permutation(np.repeat(np.arange(100), 2))
    asked = np.concatenate([np.arange(30, 40), np.arange(30, 36)])  # command 3
    pool, task = draw_rows(topics // 10, topics), draw_rows(asked // 10, asked)
    kernels = Kernels(compare(pool, pool), queries=compare(task, pool), asked=compare(pool, task))
    return kernels, topics // 10 == 3


def choose_for_task(kernels: Kernels, form: str, eta: float) -> np.ndarray:
    """Return ten rows of the pool."""
    objective = objectives.build(kernels, "mutual_information", information=form, eta=eta)
    return choose(objective.kernel, count(200, 10), objective.bonus).order


@pytest.mark.parametrize(("form", "eta"), [("saturated", 1.0), ("queries", 1.0), ("additive", 20.0)])
@pytest.mark.parametrize("seed", range(3))
def test_mutual_information_takes_mostly_rows_of_the_target_task(form, eta, seed):
    kernels, of_task = plant_task(seed)
    assert of_task.mean() == 0.1
    assert of_task[choose_for_task(kernels, form, eta)].sum() >= 8
    assert of_task[choose(kernels.own, count(200, 10)).order].sum() <= 2  # facility location


@pytest.mark.parametrize("seed", range(3))
def test_with_a_weight_of_one_the_additive_form_still_covers_the_pool(seed):
    kernels, of_task = plant_task(seed)
    assert of_task[choose_for_task(kernels, "additive", 1.0)].sum() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_above_one_leads_the_saturated_form_back_to_facility_location(seed):
    kernels, of_task = plant_task(seed)  # every row's ceiling rises with it, also where the task is far away
    assert of_task[choose_for_task(kernels, "saturated", 5.0)].sum() <= 2


@pytest.mark.parametrize("shape", ["dense", "sparse"])
@pytest.mark.parametrize("seed", range(3))
def test_a_version_that_repeats_what_was_learnt_gains_nothing_from_it(shape, seed):
    kernel = np.maximum(np.random.default_rng(seed).normal(size=(60, 60)), 0).astype(np.float32)
    known = np.random.default_rng(seed).choice(60, size=20, replace=False)
    learnt = kernel[:, known]
    if shape == "sparse":
        kernel, learnt = (gather(*np.nonzero(part), part[np.nonzero(part)], part.shape) for part in (kernel, learnt))
    objective = objectives.build(Kernels(kernel, learnt=learnt), "conditional_gain", nu=1.0)
    choice = choose(objective.kernel, count(60, 60))
    gains = dict(zip(choice.order.tolist(), choice.gain.tolist(), strict=True))
    assert {gains[row] for row in known.tolist()} == {0.0}
    assert evaluate(objective.kernel, known) == 0
    assert set(choice.order[choice.gain > 0].tolist()).isdisjoint(known.tolist())
    assert choice.objective[-1] > 0
