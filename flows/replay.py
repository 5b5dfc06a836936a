"""A recorded version run again from its record alone, in a clone with caches of its own, and held against the record.

clone the project at the revision, with no mirror and a cache of its own
-> bring raw data and the version before out of DVC's cache -> see that the models are those that were recorded
-> forget what is recorded of the version -> `tamis run` there, by the code of that revision
-> compare every artifact with its record; where one differs, say by how much
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import model_records, params
from flows.environment import tell_other_libraries
from flows.graph import dvc_files, dvc_state, revisions
from flows.graph.versions import tag_of
from flows.scratch import REPLAY_LOCK, REPLAYS
from flows.stage import RUN, say
from tasks.artifacts.locks import locked
from tasks.model_files import describe

SAME, ROUNDED, OTHER = "as recorded", "but for rounding", "otherwise"


class ReplayError(ValueError):
    """A version cannot be run again."""


@dataclass(frozen=True)
class Replayed:
    """An artifact of a version that was run again."""

    path: str
    came: str  # SAME, ROUNDED or OTHER
    difference: str  # how much its numbers differ, where they do


def replay(version: str, revision: str | None = None) -> list[Replayed]:
    """Run a recorded version again and return what became of each of its artifacts, in the order of its record.

    Nothing of the project is changed, and nothing that it keeps of earlier computations is used. What the recorded run
    found computed, in packs of other rows, may so come out otherwise by rounding.

    Args:
        version: its name.
        revision: of git, at which it is recorded; None: its tag.

    Raises:
        ReplayError: nothing is recorded there, the run fails, or what it reads is not in DVC's cache or no path of a
            clone leads there.
        StateError: git knows no such revision.
    """
    with dvc_state.opened() as repo:
        if revision is None and tag_of(version) not in repo.scm.list_tags():
            raise ReplayError(f"{version} is not recorded; `tamis continue` records it, or name a --revision")
        revision = revision or tag_of(version)
        recorded = dvc_files.parse_lock(revisions.read_lock(repo, version, revision))
        commit = revisions.resolve(repo, revision)  # in the clone the name may stand for nothing
        inside, home = Path(repo.root_dir).relative_to(repo.scm.root_dir), Path(repo.scm.root_dir)
        cache = Path(repo.cache.local.path)  # <cache>/files/md5
    if not recorded:
        raise ReplayError(f"{revision} records no run of {version}; `tamis continue` records one, or name a --revision")
    with _cloned(home, commit) as clone:
        project = clone / inside
        set_apart(project)
        _refuse_outside(project, version, clone)
        _bring_inputs(project, version, cache)
        _link_models(project, Path.cwd(), clone)
        _refuse_lost(project, version)
        _refuse_other_models(project, revision)
        (project / dvc_files.place_lock(version)).unlink()
        outs = [out for stage in recorded.values() for out in stage.get("outs", ())]
        runs = _read_runs(outs, cache)
        set_runtime(project / "params.yaml", runs)
        before = {path: path.read_bytes() for path in project.glob(f"data/*/version={version}/*.json")}
        say(f"running {version} again, as recorded at {revision}; nothing of earlier computations is used")
        _call([sys.executable, "-m", "flows.cli", "run", version, "--engine", "local"], project)
        made = dvc_files.parse_lock((project / dvc_files.place_lock(version)).read_text(encoding="utf-8"))
        now = {out["path"]: out["md5"] for stage in made.values() for out in stage.get("outs", ())}
        libraries = next((run["libraries"] for run in runs if "libraries" in run), {})
        for line in filter(None, [tell_other_libraries(libraries)]):
            say(line)
        places = {out["path"]: _place(out, cache, before, project) for out in outs}
        return [
            _compare(out, now.get(out["path"]), places[out["path"]], project)
            for out in outs
            if Path(out["path"]).name != RUN
        ]


@contextlib.contextmanager
def _cloned(home: Path, commit: str) -> Iterator[Path]:
    """Yield a clone of a git repository with a commit checked out, which is removed afterwards.

    It has no tags: by these a run asks for the raw data of recorded versions, and those of the version before are not
    brought, as nothing reads them.

    Raises:
        ReplayError: another replay is at work in the project.
    """
    with locked(REPLAY_LOCK, refusal=ReplayError("another `tamis replay` is at work in this project; wait for it")):
        clear()
        clone = REPLAYS.absolute() / "clone"
        try:
            _call(["git", "clone", "--quiet", "--no-checkout", "--no-tags", str(home), str(clone)], home)
            fetch = ["git", "fetch", "--quiet", "--no-tags", "--update-shallow"]
            _call([*fetch, str(home), commit], clone)  # of a shallow repository, a clone lacks what no branch leads to
            _call(["git", "checkout", "--quiet", "--detach", commit], clone)
            yield clone
        finally:
            clear()


def clear() -> None:
    """Remove what a replay left that was killed; call it with the lock held."""
    for path in REPLAYS.glob("*/"):
        shutil.rmtree(path)


def set_apart(project: Path) -> None:
    """Let a clone use no mirror of the stores, and no cache that DVC's settings let projects share.

    Args:
        project: in the clone.
    """
    path = project / "params.yaml"
    values = params.load(path)
    if (values.get("mirror") or {}).get("url") is not None:
        values["mirror"] = {**values["mirror"], "url": None}
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML, too
    (project / ".dvc/config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")  # from .dvc on


def _refuse_outside(project: Path, version: str, clone: Path) -> None:
    """Raise ReplayError where a relative path leads out of the repository: from a clone it leads elsewhere.

    Args:
        project: in the clone.
        version: whose raw data are read.
        clone: the clone of the whole repository.
    """
    for setting, name in _list_paths(project, version).items():
        if not os.path.isabs(name) and not Path(os.path.abspath(project / name)).is_relative_to(clone):
            raise ReplayError(
                f"{setting} is {name}, a relative path that leads out of the repository, and elsewhere from a clone "
                f"of it; name it by its absolute path, record {version} with that, then replay it"
            )


def _refuse_lost(project: Path, version: str) -> None:
    """Raise ReplayError where a link that git holds, of raw data or of a model, leads nowhere from a clone."""
    for setting, name in _list_paths(project, version).items():
        place = project / name
        links = [one for one in (place, *place.rglob("*")) if one.is_symlink() and not one.exists()]
        if links:
            raise ReplayError(
                f"{setting} is {name}, and {links[0].relative_to(project)}, a link to {os.readlink(links[0])}, leads "
                f"nowhere from a clone; put the file itself there, record {version} with that, then replay it"
            )


def _list_paths(project: Path, version: str) -> dict[str, str]:
    """Return what params.yaml names that may lie in the project, by setting: raw data, models and a chat template."""
    values = params.load(project / "params.yaml")
    models, raw = values.get("models") or {}, (values.get("versions") or {}).get(version, {}).get("raw")
    named = {f"models.{role}": models.get(role) for role in (*model_records.ROLES, "chat_template")}
    return {setting: name for setting, name in {f"versions.{version}.raw": raw, **named}.items() if name}


def _bring_inputs(project: Path, version: str, cache: Path) -> None:
    """Bring what a version reads and does not make itself out of DVC's cache: raw data, and the version before."""
    versions = params.read_versions(project / "params.yaml")
    if version not in versions:
        raise ReplayError(f"params.yaml there has no version {version!r}, only {', '.join(versions)}")
    pointer = revisions.find_pointer(Path(versions[version].raw), lambda path: (project / path).is_file())
    wanted = [] if pointer is None else [pointer]
    before = versions[version].previous
    if before in versions:
        wanted.append(dvc_files.place(before))
    if wanted:
        dvc = [sys.executable, "-m", "dvc"]
        _call([*dvc, "remote", "add", "--quiet", "--local", "kept", str(cache.parents[1])], project)
        _call([*dvc, "pull", "--quiet", "--remote", "kept", *map(str, wanted)], project)


