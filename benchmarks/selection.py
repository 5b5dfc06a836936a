"""Facility location by tamis, submodlib-py and apricot-select on the same kernels, side by side.

    python benchmarks/selection.py [--sizes 1000 4000] [--sparse-rows 100000]

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
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

from tamis.submodular.budgets import Budget, resolve
from tamis.submodular.greedy import THIN, choose, evaluate
from tamis.submodular.kernels import gather

SHARE = 0.3  # of the rows
NEIGHBOURS = 64
WIDTH = 32  # of the vectors
CLUSTER = 500  # rows of a cluster of the sparse kernel
NOISE = 0.5  # of a demo, seen from its own target; 1 is the spread within a cluster
APART = 1e-6  # relative difference of objectives that is put up with
LINE = 64  # bytes that a read of one number brings


def main() -> int:
    """Run what is asked for and print one JSON line; return 1 where the objectives of the libraries differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 4000], help="rows of the dense kernels")
    parser.add_argument("--sparse-rows", type=int, default=100_000, help="rows of the sparse kernel; 0: none")
    parser.add_argument("--runs", type=int, default=3, help="runs of each library on each dense kernel")
    parser.add_argument("--here", action="store_true", help="the sparse kernel alone, in this process")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure_sparse(asked.sparse_rows)))
        return 0
    # The sparse case comes first: a child's peak memory starts at what its parent holds.
    found = measure_sparse_apart(asked.sparse_rows) if asked.sparse_rows else {}
    dense = {size: measure_dense(size, asked.runs) for size in asked.sizes}
    largest = max(dense, default=0)
    for size, facts in dense.items():
        found |= {f"{name}_{size}": value for name, value in facts.items()} if size < largest else facts
    if dense:
        found["objective_rel_diff"] = max(facts["objective_rel_diff"] for facts in dense.values())
    print(json.dumps(found))
    return judge(found)


def judge(found: dict[str, float]) -> int:
    """Return the exit status: 1 where the libraries' objectives are further apart than rounding explains."""
    apart = found.get("objective_rel_diff", 0.0)
    if apart <= APART:
        return 0
    say(f"the objectives are {apart:.1e} apart, more than {APART:.0e}: one of the libraries does not choose greedily")
    return 1


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
    command = [sys.executable, __file__, "--here", "--sparse-rows", str(rows)]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    say(f"sparse {rows}: {facts['sparse_s']:.2f} s, peak {facts['sparse_peak_gb']:.2f} GB")
    return facts


def measure_sparse(rows: int) -> dict[str, float]:
    """Return the seconds of the choice on a sparse kernel, and the peak memory of all that this process did."""
    choose(sparse_kernel(2 * CLUSTER), budget_of(2 * CLUSTER))
    kernel, budget = sparse_kernel(rows), budget_of(rows)
    wall, cpu = time.perf_counter(), time.process_time()
    choice = choose(kernel, budget)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {
        "sparse_rows": rows,
        "sparse_pairs": len(kernel.values),
        "sparse_picks": len(choice.order),
        "sparse_s": wall,
        "sparse_cpu_s": cpu,
        "sparse_peak_gb": peak,
        "sparse_objective_share": float(choice.objective[-1]) / evaluate(kernel),
    }


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


def budget_of(rows: int, picks: int | None = None) -> Budget:
    """Return a budget of so many rows, 30% by default."""
    count = int(SHARE * rows) if picks is None else picks
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


def blocks(rows: int) -> list[slice]:
    """Return slices of some thousand rows."""
    return [slice(start, start + 4096) for start in range(0, rows, 4096)]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def say(text: str) -> None:
    """Talk to the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
