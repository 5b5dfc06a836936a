"""Crashes at chosen changes of a project's files: `python -m worlds.crash_points PROJECT SEED COUNT`.

A change is a file that is renamed, linked or deleted, by whoever is at work: our stages and records, DVC's lock, cache
and run-cache. The process that would make the n-th one ends there, as by a power cut: nothing is put back and nothing
is unwound. A second process then runs to the end. Every process is forked from this one, which has imported all.

Prints a line of JSON per point, and before them one with the number of changes that a whole run makes.
"""

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from flows import drive
from flows.graph import dvc_state

EVENTS = ("os.rename", "os.link", "os.remove")
CRASHED = 77
watched = {"root": "", "seen": 0, "limit": 0}


def watch(event: str, arguments: tuple) -> None:
    """End the process at the change that is asked for."""
    if event in EVENTS and watched["limit"] and touches(arguments):
        watched["seen"] += 1
        if watched["seen"] == watched["limit"]:
            os._exit(CRASHED)


def touches(arguments: tuple) -> bool:
    """Return whether a change is of a file of the project; one by a descriptor of its folder is."""
    return any(
        isinstance(one, str | os.PathLike) and os.path.abspath(one).startswith(watched["root"]) for one in arguments
    )


def forked(work: Callable[[], None]) -> int:
    """Do some work in a process of its own; returns its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(limit: int, counted: Path) -> None:
    """Run the project in the current folder to its end, or to the change that is asked for; write how many it made."""
    watched.update(root=os.getcwd(), seen=0, limit=limit)
    drive.run(workers="1")
    watched["limit"] = 0
    counted.write_text(str(watched["seen"]))


def describe(root: Path) -> dict[str, object]:
    """Return what a run left: the artifacts, with what is in the making, and what is not up to date."""
    files = {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.glob("data/*/version=*/*.*"))}
    with contextlib.chdir(root):
        states = [f"{address} {state}" for address, state, _ in dvc_state.standings(dvc_state.plan())]
    return {
        "artifacts": {path: text for path, text in files.items() if not path.endswith("run.json")},
        "stale": [state for state in states if not state.endswith(" fresh")],
    }


@contextlib.contextmanager
def copied(project: Path) -> Iterator[Path]:
    """Yield a copy of the project as the current folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(project, Path(folder) / "project", symlinks=True))
        with contextlib.chdir(root):
            yield root


def main(project: Path, seed: int, count: int) -> None:
    """Crash at so many of the changes of a run, drawn by a seed (0: at all of them), and tell what came of each."""
    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as folder:
        counted, left = Path(folder) / "count", Path(folder) / "left.json"

        def run_whole() -> None:
            run(sys.maxsize, counted)
            left.write_text(json.dumps(describe(Path.cwd())))

        with copied(project):
            assert forked(run_whole) == 0
        changes, whole = int(counted.read_text()), json.loads(left.read_text())
        print(
            json.dumps({"changes": changes, "stale": whole["stale"], "artifacts": len(whole["artifacts"])}), flush=True
        )
        points = sorted(random.Random(seed).sample(range(1, changes + 1), min(count or changes, changes)))
        for point in points:
            with copied(project):
                crashed = forked(lambda point=point: run(point, counted))
                went_on = forked(run_whole)
                found = json.loads(left.read_text())
            told = {"point": point, "crashed": crashed == CRASHED, "went_on": went_on == 0}
            differ = sorted(path for path, _ in whole["artifacts"].items() ^ found["artifacts"].items())
            told |= {"differ": differ, "stale": found["stale"]}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
