"""What dvc.lock says at a git revision, without a checkout: digests of what was read, tables in DVC's cache, a push."""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import Queue
from typing import Any

import pygit2
from dvc.dependency import loads_from
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from dvc.stage import Stage
from pygit2.enums import BlobFilter

from flows.graph import dvc_files
from flows.graph.dvc_state import StateError, opened, without_git
from flows.graph.stages import PARAMS
from flows.stage import RUN, say
from tasks.approvals import APPROVALS
from tasks.artifacts.tables import tell_folder, write_text
from tasks.decisions import find_decisions


@contextmanager
def at_revision(revision: str) -> Iterator[Path]:
    """Lay the tables of a git revision out as a project has them, by links into DVC's cache, and what git holds beside
    them, JSON and params.yaml; yields that folder. What is wrong in it is told with the revision's name before a path.

    Raises:
        StateError: git knows no such revision, it holds no table, or the cache lacks one.
    """
    with opened() as repo:
        held = _list_held(repo, revision)
        records = _read_records(repo, held, revision)
    ran = {path: place for path, place in held.items() if Path(path).name == RUN and place.exists()}
    with tempfile.TemporaryDirectory() as folder:
        for path, text in records.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text, encoding="utf-8")
        for path, place in {**_find_tables(held, revision), **ran}.items():
            link = Path(folder) / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.absolute())
        try:
            yield Path(folder)
        except ValueError as error:
            error.args = (str(error).replace(f"{folder}/", f"{revision}:"),)
            raise


def _list_held(repo: Repo, revision: str) -> dict[str, Path]:
    """Return where DVC's cache would hold each artifact of a git revision, by the artifact's path in the project."""
    return {
        out["path"]: Path(repo.cache.local.oid_to_path(out["md5"]))
        for version in list_versions(repo, revision)
        for stage in dvc_files.parse_lock(read_lock(repo, version, revision)).values()
        for out in stage.get("outs", ())
        if "md5" in out
    }


def _find_tables(held: Mapping[str, Path], revision: str) -> dict[str, Path]:
    """Return the tables among the artifacts of a git revision.

    Raises:
        StateError: there is none, or the cache lacks one.
    """
    found = {path: place for path, place in held.items() if path.endswith(".parquet")}
    if not found:
        raise StateError(f"{revision!r} holds no tables; name a revision whose dvc.lock files record a run")
    missing = [path for path, place in found.items() if not place.exists()]
    if missing:
        raise StateError(
            f"{len(missing)} of {len(found)} tables of {revision} are not in the local cache, "
            f"first {', '.join(missing[:3])}; bring them with `dvc fetch -T` (all tags) or `-A` (all commits)"
        )
    return found


def _read_records(repo: Repo, artifacts: Iterable[str], revision: str) -> dict[Path, str]:
    """Return the JSON artifacts of a git revision that git itself holds, its settings, and who had approved what."""
    paths = [Path(path) for path in artifacts if path.endswith(".json")]
    paths += [Path(PARAMS), APPROVALS, *(find_decisions(Path(), one) for one in list_versions(repo, revision))]
    return {path: text for path in paths if (text := read_file(repo, path, revision))}


def resolve(repo: Repo, revision: str) -> str:
    """Return the commit that a git revision stands for.

    Raises:
        StateError: git knows no such revision.
    """
    try:
        return resolve_rev(repo.scm, revision)
    except RevError as error:
        raise StateError(
            f"git knows no revision {revision!r}; `git tag` and `git log --oneline --all` list those that it knows, "
            "and `git fetch --tags` brings those of another copy"
        ) from error


def _find(repo: Repo, path: Path, revision: str) -> pygit2.Object | None:
    """Return the file or folder that git holds at a path of the project at a revision; None: there is none.

    The folders on its way alone are read: DVC's file system of a revision first reads all of them, and of many
    revisions of many versions that is most of a command's time.

    Raises:
        StateError: git knows no such revision.
    """
    return _find_in(repo, path, repo.scm.pygit2.repo[resolve(repo, revision)].tree)


