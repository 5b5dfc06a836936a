"""The only reader and writer of params.yaml: its sections as the stages' settings, checked alone and together.

A value that is unknown, missing, of another type, out of range, or that contradicts another one is refused here, by
name, before anything runs. YAML is read as DVC reads it.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import date
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

from flows.checks import ParamsError, refuse_contradictions
from flows.params_errors import explain, spell
from tasks.acceptance.settings import AcceptanceSettings
from tasks.audit.settings import AuditSettings
from tasks.embedding.settings import EmbeddingSettings
from tasks.evaluation.settings import EvaluationSettings
from tasks.examples.settings import ExamplesSettings
from tasks.finetuning.settings import FinetuningSettings
from tasks.gradients.settings import GradientsSettings
from tasks.masks.settings import MaskSettings
from tasks.scores.settings import ScoresSettings
from tasks.selection.settings import SelectionSettings
from tasks.settings import LandingSettings, MirrorSettings, ModelsSettings, RuntimeSettings, VersionSettings, hint
from tasks.utility.settings import UtilitySettings

BASE = "base"  # what a first version continues from: the base model, and empty artifacts that stand in git
GENERAL = "general"  # what evaluation calls rows of examples.retention_set, beside the versions' held-out rows
NAME = re.compile(
    r"(?!.*\.\.)(?!.*(?:\.lock|\.)$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
)  # of a folder, a stage and a git tag


@dataclass(frozen=True)
class Params:
    """params.yaml, checked."""

    versions: Mapping[str, VersionSettings]  # oldest first
    models: ModelsSettings
    examples: ExamplesSettings
    embedding: EmbeddingSettings
    utility: UtilitySettings
    scores: ScoresSettings
    gradients: GradientsSettings
    selection: SelectionSettings
    mask: MaskSettings
    finetuning: FinetuningSettings
    evaluation: EvaluationSettings
    audit: AuditSettings
    runtime: RuntimeSettings
    acceptance: AcceptanceSettings
    landing: LandingSettings
    mirror: MirrorSettings


OPTIONAL = ("runtime", "acceptance", "landing", "mirror")  # sections that may be left out: no figure depends on them
SECTIONS = {name: kind for name, kind in get_type_hints(Params).items() if name != "versions"}


def read(path: Path = Path("params.yaml"), *, bare: bool = False) -> Params:
    """Read and check all parameters.

    Args:
        path: the file.
        bare: it may have no version yet.

    Raises:
        ParamsError: naming the value, what was found, and what is allowed.
    """
    raw = load(path)
    values = compose(raw, path.name, bare=bare)
    _refuse_untracked(raw, path.with_name("dvc.yaml"))
    return values


def compose(raw: Mapping[str, Any], place: str = "params.yaml", *, bare: bool = False) -> Params:
    """Return what a file says as parameters, after checking them.

    Raises:
        ParamsError: as `read`.
    """
    raw = {name: {} for name in OPTIONAL} | raw
    _refuse_infinite(raw, "")
    _refuse_unknown(raw, ["versions", *SECTIONS], place)
    missing = [name for name in ("versions", *SECTIONS) if name not in raw]
    if missing:
        raise ParamsError(f"{place} lacks {_add(missing)} (an empty section is written {{}})")
    sections = {name: check_section(kind, raw[name], name) for name, kind in SECTIONS.items()}
    values = Params(versions=_versions(raw["versions"], bare=bare), **sections)
    refuse_contradictions(values)
    return values


def read_versions(path: Path = Path("params.yaml")) -> dict[str, VersionSettings]:
    """Read and check the data versions alone.

    Raises:
        ParamsError: a name that cannot be one; a version continues from itself, from one that is not there, or in a
            circle.
    """
    return _versions(find(load(path), "versions"))


def load(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds.

    Raises:
        ParamsError: it is missing, empty, no YAML, no mapping, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ParamsError(f"there is no {path} here; run in the folder of the project") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    return copy.deepcopy(_load_text(text, str(path)))


@lru_cache(maxsize=4)
def _load_text(text: str, place: str) -> dict[str, Any]:
    """Return what a text holds; a run asks for the same two files dozens of times."""
    return dict(_parse(text, YAML(typ="safe", pure=True), place))


def _parse(text: str, reader: YAML, place: str) -> Mapping[str, Any]:
    """Return what a YAML text holds, as its reader gives it; `load` says what is refused."""
    try:
        found = reader.load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "?([^"\s]+)"?', str(error))
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "it"
        raise ParamsError(f"{place} gives {key[1] if key else 'a key'} twice ({where}); keep one of them") from None
    except YAMLError as error:
        raise ParamsError(f"{place} is not valid YAML: {_shorten(error)}") from None
    if found is None:
        raise ParamsError(f"{place} is empty; `git checkout` brings the last one back")
    _mapping(found, place)
    return found


def merge(text: str, addition: str, place: str) -> str:
    """Return params.yaml's text with the settings of another text in it, and all comments kept.

    Args:
        text: of params.yaml.
        addition: sections, and of each some settings; a setting's value is replaced whole.
        place: the addition's file, for messages.

    Raises:
        ParamsError: an unknown section, or the outcome cannot be used.
    """
    editor = _open_editor()
    whole, added = editor.load(text), _parse(addition, editor, place)
    _refuse_unknown(added, SECTIONS, place)
    for section, settings in added.items():
        _mapping(settings, f"{section} in {place}")
        there = whole.setdefault(section, {})
        there.update({key: value for key, value in settings.items() if there.get(key, ...) != value})
    return _dump(whole, editor)


def add_version(text: str, name: str, version: Mapping[str, str], sources: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return params.yaml's text with another data version behind the others, and all comments kept.

    Args:
        text: of params.yaml.
        name: of the version, which none has yet.
        version: its settings.
        sources: what `examples.sources` says of its files.

    Raises:
        ParamsError: a name that is in use or cannot be one; it continues from one that is not there.
    """
    editor = _open_editor()
    whole = editor.load(text)
    if not whole["versions"]:
        _start_versions(whole, name, version)
    elif name in whole["versions"]:
        raise ParamsError(
            f"there is a data version {name!r} already ({whole['versions'][name]['raw']}); give another name"
        )
    else:
        _append_version(whole["versions"], name, version)
    if sources:
        said = [CommentedMap(one) for one in sources]
        for one in said:
            one.fa.set_flow_style()
        section = whole["examples"]
        if "sources" not in section:
            section.insert([*section, "fields"].index("fields") + 1, "sources", CommentedMap())
        section["sources"][name] = said
    return _dump(whole, editor)


