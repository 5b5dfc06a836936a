"""The stores of computed figures: append-only folders of Parquet parts, outside of every DVC output; and their upkeep.

A store is a folder of one kind under a root: `<root>/pairs`, `<root>/embeddings`, `<root>/scores` ... In it each model,
template and code has a folder, named by their digest, that holds `part-*.parquet` and `store.json`: what the digest is
of. A part holds rows, known by its key columns, and the seconds that they took. It is written whole, named by its keys,
and never changed: a crash loses at most the part in hand, and another version or another run asks here before it
computes. Of a row that stands in several parts the smallest numbers count, and the last part's lists, texts and truths.

Runs only ever add parts, and hold the lock of the root together; upkeep (what the stores hold, many parts made one,
what no model named today has use for) holds it alone.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.locks import locked
from tasks.artifacts.tables import ArtifactError, Provenance, provenance, write_json, write_table

KINDS = ("pairs", "embeddings", "scores", "gradients", "losses", "answers", "texts")
LOCK = "store.lock"
ABOUT = "store.json"
PARTS = "part-*.parquet"
STORED = "read_parquet($parts, filename = true, hive_partitioning = false)"  # all rows of a folder, in SQL
LEFT_OVER = ".*.part"  # what a killed process was writing
DAMAGED = ".damaged"  # ending of a part that was not as it was written


class StoreError(ValueError):
    """A store is in use, or cannot be kept as asked."""


class Stored(NamedTuple):
    """What a folder of a store holds."""

    kind: str  # one of KINDS
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


def store_folder(store: Path, *facts: Any) -> Path:
    """Return the folder of a store that holds what these facts determine, such as model, template and code."""
    key = hashlib.sha256("\n".join(str(fact) for fact in facts).encode()).hexdigest()
    return Path(store) / key[:32]


def describe(folder: Path, *, kind: str, model: str, model_digest: str, code: str, **more: Any) -> None:
    """Write down what a folder of a store holds, when it is first used; later calls change nothing.

    Args:
        folder: of one model, template and code.
        kind: one of KINDS.
        model: the model's name.
        model_digest: `models.model_digest`.
        code: `artifacts.digest_code` of what computes the rows.
        more: whatever else tells folders apart, as `template` and `selector`, which `survey` shows.
    """
    facts = {"kind": kind, "model": model, "model_digest": model_digest, "code": code, **more}
    if not (folder / ABOUT).exists():
        write_json(facts, folder / ABOUT)


def append(folder: Path, rows: pa.Table, *, stage: str, seconds: float, keys: Sequence[str] = ()) -> Path:
    """Add a part with these rows and the seconds that they took, and return its path.

    Args:
        folder: of `store_folder`.
        rows: key columns, which are texts, and values.
        stage: that computed them.
        seconds: that this took.
        keys: names of the key columns; where none is named, all columns of text.
    """
    keys = list(keys) or _list_texts(rows.schema)
    total = hashlib.sha256()
    for names in zip(*(rows[key].to_pylist() for key in keys), strict=True):
        total.update(f"{' '.join(names)}\n".encode())
    path = folder / f"part-{total.hexdigest()[:32]}.parquet"
    write_table(rows.combine_chunks(), path, Provenance(stage, "store", {"seconds": seconds, "keys": keys}))
    return path


def find(folder: Path, wanted: pa.Table) -> pa.Table:
    """Return the wanted rows that the store holds, in the order wanted, with their values, each once.

    Args:
        folder: of `store_folder`.
        wanted: the key columns, and any others that no part has, which are kept.

    Returns:
        The columns of `wanted`, then the values; where the store holds no row at all, the columns of `wanted` alone.
    """
    parts = _read_filled(folder)
    if not parts:
        return wanted[:0]
    schema, keys = pq.read_schema(next(iter(parts))), _keys(parts)
    found = {field.name: "min" if _is_figure(field.type) else "arg_max" for field in schema if field.name not in keys}
    values = [f"{how}({_quote(name)}{', filename' * (how == 'arg_max')}) {_quote(name)}" for name, how in found.items()]
    listed, using = ", ".join([*map(_quote, keys), *values]), ", ".join(map(_quote, keys))
    return _join(
        parts,
        wanted,
        f"""
        SELECT numbered.*, {", ".join(map(_quote, found))} FROM numbered JOIN (
            SELECT {listed} FROM {STORED} SEMI JOIN numbered USING ({using}) GROUP BY {using}
        ) USING ({using}) ORDER BY numbered._position
        """,
    )


def missing(folder: Path, wanted: pa.Table) -> pa.Table:
    """Return the wanted rows that the store does not hold, in the order wanted."""
    parts = _read_filled(folder)
    if not parts:
        return wanted
    using = ", ".join(map(_quote, _keys(parts)))
    query = f"SELECT * FROM numbered ANTI JOIN {STORED} USING ({using}) ORDER BY numbered._position"
    return _join(parts, wanted, query)


def cost(folder: Path, wanted: pa.Table) -> float:
    """Return the seconds that the wanted rows took when they were computed; those that are not held add nothing.

    sum over parts of seconds x (wanted rows in it / rows in it); a row that stands in two parts counts in the first.
    """
    parts = _read_filled(folder)
    if not parts:
        return 0.0
    using = ", ".join(map(_quote, _keys(parts)))
    found = _join(
        parts,
        wanted,
        f"""
        SELECT filename, count(*) AS rows, 0 AS _position FROM (
            SELECT {using}, min(filename) AS filename FROM {STORED} SEMI JOIN numbered USING ({using}) GROUP BY {using}
        ) GROUP BY filename ORDER BY filename
        """,
    )
    each = {str(path): record["parameters"]["seconds"] / record["rows"] for path, record in parts.items()}
    return float(sum(each[part["filename"]] * part["rows"] for part in found.to_pylist()))


def _read_filled(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the records of the parts that hold rows: what has none need not have the others' types of columns."""
    return {path: record for path, record in check_parts(folder).items() if record["rows"]}


