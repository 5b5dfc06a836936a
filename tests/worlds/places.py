"""Where the stages of a toy world find what they read, and put what they write."""

from dataclasses import fields
from pathlib import Path

from tasks.folders import Artifacts, Folders

STAGES = tuple(field.name for field in fields(Artifacts) if field.name != "version")


def find_artifacts(root: Path, version: str, **elsewhere: Path) -> Artifacts:
    """Return a folder per stage under a root, but for those that lie elsewhere."""
    return Artifacts(version, **{stage: root / stage for stage in STAGES} | elsewhere)


def find_folders(
    root: Path, *, version: str = "v1", before: Artifacts | None = None, cache: Path | None = None, **elsewhere: Path
) -> Folders:
    """Return the folders of a version of a world; the stores lie in the root itself, unless told else.

    Args:
        root: of the world.
        version: that is made.
        before: what it continues from; else `base` in the root.
        cache: root of the stores.
        elsewhere: what does not lie where it would: stages, `raw`, `scratch` and `warmup`.
    """
    own = {"raw": root / "raw/v1", "scratch": root / "scratch", "warmup": root / "warmup"}
    own |= {name: elsewhere.pop(name) for name in own if name in elsewhere}
    here = find_artifacts(root, version, **elsewhere)
    return Folders(here, before or find_artifacts(root / "base", "base"), cache=cache or root, **own)
