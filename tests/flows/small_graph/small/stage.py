"""Four small stages in the manner of flows/stage.py, without torch."""

import builtins
import importlib
import sys
from pathlib import Path

from flows.graph.stages import needs
from flows.stage import folder, recorded

COMPUTED = Path(".cache/computed.log")


def run(name, version, *, map=builtins.map):
    address = f"{name}@{version}"
    with recorded(address, folder(name, version)):
        files, values = needs(address)
        COMPUTED.parent.mkdir(exist_ok=True)
        with open(COMPUTED, "a") as log:
            log.write(f"{address}\n")
        out = folder(name, version)
        out.mkdir(parents=True, exist_ok=True)
        work = importlib.import_module(f"small.{name}").write
        work(Path(files[0]), out, map=map, **values.get(name, {}))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
