"""A setting that a run does not read is named, and one that it reads is not."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from flows import params
from flows.unread import list_notes, list_sparse, list_unread
from tasks.selection.selectors import SELECTORS, leave_unread
from tasks.selection.settings import SelectionSettings

ROOT = Path(__file__).parents[2]
WORDS = {"quality": "help", "quality_prior": 1.0, "stratify": "topic", "scaling": "minmax", "optimiser": "partition"}


@pytest.fixture
def plain() -> params.Params:
    """Settings at their defaults, by selector delift."""
    values = params.read(ROOT / "params.yaml")
    return replace(values, selection=SelectionSettings(), utility=type(values.utility)())


def choose(values: params.Params, **words) -> params.Params:
    return replace(values, selection=replace(values.selection, **words))


def test_the_committed_settings_are_all_read():
    assert list_unread(params.read(ROOT / "params.yaml")) == []


@pytest.mark.parametrize("selector", list(SELECTORS))
def test_defaults_are_not_named_whatever_the_selector(plain, selector):
    assert list_unread(choose(plain, selector=selector)) == []


@pytest.mark.parametrize(
    ("selector", "read"),
    [
        ("delift", {"quality", "quality_prior", "stratify", "scaling", "optimiser"}),
        ("embedding", {"quality", "quality_prior", "stratify", "optimiser"}),
        ("dualsft_cover", {"stratify", "optimiser"}),
        ("longest", set()),
        ("probes", set()),
    ],
)
def test_words_of_a_choice_are_named_where_its_selector_does_not_read_them(plain, selector, read):
    named = list_unread(choose(plain, selector=selector, **WORDS))
    assert {name.removeprefix("selection.") for name in named if name.startswith("selection.")} == WORDS.keys() - read


def test_shares_of_topics_are_named_where_a_target_or_a_budget_of_tokens_rules_them_out(plain):
    asked = choose(plain, selector="embedding", stratify="topic")
    targeted = replace(asked, examples=replace(asked.examples, target={"topic": "ai", "rows": 2}))
    assert list_unread(asked) == []
    for other in (targeted, choose(asked, budget={"response_tokens": 9}), choose(targeted, selector="dualsft_cover")):
        assert list_unread(other) == ["selection.stratify"]


@pytest.mark.parametrize(
    ("words", "looks"),
    [
        ({}, False),
        ({"objective": "facility_location"}, False),
        ({"selector": "embedding"}, False),
        ({"selector": "random"}, False),
        ({"selector": "longest"}, False),
        ({"objective": "mutual_information"}, True),
        ({"quality": "help"}, True),
        ({"gate": {"by": "help", "drop": 0.2, "beyond": None}}, True),
        ({"pilot": {"steps": 2}}, True),
        ({"selector": "dualsft"}, True),
        ({"selector": "rds"}, True),
        ({"selector": "less"}, True),
    ],
)
def test_a_target_task_that_nothing_looks_at_is_told_of(plain, words, looks):
    asked = choose(plain, **words)
    targeted = replace(asked, examples=replace(asked.examples, target={"topic": "ai", "rows": 2}))
    told = [note for note in list_notes(targeted) if note.startswith("examples.target keeps its rows out of the pool")]
    assert len(told) == (not looks)
    assert not [note for note in list_notes(asked) if "examples.target" in note]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"quality": "help"}, ["utility.check_targets", "utility.diagonal"]),
        ({"gate": {"by": "help", "drop": 0.2, "beyond": None}}, ["utility.check_targets", "utility.diagonal"]),
        ({"quality": "neighbours"}, ["utility.check_targets", "utility.diagonal", "utility.help_targets"]),
    ],
)
def test_pairs_that_are_asked_for_and_read_by_nothing_are_named(plain, words, named):
    pairs = replace(plain.utility, kernel="exact", check_targets=20, help_targets=4, diagonal="scored")
    values = replace(choose(plain, selector="embedding", **words), utility=pairs)
    assert list_unread(values) == named


def test_nothing_of_section_utility_is_read_where_no_pair_is(plain):
    values = replace(choose(plain, selector="longest"), utility=replace(plain.utility, neighbours=3, answer_tokens=9))
    assert list_unread(values) == ["utility.answer_tokens", "utility.neighbours"]
    assert {name.partition(".")[2] for name in list_unread(values)} <= {one.name for one in fields(plain.utility)}


def test_notes_are_a_line_on_what_is_not_read(plain):
    assert list_notes(plain) == []
    assert list_notes(choose(plain, selector="longest", stratify="topic")) == [
        "set, and not read by selector longest: selection.stratify"
    ]


@pytest.mark.parametrize(("count", "told"), [(1, ["1 other row "]), (2, ["2 other rows "]), (3, [])])
def test_delift_by_hardly_any_similarity_is_noted(plain, count, told):
    values = replace(plain, utility=replace(plain.utility, neighbours=count))
    notes = list_notes(values)
    assert len(notes) == len(told)
    assert all(words in note for note, words in zip(notes, told, strict=True))
    assert list_sparse(values, ["longest"]) == list_sparse(choose(values, selector="longest"), []) == []


def test_drawn_rows_are_scored_only_where_something_reads_them(plain):
    pairs, by_help = replace(plain.utility, check_targets=16, help_targets=4), {"by": "help"}
    for selector, gate, quality, kernel, kept in (
        ("delift", None, "none", "neighbours", (16, 0)),
        ("delift", None, "help", "neighbours", (16, 4)),
        ("embedding", None, "help", "neighbours", (0, 4)),
        ("embedding", None, "neighbours", "neighbours", (0, 0)),
        ("longest", by_help, "help", "neighbours", (0, 0)),
        ("longest", by_help, "none", "exact", (0, 4)),
        ("probes", by_help, "none", "neighbours", (0, 4)),
    ):
        found = leave_unread(replace(pairs, kernel=kernel), selector, gate, quality)
        assert (found.check_targets, found.help_targets) == kept, (selector, gate, quality, kernel)
