"""What is told of one row of a version."""

import pytest
from worlds.toy_project import make_world

from tasks.artifacts.tables import write_json
from tasks.artifacts.views import opened
from tasks.catalogue import why
from tasks.catalogue.sources import find_artifacts


def tell(root, id: str) -> why.Story:
    artifacts = find_artifacts(root)
    views = frozenset({**artifacts.views, **artifacts.derived})
    with opened(artifacts.views, derived=artifacts.derived) as connection:
        return why.tell(connection, "v1", id, views=views, root=root)


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
