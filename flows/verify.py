"""Everything that is kept, read again and held against what was recorded of it; what can be mended is mended.

DVC's cache: a file's name is the digest of its content. Artifacts: dvc.lock of each version says what they are; one
that is not is brought back from the cache, or set aside so that the next run makes it anew. Parts of the stores and
finished arms carry their own digests; damaged ones are set aside or removed, and computed again when they are wanted.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows import erasing, erasing_places, params, undoing
from flows.drive import alone
from flows.graph import aside, dvc_files, dvc_state, revisions
from flows.stage import format_error
from flows.stage_calls import CACHE, ERASED
from tasks.approvals import APPROVALS, read_approvals
from tasks.artifacts import stores
from tasks.artifacts.tables import ArtifactError, find_in_way, replacing, tell_folder
from tasks.decisions import FOLDER, NAME, read_decisions
from tasks.erasure.record import read_erased
from tasks.finetuning.finished import find_damaged_arms

ASIDE = CACHE / "damaged"  # artifacts that could not be brought back
ENDED = (ArtifactError, erasing.ErasingError)  # what reading a small file that is damaged ends with


@dataclass(frozen=True)
class Finding:
    """Something that is not what was recorded of it."""

    kind: str  # cache | artifact | store | arm | lock | approvals | erased | decisions | notes
    path: str
    problem: str  # damaged | missing
    done: str  # what was done about it
    mended: bool  # whether nothing is left to do


@dataclass(frozen=True)
class Verified:
    """What a look at everything found."""

    looked_at: Mapping[str, int]  # kind -> how many
    findings: tuple[Finding, ...]


@alone()
def verify() -> Verified:
    """Look at DVC's cache, at the artifacts of every version, at the stores and at finished arms, between two runs.

    Raises:
        StateError: DVC cannot open the project.
    """
    with dvc_state.opened() as repo:
        cache = Path(repo.cache.local.path)
        objects, findings = check_cache(cache)
        wanted, inputs, unreadable = read_records()
        findings += [*unreadable, *find_cut_records(repo), *check_erased(inputs)]
        findings += [one for path, digest in wanted.items() for one in check_artifact(Path(path), digest, cache)]
    looked_at = {"cache": objects, "artifact": len(wanted)}
    with stores.upkeep(CACHE):
        parts, damaged = check_stores()
        arms, broken = find_damaged_arms(CACHE)
        for home in broken:
            shutil.rmtree(home)
    findings += [*damaged, *check_words(), *check_notes()]
    findings += [Finding("arm", str(home), "damaged", "removed: the arm is trained again", True) for home in broken]
    return Verified(looked_at | {"store": parts, "arm": arms}, tuple(findings))


def check_cache(cache: Path) -> tuple[int, list[Finding]]:
    """Return how many files DVC's cache has, and the damaged ones, which are removed."""
    count, found = 0, []
    for path in sorted(cache.glob("??/*")):
        count += 1
        if not path.is_file():
            found.append(Finding("cache", str(path), "damaged", tell_folder(path), False))
        elif dvc_files.digest(path) != (path.parent.name + path.name).removesuffix(".dir"):
            path.chmod(0o644)
            path.unlink()
            found.append(Finding("cache", str(path), "damaged", "removed", True))
    return count, found


def read_records() -> tuple[dict[str, str], set[str], list[Finding]]:
    """Return what the dvc.lock files record, and those that cannot be read.

    Returns:
        The digest of every artifact, by path; the paths of what people give; the lock files that are damaged.
    """
    wanted: dict[str, str] = {}
    inputs: set[str] = set()
    unreadable = []
    for path in sorted(dvc_files.FOLDER.glob("*/dvc.lock")):
        try:
            text = dvc_files.read(path)
            wanted |= dvc_files.list_outs(text)
            inputs |= dvc_files.list_inputs(text).keys()
        except dvc_files.LockError as error:
            told = f"{error}; the next `tamis run` brings it back from git"
            unreadable.append(Finding("lock", str(path), "damaged", told, False))
    return wanted, inputs, unreadable


def check_erased(inputs: Collection[str]) -> Iterator[Finding]:
    """Yield that the list of erased rows is not there, though a stage has read it: no such list is an empty one.

    Args:
        inputs: paths that the dvc.lock files record.
    """
    if ERASED.as_posix() in inputs and not ERASED.exists():
        link = os.path.lexists(ERASED)
        told = tell_folder(ERASED) if link else f"`git checkout {ERASED}` brings it back; until then no stage runs"
        yield Finding("erased", str(ERASED), "damaged" if link else "missing", told, False)


