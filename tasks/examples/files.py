"""Which files of a version's raw path are read, and what else is there.

Symbols: a file's name is how artifacts call it, from the raw folder's name on, with slashes; its kind is how it is
read, its split what hubs call the part of a data set that it is.
"""

import glob
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst", ".bz2")  # for all kinds
SAVED = "datasets"  # the kind of a folder that `datasets` saved
READ = f"{', '.join(KINDS)} (each also as {', '.join(PACKED)}) and folders saved by `datasets`"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")  # as hubs number the files of one split
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
LLAMA_FACTORY = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
LISTS_DATA = (
    "LLaMA-Factory's list of data sets, which is not followed; say what its columns and tags say with examples.format "
    "and examples.fields"
)
DESCRIBES_DATA = "describes a data set and holds no rows"
RECORD = ".files.json"  # how the name of a record of raw files ends
RECORDS_FILES = "the record of a version's raw files"
HIDDEN, NO_DATA = "hidden", "no data file"
SHOWN = 3  # names in an error


class ExamplesError(ValueError):
    """Raw data cannot be read, or gives no usable examples."""


@dataclass(frozen=True)
class RawFile:
    """A file whose rows are read, or a folder that `datasets` saved, or one split of it."""

    name: str  # as in artifacts: from the raw folder's name on, with slashes
    path: Path
    kind: str  # one of KINDS' values, or `datasets`
    split: str | None  # train | validation | test, or as its maker calls it; None where its name says nothing
    stem: str  # the topic of its rows where none is mapped


class NotRead(NamedTuple):
    """What lies in the raw folder and is not read."""

    name: str  # inside the raw folder
    reason: str


def list_files(raw: Path, apart: Mapping[str, str]) -> tuple[list[RawFile], list[NotRead]]:
    """Return what is read of a raw path, by name, and what else is there; of a hidden folder, its name alone.

    Args:
        raw: a file; a folder, whose sub-folders are read as well; or a pattern of files and folders, such as
            `raw/**/*.jsonl`.
        apart: parameter -> the file or folder inside `raw` that it names; these files come first.

    Raises:
        ExamplesError: a path does not exist, cannot be read or holds no data; a name is not UTF-8; two parameters name
            the same file.
    """
    raw = Path(raw)
    try:
        base, matches = _expand(raw)
        found = {each.name: each for path in matches for each in _walk(path, str(_name(base, path)), ())}
        files = {name: each for name, each in found.items() if isinstance(each, RawFile)}
        named = {parameter: _list_apart(base, parameter, name, files) for parameter, name in apart.items()}
    except OSError as error:
        raise ExamplesError(
            f"{error.filename or raw} cannot be read: {error.strerror or error}; allow it, or take it out of the raw "
            "folder"
        ) from error
    given = {name: each for chosen in named.values() for name, each in chosen.items()}
    _refuse_names(files | given)
    twice = sorted(name for name in given if sum(name in chosen for chosen in named.values()) > 1)
    if twice:
        raise ExamplesError(
            f"{len(twice)} of {len(given)} files are named by {' and '.join(apart)}, first {twice[0]}; a row is of one"
        )
    others = [
        each._replace(name=show_name(each.name.partition("/")[2] or each.name))
        for each in found.values()
        if isinstance(each, NotRead) and not any(PurePosixPath(name).is_relative_to(each.name) for name in given)
    ]
    rest = [each for name, each in files.items() if name not in given]
    if not rest:
        shown = list_some([_tell_unread(each) for each in others], SHOWN)
        beside = f" beside what {' and '.join(apart)} names" if given else ""
        raise ExamplesError(f"{raw} holds {f'only {shown}' if shown else 'nothing'}{beside}; read are {READ}")
    return [*given.values(), *rest], others


def list_there(path: Path) -> list[RawFile]:
    """Return what can be read of a file or folder, by name; nothing where it holds no data.

    Raises:
        ExamplesError: it cannot be read.
    """
    try:
        return [each for each in _walk(path, path.name, ()) if isinstance(each, RawFile)]
    except OSError as error:
        raise ExamplesError(f"{error.filename or path} cannot be read: {error.strerror or error}; allow it") from error


def list_hidden(path: Path) -> list[RawFile]:
    """Return what could be read of a folder's files if they, or the folders that they lie in, were not hidden.

    Raises:
        ExamplesError: one cannot be read.
    """
    found = [one for one in sorted(path.rglob("*")) if one.is_file()]
    hidden = [one for one in found if any(part.startswith(".") for part in one.relative_to(path).parts)]
    told = (_tell(one, str(_name(path, one))) for one in hidden)
    return [each for each in told if isinstance(each, RawFile)]


def show_name(name: str) -> str:
    r"""Return a file's name as text: bytes of it that are no UTF-8 as escapes.

    >>> print(show_name("caf\udce9.csv"))
    caf\xe9.csv
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_some(names: Sequence[str], most: int) -> str:
    """Return the first of some names, and how many others there are.

    >>> list_some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_list(file: RawFile) -> str | None:
    """Return where the list of LLaMA-Factory lies that may say what a file's columns are; None where there is none."""
    place = file.path.with_name(DESCRIPTIONS[0])
    return str(PurePosixPath(file.name).with_name(place.name)) if _tell_description(place) == LISTS_DATA else None


