"""What is told of one row of a version."""

import pytest
from worlds.toy_project import make_world

from tasks.artifacts.tables import write_json
from tasks.artifacts.views import opened
from tasks.catalogue import why
from tasks.catalogue.sources import find_artifacts


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
    artifacts = find_artifacts(tmp_path)
    views = frozenset({**artifacts.views, **artifacts.derived})
    with opened(artifacts.views, derived=artifacts.derived) as connection:
        story = why.tell(connection, "v1", row["id"], views=views, root=tmp_path)
    assert story.state == "gated"
    assert story.sentences[0] == f"It left before the choice, by the gate {by}. {told}"
