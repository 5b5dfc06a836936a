"""The only reader of params.yaml: checked, with the profile in force merged in, as frozen dataclasses.

A value that is unknown, missing, of another type, out of range, or that contradicts another one is refused here, by
name, before anything runs. It also reads the parts of dvc.yaml that say which files and parameters a stage depends on.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from flows.checks import ParamsError, check, hint, refuse_unknown
from flows.sections import Number, Params, Version

BASE = "base"  # what a first version continues from: the base model, and empty artifacts that stand in git
GENERAL = "general"  # what evaluation calls rows of examples.general, beside the versions' held-out rows
TRACKED = ("examples", "utility", "finetuning", "evaluation")  # what dvc.yaml tracks of a profile
SHARED = {  # values that another stage reads, too
    "utility.template": "examples, finetuning and evaluation",
    "utility.kernel": "embedding",
}


def read(path: Path = Path("params.yaml")) -> Params:
    """Read and check all parameters, the profile in force merged in.

    Raises:
        ParamsError: naming the value, what was found, and what is allowed.
    """
    raw = _load(path)
    kinds = get_type_hints(Params)
    refuse_unknown(raw, [*kinds, "profiles"], path.name)
    _complete(raw, [*kinds, "profiles"], path.name)
    override = _profile(raw)
    sections = {
        name: _section(kind, {**_mapping(raw[name], name), **override.get(name, {})}, name)
        for name, kind in kinds.items()
        if name not in ("profile", "versions")
    }
    check(sections)
    return Params(profile=raw["profile"], versions=_versions(raw["versions"]), **sections)


def read_versions(path: Path = Path("params.yaml")) -> dict[str, Version]:
    """Read and check the data versions alone.

    Raises:
        ParamsError: a version continues from itself, from one that is not there, or in a circle.
    """
    return _versions(_at(_load(path), "versions"))


def needs(address: str, root: Path = Path(".")) -> tuple[list[str], dict[str, Any]]:
    """Return the files that a stage depends on and the values of its parameters, by dvc.yaml's own lists.

    Args:
        address: name and version, `utility@v1`.
        root: the folder that holds dvc.yaml and params.yaml.
    """
    name, _, key = address.partition("@")
    raw = _load(root / "params.yaml")
    stages = _load(root / "dvc.yaml")["stages"]
    if name not in stages or key not in raw["versions"]:
        known = [f"{stage}@{version}" for version in raw["versions"] for stage in stages]
        raise ParamsError(f"there is no stage {address}{hint(address, known)}; known: {', '.join(known)}")
    entry = stages[name]["do"]
    context = {**raw, "key": key, "item": raw["versions"][key]}

    def resolve(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda found: str(_at(context, found[1])), text)

    keys = [resolve(text) for text in entry.get("params", [])]
    return [resolve(text) for text in entry.get("deps", [])], {key: _at(raw, key) for key in keys}


def _load(path: Path) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError as error:
        raise ParamsError(f"there is no {path} here; run in the folder of the project") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _at(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if part not in _mapping(value, dotted):
            raise ParamsError(f"params.yaml has no {dotted}, which dvc.yaml names; add it")
        value = value[part]
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ParamsError(f"{name} must hold `name: value` lines, got {value!r}")
    return dict(value)


def _profile(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sections of the profile in force, each of them one that dvc.yaml tracks."""
    profiles = _mapping(raw["profiles"], "profiles")
    name = raw["profile"]
    if name not in profiles:
        raise ParamsError(f"unknown profile {name!r}{hint(name, profiles)}; known: {', '.join(profiles)}")
    where = f"profiles.{name}"
    sections = _mapping(profiles[name], where)
    refuse_unknown(sections, TRACKED, where)
    _complete(sections, TRACKED, where)
    chosen = {section: _mapping(values, f"{where}.{section}") for section, values in sections.items()}
    for dotted, readers in SHARED.items():
        section, _, key = dotted.partition(".")
        if key in chosen.get(section, {}):
            raise ParamsError(f"{where}.{dotted} is read by {readers} as well; set {dotted} itself")
    return chosen


def _section(kind: type, values: Mapping[str, Any], name: str) -> Any:
    """Return a section as its dataclass, each value of its type."""
    kinds = get_type_hints(kind)
    refuse_unknown(values, kinds, name)
    _complete(values, kinds, name)
    for key, value in values.items():
        if not _fits(value, kinds[key]):
            raise ParamsError(f"{name}.{key} must be {_words(kinds[key])}, got {value!r}{_advice(value, kinds[key])}")
    return kind(**values)


def _versions(raw: Any) -> dict[str, Version]:
    versions = {
        str(name): _section(Version, _mapping(values, f"versions.{name}"), f"versions.{name}")
        for name, values in _mapping(raw, "versions").items()
    }
    if not versions:
        raise ParamsError("versions is empty; add one, such as v1: {raw: data/raw/v1, previous: base}")
    for name, what in ((BASE, "what was before any version"), (GENERAL, "rows of examples.general")):
        if name in versions:
            raise ParamsError(f"versions names {name!r}, which stands for {what}; give another name")
    for name, version in versions.items():
        _check_previous(name, version.previous, versions)
    return versions


def _check_previous(name: str, previous: str, versions: Mapping[str, Version]) -> None:
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


def _complete(values: Mapping[str, Any], names: Any, where: str) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        way = " (an empty one is written {})" if where.startswith("profiles.") else ""
        raise ParamsError(f"{where} lacks {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}{way}")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a YAML value is of a field's type; true and false are no numbers."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _words(kind: Any) -> str:
    """Return a type in words, for messages."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if kind == Number:
        return "a number"
    if kind in names:
        return names[kind]
    return " or ".join(_parts(kind))


def _parts(kind: Any) -> Iterator[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from inner
    elif origin in (Union, UnionType):
        yield from map(_words, inner)
    elif origin is list:
        yield f"a list of {_words(inner[0])}s".replace("of a ", "of ")
    else:
        yield f"`name: {_words(inner[1])}` pairs"


def _advice(value: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return hint(value, get_args(kind))
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
        return " (YAML reads 2e-4 as text; write 2.0e-4)"
    return ""
