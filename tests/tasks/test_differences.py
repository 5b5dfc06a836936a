"""By how much artifacts differ is said in numbers, and what tells only when they were made is no difference."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from tasks.differences import SAME, Difference, find_difference

TABLE = {"id": ["a", "b"], "loss": [0.5, 1.5], "vector": [[1.0, 2.0], [3.0, 4.0]], "rank": [None, 1]}


def write(path, value) -> bytes:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(value), path)
    elif path.suffix == ".safetensors":
        path.write_bytes(save(value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("a.parquet", TABLE, TABLE, ""),
        ("a.parquet", TABLE, TABLE | {"loss": [0.5, 1.25]}, "numbers by at most 0.25 (loss)"),
        ("a.parquet", TABLE, TABLE | {"vector": [[1.0, 2.0], [3.0, 4.5]]}, "numbers by at most 0.5 (vector)"),
        ("a.parquet", {"a": [None, 1.0]}, {"a": [None, 1.5]}, "numbers by at most 0.5 (a)"),
        ("a.parquet", {"a": [None, 1.0]}, {"a": [2.0, 1.0]}, "numbers by at most inf (a)"),
        ("a.parquet", {"a": [float("nan")] * 2}, {"a": [float("nan"), 1.0]}, "numbers by at most inf (a)"),
        ("a.parquet", TABLE, TABLE | {"id": ["a", "c"]}, "other values of id"),
        ("a.parquet", TABLE, {"id": ["a", "b"]}, "parts are on one side only, first loss"),
        ("a.parquet", TABLE, {name: column[:1] for name, column in TABLE.items()}, "has shape (2,), now (1,)"),
        ("a.parquet", TABLE, TABLE | {"vector": [[1.0], [2.0, 3.0, 4.0]]}, "vector (lengths)"),
        ("a.safetensors", {"w": np.ones(3, "f")}, {"w": np.ones(3, "f")}, ""),
        ("a.safetensors", {"w": np.zeros(3, "f")}, {"w": np.full(3, 1e-6, "f")}, "numbers by at most 1e-06 (w)"),
        ("a.json", {"a": {"b": [1.0, 2.0]}}, {"a": {"b": [1.0, 2.5]}}, "numbers by at most 0.5 (a.b[1])"),
        ("a.json", {"a": 1, "seconds": 2.0, "fit_seconds": 3}, {"a": 1, "seconds": 9.0, "fit_seconds": 4}, ""),
        ("a.json", {"a": "x"}, {"a": "y"}, "other values of a"),
        ("a.csv", "a,b\n1,2.5\n", "a,b\n1,3.0\n", "numbers by at most 0.5 (b)"),
        ("a.txt", "a,b\n", "a,c\n", "4 bytes were other ones, 4"),
        ("a.json", "{", "{}", "it cannot be compared (JSONDecodeError)"),
    ],
)
def test_difference_is_told_in_numbers(tmp_path, name, old, new, told):
    before = write(tmp_path / f"old-{name}", old)
    write(tmp_path / name, new)
    said = find_difference(before, tmp_path / name)
    assert said == find_difference(tmp_path / f"old-{name}", tmp_path / name)
    assert said == SAME if not told else told in said.told
    assert said.rounding == (told in ("", "numbers by at most 1e-06 (w)"))


@pytest.mark.parametrize(
    ("old", "new", "rounding"),
    [
        ({"a": 1e6}, {"a": 1e6 + 1}, True),
        ({"a": 1e6}, {"a": 1e6 + 100}, False),
        ({"a": 1_000_000}, {"a": 1_000_001}, False),  # a count is no measure
        ({"rank": 3}, {"rank": 4}, False),
        ({"a": 0.5}, {"a": 0.500001}, True),
        ({"a": 0.5, "chosen": True}, {"a": 0.500001, "chosen": False}, False),
        ({"a": 0.5, "inputs": {"b": "0f"}}, {"a": 0.500001, "inputs": {"b": "1f"}}, True),
        ({"a": "x"}, {"a": "y"}, False),
    ],
)
def test_rounding_is_told_from_what_is_otherwise(tmp_path, old, new, rounding):
    before = write(tmp_path / "old.json", old)
    write(tmp_path / "a.json", new)
    assert find_difference(before, tmp_path / "a.json").rounding is rounding


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    gone = Difference("what was recorded is not in DVC's cache", False)
    assert find_difference(tmp_path / "gone.json", tmp_path / "a.json") == gone
    assert find_difference(b"{}", tmp_path / "gone.json") == Difference("it was not made", False)