def _link_models(project: Path, own: Path, clone: Path) -> None:
    """Let a clone see the project's model folders and chat template that it lacks, as git need not hold them.

    Args:
        project: in the clone.
        own: the project itself.
        clone: beyond which no link is made.
    """
    models = params.load(project / "params.yaml").get("models") or {}
    for name in filter(None, map(models.get, (*model_records.ROLES, "chat_template"))):
        link = Path(os.path.abspath(project / name))
        if link.is_relative_to(clone) and not link.exists() and (own / name).exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((own / name).resolve())


def _refuse_other_models(project: Path, revision: str) -> None:
    """Raise ReplayError where a model is not the one that a revision records: a run would record it anew, and go on.

    Args:
        project: in the clone.
        revision: for the message.
    """
    with contextlib.chdir(project):
        models = params.load(Path("params.yaml")).get("models") or {}
        recorded = {role: record for role in model_records.ROLES if (record := model_records.read(role)) is not None}
        for role, record in recorded.items():
            then, now = record["digest"], describe(models[role], models[model_records.ROLES[role]])["digest"]
            if then != now:
                raise ReplayError(
                    f"models.{role}, {models[role]}, is not the model that {revision} records (digest {then[:8]}, now "
                    f"{now[:8]}); bring that one back, then replay again"
                )


