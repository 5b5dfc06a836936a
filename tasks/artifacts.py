"""Artifacts on disk: Parquet and JSON, written whole or not at all, each with its provenance.

A table's footer carries `tamis`: a JSON text with stage, version, parameters, digests of inputs, seed, code version and
row count, and `tamis_body`: the sha256 of every byte before the footer, by which a hand edit is seen. The time of
creation stands in the stage's `run.json`, not here: equal content must be equal bytes, so that what follows an
unchanged artifact is not computed again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import __version__


class ArtifactError(ValueError):
    """An artifact is missing, damaged, edited, or of another shape than its schema."""


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from."""

    stage: str  # the stage's name
    version: str  # the data version
    parameters: Mapping[str, Any] = field(default_factory=dict)  # what the stage was called with
    inputs: Mapping[str, str] = field(default_factory=dict)  # path -> sha256 of each file that was read
    seed: int | None = None  # the seed of its random choices


def digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` that takes its place on success and is removed on any failure.

    Raises:
        ArtifactError: the disk is full or refuses the write; `path` is then as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError as error:
        raise ArtifactError(
            f"{path} could not be written: {error.strerror or error}; nothing was left behind. "
            "Free space on that disk or move the project, then run again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(value: Any, path: Path) -> None:
    """Write a value as JSON with sorted keys, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(table: pa.Table, path: Path, provenance: Provenance) -> None:
    """Write a table as zstd Parquet with its provenance; equal content gives equal bytes.

    Raises:
        ArtifactError: the file cannot be written; what stood at `path` is untouched.
    """
    record = {**asdict(provenance), "code": __version__, "rows": table.num_rows}
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    with replacing(path) as part:
        with open(part, "wb") as sink:
            writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table)
            sink.flush()
            body = digest(part)
            writer.add_key_value_metadata({"tamis": text, "tamis_body": body})
            writer.close()


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read an artifact, refusing one that was edited, cut short, or has other columns than `schema`.

    Raises:
        ArtifactError: naming the file and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} is missing; run `tamis run` (or `dvc repro`) to make it")
    provenance(path)
    table = pq.ParquetFile(path).read()
    if schema is not None and not table.schema.equals(schema):
        ours, theirs = dict(_columns(schema)), dict(_columns(table.schema))
        differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ArtifactError(f"{path} has other columns than expected, first {differ[:3]}; make it again: `tamis run`")
    return table.replace_schema_metadata(None)


def provenance(path: Path) -> dict[str, Any]:
    """Return the provenance record of a Parquet artifact, after checking that its bytes are those that were written.

    Raises:
        ArtifactError: no record, or the body's digest differs from the recorded one (a hand edit or a damaged file).
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({error}); {_way_out(path)}") from error
    if b"tamis" not in metadata or b"tamis_body" not in metadata:
        raise ArtifactError(f"{path} carries no provenance: it was written or edited by other hands; {_way_out(path)}")
    if _body_digest(path) != metadata[b"tamis_body"].decode():
        raise ArtifactError(f"{path} was changed after it was written (its digest differs); {_way_out(path)}")
    return json.loads(metadata[b"tamis"])


def _columns(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    return ((column.name, str(column)) for column in schema)


def _way_out(path: Path) -> str:
    return f"restore it with `dvc checkout {path}` or make it again with `tamis run`"


def _body_digest(path: Path) -> str:
    """Return the sha256 of a Parquet file's bytes before its footer."""
    content = Path(path).read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    return hashlib.sha256(memoryview(content)[: len(content) - 8 - footer]).hexdigest()
