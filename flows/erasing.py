"""One example erased on request: found wherever it is kept or was trained on, removed there, and left out from then on.

A row is known by its id and by `same_as`, the digest of its text whatever the blanks, so that its variants go with it.
`data/erased.json` has both, and stage `examples` leaves out whatever has such a `same_as`. It is written before
anything is removed, and what tells of other places is removed after these: an interrupted call is finished by the next.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flows import params, undoing
from flows.drive import LOCK, alone
from flows.erasing_dvc import DRAFTS, ErasingError, InDvc, find_kept, list_objects, remove_objects
from flows.erasing_git import ask_git
from flows.erasing_places import CLEARING, DRAFT, InPlaces, Place, find_places, remove_place
from flows.graph import dvc_state, revisions
from flows.mirror import Mirror
from flows.params import Params
from flows.stage import say
from flows.stage_calls import CACHE, DATA, ERASED, RAW
from flows.trials import TRIALS
from tasks.erasure.record import Erased, add_erased, read_erased

ID = re.compile(r"([0-9a-f]{32})(-\d+)?")
IN_GIT = ("revision", "git")  # kinds of places that a call tells of and leaves
EXPORTS = (
    "what `tamis export` and `tamis merge` wrote lies in folders that only you know: delete those that hold the row, "
    "and models that were merged from the arms above"
)


@dataclass(frozen=True)
class Found:
    """All that is known of a row."""

    same_as: str
    wanted: Any  # `Wanted`
    erased: tuple[Erased, ...]  # what stands of it in data/erased.json
    raw: tuple[Any, ...]  # `RawRow`s
    kept: InPlaces
    in_dvc: InDvc
    mirror: Mirror | None  # of the stores
    tracked: tuple[str, ...]  # raw files that a commit of git holds with the row
    recorded: tuple[str, ...]  # tags of versions that read the row, or continue from one that did

    def list_places(self) -> list[Place]:
        """Return each place that holds the row or was trained on it."""
        places = [Place("raw", f"{one.path}:{one.line}", "the row") for one in self.raw]
        places += sorted(self.kept.places, key=lambda one: (one.kind, one.path))
        for part in self.kept.parts:
            what = f"{part.rows} of its rows" if part.rows else "damaged or cut short, so that nobody can look into it"
            places.append(Place("store", str(part.path), what))
        if self.mirror is not None:
            copies = self.mirror.find(part.path for part in self.kept.parts)
            places += [Place("mirror", place, "a part of a store") for place in copies]
        for kind, there in (("cache", self.in_dvc.here), ("remote", self.in_dvc.remote)):
            places += [Place(kind, path, self.in_dvc.objects[digest]) for digest, path in there.items()]
        for revision, file, count in self.in_dvc.revisions:
            places.append(Place("revision", revision, f"{file} names {count} of these objects"))
        places += [Place("git", path, "commits hold this file with the row") for path in self.tracked]
        return places


@dataclass(frozen=True)
class Erasure:
    """What a call has done."""

    found: Found
    changed: tuple[str, ...]  # files that git tracks and that are to be committed


def find(id: str) -> Found:
    """Return every place that holds a row or was trained on it; nothing changes but that a mirror's parts come here.

    Args:
        id: of the row, in full.

    Raises:
        ErasingError: no id, or no place holds such a row and none was erased; the remote cannot be asked.
        ExamplesError: a raw file cannot be read.
        MirrorError: the stores' mirror cannot be read.
    """
    from tasks.artifacts.stores import in_use

    with in_use(CACHE):
        return _find(id)


def _find(id: str) -> Found:
    """Return what `find` returns, in stores that are held."""
    from tasks.erasure.search import Wanted

    values, short = params.read(), ID.fullmatch(id)
    if short is None:
        raise ErasingError(f"{id!r} is no id of an example, which has 32 digits; `tamis show` and `tamis sql` tell it")
    known = read_erased(ERASED)
    tables, rows = _list_tables(), partial(_list_raw, values)
    same_as = _find_same(short[1], tables, rows, known)
    said = list(_read_tables(tables, same_as=same_as))
    raw = tuple(rows(same={same_as}, cut={one.place for one in said}))
    erased = tuple(one for one in known if one.same_as == same_as)
    wanted = Wanted(
        frozenset({same_as, *(one.same_as for one in raw)}),
        frozenset({short[1], *(one.id for one in (*said, *raw, *erased))}),
        tuple(dict.fromkeys(one.conversation for one in (*said, *raw))),
        any(one.cut for one in said),
    )
    in_dvc = find_kept(wanted, values.examples)
    pointed = in_dvc.pointed | (in_dvc.lost if erased else frozenset())
    cut = wanted.cut or (bool(erased) and values.examples.on_long_row == "drop_turns")  # no table tells it any more
    mirror = _fetch(values.mirror.url)
    kept = find_places(wanted, values.versions, in_dvc.trained_on)
    return Found(same_as, wanted, erased, raw, kept, in_dvc, mirror, *ask_git(wanted, raw, values, pointed, cut=cut))


@alone()
def erase(id: str, because: str) -> Erasure:
    """Remove a row from everywhere, and all that was trained on it, and leave it out of every later run.

    Args:
        id: of the row, in full.
        because: why, in the words that data/erased.json is to have; none of the row's.

    Raises:
        ErasingError: as `find`; a raw file that is not ours to rewrite has the row; the remote refuses; a note of what
            a call that was broken off has rewritten is damaged.
        StoreError: a run uses the stores.
        MirrorError: the stores' mirror cannot be read or written.
    """
    from tasks.artifacts import stores
    from tasks.erasure.parts import clear_part

    LOCK.write_text(f"process {os.getpid()}: tamis erase", encoding="utf-8")  # the call names the row
    with undoing.adding(), stores.upkeep(CACHE):
        found = _find(id)
        _refuse_by_hand(found.raw)
        read_clearing()  # a damaged one is told of before anything is changed
        when = date.today().isoformat()
        whole = {one.id: one.same_as for one in found.raw}  # of a row that was cut as too long, another one
        rows = [Erased(one, whole.get(one, found.same_as), because, when) for one in found.wanted.ids]
        add_erased(rows, ERASED)
        remove_objects(found.in_dvc)
        if found.mirror is not None:
            found.mirror.remove([part.path for part in found.kept.parts])
        for part in found.kept.parts:
            clear_part(part, found.wanted)
        if found.mirror is not None:
            found.mirror.send(stores.KINDS, None)
        for place in found.kept.places:
            remove_place(place)
    changed = [ERASED.as_posix(), *_clear_raw(found.raw)]
    return Erasure(found, tuple(dict.fromkeys(changed)))


def _fetch(url: str | None) -> Mirror | None:
    """Bring all that a mirror of the stores has here, where one is named, to be looked into."""
    if url is None:
        return None
    from tasks.artifacts.stores import KINDS

    mirror = Mirror(url, say=say)
    mirror.fetch(KINDS, None)
    return mirror


def _list_tables() -> list[Path]:
    """Return every file that may be a table of examples."""
    made = [*DATA.glob("examples/version=*/examples.parquet"), *TRIALS.glob("examples/*/examples.parquet")]
    return [*sorted(made), *(path for digest, path in list_objects().items() if not digest.endswith(".dir"))]


def _read_tables(tables: Sequence[Path], **asked: str) -> Iterator[Any]:
    """Yield the rows that tables of examples have."""
    from tasks.erasure.search import list_rows

    for path in tables:
        yield from list_rows(path, **asked)


def _list_raw(values: Params, **asked: Any) -> Iterator[Any]:
    """Yield the rows of all versions' raw files, and of the others under data/raw, each once."""
    from tasks.erasure.raw_rows import list_raw_rows

    seen, examples = set(), values.examples
    versions = (list_raw_rows(Path(one.raw), name, examples, **asked) for name, one in values.versions.items())
    for row in chain(*versions, _list_unnamed(values, **asked), _list_hidden(values, **asked)):
        if (row.path, row.line) not in seen:
            seen.add((row.path, row.line))
            yield row


