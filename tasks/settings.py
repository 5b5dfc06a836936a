"""What the settings of all stages have in common: how they are checked, what a budget is, the models, the versions.

A setting stands once: its name, type, range, default and one sentence, in `tasks/<stage>/settings.py`. params.yaml
holds what a person sets; flows/params.py reads it into these classes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

checked = partial(dataclass, frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))

Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


def hint(name: Any, names: Iterable[Any]) -> str:
    """Return a question after the nearest of some names, of several near ones that with the same first letter.

    >>> hint("delft", ["delift", "random"]), hint("bfloat16", ["float32", "bf16"])
    (" (did you mean 'delift'?)", " (did you mean 'bf16'?)")
    """
    close = get_close_matches(str(name), [str(known) for known in names])
    close = [*(each for each in close if each[:1] == str(name)[:1]), *close]
    return f" (did you mean {close[0]!r}?)" if close else ""


def spell(value: Any) -> str:
    """Return a value as params.yaml has it, where Python writes it otherwise.

    >>> spell(None), spell(True), spell("ifd")
    ('null', 'true', "'ifd'")
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def refuse_budget(budget: Mapping[str, int | float], kinds: tuple[str, ...], what: str) -> Mapping[str, int | float]:
    """Return a budget, where it is one.

    Args:
        budget: one kind and its value, such as `{"fraction": 0.3}`.
        kinds: known ones; all but `fraction` are whole numbers.
        what: a fraction is of, in words.

    Raises:
        ValueError: saying what is wrong with it, after the budget's name.
    """
    unknown = [kind for kind in budget if kind not in kinds]
    if unknown or len(budget) != 1:
        stray = [f"has an unknown {kind!r}{hint(kind, kinds)}" for kind in unknown]
        given = stray[0] if stray else f"has {len(budget)} kinds ({dict(budget)})"
        raise ValueError(f"{given}; give one of {', '.join(kinds)}")
    ((kind, value),) = budget.items()
    if not value > 0:
        raise ValueError(f"is {kind}: {value}, which chooses nothing; it must be above 0")
    if kind == "fraction" and value > 1:
        raise ValueError(f"is fraction: {value}, over 100% of {what}; 0.3 stands for 30%")
    if kind != "fraction" and not isinstance(value, int):
        raise ValueError(f"is {kind}: {value}; it must be a whole number")
    return budget


RowBudget = Annotated[
    Mapping[str, int | float],
    AfterValidator(partial(refuse_budget, kinds=("count", "fraction", "response_tokens"), what="the pool")),
]
MaskBudget = Annotated[
    Mapping[str, int | float],
    AfterValidator(partial(refuse_budget, kinds=("count", "fraction"), what="the parameters")),
]


def refuse_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a chat template, where each is what was written: text, number, truth, list or mapping.

    Raises:
        ValueError: YAML reads one as something else, a date for example; it comes after the setting's name.
    """
    for name, value in arguments.items():
        for part in _list_parts(value):
            if isinstance(part, date):
                raise ValueError(f"has {name}: {part}, which YAML reads as a date; write '{part}' in quotes")
        try:
            plain = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            plain = False
        if not plain:
            raise ValueError(
                f"has {name}: {value!r}, which JSON cannot say; give texts, numbers, true, false, null, lists of them, "
                "or mappings whose names are texts"
            )
    return arguments


def _list_parts(value: Any) -> Iterator[Any]:
    """Yield a value and all that it holds."""
    yield value
    inner = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    for part in inner:
        yield from _list_parts(part)


@checked
class VersionSettings:
    """A data version."""

    raw: str = Field(description="folder of its raw files")
    previous: str = Field(description="the version that it continues from; base: none, the model as it is")


@checked
class ModelsSettings:
    """The models and how they are run."""

    language: str = Field(description="package:NAME, a local folder, or a hub name; safetensors or GGUF only")
    language_revision: str | None = Field(description="commit of a hub name, which needs one")
    embedding: str = Field(description="likewise, of the text encoder")
    embedding_revision: str | None = Field(description="commit of a hub name, which needs one")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes CUDA where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="of the weights")
    matmul: Literal["float32", "bf16"] = Field(
        "float32",
        description="products of the language model's float32 weights on a CPU: as they are | of bfloat16 factors with "
        "float32 sums, where the processor has units for that",
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(description="longest sequence scored or trained, tokens")
    template: Literal["chat", "delift"] = Field(
        description="how prompts are written: the tokenizer's chat template, demos as earlier turns | DELIFT's wording"
    )
    template_arguments: Annotated[Mapping[str, Any], AfterValidator(refuse_arguments)] = Field(
        default_factory=dict, description="passed to the chat template, such as {date_string: 26 Jul 2026}"
    )
    chat_template: str | None = Field(None, description="file of a chat template; null: the tokenizer's own")
    strict_environment: bool = Field(
        False,
        description="make stages anew where torch, transformers, tokenizers, numba or the kind of device have changed; "
        "else `tamis status` tells of it",
    )


@checked
class RuntimeSettings:
    """What changes speed and memory alone, never a figure: no stage is stale after a change of it."""

    pack_tokens: Annotated[int, Field(ge=1)] = Field(2048, description="tokens per forward pass")
    embedding_rows: Annotated[int, Field(ge=1)] = Field(64, description="texts per forward pass of the encoder")
    shard_pairs: Annotated[int, Field(ge=1)] = Field(
        256, description="pairs per part of the store: what a crash can lose"
    )
    shard_rows: Annotated[int, Field(ge=1)] = Field(
        64,
        description="rows per part of the stores of scores and gradients: what a crash can lose; after each, the sum "
        "of all gradients is written whole (4 bytes per parameter): raise it for large models",
    )
    block_parameters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="parameters whose gradients are summed at once, one tensor at least; null: all"
    )


@checked
class MirrorSettings:
    """Where machines that share no folder share the stores' parts; no figure depends on it."""

    url: str | None = Field(
        None,
        description="a URL of any file system that fsspec knows: a stage that computes fetches from there what its "
        "store lacks, and sends what it adds; null: none",
    )


@checked
class LandingSettings:
    """Where new data versions come from, which `tamis continue` and `tamis serve` take."""

    url: str | None = Field(
        None,
        description="a folder, or a URL of any file system that fsspec knows: its sub-folders become data versions of "
        "their names; null: none",
    )
    marker: str | None = Field(None, description="file by which a sub-folder is known to be whole; null: by its age")
    quiet_seconds: Annotated[int, Field(ge=0)] = Field(
        600, description="without a marker: a sub-folder is whole whose newest file is so many seconds old"
    )
