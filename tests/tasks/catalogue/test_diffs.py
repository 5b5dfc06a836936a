"""What differs between two choices, and means of topics over pairs."""

from dataclasses import replace

import duckdb
import pytest
from worlds.toy_project import make_world, withdraw

from tasks.artifacts.schemas import WITHDRAWN
from tasks.artifacts.tables import write_json
from tasks.artifacts.views import opened
from tasks.browsing.pairs import average_topics
from tasks.catalogue import derived, diffs
from tasks.catalogue.sources import find_artifacts
from tasks.examples import near


@pytest.mark.parametrize(("change", "reason"), [("edited", "edited row"), ("new", "new row")])
def test_a_row_that_was_edited_is_no_new_one(tmp_path, change, reason):
    world = make_world(tmp_path)
    old = next(row["id"] for row in world.subset if row["chosen"])
    examples = [row | ({"id": "f" * 32, "change": change} if row["id"] == old else {}) for row in world.examples]
    subset = [row | ({"id": "f" * 32} if row["id"] == old else {}) for row in world.subset]
    replace(world, examples=examples, subset=subset, previous="v1").write("v2")
    world.write()
    found = diffs.compare(*(diffs.read_side(version, tmp_path, version) for version in ("v1", "v2")))
    reasons = {row["id"]: (row["change"], row["reason"]) for row in found.rows}
    assert (reasons["f" * 32], reasons[old]) == (("enters", reason), ("leaves", "is no row of v2"))


@pytest.mark.parametrize(("edited_to", "told"), [("e" * 32, f"edited to {'e' * 32}"), (None, "withdrawn")])
def test_a_row_that_was_withdrawn_or_edited_is_called_that_both_ways(tmp_path, edited_to, told):
    world = make_world(tmp_path)
    old = next(row for row in world.subset if row["chosen"])["id"]
    kept = {name: [row for row in getattr(world, name) if row["id"] != old] for name in ("examples", "subset")}
    source = next(row for row in world.examples if row["id"] == old)
    gone = [{name: source.get(name) for name in WITHDRAWN.names} | {"edited_to": edited_to, "earlier": "learnt"}]
    replace(world, **kept, withdrawn=gone, previous="v1").write("v2")
    world.write()
    one, two = (diffs.read_side(version, tmp_path, version) for version in ("v1", "v2"))
    assert {row["id"]: row["reason"] for row in diffs.compare(one, two).rows}[old] == f"is {told}"
    assert {row["id"]: row["reason"] for row in diffs.compare(two, one).rows}[old] == f"was {told}"


@pytest.mark.parametrize(
    ("then", "told"),
    [("kept", f"edited to {'e' * 32}"), ("edited", f"edited to {'f' * 32}"), ("withdrawn", "withdrawn")],
)
def test_what_a_version_between_withdrew_or_edited_is_called_that(tmp_path, then, told):
    world = make_world(tmp_path)
    old, gone = (row["id"] for row in world.subset if row["chosen"])
    ids = [old, "e" * 32, "f" * 32]
    sources = {row["id"]: row for row in world.examples}
    kept = {name: [row for row in getattr(world, name) if row["id"] != gone] for name in ("examples", "subset")}

    def edit(id: str, change: str) -> dict:
        tables = {name: [row | ({"id": id} if row["id"] == old else {}) for row in rows] for name, rows in kept.items()}
        return {
            "examples": [row | ({"change": change} if row["id"] == id else {}) for row in tables.pop("examples")]
        } | tables

    lost = [withdraw(sources[old], ids[1]), withdraw(sources[gone])]
    second = replace(world, **edit(ids[1], "edited"), withdrawn=lost, previous="v1", before=world.examples)
    second.write("v2")
    last = ids[2] if then == "edited" else ids[1]
    more = [] if then == "kept" else [withdraw(sources[old] | {"id": ids[1]}, ids[2] if then == "edited" else None)]
    third = edit(last, then)
    if then == "withdrawn":
        third = {name: [row for row in rows if row["id"] != last] for name, rows in third.items()}
    replace(world, **third, withdrawn=more, previous="v2", before=second.examples).write("v3")
    second.write("v2")
    world.write()
    one, two = (diffs.read_side(version, tmp_path, version) for version in ("v1", "v3"))
    reasons = {row["id"]: row["reason"] for row in diffs.compare(one, two).rows}
    assert (reasons[old], reasons[gone]) == (f"is {told}", "is withdrawn")
    assert then == "withdrawn" or reasons[last] == "edited row"
    reasons = {row["id"]: row["reason"] for row in diffs.compare(two, one).rows}
    assert (reasons[old], reasons[gone]) == (f"was {told}", "was withdrawn")


def compare_choices(tmp_path, before: tuple[dict, dict], after: tuple[dict, dict]) -> dict[str, str]:
    """Return the reasons of two choices, by the rows' places; each has its record and, by place, its rows."""
    world = make_world(tmp_path)
    for version, (record, rows) in (("v1", before), ("v2", after)):
        subset = [
            row | {"chosen": False, "rank": None, "covered_by": None, "cover": None} | rows.get(place, {})
            for place, row in enumerate(world.subset)
        ]
        replace(world, subset=[one | {"chosen": one["rank"] is not None} for one in subset]).write(version)
        write_json(record, world.folder("selection", version) / "selection.json")
    sides = [diffs.read_side(version, tmp_path, version) for version in ("v1", "v2")]
    places = {row["id"]: place for place, row in enumerate(world.subset)}
    return {places[row["id"]]: row["reason"] for row in diffs.compare(*sides).rows}


