"""What DVC knows of the stages: whether one is fresh, restoring it, locking and recording it.

dvc.lock, DVC's cache and its run-cache are the only cache between stages, whoever drives. Of a version's stages its own
copy of dvc.yaml is read (flows/graph/dvc_files.py) and its own dvc.lock written, so none of this grows with the number
of versions. What is used of DVC's Python interface is held by tests/flows/graph/test_dvc_state.py; `dvc<4` is pinned.
"""

import logging
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.lock import LockError as Busy
from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.scm import NoSCM, SCMError, map_scm_exception
from dvc.stage import Stage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_lockfile
from dvc.ui import colorama
from scmrepo.exceptions import SCMError as GitError

from flows import model_records, params
from flows.graph import aside, dvc_files, dvc_locks
from flows.graph.stages import GRAPH, PARAMS, Planned, in_order, read_graph, read_of_others
from flows.interrupts import LIMIT, cleaning, whole
from flows.stage import refuse_moved, say

logging.getLogger("dvc").setLevel(logging.ERROR)  # its notices go to stdout, which is for data
colorama.deinit()  # by which DVC takes control characters out of what is written to a pipe, which may be data
WHOLE = "all"  # the one stage of dvc.yaml that is of no version
PATIENCE = 3  # seconds that an interrupt waits for what is done under DVC's locks; it may be a long upload

__all__ = ["Busy", "File", "GitError", "NotReady", "Planned", "Probe", "StateError"]


class StateError(ValueError):
    """DVC cannot read this project, or one of its files."""


class NotReady(StateError):  # noqa: N818
    """A stage's inputs do not exist."""


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
    """Return the stages of some data versions (all, where none is named), what comes first before what reads it.

    Version after version: what came of the first one is known before the next is trained. A version that they continue
    from and that is not named is taken as it was recorded; where the artifacts that are read of it are not as recorded,
    its stages are planned, too. The copies of dvc.yaml that DVC reads, and the records of the models, are brought up to
    date first.

    Raises:
        StateError: unknown version, or a dvc.yaml that DVC cannot read.
        ParamsError: params.yaml or dvc.yaml cannot be used.
    """
    from flows.graph import revisions  # which stands on this module

    prepare()
    graph = read_graph()
    known = dict.fromkeys(one.version for one in graph.values())
    unknown = [version for version in versions if version not in known]
    if unknown:
        raise StateError(f"there is no data version {unknown[0]!r}; params.yaml has {', '.join(known)}")
    chosen = set(versions or known)
    before = {graph[up].version for one in graph.values() if one.version in chosen for up in one.upstream}
    revisions.mend_lock_files(chosen | before)
    while lacking := _find_lacking(read_of_others(graph, chosen)):
        chosen |= {graph[address].version for address in lacking}
    asked = [one.address for version in known if version in chosen for one in graph.values() if one.version == version]
    edges = {address: one.upstream for address, one in graph.items()}
    return [graph[address] for address in in_order(asked, edges) if graph[address].version in chosen]


def prepare() -> None:
    """Bring what stands for params.yaml and for the models up to date: DVC's copies of the graph, the models' records.

    Raises:
        ParamsError: params.yaml or dvc.yaml cannot be used.
        ModelError: a model cannot be found, and nothing is recorded of it.
    """
    dvc_files.write_copies()
    models = params.load(Path(PARAMS)).get("models")
    if models:
        model_records.write(models)


def _find_lacking(read: Mapping[str, Container[str]]) -> list[str]:
    """Return the stages of which some artifacts, by stage, do not stand as dvc.lock has them."""
    with opened() as repo:
        stages = _load(repo, read)
        outs = {address: [out for out in stages[address].outs if out.def_path in read[address]] for address in read}
        return [address for address, some in outs.items() if not all(map(_stands, some))]


def _stands(out: Any) -> bool:
    return bool(out.hash_info and out.exists and not out.changed_checksum())


def list_outdated(planned: Iterable[Planned]) -> dict[str, str]:
    """Return the versions that planned stages read of and that are taken as recorded though not up to date, and why."""
    planned = list(planned)
    read = {address.partition("@")[2] for one in planned for address in one.upstream}
    taken = read - {one.version for one in planned}
    found: dict[str, str] = {}
    for address, state, why in standings(one for one in read_graph().values() if one.version in taken):
        if state != "fresh":
            found.setdefault(address.partition("@")[2], f"{address}: {why}")
    return found


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
                restored = _restore(repo, stage)
            except RunCacheNotFoundError:
                return Probe("stale", inputs)
            damaged = _drop_damaged(repo, restored)
            if damaged:
                say(f"{address:<16} DVC's cache had {', '.join(damaged[:3])} damaged: it is made again")
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


def record_whole() -> None:
    """Record that `all` of dvc.yaml has nothing to do: what it reads stands as the versions' stages have made it."""
    with opened() as repo:
        stage = repo.stage.load_one(GRAPH, WHOLE)
        if stage.changed() and all(dep.exists for dep in stage.deps):
            stage.save()
            with whole(LIMIT):
                dvc_files.record(Path(stage.path).with_suffix(".lock"), to_lockfile(stage))


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
    return list_files([address])[address]


