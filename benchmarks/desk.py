"""Seconds of the server for each page of the desk, a first view and another filter, and its peak memory.

    python benchmarks/desk.py [--rows 50000]

Two versions with synthetic artifacts of so many rows each, four scored pairs a row and six scores. The pages are run by
Streamlit's own harness, in this process and without a browser: what is timed is the script that a view runs, with what
it asks of the database. The first page opens the catalogue, too, and checks its digests; the memory counts the process
that answers a question, too. Returns 1 where a goal is missed: 2 s up to 50,000 rows, 5 s above, 3 GB.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from streamlit.testing.v1 import AppTest  # noqa: E402

from flows.desk.asking import COMMAND  # noqa: E402
from tasks.artifacts import schemas  # noqa: E402
from tasks.artifacts.tables import Provenance, write_json, write_table  # noqa: E402
from tasks.browsing.places import make_places  # noqa: E402

APP = str(ROOT / "flows/desk/app.py")
FEW, GOAL, MANY_GOAL, GIGABYTES = 50_000, 2.0, 5.0, 3.0
TOPICS, WIDTH, PAIRS = 40, 32, 4
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
QUESTION = "SELECT topic, count(*) FROM subset GROUP BY 1 ORDER BY 2 DESC"
CHANGES: dict[str, Callable[[AppTest], object]] = {  # page -> another filter of it
    "overview": lambda desk: None,
    "rows": lambda desk: desk.text_input(key="words").set_value("seven nine"),
    "map": lambda desk: desk.selectbox(key="colour").set_value("gain"),
    "gains": lambda desk: desk.selectbox(key="version").set_value("v1"),
    "pairs": lambda desk: desk.radio(key="way").set_value("targets of a demo"),
    "mask": lambda desk: desk.selectbox(key="version").set_value("v1"),
    "diff": lambda desk: desk.selectbox(key="before").set_value("v2"),
    "chain": lambda desk: None,
    "sign-off": lambda desk: None,
    "query": lambda desk: desk.text_area[0].set_value(QUESTION),
}


def main() -> int:
    """Print a line per page, and the last one as JSON."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=FEW)
    rows = asked.parse_args().rows
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pid = os.fork()  # what writing takes is not the desk's memory
        if not pid:
            write_project(rows)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        found = {}
        for page in CHANGES:
            found[page] = measure(page)
            print(f"{page:<9} first view {found[page][0]:5.2f} s, filter {found[page][1]:5.2f} s, peak {peak():.2f} GB")
        most = peak() + measure_question()
    slowest = max(found, key=lambda page: max(found[page]))
    seconds = max(found[slowest])
    result = {"rows": rows, "slowest_page": slowest, "slowest_seconds": round(seconds, 2), "peak_gb": round(most, 2)}
    print(json.dumps(result))
    return int(seconds > (GOAL if rows <= FEW else MANY_GOAL) or most > GIGABYTES)


def peak() -> float:
    """Return the most memory that this process has taken, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_question() -> float:
    """Return the most memory, in gigabytes, of the process that answers a question of page `query`, beside the desk."""
    most = 0.0
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(QUESTION.encode())
        process.stdin.close()
        while process.poll() is None:  # what the system counts at its end includes what this process takes
            if found := PEAK.search(Path(f"/proc/{process.pid}/status").read_text()):
                most = int(found[1]) / 1e6
            time.sleep(0.01)
    assert process.returncode == 0
    return most


def measure(page: str) -> tuple[float, float]:
    """Return the seconds of a page's first view and of another filter."""
    desk = AppTest.from_file(APP, default_timeout=600)
    desk.query_params["page"] = page
    start = time.perf_counter()
    desk.run()
    first = time.perf_counter() - start
    assert not [*desk.exception, *desk.error], page
    CHANGES[page](desk)
    start = time.perf_counter()
    desk.run()
    changed = time.perf_counter() - start
    assert not [*desk.exception, *desk.error], page
    return first, changed


