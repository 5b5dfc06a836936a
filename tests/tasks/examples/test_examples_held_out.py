"""One's own held-out rows: all of them are measured on, and nothing that asks the same is trained on."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from worlds.raw_rows import CHATS, ROWS, dump, read_metrics, write_saved_splits, write_toy
from worlds.toy_corpus import write_subset

from tamis.examples.splits import SplitError, is_held_out
from tasks.examples.files import ExamplesError
from tasks.examples.settings import ExamplesSettings

OWN = [{"prompt": f"capital of {name}?", "response": name[::-1]} for name in ("Peru", "Chad", "Fiji")]
SAME = {"prompt": " Capital  of\nPERU?", "response": "a guess"}  # what a held-out row asks
DRAWN = [row for row in ROWS if is_held_out(row["prompt"], seed=0, held_out_every=3)]


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from a text or rows, with the toy model; returns the rows."""
    return lambda *given, **changes: write_toy(tmp_path, toy, *given, **changes).to_pylist()


@pytest.fixture
def put(tmp_path):
    """Write rows to a file of the raw folder."""

    def write(name: str, rows: list[dict]) -> None:
        path = tmp_path / "raw/v1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text(dump(rows))

    return write


def sides(rows: list[dict]) -> dict[str, list[str]]:
    """Return the prompts of the used rows of each side."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["used"]:
            found.setdefault(row["split"], []).append(row["prompt"])
    return found


@pytest.mark.parametrize(("name", "path"), [("own.jsonl", "own.jsonl"), ("mine/own.jsonl", "mine")])
def test_rows_of_a_file_or_folder_are_held_out_and_nothing_else_is(make, put, name, path):
    put(name, OWN)
    found = sides(make(ROWS, held_out={"path": path}))
    assert found == {"held_out": [row["prompt"] for row in OWN], "pool": [row["prompt"] for row in ROWS]}
    assert DRAWN


def test_without_it_some_of_the_prompts_are_drawn(make, put):
    put("own.jsonl", OWN)
    found = sides(make(ROWS))
    assert set(found) == {"pool", "held_out"}
    assert {row["prompt"] for row in DRAWN} <= set(found["held_out"])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("a_train.jsonl", "b_test.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    ],
)
def test_rows_of_a_split_are_held_out_and_nothing_else_is(make, put, train, test):
    put(train, ROWS)
    put(test, OWN)
    found = sides(make(held_out={"split": "test"}))
    assert found == {"held_out": [row["prompt"] for row in OWN], "pool": [row["prompt"] for row in ROWS]}


def test_a_split_of_a_saved_data_set_is_held_out(make, tmp_path):
    (tmp_path / "raw/v1").mkdir(parents=True)
    write_saved_splits(tmp_path / "raw/v1", CHATS[14:] + CHATS[:14], ("test", "train"))
    rows = make(held_out={"split": "test"})
    assert {(row["file"], row["split"]) for row in rows} == {("v1/toy/train", "pool"), ("v1/toy/test", "held_out")}
    assert read_metrics(tmp_path)["used"] == {"pool": 14, "target": 0, "validation": 0, "held_out": 10, "general": 0}


def test_a_data_set_with_splits_gives_its_train_split_and_names_the_others(make, put, tmp_path):
    put("more.jsonl", OWN)
    write_saved_splits(tmp_path / "raw/v1", ROWS, ("test", "train"))
    rows = make()
    assert {row["file"] for row in rows} == {"v1/toy/train", "v1/more.jsonl"}
    reason = "is the split test; set examples.held_out: {split: test} to measure on it"
    assert read_metrics(tmp_path)["ignored_files"] == [["toy/test", reason]]


def test_another_split_than_the_one_held_out_is_not_read_either(make, put, tmp_path):
    put("train.jsonl", ROWS)
    put("test.jsonl", OWN)
    put("dev.jsonl", [SAME])
    assert len(make(held_out={"split": "test"})) == 27
    reason = "is the split validation; set examples.held_out: {split: validation} to measure on it"
    assert read_metrics(tmp_path)["ignored_files"] == [["dev.jsonl", reason]]


def test_splits_of_which_none_is_for_training_are_all_read(make, tmp_path):
    (tmp_path / "raw/v1").mkdir(parents=True)
    write_saved_splits(tmp_path / "raw/v1", ROWS, ("easy", "hard"))
    rows = make(held_out={"split": "easy"})
    assert [row["split"] for row in rows] == ["held_out"] * 10 + ["pool"] * 14
    assert read_metrics(tmp_path)["ignored_files"] == []


def test_a_folder_for_another_use_says_nothing_of_the_splits(make, put, tmp_path):
    put("known/train.jsonl", OWN)
    put("test.jsonl", [SAME | {"prompt": "capital of Mali?"}])
    assert len(make(ROWS, retention_set="known")) == 28
    assert read_metrics(tmp_path)["ignored_files"] == []


def test_a_split_that_is_not_there_is_refused_with_those_that_are(make, put):
    put("train.jsonl", ROWS)
    put("dev.jsonl", OWN)
    text = r"examples.held_out is split: test, and no file of .* is of that split; there are train, validation$"
    with pytest.raises(ExamplesError, match=text):
        make(held_out={"split": "test"})


@pytest.mark.parametrize("held_out", [{"path": "z_test.jsonl"}, {"split": "test"}])
def test_rows_of_the_pool_that_ask_what_a_held_out_row_asks_are_not_used(make, put, held_out):
    put("a_train.jsonl", [SAME, *ROWS, OWN[1]])
    put("z_test.jsonl", OWN)
    rows = make(held_out=held_out)
    assert [row["prompt"] for row in rows if row["split"] == "held_out" and row["used"]] == [
        row["prompt"] for row in OWN
    ]
    left = [(row["prompt"], row["split"], row["unused_because"]) for row in rows if not row["used"]]
    assert left == [(SAME["prompt"], "pool", "held out"), (OWN[1]["prompt"], "pool", "held out")]


def test_a_target_task_by_topic_has_no_row_that_asks_what_a_held_out_row_asks(make, put):
    put("own.jsonl", [row | {"topic": "sums1"} for row in OWN])
    asked = {"fields": {"topic": "topic"}, "target": {"topic": "sums1"}}
    rows = make([*ROWS, SAME | {"topic": "sums1"}], held_out={"path": "own.jsonl"}, **asked)
    assert sum(row["split"] == "target" for row in rows) == 8
    assert [(row["split"], row["unused_because"]) for row in rows if row["prompt"] == SAME["prompt"]] == [
        ("pool", "held out")
    ]


def test_held_out_rows_are_sampled_as_those_that_are_drawn(make, put, tmp_path):
    put("own.jsonl", OWN)
    make(ROWS, held_out={"path": "own.jsonl"}, held_out_rows=2)
    assert read_metrics(tmp_path)["used"]["held_out"] == 2


def test_a_pool_that_only_asks_what_is_held_out_says_so(make, put):
    put("own.jsonl", OWN)
    text = (
        r"the pool has 0 usable examples \(4 rows, 4 distinct, 3 used held-out, and 1 that ask what a held-out row asks"
    )
    with pytest.raises(ExamplesError, match=text):
        make([SAME], held_out={"path": "own.jsonl"})


@pytest.mark.parametrize(
    ("held_out", "text"),
    [
        ({"path": "nowhere"}, "examples.held_out.path is 'nowhere' and .* has no such file or folder"),
        ({"path": "../v1"}, r"examples.held_out.path is '\.\./v1'"),
        ({"path": "blank.jsonl"}, r"no row is held out .*; give more rows, name other rows by examples.held_out, or"),
    ],
)
def test_held_out_rows_that_are_none_are_refused(make, put, held_out, text):
    put("blank.jsonl", [])
    with pytest.raises(ExamplesError, match=text):
        make(ROWS, held_out=held_out)


@pytest.mark.parametrize("held_out", [{}, {"rows": "a"}, {"path": "a", "split": "test"}])
def test_a_setting_that_names_no_rows_is_refused(held_out):
    with pytest.raises(ValidationError, match=r"held_out\n.*give path: NAME .* or split: NAME"):
        ExamplesSettings(held_out=held_out)


def test_a_file_has_one_use(make, put):
    put("own.jsonl", OWN)
    with pytest.raises(
        ExamplesError, match=r"1 of 1 files are named by examples.target.path and examples.held_out.path"
    ):
        make(ROWS, held_out={"path": "own.jsonl"}, target={"path": "own.jsonl"})


def test_a_target_row_that_asks_what_a_held_out_row_asks_is_refused(make, put):
    put("own.jsonl", OWN)
    put("aim.jsonl", [SAME])
    with pytest.raises(SplitError, match=r"1 of 1 target rows have the prompt of a held-out row, first rows \[0\]"):
        make(ROWS, held_out={"path": "own.jsonl"}, target={"path": "aim.jsonl"})


@pytest.fixture
def follow(make, put, tmp_path):
    """Write a first version with hashed held-out rows and two chosen ones; then one with held-out rows of its own."""

    def write(own: list[dict]) -> list[dict]:
        pool = [row["id"] for row in make(ROWS, out=tmp_path / "one") if row["split"] == "pool"]
        write_subset(tmp_path / "subset", pool, 2)
        put("own.jsonl", own)
        before = {"previous_examples": tmp_path / "one", "previous_subset": tmp_path / "subset"}
        return make(ROWS, held_out={"path": "own.jsonl"}, ground_set="all", version="v2", **before)

    return write


def test_what_the_version_before_is_measured_on_is_not_trained_on(follow):
    rows = follow(OWN)
    left = [row["prompt"] for row in rows if row["unused_because"] == "held out"]
    assert left == [row["prompt"] for row in DRAWN]


def test_a_held_out_row_that_the_version_before_chose_is_refused(follow):
    chosen = next(row for row in ROWS if row not in DRAWN)
    text = r"1 of 4 held-out rows have the prompt of a row that an earlier version chose, first rows \[3\]"
    with pytest.raises(SplitError, match=text):
        follow([*OWN, chosen | {"response": "another"}])
