"""A version's rows as one Parquet file for Embedding Atlas: places, neighbours, texts, and what was chosen."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.utility.neighbours import find_neighbours
from tasks.artifacts.tables import ArtifactError, read_lists, replacing
from tasks.artifacts.views import opened
from tasks.browsing.places import find_vectors, make_places
from tasks.catalogue.rows import need
from tasks.catalogue.sources import find_artifacts

NEIGHBOURS = 10  # of each row, nearest first
BLOCK = 4096  # rows whose distances are computed at once
NEAR = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])  # as Embedding Atlas reads it
ROWS = """
    SELECT p.id, p.x, p.y, p.neighbors, e.topic, e.source, e.split, e.prompt, e.response, s.rank, s.gain,
        coalesce(s.chosen, false) AS chosen, coalesce(s.gated, false) AS gated
    FROM places p JOIN (FROM examples WHERE version = $version
        QUALIFY row_number() OVER (PARTITION BY id ORDER BY used DESC, row) = 1) e USING (id)
    LEFT JOIN (FROM subset WHERE version = $version) s USING (id) ORDER BY p.place"""


def write_atlas(root: Path, version: str, path: Path, method: str = "pca") -> list[str]:
    """Write a version's rows, in the order of its sentence vectors; returns the command that shows them.

    Args:
        root: the project's folder.
        version: the data version, with examples, vectors and a choice.
        path: of the Parquet file.
        method: of the map, `pca` or `umap`.

    Raises:
        ArtifactError: the version has no sentence vectors or no choice, or an artifact is missing or was edited.
    """
    found = find_artifacts(root)
    need(found, "examples", "subset")
    if not (Path(root) / f"data/selection/version={version}/subset.parquet").exists():
        raise ArtifactError(f"{version} has no choice of rows yet; make it: `tamis run {version}`")
    places = make_places(root, version, method).table
    vectors = read_lists(find_vectors(root, version), "embedding")
    places = places.append_column("place", pa.array(range(places.num_rows), pa.int64()))
    places = places.append_column("neighbors", pa.array(_describe(vectors), NEAR))
    with opened({**found.views, "places": places}, derived=found.derived) as connection:
        rows = connection.sql(ROWS, params={"version": version}).to_arrow_table()
    with replacing(path) as part:
        pq.write_table(rows, part, compression="zstd")
    words = ["embedding-atlas", str(path), "--text", "prompt", "--x", "x", "--y", "y", "--neighbors", "neighbors"]
    return [*words, "--host", "127.0.0.1"]


def _describe(vectors: np.ndarray) -> Iterator[dict[str, list]]:
    """Yield each row's nearest rows, by their places, with one less the cosine."""
    near = find_neighbours(vectors, min(NEIGHBOURS, len(vectors) - 1)).indices
    for start in range(0, len(vectors), BLOCK):
        some = near[start : start + BLOCK]
        distances = 1 - np.einsum("rw,rnw->rn", vectors[start : start + BLOCK], vectors[some])
        for ids, away in zip(some, distances, strict=True):
            yield {"ids": ids.tolist(), "distances": away.tolist()}
