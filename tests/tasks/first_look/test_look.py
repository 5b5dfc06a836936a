"""A first look: what a sample says, what all rows say, and what a run would make of them."""

import json
from pathlib import Path

import pytest
from worlds.places import find_artifacts
from worlds.raw_rows import BASE, CHATS, ROWS, chat, dump, write_toy

from tasks.examples.files import ExamplesError
from tasks.examples.settings import ExamplesSettings
from tasks.first_look import look

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
FIRST = {"examples": BASE / "examples/version=base", "selection": BASE / "selection/version=base"}


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw folder with rows of two formats, bad ones among them, and a file that is not read."""
    folder = tmp_path / "raw/v1"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text(dump(ROWS) + dump([ROWS[0], {"prompt": "x", "response": ""}]) + "{bad\n")
    (folder / "chat.json").write_text(json.dumps([CHAT]))
    (folder / "notes.txt").write_text("x")
    return folder


def open_at(raw: Path, toy, **settings) -> look.Source:
    return look.open_source(raw, "v1", model=toy, settings=ExamplesSettings(**settings))


def see(raw: Path, toy, tmp_path: Path, before: dict[str, Path] | None = None, **settings) -> look.Look:
    """Return what all rows say."""
    earlier = find_artifacts(tmp_path / "none", "v0", **(FIRST if before is None else before))
    return look.look_at_all(open_at(raw, toy, **settings), earlier, tmp_path / "cache", tell=lambda rows: None)


def test_every_row_is_counted_once(raw, toy, tmp_path):
    found = see(raw, toy, tmp_path, held_out_every=3)
    assert (found.rows, found.rejected, found.duplicates) == (28, 2, 1)
    assert found.near_duplicates == 0
    assert [(one.file, one.format, one.rows, one.rejected) for one in found.files] == [
        ("v1/chat.json", "messages", 1, 0),
        ("v1/rows.jsonl", "prompt_response", 27, 2),
    ]
    assert [tuple(one) for one in found.not_read] == [("notes.txt", "no data file")]
    assert found.sample is None
    assert {kind.kind: kind.first[0].line for kind in found.rejects} == {"empty response": 26, "invalid JSON": 27}
    assert (found.topics[0].topic, found.topics[0].rows) == ("sums0", 9)


def test_figures_are_those_of_the_stage(raw, toy, tmp_path):
    found = see(raw, toy, tmp_path, held_out_every=3, on_bad_row="reject")
    table = write_toy(tmp_path, toy, fields={}, held_out_every=3, on_bad_row="reject")
    assert found.tokens.total == sum(table["tokens"].to_pylist())
    assert found.learnt_tokens.total == sum(table["response_tokens"].to_pylist())
    used = table.filter(table["used"])["split"].to_pylist()
    assert found.foreseen.used == {side: used.count(side) for side in ("pool", "held_out")}
    assert found.foreseen.stops is None


def test_rows_and_exchanges_that_are_left_out_are_both_counted(raw, toy, tmp_path):
    turns = [chat("hi", "a" * 100, "and", "b" * 100, "so", "c" * 100, "then", "d" * 100) for _ in range(2)]
    (raw / "rows.jsonl").write_text(dump([*turns, *CHATS]))
    told = {"longer than the context: whole exchanges are left out at its end, 4 in all": 2}
    assert see(raw, toy, tmp_path, on_long_row="drop_turns").notes == told


def test_nothing_is_left_behind(raw, toy, tmp_path):
    see(raw, toy, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_would_stop_a_run_is_told(raw, toy, tmp_path):
    found = see(raw, toy, tmp_path)
    assert found.foreseen.stops.startswith("2 of 28 rows are bad (1 empty response, 1 invalid JSON); first v1/rows")
    assert found.foreseen.used["pool"] > 0
    for name in ("chat.json", "rows.jsonl"):
        (raw / name).write_text("")
    assert see(raw, toy, tmp_path).foreseen.stops == (
        "the raw files hold no rows; an example has at least a question and an answer"
    )


def test_similar_rows_are_counted_and_those_of_the_pool_that_are_like_a_held_out_one(raw, toy, tmp_path):
    words = " ".join(chr(97 + k) for k in range(26))
    rows = [{"prompt": f"{words} {k}", "response": words[::-1]} for k in range(6)]
    (raw / "rows.jsonl").write_text(dump([*ROWS, *rows, rows[0]]))
    found = see(raw, toy, tmp_path, held_out_every=2)
    table = write_toy(tmp_path, toy, fields={}, held_out_every=2)
    near = [row for row in table.to_pylist() if row["near_duplicate_of"] is not None and row["duplicate_of"] is None]
    assert found.near_duplicates == len(near) == 5
    assert type(found.near_duplicates) is int
    metrics = json.loads((tmp_path / "out/examples.json").read_text())
    assert found.near_held_out == metrics["near_held_out"]
    assert found.near_validation == metrics["near_validation"] == 0


def test_examples_are_of_different_files_and_as_rendered(raw, toy, tmp_path):
    found = see(raw, toy, tmp_path)
    assert len(found.examples) == 3
    chat = found.examples[0]
    assert (chat.file, chat.line) == ("v1/chat.json", 1)
    assert [(one.text, one.learnt) for one in chat.sequences[0]] == [
        ("<|user|>hi<|end|>\n<|assistant|>", False),
        ("hello<|end|>", True),
        ("\n", False),
    ]
    assert see(raw, toy, tmp_path).examples == found.examples


def test_changes_are_against_the_version_before(raw, toy, tmp_path):
    write_toy(tmp_path, toy, fields={}, held_out_every=3, on_bad_row="reject", out=tmp_path / "before")
    edited = [row | ({"response": "another"} if place == 0 else {}) for place, row in enumerate(ROWS)]
    (raw / "rows.jsonl").write_text(dump([*edited, {"prompt": "new?", "response": "yes"}]))
    found = see(raw, toy, tmp_path, FIRST | {"examples": tmp_path / "before"}, held_out_every=3)
    assert found.foreseen.changes == {"new": 1, "edited": 1, "kept": 24}


def test_against_a_version_that_is_not_made_nothing_is_known(raw, toy, tmp_path):
    assert see(raw, toy, tmp_path, {}).foreseen.changes is None


def test_few_rows_need_no_sample(raw, toy):
    assert look.look_at_sample(open_at(raw, toy)) is None


def test_a_sample_is_drawn_from_the_first_rows_of_each_file_with_a_seed(raw, toy, monkeypatch):
    monkeypatch.setattr(look, "SAMPLE", 6)
    monkeypatch.setattr(look, "FIRST", 40)
    found = look.look_at_sample(open_at(raw, toy))
    assert found.sample == look.Sampled(6, 21, False)
    assert found.rows == 6
    assert (found.duplicates, found.foreseen) == (None, None)
    assert found == look.look_at_sample(open_at(raw, toy))
    assert found != look.look_at_sample(open_at(raw, toy, seed=1))


def test_a_sample_of_all_rows_says_so(raw, toy, monkeypatch):
    monkeypatch.setattr(look, "SAMPLE", 6)
    assert look.look_at_sample(open_at(raw, toy)).sample == look.Sampled(6, 28, True)


def test_a_sample_of_long_rows_is_smaller(raw, toy, monkeypatch):
    monkeypatch.setattr(look, "SAMPLE", 6)
    monkeypatch.setattr(look, "SAMPLE_CHARACTERS", 100)
    assert look.look_at_sample(open_at(raw, toy)).rows == 2
    monkeypatch.setattr(look, "READ_CHARACTERS", 10)
    assert look.look_at_sample(open_at(raw, toy)).sample == look.Sampled(1, 1, False)


@pytest.mark.slow
def test_many_rows_are_read_by_several_processes_with_the_same_figures(raw, toy, tmp_path, monkeypatch):
    (raw / "a.csv").write_text("prompt,response\na,b\n")
    turns = [chat("hi", "a" * 100, "and", "b" * 100, "so", "c" * 100, "then", "d" * 100) for _ in range(2)]
    (raw / "turns.jsonl").write_text(dump(turns))
    alone = see(raw, toy, tmp_path, on_long_row="drop_turns")
    assert alone.notes
    monkeypatch.setattr(look, "ALONE", 1)
    assert see(raw, toy, tmp_path, on_long_row="drop_turns") == alone


def test_a_field_that_no_row_has_would_stop_a_run(raw, toy, tmp_path):
    fields = {"prompt": "prompt", "response": "response", "tests": "checks"}
    (raw / "chat.json").unlink()
    stops = see(raw, toy, tmp_path, fields=fields).foreseen.stops
    assert stops.startswith("0 of 27 rows have the field 'checks' that examples.fields maps to tests; there are ")


def test_a_file_that_nothing_tells_is_refused(raw, toy):
    (raw / "odd.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ExamplesError, match=r"v1/odd.jsonl: the fields a fit no known format; set examples.format"):
        look.look_at_sample(open_at(raw, toy))
