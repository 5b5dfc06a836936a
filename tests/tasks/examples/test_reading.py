"""Batches of raw rows become examples: which of the named fields hold in a file, and what a template refuses."""

from pathlib import Path

import pytest
from worlds import chat_templates
from worlds.raw_rows import ROWS, dump

from tasks.examples.examples import choose_files, open_reader
from tasks.examples.files import ExamplesError
from tasks.examples.reading import Facts, cut_files, read_batch, read_files
from tasks.examples.settings import ExamplesSettings

FIELDS = {"prompt": "question", "response": "answer", "topic": "subject"}
NAMED = [{"question": f"what is {k}?", "answer": str(k), "subject": "sums"} for k in range(3)]
CHATS = [
    {"messages": [{"role": "user", "content": f"hello {k}"}, {"role": "assistant", "content": "hi"}]} for k in range(3)
]


def write(folder: Path, **files: list) -> Path:
    """Write files of JSON lines into a raw folder and return it."""
    raw = folder / "v1"
    raw.mkdir()
    for name, rows in files.items():
        (raw / f"{name}.jsonl").write_text(dump(rows))
    return raw


def read(raw: Path, model, **settings) -> tuple[list[dict], Facts]:
    """Return the good rows of a raw folder, and the facts of all."""
    asked, facts = ExamplesSettings(**settings), Facts()
    tables = read_files(choose_files(raw, asked)[0], open_reader(model, asked), facts)
    return [row for table in tables for row in table.to_pylist()], facts


def test_a_file_without_any_of_the_named_texts_is_recognised_by_itself(tmp_path, toy):
    rows, facts = read(write(tmp_path, chats=CHATS, named=NAMED), toy, fields=FIELDS)
    assert facts.formats == {"v1/chats.jsonl": "messages", "v1/named.jsonl": "fields"}
    assert facts.rejects == []
    assert [row["topic"] for row in rows] == ["chats"] * 3 + ["sums"] * 3


def test_of_the_named_fields_those_hold_that_such_a_file_has(tmp_path, toy):
    rows, _ = read(write(tmp_path, chats=[row | {"subject": "talk"} for row in CHATS]), toy, fields=FIELDS)
    assert {row["topic"] for row in rows} == {"talk"}


def test_a_file_with_one_of_the_named_texts_is_held_to_all_of_them(tmp_path, toy):
    rows, facts = read(write(tmp_path, named=[{"question": "a?", "reply": "b", "subject": "c"}]), toy, fields=FIELDS)
    assert rows == []
    assert [reason for *_, reason, _ in facts.rejects] == ["missing field 'answer': nothing for the response"]


def test_a_format_that_is_set_holds_for_every_file(tmp_path, toy):
    with pytest.raises(ExamplesError, match=r"chats\.jsonl: examples\.format is alpaca, whose rows have the fields"):
        read(write(tmp_path, chats=CHATS), toy, format="alpaca", fields={"topic": "subject"})


def test_a_file_that_nothing_tells_is_refused_with_the_fields_that_were_looked_for(tmp_path, toy):
    text = r"v1/odd\.jsonl: it has none of the fields question, answer \(examples\.fields\), and the fields a, b fit no"
    with pytest.raises(ExamplesError, match=text):
        read(write(tmp_path, odd=[{"a": "x", "b": "y"}]), toy, fields=FIELDS)


def test_rows_that_the_template_refuses_are_rejected_and_all_others_read(tmp_path, toy):
    template = tmp_path / "template.jinja"
    template.write_text(chat_templates.GEMMA)
    model = toy.__class__(**vars(toy) | {"chat_template": str(template)})
    rows = [row | ({"system": "Be kind."} if place == 1 else {}) for place, row in enumerate(ROWS[:4])]
    good, facts = read(write(tmp_path, rows=rows), model)
    assert [row["row"] for row in good] == [0, 2, 3]
    ((number, _, line, reason, _),) = facts.rejects
    assert (number, line) == (1, 2)
    assert reason.startswith("not written by the template: the chat template refuses the conversation: ")


def test_batches_of_the_first_rows_of_each_file_are_read_as_the_whole_is(tmp_path, toy):
    raw, settings = write(tmp_path, a=ROWS[:5], b=ROWS[5:7], empty=[]), ExamplesSettings()
    reader, facts = open_reader(toy, settings), Facts()
    batches = list(cut_files(choose_files(raw, settings)[0], reader, facts, most=3))
    assert [len(batch.records) for batch in batches] == [3, 2]
    assert facts.empty == ["v1/empty.jsonl"]
    rows = [row for batch in batches for table in read_batch(batch, reader, facts) for row in table.to_pylist()]
    assert [row["line"] for row in rows] == [1, 2, 3, 1, 2]
    assert facts.count == 5
