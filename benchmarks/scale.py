"""Time and memory of choosing from sparse kernels as the ground set grows, for each optimiser.

    python benchmarks/scale.py [--sizes 10000 100000 1000000] [--optimisers lazy stochastic partition]

Kernel: rows form clusters of about 500, scattered over the ground set; a target is similar to the 32 nearest demos of
its cluster, by cosine of 32 random numbers, float32. Like a utility it is not symmetric: a demo is its own target and
some noise. Budget 10%. Stochastic greedy with epsilon 0.01; four partitions, one after the other, on all targets.

Every measurement runs in a process of its own, so that its peak memory is that of this ground set alone: imports,
kernel, budget and choice. Seconds are those of the choice; making the kernel (`kernel_s`) and compiling are not in
them. CPU seconds are those of the whole process, which has one thread; on a busy machine they are what to compare.

Limit: `once_s` is the time for reading every entry once, which any greedy must, at the rate at which `numpy.max` reads
the similarities. `ours_s` is the same for all that lazy greedy reads and writes: some passes over the kernel to begin
with, and for every cover that grows the target's row and the gains of its demos. These lie apart, so that what is left
between `ours_s` and the CPU seconds is mostly waiting for memory, and Python's share of a pick.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from tamis.submodular.budgets import Budget, resolve
from tamis.submodular.greedy import Choice, choose, evaluate
from tamis.submodular.kernels import SparseKernel
from tamis.submodular.partition import choose_partitioned
from tamis.submodular.stochastic import choose_stochastic

NEIGHBOURS = 32
CLUSTER = 500  # rows of a cluster, or some more
WIDTH = 32  # of the vectors
NOISE = 0.5  # of a demo, seen from its own target; 1 is the spread within a cluster
BUDGET = {"fraction": 0.1}
EPSILON, PARTITIONS = 0.01, 4
BEGIN = 36  # bytes an entry: smallest 4, largest 4, sums 8, by columns 4 to count and 16 to move
GROW = 24  # bytes an entry of a row whose cover grows: demo and similarity 8, its gain 16
GOAL = 1_000_000, 600, 8  # rows, seconds and GB

Optimiser = Callable[[SparseKernel, Budget], Choice]
OPTIMISERS: dict[str, Optimiser] = {
    "lazy": choose,
    "stochastic": lambda kernel, budget: choose_stochastic(kernel, budget, epsilon=EPSILON, seed=0),
    "partition": lambda kernel, budget: choose_partitioned(kernel, budget, partitions=PARTITIONS, seed=0),
}


def main() -> int:
    """Run what is asked for and print one JSON line; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows")
    parser.add_argument("--optimisers", nargs="+", choices=OPTIMISERS, default=list(OPTIMISERS))
    parser.add_argument("--here", action="store_true", help="the first of each, in this process")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.optimisers[0], asked.sizes[0])))
        return 0
    curve = [measure_apart(name, rows) for rows in asked.sizes for name in asked.optimisers]
    rows, seconds, gigabytes = GOAL
    met = all(one["s"] <= seconds and one["peak_gb"] <= gigabytes for one in curve if one["rows"] <= rows)
    print(json.dumps({"goal_rows": rows, "goal_s": seconds, "goal_gb": gigabytes, "goal_met": met, "curve": curve}))
    return 0 if met else 1


def measure_apart(name: str, rows: int) -> dict[str, float]:
    """Return what `measure` finds in a process of its own, and say it."""
    command = [sys.executable, __file__, "--here", "--sizes", str(rows), "--optimisers", name]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # making many small kernels
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout)
    limit = ""
    if "once_s" in found:
        limit = (
            f"; {found['once_gb']:.2f} GB to read once take {found['once_s']:.2f} s, {found['ours_gb']:.2f} GB that "
            f"pass through {found['ours_s']:.2f} s, {100 * found['ours_s'] / found['cpu_s']:.0f}% of the CPU seconds"
        )
    say(
        f"{rows:,} rows, {name}: {found['s']:.2f} s, {found['cpu_s']:.2f} CPU s, peak {found['peak_gb']:.2f} GB "
        f"(imports {found['imports_gb']:.2f}, kernel {found['kernel_gb']:.2f}), "
        f"{found['share']:.4f} of what all rows cover{limit}"
    )
    return found


