"""An answer becomes a Parquet file, whatever kinds of values it holds."""

import io

import duckdb
import pyarrow.parquet as pq

from tasks.catalogue.answers import write_parquet


def test_an_answer_of_any_kind_of_values_becomes_parquet():
    sql = "SELECT hash(1) AS a, 170141183460469231731687303715884105727 AS b, uuid() AS c, [uuid()] AS d, 1.5 AS e"
    sql += ", union_value(n := 1) AS f, INTERVAL 1 DAY AS g, {'x': 1} AS h, true AS i"
    rows = [*duckdb.execute(sql).fetchall(), (None,) * 9]
    made = pq.read_table(io.BytesIO(write_parquet(list("abcdefghi"), rows)))
    first, second = made.to_pylist()
    assert (first["a"], int(first["b"]), first["i"]) == (rows[0][0], 2**127 - 1, True)
    assert (first["c"], first["h"]) == (rows[0][2], {"x": 1})
    assert set(second.values()) == {None}
