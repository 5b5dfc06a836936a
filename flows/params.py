"""The only reader of params.yaml: checked, with the profile in force merged in, as frozen dataclasses.

A value that is unknown, missing, of another type, out of range, or that contradicts another one is refused here, by
name, before anything runs. It also reads the parts of dvc.yaml that say which files and parameters a stage depends on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

Text = str | None
Number = int | float
Counts = Mapping[str, int]

TRACKED = ("examples", "utility", "finetuning", "evaluation")  # what dvc.yaml tracks of a profile
SHARED = {  # values that another stage reads, too
    "utility.template": "examples, finetuning and evaluation",
    "utility.kernel": "embedding",
}
ARMS = ("chosen", "random", "full")
AT_LEAST = {
    "models.max_tokens": 1,
    "examples.held_out_in": 2,
    "examples.pool_rows": 1,
    "examples.held_out_rows": 1,
    "embedding.batch_rows": 1,
    "embedding.max_tokens": 1,
    "utility.neighbours": 1,
    "utility.shard_pairs": 1,
    "utility.pack_tokens": 1,
    "finetuning.epochs": 1,
    "finetuning.batch_rows": 1,
    "finetuning.lora_rank": 1,
    "finetuning.lora_alpha": 1,
    "finetuning.save_steps": 1,
    "evaluation.new_tokens": 1,
    "evaluation.bootstrap": 1,
}
SHARES = ("finetuning.warmup_fraction", "evaluation.confidence", "audit.held_out_share")


class ParamsError(ValueError):
    """params.yaml cannot be used as it is written."""


@dataclass(frozen=True)
class Version:
    """A data version."""

    raw: str  # folder of its raw files


@dataclass(frozen=True)
class Models:
    """The models and how they are run."""

    language: str  # package:NAME, a local folder, or a hub name
    language_revision: Text  # commit of a hub name
    embedding: str  # likewise, of the text encoder
    embedding_revision: Text  # commit of a hub name
    device: Literal["auto", "cpu", "cuda"]  # auto takes CUDA where there is one
    dtype: Literal["float32", "bfloat16", "float16"]  # of the weights
    max_tokens: int  # longest sequence scored or trained


@dataclass(frozen=True)
class Examples:
    """How raw rows become examples."""

    fields: Mapping[str, str]  # ours -> theirs; `messages` stands for prompt and response
    on_bad_row: Literal["stop", "reject"]  # name the rows and stop, or write them to rejects.parquet
    held_out_in: int  # one of so many prompts is held out
    seed: int  # of the split and of the samples
    pool_rows: int | None  # rows sampled from the pool; null is all
    held_out_rows: int | None  # rows sampled from the held-out rows; null is all


@dataclass(frozen=True)
class Embedding:
    """How texts are encoded."""

    batch_rows: int  # texts per forward pass
    max_tokens: int  # longest text encoded


@dataclass(frozen=True)
class Utility:
    """How pairs are scored."""

    template: Literal["chat", "delift"]  # earlier turns, or the published wording
    distance: Literal["probability", "log_likelihood"]  # root mean square of 1 - p, or mean log p
    kernel: Literal["exact", "neighbours"]  # all pairs, or each target's nearest demos
    neighbours: int  # demos per target, itself not counted
    shard_pairs: int  # pairs per part of the store
    pack_tokens: int  # tokens per forward pass


@dataclass(frozen=True)
class Selection:
    """How rows are chosen."""

    rows_by: Literal["delift", "random"]  # the method
    scaling: Literal["relu", "minmax", "none"]  # of utilities, before the objective
    budget: Mapping[str, Number]  # one of count, fraction, response_tokens
    caps: Counts  # topic -> at most so many rows; "*" is every topic not named
    floors: Counts  # topic -> at least so many rows
    seed: int  # for rows_by: random


@dataclass(frozen=True)
class Finetuning:
    """How every arm is trained."""

    method: Literal["lora", "full"]  # adapters, or all weights
    arms: Mapping[str, list[int]]  # arm -> seeds
    epochs: int  # passes over the arm's rows
    learning_rate: Number  # peak of a linear schedule with warm-up
    warmup_fraction: Number  # of the optimiser steps
    batch_rows: int  # examples per optimiser step
    lora_rank: int  # width of the adapters
    lora_alpha: int  # their scale times their rank
    save_steps: int  # optimiser steps between checkpoints
    whole_model: bool  # write `chosen` as a whole model folder, too


@dataclass(frozen=True)
class Evaluation:
    """How arms are compared."""

    new_tokens: int  # tokens generated per held-out row
    bootstrap: int  # resamples of the held-out rows
    confidence: Number  # of the intervals
    seed: int  # of the resamples


@dataclass(frozen=True)
class Audit:
    """Which promises are checked."""

    held_out_share: Number  # topics whose held-out share is lower are named


@dataclass(frozen=True)
class Params:
    """params.yaml, checked, with the profile in force."""

    profile: str  # its name
    versions: Mapping[str, Version]  # oldest first
    models: Models
    examples: Examples
    embedding: Embedding
    utility: Utility
    selection: Selection
    finetuning: Finetuning
    evaluation: Evaluation
    audit: Audit


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
    _check_arms(sections["finetuning"].arms)
    return Params(profile=raw["profile"], versions=_versions(raw["versions"]), **sections)


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
        raise ParamsError("versions is empty; add one, such as v1: {raw: data/raw/v1}")
    return versions


def _check_ranges(sections: Mapping[str, Any]) -> None:
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in vars(section).items()}
    for name, least in AT_LEAST.items():
        if values[name] is not None and values[name] < least:
            raise ParamsError(f"{name} is {values[name]}; it must be at least {least}")
    for name in SHARES:
        if not 0 <= values[name] < 1:
            raise ParamsError(f"{name} is {values[name]}; it is a fraction, at least 0 and below 1")
    if not values["finetuning.learning_rate"] > 0:
        raise ParamsError(f"finetuning.learning_rate is {values['finetuning.learning_rate']}; it must be above 0")
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