def take(*places: int) -> dict:
    """Return what is chosen, in this order."""
    return {place: {"rank": rank} for rank, place in enumerate(places, 1)}


def test_a_score_below_the_lowest_chosen_is_told_with_both_and_where_it_moved(tmp_path):
    one, two = take(0, 1), take(2, 1)
    one |= {0: {"rank": 1, "response_tokens": 30}, 1: {"rank": 2, "response_tokens": 20}, 2: {"response_tokens": 9}}
    two |= {0: {"response_tokens": 12}, 1: {"rank": 2, "response_tokens": 20}, 2: {"rank": 1, "response_tokens": 40}}
    found = compare_choices(tmp_path, ({"selector": "longest"}, one), ({"selector": "longest"}, two))
    assert found == {
        0: "is below the lowest chosen by longest: 12 < 20; moved from 30",
        2: "was below the lowest chosen by longest: 9 < 20; moved to 40",
    }


def test_a_score_of_an_artifact_is_told_likewise(tmp_path):
    found = compare_choices(tmp_path, ({"selector": "less"}, take(5, 4)), ({"selector": "random"}, take(5, 0)))
    assert found == {0: "was below the lowest chosen by less: 0 < 4", 4: "is not taken by random"}


def test_a_row_behind_a_smaller_budgets_end_is_told_so(tmp_path):
    record = {"selector": "delift"}
    found = compare_choices(tmp_path, (record, take(0, 1)), (record, take(0, 1, 2)))
    assert found == {2: "was beyond the budget: number 3, and 2 were chosen"}


def test_a_topic_that_was_full_is_told(tmp_path):
    capped = {"selector": "random", "budget": {"caps": {"sums": 1, "letters": 0, "greetings": 2}}}
    found = compare_choices(tmp_path, (capped, take(0, 2)), ({"selector": "random"}, take(3, 1, 2)))
    assert found == {
        0: "is not taken by random",
        1: "was left out: no row of its topic may be chosen",
        3: "was left out: its topic full at 1",
    }
    covered = take(0, 2) | {3: {"covered_by": "d" * 32, "cover": 0.5}}
    found = compare_choices(tmp_path, (capped | {"selector": "delift"}, covered), ({"selector": "random"}, take(3, 2)))
    assert found[3] == f"was stood for by {'d' * 32}, by 0.5; its topic full at 1"


def test_a_row_that_no_budget_of_tokens_had_room_for_is_told(tmp_path):
    record = {"selector": "delift", "budget": {"kind": "response_tokens", "limit": 50, "spent": 42}}
    rows = take(0) | {1: {"response_tokens": 9}, 2: {"response_tokens": 8}}
    rows |= {3: {"response_tokens": 9, "covered_by": "d" * 32, "cover": 0.5}}
    found = compare_choices(tmp_path, (record, rows), ({"selector": "random"}, take(0, 1, 2, 3)))
    assert found == {
        1: "was left out: no room in the budget for its 9 answer tokens",
        2: "was not taken by delift",
        3: f"was stood for by {'d' * 32}, by 0.5; no room in the budget for its 9 answer tokens",
    }


def test_a_tie_with_the_lowest_chosen_is_told(tmp_path):
    rows = take(0) | {0: {"rank": 1, "response_tokens": 7}, 1: {"response_tokens": 7}}
    found = compare_choices(tmp_path, ({"selector": "longest"}, rows), ({"selector": "random"}, take(1)))
    assert found[1] == "was behind others that tie with it, by longest: 7"


def test_every_reason_why_a_row_is_not_used_has_words():
    reasons = {"duplicate", "near duplicate", "kept", "not sampled"}
    reasons |= {near.HELD_OUT_ASKS, near.NEAR_HELD_OUT, near.NEAR_VALIDATION, near.PLANTED, near.VETOED}
    assert derived.UNUSED.keys() == reasons
    ways = [(reason, "pool") for reason in sorted(reasons)] + [(None, "held_out")]
    said = [duckdb.execute(f"SELECT {derived.tell_unused('$1', '$2')}", way).fetchone()[0] for way in ways]
    assert said == [*(derived.UNUSED[reason] for reason in sorted(reasons)), "it is of the held-out rows"]


def test_a_topic_whose_rows_are_demos_alone_has_its_means(tmp_path):
    world = make_world(tmp_path)
    topics = {row["id"]: row["topic"] for row in world.examples}
    alone = topics[world.utility[0]["demo_id"]]
    pairs = [row for row in world.utility if topics[row["target_id"]] != alone]
    replace(world, utility=pairs).write()
    artifacts = find_artifacts(tmp_path)
    with opened(artifacts.views, derived=artifacts.derived) as connection:
        means = average_topics(connection, "v1")
    shown = {
        topics[row["demo_id"]] for row in pairs if row["demo_id"] != row["target_id"] and row["utility"] is not None
    }
    assert alone in shown
    assert {row["demo"] for row in means} == shown
    assert alone not in {row["target"] for row in means}
