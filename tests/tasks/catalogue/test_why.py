"""What is told of one row of a version."""

import pytest
from worlds.toy_project import make_world

from tasks.artifacts.tables import Provenance, provenance, read_table, write_json, write_table
from tasks.artifacts.views import opened
from tasks.catalogue import why
from tasks.catalogue.sources import find_artifacts


def tell(root, id: str, **more) -> why.Story:
    artifacts = find_artifacts(root)
    views = frozenset({**artifacts.views, **artifacts.derived})
    with opened(artifacts.views, derived=artifacts.derived) as connection:
        return why.tell(connection, "v1", id, views=views, root=root, **more)


@pytest.mark.parametrize(
    ("facts", "covered", "told"),
    [
        ({"selector": "random", "objective": None}, False, "It was not chosen: random took others."),
        ({"selector": "delift", "objective": 2.0}, False, "It was not chosen, and no chosen row stands for it."),
        (
            {"selector": "delift", "objective": 2.0},
            True,
            "It was not chosen: the chosen row {} stands for it best, by 0.5.",
        ),
        (
            {"selector": "delift", "objective": 2.0, "objective_name": "mutual_information"},
            True,
            "It was not chosen: others serve the target task better. Most like it of them is {}, 0.5.",
        ),
    ],
)
def test_a_row_that_was_left_out_is_told_what_the_choice_was_by(tmp_path, facts, covered, told):
    world = make_world(tmp_path)
    chosen = next(one["id"] for one in world.subset if one["chosen"])
    row = next(one for one in world.subset if not one["chosen"])
    row |= {"covered_by": chosen if covered else None, "cover": 0.5 if covered else None}
    world.write()
    write_json(facts, world.folder("selection") / "selection.json")
    assert tell(tmp_path, row["id"]).sentences[0] == told.format(chosen)


@pytest.mark.parametrize(
    ("by", "score", "usual", "worst", "told"),
    [
        (
            "agreement",
            0.31,
            0.84,
            -0.4,
            "It has 0.31, 0.53 below what is usual in its topic (0.84); "
            "the worst row that stayed is 0.4 below that of its own.",
        ),
        (
            "ifd",
            1.5,
            0.75,
            0.25,
            "It has 1.5, 0.75 above what is usual in its topic (0.75); "
            "the worst row that stayed is 0.25 above that of its own.",
        ),
        ("help", -0.5, 0.25, None, "It has -0.5, 0.75 below what is usual in its topic (0.25)."),
    ],
)
def test_a_row_that_left_is_told_what_it_was_held_against(tmp_path, by, score, usual, worst, told):
    world = make_world(tmp_path)
    row = next(one for one in world.subset if not one["chosen"])
    row |= {"gated": True, "gate_score": score, "gate_usual": usual, "covered_by": None, "cover": None}
    world.write()
    write_json({"gate": {"by": by, "worst_kept": worst}}, world.folder("selection") / "selection.json")
    story = tell(tmp_path, row["id"])
    assert story.state == "gated"
    assert story.sentences[0] == f"It left before the choice, by the gate {by}. {told}"


def bound_topic(tmp_path, caps: int, strata: int | None, chosen: bool = False) -> tuple[why.Story, str]:
    """Return what is told of a row that was left out, whose topic has two rows in the pool, and its topic."""
    world = make_world(tmp_path)
    row = next(one for one in world.subset if not one["chosen"])
    topic = row["topic"]
    others = [one for one in world.subset if one is not row]
    for rank, one in enumerate(sorted(others, key=lambda one: one["topic"] != topic), 1):
        taken = one["topic"] != topic or chosen
        one |= {"chosen": taken, "rank": rank if taken else None}
    world.write()
    sizes = {one["topic"]: 2 for one in world.subset}
    shares = None if strata is None else sizes | {topic: strata}
    record = {"budget": {"caps": sizes | {topic: caps}}, "strata": shares, "chosen_rows": 5, "objective": 1.0}
    write_json(record, world.folder("selection") / "selection.json")
    return tell(tmp_path, row["id"]), topic


@pytest.mark.parametrize(("caps", "strata", "by"), [(0, None, "selection.caps"), (2, 0, "its share of the budget")])
def test_a_topic_of_which_nothing_may_be_chosen_is_said_first(tmp_path, caps, strata, by):
    story, topic = bound_topic(tmp_path, caps, strata)
    assert story.sentences[0] == f"It was not chosen: no row of its topic, {topic}, may be chosen, by {by}."
    assert story.sentences[-1] == f"Of its topic, {topic}, 0 of 2 rows were chosen, of at most 0, which is reached."


def test_a_topic_that_was_full_before_the_choice_ended_is_said_first(tmp_path):
    story, topic = bound_topic(tmp_path, 1, None, chosen=True)
    assert story.sentences[0] == (
        f"It was not chosen: its topic, {topic}, was full from number 2 on, with the 1 row that selection.caps allows."
    )
    assert "the chosen row" in story.sentences[1]


@pytest.mark.parametrize("strata", [None, 2])
def test_a_topics_size_is_no_bound(tmp_path, strata):
    story, topic = bound_topic(tmp_path, 2, strata)
    assert story.sentences[-1] == f"Of its topic, {topic}, 0 of 2 rows were chosen."
    assert not any("full" in one for one in story.sentences)


def test_no_budget_takes_a_row_over_its_topics_cap(tmp_path):
    world = make_world(tmp_path)
    row = next(one for one in world.subset if not one["chosen"])
    world.write()
    path = world.folder("selection") / "subset.parquet"
    found, asked = read_table(path), {"caps": {"*": 0}}
    write_table(found, path, Provenance("selection", "v1", asked, provenance(path)["inputs"]))
    (said,) = (one for one in tell(tmp_path, row["id"], enters={}).sentences if "budget" in one)
    assert said == (
        f"No budget that was tried takes it: selection.caps allows 0 rows of its topic, {row['topic']}, whatever the "
        "budget."
    )