def find_cut_records(repo: Any) -> Iterator[Finding]:
    """Yield the dvc.lock files that can be read and lack stages which the last commit has."""
    if dvc_state.without_git(repo) or repo.scm.no_commits:
        return
    for version in params.load(Path("params.yaml")).get("versions") or {}:
        path = dvc_files.place_lock(version)
        try:
            kept = dvc_files.parse_lock(revisions.read_lock(repo, version, "HEAD"))
            here = dvc_files.parse_lock(dvc_files.read(path)) if path.exists() else {}
        except (dvc_files.LockError, UnicodeDecodeError):
            continue  # `read_records` tells of it
        lost = sorted(kept.keys() - here.keys())
        if lost:
            told = f"lacks {len(lost)} of {len(kept)} stages that git has, first {lost[0]}: `git checkout {path}`"
            yield Finding("lock", str(path), "damaged" if path.exists() else "missing", told, False)


def check_words() -> Iterator[Finding]:
    """Yield what is wrong with the records of what people said: approvals, erased rows, decisions on rows."""
    records: list[tuple[str, Path, Callable[[], Any]]] = [
        ("approvals", APPROVALS, lambda: read_approvals(Path("."))),
        ("erased", ERASED, lambda: read_erased(ERASED)),
    ]
    records += [("decisions", path, partial(read_decisions, path)) for path in sorted(FOLDER.glob(f"*/{NAME}"))]
    for kind, path, read in records:
        yield from _try_reading(kind, path, read)


def check_notes() -> Iterator[Finding]:
    """Yield what is wrong with the notes that the next command needs to take back what a kill left half done."""
    yield from _try_reading("notes", undoing.NOTES, undoing.read_notes)
    yield from _try_reading("notes", erasing_places.CLEARING, erasing.read_clearing)
    for path in sorted(aside.ASIDE.glob(f"*/{aside.PLACES}")):
        yield from _try_reading("notes", path, partial(aside.read_places, path.parent.name))


def _try_reading(kind: str, path: Path, read: Callable[[], Any]) -> Iterator[Finding]:
    try:
        read()
    except ENDED as error:
        yield Finding(kind, str(path), "damaged", str(error), False)


def check_artifact(path: Path, wanted: str, cache: Path) -> Iterator[Finding]:
    """Yield what was wrong with an artifact; it is brought back from the cache, or the cache is filled from it.

    Args:
        path: of the artifact, a file or a folder.
        wanted: its digest; of a folder, that of DVC's list of its files.
        cache: the folder of files by digest in DVC's cache.
    """
    if not wanted.endswith(".dir"):
        yield from _check_file(path, wanted, cache)
        return
    listing = dvc_files.place_object(cache, wanted)
    if not listing.is_file():
        done = f"DVC's list of its files is gone: `dvc fetch {path}` has it where it was pushed, else `tamis run`"
        yield Finding("artifact", str(path), "unknown", done, False)
        return
    for name, md5 in dvc_files.read_listing(listing).items():
        yield from _check_file(path / name, md5, cache)


def _check_file(path: Path, wanted: str, cache: Path) -> Iterator[Finding]:
    kept, sound = dvc_files.place_object(cache, wanted), path.is_file() and dvc_files.digest(path) == wanted
    problem = "damaged" if path.exists() else "missing"
    try:
        if sound and not os.path.lexists(kept):
            _copy(path, kept)
            kept.chmod(0o444)
            yield Finding("cache", str(kept), "missing", f"copied from {path}", True)
        elif not sound and kept.is_file():
            aside = _set_aside(path if path.is_dir() else find_in_way(path))
            _copy(kept, path)
            yield Finding("artifact", str(path), problem, f"{aside}brought back from DVC's cache", True)
        elif not sound:
            done = f"{_set_aside(path)}`tamis run` makes it anew, or `dvc fetch` has it"
            yield Finding("artifact", str(path), problem, done, False)
    except (ArtifactError, OSError) as error:
        yield Finding("artifact", str(path), problem, format_error(error), False)


def check_stores() -> tuple[int, list[Finding]]:
    """Return how many parts the stores have, and the damaged ones, which are set aside."""
    count, found = 0, []
    for folder in stores.list_folders(CACHE):
        before = set(folder.glob(stores.PARTS))
        count += len(before)
        with warnings.catch_warnings(action="ignore"):
            stores.check_parts(folder)
        try:
            stores.read_about(folder / stores.ABOUT)
        except stores.StoreError:
            found.append(_remove_about(folder / stores.ABOUT))
        for path in sorted(before - set(folder.glob(stores.PARTS))):
            found.append(Finding("store", str(path), "damaged", "set aside: what it held is computed again", True))
    return count, found


def _remove_about(path: Path) -> Finding:
    """Remove what a store says of itself, unless it is a folder, which is nothing of ours."""
    if path.is_dir():
        return Finding("store", str(path), "damaged", tell_folder(path), False)
    path.unlink()
    return Finding("store", str(path), "damaged", "removed: the next run that uses this folder writes it again", True)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _set_aside(path: Path | None) -> str:
    """Move what stands in an artifact's place, or in its way, so that nobody takes it for what was recorded."""
    if path is None or not path.exists():
        return ""
    target = ASIDE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    os.replace(path, target)
    return f"set aside as {target}; "
