"""A crash at any change of any file of the smallest graph: the next run ends with the same artifacts, all recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from worlds.projects import environment

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("seed", "points"), [pytest.param(0, 10, id="ten"), pytest.param(0, 0, id="every", marks=pytest.mark.slow)]
)
def test_the_run_after_a_crash_ends_as_if_there_had_been_none(small, seed, points):
    done = subprocess.run(
        [sys.executable, "-m", "worlds.crash_points", str(small.root), str(seed), str(points)],
        env=environment(PYTHONPATH=f"{TESTS}:{TESTS.parent}"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *found = map(json.loads, done.stdout.splitlines())
    assert (whole["stale"], whole["artifacts"]) == ([], 8)
    assert whole["changes"] > 30
    assert len(found) == (points or whole["changes"])
    expected = {"crashed": True, "went_on": True, "differ": [], "stale": []}
    assert [one for one in found if one != {"point": one["point"]} | expected] == []