def measure(name: str, rows: int) -> dict[str, float]:
    """Return seconds, peak memory and objective of an optimiser on one kernel."""
    optimiser = OPTIMISERS[name]
    optimiser(make_kernel(2 * CLUSTER), budget_of(2 * CLUSTER))  # compiles
    imports, start = peak(), time.perf_counter()
    kernel, budget = make_kernel(rows), budget_of(rows)
    made, cpu = time.perf_counter(), time.process_time()
    choice = optimiser(kernel, budget)
    seconds, cpu, highest = time.perf_counter() - made, time.process_time() - cpu, peak()
    return {
        "rows": rows,
        "optimiser": name,
        "pairs": len(kernel.values),
        "picks": len(choice.order),
        "s": seconds,
        "cpu_s": cpu,
        "peak_gb": highest,
        "imports_gb": imports,
        "kernel_gb": (kernel.values.nbytes + kernel.indices.nbytes + kernel.indptr.nbytes) / 1e9,
        "kernel_s": made - start,
        "share": evaluate(kernel, choice.order) / evaluate(kernel),
        **(limits(kernel, choice) if name == "lazy" else {}),
    }


def limits(kernel: SparseKernel, choice: Choice) -> dict[str, float]:
    """Return the bytes of every entry once, and of all that lazy greedy touches, with the seconds they take."""
    once = kernel.values.nbytes + kernel.indices.nbytes
    ours = BEGIN * len(kernel.values) + GROW * NEIGHBOURS * count_growths(kernel, choice.order)
    kernel.values.max()
    start = time.perf_counter()
    kernel.values.max()
    rate = kernel.values.nbytes / (time.perf_counter() - start)
    return {"once_gb": once / 1e9, "once_s": once / rate, "ours_gb": ours / 1e9, "ours_s": ours / rate}


def count_growths(kernel: SparseKernel, order: np.ndarray) -> int:
    """Return how often the cover of a target grew, the demos taken in this order."""
    turn = np.full(kernel.shape[1], len(order))
    turn[order] = np.arange(len(order))
    total = 0
    for start in range(0, len(kernel.values), NEIGHBOURS * 4096):
        entries = slice(start, start + NEIGHBOURS * 4096)
        turns = turn[kernel.indices[entries]].reshape(-1, NEIGHBOURS)
        values = np.where(turns < len(order), kernel.values[entries].reshape(turns.shape), 0)
        in_turn = np.take_along_axis(values, np.argsort(turns, axis=1), axis=1)
        cover = np.maximum.accumulate(np.pad(in_turn, [(0, 0), (1, 0)]), axis=1)
        total += int((np.diff(cover, axis=1) > 0).sum())
    return total


def make_kernel(rows: int, seed: int = 0) -> SparseKernel:
    """Return the similarities of each target to its nearest demos, made a cluster at a time."""
    generator = np.random.default_rng(seed)
    indices, values = np.empty((rows, NEIGHBOURS), np.int32), np.empty((rows, NEIGHBOURS), np.float32)
    for members in np.array_split(generator.permutation(rows), max(1, rows // CLUSTER)):
        members.sort()
        targets = generator.normal(size=(1, WIDTH)) + generator.normal(size=(len(members), WIDTH))
        cosines = unit(targets) @ unit(targets + NOISE * generator.normal(size=targets.shape)).T
        nearest = np.sort(np.argpartition(-cosines, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS], axis=1)
        indices[members] = members[nearest]
        values[members] = np.maximum(np.take_along_axis(cosines, nearest, axis=1), 0)
    indptr = np.arange(rows + 1, dtype=np.int64) * NEIGHBOURS
    return SparseKernel(indptr, indices.ravel(), values.ravel(), (rows, rows))


def budget_of(rows: int) -> Budget:
    """Return a budget of 10% of the rows."""
    return resolve(BUDGET, topics=["all"] * rows, response_tokens=np.ones(rows, np.int64))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def peak() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def say(text: str) -> None:
    """Talk to the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
