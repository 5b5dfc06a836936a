"""Facility location by tamis, submodlib-py and apricot-select on the same kernels, side by side.

    python benchmarks/selection.py [--sizes 1000 4000] [--sparse-rows 100000] [--curve 10000 100000 1000000]

Dense: cosines of clustered targets with demos, which are the targets and some noise; those below 0 are 0; budget 30%.
Like a utility the kernel is not symmetric (on a symmetric one with a constant diagonal late picks are exact ties, which
every library breaks in its own way) and a demo helps its own target most, so that no gain is 0 before the end
(apricot's lazy optimizer may take a row of gain 0 when it meets two in turn, and is then not greedy).

CPU seconds of the whole process, all threads, the best of some runs. What is not counted: the kernel in the layout and
type of each library, the building of its object, and compiling. apricot compiles anew in every `fit`; what that takes
is in `apricot_compile_cpu_s`, and no part of `apricot_cpu_s` or of the ratio.

Limit: our bytes are four passes over the kernel (smallest, largest, sums, what can still matter) and, in the picks
before it turns sparse, a row for each cover that grows and a cache line per target (a column of a matrix that lies by
rows). At the rate at which `numpy.max` reads the kernel they take `limit_s`, and `limit_fraction` is that over ours.

Curve: time and memory of our optimisers on sparse kernels of so many rows, each in a process of its own, so that its
peak memory is that of this ground set alone: imports, kernel, budget and choice. Rows form clusters of about 500,
scattered over the ground set; a target is similar to the 32 nearest demos of its cluster. Budget 10%. Stochastic greedy
with epsilon 0.01; four partitions, one after the other, on all targets. Making the kernel (`kernel_s`) and compiling
are not counted. `once_s` is the time for reading every entry once, which any greedy must, at the rate at which
`numpy.max` reads the similarities; `ours_s` the same for all that lazy greedy reads and writes: some passes over the
kernel, and for every cover that grows the target's row and the gains of its demos. These lie apart, so that what is
left between `ours_s` and the CPU seconds is mostly waiting for memory, and Python's share of a pick.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tamis.submodular.budgets import Budget, resolve
from tamis.submodular.greedy import THIN, Choice, choose, evaluate
from tamis.submodular.kernels import SparseKernel, gather
from tamis.submodular.partition import choose_partitioned
from tamis.submodular.stochastic import choose_stochastic

SHARE = 0.3  # of the rows
NEIGHBOURS = 64
WIDTH = 32  # of the vectors
CLUSTER = 500  # rows of a cluster of the sparse kernel
NOISE = 0.5  # of a demo, seen from its own target; 1 is the spread within a cluster
APART = 1e-6  # relative difference of objectives that is put up with
LINE = 64  # bytes that a read of one number brings
CURVE_NEIGHBOURS, CURVE_SHARE = 32, 0.1  # of a target of the curve's kernels; of the rows
BEGIN = 36  # bytes an entry: smallest 4, largest 4, sums 8, by columns 4 to count and 16 to move
GROW = 24  # bytes an entry of a row whose cover grows: demo and similarity 8, its gain 16
GOAL = 1_000_000, 600, 8  # rows, seconds and GB of the curve

Optimiser = Callable[[SparseKernel, Budget], Choice]
OPTIMISERS: dict[str, Optimiser] = {
    "lazy": choose,
    "stochastic": lambda kernel, budget: choose_stochastic(kernel, budget, epsilon=0.01, seed=0),
    "partition": lambda kernel, budget: choose_partitioned(kernel, budget, partitions=4, seed=0),
}


def main() -> int:
    """Run what is asked for and print one JSON line; return 1 where libraries differ or the curve misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 4000], help="rows of the dense kernels")
    parser.add_argument("--sparse-rows", type=int, default=100_000, help="rows of the sparse kernel; 0: none")
    parser.add_argument("--runs", type=int, default=3, help="runs of each library on each dense kernel")
    parser.add_argument("--curve", type=int, nargs="+", default=[], metavar="ROWS", help="rows of the curve's kernels")
    parser.add_argument("--optimisers", nargs="+", choices=OPTIMISERS, default=list(OPTIMISERS), help="of the curve")
    parser.add_argument("--here", action="store_true", help="one sparse kernel alone, in this process")
    asked = parser.parse_args()
    if asked.here:
        on_curve = bool(asked.curve)
        one = measure_optimiser(asked.optimisers[0], asked.curve[0]) if on_curve else measure_sparse(asked.sparse_rows)
        print(json.dumps(one))
        return 0
    # The sparse cases come first: a child's peak memory starts at what its parent holds.
    found: dict[str, Any] = measure_sparse_apart(asked.sparse_rows) if asked.sparse_rows else {}
    if asked.curve:
        found["curve"] = [measure_optimiser_apart(name, rows) for rows in asked.curve for name in asked.optimisers]
    dense = {size: measure_dense(size, asked.runs) for size in asked.sizes}
    largest = max(dense, default=0)
    for size, facts in dense.items():
        found |= {f"{name}_{size}": value for name, value in facts.items()} if size < largest else facts
    if dense:
        found["objective_rel_diff"] = max(facts["objective_rel_diff"] for facts in dense.values())
    print(json.dumps(found))
    return judge(found)


