"""Upkeep of the stores: what they hold, many parts made one, what no model named today has use for; never during a run.

A store is a folder of one kind under a root: `<root>/pairs`, `<root>/embeddings`, `<root>/scores`. In it each model,
template and code has a folder, named by their digest, that holds `part-*.parquet` and `store.json`: what the digest is
of. Parts are only ever added by runs, which hold the lock of the root together; upkeep holds it alone. The kernel frees
a lock whose process ends, also by `kill -9`.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.tables import Provenance, check_part, provenance, write_json, write_table

KINDS = ("pairs", "embeddings", "scores", "gradients")
LOCK = "store.lock"
ABOUT = "store.json"
PARTS = "part-*.parquet"
LEFT_OVER = ".*.part"  # what a killed process was writing


class StoreError(ValueError):
    """A store is in use, or cannot be kept as asked."""


class Stored(NamedTuple):
    """What a folder of a store holds."""

    kind: str  # pairs | embeddings | scores
    key: str  # the folder's name
    model: str | None  # None: the folder does not say
    template: str | None
    selector: str | None  # of scores: what they are for
    parts: int
    rows: int  # of all parts, repetitions counted
    megabytes: float
    current: bool | None  # whether model and code are named today; None where the folder does not say what it holds


class Compacted(NamedTuple):
    """What became of a folder's parts."""

    parts: int  # that there were
    rows: int  # that there are, each once
    repeated: int  # rows that stood in several parts
    freed: int  # bytes; below 0 where the one part is larger, as with very few rows


class Pruned(NamedTuple):
    """What was removed."""

    removed: list[Stored]
    unknown: list[Stored]  # folders that do not say what they hold, and stay
    freed: int  # bytes


def describe(folder: Path, *, kind: str, model: str, model_digest: str, code: str, **more: Any) -> None:
    """Write down what a folder of a store holds, when it is first used; later calls change nothing.

    Args:
        folder: of one model, template and code.
        kind: pairs | embeddings | scores.
        model: the model's name.
        model_digest: `models.model_digest`.
        code: `artifacts.digest_code` of what computes the rows.
        more: whatever else tells folders apart, as `template` and `selector`, which `survey` shows.
    """
    facts = {"kind": kind, "model": model, "model_digest": model_digest, "code": code, **more}
    if not (folder / ABOUT).exists():
        write_json(facts, folder / ABOUT)


def survey(root: Path, keep: Collection[str]) -> list[Stored]:
    """Return what each folder of the stores holds, sorted by kind and key.

    Args:
        root: of all stores.
        keep: digests of the models and of the code that are named today.

    Raises:
        ArtifactError: a part is damaged.
    """
    return [_inspect(folder, keep) for folder in list_folders(root)]


def list_folders(root: Path) -> list[Path]:
    """Return the folders of the stores that exist, sorted by kind and key."""
    return sorted(path for kind in KINDS for path in (Path(root) / kind).glob("*") if path.is_dir())


def compact(folder: Path) -> Compacted:
    """Make one part of all parts of a folder: sorted, each row once. Call it inside `upkeep`.

    Of rows with the same texts (an id, or the ids of a pair) the smallest figures are kept and the last part's lists,
    as readers take them. The seconds that the parts took are added up. The new part is written whole, and names those
    that it replaces, before they are deleted: after a crash in between every row is still there, some twice, and the
    next call deletes what was replaced without counting its seconds again.

    Cost: all rows of the folder in memory.

    Raises:
        ArtifactError: a part is damaged, or the disk is full; every row is still there.
    """
    before = _measure(folder)
    records = {path: provenance(check_part(path)) for path in sorted(folder.glob(PARTS))}
    replaced = {name for record in records.values() for name in record["parameters"].get("replaces", ())}
    for path in [*folder.glob(LEFT_OVER), *(path for path in records if path.name in replaced)]:
        path.unlink()
    current = {path: record for path, record in records.items() if path.name not in replaced}
    rows = sum(record["rows"] for record in current.values())
    kept = _merge(folder, current) if len(current) > 1 else rows
    return Compacted(len(records), kept, rows - kept, before - _measure(folder))