def _find_in(repo: Repo, path: Path, tree: pygit2.Tree) -> pygit2.Object | None:
    """Return the file or folder that the tree of a commit holds at a path of the project; None: there is none."""
    place = (Path(repo.root_dir).relative_to(repo.scm.root_dir) / path).as_posix()  # git's root may lie above
    try:
        return tree[place]
    except KeyError:
        return None


def read_lock(repo: Repo, version: str, revision: str) -> str:
    """Return the text of a version's dvc.lock at a git revision; empty where there is none."""
    return read_file(repo, dvc_files.place_lock(version), revision)


def read_file(repo: Repo, path: Path, revision: str) -> str:
    """Return the text of a file of the project at a git revision; empty where there is none."""
    found = _find(repo, path, revision)
    return found.data.decode("utf-8") if isinstance(found, pygit2.Blob) else ""


@cache
def _read_blobs_at_once() -> None:
    """Let DVC read git's files whole in this process.

    A stream of pygit2 (1.21.0) is filled by a thread, and its reader, which clears the event that it waits for, can
    lose the last wake-up: it then waits for ever. One in some 20,000 did. Here git's filters fill a queue without end,
    and no thread is needed.
    """

    def read(
        blob: pygit2.Blob,
        as_path: str | None = None,
        *,
        flags: int = BlobFilter.CHECK_FOR_BINARY,
        commit_id: Any = None,
    ) -> io.BytesIO:
        chunks: Queue[bytes] = Queue()
        blob._write_to_queue(
            chunks, threading.Event(), threading.Event(), as_path=as_path, flags=int(flags), commit_id=commit_id
        )
        return io.BytesIO(b"".join(filter(None, chunks.queue)))

    pygit2.BlobIO = read


def mend_lock_files(versions: Iterable[str]) -> None:
    """Bring dvc.lock files that cannot be read, as a kill of DVC leaves them, back from git, or delete them.

    Raises:
        StateError: a folder stands in the place of one.
    """
    for path in [Path("dvc.lock"), *map(dvc_files.place_lock, sorted(versions))]:
        if path.is_dir():
            raise StateError(tell_folder(path))
        if not path.exists() or dvc_files.is_lock(path.read_bytes()):
            continue
        text = _read_committed(path)
        if text:
            write_text(text, path)
            say(f"{path} could not be read, as a kill leaves it; it is what git holds of it again")
        else:
            path.unlink()
            say(f"{path} could not be read, as a kill leaves it; what it recorded is looked up in DVC's run-cache")


def _read_committed(path: Path) -> str:
    """Return a lock file's text in the last commit, if that can be read; empty, where there is none."""
    try:
        with opened() as repo:
            text = "" if without_git(repo) or repo.scm.no_commits else read_file(repo, path, "HEAD")
    except StateError:
        return ""
    return text if dvc_files.is_lock(text.encode()) else ""


def digest_now(repo: Repo, paths: Iterable[str]) -> dict[str, str | None]:
    """Return the digests of files and folders as they are now, as dvc.lock would hold them; None: not there."""
    wanted = list(dict.fromkeys(paths))
    deps = loads_from(Stage(repo), wanted)
    return {path: dep.get_hash().value if dep.exists else None for path, dep in zip(wanted, deps, strict=True)}


def find_pointer(path: Path, is_file: Callable[[str], bool]) -> Path | None:
    """Return the .dvc file that stands for a path or for a folder that it lies in; None: DVC does not hold it.

    Args:
        path: within the project.
        is_file: says whether a file stands at a path within the project, as it is or was at the revision that is asked.
    """
    pointers = (place.with_name(f"{place.name}.dvc") for place in (path, *path.parents) if place.name)
    return next((pointer for pointer in pointers if is_file(os.fspath(pointer))), None)


