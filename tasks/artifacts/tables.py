"""Artifacts on disk: Parquet and JSON, written whole or not at all, each with its provenance.

A table's footer carries `tamis`: a JSON text with stage, version, parameters, digests of inputs, seed, code version and
row count, and `tamis_digest`: the sha256 of the whole file with `UNSEALED` in place of these 64 digits, by which a hand
edit is seen, of the record itself too. The time of creation stands in the stage's `run.json`, not here: equal content
must be equal bytes, so that what follows an unchanged artifact is not computed again.
"""

import ast
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors

UNSEALED = b"(here stands the digest of this file, once the rest is written.)"  # 64 bytes
CHUNK = 1 << 20  # bytes read at once
VECTORS = 8192  # rows of a batch of vectors
UMASK = os.umask(0)  # what the user withholds from new files
os.umask(UMASK)
MAKE_ROOM = "Free space on that disk or move the project, then run again"
FILE, FOLDER = 0o666, 0o777  # modes of new files and folders, but for that


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


def digest_inputs(*paths: Path) -> dict[str, str]:
    """Return the digests of artifacts for a provenance record, each under the last three parts of its path.

    `data/examples/version=v1/examples.parquet` is known as `examples/version=v1/examples.parquet`, wherever it lies.
    """
    return {"/".join(Path(path).parts[-3:]): digest(path) for path in paths}


def digest_code(*modules: ModuleType) -> str:
    """Return a digest of what modules do: their syntax without comments, docstrings and layout.

    A store of computed figures is keyed by it, so that figures of older code are never served. Call it where the
    modules are imported: it reads their files, not what runs.
    """
    total = hashlib.sha256()
    for module in modules:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        total.update(ast.dump(tree).encode())
    return total.hexdigest()[:32]


