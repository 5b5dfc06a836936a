"""What several workers of pytest-xdist take copies of: the first that asks makes it, and the others wait."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """Return a folder of this session that `make` has filled, and what it returned, as JSON gives it back.

    Args:
        factory: of the worker's temporary folders, beside which it lies.
        name: of the folder, one for each thing that is made.
        make: takes the empty folder.
    """
    base = factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = home / f"once-{name}", home / f"once-{name}.json"
    with open(home / f"once-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            done.write_text(json.dumps(make(folder)))
    return folder, json.loads(done.read_text())
