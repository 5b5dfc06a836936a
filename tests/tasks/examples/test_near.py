"""Near-duplicates among the rows of a version, and what becomes of them."""

from collections import Counter
from functools import partial

import pytest
from worlds.raw_rows import read_metrics, write_toy

from tamis.examples.conversations import split_key
from tamis.examples.splits import is_held_out
from tasks.conversations import read_conversation
from tasks.estimate.rows import read_raw
from tasks.examples.settings import ExamplesSettings

WORDS = "the quick brown fox jumps over a lazy dog near the old stone bridge by the river at dawn".split()  # noqa: SIM905
DISTINCT = [{"prompt": f"what is {place} times {place}?", "response": f"it is {place**2}"} for place in range(30)]

NONE_ALIKE = 7  # held_out_every with which none of the rows that are alike is held out


def say(place: int, change: str) -> dict:
    """A long row, in which one word stands for another."""
    said = " ".join([*WORDS, change, *WORDS[::-1]])
    return {"prompt": f"tell me story {place}", "response": said}


@pytest.fixture
def make(tmp_path, toy):
    """Write examples of distinct rows and of six that are nearly one."""
    rows = [*DISTINCT, *(say(place, f"word{place}") for place in range(6))]
    return partial(write_toy, tmp_path, toy, rows, near_duplicate_jaccard=0.6)


def test_near_duplicates_lead_to_the_first_of_their_cluster_and_are_kept(make, tmp_path):
    table = make().to_pylist()
    alike = table[len(DISTINCT) :]
    assert [row["near_duplicate_of"] for row in alike] == [None, *[len(DISTINCT)] * 5]
    assert {row["cluster_size"] for row in alike} == {6}
    assert {row["cluster_size"] for row in table[: len(DISTINCT)]} == {1}
    assert {(row["used"], row["weight"]) for row in table} == {(True, 1.0)}
    assert read_metrics(tmp_path)["near_duplicates"] == 5


@pytest.mark.parametrize("choice", ["drop", "weight"])
def test_one_row_of_a_cluster_stays_in_the_pool(make, choice):
    table = make(near_duplicates=choice).to_pylist()
    pool = [row for row in table[len(DISTINCT) :] if row["split"] == "pool"]
    assert len(pool) > 1
    assert [row["unused_because"] for row in pool] == [None, *["near duplicate"] * (len(pool) - 1)]
    assert pool[0]["weight"] == (len(pool) if choice == "weight" else 1.0)
    assert {row["weight"] for row in table if row is not pool[0]} == {1.0}
    held_out = [row for row in table if row["split"] == "held_out"]
    assert all(row["used"] for row in held_out)


def test_rows_of_the_pool_like_a_held_out_row_are_counted_and_kept_out_where_asked(make, tmp_path):
    table = make().to_pylist()
    assert {row["split"] for row in table[len(DISTINCT) :]} == {"pool", "held_out"}
    counted = read_metrics(tmp_path)["near_held_out"]
    again = make(drop_near_held_out=True).to_pylist()
    reasons = Counter(row["unused_because"] for row in again)
    pool = [row for row in again[len(DISTINCT) :] if row["split"] == "pool"]
    assert counted == reasons["near held out"] == len(pool)
    assert {row["unused_because"] for row in pool} == {"near held out"}


def test_rows_of_the_pool_like_a_validation_row_are_counted_and_kept_out_where_asked(make, tmp_path):
    asked = {"held_out_every": NONE_ALIKE, "validation_every": 4}
    alike = make(**asked).to_pylist()[len(DISTINCT) :]
    assert [row["split"] for row in alike].count("validation") == 2
    assert all(row["used"] for row in alike)
    counts = read_metrics(tmp_path)
    assert (counts["near_validation"], counts["near_held_out"]) == (4, 0)
    again = make(**asked, drop_near_held_out=True).to_pylist()[len(DISTINCT) :]
    assert {(row["split"], row["unused_because"]) for row in again} == {
        ("validation", None),
        ("pool", "near validation"),
    }


def test_a_validation_row_like_a_held_out_row_is_kept_out_too(make):
    alike = make(validation_every=4, drop_near_held_out=True).to_pylist()[len(DISTINCT) :]
    found = {(row["split"], row["unused_because"]) for row in alike}
    assert found == {("held_out", None), ("validation", "near held out"), ("pool", "near held out")}


def test_the_split_goes_by_the_first_question_alone(make):
    for row in make().to_pylist():
        held_out = is_held_out(split_key(read_conversation(row)), seed=0, held_out_every=3)
        assert (row["split"] == "held_out") is held_out


@pytest.mark.parametrize(
    "asked", [{"near_duplicates": "drop"}, {"near_duplicates": "weight"}, {"drop_near_held_out": True}]
)
def test_an_estimate_counts_the_rows_that_are_used(make, tmp_path, asked):
    table = make(**asked).to_pylist()
    settings = ExamplesSettings(held_out_every=3, near_duplicate_jaccard=0.6, **asked)
    expected = read_raw(tmp_path / "raw/v1", None, settings, "v1")
    assert [row["used"] for row in expected] == [row["used"] for row in table]
    assert not all(row["used"] for row in expected)
