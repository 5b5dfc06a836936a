"""The two files that DVC keeps per data version: `versions/<v>/dvc.yaml`, which it reads, and `dvc.lock` beside it.

DVC keeps what it has recorded beside the dvc.yaml that it has read, in one dvc.lock, which it reads and writes whole.
With a copy of dvc.yaml per version each has a dvc.lock of its own, and what one version costs does not grow with their
number. The stages of dvc.yaml are for each of `copied`, which is empty there, and in a copy the version that it is for.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.representer import SafeRepresenter

from flows import params
from flows.graph.stages import COPIED, GRAPH, PARAMS, read_stages
from tasks.artifacts.tables import tell_folder, write_text
from tasks.decisions import NAME, find_decisions, read_decisions

FOLDER = Path("versions")
HEAD = "# Written from dvc.yaml and params.yaml by every `tamis` command; an edit here is lost.\n"
UP = "../.."  # the project's folder, from that of a copy
WIDE = 1 << 20  # columns: a line stays a line


class LockError(ValueError):
    """A dvc.lock, or another file that DVC keeps, cannot be read."""


def place(version: str) -> Path:
    """Return the path of a version's copy of dvc.yaml.

    >>> place("v1").as_posix()
    'versions/v1/dvc.yaml'
    """
    return FOLDER / version / GRAPH


def place_lock(version: str) -> Path:
    """Return the path of a version's dvc.lock.

    >>> place_lock("v1").as_posix()
    'versions/v1/dvc.lock'
    """
    return place(version).with_suffix(".lock")


def find_stale(root: Path = Path(".")) -> dict[Path, str | None]:
    """Return the copies that are not as they should be, by path with their text; None: of no version any more.

    Raises:
        ParamsError: params.yaml or dvc.yaml cannot be used, or a version's name cannot name a folder.
    """
    versions = params.load(root / PARAMS)["versions"] or {}
    for name in versions:
        params.check_name(name)
    stages = {name: entry | {"do": {"wdir": UP, **entry["do"]}} for name, entry in read_stages(root).items()}
    body = _dump({"stages": stages}, WIDE)
    wanted: dict[Path, str | None] = {
        place(name): f"{HEAD}{_dump({'vars': [{COPIED: {name: settings}}]}, WIDE)}{body}"
        for name, settings in versions.items()
    }
    gone = [path for path in _list(root) if path not in wanted]
    return {path: text for path, text in wanted.items() if _read(root / path) != text} | dict.fromkeys(gone)


def write_copies(root: Path = Path(".")) -> list[Path]:
    """Write the copies that are not as they should be, and delete those of no version; returns their paths.

    What lies beside a deleted copy stays, dvc.lock and decisions: a version that is named again is known again.
    """
    stale = find_stale(root)
    for path, text in stale.items():
        if text is None:
            (root / path).unlink(missing_ok=True)
            with suppress(OSError):
                (root / path).parent.rmdir()
        else:
            write_text(text, root / path)
    return [*stale, *_write_decisions(root)]


def list_left(root: Path = Path(".")) -> dict[Path, list[str]]:
    """Return the folders of versions that params.yaml does not name, with the names of what is kept there."""
    versions = params.load(root / PARAMS)["versions"] or {}
    folders = {path.parent for path in (root / FOLDER).glob("*/*") if path.parent.name not in versions}
    return {one.relative_to(root): sorted(path.name for path in one.iterdir()) for one in sorted(folders)}


def _write_decisions(root: Path) -> list[Path]:
    """Write the decisions of versions that have no such file yet, those of the version before; returns their paths."""
    lacking = [path.with_name(NAME) for path in _list(root) if not (root / path).with_name(NAME).exists()]
    if not lacking or NAME not in (root / GRAPH).read_text(encoding="utf-8"):
        return []
    versions, made = params.load(root / PARAMS)["versions"] or {}, []
    for version, settings in versions.items():
        path = find_decisions(Path(), version)
        if path in lacking:
            before = find_decisions(root, (settings or {}).get("previous", ""))
            read_decisions(before)  # a damaged file is not handed on
            write_text(before.read_text(encoding="utf-8") if before.exists() else "[]\n", root / path)
            made.append(path)
    return made


def read(path: Path) -> str:
    """Return the text of a file that DVC keeps.

    Raises:
        LockError: it is no text, or a folder.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LockError(f"{path} is no file of DVC, which is text in UTF-8: {error}") from error
    except IsADirectoryError as error:
        raise LockError(tell_folder(path)) from error


def read_listing(path: Path) -> dict[str, str]:
    """Return the digests of a folder's files, by their paths in it, as DVC's cache lists them.

    Raises:
        LockError: the list is damaged.
    """
    try:
        return {one["relpath"]: one["md5"] for one in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError, RecursionError, IsADirectoryError) as error:
        told = f"{path}, DVC's list of the files of a folder, cannot be read ({type(error).__name__})"
        raise LockError(
            f"{told}; `tamis verify` removes it, and `dvc fetch` brings it back; then call again"
        ) from error


