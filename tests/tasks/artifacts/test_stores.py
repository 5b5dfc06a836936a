"""The stores of computed figures: what is appended is found, once and whole, and what it cost is known."""

import os
import subprocess
import sys

import pyarrow as pa
import pytest

from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import provenance


def scores(*pairs, distance=0.5) -> pa.Table:
    rows = [
        {"target_id": target, "demo_id": demo, "tokens": 3, "distance": distance, "log_likelihood": -1.0}
        for target, demo in pairs
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PAIRS)


def asked(*pairs) -> pa.Table:
    return pa.table({"target_id": [target for target, _ in pairs], "demo_id": [demo for _, demo in pairs]})


def append(folder, rows: pa.Table, seconds: float = 1.0):
    return stores.append(folder, rows, stage="utility", seconds=seconds)


def test_an_empty_store_knows_nothing(tmp_path):
    wanted = asked(("a", "b"))
    found = stores.find(tmp_path / "none", wanted)
    assert found.num_rows == 0
    assert stores.missing(tmp_path / "none", wanted).to_pylist() == wanted.to_pylist()


def test_known_pairs_are_found_in_the_order_wanted_and_the_rest_are_missing(tmp_path):
    append(tmp_path, scores(("a", "b"), ("b", "a")))
    append(tmp_path, scores(("c", "")))
    wanted = asked(("c", ""), ("x", "y"), ("b", "a"))
    found = stores.find(tmp_path, wanted)
    assert list(zip(found["target_id"].to_pylist(), found["demo_id"].to_pylist(), strict=True)) == [
        ("c", ""),
        ("b", "a"),
    ]
    assert stores.missing(tmp_path, wanted).to_pylist() == [{"target_id": "x", "demo_id": "y"}]


def test_target_and_demo_are_not_exchangeable(tmp_path):
    append(tmp_path, scores(("a", "b")))
    assert stores.find(tmp_path, asked(("b", "a"))).num_rows == 0


def test_a_pair_scored_twice_is_found_once(tmp_path):
    append(tmp_path, scores(("a", "b")))
    append(tmp_path, scores(("a", "b"), ("c", "d")))
    assert stores.find(tmp_path, asked(("a", "b"))).num_rows == 1


def test_another_model_template_or_code_has_another_place(tmp_path):
    keys = [("m", 64, "chat"), ("m", "chat", "c"), ("n", "chat", "c"), ("m", "delift", "c"), ("m", "chat", "d")]
    assert len({stores.store_folder(tmp_path, *key) for key in keys}) == 5


def test_a_part_records_who_computed_it_its_seconds_and_its_keys(tmp_path):
    made = provenance(append(tmp_path, scores(("a", "b")), 2.5))
    assert (made["stage"], made["version"], made["rows"]) == ("utility", "store", 1)
    assert made["parameters"] == {"seconds": 2.5, "keys": ["target_id", "demo_id"]}


def test_the_same_rows_make_the_same_part(tmp_path):
    assert append(tmp_path, scores(("a", "b"))) == append(tmp_path, scores(("a", "b")))
    assert append(tmp_path, scores(("a", "b"), ("b", "a"))) != append(tmp_path, scores(("b", "a"), ("a", "b")))


@pytest.mark.parametrize("keys", [[], ["id"]])
def test_lists_and_texts_are_found_as_values(tmp_path, keys):
    rows = pa.table({"id": ["b", "a"], "list": pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32()))})
    rows = rows.append_column("said", pa.array(["yes", 'it\'s "no"'])) if keys else rows
    stores.append(tmp_path, rows, stage="evaluation", seconds=1.0, keys=keys)
    found = stores.find(tmp_path, pa.table({"id": ["a", "b"], "number": [1, 2]}))
    assert found.drop_columns(["number"]).equals(rows.take([1, 0]).combine_chunks())
    assert found["number"].to_pylist() == [1, 2]


def test_a_row_that_is_wanted_twice_is_found_twice_and_costs_once(tmp_path):
    append(tmp_path, scores(("a", "b"), ("b", "a")), 2.0)
    assert stores.find(tmp_path, asked(("a", "b"), ("a", "b"))).num_rows == 2
    assert stores.cost(tmp_path, asked(("a", "b"), ("a", "b"))) == 1.0


def test_of_a_row_in_two_parts_the_smaller_figures_are_found(tmp_path):
    append(tmp_path, scores(("a", "b"), distance=0.5))
    append(tmp_path, scores(("a", "b"), ("c", "d"), distance=0.25))
    assert stores.find(tmp_path, asked(("a", "b")))["distance"].to_pylist() == [0.25]


def test_a_damaged_part_is_set_aside_and_told_and_the_others_are_found(tmp_path):
    append(tmp_path, scores(("c", "d")))
    path = append(tmp_path, scores(("a", "b")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    wanted = asked(("a", "b"), ("c", "d"))
    with pytest.warns(UserWarning, match=r"a part of a store, was damaged and stands aside, .* computed again"):
        assert stores.missing(tmp_path, wanted).num_rows == 1
    assert stores.find(tmp_path, wanted).num_rows == 1
    assert path.with_suffix(".damaged").read_bytes() == content
    append(tmp_path, scores(("a", "b")))
    assert stores.find(tmp_path, wanted).num_rows == 2


def test_a_killed_append_leaves_no_part(tmp_path):
    """The process dies between writing and renaming; nothing but a hidden temporary file may stay."""
    code = (
        "import os, sys, signal; sys.addaudithook(lambda e, a: os.kill(os.getpid(), signal.SIGKILL) "
        "if e == 'os.rename' and str(a[1]).endswith('.parquet') else None);"
        "import pyarrow as pa; from pathlib import Path; from tasks.artifacts import schemas, stores;"
        "rows=[dict(target_id='a',demo_id='b',tokens=1,distance=0.1,log_likelihood=-1.0)];"
        "rows = pa.Table.from_pylist(rows, schema=schemas.PAIRS);"
        "stores.append(Path(sys.argv[1]), rows, stage='utility', seconds=1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=os.getcwd())
    assert done.returncode == -9
    assert stores.find(tmp_path, asked(("a", "b"))).num_rows == 0


@pytest.mark.parametrize("count", [0, 1])
def test_no_wanted_pair_finds_none(tmp_path, count):
    if count:
        append(tmp_path, scores(("a", "b")))
    assert (
        stores.find(tmp_path, asked()[:0].cast(pa.schema({"target_id": pa.string(), "demo_id": pa.string()}))).num_rows
        == 0
    )


def test_the_cost_of_pairs_is_their_share_of_what_their_parts_took(tmp_path):
    append(tmp_path, scores(("a", "b"), ("b", "a"), ("c", "a"), ("c", "b")), 8.0)
    append(tmp_path, scores(("c", "")), 0.5)
    assert stores.cost(tmp_path, asked(("a", "b"), ("c", "a"), ("c", ""), ("x", "y"))) == 4.5


def test_a_pair_that_stands_in_two_parts_costs_once(tmp_path):
    append(tmp_path, scores(("a", "b")), 2.0)
    append(tmp_path, scores(("a", "b"), ("c", "d")), 4.0)
    assert stores.cost(tmp_path, asked(("a", "b"))) == 2.0


def test_an_empty_store_cost_nothing(tmp_path):
    assert stores.cost(tmp_path / "none", asked(("a", "b"))) == 0.0


def test_a_closed_database_is_opened_by_the_next_question(tmp_path):
    append(tmp_path, scores(("a", "b")))
    for _ in range(2):
        assert stores.find(tmp_path, asked(("a", "b"))).num_rows == 1
        stores.close_database()
