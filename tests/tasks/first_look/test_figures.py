"""Counts over rows: percentiles that some row has, topics by size, rejects by kind with their first places."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import schemas
from tasks.examples.reading import Facts
from tasks.first_look.figures import (
    Spread,
    count_files,
    count_turns,
    group_rejects,
    merge_facts,
    rank_topics,
    spread,
)


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_percentiles_are_those_of_the_sorted_numbers(numbers):
    found, ranked = spread([np.array(numbers)]), sorted(numbers)
    assert found.median == ranked[-(-len(ranked) // 2) - 1]
    assert found.p95 == ranked[-(-len(ranked) * 95 // 100) - 1]
    assert (found.longest, found.total) == (ranked[-1], sum(ranked))


def test_of_no_row_everything_is_nothing():
    assert spread([]) == Spread(0, 0, 0, 0)


def test_turns_are_messages_but_for_system_messages():
    said = [["system", "user", "assistant"], ["user", "assistant", "tool", "assistant"], ["user"]]
    rows = [[{"role": role, "content": "", "learnt": False, "details": ""} for role in roles] for roles in said]
    table = pa.table({"messages": pa.array(rows, schemas.MESSAGES)})
    assert count_turns(table).tolist() == [2, 4, 1]
    assert count_turns(table.slice(1)).tolist() == [4, 1]


def test_topics_are_ranked_by_their_rows_and_then_by_name():
    ranked = rank_topics(["b", "a", "c", "c"])
    assert [(one.topic, one.rows) for one in ranked] == [("c", 2), ("a", 1), ("b", 1)]


def test_rejects_are_grouped_by_kind_with_the_first_three_places_in_the_order_of_rows():
    facts = Facts(
        rejects=[(number, "v1/a.jsonl", number + 1, f"empty prompt: {number}", "") for number in (9, 3, 1, 2)]
    )
    facts.rejects.append((0, "v1/a.jsonl", 1, "invalid JSON: x", ""))
    empty, invalid = group_rejects(facts)
    assert (empty.kind, empty.rows) == ("empty prompt", 4)
    assert [place.line for place in empty.first] == [2, 3, 4]
    assert (invalid.kind, invalid.rows, invalid.first[0].reason) == ("invalid JSON", 1, "invalid JSON: x")


def test_files_have_their_good_and_their_bad_rows():
    facts = Facts(files=["a", "a", "b"], formats={"a": "fields", "b": "alpaca", "c": "empty"})
    facts.rejects.append((3, "b", 2, "empty prompt: x", ""))
    found = [(one.file, one.format, one.rows, one.rejected) for one in count_files(facts)]
    assert found == [("a", "examples.fields", 2, 0), ("b", "alpaca", 2, 1), ("c", "empty", 0, 0)]


def test_facts_of_rows_that_follow_are_added():
    facts = Facts(rows=[0], ids=["a"], notes=Counter({"x": 1}), formats={"f": "alpaca"}, split=1, dropped=3, count=1)
    merge_facts(facts, Facts(rows=[1], ids=["b"], notes=Counter({"x": 2}), split=2, dropped=4, count=2))
    assert (facts.rows, facts.ids, facts.notes["x"], facts.split, facts.count) == ([0, 1], ["a", "b"], 3, 3, 2)
    assert (facts.formats, facts.dropped) == ({"f": "alpaca"}, 7)