def write_project(rows: int) -> None:
    """Write the artifacts of two versions, of which the second has half of the first one's rows."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["versions"] = {"v1": {"raw": "raw", "previous": "base"}, "v2": {"raw": "raw", "previous": "v1"}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    for version, start in (("v1", 0), ("v2", rows // 2)):
        write_version(version, np.arange(start, start + rows))
        make_places(Path("."), version)


def write_version(version: str, places: np.ndarray) -> None:
    """Write the artifacts that the pages read."""
    draw = np.random.default_rng(0)
    count, texts = len(places), [f"{place:032x}" for place in places]
    ids = pa.array(texts)
    topics = pa.array([f"topic {place % TOPICS}" for place in places])
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
    said = [" ".join(row) for row in words[draw.integers(0, len(words), (count, 24))]]
    chosen = draw.random(count) < 0.3
    rank = np.cumsum(chosen)
    gain = np.where(chosen, 1 / np.maximum(rank, 1), np.nan)
    save("examples", "examples", version, make_examples(places, ids, topics, said), schemas.EXAMPLES)
    save("examples", "withdrawn", version, schemas.WITHDRAWN.empty_table(), schemas.WITHDRAWN)
    subset = {
        "id": ids,
        "topic": topics,
        "response_tokens": pa.array(draw.integers(3, 90, count), pa.int32()),
        "chosen": chosen,
        "rank": pa.array(rank, pa.int32(), mask=~chosen),
        "gain": pa.array(gain, mask=~chosen),
        "objective": pa.array(np.cumsum(np.nan_to_num(gain)), mask=~chosen),
        "covered_by": ids.take(pa.array(draw.permutation(count))),
        "cover": pa.array(draw.random(count), pa.float32()),
        "gated": np.zeros(count, bool),
        "gate_score": pa.array(draw.random(count)),
        "gate_usual": pa.array(draw.random(count)),
    }
    save("selection", "subset", version, subset, schemas.SUBSET)
    save("selection", "mask", version, schemas.MASK.empty_table(), schemas.MASK)
    save("selection", "tensors", version, schemas.TENSORS.empty_table(), schemas.TENSORS)
    save("utility", "utility", version, make_pairs(ids, draw), schemas.UTILITY)
    vectors = draw.normal(size=(count, WIDTH)).astype(np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
    save("embedding", "embedding", version, {"id": ids, "embedding": values}, schemas.embedding(WIDTH))
    save("embedding", "agreement", version, {"id": ids, "score": draw.random(count)}, schemas.SCORES)
    facts = {"pool_rows": count, "chosen_rows": int(chosen.sum()), "selector": "delift", "objective": 1.0}
    write_json(facts, Path(f"data/selection/version={version}/selection.json"))


def make_pairs(ids: pa.Array, draw: np.random.Generator) -> dict[str, object]:
    """Return the columns of the scored pairs: each row is shown the next ones."""
    count = len(ids)
    demos = pa.array(np.concatenate([(np.arange(count) + step) % count for step in range(1, PAIRS + 1)]))
    return {
        "target_id": pa.concat_arrays([ids] * PAIRS),
        "demo_id": ids.take(demos),
        "utility": pa.array(draw.normal(size=count * PAIRS), pa.float32()),
        "kernel": np.ones(count * PAIRS, bool),
    }


def make_examples(places: np.ndarray, ids: pa.Array, topics: pa.Array, said: list[str]) -> dict[str, object]:
    """Return the columns of the examples, all of them in the pool."""
    count, nothing = len(places), pa.nulls(len(places), pa.string())
    turns = [
        [
            {"role": "user", "content": text, "learnt": False, "details": ""},
            {"role": "assistant", "content": text, "learnt": True, "details": ""},
        ]
        for text in said
    ]
    return {
        "row": places,
        "id": ids,
        "same_as": ids,
        "topic": topics,
        "source": nothing,
        "planted": nothing,
        "prompt": said,
        "response": said,
        "messages": pa.array(turns, schemas.MESSAGES),
        "tools": [""] * count,
        "tests": nothing,
        "kept": nothing,
        "tokens": np.full(count, 60, np.int32),
        "response_tokens": np.full(count, 24, np.int32),
        "split": ["pool"] * count,
        "change": ["new"] * count,
        "earlier": nothing,
        "duplicate_of": pa.nulls(count, pa.int64()),
        "near_duplicate_of": pa.nulls(count, pa.int64()),
        "cluster_size": np.ones(count, np.int32),
        "weight": np.ones(count, np.float32),
        "used": np.ones(count, bool),
        "unused_because": nothing,
        "note": nothing,
        "file": ["raw/rows.jsonl"] * count,
        "line": places,
    }


def save(stage: str, name: str, version: str, columns: dict | pa.Table, schema: pa.Schema) -> None:
    """Write an artifact."""
    table = columns if isinstance(columns, pa.Table) else pa.table({one: columns[one] for one in schema.names}, schema)
    path = Path(f"data/{stage}/version={version}/{name}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, path, Provenance(stage, version, {"selector": "delift"}, {}))


if __name__ == "__main__":
    sys.exit(main())
