"""The only reader of params.yaml: checked, with the profile in force merged in, as frozen dataclasses.

A value that is unknown, missing, of another type, out of range, or that contradicts another one is refused here, by
name, before anything runs. It also reads the parts of dvc.yaml that say which files and parameters a stage depends on.
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from flows.sections import Number, Params, Version

BASE = "base"  # what a first version continues from: the base model, and empty artifacts that stand in git
TRACKED = ("examples", "utility", "finetuning", "evaluation")  # what dvc.yaml tracks of a profile
SHARED = {  # values that another stage reads, too
    "utility.template": "examples, finetuning and evaluation",
    "utility.kernel": "embedding",
}
TARGETS = ("topic", "path")
BY_OBJECTIVE = ("delift", "embedding")  # selectors that have an objective
ARMS = ("chosen", "random", "full")
AT_LEAST = {
    "models.max_tokens": 1,
    "examples.held_out_in": 2,
    "examples.pool_rows": 1,
    "examples.held_out_rows": 1,
    "embedding.batch_rows": 1,
    "embedding.max_tokens": 1,
    "utility.neighbours": 1,
    "utility.landmarks": 1,
    "utility.landmark_targets": 1,
    "utility.check_targets": 0,
    "utility.shard_pairs": 1,
    "utility.pack_tokens": 1,
    "scores.shard_rows": 1,
    "scores.pack_tokens": 1,
    "scores.less_dimensions": 1,
    "scores.less_epochs": 1,
    "scores.less_batch_rows": 1,
    "scores.less_lora_rank": 1,
    "selection.partitions": 1,
    "selection.eta": 0,
    "selection.nu": 0,
    "finetuning.epochs": 1,
    "finetuning.batch_rows": 1,
    "finetuning.lora_rank": 1,
    "finetuning.lora_alpha": 1,
    "finetuning.save_steps": 1,
    "evaluation.new_tokens": 1,
    "evaluation.demos": 0,
    "evaluation.bootstrap": 1,
}
SHARES = ("scores.less_warmup_share", "finetuning.warmup_fraction", "evaluation.confidence", "audit.held_out_share")


class ParamsError(ValueError):
    """params.yaml cannot be used as it is written."""


def read(path: Path = Path("params.yaml")) -> Params:
    """Read and check all parameters, the profile in force merged in.

    Raises:
        ParamsError: naming the value, what was found, and what is allowed.
    """
    raw = _load(path)
    kinds = get_type_hints(Params)
    _known(raw, [*kinds, "profiles"], path.name)
    _complete(raw, [*kinds, "profiles"], path.name)
    override = _profile(raw)
    sections = {
        name: _section(kind, {**_mapping(raw[name], name), **override.get(name, {})}, name)
        for name, kind in kinds.items()
        if name not in ("profile", "versions")
    }
    _check_ranges(sections)
    _check_budget(sections["selection"].budget)
    _check_target(sections["examples"].target)
    _check_objective(sections)
    _check_arms(sections["finetuning"].arms)
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
        raise ParamsError(f"there is no stage {address}{_hint(address, known)}; known: {', '.join(known)}")
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
        raise ParamsError(f"unknown profile {name!r}{_hint(name, profiles)}; known: {', '.join(profiles)}")
    where = f"profiles.{name}"
    sections = _mapping(profiles[name], where)
    _known(sections, TRACKED, where)
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
    _known(values, kinds, name)
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
    if BASE in versions:
        raise ParamsError(f"versions names {BASE!r}, which stands for what was before any version; give another name")
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
                f"versions.{path[-1]} continues from {previous!r}{_hint(previous, others)}, which is not "
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


def _check_ranges(sections: Mapping[str, Any]) -> None:
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in vars(section).items()}
    for name, least in AT_LEAST.items():
        if values[name] is not None and values[name] < least:
            raise ParamsError(f"{name} is {values[name]}; it must be at least {least}")
    for name in SHARES:
        if not 0 <= values[name] < 1:
            raise ParamsError(f"{name} is {values[name]}; it is a fraction, at least 0 and below 1")
    if not 0 < values["selection.epsilon"] < 1:
        raise ParamsError(f"selection.epsilon is {values['selection.epsilon']}; it is between 0 and 1")
    for name in ("scores.less_learning_rate", "finetuning.learning_rate"):
        if not values[name] > 0:
            raise ParamsError(f"{name} is {values[name]}; it must be above 0")
    for name, counts in (("caps", values["selection.caps"]), ("floors", values["selection.floors"])):
        for topic, count in counts.items():
            if count < 0:
                raise ParamsError(f"selection.{name}.{topic} is {count}; rows are counted from 0")


def _check_budget(budget: Mapping[str, Number]) -> None:
    kinds = ("count", "fraction", "response_tokens")
    _known(budget, kinds, "selection.budget")
    if len(budget) != 1:
        raise ParamsError(f"selection.budget has {len(budget)} kinds ({dict(budget)}); give one of {', '.join(kinds)}")
    ((kind, value),) = budget.items()
    if not value > 0:
        raise ParamsError(f"selection.budget is {kind}: {value}, which chooses nothing; it must be above 0")
    if kind == "fraction" and value > 1:
        raise ParamsError(f"selection.budget is fraction: {value}, over 100% of the pool; 0.3 stands for 30%")
    if kind != "fraction" and not isinstance(value, int):
        raise ParamsError(f"selection.budget is {kind}: {value}; it must be a whole number")


def _check_target(target: Mapping[str, Any] | None) -> None:
    if target is None:
        return
    _known(target, (*TARGETS, "rows"), "examples.target")
    given = [key for key in TARGETS if key in target]
    if len(given) != 1 or not isinstance(target[given[0]], str):
        raise ParamsError(
            f"examples.target is {dict(target)}; give the target task's rows by topic: NAME (rows of the pool) or by "
            "path: NAME (a file or folder inside the version's raw folder), or null"
        )
    rows = target.get("rows")
    if rows is not None and ("path" in target or not isinstance(rows, int) or rows < 1):
        raise ParamsError(
            f"examples.target.rows is {rows!r}; with topic it is at least 1 or null for all; with path all are taken"
        )


def _check_objective(sections: Mapping[str, Any]) -> None:
    """Refuse what selection would refuse after hours of scoring."""
    chosen, count = sections["selection"], sections["selection"].budget.get("count", 0)
    aim = chosen.rows_by in BY_OBJECTIVE and chosen.objective == "mutual_information"
    if aim and sections["examples"].target is None:
        raise ParamsError(
            "selection.objective is mutual_information but examples.target is null; name the target task's rows, such "
            "as {topic: NAME, rows: 32}"
        )
    utility = sections["utility"]
    if chosen.rows_by == "delift" and utility.kernel == "landmarks" and count > utility.landmarks:
        raise ParamsError(
            f"selection.budget is count: {count}, but kernel landmarks scores {utility.landmarks} demos, and no others "
            "can be chosen; raise utility.landmarks or lower the budget"
        )


def _check_arms(arms: Mapping[str, list[int]]) -> None:
    _known(arms, ARMS, "finetuning.arms")
    for arm, seeds in arms.items():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ParamsError(f"finetuning.arms.{arm} is {seeds}; give a list of different seeds, such as [0]")
    missing = [arm for arm in ARMS if arm not in arms]
    if missing:
        raise ParamsError(
            f"finetuning.arms lacks {', '.join(missing)}: results stand beside random rows and the full pool; "
            f"give each its seeds, such as {missing[0]}: [0]"
        )


def _known(values: Mapping[str, Any], names: Any, where: str) -> None:
    for key in values:
        if key not in names:
            raise ParamsError(f"{where} has an unknown {key!r}{_hint(key, names)}; known: {', '.join(names)}")


def _complete(values: Mapping[str, Any], names: Any, where: str) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        way = " (an empty one is written {})" if where.startswith("profiles.") else ""
        raise ParamsError(f"{where} lacks {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}{way}")


def _hint(name: Any, names: Any) -> str:
    close = get_close_matches(str(name), [str(known) for known in names], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
        return _hint(value, get_args(kind))
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
        return " (YAML reads 2e-4 as text; write 2.0e-4)"
    return ""