@contextmanager
def replacing(path: Path, drafts: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name, beside `path` or in `drafts`, that takes its place on success, else is removed.

    Raises:
        ArtifactError: the disk is full or refuses the write; `path` is then as it was before.
    """
    path = Path(path)
    part = None
    try:
        home = drafts or path.parent
        home.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=home, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        yield part
        os.chmod(part, FILE & ~UMASK)
        put_in_place(part, path)
    except OSError as error:
        raise ArtifactError(
            f"{path} could not be written: {error.strerror or error}; nothing was left behind. "
            f"{name_remedy(path, error)}"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def put_in_place(part: Path, path: Path) -> None:
    """Rename a file or folder once it is on the disk with all that it holds, and wait until the new name is, too.

    A computer that loses power then has the old or the new one, and never an empty one.
    """
    for inside in [*part.rglob("*"), part] if part.is_dir() else [part]:
        _flush(inside)
    os.replace(part, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def name_remedy(path: Path, error: OSError) -> str:
    """Return the way out, a sentence, where a file or folder could not be written."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"Allow writing in {path.parent}, then run again"
    if path.is_dir() and isinstance(error, IsADirectoryError):
        return tell_folder(path)
    found = find_in_way(path)
    return f"{found} stands where a folder belongs: move it away, then run again" if found else MAKE_ROOM


def tell_folder(path: Path) -> str:
    """Return what is wrong with a folder in a file's place, or a link that leads nowhere, and the way out."""
    found = "a folder" if Path(path).is_dir() else "a link that leads nowhere"
    return f"{path} is {found} where a file belongs: move it away, then run again"


def find_in_way(path: Path) -> Path | None:
    """Return what is no folder among those that a path lies in; None: nothing is in the way."""
    return next((one for one in path.parents if os.path.lexists(one) and not one.is_dir()), None)


def tell_refused(error: OSError) -> str:
    """Return what a file system refused of a named file, in words: reading it or writing it, and the way out."""
    path = Path(error.filename2 or error.filename)
    if isinstance(error, PermissionError) and not error.filename2 and not may_read(path):
        return f"{path} could not be read: {error.strerror}. Allow reading it, then run again"
    return f"{path} could not be written: {error.strerror}. {name_remedy(path, error)}"


def may_read(path: Path) -> bool:
    """Return whether we may read a file or folder, or, where none is seen there, look for it."""
    seen = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    return os.access(seen, os.X_OK if seen != path else os.R_OK)


def write_json(value: Any, path: Path) -> None:
    """Write a value as JSON with sorted keys, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a stage wrote as a JSON object; empty where there is no such file and nothing is wanted of it.

    Args:
        path: of the file.
        wanted: names that it must have.

    Raises:
        ArtifactError: it cannot be read, holds something else, or lacks what is wanted.
    """
    found = _load(path) if wanted or Path(path).exists() else {}
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds no JSON object; {_way_out(path)}")
    if lacking := [name for name in wanted if name not in found]:
        raise ArtifactError(f"{path} lacks {', '.join(lacking)}; {_way_out(path)}")
    return found


def read_texts(path: Path) -> list[str]:
    """Return what a stage wrote as a JSON list of texts, such as the ids of rows.

    Raises:
        ArtifactError: it is missing, cannot be read, or holds something else.
    """
    found = _load(path)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ArtifactError(f"{path} holds no JSON list of texts; {_way_out(path)}")
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {_way_out(path)}") from error
    except IsADirectoryError as error:
        raise ArtifactError(tell_folder(path)) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({_line(error)}); {_way_out(path)}") from error


def write_table(table: pa.Table, path: Path, provenance: Provenance) -> None:
    """Write a table as zstd Parquet with its provenance; equal content gives equal bytes.

    Raises:
        ArtifactError: the file cannot be written; what stood at `path` is untouched.
    """
    write_tables([table], table.schema, path, provenance)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, provenance: Provenance) -> None:
    """Write tables one after the other as `write_table` does, a row group each, holding one at a time.

    Raises:
        ArtifactError: the file cannot be written; what stood at `path` is untouched.
    """
    rows = 0
    with replacing(path) as part:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
            record = {**asdict(provenance), "code": version("tamis"), "rows": rows}
            text = json.dumps(record, sort_keys=True, ensure_ascii=False)
            writer.add_key_value_metadata({"tamis": text, "tamis_digest": UNSEALED})
        _seal(part)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what is known of the tensors in a safetensors file: the JSON text `tamis` in its header.

    Raises:
        ArtifactError: it is missing, is no such file, or carries no such text.
    """
    if not Path(path).exists():
        raise ArtifactError(f"{path} is missing; {_way_out(path)}")
    try:
        with safetensors.safe_open(path, "np") as file:
            return json.loads((file.metadata() or {})["tamis"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} carries no readable record ({_line(error)}); {_way_out(path)}") from error


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the losses that an evaluation's metrics.json holds; empty where there is no such file.

    Raises:
        ArtifactError: it cannot be read, or holds something else.
    """
    found = read_json(path)
    parts = [found.get(name, {}) for name in ("arms", "differences")]
    if not all(isinstance(part, dict) and all(isinstance(one, dict) for one in part.values()) for part in parts):
        raise ArtifactError(f"{path} holds no losses of arms as an evaluation writes them; {_way_out(path)}")
    return found


