"""Everything that touches DVC: its graph, whether a stage is fresh, restoring it, locking and recording it.

dvc.lock, DVC's cache and its run-cache are the only cache between stages, whoever drives. What is used of DVC's Python
interface is held by tests/flows/graph/test_dvc_state.py; `dvc<4` is pinned.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.lock import LockError as Busy
from dvc.lock import make_lock
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, rwlock
from dvc.scm import NoSCM, SCMError, map_scm_exception
from dvc.stage import Stage
from dvc.stage.cache import RunCacheNotFoundError

from flows.graph import aside
from flows.interrupts import LIMIT, cleaning, whole
from flows.stage import refuse_moved

logging.getLogger("dvc").setLevel(logging.ERROR)  # its notices go to stdout, which is for data
PATIENCE = 3  # seconds that an interrupt waits for what is done under DVC's locks; it may be a long upload

__all__ = ["Busy", "File", "NotReady", "Planned", "Probe", "StateError"]


class StateError(ValueError):
    """DVC cannot read this project, or one of its files."""


class NotReady(StateError):  # noqa: N818
    """A stage's inputs do not exist."""


@dataclass(frozen=True)
class Planned:
    """A stage of the graph."""

    address: str  # name and version, `utility@v1`
    command: str  # what `dvc repro` runs
    upstream: tuple[str, ...]  # addresses of the stages whose artifacts it reads
    inputs: tuple[str, ...]  # paths that it reads
    outputs: tuple[str, ...]  # paths of its artifacts
    about: str  # its description


@dataclass(frozen=True)
class Probe:
    """What DVC knows of a stage before it is run."""

    state: Literal["fresh", "restored", "stale"]  # nothing to do, brought back from the run-cache, or to be computed
    inputs: dict[str, Any]  # digests of files and values of parameters; only where stale


@dataclass(frozen=True)
class File:
    """A recorded artifact, by reference."""

    path: str
    digest: str  # `md5:` and the hash that dvc.lock holds
    size: int  # bytes


def plan(versions: Iterable[str] = ()) -> list[Planned]:
    """Return the graph's stages, what comes first before what reads it; those of some versions with all they need.

    Otherwise version after version: what came of the first one is known before the next is trained.

    Raises:
        StateError: unknown version, or a dvc.yaml that DVC cannot read.
    """
    with opened() as repo:
        graph = repo.index.graph
        edges = {stage.addressing: sorted(up.addressing for up in graph.successors(stage) if up.cmd) for stage in graph}
        stages = {stage.addressing: stage for stage in repo.index.stages if stage.cmd}
        asked = [address for address in stages if not versions or address.partition("@")[2] in set(versions)]
        known = dict.fromkeys(address.partition("@")[2] for address in stages)
        unknown = [version for version in versions if version not in known]
        if unknown:
            raise StateError(f"there is no data version {unknown[0]!r}; params.yaml has {', '.join(known)}")
        place = {version: number for number, version in enumerate(known)}
        asked.sort(key=lambda address: place[address.partition("@")[2]])
        return [_planned(stages[address], edges[address]) for address in in_order(asked, edges) if address in stages]


def probe(address: str) -> Probe:
    """Return whether a stage is fresh, after restoring it from the run-cache where that holds its inputs.

    The artifacts of a stage that is stale stay where they are: `claim` sets them aside. What a kill has left aside is
    put back first.

    Raises:
        NotReady: an input is missing.
        Busy: `dvc repro` is at work on the same paths.
    """
    with opened() as repo:
        stage = _collect(repo, address)
        if not stage.changed() or (aside.put_back(address) and not stage.changed()):
            aside.discard(address)
            return Probe("fresh", {})
        inputs = _inputs(stage)  # must not save them: restore() would take the outputs in dvc.lock for theirs
        with _locked(repo, stage), aside.set_aside(address, _paths(stage)):
            try:
                repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return Probe("stale", inputs)
            _save(stage)
        return Probe("restored", {})


@contextmanager
def claim(address: str) -> Iterator[None]:
    """Hold DVC's own lock on a stage's paths, so that `dvc repro` keeps off them while they are computed.

    The artifacts that stand there are set aside, and put back in the end, unless `record` was called in between.

    Raises:
        Busy: another process holds it.
    """
    with ExitStack() as held:
        with opened() as repo:
            stage = _collect(repo, address)
            held.enter_context(_locked(repo, stage))
        try:
            with cleaning(held.close), aside.set_aside(address, _paths(stage)):
                yield
        finally:
            with whole(LIMIT):
                held.close()


