"""Where the working tree and `.cache` hold an erased row: artifacts, arms, parts of stores, warm-ups, trials."""

import glob
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.drive import LOCK
from flows.erasing_dvc import DRAFTS, ROWS, find_start
from flows.graph.stages import in_order
from flows.stage_calls import CACHE, DATA, ERASED, RAW, folder
from flows.trials import TRIALS
from flows.unattended.landing import FETCHED
from tasks.examples.files import find_base
from tasks.settings import VersionSettings

CLEARING = CACHE / "erasing.json"  # raw files that lose rows: what git and DVC hold of them follows, after a kill, too
APART = ("models", "trials", "finetuning", "warmup", DRAFTS.name, FETCHED.name)  # of `.cache`, looked at in other ways
DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the name of a file or folder in the making
CONTINUED = "trained on from an arm that was trained on the row"
TRAINED = "trained on the row"


@dataclass(frozen=True)
class Place:
    """One place that holds a row, or what was trained on it."""

    kind: str  # raw | artifact | arm | store | mirror | warm-up | trial | leftover | cache | remote | revision | git
    path: str
    what: str


@dataclass(frozen=True)
class InPlaces:
    """What the working tree and `.cache` hold of a row."""

    places: tuple[Place, ...]  # files and folders that go as a whole, what tells of others last
    parts: tuple[Any, ...]  # of the stores, which lose rows: `Part`s


def find_places(wanted: Any, versions: Mapping[str, VersionSettings], trained_on: Collection[str]) -> InPlaces:
    """Return what holds a row or was trained on it.

    Args:
        wanted: the row, a `Wanted`.
        versions: data versions, in any order.
        trained_on: those that are known to go on from an arm that was trained on the row.
    """
    from tasks.erasure.parts import find_parts

    arms = list(_find_arms(wanted, versions, trained_on))
    artifacts = list(_find_artifacts(wanted, {Path(one.path) for one in arms}))
    holding = {Path(one.path).parent for one in artifacts}
    later = {version_of(Path(one.path)) for one in arms if one.what == CONTINUED} | set(trained_on)
    pools = {version for version in _list_scratch() if folder("examples", version) in holding}
    trials = list(_find_trials(wanted, arms))
    scratch = [
        *_find_finished(wanted, pools, later),
        *_find_warmups(holding, {Path(one.path) for one in trials}),
        *trials,
        *_find_leftovers(wanted),
        *_find_drafts(Path(one.raw) for one in versions.values()),
    ]
    order = {version: place for place, version in enumerate(_order(versions))}
    made = sorted([*arms, *artifacts], key=lambda one: -order.get(version_of(Path(one.path)), 0))
    return InPlaces((*scratch, *made), tuple(find_parts(CACHE, wanted)))


