"""What is wrong with a value of params.yaml, in words: pydantic's errors, and types as people call them."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from tasks.settings import hint, spell

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}  # pydantic's words -> ours


def explain(error: ValidationError, kinds: Mapping[str, Any], values: Mapping[str, Any], name: str) -> str:
    """Return what is wrong with a section, its first fault: what, where, what is allowed."""
    first = error.errors(include_url=False)[0]
    key, *inner = first["loc"]
    dotted, context = ".".join(map(str, (name, *first["loc"]))), first.get("ctx", {})
    if first["type"] == "value_error":
        return f"{dotted} {context['error']}"
    if first["type"] == "literal_error" and inner:
        known = get_args(get_args(kinds[key])[0])
        return f"{name}.{key} has an unknown {inner[0]!r}{hint(inner[0], known)}; known: {', '.join(known)}"
    for bound, words in BOUNDS.items():
        if bound in context:
            return f"{dotted} is {first['input']}; it must be {words} {context[bound]:g}"
    return f"{name}.{key} must be {_words(kinds[key])}, got {spell(values[key])}{_advice(values[key], kinds[key])}"


def _words(kind: Any) -> str:
    """Return a type in words, for messages."""
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        Any: "value",
    }
    if kind == int | float:
        return "a number"
    return names[kind] if kind in names else " or ".join(_parts(kind))


def _parts(kind: Any) -> Iterator[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from inner
    elif origin in (Union, UnionType):
        yield from map(_words, inner)
    elif origin is list:
        yield f"a list of {_words(inner[0])}s".replace("of a ", "of ")
    elif get_origin(inner[1]) is Mapping:
        yield f"names, each with {_words(inner[1])}"
    else:
        yield f"`name: {_words(inner[1])}` pairs"


def _advice(value: Any, kind: Any) -> str:
    return hint(value, get_args(kind)) if get_origin(kind) is Literal else ""
