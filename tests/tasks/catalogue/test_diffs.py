"""What differs between two choices, and means of topics over pairs."""

from dataclasses import replace

import pytest
from worlds.toy_project import make_world

from tasks.artifacts.views import opened
from tasks.browsing.pairs import average_topics
from tasks.catalogue import diffs
from tasks.catalogue.sources import find_artifacts


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
    assert (reasons["f" * 32], reasons[old]) == (("enters", reason), ("leaves", "no row of it"))


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
