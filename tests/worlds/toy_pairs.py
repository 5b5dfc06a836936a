"""The stages `embedding` and `utility`, run on a toy corpus with the toy model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts.tables import read_table
from tasks.embedding.embedding import write_embedding
from tasks.embedding.settings import EmbeddingSettings
from tasks.models import ModelChoice
from tasks.settings import RuntimeSettings
from tasks.utility.settings import UtilitySettings
from tasks.utility.utility import write_utility
from worlds.places import find_folders

EXACT = UtilitySettings(kernel="exact", neighbours=8, check_targets=4)
SMALL = RuntimeSettings(shard_pairs=10, pack_tokens=200, embedding_rows=4)


def embed(root: Path, model: ModelChoice) -> None:
    """Write the embeddings of `root/examples`."""
    write_embedding(find_folders(root), model=model, settings=EmbeddingSettings(max_tokens=64), runtime=SMALL)


def run(
    root: Path,
    model: ModelChoice,
    settings: UtilitySettings = EXACT,
    *,
    runtime: RuntimeSettings = SMALL,
    out: str = "out",
    store: str = ".",
    wanted: bool = True,
    kernel: str | None = None,
    quality: str | None = None,
    map: Callable = map,
) -> Mapping[str, Any]:
    """Write the utility of `root/examples` and return what was scored."""
    return write_utility(
        find_folders(root, utility=root / out, cache=root / store),
        model=model,
        settings=settings,
        runtime=runtime,
        wanted=wanted,
        kernel=kernel,
        quality=quality,
        map=map,
    )


def pairs_of(path: Path) -> dict[tuple[str, str], float]:
    """Return the utility of every pair (target, demo) of a table."""
    return {(row["target_id"], row["demo_id"]): row["utility"] for row in read_table(path).to_pylist()}