def _call(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder, with what it says on our stderr.

    Raises:
        ReplayError: it fails.
    """
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ReplayError(f"`{' '.join(command)}` ended with status {done.returncode}; what it said stands above")


def _read_runs(outs: Sequence[Mapping[str, Any]], cache: Path) -> list[dict[str, Any]]:
    """Return what the recorded stages said of their runs, those that DVC's cache still has.

    Raises:
        ReplayError: one is damaged there.
    """
    from tasks.artifacts.tables import ArtifactError, read_json  # which is slow to import

    places = {out["path"]: dvc_files.place_object(cache, out["md5"]) for out in outs if Path(out["path"]).name == RUN}
    found = []
    for path, place in places.items():
        try:
            found.append(read_json(place))
        except ArtifactError as error:
            raise ReplayError(
                f"{place}, which is {path} in DVC's cache, is damaged; `tamis verify` removes it, or puts {path} of "
                "today in its place, where that is the one that was recorded"
            ) from error
    return found


def set_runtime(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Let a params.yaml cut the work as recorded runs did, with what they halved: equal sizes give equal bits.

    Args:
        path: of params.yaml.
        runs: what stages said of their runs.
    """
    runtime: dict[str, Any] = {}
    for run in runs:
        runtime |= run.get("runtime", {})
    for halving in (halving for run in runs for halving in run.get("halved", ())):
        if halving["what"] in runtime:
            runtime[halving["what"]] = min(runtime[halving["what"]], halving["used"])
    if runtime:
        path.write_text(json.dumps({**params.load(path), "runtime": runtime}), encoding="utf-8")  # JSON is YAML, too


def _place(out: Mapping[str, Any], cache: Path, before: Mapping[Path, bytes], project: Path) -> dict[str, Path | bytes]:
    """Return where the recorded files of an artifact are, by their names in it; "" for an artifact that is a file."""
    path, digest = project / out["path"], out["md5"]
    if path in before:
        return {"": before[path]}
    if not digest.endswith(".dir"):
        return {"": dvc_files.place_object(cache, digest)}
    listing = dvc_files.place_object(cache, digest)
    files = dvc_files.read_listing(listing) if listing.exists() else {}
    return {name: dvc_files.place_object(cache, md5) for name, md5 in files.items()}


def _compare(
    out: Mapping[str, Any], digest: str | None, recorded: Mapping[str, Path | bytes], project: Path
) -> Replayed:
    """Return whether an artifact is as it was recorded, and by how much it is not."""
    if digest == out["md5"]:
        return Replayed(out["path"], SAME, "")
    from tasks.differences import find_difference

    told, rounded = [], True
    for name, old in recorded.items():
        new = project / out["path"] / name if name else project / out["path"]
        found = find_difference(old, new)
        rounded = rounded and found.rounding
        if found.told:
            told.append(f"{name}: {found.told}" if name else found.told)
    return Replayed(out["path"], (ROUNDED if rounded else OTHER) if told else SAME, "; ".join(told))