def _list_unnamed(values: Params, **asked: Any) -> Iterator[Any]:
    """Yield the rows of files under data/raw that no version reads, such as those of a version that was taken out.

    Raises:
        ErasingError: such a file cannot be read, so that nobody can tell whether it has the row.
    """
    from tasks.erasure.raw_rows import list_file_rows
    from tasks.examples.division import name_apart
    from tasks.examples.files import ExamplesError, list_files, list_there

    apart, raws = name_apart(values.examples), [Path(version.raw) for version in values.versions.values()]
    read = {file.path.resolve() for raw in raws for file in list_files(raw, apart)[0]}
    try:
        for place in sorted(RAW.glob("*")):
            rest = [one for one in list_there(place) if one.path.resolve() not in read]
            yield from list_file_rows(rest, values.examples, **asked)
    except ExamplesError as error:
        raise ErasingError(
            f"{place}, which no version of params.yaml reads, may have the row: {error}; or take it out of {RAW}, once "
            "you know that it has not"
        ) from error


def _list_hidden(values: Params, **asked: Any) -> Iterator[Any]:
    """Yield the rows of hidden files in the raw folders, such as a copy that an editor keeps, which no run reads.

    Raises:
        ErasingError: such a file cannot be read, so that nobody can tell whether it has the row.
    """
    from tasks.erasure.raw_rows import list_file_rows
    from tasks.examples.files import ExamplesError, find_base, list_hidden

    homes = dict.fromkeys([RAW, *(find_base(Path(version.raw)) for version in values.versions.values())])
    try:
        for home in (home for home in homes if home.is_dir()):
            rows = [one for one in list_hidden(home) if not any(map(DRAFT.fullmatch, one.path.parts))]
            yield from list_file_rows(rows, values.examples, **asked)
    except ExamplesError as error:
        raise ErasingError(
            f"a hidden file in {home}, which no run reads, may have the row: {error}; or delete it, once you know that "
            "it has not"
        ) from error