def list_files(addresses: Iterable[str]) -> dict[str, list[File]]:
    """Return references to the recorded artifacts of stages, by stage."""
    with opened() as repo:
        stages = _load(repo, addresses := list(addresses))
        outs = {address: [out for out in stages[address].outs if out.hash_info] for address in addresses}
        return {
            address: [File(out.def_path, f"md5:{out.hash_info.value}", out.meta.size or 0) for out in some]
            for address, some in outs.items()
        }


def standings(planned: Iterable[Planned]) -> list[tuple[str, str, str]]:
    """Return for every planned stage its address, `fresh`, `stale`, `missing`, `running` or `waits`, and why.

    A stage waits whose own inputs have not changed, but whose upstream will be computed first.
    """
    found: dict[str, tuple[str, str]] = {}
    planned = list(planned)
    with opened() as repo:
        stages = _load(repo, [one.address for one in planned])
        for one in planned:
            state, why = _standing(stages[one.address])
            upstream = [address for address in one.upstream if address in found and found[address][0] != "fresh"]
            if state == "fresh" and upstream:
                state, why = "waits", f"for {', '.join(upstream)}"
            found[one.address] = state, why
    return [(address, state, why) for address, (state, why) in found.items()]


def _standing(stage: Stage) -> tuple[str, str]:
    try:
        reasons = [_reason(entry) for entry in stage.status().get(stage.addressing, [])]
    except Busy:
        return "running", "its paths are locked by a process at work"
    missing = [out.def_path for out in stage.outs if not out.exists]
    if missing:
        return "missing", f"{len(missing)} of {len(stage.outs)} artifacts: {', '.join(missing[:2])}"
    if not any(out.hash_info for out in stage.outs):  # DVC then calls every file that the stage reads modified
        return "stale", "dvc.lock does not record it; `tamis verify` says whether git does"
    return ("stale", "; ".join(reasons)) if reasons else ("fresh", "")


def without_git(repo: Repo) -> bool:
    """Return whether the project is kept without git (`dvc init --no-scm`)."""
    return isinstance(repo.scm, NoSCM)


@contextmanager
def opened() -> Iterator[Repo]:
    """Open the project in the current folder under DVC's repository lock, waiting for it.

    Raises:
        StateError: what DVC or git refuses.
    """
    try:
        with whole(PATIENCE), map_scm_exception(with_cause=True), dvc_locks.held(dvc_locks.open_project()) as repo:
            yield repo
    except Busy:
        raise
    except (SCMError, DvcException, *dvc_locks.UNREADABLE) as error:
        raise StateError(dvc_locks.explain(error)) from error


def _restore(repo: Repo, stage: Stage) -> Stage:
    """Bring a stage's artifacts back from DVC's cache; returns it with those as it was recorded with these inputs.

    Raises:
        RunCacheNotFoundError: it was not recorded with these inputs, or the cache lacks an artifact.
    """
    cache, made = repo.stage_cache, []
    create = cache._create_stage  # which restore() calls once, and keeps to itself
    cache._create_stage = lambda *given, **named: made.append(create(*given, **named)) or made[-1]
    try:
        cache.restore(stage)
    finally:
        del cache._create_stage
    return made[-1]


def _drop_damaged(repo: Repo, stage: Stage) -> list[str]:
    """Return the artifacts that came out of DVC's cache other than they were recorded, and remove them from there.

    DVC takes a file of the right name in its cache for the right file.
    """
    found = []
    for out in (out for out in stage.outs if out.use_cache and out.hash_info):
        if out.hash_info.isdir:
            files = {Path(out.fs_path, *key): info.value for key, _, info in out.get_obj()}
        else:
            files = {Path(out.fs_path): out.hash_info.value}
        for path, wanted in files.items():
            if dvc_files.digest(path) != wanted:
                found.append(os.path.relpath(path))
                Path(repo.cache.local.oid_to_path(wanted)).unlink(missing_ok=True)
    return found


def _load(repo: Repo, addresses: Iterable[str]) -> dict[str, Stage]:
    """Return all stages of the versions that some are of, by their addresses; a version's files are read once."""
    versions = dict.fromkeys(address.partition("@")[2] for address in addresses)
    places = [os.fspath(dvc_files.place(version)) for version in versions]
    return {stage.name: stage for place in places for stage in repo.stage.load_all(place)}


def _collect(repo: Repo, address: str) -> Stage:
    return repo.stage.load_one(os.fspath(dvc_files.place(address.partition("@")[2])), address)


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
        dvc_files.record(Path(stage.path).with_suffix(".lock"), to_lockfile(stage))
        aside.discard(stage.name)


def _inputs(stage: Stage) -> dict[str, Any]:
    """Return the digest of every file and the value of every parameter that a stage depends on, as they are now."""
    missing = [dep.def_path for dep in stage.deps if not dep.exists]
    if missing:
        raise NotReady(
            f"{stage.name} cannot run: {len(missing)} of {len(stage.deps)} inputs are missing, "
            f"first {', '.join(missing[:3])}; make them, or bring them back from git or with `dvc pull`"
        )
    found: dict[str, Any] = {}
    for dep in stage.deps:
        value = dep.get_hash().value
        found.update(value if isinstance(value, dict) else {dep.def_path: value})
    return found


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