def _start_versions(whole: CommentedMap, name: str, version: Mapping[str, str]) -> None:
    """Add the first version; of the comments behind the empty list, those on lines of their own stand behind it."""
    added = CommentedMap(version)
    added.fa.set_flow_style()
    whole["versions"] = CommentedMap({name: added})
    comment = whole.ca.items.get("versions", [None] * 3)[2]
    if comment is not None:
        beside, _, below = comment.value.partition("\n")
        comment.value = f"{beside}\n"
        if below:
            whole["versions"].ca.items[name] = [None, None, CommentToken(f"\n{below}", comment.start_mark), None]


def _append_version(versions: CommentedMap, name: str, version: Mapping[str, str]) -> None:
    """Add a version behind the others, in the style of the last one."""
    last, added = versions[list(versions)[-1]], CommentedMap(version)
    if last.fa.flow_style():
        added.fa.set_flow_style()
    else:  # what stands behind the last entry stands behind the new one
        old, new = list(last)[-1], list(added)[-1]
        end = last.ca.items.get(old, [None] * 3)[2]
        if end is not None and end.value.startswith("\n"):
            added.ca.items[new] = last.ca.items.pop(old)
    versions[name] = added


def _open_editor() -> YAML:
    """Return a reader and writer of YAML that keeps comments."""
    editor = YAML()
    editor.width = 1000  # a line stays a line
    editor.Representer = _NamedNulls
    return editor


class _NamedNulls(RoundTripRepresenter):
    """Of its own, since representers are kept by class: another's would change how DVC writes in this process."""


_NamedNulls.add_representer(type(None), lambda one, _: one.represent_scalar("tag:yaml.org,2002:null", "null"))


def _dump(whole: Any, editor: YAML) -> str:
    """Return params.yaml's text, if it can be used."""
    stream = StringIO()
    editor.dump(whole, stream)
    compose(YAML(typ="safe", pure=True).load(stream.getvalue()))
    return stream.getvalue()


def write(path: Path, text: str) -> None:
    """Replace a file whole; its line ends stay as most of them are.

    Raises:
        ArtifactError: the folder or the disk refuses.
    """
    from tasks.artifacts.tables import write_text  # whoever only reads starts without it

    before = path.read_bytes() if path.exists() else b""
    ends = "\r\n" if 2 * before.count(b"\r\n") > before.count(b"\n") else "\n"
    write_text(text.replace("\n", ends), path)