def parse_lock(text: str) -> dict[str, Any]:
    """Return the stages that the text of a dvc.lock records, by their addresses.

    Raises:
        LockError: it is no lock file.
    """
    return _find_stages(parse_file(text))


def _find_stages(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stages of what a dvc.lock records.

    Raises:
        LockError: it is no lock file.
    """
    stages = found.get("stages") or {}
    if not isinstance(stages, dict):
        raise LockError("not a lock file of DVC: its stages are no mapping")
    for address, stage in stages.items():
        if not _is_record(stage):
            raise LockError(f"not a lock file of DVC: what stands at {address} is no record of a stage")
    return dict(stages)


def _is_record(stage: Any) -> bool:
    """Return whether something is what DVC records of a stage, as far as it is read here."""
    if not isinstance(stage, dict):
        return False
    outs, settings = stage.get("outs", []), stage.get("params") or {}
    listed = isinstance(outs, list) and all(isinstance(out, dict) and isinstance(out.get("path"), str) for out in outs)
    return listed and isinstance(settings, dict) and all(isinstance(one, dict) for one in settings.values())


def list_outs(text: str) -> dict[str, str]:
    """Return the digest of every artifact that a dvc.lock records, by path.

    Raises:
        LockError: the text is none.
    """
    outs = [out for stage in parse_lock(text).values() for out in stage.get("outs", ())]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def list_inputs(text: str) -> dict[str, str]:
    """Return the digest of every file or folder, by path, that a dvc.lock records and that is no artifact and no code.

    They are the raw data, the records of the models, erased rows, and what people decided on rows.

    Raises:
        LockError: the text is none.
    """
    deps = [dep for stage in parse_lock(text).values() for dep in stage.get("deps", ())]
    code = ("tamis", "tasks", "flows")
    return {
        dep["path"]: dep["md5"]
        for dep in deps
        if "md5" in dep and "/version=" not in dep["path"] and Path(dep["path"]).parts[0] not in code
    }


def list_settings(text: str) -> dict[str, Any]:
    """Return the settings of params.yaml that a dvc.lock records, whole sections among them, by their dotted names.

    Raises:
        LockError: the text is none.
    """
    return {
        name: value
        for stage in parse_lock(text).values()
        for name, value in (stage.get("params") or {}).get("params.yaml", {}).items()
    }


def parse_file(text: str) -> dict[str, Any]:
    """Return what a file of DVC records: a dvc.lock, a .dvc file, or one of its run-cache.

    Raises:
        LockError: it is no such file.
    """
    try:
        return dict(YAML(typ="safe").load(text) or {})
    except (YAMLError, AttributeError, TypeError, ValueError) as error:
        raise LockError(f"not a lock file of DVC: {' '.join(str(error).split())}") from error


def is_lock(content: bytes) -> bool:
    """Return whether a file's bytes are a dvc.lock that DVC takes; an empty file, as a full disk leaves it, is none.

    >>> is_lock(b"schema: '2.0'"), is_lock(b""), is_lock(b"stages: {}")
    (True, False, False)
    """
    try:
        found = parse_file(content.decode())
        _find_stages(found)
    except (LockError, UnicodeDecodeError):
        return False
    return "schema" in found


def record(path: Path, stages: Mapping[str, Any]) -> None:
    """Put stages into a dvc.lock in one step, byte for byte as DVC writes it but in a tenth of the time.

    Args:
        path: of the file.
        stages: what DVC records of them, by their addresses.
    """
    known = parse_lock(read(path)) if path.exists() else {}
    text = _dump({"schema": "2.0", "stages": known | _plain(stages)}, 80)
    write_text(text.replace(": \n", ":\n"), path)  # of a null


def digest(path: Path) -> str:
    """Return the md5 of a file's bytes, by which DVC knows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def place_object(cache: Path, digest: str) -> Path:
    """Return where DVC's folder of files by digest holds one.

    >>> place_object(Path("files/md5"), "0123ab.dir").as_posix()
    'files/md5/01/23ab.dir'
    """
    return cache / digest[:2] / digest[2:]


class _EmptyNulls(SafeRepresenter):
    """Of its own, since representers are kept by class: another's would change how DVC writes in this process."""


_EmptyNulls.add_representer(type(None), lambda one, _: one.represent_scalar("tag:yaml.org,2002:null", ""))


def _dump(value: Any, width: int) -> str:
    """Return a value as YAML in the style of DVC, which leaves the place of a null empty."""
    writer = YAML(typ="safe")
    writer.default_flow_style, writer.sort_base_mapping_type_on_output, writer.width = False, False, width
    writer.Representer = _EmptyNulls
    stream = StringIO()
    writer.dump(value, stream)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """Return a value in Python's own dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _list(root: Path) -> Iterator[Path]:
    if (root / FOLDER).is_dir():
        with os.scandir(root / FOLDER) as folders:
            found = [FOLDER / folder.name / GRAPH for folder in folders]
        yield from (path for path in found if (root / path).is_file())


def _read(path: Path) -> str | None:
    """Return the text of a copy; None: there is none, or what stands there is no text."""
    try:
        return read(path) if path.exists() else None
    except LockError:
        return None