def push(repo: Repo, recorded: Iterable[tuple[str, str]]) -> None:
    """Push the artifacts of some recorded versions to the remote that the project names now.

    By content, and not by `dvc push` of a revision, which reads the remote from that revision's own configuration and
    takes a relative path in there for one from the file system's root.

    Args:
        repo: the project.
        recorded: versions, each with its git revision.

    Raises:
        OSError: the remote lacks some of them afterwards.
    """
    _read_blobs_at_once()
    found: set[Any] = set()
    for version, revision in recorded:
        with repo.switch(revision):
            stages = repo.stage.load_all(os.fspath(dvc_files.place(version)))
            inputs = {Path(dep.def_path) for stage in stages for dep in stage.deps}
            pointers = {find_pointer(path, repo.fs.isfile) for path in inputs if not path.is_absolute()} - {None}
            stages += [stage for pointer in pointers for stage in repo.stage.load_all(os.fspath(pointer))]
            outs = [out for stage in stages for out in stage.outs if out.hash_info]
            found.update(*(objects for out in outs for objects in out.get_used_objs(push=True).values()))
    repo.cloud.push(found)
    held = repo.cloud.status(found)
    lacking = len(held.missing) + len(held.new)
    if lacking:
        raise OSError(f"{lacking} of {len(found)} files did not reach it")


def is_here(repo: Repo, version: str, revision: str) -> bool:
    """Return whether DVC's cache has all artifacts of a version as a git revision records them."""
    stages = dvc_files.parse_lock(read_lock(repo, version, revision)).values()
    outs = [out for stage in stages for out in stage.get("outs", ()) if "md5" in out]
    return bool(outs) and all(Path(repo.cache.local.oid_to_path(out["md5"])).exists() for out in outs)


def list_versions(repo: Repo, revision: str) -> list[str]:
    """Return the versions of which a git revision holds a dvc.lock."""
    folder = _find(repo, dvc_files.FOLDER, revision)
    names = sorted(one.name for one in folder) if isinstance(folder, pygit2.Tree) else []
    locks = {name: dvc_files.place_lock(name).relative_to(dvc_files.FOLDER).as_posix() for name in names}
    return [name for name, lock in locks.items() if lock in folder]


def list_pointers(repo: Repo, folder: Path, revision: str) -> dict[str, str]:
    """Return the texts of the .dvc files in a folder of the project at a git revision, by their paths."""
    files = list_files(repo, folder, revision)
    return {os.fspath(path): blob.data.decode("utf-8") for path, blob in files.items() if path.suffix == ".dvc"}


def list_files(repo: Repo, path: Path, revision: str) -> dict[Path, pygit2.Blob]:
    """Return the files in a folder of the project, or the one at its path, at a git revision, by their paths."""
    return _list_inside(path, _find(repo, path, revision))


def list_history(repo: Repo, path: Path, tags: Iterable[str]) -> Iterator[dict[Path, pygit2.Blob]]:
    """Yield what `list_files` returns at every commit that the last one or some tags go on from, each state once."""
    git = repo.scm.pygit2.repo
    commits = git.walk(git.head.target)
    for tag in tags:
        commits.push(git[resolve(repo, tag)].id)
    seen = set()
    for commit in commits:
        found = _find_in(repo, path, commit.tree)
        if found is not None and found.id not in seen:
            seen.add(found.id)
            yield _list_inside(path, found)


def digest_as_git(path: Path) -> pygit2.Oid:
    """Return by which digest git would hold a file, as its objects have it in `id`."""
    return pygit2.hashfile(os.fspath(path))


def _list_inside(path: Path, found: pygit2.Object | None) -> dict[Path, pygit2.Blob]:
    files, waiting = {}, [(path, found)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, pygit2.Tree):
            waiting += [(place / inner.name, inner) for inner in one]
        elif isinstance(one, pygit2.Blob):
            files[place] = one
    return files