def record(address: str, inputs: dict[str, Any]) -> None:
    """Record a stage's outputs as made from the inputs that were probed: dvc.lock, cache and run-cache.

    Raises:
        InputsChanged: the inputs moved since; nothing is recorded.
    """
    with opened() as repo:
        stage = _collect(repo, address)
        refuse_moved(address, inputs, _inputs(stage))
        missing = [out.def_path for out in stage.outs if not out.exists]
        if missing:
            raise StateError(
                f"{address} ran but did not write {', '.join(missing)}; its command and its outs must agree"
            )
        _save(stage)


def add(path: str) -> list[str]:
    """Put a file or folder that no stage makes into DVC; returns the files that git is to hold in its place.

    Raises:
        StateError: DVC refuses, as git tracks it already.
    """
    with opened() as repo:
        (stage,) = repo.add([path])
        pointer = Path(stage.path)
        held = [pointer, pointer.with_name(".gitignore")]
        return [one.relative_to(repo.root_dir).as_posix() for one in held if one.exists()]


def files(address: str) -> list[File]:
    """Return references to a stage's recorded artifacts."""
    with opened() as repo:
        outs = _collect(repo, address).outs
        return [File(out.def_path, f"md5:{out.hash_info.value}", out.meta.size or 0) for out in outs if out.hash_info]


def tables(revision: str) -> dict[str, Path]:
    """Return where DVC's cache holds each table of a git revision, by the table's path in the project.

    Raises:
        StateError: git knows no such revision, it holds no table, or the cache lacks one.
    """
    with opened() as repo, repo.switch(revision):
        outs = [out for out in repo.index.outs if out.fspath.endswith(".parquet") and out.hash_info]
        found = {out.def_path: Path(out.cache.oid_to_path(out.hash_info.value)) for out in outs}
    if not found:
        raise StateError(f"{revision} holds no tables; name a revision whose dvc.lock records a run")
    missing = [path for path, held in found.items() if not held.exists()]
    if missing:
        raise StateError(
            f"{len(missing)} of {len(found)} tables of {revision} are not in the local cache, "
            f"first {', '.join(missing[:3])}; bring them with `dvc fetch -T` (all tags) or `-A` (all commits)"
        )
    return found


@contextmanager
def at_revision(revision: str) -> Iterator[Path]:
    """Lay the tables of a git revision out as a project has them, by links into DVC's cache; yields that folder."""
    with tempfile.TemporaryDirectory() as folder:
        for path, held in tables(revision).items():
            link = Path(folder) / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(held.absolute())
        yield Path(folder)


def standings(versions: Iterable[str] = ()) -> list[tuple[str, str, str]]:
    """Return for every stage its address, `fresh`, `stale`, `missing`, `running` or `waits`, and why.

    Of some versions with all they need, where any are named. A stage waits whose own inputs have not changed, but
    whose upstream will be computed first.
    """
    found: dict[str, tuple[str, str]] = {}
    for planned in plan(versions):
        state, why = _standing(planned.address)
        upstream = [address for address in planned.upstream if found[address][0] != "fresh"]
        if state == "fresh" and upstream:
            state, why = "waits", f"for {', '.join(upstream)}"
        found[planned.address] = state, why
    return [(address, state, why) for address, (state, why) in found.items()]


def _standing(address: str) -> tuple[str, str]:
    with opened() as repo:
        stage = _collect(repo, address)
        try:
            reasons = [_reason(entry) for entry in stage.status().get(address, [])]
        except Busy:
            return "running", "its paths are locked by a process at work"
        missing = [out.def_path for out in stage.outs if not out.exists]
        if missing:
            return "missing", f"{len(missing)} of {len(stage.outs)} artifacts: {', '.join(missing[:2])}"
        return ("stale", "; ".join(reasons)) if reasons else ("fresh", "")


def without_git(repo: Repo) -> bool:
    """Return whether the project is kept without git (`dvc init --no-scm`)."""
    return isinstance(repo.scm, NoSCM)


def digest(repo: Repo, path: str) -> str | None:
    """Return the digest of a path that some stage reads; None where it is not there."""
    deps = [dep for stage in repo.index.stages for dep in stage.deps if dep.def_path == path and dep.exists]
    return deps[0].get_hash().value if deps else None


def recorded_inputs(repo: Repo, version: str, revision: str) -> dict[str, str]:
    """Return the digests of all files that a version's stages read, by path, as dvc.lock of a git revision has them."""
    with repo.switch(revision):
        stages = [stage for stage in repo.index.stages if stage.cmd and stage.addressing.endswith(f"@{version}")]
        deps = [dep for stage in stages for dep in stage.deps if dep.hash_info and dep.hash_name == "md5"]
    return {dep.def_path: dep.hash_info.value for dep in deps}


