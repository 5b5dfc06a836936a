"""What DVC keeps of an erased row: objects of its cache and of the remote, and the git revisions that name them.

An object is a file by its digest. It is doomed where it names the row, or is a raw file with it; where it is part of an
arm that was trained on the row, or on from such an arm, as the records of stage finetuning tell; and where it is DVC's
list of a folder that has such a file. What tells of others goes last, so that after a crash the next call finds the
rest.
"""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.graph import dvc_files, dvc_state, revisions
from flows.graph.versions import refusal_of, tag_of
from flows.stage_calls import CACHE, RAW
from tasks.examples.settings import ExamplesSettings

DRAFTS = CACHE / "erasing"  # raw files in the making, and copies that are only read
ARMS, ROWS = "/arms", "rows.json"
STARTS = {b"{": "raw.jsonl", b"[": "raw.json", b"PAR1": "raw.parquet"}  # names of raw files that nothing names any more

Arms = Mapping[str, Mapping[str, str]]  # arm -> file in its folder -> digest


class ErasingError(ValueError):
    """A row cannot be erased."""


@dataclass(frozen=True)
class Entry:
    """What DVC has recorded of one run of a stage, or of files that no stage makes."""

    revision: str | None  # of git; None: now; "": in DVC's run-cache
    file: str  # that records it
    stage: str  # its name; "" of files that no stage makes
    version: str
    read: Mapping[str, str]  # path -> digest
    made: Mapping[str, str]


@dataclass(frozen=True)
class InDvc:
    """What DVC keeps of a row."""

    objects: Mapping[str, str]  # digest -> what it is; in the order in which they can go
    here: Mapping[str, str]  # of these, what the cache of this clone has, and where
    remote: Mapping[str, str]  # likewise of the remote
    unseen: int  # other objects that the remote has and this clone has not, so that nobody has looked into them
    revisions: tuple[tuple[str, str, int], ...]  # revision, file that records objects, how many of these
    trained_on: frozenset[str]  # versions that continue from an arm that was trained on the row
    pointed: frozenset[tuple[str, Path]]  # revisions, and raw files with the row that a .dvc file stands for there
    lost: frozenset[tuple[str, Path]]  # likewise raw files or folders that are nowhere any more, and other ones now


def find_kept(wanted: Any, settings: ExamplesSettings) -> InDvc:
    """Return what DVC's cache and the remote keep of a row, and which git revisions name it.

    Args:
        wanted: the row, a `Wanted`.
        settings: how raw rows are read.

    Raises:
        ErasingError: the remote cannot be asked.
        LockError: a file that DVC keeps is damaged.
        StateError: DVC cannot open the project.
    """
    with dvc_state.opened() as repo:
        objects, entries = list_objects(), list(_read_entries(repo))
        listings = {name: dvc_files.read_listing(path) for name, path in objects.items() if name.endswith(".dir")}
        names = _name_objects(entries, listings)
        raw = {digest: name for digest, (name, stage) in names.items() if not stage}
        held = set(_find_held(objects, raw, names, wanted, settings))
        arms = {name: _group_arms(files) for name, files in listings.items()}
        trained = find_trained(arms, held, entries)
        doomed = doom(arms, trained, held, listings)
        told = {digest: names.get(digest, ("of an earlier state", ""))[0] for digest in _order(doomed, names)}
        named = {digest for entry in entries for digest in entry.made.values()} | set(names)
        there = _ask_remote(repo, named | doomed)
        return InDvc(
            told,
            {digest: str(objects[digest]) for digest in told if digest in objects},
            {digest: there[digest] for digest in told if digest in there},
            len(there.keys() - doomed - objects.keys()),
            tuple(_count_named(entries, doomed)),
            frozenset(one.version for one in entries if one.revision is None and _goes_on(one, arms, trained)),
            frozenset(_list_pointed(entries, held, listings)),
            frozenset(_list_lost(entries, objects.keys() | there.keys())),
        )


def list_objects() -> dict[str, Path]:
    """Return the files of DVC's cache by their digests."""
    with dvc_state.opened() as repo:
        cache = Path(os.path.relpath(repo.cache.local.path))
    found = sorted(cache.glob("??/*"))
    return {path.parent.name + path.name: path for path in found}


def remove_objects(kept: InDvc) -> None:
    """Delete the objects that hold a row, first from the remote, by which a later call still finds them here.

    Raises:
        ErasingError: the remote refuses; the objects are still in the cache, and the next call tries again.
    """
    with dvc_state.opened() as repo:
        places = list_objects()
        for digest in kept.objects:
            if digest in kept.remote:
                _remove_there(repo, digest)
        for digest in kept.objects:
            if digest in places:
                places[digest].chmod(0o644)
                places[digest].unlink()