def judge(found: dict[str, Any]) -> int:
    """Return the exit status: 1 where objectives are further apart than rounding, or the curve misses its goal."""
    apart, (rows, seconds, gigabytes) = found.get("objective_rel_diff", 0.0), GOAL
    if apart > APART:
        say(f"the objectives are {apart:.1e} apart, more than {APART:.0e}: a library does not choose greedily")
    curve = [one for one in found.get("curve", []) if one["rows"] <= rows]
    missed = [one for one in curve if one["s"] > seconds or one["peak_gb"] > gigabytes]
    for one in missed:
        say(f"{one['rows']:,} rows, {one['optimiser']}: more than {seconds} s or {gigabytes} GB")
    return int(apart > APART or bool(missed))


def run_apart(arguments: list[str]) -> dict[str, Any]:
    """Return what this script finds in a process of its own, of one thread but for what is measured."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # making many small kernels
    command = [sys.executable, __file__, "--here", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout)


def measure_dense(rows: int, runs: int) -> dict[str, float]:
    """Return CPU seconds of the three libraries on one kernel, and how far their objectives are apart."""
    kernel, picks = dense_kernel(rows), int(SHARE * rows)
    seconds, orders = {}, {}
    for name, prepare in (("tamis", by_tamis), ("submodlib", by_submodlib), ("apricot", by_apricot)):
        prepare(dense_kernel(200), 60)()
        seconds[name], orders[name] = time_best(lambda prepare=prepare: prepare(kernel, picks), runs)
        say(f"dense {rows} x {rows}, {picks} rows: {name} {seconds[name]:.4f} CPU s")
    objectives = {name: evaluate(kernel, order) for name, order in orders.items()}
    apart = max(abs(value / objectives["tamis"] - 1) for value in objectives.values())
    ratio = min(seconds["submodlib"], seconds["apricot"]) / seconds["tamis"]
    limit = bytes_read(kernel, orders["tamis"]) / read_rate(kernel)
    say(f"dense {rows}: ratio {ratio:.1f}, objectives {apart:.1e} apart, limit {limit:.4f} s")
    return {
        "ratio": ratio,
        "objective_rel_diff": apart,
        **{f"{name}_cpu_s": value for name, value in seconds.items()},
        "apricot_compile_cpu_s": time_best(lambda: lambda: by_apricot(kernel[:10, :10], 3), 1)[0],
        "limit_s": limit,
        "limit_fraction": limit / seconds["tamis"],
    }


def measure_sparse_apart(rows: int) -> dict[str, float]:
    """Return what `measure_sparse` finds in a process of its own."""
    say(f"sparse {rows} x {rows}, {NEIGHBOURS} neighbours: making the kernel")
    facts = run_apart(["--sparse-rows", str(rows)])
    say(f"sparse {rows}: {facts['sparse_s']:.2f} s, peak {facts['sparse_peak_gb']:.2f} GB")
    return facts


def measure_sparse(rows: int) -> dict[str, float]:
    """Return the seconds of the choice on a sparse kernel, and the peak memory of all that this process did."""
    choose(sparse_kernel(2 * CLUSTER), budget_of(2 * CLUSTER))
    kernel, budget = sparse_kernel(rows), budget_of(rows)
    wall, cpu = time.perf_counter(), time.process_time()
    choice = choose(kernel, budget)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    highest = peak()
    return {
        "sparse_rows": rows,
        "sparse_pairs": len(kernel.values),
        "sparse_picks": len(choice.order),
        "sparse_s": wall,
        "sparse_cpu_s": cpu,
        "sparse_peak_gb": highest,
        "sparse_objective_share": float(choice.objective[-1]) / evaluate(kernel),
    }


def measure_optimiser_apart(name: str, rows: int) -> dict[str, float]:
    """Return what `measure_optimiser` finds in a process of its own, and say it."""
    found = run_apart(["--curve", str(rows), "--optimisers", name])
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


def measure_optimiser(name: str, rows: int) -> dict[str, float]:
    """Return seconds, peak memory and objective of an optimiser on one kernel."""
    optimiser = OPTIMISERS[name]
    optimiser(scattered_kernel(2 * CLUSTER), budget_of(2 * CLUSTER, share=CURVE_SHARE))  # compiles
    imports, start = peak(), time.perf_counter()
    kernel, budget = scattered_kernel(rows), budget_of(rows, share=CURVE_SHARE)
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
    ours = BEGIN * len(kernel.values) + GROW * CURVE_NEIGHBOURS * count_growths(kernel, choice.order)
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
    for start in range(0, len(kernel.values), CURVE_NEIGHBOURS * 4096):
        entries = slice(start, start + CURVE_NEIGHBOURS * 4096)
        turns = turn[kernel.indices[entries]].reshape(-1, CURVE_NEIGHBOURS)
        values = np.where(turns < len(order), kernel.values[entries].reshape(turns.shape), 0)
        in_turn = np.take_along_axis(values, np.argsort(turns, axis=1), axis=1)
        cover = np.maximum.accumulate(np.pad(in_turn, [(0, 0), (1, 0)]), axis=1)
        total += int((np.diff(cover, axis=1) > 0).sum())
    return total


def by_tamis(kernel: np.ndarray, picks: int) -> Callable[[], np.ndarray]:
    """Return what is timed: our choice, as an order of demos."""
    budget = budget_of(len(kernel), picks)
    return lambda: choose(kernel, budget).order


def by_submodlib(kernel: np.ndarray, picks: int) -> Callable[[], np.ndarray]:
    """Return what is timed: lazy greedy of submodlib, in C++ on its own copy of the kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from submodlib import FacilityLocationFunction

        objective = FacilityLocationFunction(n=len(kernel), mode="dense", sijs=kernel, separate_rep=False)

    def maximise() -> np.ndarray:
        found = objective.maximize(budget=picks, optimizer="LazyGreedy", show_progress=False)
        return np.array([row for row, _ in found])

    return maximise


