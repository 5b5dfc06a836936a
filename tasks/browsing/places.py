"""Where a version's rows lie in two dimensions: made once of their sentence vectors, and kept in .cache/maps."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import tables
from tasks.artifacts.tables import ArtifactError, Provenance, stack, write_table

MAPS = Path(".cache/maps")  # of a project
METHODS = ("pca", "umap")
BATCH = 16_384  # vectors that are in memory at once
PLACES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Places:
    """A version's map."""

    table: pa.Table  # of PLACES
    method: str
    shares: tuple[float, ...]  # of the vectors' variance, along x and y; empty: the method knows none


def find_places(root: Path, version: str) -> Places | None:
    """Return a version's map; None where it is not made, or of other vectors than the version has now."""
    path, source = _locate(root, version), find_vectors(root, version)
    if not path.exists() or not source.exists():
        return None
    try:
        facts = tables.provenance(path)
        if facts["inputs"] != _name_source(source):
            return None
        return Places(
            tables.read_table(path, PLACES), facts["parameters"]["method"], tuple(facts["parameters"]["shares"])
        )
    except ArtifactError:
        return None  # it is made anew


def make_places(root: Path, version: str, method: str = "pca") -> Places:
    """Return a version's map, made where it is not there, or was made by another method or of other vectors.

    Args:
        root: the project's folder.
        version: the data version.
        method: `pca`, the two directions of largest variance, each with the sign that makes its largest part positive;
            or `umap`, which keeps neighbours together (McInnes, Healy and Melville, arXiv 1802.03426), if `umap-learn`
            is installed.

    Raises:
        ArtifactError: the version has no sentence vectors, or `umap` is asked for and not installed.
    """
    found = find_places(root, version)
    if found is not None and found.method == method:
        return found
    source = find_vectors(root, version)
    if not has_vectors(source):
        raise ArtifactError(
            f"{version} has no sentence vectors in {source}; its settings ask for none, or it is not made"
        )
    ids = tables.read_table(source, columns=["id"])["id"]
    points, shares = _project(source) if method == "pca" else (_embed(source), ())
    made = pa.table([ids, *map(pa.array, points.astype(np.float32).T)], schema=PLACES)
    parameters = {"method": method, "shares": [round(share, 4) for share in shares]}
    path = _locate(root, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(made, path, Provenance("map", version, parameters, _name_source(source)))
    return Places(made, method, tuple(parameters["shares"]))


def find_vectors(root: Path, version: str) -> Path:
    """Return where a version's sentence vectors are, made or not."""
    return Path(root) / f"data/embedding/version={version}/embedding.parquet"


def has_vectors(source: Path) -> bool:
    """Return whether a file of sentence vectors is there, and holds some."""
    return source.exists() and pq.read_metadata(source).num_rows > 0


def _name_source(source: Path) -> dict[str, str]:
    """Return the digest that a file of vectors was sealed with, which takes no reading of the vectors."""
    return {source.name: pq.read_metadata(source).metadata[b"tamis_digest"].decode()}


def _locate(root: Path, version: str) -> Path:
    return Path(root) / MAPS / f"version={version}" / "map.parquet"


def _read_batches(source: Path) -> Iterator[np.ndarray]:
    """Yield the vectors, some rows at a time, in float64."""
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(BATCH, columns=["embedding"]):
            yield stack(pa.chunked_array([batch["embedding"]])).astype(np.float64)


def _project(source: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the rows' parts along the two principal directions, and which shares of the variance these hold."""
    count, total, products = 0, 0.0, 0.0
    for vectors in _read_batches(source):
        count, total, products = count + len(vectors), total + vectors.sum(0), products + vectors.T @ vectors
    mean = total / count
    values, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    two = directions[:, ::-1][:, :2]
    two = two * np.sign(np.take_along_axis(two, abs(two).argmax(0)[None], 0))
    shares = np.maximum(values[::-1][:2], 0) / max(float(np.maximum(values, 0).sum()), 1e-12)
    points = np.concatenate([(vectors - mean) @ two for vectors in _read_batches(source)])
    return points, tuple(shares.tolist())


def _embed(source: Path) -> np.ndarray:
    """Return the rows' places by UMAP, with its seed fixed.

    Raises:
        ArtifactError: it is not installed.
    """
    if importlib.util.find_spec("umap") is None:
        raise ArtifactError("UMAP is not installed; `pip install umap-learn` brings it, or ask for the map by pca")
    umap = importlib.import_module("umap")
    return umap.UMAP(random_state=0, metric="cosine").fit_transform(np.concatenate(list(_read_batches(source))))


def tell_map(found: Places) -> str:
    """Return in words what the axes of a map are."""
    if not found.shares:
        return "by UMAP of the sentence vectors: near rows are alike, and the axes mean nothing"
    return f"by the two main directions of the sentence vectors, which hold {sum(found.shares):.0%} of their variance"