def _keys(parts: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Return the key columns of parts; those that do not say so are of a time when every text was one."""
    path, record = next(iter(parts.items()))
    return record["parameters"].get("keys") or _list_texts(pq.read_schema(path))


def _list_texts(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type)]


def _is_figure(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _quote(name: str) -> str:
    return f'"{name}"'


def _join(parts: Mapping[Path, Any], wanted: pa.Table, query: str) -> pa.Table:
    """Run a query over the wanted rows, numbered, and the stored ones."""
    numbered = wanted.append_column("_position", pa.array(np.arange(wanted.num_rows)))
    with _database(os.getpid()).cursor() as connection:
        connection.register("numbered", numbered)
        asked = {"parts": [str(path) for path in parts]}
        return connection.sql(query, params=asked).to_arrow_table().drop_columns(["_position"])


@lru_cache(maxsize=1)
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """Return this process's database in memory, which holds nothing: opening one takes longer than most questions."""
    return duckdb.connect()


def close_database() -> None:
    """Close this process's database, which remembers something of every file that it was asked of.

    Arrow gives back what it kept of the answers for later.
    """
    if _database.cache_info().currsize:
        _database(os.getpid()).close()
    _database.cache_clear()
    pa.default_memory_pool().release_unused()


def check_parts(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the records of a folder's parts that are as they were written; a damaged one is set aside, and told of."""
    found = {}
    for path in sorted(Path(folder).glob(PARTS)):
        try:
            found[path] = provenance(path)
        except ArtifactError:
            os.replace(path, path.with_suffix(DAMAGED))
            warnings.warn(
                f"{path}, a part of a store, was damaged and stands aside, with ending {DAMAGED}: what it held is "
                "computed again; `tamis store --prune` deletes it",
                stacklevel=2,
            )
    return found


def survey(root: Path, keep: Collection[str]) -> list[Stored]:
    """Return what each folder of the stores holds, sorted by kind and key.

    Args:
        root: of all stores.
        keep: digests of the models and of the code that are named today.
    """
    return [_inspect(folder, keep) for folder in list_folders(root)]


def list_folders(root: Path) -> list[Path]:
    """Return the folders of the stores that exist, sorted by kind and key."""
    return sorted(path for kind in KINDS for path in (Path(root) / kind).glob("*") if path.is_dir())


def compact(folder: Path) -> Compacted:
    """Make one part of all parts of a folder: sorted, each row once. Call it inside `upkeep`.

    Of rows with the same keys the smallest numbers are kept, and all else of the last part, as readers take them. The
    seconds that the parts took are added up. The new part is written whole, and names those that it replaces, before
    they are deleted: after a crash in between every row is still there, some twice, and the next call deletes what was
    replaced without counting its seconds again.

    Cost: all rows of the folder in memory.

    Raises:
        ArtifactError: the disk is full; every row is still there.
    """
    before = _measure(folder)
    records = check_parts(folder)
    replaced = {name for record in records.values() for name in record["parameters"].get("replaces", ())}
    current = {path: record for path, record in records.items() if path.name not in replaced and record["rows"]}
    for path in [*folder.glob(LEFT_OVER), *(records.keys() - current.keys())]:
        path.unlink()
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
        for path in folder.glob(f"*{DAMAGED}"):
            freed += path.stat().st_size
            path.unlink()
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
    with locked(Path(root) / LOCK, shared=True):
        yield


@contextmanager
def upkeep(root: Path) -> Iterator[None]:
    """Hold the stores alone, to change what is in them.

    Raises:
        StoreError: a run, or another upkeep, uses them.
    """
    refusal = StoreError(
        f"a run uses the stores in {root} (it holds {LOCK} there), so nothing was changed; "
        "wait until no run and no other upkeep is at work, or stop it"
    )
    with locked(Path(root) / LOCK, refusal=refusal):
        yield


def _inspect(folder: Path, keep: Collection[str]) -> Stored:
    about = read_about(folder / ABOUT)
    parts = check_parts(folder).values()
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


def read_about(path: Path) -> dict[str, Any]:
    """Return what a folder's `store.json` says that it holds; empty where there is none.

    Raises:
        StoreError: it was edited.
    """
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {"model_digest": about["model_digest"], "code": about["code"], **about}
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError) as error:
        raise StoreError(
            f"{path} does not tell model_digest and code ({type(error).__name__}: {error}): it was edited; delete it, "
            "and the next run that uses this folder writes it again"
        ) from error


def _merge(folder: Path, records: dict[Path, dict[str, Any]]) -> int:
    """Write one part with the rows of these, delete them, and return how many rows it has."""
    keys, tables = _keys(records), [pq.read_table(path, partitioning=None) for path in records]
    whole = unite([table.replace_schema_metadata(None) for table in tables], keys)
    names = sorted(path.name for path in records)
    target = folder / f"part-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}.parquet"
    seconds = sum(record["parameters"]["seconds"] for record in records.values())
    stage = next(iter(records.values()))["stage"]
    write_table(whole, target, Provenance(stage, "store", {"seconds": seconds, "keys": keys, "replaces": names}))
    for path in records:
        path.unlink()
    return whole.num_rows


def unite(parts: Sequence[pa.Table], keys: Sequence[str]) -> pa.Table:
    """Return the rows of all parts by their keys, each once: the smallest numbers, all else of the last part."""
    rows = pa.concat_tables(parts)
    figures = [field.name for field in rows.schema if _is_figure(field.type)]
    rest = [name for name in rows.column_names if name not in (*keys, *figures)]
    numbered = rows.select([*keys, *figures]).append_column("place", pa.array(np.arange(rows.num_rows)))
    wanted = [("place", "max"), *((name, "min") for name in figures)]
    found = numbered.group_by(list(keys)).aggregate(wanted).sort_by([(name, "ascending") for name in keys])
    columns = {name: found[name] for name in keys} | {name: found[f"{name}_min"] for name in figures}
    columns |= {name: rows[name].take(found["place_max"]) for name in rest}
    return pa.table([columns[name] for name in rows.column_names], schema=rows.schema)


def _remove(folder: Path) -> None:
    """Delete a folder; what it holds is told until its parts are gone."""
    for path in folder.glob(PARTS):
        path.unlink()
    shutil.rmtree(folder)


def _measure(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
