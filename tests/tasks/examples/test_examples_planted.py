"""Planted rows: known to be wrong, left in the pool for people to count, and nowhere else in use."""

from collections import Counter

import pytest
from worlds.raw_rows import ROWS, chat, read_metrics, write_toy

from tamis.examples.splits import is_held_out
from tasks.examples.examples import ExamplesError

WRONG = [
    row | {"planted": "exchanged" if place % 3 == 0 else " " if place % 3 == 1 else None}
    for place, row in enumerate(ROWS)
]


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from rows, with the toy model; returns the rows."""
    return lambda *given, **changes: write_toy(tmp_path, toy, *given, **changes).to_pylist()


def test_the_word_is_kept_and_a_blank_one_is_none(make):
    assert [row["planted"] for row in make(WRONG)] == ["exchanged", None, None] * 8


@pytest.mark.parametrize(
    "row",
    [
        chat("Hi", "Hello", planted="cut"),
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "planted": "cut"},
        {"instruction": "Hi", "input": "", "output": "Hello", "planted": "cut"},
        {"question": "Hi", "answer": "Hello", "planted": "cut"},
        {"prompt": "Hi", "completion": "Hello", "planted": "cut"},
    ],
    ids=["messages", "sharegpt", "alpaca", "question_answer", "prompt_completion"],
)
def test_every_format_reads_it(make, tmp_path, row):
    (tmp_path / "raw/v1").mkdir(parents=True)
    make(ROWS)
    rows = make([row], name="more.jsonl")
    assert [one["planted"] for one in rows if one["file"].endswith("more.jsonl")] == ["cut"]


def test_it_may_have_another_name_or_not_be_read(make):
    renamed = [{"wrong" if name == "planted" else name: value for name, value in row.items()} for row in WRONG]
    assert {row["planted"] for row in make(renamed, fields={"planted": "wrong"})} == {"exchanged", None}
    assert {row["planted"] for row in make(WRONG, fields={"planted": ""})} == {None}


def test_it_is_no_part_of_a_rows_id_nor_of_its_side(make):
    plain, planted = make(ROWS), make(WRONG)
    assert [(row["id"], row["split"]) for row in plain] == [(row["id"], row["split"]) for row in planted]


def test_planted_rows_are_used_in_the_pool_alone_and_say_why(make):
    rows = make(WRONG, validation_every=3)
    outside = [row for row in rows if row["planted"] and row["split"] != "pool"]
    assert {row["split"] for row in outside} == {"held_out", "validation"}
    assert {(row["used"], row["unused_because"]) for row in outside} == {(False, "planted")}
    others = [row for row in rows if row not in outside]
    assert all(row["used"] for row in others)


def test_planted_rows_are_counted_by_their_word(make, tmp_path):
    rows = make(WRONG)
    pool = Counter(row["planted"] for row in rows if row["split"] == "pool" and row["planted"])
    assert read_metrics(tmp_path)["planted"] == dict(pool)


def test_a_target_task_by_topic_has_no_planted_row(make):
    mixed = [row | {"planted": "exchanged" if place < 12 else None} for place, row in enumerate(ROWS)]
    rows = make(mixed, fields={"topic": "topic"}, target={"topic": "sums0"})
    target = [row for row in rows if row["split"] == "target"]
    left = {row["planted"] for row in rows if row["topic"] == "sums0" and row["split"] == "pool"}
    assert left == {"exchanged"}
    assert {row["planted"] for row in target} == {None}


def test_planted_rows_of_a_target_file_are_not_used(make, tmp_path):
    make(ROWS)
    (tmp_path / "raw/v1/aim.jsonl").write_text(
        '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d", "planted": "cut"}\n'
    )
    rows = [row for row in make(target={"path": "aim.jsonl"}) if row["split"] == "target"]
    assert [(row["prompt"], row["unused_because"]) for row in rows] == [("a", None), ("c", "planted")]


@pytest.mark.parametrize("first", ["exchanged", None])
def test_of_rows_with_one_text_the_first_one_says_whether_it_is_planted(make, first):
    one = next(row for row in ROWS if not is_held_out(row["prompt"], seed=0, held_out_every=3))
    rows = make([*(one | {"planted": word} for word in (first, None if first else "exchanged")), *ROWS])
    same = [row for row in rows if row["prompt"] == one["prompt"]]
    assert [row["unused_because"] for row in same] == [None, "duplicate", "duplicate"]
    assert same[0]["planted"] == first


def test_data_in_which_every_row_says_something_is_told_what_to_do(make):
    text = r"no row is held out \(24 rows, 24 distinct, and \d+ planted outside the pool; to read no such"
    with pytest.raises(ExamplesError, match=text):
        make([row | {"planted": "in May"} for row in ROWS])