def remove_place(place: Place) -> None:
    """Delete a file or folder."""
    path = Path(place.path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def version_of(path: Path) -> str:
    """Return the data version that an artifact is of.

    >>> version_of(Path("data/finetuning/version=v1/arms/full-0"))
    'v1'
    """
    return next((part.removeprefix("version=") for part in path.parts if part.startswith("version=")), "")


def _order(versions: Mapping[str, VersionSettings]) -> list[str]:
    """Return versions, what one continues from before it."""
    edges = {name: [version.previous] for name, version in versions.items()}
    return [name for name in in_order(versions, edges) if name in versions]


def _find_arms(wanted: Any, versions: Mapping[str, VersionSettings], trained_on: Collection[str]) -> Iterator[Place]:
    """Yield the arms in the artifacts that were trained on the row, and all of the versions that go on from one."""
    from tasks.erasure.search import holds

    starts: dict[str, bool] = {}  # version -> whether the arm that the next one goes on from was trained on the row
    others = sorted(version_of(path) for path in DATA.glob("finetuning/version=*"))
    for version in dict.fromkeys([*_order(versions), *others]):
        previous = versions[version].previous if version in versions else ""
        later = version in trained_on or starts.get(previous, False)
        found = {}
        for rows in sorted(folder("finetuning", version).glob(f"arms/*/{ROWS}")):
            if later or holds(rows, wanted):
                found[rows.parent.name] = Place("arm", str(rows.parent), CONTINUED if later else TRAINED)
        yield from found.values()
        starts[version] = find_start(path.name for path in folder("finetuning", version).glob("arms/*")) in found


def _find_artifacts(wanted: Any, arms: Collection[Path]) -> Iterator[Place]:
    from tasks.erasure.search import holds

    for path in sorted(DATA.glob("*/version=*/**/*")):
        if path.is_file() and arms.isdisjoint(path.parents) and holds(path, wanted):
            yield Place("artifact", str(path), "names the row")


def _list_scratch() -> list[str]:
    return [path.name for path in sorted((CACHE / "finetuning").glob("*"))]


def _find_finished(wanted: Any, pools: Collection[str], later: Collection[str]) -> Iterator[Place]:
    """Yield finished arms that were trained on the row, and arms in training that may be.

    Args:
        wanted: the row.
        pools: versions whose examples hold it.
        later: versions that go on from an arm that was trained on it.
    """
    from tasks.erasure.search import holds

    for home in sorted((CACHE / "finetuning").glob("*/*")):
        rows, version = home / "finished/weights" / ROWS, home.parent.name
        if version in later:
            yield Place("arm", str(home), CONTINUED)
        elif rows.exists() and holds(rows, wanted):
            yield Place("arm", str(home), TRAINED)
        elif not rows.exists() and version in pools:
            yield Place("arm", str(home), "in training on rows of examples that hold the row")


def _find_warmups(holding: Collection[Path], trials: Collection[Path]) -> Iterator[Place]:
    """Yield the warm-ups of examples that hold the row, of a version or of a trial."""
    for path in sorted((CACHE / "warmup").glob("*")):
        if DATA / "examples" / path.name in holding or TRIALS / "examples" / path.name in trials:
            yield Place("warm-up", str(path), "trained on rows of examples that hold the row")


def _find_trials(wanted: Any, arms: Iterable[Place]) -> Iterator[Place]:
    """Yield the trials that name the row, and those whose arms go on from one that was trained on it."""
    from tasks.erasure.search import holds

    found = {}
    for home in sorted(path for path in TRIALS.glob("*/*") if path.is_dir()):
        if any(path.is_file() and holds(path, wanted) for path in sorted(home.rglob("*"))):
            found[home] = Place("trial", str(home), "names the row")
    starts = {home: _read_start(home) for home in sorted(TRIALS.glob("finetuning/*")) if home not in found}
    bad = _digest_weights([Path(one.path) for one in arms]) if any(starts.values()) else set()
    bad |= _digest_weights([path for home in found for path in home.glob("arms/*")]) if any(starts.values()) else set()
    while late := [home for home, start in starts.items() if home not in found and start & bad]:
        found |= {home: Place("trial", str(home), CONTINUED) for home in late}
        bad |= _digest_weights([path for home in late for path in home.glob("arms/*")])
    yield from found.values()


def _read_start(trial: Path) -> set[str]:
    """Return the digests of the weights that a trial's arms went on from."""
    from tasks.artifacts.tables import read_json

    about = trial / "finetuning.json"
    known = read_json(about)
    return set((known.get("continues_from_digest") or {}).values())


def _digest_weights(arms: Iterable[Path]) -> set[str]:
    from tasks.artifacts.tables import digest

    return {digest(path) for arm in arms for path in arm.glob("*.safetensors")}


def _find_leftovers(wanted: Any) -> Iterator[Place]:
    """Yield what else in `.cache` names the row, such as what a kill left or a look set aside."""
    from tasks.artifacts.stores import KINDS
    from tasks.erasure.search import holds

    inside = [path for path in sorted(CACHE.glob("*")) if path.name not in (*KINDS, *APART) and path != LOCK]
    for path in (one for top in inside for one in ([top] if top.is_file() else sorted(top.rglob("*")))):
        if path.is_file() and holds(path, wanted):
            gone = path.parent if path.name == ROWS else path
            yield Place("leftover", str(gone), "names the row")


def _find_drafts(raws: Iterable[Path]) -> Iterator[Place]:
    """Yield what a kill left in the making: raw files, whatever row they hold, and notes of an erasure."""
    found = {
        *DRAFTS.glob("*"),
        *FETCHED.glob("*"),
        *(path for one in (CLEARING, ERASED) for path in one.parent.glob(f".{one.name}.*.part")),
    }
    for raw in (RAW, *raws):
        home = find_base(raw)
        inside = home.rglob(".*.part") if home.is_dir() else home.parent.glob(f".{glob.escape(home.name)}.*.part")
        found |= {path for path in inside if DRAFT.fullmatch(path.name) and _is_ours(path)}
    for path in sorted(found):
        if found.isdisjoint(path.parents):
            yield Place("leftover", str(path), "what a call that was broken off was writing")


def _is_ours(path: Path) -> bool:
    """Return whether a file lies in the project, which alone is written to."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(Path.cwd()))
