"""The rows that an estimate is of: divided as the stage divides them, and as long as a model reads them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from worlds.chat_templates import GEMMA, LLAMA, MISTRAL, QWEN_3
from worlds.raw_rows import CHATS, ROWS, chat, dump, write_toy
from worlds.toy_corpus import write_subset

from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations
from tamis.submodular.budgets import BudgetError
from tasks.conversations import read_conversation
from tasks.estimate import rows as estimate_rows
from tasks.estimate.rows import make_budget, measure_lengths, read_artifact, read_corpora, read_raw
from tasks.examples.files import ExamplesError
from tasks.examples.settings import ExamplesSettings
from tasks.selection.settings import SelectionSettings
from tasks.tokens import open_template

SELECTION = SimpleNamespace(budget={"count": 3}, caps={}, floors={}, gate=None, seed=0)
TWIN = {"prompt": f"  {ROWS[3]['prompt']}", "response": ROWS[3]["response"]}
LEFT = chat("Hi", "Hello", "Bye")


def settle(**changes) -> ExamplesSettings:
    return ExamplesSettings(**{"held_out_every": 3} | changes)


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        ([*ROWS, TWIN, ROWS[5]], {}),
        ([*ROWS, TWIN, ROWS[5]], {"deduplicate": False}),
        ([*CHATS, LEFT], {"learn": "last", "system": "drop"}),
        (CHATS, {"fields": {"topic": "topic"}, "target": {"topic": "sums1", "rows": 2}, "pool_rows": 5}),
        ([*ROWS, {"prompt": "a", "response": ""}], {"on_bad_row": "reject", "held_out": {"path": "own.jsonl"}}),
        (ROWS, {"retention_set": "own.jsonl"}),
    ],
)
def test_raw_rows_are_those_that_the_stage_writes(tmp_path, toy, content, changes):
    (tmp_path / "raw/v1").mkdir(parents=True)
    if "own.jsonl" in str(changes):
        (tmp_path / "raw/v1/own.jsonl").write_text(dump([{"prompt": "why?", "response": "so"}]))
    write_toy(tmp_path, toy, content, **changes)
    written = read_artifact(tmp_path / "out/examples.parquet")
    found = read_raw(tmp_path / "raw/v1", None, settle(**changes), "v1")
    links = [None if row["duplicate_of"] is None else 1 for row in found]
    assert links == [None if row["duplicate_of"] is None else 1 for row in written]
    assert [row | {"duplicate_of": None} for row in found] == [row | {"duplicate_of": None} for row in written]


def test_a_field_that_no_row_has_is_refused_as_by_the_stage(tmp_path):
    (tmp_path / "toy.jsonl").write_text(dump(ROWS))
    with pytest.raises(ExamplesError, match=r"0 of 24 rows have the field 'key' that examples.keep names"):
        read_raw(tmp_path, None, settle(keep=["key"]), "v1")


@pytest.mark.parametrize("deduplicate", [True, False])
def test_versions_that_follow_each_other_are_those_that_the_stage_writes(tmp_path, toy, deduplicate):
    asked = {"ground_set": "all", "deduplicate": deduplicate}
    values = SimpleNamespace(
        versions={
            "v1": SimpleNamespace(raw=tmp_path / "one", previous="base"),
            "v2": SimpleNamespace(raw=tmp_path / "two", previous="v1"),
        },
        examples=settle(**asked),
        selection=SELECTION,
    )
    for name, content in (
        ("one", [ROWS[0], TWIN, *ROWS]),
        ("two", [TWIN, *ROWS[2:], {"prompt": "a", "response": "b"}]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy.jsonl").write_text(dump(content))
    corpora = read_corpora(["v2"], values, toy, lambda stage, version: tmp_path / stage / version, frozenset())
    one, out = corpora["v1"], tmp_path / "examples/v1"
    write_toy(tmp_path, toy, raw=tmp_path / "one", out=out, **asked)
    assert one.rows == read_rows(out, one.rows)
    write_subset(tmp_path / "subset", sorted(one.chosen), len(one.chosen))
    before = {"previous_examples": out, "previous_subset": tmp_path / "subset"}
    write_toy(tmp_path, toy, raw=tmp_path / "two", out=tmp_path / "examples/v2", version="v2", **before, **asked)
    two = corpora["v2"]
    assert two.rows == read_rows(tmp_path / "examples/v2", two.rows)
    assert "learnt" in [row["earlier"] for row in two.rows]


def read_rows(folder, like: list[dict]) -> list[dict]:
    """Return the rows of an artifact with links as rows that were read raw have them."""
    found = read_artifact(folder / "examples.parquet")
    return [row | {"duplicate_of": other["duplicate_of"]} for row, other in zip(found, like, strict=True)]


def test_a_budget_that_leaves_a_gate_nothing_is_refused_before_anything_runs():
    rows, answers = [{"topic": "ai"}] * 12, np.ones(12, np.int64)
    settings = SelectionSettings(budget={"count": 9}, gate={"by": "ifd", "drop": 0.25})
    assert make_budget(rows, np.arange(12), answers, settings).limit == 9
    text = r"selection.budget.count takes 10 of the pool's 12 rows, of which selection.gate \(by .* null"
    with pytest.raises(BudgetError, match=text):
        make_budget(rows, np.arange(12), answers, replace(settings, budget={"count": 10}))


@pytest.mark.parametrize("gate", [None, {"by": "agreement", "beyond": 2}])
def test_a_budget_of_every_row_is_kept_where_a_gate_may_take_none_out(gate):
    rows, answers = [{"topic": "ai"}] * 12, np.ones(12, np.int64)
    assert make_budget(rows, np.arange(12), answers, SelectionSettings(budget={"count": 12}, gate=gate)).limit == 12


def own(toy, tmp_path, template: str | None):
    """Return the toy model with a chat template."""
    path = tmp_path / "own.jinja"
    path.write_text(template or "")
    return replace(toy, chat_template=str(path) if template else None, template_arguments='{"date_string": "May 4"}')


@pytest.mark.parametrize("template", [None, QWEN_3, LLAMA])
def test_lengths_are_those_of_the_tokens(tmp_path, toy, template):
    model = own(toy, tmp_path, template)
    write_toy(tmp_path, replace(model, max_tokens=600), CHATS)
    rows = read_artifact(tmp_path / "out/examples.parquet")
    head, contexts, answers, prefixes = measure_lengths(rows, model)
    conversations, how = [read_conversation(row) for row in rows], open_template(model)
    coded = encode_conversations(how, conversations)
    for place, conversation in enumerate(conversations):
        pieces = coded.row(place, headless=True)
        assert answers[place] == sum(int(piece.answers.sum()) for piece in pieces)
        assert contexts[place] == sum(len(piece) for piece in pieces) - answers[place]
        assert prefixes[place] == len(encode_prefix(how, [conversation], conversation))
    assert head == round(float(np.mean([len(coded.head(place)) for place in range(len(rows))])))


def test_lengths_of_rows_beyond_the_sample_follow_from_their_characters(tmp_path, toy, monkeypatch):
    write_toy(tmp_path, toy, CHATS)
    rows = read_artifact(tmp_path / "out/examples.parquet")
    whole = measure_lengths(rows, toy)
    monkeypatch.setattr(estimate_rows, "SAMPLE", 8)
    some = measure_lengths(rows, toy)
    for few, all_of_them in zip(some[1:], whole[1:], strict=True):
        assert few.sum() == pytest.approx(all_of_them.sum(), rel=0.2)
        assert (few == all_of_them).sum() >= 8


def test_rows_that_the_template_refuses_are_no_sample(tmp_path, toy):
    (tmp_path / "toy.jsonl").write_text(dump(CHATS))
    rows = read_raw(tmp_path, None, settle(), "v1")
    plain = [row for row in rows if row["messages"][0]["role"] != "system"]
    found = measure_lengths(rows, own(toy, tmp_path, GEMMA))
    known = measure_lengths(plain, own(toy, tmp_path, GEMMA))
    places = [place for place, row in enumerate(rows) if row in plain]
    for all_of_them, some in zip(found[1:], known[1:], strict=True):
        assert all_of_them[places].tolist() == some.tolist()
        assert (all_of_them > 0).all()


def test_a_template_without_a_place_for_demos_is_no_reason_to_stop(tmp_path, toy):
    (tmp_path / "toy.jsonl").write_text(dump(CHATS))
    rows = read_raw(tmp_path, None, settle(), "v1")
    _, contexts, answers, prefixes = measure_lengths(rows, own(toy, tmp_path, MISTRAL))
    assert (prefixes >= answers).all()
    assert (contexts > 0).all()


def test_no_row_has_no_length(toy):
    head, *lengths = measure_lengths([], toy)
    assert (head, [length.tolist() for length in lengths]) == (0, [[], [], []])
