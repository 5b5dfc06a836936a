import os
import subprocess
import sys

import pyarrow as pa
import pytest

from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError
from tasks.utility import pair_store


def scores(*pairs, distance=0.5) -> pa.Table:
    rows = [
        {"target_id": target, "demo_id": demo, "tokens": 3, "distance": distance, "log_likelihood": -1.0}
        for target, demo in pairs
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PAIRS)


def asked(*pairs) -> pa.Table:
    return pa.table({"target_id": [target for target, _ in pairs], "demo_id": [demo for _, demo in pairs]})


def test_an_empty_store_knows_nothing(tmp_path):
    wanted = asked(("a", "b"))
    found = pair_store.find(tmp_path / "none", wanted)
    assert found.num_rows == 0
    assert pair_store.missing(tmp_path / "none", wanted).to_pylist() == wanted.to_pylist()


def test_known_pairs_are_found_in_the_order_wanted_and_the_rest_are_missing(tmp_path):
    pair_store.append(tmp_path, scores(("a", "b"), ("b", "a")), seconds=1.0)
    pair_store.append(tmp_path, scores(("c", "")), seconds=1.0)
    wanted = asked(("c", ""), ("x", "y"), ("b", "a"))
    found = pair_store.find(tmp_path, wanted)
    assert list(zip(found["target_id"].to_pylist(), found["demo_id"].to_pylist(), strict=True)) == [
        ("c", ""),
        ("b", "a"),
    ]
    assert pair_store.missing(tmp_path, wanted).to_pylist() == [{"target_id": "x", "demo_id": "y"}]


def test_target_and_demo_are_not_exchangeable(tmp_path):
    pair_store.append(tmp_path, scores(("a", "b")), seconds=1.0)
    assert pair_store.find(tmp_path, asked(("b", "a"))).num_rows == 0


def test_a_pair_scored_twice_is_found_once(tmp_path):
    pair_store.append(tmp_path, scores(("a", "b")), seconds=1.0)
    pair_store.append(tmp_path, scores(("a", "b"), ("c", "d")), seconds=1.0)
    assert pair_store.find(tmp_path, asked(("a", "b"))).num_rows == 1


def test_another_model_template_or_code_has_another_place(tmp_path):
    keys = [("m", "chat", "c"), ("n", "chat", "c"), ("m", "delift", "c"), ("m", "chat", "d")]
    assert len({pair_store.store_folder(tmp_path, *key) for key in keys}) == 4


def test_a_damaged_part_is_refused_with_the_way_out(tmp_path):
    path = pair_store.append(tmp_path, scores(("a", "b")), seconds=1.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"a part of a store, is damaged; delete it: what it held is computed again"
    ):
        pair_store.find(tmp_path, asked(("a", "b")))


def test_a_killed_append_leaves_no_part(tmp_path):
    """The process dies between writing and renaming; nothing but a hidden temporary file may stay."""
    code = (
        "import os, sys, signal; sys.addaudithook(lambda e, a: os.kill(os.getpid(), signal.SIGKILL) "
        "if e == 'os.rename' and str(a[1]).endswith('.parquet') else None);"
        "import pyarrow as pa; from pathlib import Path; from tasks.artifacts import schemas;"
        "from tasks.utility import pair_store;"
        "rows=[dict(target_id='a',demo_id='b',tokens=1,distance=0.1,log_likelihood=-1.0)];"
        "pair_store.append(Path(sys.argv[1]), pa.Table.from_pylist(rows, schema=schemas.PAIRS), seconds=1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=os.getcwd())
    assert done.returncode == -9
    assert pair_store.find(tmp_path, asked(("a", "b"))).num_rows == 0


@pytest.mark.parametrize("count", [0, 1])
def test_no_wanted_pair_finds_none(tmp_path, count):
    if count:
        pair_store.append(tmp_path, scores(("a", "b")), seconds=1.0)
    assert (
        pair_store.find(
            tmp_path, asked()[:0].cast(pa.schema({"target_id": pa.string(), "demo_id": pa.string()}))
        ).num_rows
        == 0
    )


def test_the_cost_of_pairs_is_their_share_of_what_their_parts_took(tmp_path):
    pair_store.append(tmp_path, scores(("a", "b"), ("b", "a"), ("c", "a"), ("c", "b")), seconds=8.0)
    pair_store.append(tmp_path, scores(("c", "")), seconds=0.5)
    assert pair_store.cost(tmp_path, asked(("a", "b"), ("c", "a"), ("c", ""), ("x", "y"))) == 4.5


def test_a_pair_that_stands_in_two_parts_costs_once(tmp_path):
    pair_store.append(tmp_path, scores(("a", "b")), seconds=2.0)
    pair_store.append(tmp_path, scores(("a", "b"), ("c", "d")), seconds=4.0)
    assert pair_store.cost(tmp_path, asked(("a", "b"))) == 2.0


def test_an_empty_store_cost_nothing(tmp_path):
    assert pair_store.cost(tmp_path / "none", asked(("a", "b"))) == 0.0