def by_apricot(kernel: np.ndarray, picks: int) -> Callable[[], np.ndarray]:
    """Return what is timed: lazy greedy of apricot, in numba on float64, demos by rows; compiled before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from apricot import FacilityLocationSelection

    by_demo = np.ascontiguousarray(kernel.T, dtype=np.float64)
    selector = FacilityLocationSelection(picks, metric="precomputed", optimizer="lazy")
    selector._initialize(by_demo)  # the part of `fit` that compiles
    selector._initialize = lambda _: None
    return lambda: selector.fit(by_demo).ranking


def time_best(prepare: Callable[[], Callable[[], np.ndarray]], runs: int) -> tuple[float, np.ndarray]:
    """Return the fewest CPU seconds of what `prepare` returns, prepared anew for each run, and its result."""
    seconds, result = [], np.empty(0)
    for _ in range(runs):
        timed = prepare()
        start = time.process_time()
        result = timed()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def bytes_read(kernel: np.ndarray, order: np.ndarray) -> int:
    """Return the bytes of the kernel that our choice of these demos reads before it turns sparse."""
    cover, total = np.zeros(len(kernel), np.float32), 4 * kernel.nbytes
    for picks, demo in enumerate(order, start=1):
        total += int((kernel[:, demo] > cover).sum()) * kernel[0].nbytes + len(kernel) * LINE
        cover = np.maximum(cover, kernel[:, demo])
        if picks in (16, 32, 64, 128) and (kernel > cover[:, None]).sum() * THIN <= kernel.size:
            break
    return total


def read_rate(kernel: np.ndarray) -> float:
    """Return how many bytes of the kernel one core reads in a second."""
    return kernel.nbytes / time_best(lambda: lambda: kernel.max(keepdims=True), 5)[0]


def budget_of(rows: int, picks: int | None = None, *, share: float = SHARE) -> Budget:
    """Return a budget of so many rows, or of a share of them."""
    count = int(share * rows) if picks is None else picks
    return resolve({"count": count}, topics=["all"] * rows, response_tokens=np.ones(rows, np.int64))


def dense_kernel(rows: int, seed: int = 0) -> np.ndarray:
    """Return cosines of clustered targets and demos, those below 0 set to 0."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(2, rows // 100), WIDTH))
    cluster = generator.integers(len(centres), size=rows)
    targets = centres[cluster] + generator.normal(size=(rows, WIDTH))
    demos = targets + NOISE * generator.normal(size=(rows, WIDTH))
    return np.maximum(unit(targets) @ unit(demos).T, 0)