def prune(root: Path, keep: Collection[str], *, unknown: bool = False) -> Pruned:
    """Remove the folders whose model or code is not named any more. Call it inside `upkeep`.

    Args:
        root: of all stores.
        keep: digests of the models and of the code that are named today.
        unknown: remove folders that do not say what they hold, too.

    Returns:
        What was removed, and the folders that do not say what they hold and stay.
    """
    removed, spared, freed = [], [], 0
    for folder in list_folders(root):
        found = _inspect(folder, keep)
        if found.current is False or (found.current is None and unknown):
            freed += _measure(folder)
            _remove(folder)
            removed.append(found)
        elif found.current is None:
            spared.append(found)
    return Pruned(removed, spared, freed)


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Hold the stores for a run, together with other runs; where upkeep is at work, wait until it ends."""
    handle = _lock(root, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(handle)  # and with it the lock


@contextmanager
def upkeep(root: Path) -> Iterator[None]:
    """Hold the stores alone, to change what is in them.

    Raises:
        StoreError: a run, or another upkeep, uses them.
    """
    handle = _lock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(handle)


def _lock(root: Path, mode: int) -> int:
    Path(root).mkdir(parents=True, exist_ok=True)
    handle = os.open(Path(root) / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, mode)
    except BlockingIOError as error:
        os.close(handle)
        raise StoreError(
            f"a run uses the stores in {root} (it holds {LOCK} there), so nothing was changed; "
            "wait until no run and no other upkeep is at work, or stop it"
        ) from error
    return handle


def _inspect(folder: Path, keep: Collection[str]) -> Stored:
    about = _read_about(folder / ABOUT)
    parts = [provenance(check_part(path)) for path in sorted(folder.glob(PARTS))]
    return Stored(
        kind=folder.parent.name,
        key=folder.name,
        model=about.get("model"),
        template=about.get("template"),
        selector=about.get("selector"),
        parts=len(parts),
        rows=sum(part["rows"] for part in parts),
        megabytes=round(_measure(folder) / 1e6, 3),
        current={about["model_digest"], about["code"]} <= set(keep) if about else None,
    )


def _read_about(path: Path) -> dict[str, Any]:
    """Return what a folder says that it holds; empty where it says nothing."""
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {"model_digest": about["model_digest"], "code": about["code"], **about}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} does not tell model_digest and code ({type(error).__name__}: {error}): it was edited; delete it, "
            "and the next run that uses this folder writes it again"
        ) from error


def _merge(folder: Path, records: dict[Path, dict[str, Any]]) -> int:
    """Write one part with the rows of these, delete them, and return how many rows it has."""
    whole = unite([pq.read_table(path, partitioning=None).replace_schema_metadata(None) for path in records])
    names = sorted(path.name for path in records)
    target = folder / f"part-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}.parquet"
    seconds = sum(record["parameters"]["seconds"] for record in records.values())
    stage = next(iter(records.values()))["stage"]
    write_table(whole, target, Provenance(stage, "store", {"seconds": seconds, "replaces": names}))
    for path in records:
        path.unlink()
    return whole.num_rows


def unite(parts: list[pa.Table]) -> pa.Table:
    """Return the rows of all parts, sorted by their texts, each once: the smallest figures, the last part's lists."""
    rows = pa.concat_tables(parts)
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    lists = [field.name for field in rows.schema if pa.types.is_nested(field.type)]
    figures = [name for name in rows.column_names if name not in (*texts, *lists)]
    numbered = rows.select([*texts, *figures]).append_column("place", pa.array(np.arange(rows.num_rows)))
    wanted = [("place", "max"), *((name, "min") for name in figures)]
    found = numbered.group_by(texts).aggregate(wanted).sort_by([(name, "ascending") for name in texts])
    columns = {name: found[name] for name in texts} | {name: found[f"{name}_min"] for name in figures}
    columns |= {name: rows[name].take(found["place_max"]) for name in lists}
    return pa.table([columns[name] for name in rows.column_names], schema=rows.schema)


def _remove(folder: Path) -> None:
    """Delete a folder; what it holds is told until its parts are gone."""
    for path in folder.glob(PARTS):
        path.unlink()
    shutil.rmtree(folder)


def _measure(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
