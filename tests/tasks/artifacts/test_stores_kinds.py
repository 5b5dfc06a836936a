"""Every kind of store answers alike whatever its parts share with what is asked: all, some, nothing; or are empty."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import stack
from tasks.embedding import embedding
from tasks.evaluation import answers, texts
from tasks.gradients import row_scores
from tasks.scores import scores

COLUMNS = {
    "pairs": (schemas.PAIRS, ("target_id", "demo_id")),
    "embeddings": (embedding.STORED, ("id",)),
    "scores": (scores.STORED, ("id",)),
    "gradients": (row_scores.STORED, ("id",)),
    "losses": (answers.NAMED.append(answers.VALUES.field("loss")), answers.KEYS),
    "answers": (pa.schema([*answers.NAMED, answers.VALUES.field("text"), answers.VALUES.field("cut")]), answers.KEYS),
    "texts": (texts.STORED, ("id",)),
}
PARTS = {  # what the parts of a store hold where rows 0 to 2 are asked for
    "no part": [],
    "all": [(0, 1, 2)],
    "another version's rows beside": [(7, 8), (0, 1, 2)],
    "another version's rows behind": [(0, 1, 2), (7, 8), (9,)],
    "some": [(2, 7), (0,), (8, 9)],
    "nothing": [(7, 8, 9)],
    "nothing, twice": [(7, 8), (8, 9)],
    "an empty one": [()],
    "an empty one first": [(), (2, 0)],
    "an empty one last": [(7, 1), ()],
}


def test_every_kind_is_here():
    assert tuple(COLUMNS) == stores.KINDS


def value(place: int, kind: pa.DataType):
    if pa.types.is_list(kind):
        return [place + 0.5, -place, 0.25]
    if pa.types.is_string(kind):
        return f"row {place}"
    return place % 2 == 0 if pa.types.is_boolean(kind) else place


def rows(kind: str, places) -> pa.Table:
    made = [{field.name: value(place, field.type) for field in COLUMNS[kind][0]} for place in places]
    return pa.Table.from_pylist(made, schema=COLUMNS[kind][0])


def fill(folder, kind: str, parts) -> pa.Table:
    """Write parts that took a second per row, and return what is asked: rows 2, 0 and 1."""
    keys = COLUMNS[kind][1]
    for places in parts:
        stores.append(folder, rows(kind, places), stage=kind, seconds=float(len(places)), keys=keys)
    return rows(kind, (2, 0, 1)).select(list(keys))


@pytest.fixture(params=stores.KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=PARTS)
def parts(request) -> list:
    return PARTS[request.param]


def test_what_the_parts_share_with_what_is_asked_is_found_and_all_else_is_missing(tmp_path, kind, parts):
    asked = fill(tmp_path, kind, parts)
    known = [place for place in (2, 0, 1) if any(place in part for part in parts)]
    found = stores.find(tmp_path, asked)
    wanted = rows(kind, known) if any(parts) else asked[:0]
    assert found.to_pylist() == wanted.to_pylist()
    assert found.column_names == wanted.column_names
    lacking = rows(kind, [place for place in (2, 0, 1) if place not in known]).select(asked.column_names)
    assert stores.missing(tmp_path, asked).to_pylist() == lacking.to_pylist()
    assert stores.cost(tmp_path, asked) == pytest.approx(len(known))


def test_an_empty_part_of_unknown_types_is_passed_over(tmp_path, kind):
    asked = fill(tmp_path, kind, [(0, 1)])
    names = COLUMNS[kind][0].names
    untyped = pa.table({name: pa.nulls(0) for name in names})
    path = stores.append(tmp_path, untyped, stage=kind, seconds=1.0, keys=COLUMNS[kind][1])
    path.rename(path.with_name("part-0.parquet"))  # the first that is read
    assert stores.find(tmp_path, asked).num_rows == 2
    assert stores.missing(tmp_path, asked).num_rows == 1
    assert stores.cost(tmp_path, asked) == 2.0
    assert stores.compact(tmp_path).rows == 2
    assert len(list(tmp_path.glob("part-*"))) == 1


def test_a_part_without_a_byte_is_set_aside(tmp_path, kind):
    asked = fill(tmp_path, kind, [(0, 1, 2)])
    for read in (stores.find, stores.missing, stores.cost):
        wanted = read(tmp_path, asked)
        (tmp_path / "part-0.parquet").touch()
        with pytest.warns(UserWarning, match=r"part-0.parquet, a part of a store, was damaged and stands aside"):
            assert read(tmp_path, asked) == wanted


def test_vectors_are_stacked_whether_there_are_any_or_none(tmp_path):
    asked = fill(tmp_path, "texts", [(7, 8), (0, 2)])
    assert stack(stores.find(tmp_path, asked)["embedding"]).tolist() == [[2.5, -2, 0.25], [0.5, 0, 0.25]]
    nothing = stack(stores.find(tmp_path, asked[2:])["embedding"])
    assert nothing.shape == (0, 0)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6)), 2)
    assert stack(pa.chunked_array([fixed[:1], fixed[1:]])).tolist() == [[0, 1], [2, 3], [4, 5]]