def sparse_kernel(rows: int, seed: int = 0):
    """Return the same for each target and 64 demos of its cluster, block by block."""
    generator = np.random.default_rng(seed)
    targets = np.repeat(generator.normal(size=(-(-rows // CLUSTER), WIDTH)), CLUSTER, axis=0)[:rows]
    targets += generator.normal(size=(rows, WIDTH))
    targets, demos = unit(targets), unit(targets + NOISE * generator.normal(size=(rows, WIDTH)))
    size = np.minimum(CLUSTER, rows - np.arange(rows) // CLUSTER * CLUSTER)[:, None]
    step = generator.integers(0, CLUSTER, size=(rows, 1)) + np.arange(NEIGHBOURS) * (size // NEIGHBOURS)
    neighbour = np.arange(rows)[:, None] // CLUSTER * CLUSTER + step % size
    values = [np.einsum("tw,tkw->tk", targets[block], demos[neighbour[block]]) for block in blocks(rows)]
    place = np.repeat(np.arange(rows), NEIGHBOURS)
    return gather(place, neighbour.ravel(), np.maximum(np.concatenate(values), 0).ravel(), (rows, rows))


def scattered_kernel(rows: int, seed: int = 0) -> SparseKernel:
    """Return the similarities of each target to its nearest demos, made a cluster at a time."""
    generator = np.random.default_rng(seed)
    indices, values = np.empty((rows, CURVE_NEIGHBOURS), np.int32), np.empty((rows, CURVE_NEIGHBOURS), np.float32)
    for members in np.array_split(generator.permutation(rows), max(1, rows // CLUSTER)):
        members.sort()
        targets = generator.normal(size=(1, WIDTH)) + generator.normal(size=(len(members), WIDTH))
        cosines = unit(targets) @ unit(targets + NOISE * generator.normal(size=targets.shape)).T
        nearest = np.sort(np.argpartition(-cosines, CURVE_NEIGHBOURS - 1, axis=1)[:, :CURVE_NEIGHBOURS], axis=1)
        indices[members] = members[nearest]
        values[members] = np.maximum(np.take_along_axis(cosines, nearest, axis=1), 0)
    indptr = np.arange(rows + 1, dtype=np.int64) * CURVE_NEIGHBOURS
    return SparseKernel(indptr, indices.ravel(), values.ravel(), (rows, rows))


def blocks(rows: int) -> list[slice]:
    """Return slices of some thousand rows."""
    return [slice(start, start + 4096) for start in range(0, rows, 4096)]


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
