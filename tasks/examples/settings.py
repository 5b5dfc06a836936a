"""Settings of the stage `examples`, and which of them hold for which file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tamis.examples.formats import FORMATS, PARTS, check_fields
from tasks.examples.files import RawFile
from tasks.settings import Seed, checked, hint, spell

TARGETS = ("topic", "path")
HELD_OUT = ("path", "split")


def refuse_fields(fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the field mapping, where it can be followed.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    for name in fields:
        if name not in PARTS:
            raise ValueError(f"maps an unknown part {name!r}{hint(name, PARTS)}; an example has {', '.join(PARTS)}")
    try:
        check_fields(fields)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("examples.fields ")) from None
    return fields


def refuse_sources(sources: Mapping[str, list[Mapping[str, Any]]]) -> Mapping[str, list[Mapping[str, Any]]]:
    """Return what is said of the files of some versions, where that can be followed.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    known = ("path", "format", "fields", "topic", "source")
    for version, number, one in ((key, *pair) for key, said in sources.items() for pair in enumerate(said, start=1)):
        for name in one:
            if name not in known:
                near = f"{hint(name, known)}; known: {', '.join(known)}"
                raise ValueError(f"of {version}, number {number}, has an unknown {name!r}{near}")
        texts = [name for name in known if name != "fields" and not isinstance(one.get(name, ""), str)]
        if not one.get("path") or texts or not isinstance(one.get("fields", {}), Mapping):
            raise ValueError(
                f"of {version}, number {number}, is {dict(one)}; give path: a file, folder or pattern inside raw and, "
                "where they are not those of section examples, format: NAME, fields: {part: field}, topic: NAME or "
                "source: NAME"
            )
        try:
            refuse_format(one.get("format", "auto"))
            refuse_fields(one.get("fields", {}))
        except ValueError as error:
            raise ValueError(f"of {version}, number {number} ({one['path']}): {error}") from None
    return sources