def find_trained(arms: Mapping[str, Arms], held: set[str], entries: Iterable[Entry]) -> dict[str, set[str]]:
    """Return by DVC's list of a folder of arms which of them were trained on a row, or on from an arm that was.

    Args:
        arms: of each list.
        held: digests of the files that name the row.
        entries: what was recorded.
    """
    found = {name: {arm for arm, files in one.items() if files[ROWS] in held} for name, one in arms.items()}
    steps = [entry for entry in entries if entry.stage == "finetuning"]
    while True:
        more = {_find_arms(one.made) for one in steps if _goes_on(one, arms, found)} & arms.keys()
        late = [name for name in more if found[name] != set(arms[name])]
        if not late:
            return found
        found |= {name: set(arms[name]) for name in late}


def doom(
    arms: Mapping[str, Arms],
    trained: Mapping[str, set[str]],
    held: set[str],
    listings: Mapping[str, Mapping[str, str]],
) -> set[str]:
    """Return the digests of all that must go; what a sound arm has alike, such as a configuration, stays.

    Args:
        arms: of each list of a folder.
        trained: which of them were trained on the row.
        held: digests of the files that name the row.
        listings: files of each list.
    """
    bad, good = set(), set()
    for name, one in arms.items():
        for arm, files in one.items():
            (bad if arm in trained[name] else good).update(files.values())
    doomed = held | (bad - good)
    return doomed | {name for name, files in listings.items() if doomed & set(files.values())}


def find_start(labels: Iterable[str]) -> str | None:
    """Return the arm that the next version goes on from: the chosen one of the lowest seed.

    >>> find_start(["random-0", "chosen-10", "chosen-2"])
    'chosen-2'
    """
    chosen = [label for label in labels if label.startswith("chosen-")]
    return min(chosen, key=lambda label: int(label.rsplit("-", 1)[1]), default=None)


def _goes_on(entry: Entry, arms: Mapping[str, Arms], trained: Mapping[str, set[str]]) -> bool:
    """Return whether a recorded training went on from an arm that was trained on the row."""
    start = _find_arms(entry.read)
    return entry.stage == "finetuning" and start in arms and find_start(arms[start]) in trained[start]


def _find_arms(files: Mapping[str, str]) -> str:
    return next((digest for path, digest in files.items() if path.endswith(ARMS)), "")


def _group_arms(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the arms that a list of a folder has, each with its files; none where it is no folder of arms."""
    found: dict[str, dict[str, str]] = {}
    for path, digest in files.items():
        arm, _, inside = path.partition("/")
        found.setdefault(arm, {})[inside] = digest
    return {arm: inside for arm, inside in found.items() if ROWS in inside}


def _name_objects(entries: Iterable[Entry], listings: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """Return what objects are, by their digests: a path in the project, and the stage that made it; "" where none."""
    found = {}
    for entry in entries:
        for path, digest in entry.made.items():
            found[digest] = path, entry.stage
            inside = listings.get(digest, {})
            found |= {one: (f"{path}/{name}", entry.stage) for name, one in inside.items()}
    return found


def _find_held(
    objects: Mapping[str, Path],
    raw: Mapping[str, str],
    names: Mapping[str, Any],
    wanted: Any,
    settings: ExamplesSettings,
) -> Iterator[str]:
    """Yield the digests of objects that name the row, or are raw files with it."""
    from tasks.erasure.raw_rows import find_in_file
    from tasks.erasure.search import holds

    for digest, path in objects.items():
        if digest.endswith(".dir"):
            continue
        name = raw.get(digest) or ("" if digest in names else _guess_name(path))
        with _as_named(path, Path(name).name) as place:
            if holds(path, wanted) or (name and find_in_file(place, Path(name).name, settings, wanted, cut=wanted.cut)):
                yield digest


def _guess_name(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    return next((name for first, name in STARTS.items() if start.startswith(first)), "")


@contextmanager
def _as_named(path: Path, name: str) -> Iterator[Path]:
    """Yield a link to an object under a name that tells how it is read; the object itself where there is no name."""
    if not name:
        yield path
        return
    with open_draft(name) as link:
        link.symlink_to(path.absolute())
        yield link


@contextmanager
def open_draft(name: str) -> Iterator[Path]:
    """Yield a path of this name in a folder of its own, which goes again; where a kill leaves it, the next call looks.

    So no raw row lies where nobody would look for it.
    """
    DRAFTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DRAFTS) as folder:
        yield Path(folder) / name


def _order(doomed: set[str], names: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return digests in the order in which they can go: what tells of others last."""

    def rank(digest: str) -> tuple[int, str]:
        tells = names.get(digest, ("", ""))[0].endswith(f"/{ROWS}")
        return (2 if digest.endswith(".dir") else int(tells)), digest

    return sorted(doomed, key=rank)


def _count_named(entries: Iterable[Entry], doomed: set[str]) -> Iterator[tuple[str, str, int]]:
    """Yield the git revisions and files there that record doomed objects, and how many."""
    found: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        if entry.revision:
            found.setdefault((entry.revision, entry.file), set()).update(doomed & set(entry.made.values()))
    yield from ((*place, len(digests)) for place, digests in sorted(found.items()) if digests)


def _list_pointed(
    entries: Iterable[Entry], held: set[str], listings: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Path]]:
    """Yield the git revisions and the files with the row that .dvc files stand for there."""
    for revision, path, digest in _list_raw(entries):
        inside = listings.get(digest, {"": digest})
        yield from ((revision, Path(path) / name) for name, each in inside.items() if revision and each in held)


