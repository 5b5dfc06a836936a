"""Rows of the stores taken out: each part that holds one is written anew without it, or goes where nothing is left."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.artifacts import stores
from tasks.artifacts.tables import provenance
from tasks.erasure.search import Wanted, mark

TEXTS = "texts"  # the store whose rows are known by digests of texts


class Part(NamedTuple):
    """A part of a store that holds rows."""

    path: Path
    rows: int  # how many of its rows are wanted; 0: it is damaged, and nobody can say


def find_parts(root: Path, wanted: Wanted) -> Iterator[Part]:
    """Yield the parts of the stores that hold a row, and what is damaged or was cut short, which may.

    Args:
        root: of all stores.
        wanted: the row.
    """
    for folder in stores.list_folders(root):
        for path in sorted(folder.glob(stores.PARTS)):
            rows = _count(path, _list_keys(folder, wanted))
            if rows is None or rows > 0:
                yield Part(path, rows or 0)
        for path in sorted([*folder.glob(f"*{stores.DAMAGED}"), *folder.glob(stores.LEFT_OVER)]):
            yield Part(path, 0)


def clear_part(part: Part, wanted: Wanted) -> None:
    """Take the wanted rows out of a part. Call it inside `upkeep`.

    The new part is written whole before the old one goes, so that a crash in between loses no row. Its seconds are the
    share of those that the old one took.

    Raises:
        ArtifactError: the disk is full; the old part is still there.
    """
    if part.rows:
        rows, folder = _read(part.path), part.path.parent
        record = provenance(part.path)
        kept = rows.filter(pc.invert(mark(rows, _list_keys(folder, wanted))))
        if kept.num_rows:
            asked = record["parameters"]
            seconds = asked["seconds"] * kept.num_rows / rows.num_rows
            stores.append(folder, kept, stage=record["stage"], seconds=seconds, keys=asked.get("keys", ()))
    part.path.unlink()


def _count(path: Path, keys: frozenset[str]) -> int | None:
    """Return how many rows of a part have one of some keys; None: it is damaged."""
    try:
        return pc.sum(mark(_read(path), keys)).as_py() or 0
    except (pa.ArrowException, OSError):
        return None


def _read(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None).replace_schema_metadata(None)


def _list_keys(folder: Path, wanted: Wanted) -> frozenset[str]:
    """Return what a store knows the row by: its ids, or digests of its texts where texts are what it keeps."""
    if folder.parent.name != TEXTS:
        return wanted.ids
    return wanted.ids | {hashlib.sha256(text.encode()).hexdigest()[:32] for text in wanted.list_texts()}
