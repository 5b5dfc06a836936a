"""Recorded data versions: a commit of what the run made, a git tag that names it, and its artifacts on DVC's remote.

A tag holds the code, the parameters, the raw data and the digests of all artifacts of a version.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from flows import model_records
from flows.graph import dvc_files, dvc_state, revisions
from flows.graph.stages import Planned, in_order, read_graph
from flows.stage_calls import ERASED
from flows.told import count
from tasks.artifacts.tables import ArtifactError, tell_folder, write_text
from tasks.settings import VersionSettings

UNPUSHED = Path(".cache/unpushed")  # tags whose artifacts the remote may lack, a line each; none: no file
MADE = "what was made stays, and the next run goes on"
GIT = "data versions are recorded as git tags: run `git init` here, and commit the project"


class RecordError(ValueError):
    """A data version cannot be recorded, or is not what was recorded."""


def tag_of(version: str) -> str:
    """Return the name of a version's git tag.

    >>> tag_of("v2")
    'data-v2'
    """
    return f"data-{version}"


def refusal_of(version: str) -> str:
    """Return the name of the git tag of a version that was made and not accepted.

    >>> refusal_of("v2")
    'refused-v2'
    """
    return f"refused-{version}"


def list_refused() -> set[str]:
    """Return the versions that were made and not accepted, neither by the gates nor by a person, who tags them."""
    with dvc_state.opened() as repo:
        tags = set() if dvc_state.without_git(repo) else set(repo.scm.list_tags())
    found = {tag.removeprefix(refusal_of("")) for tag in tags if tag.startswith(refusal_of(""))}
    return {version for version in found if tag_of(version) not in tags}


def unrecorded(versions: Mapping[str, VersionSettings]) -> list[str]:
    """Return the versions that have no tag, what a version continues from before it.

    Raises:
        StateError: the project is not under git.
        RecordError: nothing is committed, no branch is checked out, or a name that cannot be part of a tag.
    """
    try:
        with dvc_state.opened() as repo:
            if repo.scm.no_commits:
                raise RecordError(f"nothing is committed here; {GIT}")
            _refuse_detached(repo)
            tags = set(repo.scm.list_tags())
            unfit = [name for name in versions if not repo.scm.check_ref_format(f"refs/tags/{tag_of(name)}")]
    except dvc_state.StateError as error:
        if isinstance(error.__cause__, dvc_state.SCMError):
            error.add_note(GIT)
        raise
    if unfit:
        raise RecordError(f"the version's name {unfit[0]!r} cannot be part of a git tag; name it as v2 or 2026-11")
    edges = {name: [version.previous] for name, version in versions.items()}
    asked = [name for name in in_order(versions, edges) if name in versions]
    return [name for name in asked if not {tag_of(name), refusal_of(name)} & tags]


def _refuse_detached(repo: Any) -> None:
    """Raise RecordError where no branch would keep what is committed."""
    try:
        repo.scm.active_branch()
    except dvc_state.GitError as error:
        raise RecordError(
            "no branch is checked out (git's HEAD is detached), and a commit here would be lost; `git switch main`, or "
            "another branch, first"
        ) from error


def refuse_rewritten(versions: Mapping[str, VersionSettings], asked: Iterable[str] = ()) -> None:
    """Raise RecordError where the raw data of a recorded version are not what they were.

    Args:
        versions: all data versions.
        asked: those that are looked at, with what they continue from; all, where none is named.
    """
    looked_at = {one for name in asked for one in (name, *list_earlier(name, versions)[:1])} or set(versions)
    with dvc_state.opened() as repo:
        known = set() if dvc_state.without_git(repo) else set(repo.scm.list_tags())
        recorded = [name for name in versions if name in looked_at and tag_of(name) in known]
        digests = revisions.digest_now(repo, [versions[name].raw for name in recorded])
        now = {name: digests[versions[name].raw] for name in recorded}
        then = {name: revisions.read_lock(repo, name, tag_of(name)) for name in recorded}
    for name in recorded:
        if not then[name]:
            raise RecordError(
                f"the tag {tag_of(name)} records no stage of {name}; "
                f"`git tag --delete {tag_of(name)}` lets {name} be recorded"
            )
        if f"md5: {now[name]}\n" not in then[name]:
            after = [one for one in versions if tag_of(one) in known and name in list_earlier(one, versions)]
            anew = [tag_of(one) for one in (name, *after)]
            found = f"{name} is recorded (tag {tag_of(name)}), but its raw data, {versions[name].raw}, "
            found += "have changed since" if now[name] else "are gone"
            back = f"bring them back and add what is new as a version of its own (previous: {name}), or record anew"
            if now[name] and _has_erased(tag_of(name)):
                back = f"rows were erased since ({ERASED}): record what is left anew"
            raise RecordError(f"{found}; {back}: `git tag --delete {' '.join(anew)}`")


def _has_erased(tag: str) -> bool:
    """Return whether rows were erased since a tag was made."""
    with dvc_state.opened() as repo:
        return ERASED.is_file() and revisions.read_file(repo, ERASED, tag).encode() != ERASED.read_bytes()


def refuse_uncommitted(version: str) -> None:
    """Raise RecordError where the version's tag could not name what made it.

    That is where a tracked file has changes, other than the run's own outputs, or where git does not know a file that
    a stage reads.
    """
    planned = dvc_state.plan([version])
    with dvc_state.opened() as repo:
        (changed, untracked), made = _changes(repo), _made(repo)
        foreign = [path for path in changed if not _within(path, made)]
        unknown = _unknown(repo, planned, untracked)
    for paths, what in ((foreign, "with changes that are not committed"), (unknown, "read by a stage, but not in git")):
        if paths:
            raise RecordError(
                f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {what}, first {', '.join(paths[:3])}; "
                f"the tag {tag_of(version)} could not name what made it: commit first, then run again"
            )


def refuse_foreign_changes() -> None:
    """Raise RecordError where a tracked file has changes that are no run's: a commit of ours would hold them.

    `commit` takes all that is staged, and a data version that lands is added to params.yaml as it is.
    """
    with dvc_state.opened() as repo:
        made = _made(repo)
        foreign = [path for path in _changes(repo)[0] if not _within(path, made)]
    if foreign:
        raise RecordError(
            f"{count(len(foreign), 'file')} with changes that are not committed, first {', '.join(foreign[:3])}; what "
            "lands is added by a commit, which would hold them: commit them first, then run again"
        )


def write(version: str, *, accepted: bool = True) -> None:
    """Commit what the run of a version made, and nothing else, and tag the commit.

    Args:
        version: its name.
        accepted: whether it passed every gate; one that did not has another tag, which nothing continues from.

    Raises:
        RecordError: a stage is not up to date, or a file that is not the run's own has changes.
    """
    found = dvc_state.standings(dvc_state.plan([version]))
    stale = [(address, why) for address, state, why in found if state != "fresh"]
    if stale:
        named = "; ".join(f"{address}: {why}" for address, why in stale[:3])
        raise RecordError(f"{version} is not up to date any more, {len(stale)} stages ({named}); run again")
    refuse_uncommitted(version)
    tag, what = (tag_of(version), "Record") if accepted else (refusal_of(version), "Keep refused")
    with dvc_state.opened() as repo:
        if tag in repo.scm.list_tags():
            return  # another process was faster
        (changed, untracked), ours = _changes(repo), _made(repo)
        made = [path for path in (*changed, *untracked) if _within(path, ours)]
        if made:
            _commit(repo, made, f"{what} data version {version}", MADE)
        _note([*_unpushed(repo), tag])  # before the tag: a kill may come in between
        with _telling("tag", MADE):
            repo.scm.tag(tag, annotated=True, message=f"Data version {version}")


def commit(paths: Iterable[str], message: str) -> None:
    """Commit some files of the project, and nothing else.

    Args:
        paths: from the project's folder on.
        message: of the commit.

    Raises:
        RecordError: git refuses.
    """
    with dvc_state.opened() as repo:
        inside = Path(repo.root_dir).relative_to(repo.scm.root_dir)
        _commit(repo, [str(inside / path) for path in paths], message, "nothing is added; run again then")


def _commit(repo: Any, paths: Iterable[str], message: str, then: str) -> None:
    root = Path(repo.scm.root_dir)
    with _telling("commit", then):
        repo.scm.add_commit([str(root / path) for path in paths], message=message)


@contextmanager
def _telling(what: str, then: str) -> Iterator[None]:
    """Tell in a line why git does not do something: a hook, a signature, or no name of who commits."""
    try:
        yield
    except (dvc_state.GitError, OSError, SubprocessError) as error:
        why = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise RecordError(f"git did not {what} ({why}); `git {what}` here shows more; {then}") from error


def push() -> str:
    """Push the artifacts of the versions that were recorded or refused since the last push; returns what came of it.

    Raises:
        RecordError: the remote did not take them; they stay recorded, and the next call tries again.
    """
    with dvc_state.opened() as repo:
        tags = [tag for tag in _unpushed(repo) if tag in repo.scm.list_tags()]
        remote = repo.config["core"].get("remote")
        if not tags:
            return ""
        if not remote:
            return f"no DVC remote is set: the artifacts of {', '.join(tags)} stand in this clone only"
        try:
            revisions.push(repo, [(_version_of(tag), tag) for tag in tags])
        except Exception as error:  # a remote's library raises what it likes
            raise RecordError(
                f"{', '.join(tags)} stand, but the DVC remote {remote!r} did not take their artifacts: "
                f"{type(error).__name__}: {error}; mend it: the next `tamis continue` pushes them"
            ) from error
        _note([])
    return f"pushed the artifacts of {', '.join(tags)} to the DVC remote {remote!r}"


def _version_of(tag: str) -> str:
    """Return which version a tag of `tag_of` or `refusal_of` names.

    >>> _version_of("data-refused-x"), _version_of("refused-v2")
    ('refused-x', 'v2')
    """
    return tag.removeprefix(tag_of("") if tag.startswith(tag_of("")) else refusal_of(""))


def _unpushed(repo: Any) -> list[str]:
    """Return the tags whose artifacts the remote may lack: of a damaged list, all whose artifacts are in DVC's cache.

    What the remote has already is not sent again, so the list only saves asking it.

    Raises:
        ArtifactError: a folder stands in the list's place.
    """
    if UNPUSHED.is_dir():
        raise ArtifactError(tell_folder(UNPUSHED))
    try:
        found = UNPUSHED.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        found = []
    ours = (tag_of(""), refusal_of(""))
    if found and all(tag.startswith(ours) for tag in found):
        return found
    tags = sorted(tag for tag in repo.scm.list_tags() if tag.startswith(ours))
    return [tag for tag in tags if revisions.is_here(repo, _version_of(tag), tag)]


def _note(tags: Sequence[str]) -> None:
    """Keep the list, whole or not at all; an empty one is no file, so that one that was cut short is not taken for it.

    Raises:
        ArtifactError: it cannot be written.
    """
    if tags:
        write_text("".join(f"{tag}\n" for tag in dict.fromkeys(tags)), UNPUSHED)
    else:
        UNPUSHED.unlink(missing_ok=True)


def list_earlier(name: str, versions: Mapping[str, VersionSettings]) -> list[str]:
    """Return the versions that a version continues from, directly or not."""
    found: list[str] = []
    while name in versions:
        name = versions[name].previous
        found.append(name)
    return found


def _changes(repo: Any) -> tuple[list[str], list[str]]:
    """Return the tracked files that differ from the last commit, and the untracked ones, relative to git's root."""
    staged, unstaged, untracked = repo.scm.status(untracked_files="all")
    return sorted({*unstaged, *(path for paths in staged.values() for path in paths)}), sorted(untracked)


