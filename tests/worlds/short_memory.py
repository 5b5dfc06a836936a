"""A stage in a process of its own whose address space is limited: `python -m worlds.short_memory ROOT STAGE MEGABYTES`.

What is imported and loaded before does not count: the limit is so many megabytes more than the process has by then. The
last line of stdout is JSON: what was halved, and how many megabytes the stage's work took at most.
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

from tamis.memory import take_halvings
from tasks.models import ModelChoice, language_model
from tasks.settings import RuntimeSettings
from worlds import toy_gradients, toy_pairs

LARGE = RuntimeSettings(shard_rows=10_000, shard_pairs=100_000, pack_tokens=1_000_000, embedding_rows=4)


def read_size(name: str) -> int:
    """Return a size of this process, in megabytes, as Linux tells it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) >> 10


def run_stage(root: Path, stage: str, model: ModelChoice) -> None:
    """Run a stage on `root/examples`."""
    if stage == "gradients":
        settings = replace(toy_gradients.FIRST, batch_rows=200, warmup_share=0.9)
        toy_gradients.run(root, model, settings, runtime=LARGE, selector="random")
    else:
        toy_pairs.embed(root, model)
        toy_pairs.run(root, model, replace(toy_pairs.EXACT, kernel="exact"), runtime=LARGE)


def main(root: Path, stage: str, megabytes: int) -> None:
    """Run the stage, within the limit where there is one, and tell what was halved."""
    model = ModelChoice(name=str(root / "model"), device="cpu", max_tokens=256)
    language_model(model)
    before = read_size("VmSize")
    if megabytes:
        limit = (before + megabytes) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run_stage(root, stage, model)
    halved = [vars(one) for one in take_halvings()]
    print(json.dumps({"halved": halved, "took": read_size("VmPeak") - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
