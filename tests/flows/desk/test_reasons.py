"""What the rows page says of each row, from what its version's choice says of itself."""

import pyarrow as pa

from tasks.artifacts.views import opened
from tasks.browsing.filters import Filter, list_rows

LEFT = {"chosen": False, "rank": None, "gated": False, "covered_by": None, "cover": None}
TAKEN = LEFT | {"chosen": True}
TURN = pa.struct([("content", pa.string()), ("details", pa.string())])
EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("version", "id", "topic", "source", "prompt", "response")]
    + [(name, pa.string()) for name in ("split", "unused_because", "duplicate_of")]
    + [("row", pa.int64()), ("response_tokens", pa.int64()), ("used", pa.bool_()), ("messages", pa.list_(TURN))]
)
SUBSET = pa.schema(
    [(name, pa.string()) for name in ("version", "id", "topic", "covered_by")]
    + [(name, pa.float64()) for name in ("gate_score", "gate_usual", "cover")]
    + [("chosen", pa.bool_()), ("gated", pa.bool_()), ("rank", pa.int64())]
)


def tell(rows: dict[str, dict], record: dict) -> dict[str, str]:
    """Return what is said of each row of a version, by its id: its topic is its first letter, its tokens its place."""
    said = [
        {"version": "v1", "id": id, "topic": id[0], "split": "pool", "row": place, "response_tokens": place}
        | {"used": True, "prompt": id, "response": id, "messages": []}
        for place, id in enumerate(rows)
    ]
    chosen = [{"version": "v1", "id": id, "topic": id[0]} | row for id, row in rows.items()]
    views = {"examples": pa.Table.from_pylist(said, EXAMPLES), "subset": pa.Table.from_pylist(chosen, SUBSET)}
    with opened(views) as connection:
        return {row["id"]: row["why"] for row in list_rows(connection, Filter("v1"), record=record)}


def test_a_topic_that_was_full_is_told_and_one_that_filled_with_the_last_row_is_not():
    rows = {"a1": TAKEN | {"rank": 1}, "a2": LEFT, "a3": LEFT | {"covered_by": "a1", "cover": 0.5}}
    rows |= {"b1": TAKEN | {"rank": 2}, "b2": LEFT | {"covered_by": "b1", "cover": 0.25}, "c1": LEFT}
    full = {"selector": "delift", "budget": {"caps": {"a": 1, "b": 1, "c": 0}}}
    assert tell(rows, full) == {
        "a1": "chosen as number 1",
        "a2": "left out: its topic full at 1",
        "a3": "stood for by a1, by 0.5; its topic full at 1",
        "b1": "chosen as number 2",
        "b2": "stood for by b1, by 0.25",
        "c1": "left out: no row of its topic may be chosen",
    }
    assert tell(rows, {})["a3"] == "stood for by a1, by 0.5"


def test_a_budget_of_tokens_that_had_no_room_is_told():
    rows = {"a1": TAKEN | {"rank": 1}, "a2": LEFT, "a3": LEFT, "a4": LEFT | {"covered_by": "a1", "cover": 0.5}}
    record = {"selector": "delift", "budget": {"kind": "response_tokens", "limit": 9, "spent": 8}}
    assert tell(rows, record) == {
        "a1": "chosen as number 1",
        "a2": "not taken by the selector",
        "a3": "left out: no room in the budget for its 2 answer tokens",
        "a4": "stood for by a1, by 0.5; no room in the budget for its 3 answer tokens",
    }
