"""What git keeps of an erased row: raw files with it that some commit holds, and the tags of versions that read these.

All commits are asked that the last one, or the tag of a version, goes on from, and not the files as they stand: a row
that is gone from these is in the history still, and one that nobody has committed is not.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flows.erasing_dvc import open_draft
from flows.graph import dvc_files, dvc_state, revisions
from flows.graph.versions import list_earlier, refusal_of, tag_of
from flows.params import Params
from flows.stage_calls import RAW

Kept = tuple[Path, Any]  # a file's path in the project, and git's digest of what it holds
Pointed = tuple[str, Path]  # a git revision, and the path of a raw file that DVC held there


def ask_git(
    wanted: Any, rows: Sequence[Any], values: Params, pointed: Collection[Pointed], *, cut: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the raw files that some commit holds with a row, and the tags of recorded versions that are to be made
    anew: of those that read such a file, and of all that continue from one of these.

    Args:
        wanted: the row, a `Wanted`.
        rows: where it stands now, `RawRow`s.
        values: the project's parameters.
        pointed: git revisions and raw files with the row that DVC held there.
        cut: what begins as the row does counts as the row.
    """
    with dvc_state.opened() as repo:
        if dvc_state.without_git(repo) or repo.scm.no_commits:
            return (), ()
        tags = sorted(tag for tag in repo.scm.list_tags() if tag.startswith((tag_of(""), refusal_of(""))))
        kept = {
            (path, blob.id): blob
            for folder in _list_folders(values)
            for files in revisions.list_history(repo, folder, tags)
            for path, blob in files.items()
        }
        here = _digest_now(rows)
        held = {one for one, blob in kept.items() if one[1] in here or _holds(one[0], blob, wanted, values, cut)}
        recorded = [tag for tag in tags if tag.startswith(tag_of(""))]
        read = {tag for tag in recorded if _reads(repo, tag, held, pointed)}
    anew = [tag for tag in recorded if read & {tag, *map(tag_of, list_earlier(_version_of(tag), values.versions))}]
    return tuple(sorted({path.as_posix() for path, _ in held})), tuple(anew)


def _list_folders(values: Params) -> list[Path]:
    """Return where raw files lie, each once: their folder, and the raw paths of versions elsewhere in the project."""
    from tasks.examples.files import find_base

    bases = [find_base(Path(version.raw)) for version in values.versions.values()]
    inside = [base for base in bases if not base.is_absolute() and ".." not in base.parts]
    return [RAW, *dict.fromkeys(base for base in inside if not base.is_relative_to(RAW))]


def _digest_now(rows: Sequence[Any]) -> set[Any]:
    """Return the digests that git has for the files of rows; of a data set that `datasets` saved, for all its files."""
    from tasks.examples.files import list_contents

    files = {file for path in {row.path for row in rows} for file in list_contents(path)}
    return {revisions.digest_as_git(file) for file in files}


def _version_of(tag: str) -> str:
    return tag.removeprefix(tag_of(""))


def _holds(path: Path, blob: Any, wanted: Any, values: Params, cut: bool) -> bool:
    """Return whether a file of git holds the row, read as the versions read it whose raw path it lies in."""
    from tasks.erasure.raw_rows import find_in_file
    from tasks.examples.files import find_base, find_kind
    from tasks.examples.settings import list_sources

    if find_kind(path.name) is None:
        return False
    ways: list[tuple[str, Sequence[Any]]] = [(path.name, ())]
    for name, version in values.versions.items():
        base = find_base(Path(version.raw))
        if path.is_relative_to(base):
            inside = path.name if path == base else path.relative_to(base).as_posix()
            ways.append((inside, list_sources(values.examples, name)))
    with open_draft(path.name) as place:
        place.write_bytes(blob.data)
        asked = values.examples, wanted
        return any(find_in_file(place, name, *asked, sources, cut=cut) for name, sources in ways)


def _reads(repo: Any, tag: str, held: Collection[Kept], pointed: Collection[Pointed]) -> bool:
    """Return whether the version that a tag records reads a file with the row there, of git or of DVC."""
    stages = dvc_files.parse_lock(revisions.read_lock(repo, _version_of(tag), tag))
    paths = {Path(dep["path"]) for stage in stages.values() for dep in stage.get("deps", ())}
    above = {one for path, _ in held for one in (path, *path.parents)}
    files = {one for path in paths & above for one in revisions.list_files(repo, path, tag).items()}
    targets = [path for revision, path in pointed if revision == tag]
    return any((path, blob.id) in held for path, blob in files) or any(
        path.is_relative_to(target) or target.is_relative_to(path) for path in paths for target in targets
    )