def _find_same(id: str, tables: Sequence[Path], rows: Callable[..., Iterator[Any]], known: Sequence[Erased]) -> str:
    """Return `same_as` of the row with an id.

    Raises:
        ErasingError: there is none.
    """
    places = chain((one for one in known if one.id == id), _read_tables(tables, id=id), rows(id=id))
    said = next(places, None)
    if said is None:
        raise ErasingError(
            f"no row with the id {id} stands in the raw files of any version, in an artifact, in a trial or in DVC's "
            f"cache here, and {ERASED} names none; `tamis sql` finds the id of a row by its text, and `dvc fetch "
            "--all-tags` brings what other clones have made"
        )
    return said.same_as


def _refuse_by_hand(rows: Sequence[Any]) -> None:
    """Raise ErasingError where a raw file cannot be rewritten without one of its rows."""
    home = Path.cwd().resolve()
    bad = [row for row in rows if not row.lines or not row.path.resolve().is_relative_to(home)]
    if bad:
        listed = ", ".join(f"{row.path}:{row.line}" for row in bad)
        raise ErasingError(
            f"{listed}: only files of JSON lines in UTF-8 inside the project are rewritten, so nothing was changed; "
            f"take the row out of {'that file' if len(bad) == 1 else 'these files'} by hand, then call again"
        )


def _clear_raw(rows: Sequence[Any]) -> list[str]:
    """Take rows out of raw files; returns what git is to hold of that."""
    from tasks.artifacts.tables import write_json
    from tasks.erasure.raw_rows import drop_lines

    lines: dict[Path, list[int]] = {path: [] for path in read_clearing()}
    for row in rows:
        lines.setdefault(row.path, []).append(row.line)
    write_json([str(path) for path in lines], CLEARING)
    held = []
    for path in (path for path in lines if path.exists()):
        if lines[path]:
            drop_lines(path, lines[path], DRAFTS)
        held += [*_note_digest(path), *_hold(path)]
    CLEARING.unlink()
    return held


def read_clearing() -> list[Path]:
    """Return the raw files that a call which was broken off was taking rows out of.

    Raises:
        ErasingError: its note of them is damaged.
    """
    from tasks.artifacts.tables import ArtifactError, read_texts

    try:
        return [Path(path) for path in read_texts(CLEARING)] if os.path.lexists(CLEARING) else []
    except (ArtifactError, OSError) as error:
        raise ErasingError(
            f"{CLEARING} does not tell which raw files a call that was broken off has rewritten; `dvc status` shows "
            f"those that DVC holds: `dvc add` them, then delete {CLEARING} and call again"
        ) from error


def _note_digest(path: Path) -> Iterator[str]:
    """Let the records of versions' raw files say what a rewritten one is now; yields those that have it."""
    from tasks.artifacts.tables import digest, write_json
    from tasks.first_look.kept_files import read_record

    for record in sorted(RAW.glob("*.files.json")):
        known = read_record(record)
        raw = Path(known["raw"])
        if path.is_relative_to(raw):
            name = path.name if path == raw else path.relative_to(raw).as_posix()
            if name in known["files"]:
                known["files"][name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
                write_json(known, record)
                yield record.as_posix()


def _hold(path: Path) -> list[str]:
    """Put a rewritten raw file into DVC again, where that holds it; returns what git is to hold."""
    with dvc_state.opened() as repo:
        pointer = revisions.find_pointer(path, repo.fs.isfile)
    return [path.as_posix()] if pointer is None else dvc_state.add(pointer.with_suffix("").as_posix())


def tell(found: Found, *, done: bool) -> Iterator[str]:
    """Yield what the list of places does not say: what is left, and what the user is to do."""
    if found.in_dvc.unseen:
        yield (
            f"{found.in_dvc.unseen} other objects of the DVC remote are not in this clone, so that nobody has looked "
            "into them; `dvc fetch --all-tags` brings those of recorded versions, then call again"
        )
    yield EXPORTS
    gone = sorted({revision for revision, _, _ in found.in_dvc.revisions})
    if gone:
        when = "cannot be restored any more" if done else "could not be restored any more"
        yield f"{', '.join(gone)}: their dvc.lock files name objects that hold the row; these {when}"
    if found.tracked:
        yield (
            f"git's history still holds {', '.join(found.tracked)} with the row; only rewriting it takes the row out, "
            "such as with `git filter-repo`, in every clone"
        )
    if found.recorded and (done or not found.raw):
        yield (
            "raw data of recorded versions, or of versions that they continue from, have changed; to record them anew, "
            f"`git tag --delete {' '.join(found.recorded)}` before the next `tamis run` or `tamis continue`"
        )


def tell_removable(places: Sequence[Place]) -> str:
    """Return in words how many places of each kind are ours to remove; what git holds is not.

    >>> tell_removable([Place("raw", "a", ""), Place("raw", "b", ""), Place("git", "a", "")])
    '2 of kind raw'
    """
    kinds = [place.kind for place in places if place.kind not in IN_GIT]
    return ", ".join(f"{kinds.count(kind):,} of kind {kind}" for kind in dict.fromkeys(kinds)) or "nothing"
