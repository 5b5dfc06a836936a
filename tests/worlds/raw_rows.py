"""Small raw files and the examples made of them; for the tests of stage `examples`."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.examples.examples import write_examples
from tasks.examples.settings import ExamplesSettings
from worlds.places import find_artifacts, find_folders

BEFORE = {"examples": "examples", "selection": "subset"}  # stage -> what tests call its artifact of the version before
BASE = Path(__file__).parents[2] / "data"
FIELDS = {"prompt": "prompt", "response": "response"}
ROWS = [{"prompt": f"what is {k} + {k}?", "response": f"it is {2 * k}", "topic": f"sums{k % 3}"} for k in range(24)]


def dump(rows: list) -> str:
    """Return rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_toy(folder: Path, toy, content=None, name: str = "toy.jsonl", **changes) -> pa.Table:
    """Write rows, text or bytes to raw/v1, make examples of all that is there, and return them."""
    raw = folder / "raw/v1"
    raw.mkdir(parents=True, exist_ok=True)
    if content is not None:
        text = dump(content) if isinstance(content, list) else content
        (raw / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    given = {name: changes.pop(name) for name in [*changes] if name in ExamplesSettings.__dataclass_fields__}
    settings = ExamplesSettings(**{"fields": FIELDS, "held_out_every": 3} | given)
    places = {"raw": raw, "out": folder / "out", "version": "v1"} | {
        name: changes.pop(name) for name in ("raw", "out", "version") if name in changes
    }
    before = {name: BASE / f"{name}/version=base" for name in ("examples", "selection")}
    before |= {name: changes.pop(f"previous_{old}") for name, old in BEFORE.items() if f"previous_{old}" in changes}
    folders = find_folders(
        folder,
        version=places["version"],
        raw=places["raw"],
        examples=places["out"],
        before=find_artifacts(folder, "base", **before),
    )
    write_examples(folders, **{"model": toy, "held_out_share": 0.05} | changes, settings=settings)
    return read_table(places["out"] / "examples.parquet", schemas.EXAMPLES)


def read_rejects(folder: Path) -> list[dict]:
    """Return the rejected rows."""
    return read_table(folder / "out/rejects.parquet", schemas.REJECTS).to_pylist()


def read_metrics(folder: Path) -> dict:
    """Return examples.json."""
    return json.loads((folder / "out/examples.json").read_text())


def write_lines(folder: Path) -> None:
    """Write JSONL with a byte order mark, carriage returns and blank lines."""
    (folder / "toy.jsonl").write_text("\ufeff" + dump(ROWS).replace("\n", "\r\n\r\n"), encoding="utf-8", newline="")


def write_packed_lines(folder: Path) -> None:
    """Write packed JSONL."""
    (folder / "toy.jsonl.gz").write_bytes(gzip.compress(dump(ROWS).encode()))


def write_array(folder: Path) -> None:
    """Write a JSON array."""
    (folder / "toy.json").write_text(json.dumps(ROWS, indent=1))


def write_csv(folder: Path) -> None:
    """Write CSV with a byte order mark."""
    with open(folder / "toy.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["topic", "prompt", "response"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(folder: Path) -> None:
    """Write Parquet with a column that nobody asks for."""
    pq.write_table(pa.Table.from_pylist([row | {"vector": [1.0, 2.0]} for row in ROWS]), folder / "toy.parquet")


def write_saved(folder: Path) -> None:
    """Write a folder of `datasets`."""
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(folder / "toy")


def write_saved_splits(folder: Path) -> None:
    """Write a folder of `datasets` with two splits."""
    from datasets import Dataset, DatasetDict

    parts = {"first": Dataset.from_list(ROWS[:10]), "second": Dataset.from_list(ROWS[10:])}
    DatasetDict(parts).save_to_disk(folder / "toy")


FORMATS = [write_lines, write_packed_lines, write_array, write_csv, write_parquet, write_saved, write_saved_splits]
