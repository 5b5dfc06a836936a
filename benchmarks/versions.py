"""Seconds of `tamis status`, of a `tamis run` with nothing to do, and of a record, with 1 to 200 data versions.

    python benchmarks/versions.py [--versions 200]

A copy of this project with a toy model runs its first ten versions, each continuing from the one before, so that their
artifacts and dvc.lock files are real; later ones are copies of the tenth, under their own names. The commands are whole
processes that name the last version; a record is `dvc_state.record` of one of its stages, the slowest of the nine. Each
is the median of three; beside the seconds that passed stand those of a processor, which other work on the machine does
not change. An exponent is that of growth from ten versions to all; `growth_exponent` is the largest of all three, of a
processor's seconds. `probed_stages` are those whose state `status` asks DVC for. Returns 1 where a goal is missed: 3 s,
5 s, 1 s and 0.3.
"""

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import log
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from worlds.projects import copy_real, environment, start_project, toy_row  # noqa: E402
from worlds.toys import write_toy_model  # noqa: E402

from flows.graph import dvc_files, dvc_state  # noqa: E402

REAL = 10  # versions that are run
GOALS = {"status_seconds": 3.0, "run_fresh_seconds": 5.0, "record_seconds": 1.0, "growth_exponent": 0.3}
TRIES = 3
WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def main() -> int:
    """Print a line per number of versions, and the last one as JSON."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--versions", type=int, default=200)
    most = asked.parse_args().versions
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        start(root, Path(folder) / "model")
        for count in sorted({number for number in (1, REAL, 50, most) if number <= most}):
            grow(root, count)
            found[count] = measure(root, f"v{count}")
            print(f"{count:>4} versions: {json.dumps(found[count])}", file=sys.stderr, flush=True)
    last, base = found[max(found)], found.get(REAL, found[max(found)])
    growth = log(max(found) / REAL) if max(found) > REAL else 1.0
    seconds = [name for name in last if name.endswith("_cpu")]
    exponent = max(log(last[name] / base[name]) / growth for name in seconds)
    result = {"versions": max(found), **last, "growth_exponent": round(exponent, 3)}
    print(json.dumps(result))
    return int(any(result[name] > goal for name, goal in GOALS.items()))


def start(root: Path, model: Path) -> None:
    """Make the toy project without a version that has run."""
    write_toy_model(model)
    copy_real(root, str(model))
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(root / "data/raw")
    start_project(root)


def grow(root: Path, count: int) -> None:
    """Bring the project to so many versions, all of them up to date."""
    path = root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    before = len([name for name in values["versions"] if (root / dvc_files.place_lock(name)).exists()])
    previous = {f"v{number}": f"v{number - 1}" if number > 1 else "base" for number in range(1, count + 1)}
    values["versions"] = {name: {"raw": f"data/raw/{name}", "previous": one} for name, one in previous.items()}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    for number in range(before + 1, count + 1):
        raw = root / f"data/raw/v{number}/toys.jsonl"
        raw.parent.mkdir(parents=True)
        rows = range(30 + 15 * min(number, REAL))
        raw.write_text("".join(json.dumps(toy_row(place)) + "\n" for place in rows))
        if number > REAL:
            copy_version(root, number)
    for number in range(before + 1, min(count, REAL) + 1):
        command(root, "run", f"v{number}")


def copy_version(root: Path, number: int) -> None:
    """Give a version the artifacts of the last one that was run, and a dvc.lock that says so."""
    for stage in (root / "data").glob(f"*/version=v{REAL}"):
        shutil.copytree(stage, stage.with_name(f"version=v{number}"))
    text = (root / dvc_files.place_lock(f"v{REAL}")).read_text()
    stages = yaml.load(text, Loader=yaml.CSafeLoader)["stages"]
    made = {out["path"]: out for stage in stages.values() for out in stage["outs"]}
    for stage in stages.values():
        for dep in stage["deps"]:
            same = made.get(dep["path"].replace(f"version=v{REAL - 1}/", f"version=v{REAL}/"))
            if f"version=v{REAL - 1}/" in dep["path"]:
                dep.update({key: value for key, value in same.items() if key != "path"})
                dep["path"] = dep["path"].replace(f"version=v{REAL - 1}/", f"version=v{number - 1}/")
    named = yaml.dump({"schema": "2.0", "stages": stages}, Dumper=yaml.CSafeDumper, sort_keys=False)
    for old, new in ((f"version=v{REAL}/", f"version=v{number}/"), (f"@v{REAL}:", f"@v{number}:")):
        named = named.replace(old, new)
    named = named.replace(f"raw/v{REAL}\n", f"raw/v{number}\n")
    for line in [line for line in named.splitlines() if line.strip().startswith("cmd: ")]:
        named = named.replace(line, line.removesuffix(f" v{REAL}") + f" v{number}")
    lock = root / dvc_files.place_lock(f"v{number}")
    lock.parent.mkdir(parents=True)
    lock.write_text(named)


def measure(root: Path, version: str) -> dict[str, float]:
    """Return the seconds of each, of the last version."""
    rows = json.loads(command(root, "status", version, "--json"))
    stale = [row for row in rows if row["state"] != "fresh"]
    if stale:
        raise RuntimeError(f"{version} is not up to date: {stale[:2]}")
    found = {
        "status": timed(lambda: command(root, "status", version)),
        "run_fresh": timed(lambda: command(root, "run", version)),
        "record": record(root, [row["stage"] for row in rows]),
    }
    passed = {f"{name}_seconds": wall for name, (wall, _) in found.items()}
    return passed | {f"{name}_cpu": cpu for name, (_, cpu) in found.items()} | {"probed_stages": len(rows)}


def record(root: Path, addresses: list[str]) -> tuple[float, float]:
    """Return the seconds that the slowest record of a stage takes, those that pass and those of a processor."""
    with contextlib.chdir(root):
        with dvc_state.opened() as repo:
            stages = {address: dvc_state._collect(repo, address) for address in addresses}
            inputs = {address: dvc_state._inputs(stage) for address, stage in stages.items()}
        return max(timed(lambda one=address: dvc_state.record(one, inputs[one])) for address in addresses)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of some tries, those that pass and those of a processor, after one not counted."""
    work()
    tries = []
    for _ in range(TRIES):
        start, used = time.perf_counter(), count_cpu()
        work()
        tries.append((time.perf_counter() - start, count_cpu() - used))
    wall, cpu = (round(statistics.median(column), 3) for column in zip(*tries, strict=True))
    return wall, cpu


def count_cpu() -> float:
    """Return the seconds of a processor that this process and its ended children have used."""
    return sum(getattr(resource.getrusage(who), kind) for who in WHO for kind in ("ru_utime", "ru_stime"))


def command(root: Path, *arguments: str) -> str:
    """Run a `tamis` command in the project; returns what it prints."""
    more = {"PYTHONPATH": str(root), "PREFECT_HOME": str(root / ".prefect"), "DVC_SITE_CACHE_DIR": str(root / ".site")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=root,
        env=environment(**more),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