def _made(repo: Any) -> set[Path]:
    """Return what a run writes and git holds, relative to git's root: DVC's files of versions, metrics, .gitignores."""
    held = {dvc_files.FOLDER, model_records.FOLDER, Path("dvc.lock")}
    for one in read_graph().values():
        held |= {Path(path) for path in one.held} | {Path(path).parent / ".gitignore" for path in one.outputs}
    root = Path(repo.root_dir).relative_to(repo.scm.root_dir)
    return {root / path for path in held}


def _unknown(repo: Any, planned: Iterable[Planned], untracked: Iterable[str]) -> list[str]:
    """Return what git does not know of the inputs that no stage makes, or of the .dvc files that stand for them.

    What lies outside of the project, git cannot know: of it, dvc.lock holds the digests.
    """
    made = {Path(path) for one in read_graph().values() for path in one.outputs} | {dvc_files.FOLDER}
    sources = set()
    for path in {Path(path) for one in planned for path in one.inputs if not _within(path, made)}:
        source = Path(os.path.abspath(Path(repo.root_dir) / path))
        if source.is_relative_to(repo.scm.root_dir):
            inside = source.relative_to(repo.scm.root_dir)
            pointer = revisions.find_pointer(path, repo.fs.isfile) if source.is_relative_to(repo.root_dir) else None
            sources.add(inside if pointer is None else Path(repo.root_dir).relative_to(repo.scm.root_dir) / pointer)
    found, tracked = set(), _list_tracked(repo)
    for source in sources:
        if source in tracked:
            found.update(path for path in untracked if source in Path(path).parents)
        elif (Path(repo.scm.root_dir) / source).exists():
            found.add(str(source))
    return sorted(found)


def _list_tracked(repo: Any) -> set[Path]:
    """Return git's files and their folders, relative to its root; its index grows with versions, and is read once."""
    files = [Path(os.fsdecode(path)) for path in repo.scm.dulwich.repo.open_index()]
    return {*files, *(folder for path in files for folder in path.parents)}


def _within(path: str | Path, places: Iterable[Path]) -> bool:
    """Return whether a path is one of some places, or lies in one."""
    return not {Path(path), *Path(path).parents}.isdisjoint(places)