def _refuse_untracked(raw: Mapping[str, Any], graph: Path) -> None:
    """Raise ParamsError where dvc.yaml names a parameter that the file leaves to its default: DVC cannot follow it."""
    if graph.exists():
        for entry in load(graph)["stages"].values():
            for dotted in entry.get("do", entry).get("params", []):
                find(raw, dotted)


def _shorten(error: Exception) -> str:
    """Return an error of YAML in a line, without its advice to programmers."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    tab = "; indent with blanks, not tabs" if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{tab}"


def find(value: Any, dotted: str) -> Any:
    """Return what stands under a dotted name.

    Raises:
        ParamsError: nothing does.
    """
    for part in dotted.split("."):
        if part not in _mapping(value, dotted):
            raise ParamsError(f"params.yaml has no {dotted}, which dvc.yaml names; add it")
        value = value[part]
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ParamsError(f"{name} must hold `name: value` lines, got {spell(value)}")
    return dict(value)


def _versions(raw: Any, *, bare: bool = False) -> dict[str, VersionSettings]:
    named = {} if raw is None else _mapping(raw, "versions")
    for name in named:
        check_name(name)
    versions = {name: check_section(VersionSettings, values, f"versions.{name}") for name, values in named.items()}
    if not versions and not bare:
        raise ParamsError(
            "versions is empty; add one with `tamis add`, or write it, such as v1: {raw: data/raw/v1, previous: base}"
        )
    for name, version in versions.items():
        _check_previous(name, version.previous, versions)
    return versions


def check_name(name: Any) -> None:
    """Refuse a version's name that cannot name a folder, a stage and a git tag, or that stands for something else."""
    if not isinstance(name, str):
        kind = {bool: "true or false", int: "a number", float: "a number", date: "a date", type(None): "nothing"}
        read = kind.get(type(name), "no text")
        raise ParamsError(f"versions names {name}, which YAML reads as {read}; write '{name}' in quotes")
    if not NAME.match(name):
        raise ParamsError(
            f"versions names {name!r}; a version's name has letters, digits, and . _ - between them, 64 at most, such "
            "as v2 or 2026-11"
        )
    for taken, what in ((BASE, "what was before any version"), (GENERAL, "rows of examples.retention_set")):
        if name == taken:
            raise ParamsError(f"versions names {name!r}, which stands for {what}; give another name")


def _check_previous(name: str, previous: str, versions: Mapping[str, VersionSettings]) -> None:
    """Refuse a version that does not lead back to the base."""
    path = [name]
    while previous != BASE:
        if previous not in versions:
            others = [*(known for known in versions if known != path[-1]), BASE]
            raise ParamsError(
                f"versions.{path[-1]} continues from {previous!r}{hint(previous, others)}, which is not "
                f"there; give one of {', '.join(others)}"
            )
        if previous in path:
            circle = " -> ".join([*path[path.index(previous) :], previous])
            raise ParamsError(
                f"versions.{path[-1]} continues from {'itself' if previous == path[-1] else previous}: {circle}; "
                f"the first version's previous is {BASE}"
            )
        path.append(previous)
        previous = versions[previous].previous


def check_section(kind: type, raw: Any, name: str) -> Any:
    """Return a section as its settings; a section inside it likewise."""
    values, kinds = _mapping(raw, name), get_type_hints(kind)
    _refuse_unknown(values, kinds, name)
    needed = (key for key, field in kind.__pydantic_fields__.items() if field.is_required())
    missing = [key for key in needed if key not in values]
    if missing:
        raise ParamsError(f"{name} lacks {_add(missing)}")
    for key, value in values.items():
        if is_dataclass(kinds[key]):
            values[key] = check_section(kinds[key], value, f"{name}.{key}")
    try:
        return kind(**values)
    except ValidationError as error:
        raise ParamsError(explain(error, kinds, values, name)) from None


def _refuse_infinite(value: Any, dotted: str) -> None:
    """Raise ParamsError at a number that is infinite or none (NaN), wherever it stands."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ParamsError(f"{dotted.removeprefix('.')} is {value}; it must be a finite number")
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        _refuse_infinite(one, f"{dotted}.{key}")


def _refuse_unknown(values: Mapping[str, Any], names: Any, where: str) -> None:
    for key in values:
        if key not in names:
            raise ParamsError(f"{where} has an unknown {key!r}{hint(key, names)}; known: {', '.join(names)}")


def _add(names: Sequence[str]) -> str:
    return f"{', '.join(names)}; add {'it' if len(names) == 1 else 'them'}"
