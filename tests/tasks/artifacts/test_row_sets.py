"""The sets of rows that stages read, one reader for all."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.toy_corpus import learn, row, write_examples, write_rows

from tasks.artifacts.row_sets import SETS, count_faults, read_set, read_sets


@pytest.fixture
def source(tmp_path):
    """Six rows of the pool, two held out, two of the target task, three learnt, one general, two for validation, and
    three not used."""
    write_examples(tmp_path / "plain", 6, 2, target=2, learnt=3, general=1, validation=2)
    rows = read_all(tmp_path / "plain/examples.parquet")
    known = learn(row(20, "pool", used=False)) | {"earlier": "offered"}
    rows += [row(21, "held_out", used=False) | {"unused_because": "not sampled"}, known]
    rows += [learn(row(22, "pool", used=False)) | {"duplicate_of": 1, "unused_because": "duplicate"}]
    write_rows(tmp_path / "examples", rows[::-1])
    return tmp_path / "examples/examples.parquet"


def read_all(path):
    from tasks.artifacts.tables import read_table

    return read_table(path).to_pylist()


def slow(rows, name):
    """The rows of a set, by the words of its definition."""
    used = {"ground": "pool"} | {each: each for each in ("target", "validation", "held_out", "general")}
    found = []
    for each in rows:
        if name in used:
            inside = each["used"] and each["split"] == used[name]
        else:
            inside = each["split"] == "pool" and each["duplicate_of"] is None and each["earlier"] == name
        found += [each["row"]] if inside else []
    return sorted(found)


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_that_of_its_definition_by_row(source, name):
    expected = slow(read_all(source), name)
    assert expected
    assert read_set(source, name)["row"].to_pylist() == expected


def test_several_sets_hold_each_example_once_and_know_their_positions(source):
    table, sets = read_sets(source)
    rows = table["row"].to_pylist()
    assert rows == sorted(set(rows))
    assert set(rows) == {number for name in SETS for number in slow(read_all(source), name)}
    for name, indices in sets.items():
        assert [rows[index] for index in indices] == slow(read_all(source), name)
        assert np.array_equal(indices, np.sort(indices))


def test_only_the_wanted_columns_are_read(source):
    whole, sets = read_sets(source)
    table, same = read_sets(source, columns=["topic", "id"])
    assert table.equals(whole.select(["topic", "id"]))
    assert {name: places.tolist() for name, places in same.items()} == {
        name: places.tolist() for name, places in sets.items()
    }


def test_an_unknown_set_is_named(source):
    with pytest.raises(ValueError, match=r"there is no set of rows 'pool'; known: ground, target, validation"):
        read_set(source, "pool")


@given(st.lists(st.tuples(st.sampled_from(["cut", None]), st.integers(0, 4)), max_size=12), st.data())
def test_faults_are_counted_as_the_slow_rule_says(rows, data):
    first = {cluster: place for place, (_, cluster) in reversed(list(enumerate(rows)))}
    leads = [None if first[cluster] == place else first[cluster] for place, (_, cluster) in enumerate(rows)]
    exact = [data.draw(st.booleans()) for _ in rows]
    columns = {
        "row": list(range(len(rows))),
        "planted": pa.array([word for word, _ in rows], pa.string()),
        "duplicate_of": pa.array([lead if same else None for lead, same in zip(leads, exact, strict=True)], pa.int64()),
        "near_duplicate_of": pa.array(leads, pa.int64()),
    }
    found = count_faults(pa.table(columns | {"row": pa.array(columns["row"], pa.int64())}))
    assert found["planted"].get("cut", 0) == sum(word == "cut" for word, _ in rows)
    assert found["repeats"] == len(rows) - len({cluster for _, cluster in rows})
