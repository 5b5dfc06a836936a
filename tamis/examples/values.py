"""The values of a row: texts, numbers that stand where a text is asked for, and JSON.

Symbols: a field is what a row calls a value, a part is what it is to an example. A value that cannot be used is a
`RowError`, whose text begins with the kind of reason and a colon.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from tamis.examples.conversations import normalise

EXACT = 1e16  # from here on a float is written with an exponent
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte of another encoding, as Python keeps it
ENCODING = "set examples.encoding, cp1252 for example"


class RowError(ValueError):
    """A row cannot become an example: the text is the reason, and what stands before its colon the kind of reason."""


def parse_json(text: str) -> Any:
    """Return what a text of JSON holds.

    Raises:
        RowError: no JSON, with the column; an object that names a key twice, of which one value would be lost.

    >>> parse_json('{"a": 1}')
    {'a': 1}
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except json.JSONDecodeError as error:
        raise RowError(f"invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise RowError(f"invalid JSON: {error}") from None


def make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some keys and values.

    Raises:
        RowError: a key stands there twice.

    >>> make_object([("a", 1), ("b", 2)])
    {'a': 1, 'b': 2}
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(f"duplicate key: {twice!r} stands {keys.count(twice)} times in one object")
    return made


def read_text(value: Any, part: str) -> str | None:
    """Return the text that a value is, normalised; None where there is no value.

    A number or a truth value is the text that a table would show, so that JSON, CSV and Parquet agree: `true` and
    `false`, whole numbers without a point (42.0 is 42), other floats with the fewest digits that give them back. No
    value is null, and the float NaN, which is how some tables write null.

    Args:
        value: what stands in the row.
        part: what an error calls it.

    Raises:
        RowError: neither text nor number; no Unicode; a NUL, which ends a text in many programs.

    >>> [read_text(value, "topic") for value in ("a\\r\\n", 42, 42.0, 0.1, True, None)]
    ['a\\n', '42', '42', '0.1', 'true', None]
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < EXACT else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    if not isinstance(value, str):
        raise RowError(f"not text: the {part} is {type(value).__name__}")
    check_text(value, part)
    return normalise(value)


def read_filled(value: Any, part: str) -> str | None:
    """Return the text that a value is, normalised; None where there is none, or nothing but white space.

    >>> read_filled(" \\n", "topic") is None
    True
    """
    text = read_text(value, part)
    return text if text and text.strip() else None


def read_json(value: Any, part: str) -> Any:
    """Return a value that may also stand in the row as a text of JSON; a blank text is no value.

    Raises:
        RowError: a text that is no JSON.

    >>> read_json('["a"]', "tools") == read_json(["a"], "tools")
    True
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value)
    except RowError as error:
        raise RowError(f"{error}, in the {part}") from None


def dump_json(value: Any, part: str, *, sort: bool = False) -> str:
    """Return a value as a text of JSON in one form, whichever way it is written in the row.

    Raises:
        RowError: it holds what JSON cannot say, no Unicode, or a NUL.

    >>> dump_json({"b": 1, "a": "é"}, "tools", sort=True)
    '{"a": "é", "b": 1}'
    """
    for text in _list_texts(value):
        check_text(text, part)
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=sort, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"no JSON: the {part} cannot be written as JSON: {error}") from None


def check_text(text: str, part: str) -> None:
    """Check that every program can hold a text.

    Raises:
        RowError: it holds lone surrogates, or a NUL.

    >>> check_text("as it is", "prompt")
    """
    if "\0" in text:
        raise RowError(f"holds NUL: the {part} has the character U+0000 at place {text.index(chr(0)) + 1}")
    try:
        text.encode()
    except UnicodeEncodeError:
        way_out = f"; {ENCODING}" if ESCAPED.search(text) else ""
        raise RowError(f"not UTF-8: the {part} holds bytes or escapes that are no Unicode{way_out}") from None


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_list_texts(key), *_list_texts(inner))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _list_texts(inner)
