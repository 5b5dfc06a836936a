"""Settings of the stage `examples`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tamis.examples.parsing import PARTS, check_fields
from tasks.settings import Seed, checked, hint

TARGETS = ("topic", "path")


def refuse_fields(fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the field mapping, where it says where prompt and response stand.

    Raises:
        ValueError: saying what is wrong with it, after the setting's name.
    """
    known = (*PARTS, "messages")
    for name in fields:
        if name not in known:
            raise ValueError(f"maps an unknown part {name!r}{hint(name, known)}; an example has {', '.join(known)}")
    try:
        check_fields(fields)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("examples.fields ")) from None
    return fields


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
        raise ValueError(f"has rows: {rows!r}; with topic it is at least 1 or null for all; with path all are taken")
    return target


@checked
class ExamplesSettings:
    """How raw rows become examples."""

    fields: Annotated[Mapping[str, str], AfterValidator(refuse_fields)] = Field(
        description="ours -> theirs: prompt, response, topic, source, instruction, tests; messages: the first two"
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop", description="name the rows and stop | write them to rejects.parquet"
    )
    held_out_every: Annotated[int, Field(ge=2)] = Field(
        5, description="one prompt in so many is held out: where sha256(seed + prompt) mod this is 0"
    )
    distinct: bool = Field(True, description="false leaves duplicates in use, each under an id of its own")
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