def refuse_format(name: str) -> str:
    """Return the name of a format, where it is one.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    known = ("auto", *FORMATS)
    if name not in known:
        raise ValueError(f"is {name!r}{hint(name, known)}; known: {', '.join(known)}")
    return name


def refuse_held_out(chosen: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return which rows are held out by their file, where that is said.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    if chosen is None or (len(chosen) == 1 and next(iter(chosen)) in HELD_OUT):
        return chosen
    raise ValueError(
        f"is {dict(chosen)}; give path: NAME (a file or folder inside the version's raw folder) or split: NAME (of a "
        "data set with splits), or null, which holds out by the prompt"
    )


def refuse_target(target: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the target task's description, where it is one.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    if target is None:
        return None
    known = (*TARGETS, "rows")
    for key in target:
        if key not in known:
            raise ValueError(f"has an unknown {key!r}{hint(key, known)}; known: {', '.join(known)}")
    given = [key for key in TARGETS if key in target]
    if len(given) != 1 or not isinstance(target[given[0]], str):
        raise ValueError(
            f"is {dict(target)}; give the target task's rows by topic: NAME (rows of the pool) or by path: NAME (a "
            "file or folder inside the version's raw folder), or null"
        )
    rows = target.get("rows")
    if rows is not None and ("path" in target or not isinstance(rows, int) or rows < 1):
        raise ValueError(
            f"has rows: {spell(rows)}; with topic it is at least 1 or null for all; with path all are taken"
        )
    return target


@checked
class ExamplesSettings:
    """How raw rows become examples."""

    format: Annotated[str, AfterValidator(refuse_format)] = Field(
        "auto", description=f"of the rows: auto, which looks at each file, | {' | '.join(FORMATS)}"
    )
    fields: Annotated[Mapping[str, str], AfterValidator(refuse_fields)] = Field(
        default_factory=dict,
        description="part -> the field that holds it, where the format does not say: " + ", ".join(PARTS),
    )
    sources: Annotated[Mapping[str, list[Mapping[str, Any]]], AfterValidator(refuse_sources)] = Field(
        default_factory=dict,
        description="version -> files of its raw path that are read otherwise, the first that fits: {path: NAME or "
        "pattern, format, fields, topic, source}",
    )
    learn: Literal["all", "last"] = Field(
        "all", description="of a conversation every turn of the assistant is learnt | the last one alone"
    )
    system: Literal["template", "first_user", "drop"] = Field(
        "template",
        description="system messages stand where the chat template puts them | before the first user's text | nowhere",
    )
    keep: list[str] = Field(default_factory=list, description="other columns that travel along, in the column `kept`")
    encoding: str = Field("utf-8", description="of text files")
    on_long_row: Literal["stop", "reject", "drop_turns"] = Field(
        "stop", description="too long for models.max_tokens: stop | reject | leave out whole exchanges at its end"
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop", description="name the rows and stop | write them to rejects.parquet"
    )
    on_special_tokens: Literal["reject", "as_text"] = Field(
        "reject",
        description="texts of control tokens inside messages, which would end or open a turn: bad rows | read as text",
    )
    held_out_every: Annotated[int, Field(ge=2)] = Field(
        5, description="one prompt in so many is held out: where sha256(seed + prompt) mod this is 0"
    )
    validation_every: Annotated[int, Field(ge=2)] | None = Field(
        None, description="one of the other prompts in so many validates: its rows are neither chosen nor measured on"
    )
    held_out: Annotated[Mapping[str, str] | None, AfterValidator(refuse_held_out)] = Field(
        None, description="your own held-out rows: {path: NAME} inside raw | {split: test}; null: by the prompt"
    )
    near_duplicate_jaccard: Annotated[float, Field(ge=0.1, le=1)] = Field(
        0.8, description="rows with so many of their word 3-grams in common are near-duplicates (Jaccard similarity)"
    )
    near_duplicates: Literal["keep", "drop", "weight"] = Field(
        "keep", description="in the pool: keep all | one of each cluster | one, which counts for all in the objective"
    )
    drop_near_held_out: bool = Field(
        False, description="keep near-duplicates of held-out and of validation rows out of the pool"
    )
    deduplicate: bool = Field(
        True, description="false leaves rows of the pool that repeat a text in use, each under an id of its own"
    )
    ground_set: Literal["new", "all"] = Field(
        "new", description="choose among new and edited rows | among those of the version before, too"
    )
    target: Annotated[Mapping[str, str | int | None] | None, AfterValidator(refuse_target)] = Field(
        None, description="the target task: {topic: NAME, rows: 32} of the pool | {path: NAME} inside raw; null: none"
    )
    retention_set: str | None = Field(
        None, description="file or folder inside raw: rows of what must not be forgotten, never trained on; null: none"
    )
    pool_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="rows sampled from the pool, stratified by topic; null: all"
    )
    held_out_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="rows sampled from the held-out rows; null: all"
    )
    seed: Seed = Field(0, description="of the split and of the samples")


@dataclass(frozen=True)
class Source:
    """What a version says of some of its files."""

    path: str  # a file, a folder or a pattern, inside the raw path
    format: str | None = None  # None: that of the settings
    fields: Mapping[str, str] | None = None  # likewise
    topic: str | None = None  # of all rows; None: by field or file
    source: str | None = None  # of rows that name none themselves

    def fits(self, file: RawFile) -> bool:
        """Return whether a file is what the path names, or lies in it."""
        inside = PurePosixPath(file.name.partition("/")[2] or file.name)
        return inside.is_relative_to(self.path) or fnmatchcase(str(inside), self.path)


def list_sources(settings: ExamplesSettings, version: str) -> tuple[Source, ...]:
    """Return what is said of some files of a version."""
    return tuple(Source(**one) for one in settings.sources.get(version, ()))


def find_source(file: RawFile, sources: Sequence[Source]) -> Source:
    """Return what is said of a file: the first source that fits it, or one that says nothing."""
    return next((one for one in sources if one.fits(file)), Source(""))


def choose_settings(source: Source, settings: ExamplesSettings) -> ExamplesSettings:
    """Return how the files of a source are read."""
    said = {"format": source.format, "fields": source.fields}
    return replace(settings, **{name: value for name, value in said.items() if value is not None})
