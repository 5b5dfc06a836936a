"""What `.cache` holds beside the stores, and what of it no run has use for: for `tamis store` and its `--prune`.

Trials are of `tamis compare` and of studies, warm-ups of stage gradients, arms of stage finetuning. A trial is of use
as long as its code is today's, a warm-up as long as its examples are there, arms until all of them stand in the
artifact, a clone of `tamis replay` while that is at work. What a look set aside as damaged is of no use.
"""

import filecmp
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from flows.params import Params
from flows.stage_calls import CACHE, STAGES, folder
from flows.trials import DONE, TRIALS, digest_sources
from flows.verify import ASIDE
from tasks.artifacts.locks import is_held
from tasks.artifacts.remembered import recall
from tasks.artifacts.stores import Stored
from tasks.artifacts.tables import ArtifactError

REPLAYS = CACHE / "replays"
REPLAY_LOCK = REPLAYS / "lock"


def survey(values: Params) -> list[Stored]:
    """Return what is kept of each kind; folders that are of use, of none, and those of which that is not known."""
    return [*_trials(values), *_warmups(values), *_arms(values), *_replays(), *_damaged()]


def prune(found: Iterable[Stored], *, unknown: bool = False) -> tuple[int, float]:
    """Remove what is of no use; returns how many folders that were, and their megabytes. Call it inside `upkeep`.

    Args:
        found: of `survey`.
        unknown: remove, too, what does not say what made it.
    """
    gone = [one for one in found if one.current is False or (one.current is None and unknown)]
    for one in gone:
        shutil.rmtree(CACHE / one.key)
    return len(gone), sum(one.megabytes for one in gone)


def _trials(values: Params) -> Iterator[Stored]:
    """Yield the trials; one that was interrupted, or is of a stage that is gone, says nothing of its code."""
    code = {name: digest_sources(name, values.versions) for name in STAGES}
    for path in sorted(TRIALS.glob("*/*")):
        made = _read_code(path)
        yield _describe("trials", path, None if made is None else made == code.get(path.parent.name))


def _read_code(trial: Path) -> Any:
    """Return the digest of the code that made a trial; None where it does not say that, or what it says is damaged."""
    try:
        return (recall(trial / DONE, {}) or {}).get("code")
    except ArtifactError:  # a folder in the file's place: this only looks, and the trial itself tells of it
        return None


def _warmups(values: Params) -> Iterator[Stored]:
    """Yield the tensors of rows that gradients draws, of a version's examples or of a trial's."""
    of_versions = {folder("examples", version).name for version in values.versions}
    for path in sorted((CACHE / "warmup").glob("*")):
        yield _describe("warmups", path, path.name in of_versions or (TRIALS / "examples" / path.name).exists())


def _arms(values: Params) -> Iterator[Stored]:
    """Yield the arms in scratch, by version: of use until every one of them is published.

    Stage finetuning removes those that it has no use for before it trains, so that one which is not published, finished
    or in training, is of a run that was interrupted; what that had finished is taken by the next, with all beside it.
    """
    for path in sorted((CACHE / "finetuning").glob("*")):
        published = sorted((folder("finetuning", path.name) / "arms").glob("*/"))
        wanted = any(not _is_published(home, published) for home in path.glob("*/"))
        yield _describe("arms", path, path.name in values.versions and wanted)


def _is_published(home: Path, published: Collection[Path]) -> bool:
    """Return whether an arm of the artifact has the very files of an arm in scratch: another training's differ."""
    made = home / "finished/weights"
    names = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    return bool(names) and any(
        all((arm / name).is_file() and filecmp.cmp(made / name, arm / name, shallow=False) for name in names)
        for arm in published
    )


def _replays() -> Iterator[Stored]:
    for path in sorted(REPLAYS.glob("*/")):
        yield _describe("replays", path, is_held(REPLAY_LOCK))


def _damaged() -> Iterator[Stored]:
    for path in sorted(ASIDE.glob("*")):
        yield _describe("damaged", path, False)


def _describe(kind: str, path: Path, current: bool | None) -> Stored:
    files = [each.stat().st_size for each in path.rglob("*") if each.is_file()]
    key = path.relative_to(CACHE).as_posix()
    return Stored(kind, key, None, None, None, len(files), 0, round(sum(files) / 1e6, 3), current)
