"""The answer to a question as a Parquet file."""

import io
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return rows as a Parquet file, without provenance: an answer, and no artifact.

    Integers beyond 64 bits stand in it as decimals, and values of a kind or a mixture that Parquet lacks as text.
    """
    columns = [_make_column(list(column)) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
    file = io.BytesIO()
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), file)
    return file.getvalue()


def _make_column(values: Sequence[Any]) -> pa.Array:
    """Return values as a column.

    >>> [str(_make_column(values).type) for values in ([1, None], [2**63], [-(2**100)], ["a", 1])]
    ['int64', 'uint64', 'decimal256(39, 0)', 'string']
    """
    kinds = {type(value) for value in values if value is not None}
    try:
        if kinds == {int}:
            least, most = min(filter(None, values), default=0), max(filter(None, values), default=0)
            if least < -(2**63) or most >= 2**64:
                return pa.array([None if v is None else Decimal(v) for v in values], pa.decimal256(39, 0))
            return pa.array(values, pa.uint64() if most >= 2**63 else pa.int64())
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
