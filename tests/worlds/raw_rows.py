"""Small raw files and the examples made of them; for the tests of stage `examples`."""

import bz2
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


def chat(*turns: str, first: str = "user", **more) -> dict:
    """Return a row of messages, of user and assistant in turn; a turn may begin with another role and a colon.

    >>> [each["role"] for each in chat("system:Be kind.", "Hi", "Hello")["messages"]]
    ['system', 'user', 'assistant']
    """
    messages: list[dict] = []
    for turn in turns:
        role, colon, text = turn.partition(":")
        if not colon or role not in ("system", "user", "assistant", "tool"):
            asked = next((each["role"] for each in reversed(messages) if each["role"] in ("user", "assistant")), None)
            role, text = first if asked is None else "user" if asked == "assistant" else "assistant", turn
        messages.append({"role": role, "content": text})
    return {"messages": messages, **more}


CHATS = [  # of one to three exchanges, every other one with a system message
    chat(
        *(["system:Add."] if k % 2 else []),
        *(
            f"{'and' if turn else 'what is'} {k} + {k + turn // 2}?" if turn % 2 == 0 else f"{k}"
            for turn in range(2 * (k % 3 + 1))
        ),
        topic=f"sums{k % 3}",
    )
    for k in range(24)
]


def write_toy(folder: Path, toy, content=None, name: str = "toy.jsonl", **changes) -> pa.Table:
    """Write rows, text or bytes to raw/v1, make examples of all that is there, and return them."""
    raw = folder / "raw/v1"
    raw.mkdir(parents=True, exist_ok=True)
    if content is not None:
        text = dump(content) if isinstance(content, list) else content
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    given = {name: changes.pop(name) for name in [*changes] if name in ExamplesSettings.__dataclass_fields__}
    settings = ExamplesSettings(**{"held_out_every": 3} | given)
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


def write_lines(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write JSONL with a byte order mark, carriage returns and blank lines."""
    text = "\ufeff" + dump(rows).replace("\n", "\r\n\r\n")
    (folder / "toy.jsonl").write_text(text, encoding="utf-8", newline="")


def write_packed_lines(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write packed JSONL."""
    (folder / "toy.jsonl.gz").write_bytes(gzip.compress(dump(rows).encode()))


def write_lines_by_another_name(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write JSONL as some call it, packed."""
    (folder / "toy.ndjson.zst").write_bytes(pa.compress(dump(rows).encode(), codec="zstd", asbytes=True))


def write_array(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write a JSON array."""
    (folder / "toy.json").write_text(json.dumps(rows, indent=1))


def write_packed_array(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write a packed JSON array."""
    (folder / "toy.json.bz2").write_bytes(bz2.compress(json.dumps(rows).encode()))


def write_csv(folder: Path, rows: list[dict] = ROWS, *, separator: str = ",") -> None:
    """Write CSV with a byte order mark, lists as texts of JSON."""
    name = {",": "toy.csv", "\t": "toy.tsv"}[separator]
    with open(folder / name, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, sorted(rows[0], reverse=True), delimiter=separator)
        writer.writeheader()
        writer.writerows(
            {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
            for row in rows
        )


def write_tsv(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write TSV likewise."""
    write_csv(folder, rows, separator="\t")


def write_parquet(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write Parquet with a column that nobody asks for."""
    pq.write_table(pa.Table.from_pylist([row | {"vector": [1.0, 2.0]} for row in rows]), folder / "toy.parquet")


def write_saved(folder: Path, rows: list[dict] = ROWS) -> None:
    """Write a folder of `datasets`."""
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder / "toy")


def write_saved_splits(folder: Path, rows: list[dict] = ROWS, names: tuple[str, str] = ("first", "second")) -> None:
    """Write a folder of `datasets` with two splits, of which the first has ten rows."""
    from datasets import Dataset, DatasetDict

    parts = zip(names, (rows[:10], rows[10:]), strict=True)
    DatasetDict({name: Dataset.from_list(part) for name, part in parts}).save_to_disk(folder / "toy")


FORMATS = [
    write_lines,
    write_packed_lines,
    write_lines_by_another_name,
    write_array,
    write_packed_array,
    write_csv,
    write_tsv,
    write_parquet,
    write_saved,
    write_saved_splits,
]
