"""Rows and values as CSV and JSON: what commands print and what the desk offers to take away are the same bytes."""

import csv
import io
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any

NESTED = (Mapping, list, tuple, set, frozenset)


def write_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV, with their names first; a value that holds others is JSON.

    >>> write_csv(["id", "turns"], [["a", ["b", None]], [None, 1.5]])
    'id,turns\\na,"[""b"", null]"\\n,1.5\\n'
    """
    text = io.StringIO()
    cells = ([dump(cell) if isinstance(cell, NESTED) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([names, *cells])
    return text.getvalue()


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON; what a terminal would act on is escaped, which changes nothing of the data."""
    text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


def to_plain(value: Any) -> Any:
    """Return a value in JSON's types: times in ISO 8601, bytes in base 64, no number for what is none."""
    match value:
        case Mapping():
            return {str(key): to_plain(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_plain(one) for one in value]
        case float():
            return value if isfinite(value) else None
        case Decimal():
            return float(value) if value.is_finite() and Decimal(repr(float(value))) == value else str(value)
        case bytes() | bytearray() | memoryview():
            return b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case None | bool() | int() | str():
            return value
        case _ if hasattr(value, "tolist"):  # numbers and arrays of NumPy, which is not imported here
            return to_plain(value.tolist())
    return str(value)