def push(repo: Repo, revisions: Iterable[str]) -> None:
    """Push the artifacts of some git revisions to the remote that the project names now.

    By content, and not by `dvc push` of a revision, which reads the remote from that revision's own configuration and
    takes a relative path in there for one from the file system's root.

    Raises:
        OSError: the remote lacks some of them afterwards.
    """
    found: set[Any] = set()
    for revision in revisions:
        with repo.switch(revision):
            outs = [out for out in repo.index.outs if out.hash_info]
            found.update(*(objects for out in outs for objects in out.get_used_objs(push=True).values()))
    repo.cloud.push(found)
    held = repo.cloud.status(found)
    lacking = len(held.missing) + len(held.new)
    if lacking:
        raise OSError(f"{lacking} of {len(found)} files did not reach it")


@contextmanager
def opened() -> Iterator[Repo]:
    """Open the project in the current folder under DVC's repository lock, waiting for it.

    Raises:
        StateError: what DVC or git refuses.
    """
    try:
        with whole(PATIENCE), map_scm_exception(with_cause=True), _open() as repo, lock_repo(repo):
            _mend_locks(repo)
            yield repo
    except Busy:
        raise
    except SCMError as error:
        raise StateError(f"git: {error}") from error
    except DvcException as error:
        raise StateError(f"DVC: {error}") from error


def _open() -> Repo:
    return Repo(".", _wait_for_lock=True)


def _mend_locks(repo: Repo) -> None:
    """Delete DVC's list of locked paths where a kill broke into its writing: whoever locked them is gone."""
    path = Path(repo.tmp_dir, RWLOCK_FILE)
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(path.with_name(RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
        try:
            json.loads(path.read_bytes() if path.exists() else "{}")
        except ValueError:
            path.unlink()


def _collect(repo: Repo, address: str) -> Stage:
    (stage,) = repo.stage.collect(address)
    return stage


def _locked(repo: Repo, stage: Stage) -> AbstractContextManager[None]:
    """Return DVC's own lock on a stage's paths; one process may hold it several times."""
    reads, writes = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
    hardlink = repo.config["core"].get("hardlink_lock", False)
    return rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), reads, writes, hardlink)


def _paths(stage: Stage) -> list[str]:
    return [out.fs_path for out in stage.outs]


def _save(stage: Stage) -> None:
    """Record a stage as it stands: its outputs in the cache and the run-cache, then dvc.lock."""
    stage.save()
    stage.commit()
    with whole(LIMIT):
        stage.dump(update_pipeline=False)
        aside.discard(stage.addressing)


def _inputs(stage: Stage) -> dict[str, Any]:
    """Return the digest of every file and the value of every parameter that a stage depends on, as they are now."""
    missing = [dep.def_path for dep in stage.deps if not dep.exists]
    if missing:
        raise NotReady(
            f"{stage.addressing} cannot run: {len(missing)} of {len(stage.deps)} inputs are missing, "
            f"first {', '.join(missing[:3])}; make them, or bring them back from git or with `dvc pull`"
        )
    found: dict[str, Any] = {}
    for dep in stage.deps:
        value = dep.get_hash().value
        found.update(value if isinstance(value, dict) else {dep.def_path: value})
    return found


def in_order(addresses: Iterable[str], edges: dict[str, list[str]]) -> Iterator[str]:
    """Yield addresses and all that they need, each once and after what it needs, in dvc.yaml's order otherwise."""
    seen: set[str] = set()

    def visit(address: str) -> Iterator[str]:
        if address not in seen:
            seen.add(address)
            for needed in edges.get(address, []):
                yield from visit(needed)
            yield address

    for address in addresses:
        yield from visit(address)


def _planned(stage: Stage, upstream: list[str]) -> Planned:
    inputs, outputs = (tuple(item.def_path for item in items) for items in (stage.deps, stage.outs))
    return Planned(stage.addressing, stage.cmd, tuple(upstream), inputs, outputs, stage.short_description() or "")


def _reason(entry: Any) -> str:
    """Return one entry of DVC's status in words."""
    if isinstance(entry, str):
        return entry
    ((what, places),) = entry.items()
    named = [
        ", ".join(f"{key} {state}" for key, state in how.items()) if isinstance(how, dict) else f"{place} {how}"
        for place, how in places.items()
    ]
    return f"{what}: {', '.join(named)}"