def read_table(path: Path, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an artifact, refusing one that was edited, cut short, or has other columns than `schema`.

    Args:
        path: of the artifact.
        schema: what it must have; None: anything.
        columns: those that are wanted, in this order; None: all.

    Raises:
        ArtifactError: naming the file and what to do.
    """
    check_table(path, schema)
    return pq.read_table(path, columns=columns, partitioning=None).replace_schema_metadata(None)


def stack(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of lists of one length as an array with a row per list; where there is none, of width 0.

    >>> stack(pa.chunked_array([[[1.0, 2.0]], [[3.0, 4.0]]])).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    flat = np.asarray(column.combine_chunks().flatten())
    return flat.reshape(len(column), len(flat) // max(1, len(column)))


def read_lists(path: Path, column: str) -> np.ndarray:
    """Read an artifact's column of lists of one length, as its type says it, as an array with a row per list.

    Besides the array a batch of it is in memory, not the table and a copy of it.

    Raises:
        ArtifactError: the artifact is missing, damaged or was edited.
    """
    provenance(path)
    with pq.ParquetFile(path, buffer_size=CHUNK) as opened:
        kind = opened.schema_arrow.field(column).type
        vectors = np.empty((opened.metadata.num_rows, kind.list_size), kind.value_type.to_pandas_dtype())
        start = 0
        for batch in opened.iter_batches(batch_size=VECTORS, columns=[column]):
            some = np.asarray(batch[column].flatten()).reshape(-1, kind.list_size)
            vectors[start : start + len(some)] = some
            start += len(some)
    return vectors


def check_table(path: Path, schema: pa.Schema | None = None) -> None:
    """Check that an artifact is as it was written, with the columns of `schema`, without keeping it in memory.

    Raises:
        ArtifactError: naming the file and what to do.
    """
    provenance(path)
    found = pq.read_schema(path)
    if schema is not None and not found.equals(schema):
        ours, theirs = dict(_columns(schema)), dict(_columns(found))
        differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        what = f"first {differ[:3]}" if differ else "in another order"
        raise ArtifactError(f"{path} has other columns than expected, {what}; make it again: `tamis run`")


def provenance(path: Path) -> dict[str, Any]:
    """Return the provenance record of a Parquet artifact, after checking that its bytes are those that were written.

    Raises:
        ArtifactError: no file, no record, or the digest differs from the recorded one (a hand edit, a damaged file).
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} is missing; {_way_out(path)}")
    if path.is_dir():
        raise ArtifactError(tell_folder(path))
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({_line(error)}); {_way_out(path)}") from error
    if b"tamis" not in metadata or len(metadata.get(b"tamis_digest", b"")) != len(UNSEALED):
        raise ArtifactError(f"{path} carries no provenance: it was written or edited by other hands; {_way_out(path)}")
    if _digest_unsealed(path, metadata[b"tamis_digest"]) != metadata[b"tamis_digest"]:
        raise ArtifactError(f"{path} was changed after it was written (its digest differs); {_way_out(path)}")
    return json.loads(metadata[b"tamis"])


def _columns(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    return ((column.name, str(column)) for column in schema)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _way_out(path: Path) -> str:
    parts = Path(path).parts
    if parts[:1] == (".cache",):  # DVC holds none of it, and whoever needs a trial, an arm or a part makes it again
        return f"delete {Path(*parts[:4])}, and it is made again"
    if not Path(path).exists():
        return "run `tamis run` (or `dvc repro`) to make it"
    return f"restore it with `dvc checkout --force {path}` or make it again with `tamis run`"


def _seal(path: Path) -> None:
    """Write a new Parquet file's digest into its footer, over the text that keeps its place."""
    sealed = _digest_unsealed(path, UNSEALED)
    with open(path, "r+b") as file:
        start = _find_footer(file)
        file.seek(start)
        file.seek(start + file.read().rindex(UNSEALED))  # the last one: statistics of columns stand before it
        file.write(sealed)


def _digest_unsealed(path: Path, sealed: bytes) -> bytes:
    """Return the sha256 of a Parquet file as it was before `sealed` took the place of `UNSEALED`."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        left = _find_footer(file)
        file.seek(0)
        while left > 0:
            chunk = file.read(min(left, CHUNK))
            total.update(chunk)
            left -= len(chunk)
        before, _, after = file.read().rpartition(sealed)
        total.update(before + UNSEALED + after)
    return total.hexdigest().encode()


def _find_footer(file: BinaryIO) -> int:
    """Return where a Parquet file's footer begins: its length stands before the four closing letters."""
    file.seek(-8, os.SEEK_END)
    return file.tell() - int.from_bytes(file.read(4), "little")
