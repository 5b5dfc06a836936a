"""Near-duplicates against a comparison of all rows with all, on planted pairs and on a file of real rows.

    python benchmarks/near_duplicates.py --data FILE [--field response ...] [--jaccard 0.8]

Planted: pairs of texts of words that no other text has, with a Jaccard similarity of exactly 0.7, 0.8 or 0.9. Real: the
rows of a JSONL file, compared by the texts of the named fields, joined. The comparison of all counts the shingles that
each two rows share by a product of sparse matrices, in blocks of rows.

CPU seconds are those of the whole process. The last line is one JSON object: `recall_*` are shares of the pairs at or
above the threshold that are found; `false_pairs` are found below it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from tamis.examples.near_duplicates import find_near_duplicates, shingle

PLANTED = {0.7: (17, 14), 0.8: (18, 16), 0.9: (19, 18)}  # similarity -> shingles of each of two texts, shared ones
PAIRS = 1000  # planted of each similarity
BLOCK = 1000  # rows that are compared with all at once
RECALL = 0.95


def main() -> int:
    """Measure both and print one JSON line; return 1 where pairs are missed or false."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSONL file")
    parser.add_argument("--field", nargs="+", default=["prompt", "response"], help="what rows are compared by")
    parser.add_argument("--jaccard", type=float, default=0.8, help="threshold of the real rows")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in asked.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = measure_planted() | measure_rows(
        ["\n".join(row[name] for name in asked.field) for row in rows], asked.jaccard
    )
    print(json.dumps(found))
    recalls = [value for name, value in found.items() if name.startswith("recall_")]
    return 0 if min(recalls) >= RECALL and not found["false_pairs"] else 1


def measure_planted() -> dict[str, float]:
    """Return the share of the planted pairs that is found, each at its own similarity as the threshold."""
    generator = np.random.default_rng(0)
    found = {}
    for jaccard, (each, shared) in PLANTED.items():
        texts = [text for _ in range(PAIRS) for text in plant_pair(generator, each, shared)]
        pairs = find_near_duplicates(texts, jaccard=jaccard).pairs
        found[f"recall_planted_{jaccard}"] = (
            sum(one % 2 == 0 and other == one + 1 for one, other in pairs.tolist()) / PAIRS
        )
        say(f"{PAIRS:,} pairs at {jaccard}: {found[f'recall_planted_{jaccard}']:.4f} of them found")
    return found


def plant_pair(generator: np.random.Generator, each: int, shared: int) -> tuple[str, ...]:
    """Return two texts of `each` shingles of three words, which share their first ones."""
    same, *others = (generator.integers(0, 10**12, count) for count in (shared + 2, each - shared, each - shared))
    return tuple(" ".join(f"w{number}" for number in (*same, *other)) for other in others)


def measure_rows(texts: Sequence[str], jaccard: float) -> dict[str, float]:
    """Return what is found of all pairs of real rows, and the CPU seconds of both ways."""
    find_near_duplicates(texts[:100], jaccard=jaccard)  # compiles
    start = time.process_time()
    all_found = find_near_duplicates(texts, jaccard=jaccard)
    ours, found = time.process_time(), set(map(tuple, all_found.pairs.tolist()))
    exact, repeats = compare_all(texts, jaccard)
    seconds = {"cpu_s": ours - start, "all_pairs_cpu_s": time.process_time() - ours}
    wanted = {pair for pair in exact if not repeats[pair[1]] and not repeats[pair[0]]}
    lost, wrong = len(wanted - found), len(found - exact)
    say(f"{len(texts):,} rows: {len(wanted):,} pairs at {jaccard} or above, {lost} missed, {wrong} false; {seconds}")
    recall = 1 - lost / max(1, len(wanted))
    counts = {"rows": len(texts), "near_duplicates": int((all_found.near_duplicate_of >= 0).sum())}
    return {**counts, "pairs": len(wanted), "recall_rows": recall, "false_pairs": wrong, **seconds}


def compare_all(texts: Sequence[str], jaccard: float) -> tuple[set[tuple[int, int]], list[bool]]:
    """Return all pairs at or above the threshold, and which rows have the shingles of an earlier one."""
    sets = [shingle(text) for text in texts]
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    sizes = np.array([len(one) for one in sets])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    held = csr_array((np.ones(len(columns), np.int32), columns, starts))
    pairs = set()
    for first in range(0, len(sets), BLOCK):
        shared = (held[first : first + BLOCK] @ held.T).tocoo()
        rows, others = shared.row + first, shared.col
        alike = (others > rows) & (shared.data >= jaccard * (sizes[rows] + sizes[others] - shared.data))
        pairs |= set(zip(rows[alike].tolist(), others[alike].tolist(), strict=True))
    first_of: dict[bytes, int] = {}
    repeats = [first_of.setdefault(one.tobytes(), place) != place for place, one in enumerate(sets)]
    return pairs, repeats


def say(text: str) -> None:
    """Talk to the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
