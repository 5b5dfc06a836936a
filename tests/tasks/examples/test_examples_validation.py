"""Validation rows: set apart by prompt, neither chosen nor measured on, in every version the same."""

import pytest
from worlds.raw_rows import ROWS, dump, read_metrics, write_toy
from worlds.toy_corpus import write_subset

from tamis.examples.conversations import split_key
from tamis.examples.splits import SplitError, is_held_out, validates
from tasks.conversations import read_conversation
from tasks.estimate.rows import read_raw
from tasks.examples.examples import ExamplesError
from tasks.examples.settings import ExamplesSettings

EVERY = {"validation_every": 4}
TOPICS = {"fields": {"topic": "topic"}}


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from rows, with the toy model; returns the rows."""
    return lambda *given, **changes: write_toy(tmp_path, toy, *given, **changes).to_pylist()


@pytest.fixture
def later(make, tmp_path):
    """Write two versions of the same rows, the second of which continues from the first with some of them chosen."""

    def write(rows, chosen=(), *, first=EVERY, **changes):
        before = make(rows, out=tmp_path / "one", **first)
        ids = [row["id"] for row in before if row["prompt"] in chosen]
        write_subset(tmp_path / "subset", ids, len(ids))
        linked = {"previous_examples": tmp_path / "one", "previous_subset": tmp_path / "subset"}
        return before, make(rows, **linked, version="v2", **{"ground_set": "all"} | EVERY | changes)

    return write


def prompts(rows, side="validation", *, used=True):
    return {row["prompt"] for row in rows if row["split"] == side and row["used"] >= used}


def key(row):
    return split_key(read_conversation(row))


def test_validation_rows_are_those_whose_prompt_is_drawn_and_not_held_out(make, tmp_path):
    rows = make(ROWS, **EVERY)
    for row in rows:
        held_out = is_held_out(key(row), seed=0, held_out_every=3)
        drawn = validates(key(row), seed=0, validation_every=4)
        assert row["split"] == ("held_out" if held_out else "validation" if drawn else "pool")
    assert read_metrics(tmp_path)["used"]["validation"] == len(prompts(rows)) > 2


def test_none_are_set_apart_unless_that_is_asked_for(make):
    assert prompts(make(ROWS)) == set()


def test_all_rows_of_a_prompt_validate_and_each_text_once(make):
    twice = [*ROWS, *({**row, "response": "other"} for row in ROWS), *ROWS]
    rows = make(twice, **EVERY)
    for one in prompts(rows):
        ours = [row for row in rows if row["prompt"] == one]
        assert [(row["split"], row["unused_because"]) for row in ours] == [
            ("validation", None),
            ("validation", None),
            ("validation", "duplicate"),
        ]


def test_validation_rows_come_from_neither_sample(make):
    every, few = make(ROWS, **EVERY), make(ROWS, **EVERY, pool_rows=3, held_out_rows=2)
    assert prompts(every) == prompts(few)
    assert len(prompts(few, "pool")) == 3


def test_a_prompt_of_the_target_task_does_not_validate(make, tmp_path):
    drawn = prompts(make(ROWS, **EVERY))
    one = next(row for row in ROWS if row["prompt"] in drawn)
    (tmp_path / "raw/v1/aim.jsonl").write_text(dump([one | {"response": "yes"}]))
    rows = make(ROWS, **EVERY, target={"path": "aim.jsonl"})
    assert prompts(rows) == drawn - {one["prompt"]}
    assert prompts(rows, "target") == {one["prompt"]}


def test_a_target_task_by_topic_takes_no_validation_row(make):
    drawn = prompts(make(ROWS, **EVERY, **TOPICS))
    rows = make(ROWS, **EVERY, **TOPICS, target={"topic": "sums1"})
    assert prompts(rows) == drawn
    assert len(prompts(rows, "target")) > 1
    assert not prompts(rows, "target") & drawn


def test_a_validation_prompt_stays_one_in_the_next_version(later):
    before, after = later(ROWS, validation_every=1000)
    assert prompts(after) == prompts(before)


def test_a_prompt_that_an_earlier_version_chose_does_not_validate(later):
    drawn = {row["prompt"] for row in ROWS if validates(row["prompt"], seed=0, validation_every=4)}
    pool = {one for one in drawn if not is_held_out(one, seed=0, held_out_every=3)}
    _, after = later(ROWS, sorted(pool)[:2], first={})
    assert prompts(after) == set(sorted(pool)[2:])
    assert set(sorted(pool)[:2]) <= prompts(after, "pool")


@pytest.mark.parametrize("sampled", [None, 1], ids=["used", "not sampled"])
def test_a_prompt_that_was_held_out_before_does_not_validate(later, sampled):
    before, after = later(ROWS, first={"held_out_rows": sampled}, held_out_every=5, validation_every=2)
    drawn = {row["prompt"] for row in ROWS if validates(row["prompt"], seed=0, validation_every=2)}
    measured, now = prompts(before, "held_out", used=False), prompts(after, "held_out", used=False)
    assert len((measured - now) & drawn) > 1
    assert prompts(after) == drawn - measured - now


def test_a_general_row_with_the_prompt_of_a_validation_row_is_refused(make, tmp_path):
    one = sorted(prompts(make(ROWS, **EVERY)))[0]
    (tmp_path / "raw/v1/keep.jsonl").write_text(dump([{"prompt": one, "response": "yes"}]))
    with pytest.raises(SplitError, match=r"1 of 1 general rows have the prompt of another row \(1 of the pool\)"):
        make(ROWS, **EVERY, retention_set="keep.jsonl")


def test_without_a_row_left_to_validate_the_stage_stops(make):
    text = (
        r"examples.validation_every is 100000 and no row is left to validate \(24 rows, .*lower it, or set it to null"
    )
    with pytest.raises(ExamplesError, match=text):
        make(ROWS, validation_every=100000)


def test_an_estimate_divides_rows_alike(make, tmp_path):
    rows = make(ROWS, **EVERY)
    expected = read_raw(tmp_path / "raw/v1", None, ExamplesSettings(held_out_every=3, **EVERY), "v1")
    assert [row["split"] for row in expected] == [row["split"] for row in rows]