def _list_lost(entries: Iterable[Entry], there: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Yield the git revisions and paths of raw data that neither this clone nor the remote has, and which differ now.

    Of an erased row, whose objects are gone, this alone tells which versions read it.
    """
    found = list(_list_raw(entries))
    now = {path: digest for revision, path, digest in found if revision is None}
    for revision, path, digest in found:
        if revision and digest not in there and now.get(path, digest) != digest:
            yield revision, Path(path)


def _list_raw(entries: Iterable[Entry]) -> Iterator[tuple[str | None, str, str]]:
    """Yield what .dvc files stand for: git revision, None for now; path; digest."""
    for one in entries:
        if not one.stage and one.revision != "":
            yield from ((one.revision, path, digest) for path, digest in one.made.items())


def _read_entries(repo: Any) -> Iterator[Entry]:
    """Yield what DVC has recorded: now, at the tags of recorded and of refused versions and the last commit, and in
    its run-cache."""
    for path in sorted(dvc_files.FOLDER.glob("*/dvc.lock")):
        yield from _read_stages(None, str(path), dvc_files.read(path))
    for path in sorted(RAW.rglob("*.dvc")):
        yield _read_pointer(None, str(path), dvc_files.read(path))
    if not dvc_state.without_git(repo) and not repo.scm.no_commits:
        tags = [tag for tag in repo.scm.list_tags() if tag.startswith((tag_of(""), refusal_of("")))]
        for revision in [*sorted(tags), "HEAD"]:
            for version in revisions.list_versions(repo, revision):
                text = revisions.read_lock(repo, version, revision)
                yield from _read_stages(revision, str(dvc_files.place_lock(version)), text)
            for place, text in revisions.list_pointers(repo, RAW, revision).items():
                yield _read_pointer(revision, place, text)
    yield from _read_run_cache(Path(repo.stage_cache.cache_dir))


def _read_stages(revision: str | None, file: str, text: str) -> Iterator[Entry]:
    for address, read, made in _parse_stages(text):
        stage, _, version = address.partition("@")
        yield Entry(revision, file, stage, version, read, made)


@lru_cache(maxsize=1024)
def _parse_stages(text: str) -> tuple[tuple[str, Mapping[str, str], Mapping[str, str]], ...]:
    """Return address, inputs and outputs of the stages in a dvc.lock, which is alike at most revisions."""
    found = dvc_files.parse_lock(text)
    return tuple((name, _digest_paths(one, "deps"), _digest_paths(one, "outs")) for name, one in found.items())


def _read_pointer(revision: str | None, file: str, text: str) -> Entry:
    """Return what a .dvc file stands for, by its path in the project."""
    made = _digest_paths(dvc_files.parse_file(text), "outs")
    return Entry(revision, file, "", "", {}, {str(Path(file).parent / name): made[name] for name in made})


def _read_run_cache(folder: Path) -> Iterator[Entry]:
    """Yield the runs that DVC can restore; a file that cannot be read is none to DVC either, which deletes it."""
    for path in sorted(folder.glob("??/*/*")):
        try:
            one = dvc_files.parse_file(dvc_files.read(path))
        except dvc_files.LockError:
            continue
        stage, version = ["", "", *str(one.get("cmd")).split()][-2:]
        yield Entry("", str(path), stage, version, _digest_paths(one, "deps"), _digest_paths(one, "outs"))


def _digest_paths(one: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {item["path"]: item["md5"] for item in one.get(kind) or () if "md5" in item}


def _ask_remote(repo: Any, digests: Iterable[str]) -> dict[str, str]:
    """Return which objects the remote has, and where; none where there is no remote."""
    if not repo.config["core"].get("remote"):
        return {}
    with _telling(repo, "cannot be asked, so nothing was changed"):
        remote = repo.cloud.get_remote_odb()
        return {digest: remote.oid_to_path(digest) for digest in remote.oids_exist(sorted(digests))}


def _remove_there(repo: Any, digest: str) -> None:
    with _telling(repo, "does not delete the row's objects; what was not deleted there is still in DVC's cache"):
        remote = repo.cloud.get_remote_odb()
        remote.fs.remove(remote.oid_to_path(digest))


@contextmanager
def _telling(repo: Any, what: str) -> Iterator[None]:
    """Say of which remote an error is, whatever its library raises."""
    try:
        yield
    except Exception as error:  # a remote's library raises what it likes
        raise ErasingError(
            f"the DVC remote {repo.config['core']['remote']!r} {what} ({type(error).__name__}: {error}); mend it and "
            "call again"
        ) from error
