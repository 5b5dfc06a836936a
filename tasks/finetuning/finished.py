"""Finished arms in scratch, which carry the digests of their files: a damaged one is never published."""

import json
from pathlib import Path

from tasks.artifacts import tables

DIGESTS = "digests.json"


def seal(folder: Path) -> None:
    """Write down the digests of all files of a finished arm."""
    tables.write_json(_digest_files(folder), folder / DIGESTS)


def is_sound(folder: Path) -> bool:
    """Return whether a finished arm holds the files that were sealed, as they were."""
    try:
        wanted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return wanted == _digest_files(folder)


def find_damaged_arms(cache: Path) -> tuple[int, list[Path]]:
    """Return how many finished arms there are in scratch, and the folders of those that are damaged.

    Args:
        cache: folder of the stores and of scratch.
    """
    homes = sorted(path for path in Path(cache).glob("finetuning/**/finished") if path.is_dir())
    return len(homes), [home for home in homes if not is_sound(home)]


def _digest_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {path.relative_to(folder).as_posix(): tables.digest(path) for path in files}