def list_contents(path: Path) -> list[Path]:
    """Return a file, or the files of a folder."""
    return [path] if path.is_file() else sorted(inside for inside in path.rglob("*") if inside.is_file())


def is_inside(file: str, raw: Path, name: str) -> bool:
    """Return whether a file, by its name in artifacts, is what a parameter names in the raw folder, or lies in it.

    >>> is_inside("v1/task/git.jsonl", Path("data/raw/v1"), "task")
    True
    >>> is_inside("v1/task/git.jsonl", Path("data/raw/v1/*/*.jsonl"), "task/git.jsonl")
    True
    """
    base = find_base(Path(raw))
    return PurePosixPath(file).is_relative_to(_name(base, base / name))


def name_inputs(raw: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Return files of a version's raw path by the names that provenance has for them, of which no two are the same.

    From the folder above the raw path's on, and the last three parts of a path at least, wherever the project lies.

    >>> list(name_inputs(Path("/data/raw/v1"), [Path("/data/raw/v1/a.jsonl"), Path("/data/raw/v1/en/p/a.jsonl")]))
    ['raw/v1/a.jsonl', 'raw/v1/en/p/a.jsonl']
    """
    base = find_base(Path(raw))
    return {"/".join(path.parts[-max(3, len(path.relative_to(base).parts) + 2) :]): path for path in paths}


def find_kind(name: str) -> str | None:
    """Return how a file is read by the end of its name; None: it is not.

    >>> [find_kind(name) for name in ("a.jsonl", "b.CSV.zst", "c.parquet.gz", "README.md")]
    ['jsonl', 'csv', 'parquet', None]
    """
    plain = name.lower()
    packed = next((end for end in PACKED if plain.endswith(end)), "")
    return KINDS.get(PurePosixPath(plain.removesuffix(packed)).suffix)


def find_split(name: str) -> str | None:
    """Return the split that a file's name or its folder's name says.

    >>> [find_split(f"v1/{name}") for name in ("data/train-00000-of-00002.parquet", "sums_dev.jsonl", "test/a.csv")]
    ['train', 'validation', 'test']
    >>> find_split("v1/health.jsonl") is None
    True
    """
    *folders, last = (part.lower() for part in PurePosixPath(name).parts)
    bare, numbered = _strip(last)
    words = re.split(r"[-_. ]", bare)
    if words[-1] in SPLITS:
        return SPLITS[words[-1]]
    if numbered and words[0] in SPLITS:
        return bare
    inside = folders[1:]  # the raw folder's own name says nothing
    above = next((SPLITS[folder] for folder in reversed(inside) if folder in SPLITS), None)
    return bare if above is None and numbered and inside[-1:] == ["data"] else above


def _strip(last: str) -> tuple[str, bool]:
    """Return a file's name without its format and its number among the files of a split, and whether it has one."""
    packed = next((end for end in PACKED if last.lower().endswith(end)), "")
    bare = last[: len(last) - len(packed)]
    kind = PurePosixPath(bare).suffix
    bare = bare.removesuffix(kind) if kind.lower() in KINDS else bare
    return SHARD.sub("", bare), SHARD.search(bare) is not None


def _find_stem(name: str, split: str | None) -> str:
    """Return the topic of a file's rows: what its name says, or its folder's where that only says the split."""
    *folders, last = PurePosixPath(name).parts
    bare = _strip(last)[0].split(".")[0]
    if split is None or bare.lower() not in (*SPLITS, split):
        return bare
    return next((each for each in reversed(folders[1:]) if each.lower() not in (*SPLITS, "data")), bare)


def _expand(raw: Path) -> tuple[Path, list[Path]]:
    """Return the folder that names begin with, and the paths that are searched."""
    base = find_base(raw)
    if base != raw:
        found = (Path(match) for match in sorted(glob.glob(str(raw), recursive=True)))
        matches = [match for match in found if not _goes_round(base, match)]
        if not matches:
            raise ExamplesError(f"{raw} matches no file; set versions.<version>.raw to a file, a folder or a pattern")
        return base, matches
    if not raw.exists():
        raise ExamplesError(f"{raw} does not exist; set versions.<version>.raw to a file or a folder with data files")
    return raw, [raw]


def find_base(raw: Path) -> Path:
    """Return a path, or of a pattern the folder before its first wild card."""
    wild = next((place for place, part in enumerate(raw.parts) if re.search(r"[*?[]", part)), None)
    return raw if wild is None or raw.exists() else Path(*raw.parts[:wild])


def _goes_round(base: Path, path: Path) -> bool:
    """Return whether a path leads through a link to a folder that holds the link."""
    above = [parent for parent in path.parents if parent.is_relative_to(base)]
    return len({os.path.realpath(parent) for parent in above}) < len(above)


def _refuse_names(names: Collection[str]) -> None:
    """Check that artifacts, which are UTF-8, can hold the names of files."""
    bad = [name for name in names if show_name(name) != name]
    if bad:
        raise ExamplesError(
            f"{len(bad)} of {len(names)} files have a name or a folder whose name is not UTF-8, first "
            f"{show_name(bad[0])}; rename it"
        )


def _tell_unread(one: NotRead) -> str:
    """Return the name of what is not read, and why where that helps."""
    return one.name if one.reason in (NO_DATA, HIDDEN) else f"{one.name} ({one.reason})"


def _name(base: Path, path: Path) -> PurePosixPath:
    return PurePosixPath(Path(os.path.abspath(base)).name, *path.relative_to(base).parts)


def _list_apart(base: Path, parameter: str, name: str, files: Mapping[str, RawFile]) -> dict[str, RawFile]:
    place = base / name
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not place.exists():
        raise ExamplesError(
            f"{parameter} is {name!r} and {base} has no such file or folder; put its rows there, or set it to null"
        )
    within = _name(base, place)
    inside = {each: file for each, file in files.items() if PurePosixPath(each).is_relative_to(within)}
    if not inside:  # beside the pattern's matches, or hidden
        walked = _walk(place, str(within), ())
        inside = {each.name: each for each in walked if isinstance(each, RawFile)}
    if not inside:
        raise ExamplesError(f"{place} holds no rows for {parameter}; read are {READ}")
    return inside


def _walk(path: Path, name: str, above: tuple[str, ...]) -> Iterator[RawFile | NotRead]:
    """Yield what a path is, or what lies in it, in the order of names; `above` are the folders that hold it."""
    if not path.is_dir():
        yield _tell(path, name)
        return
    real = os.path.realpath(path)
    if real in above:
        yield NotRead(name, "a link to a folder that holds it")
        return
    there = sorted(path.iterdir())  # before what it holds is looked for: a folder that cannot be read is named itself
    saved = _list_saved(path, name, there)
    yield from saved
    for inside in [] if saved else there:
        inner = f"{name}/{inside.name}"
        if inside.name.startswith("."):
            yield NotRead(inner, HIDDEN)
        else:
            yield from _walk(inside, inner, (*above, real))


def _tell(path: Path, name: str) -> RawFile | NotRead:
    """Return what a path is that is no folder."""
    kind = find_kind(path.name)
    if not path.exists():
        if kind is None:
            return NotRead(name, "a link to nothing")
        raise ExamplesError(f"{name} is a link to nothing; fetch what it names, or take it out of the raw folder")
    if kind is None:
        return NotRead(name, NO_DATA)
    if not path.is_file():
        return NotRead(name, "neither a file nor a folder")
    described = _tell_description(path)
    if described is not None:
        return NotRead(name, described)
    split = find_split(name)
    return RawFile(name, path, kind, split, _find_stem(name, split))


def _tell_description(path: Path) -> str | None:
    """Return what a file of a describing name describes; None where it is not one, or holds rows all the same."""
    found = _load(path) if path.name in DESCRIPTIONS or path.name.endswith(RECORD) else None
    if not isinstance(found, dict):
        return None
    if path.name.endswith(RECORD):
        return RECORDS_FILES if {*found} == {"raw", "files"} else None
    entries = [each for each in found.values() if isinstance(each, dict)]
    listed = any(isinstance(each.get(key), str) for each in entries for key in LLAMA_FACTORY)
    return LISTS_DATA if listed else DESCRIBES_DATA


def _list_saved(path: Path, name: str, there: Sequence[Path]) -> list[RawFile]:
    """Return what `datasets` saved in a folder: a data set, or the splits of several; nothing where it did not."""
    stem, held = path.name.split(".")[0], {each.name for each in there}
    if not held & {*DESCRIPTIONS}:
        return []
    splits = _load(path / "dataset_dict.json")
    if isinstance(splits, dict) and isinstance(splits.get("splits"), list):
        missing = [split for split in splits["splits"] if not (path / str(split)).is_dir()]
        if missing:
            raise ExamplesError(
                f"{name} lacks {len(missing)} of its {len(splits['splits'])} splits, first {missing[0]!r}; "
                "save it again, or take it out of the raw folder"
            )
        return [RawFile(f"{name}/{split}", path / split, SAVED, split, stem) for split in splits["splits"]]
    state = _load(path / "state.json")
    if (isinstance(state, dict) and "_data_files" in state) or _holds_description_alone(path, there):
        return [RawFile(name, path, SAVED, find_split(name), stem)]
    return []


def _holds_description_alone(path: Path, there: Sequence[Path]) -> bool:
    """Return whether a folder has a description as `datasets` writes it, and neither other data nor sub-folders."""
    if _tell_description(path / "dataset_info.json") != DESCRIBES_DATA:
        return False
    others = [each for each in there if each.name not in DESCRIPTIONS and not each.name.startswith(".")]
    return not any(each.is_dir() or find_kind(each.name) for each in others)


def _load(path: Path) -> Any:
    """Return what a file of JSON holds; None where it is not there or holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
