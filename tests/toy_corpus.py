"""A small corpus as an examples artifact, for tests of the rooms that come after `examples`."""

from pathlib import Path

import pyarrow as pa

from tamis.examples import identify
from tasks import schemas
from tasks.artifacts import Provenance, write_table

TOPICS = ("sums", "letters", "greetings")


def write_examples(folder: Path, pool: int = 6, held_out: int = 2) -> list[str]:
    """Write `examples.parquet` with short rows of three topics and return the pool's ids in order."""
    rows = [row(place, "pool" if place < pool else "held_out") for place in range(pool + held_out)]
    write_table(
        pa.Table.from_pylist(rows, schema=schemas.EXAMPLES),
        folder / "examples.parquet",
        Provenance("examples", "v1"),
    )
    return [one["id"] for one in rows if one["split"] == "pool"]


def row(place: int, split: str) -> dict:
    """Return the row at a place."""
    prompt, response = f"what is {place} + {place}", f"{2 * place}" + "!" * (place % 3)
    return {
        "row": place,
        "id": identify(prompt, response),
        "topic": TOPICS[place % 3],
        "prompt": prompt,
        "response": response,
        "prompt_tokens": len(prompt),
        "response_tokens": len(response) + 1,
        "split": split,
        "used": True,
        "file": "toy.jsonl",
        "line": place + 1,
    }
