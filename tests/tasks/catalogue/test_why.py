"""What is told of one row of a version."""

import pytest
from worlds.toy_project import make_world

from tasks.artifacts.tables import Provenance, provenance, read_table, write_json, write_table
from tasks.artifacts.views import opened
from tasks.catalogue import why
from tasks.catalogue.derived import name_score
from tasks.catalogue.sources import find_artifacts
from tasks.selection.selectors import CHANCE, SELECTORS


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


def sort_by_length(tmp_path, lengths: list[int], record: dict | None = None) -> list[tuple[str, ...]]:
    """Return what is told of each row of a choice of the two first ones, the pool's rows having these lengths."""
    world = make_world(tmp_path)
    for row, one, length in zip(world.examples[: len(lengths)], world.subset, lengths, strict=True):
        row["response_tokens"] = one["response_tokens"] = length
        one |= {"covered_by": None, "cover": None}
    world.write()
    facts = {"selector": "longest", "objective": None, "chosen_rows": 2} | (record or {})
    write_json(facts, world.folder("selection") / "selection.json")
    return [tell(tmp_path, one["id"]).sentences for one in world.subset]


def test_by_a_score_both_numbers_its_quantile_and_a_tie_are_told(tmp_path):
    told = sort_by_length(tmp_path, [12345, 19, 19, 12, 7, 5])
    assert told[0][1] == (
        "Its response_tokens is 12345: higher than that of 100% of all other rows that have one. "
        "The lowest that was chosen is 19."
    )
    assert told[2][:2] == (
        "It was not chosen: longest takes the largest response_tokens first, and of the rows that have 19 like it, the "
        "lowest that was chosen, the first ones were taken.",
        "Its response_tokens is 19: higher than that of 60% of all other rows that have one, and the same as that of 1 "
        "of them.",
    )
    assert told[3][0] == (
        "It was not chosen: longest takes the largest response_tokens first, and its 12 is below 19, the lowest that "
        "was chosen."
    )


def test_a_row_of_a_higher_score_is_told_what_kept_it_out(tmp_path):
    told = sort_by_length(tmp_path, [50, 19, 40, 12, 7, 5], {"budget": {"kind": "response_tokens", "caps": {}}})
    assert told[2][:2] == (
        "It was not chosen: the budget had no room left for its 40 response tokens.",
        "Its response_tokens is 40, above 19, the lowest that was chosen.",
    )


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("random", "Rows were drawn by chance, and have no score."),
        ("bm25", "No artifact keeps by what bm25 sorts, so that how near it came is not known."),
    ],
)
def test_without_a_score_that_is_kept_that_is_told(tmp_path, selector, said):
    told = sort_by_length(tmp_path, [50, 19, 40, 12, 7, 5], {"selector": selector})
    assert told[2][:2] == (f"It was not chosen: {selector} took others.", said)


SCORED = [name for name, one in SELECTORS.items() if not one.objective and name not in (*CHANCE, "bm25", "deft_ucs")]


@pytest.mark.parametrize("selector", SCORED)
def test_every_score_that_is_kept_is_told(tmp_path, selector):
    world = make_world(tmp_path)
    for one in world.subset:
        one |= {"covered_by": None, "cover": None}
    world.write()
    path = world.folder("scores") / "scores.parquet"
    found = read_table(path)
    write_table(found, path, Provenance("scores", "v1", {"selector": selector}, provenance(path)["inputs"]))
    write_json({"selector": selector}, world.folder("selection") / "selection.json")
    assert name_score({"selector": selector}) in tell(tmp_path, world.subset[3]["id"]).sentences[0]
