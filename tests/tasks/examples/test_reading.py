"""Rows are read in batches, and each is an example or a reject: nothing is lost, whatever stands beside it."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.raw_rows import CHATS, ROWS, chat, dump, write_toy
from worlds.toys import toy_tokenizer

from tamis.examples.conversations import identify
from tamis.language.chat_templates import LEFT_OUT, Template
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.conversations import read_conversation
from tasks.examples import examples, reading
from tasks.examples.files import ExamplesError, list_files
from tasks.examples.reading import Facts, Reader, read_files
from tasks.examples.settings import ExamplesSettings

TEMPLATE = Template(toy_tokenizer())
SPECIAL = ("<|end|>", "<|user|>")
GOOD = [
    dump([chat("Hi", "Hello")]),
    dump([chat("system:Be kind.", "Hi", "Hello", "Bye", "See you")]),
    dump([chat("assistant:Welcome.", "Hi", "Hello")]),
    dump([chat("Hi", "Hello", "left out")]),
    dump([{"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]),
]
BAD = {  # a line -> the kind of its reason
    '{"messages": [\n': "invalid JSON",
    "[1]\n": "not an object",
    "{}\n": "missing field 'messages'",
    '{"messages": 3}\n': "not a list of messages",
    '{"messages": [], "messages": []}\n': "duplicate key",
    dump([chat("Hi")]): "no learnt turn",
    dump([chat("Hi", "")]): "empty response",
    dump([chat("", "Hello")]): "empty prompt",
    dump([chat("Hi", "a\0b")]): "holds NUL",
    dump([chat("Hi", "a\ud800b")]): "not UTF-8",
    dump([chat("Hi", "a<|end|>b")]): "holds a control token",
    dump([chat("Hi", "a" * 200)]): "longer than the context",
    dump([chat("Hi", "tool:a", "assistant:b")]): "tool answer without a call",
    dump([chat("Hi", "Hello", tools="no JSON")]): "invalid JSON",
    dump([{"messages": [{"role": "judge", "content": "Hi"}]}]): "unknown role",
    dump([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]): "content that is no text",
}
BLANK = "  \n"
FIRST = GOOD[0]  # so that the file's format is known


@contextmanager
def lines_of(*files: list[str]):
    """Write files of lines and yield what is read of them."""
    with tempfile.TemporaryDirectory() as folder:
        for place, lines in enumerate(files):
            (Path(folder) / f"{place}.jsonl").write_text("".join(lines))
        yield list_files(Path(folder), {})[0]


def read(files, *, template: Template | None = TEMPLATE, **asked) -> tuple[list[dict], Facts]:
    """Return the good rows, and what was noted of all."""
    facts = Facts()
    reader = Reader(ExamplesSettings(**asked), template, SPECIAL if template else (), 120)
    return [row for table in read_files(files, reader, facts) for row in table.to_pylist()], facts


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([*GOOD, *BAD, BLANK]), max_size=12), min_size=1, max_size=3), st.integers(1, 7)
)
def test_every_row_is_an_example_or_a_reject_with_its_reason(files, batch):
    files = [[FIRST, *lines] for lines in files]
    with lines_of(*files) as listed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH", batch)
        rows, facts = read(listed)
    expected = [
        (place, line, BAD.get(text))
        for place, lines in enumerate(files)
        for line, text in enumerate(lines, start=1)
        if text != BLANK
    ]
    good = [(row["file"], row["line"], None) for row in rows]
    bad = [(file, line, reason.partition(":")[0]) for _, file, line, reason, _ in facts.rejects]
    found = sorted([*good, *bad], key=lambda one: one[:2])
    assert [(Path(file).stem, line, kind) for file, line, kind in found] == [
        (str(place), line, kind) for place, line, kind in expected
    ]
    assert facts.count == len(expected) == len(rows) + len(facts.rejects)
    assert sorted([*facts.rows, *(number for number, *_ in facts.rejects)]) == list(range(len(expected)))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([*GOOD, *BAD]), max_size=20), st.integers(1, 6))
def test_the_size_of_a_batch_changes_nothing(lines, batch):
    with lines_of([FIRST, *lines]) as listed, pytest.MonkeyPatch.context() as patch:
        whole, facts = read(listed)
        patch.setattr(reading, "BATCH", batch)
        parts, others = read(listed)
    assert parts == whole
    assert sorted(others.rejects) == sorted(facts.rejects)
    assert (others.ids, others.same, others.keys, others.notes) == (facts.ids, facts.same, facts.keys, facts.notes)


def test_no_more_than_a_batch_is_parsed_tokenised_or_held_at_once(monkeypatch):
    parsed, encoded = [], []
    plain, encode = reading.parse_row, reading.encode_conversations
    monkeypatch.setattr(reading, "BATCH", 5)
    monkeypatch.setattr(reading, "parse_row", lambda *given: parsed.append(1) or plain(*given))

    def count(*given, **asked):
        encoded.append(len(given[1]))
        return encode(*given, **asked)

    monkeypatch.setattr(reading, "encode_conversations", count)
    with lines_of(dump(CHATS).splitlines(keepends=True)) as listed:
        for number, table in enumerate(read_files(listed, Reader(ExamplesSettings(), TEMPLATE, (), 400), Facts())):
            assert table.num_rows == (5 if number < 4 else 4)
            assert len(parsed) == min(24, 5 * (number + 1))
    assert encoded == [5, 5, 5, 5, 4]


def test_batches_are_written_and_read_back_one_at_a_time(tmp_path, toy, monkeypatch):
    expected = write_toy(tmp_path, toy, ROWS)
    monkeypatch.setattr(reading, "BATCH", 7)
    held = []
    plain = examples.add_division
    monkeypatch.setattr(
        examples,
        "add_division",
        lambda rows, *rest: (held.append(table.num_rows) or table for table in plain(rows, *rest)),
    )
    assert write_toy(tmp_path, toy).equals(expected)
    assert held == [7, 7, 7, 3]


def test_only_what_the_division_needs_of_a_row_is_kept_in_memory():
    with lines_of(dump([chat("q" * 5000, "a" * 5000)]).splitlines(keepends=True)) as listed:
        facts = Facts()
        for table in read_files(listed, Reader(ExamplesSettings(), TEMPLATE, (), 20_000), facts):
            assert table.num_rows == 1
    columns = [facts.rows, facts.ids, facts.same, facts.questions, facts.keys, facts.drawn, facts.topics, facts.files]
    assert [len(column) for column in columns] == [1] * 8
    assert len(json.dumps(columns)) < 500


def test_without_a_template_rows_have_the_same_ids_and_no_tokens():
    with lines_of([FIRST, *GOOD, *BAD]) as listed:
        told, facts = read(listed)
        plain, others = read(listed, template=None)
    known = {row["line"]: row["id"] for row in plain}
    assert all(known[row["line"]] == row["id"] for row in told)
    assert {row["tokens"] for row in plain} == {0}
    assert len(others.rejects) == len(facts.rejects) - 2  # what is too long and what holds a control token


def test_what_the_template_leaves_out_of_a_row_is_noted_and_counted():
    lines = dump(CHATS).splitlines(keepends=True)
    with lines_of(lines) as listed:
        facts = Facts()
        reader = Reader(ExamplesSettings(), TEMPLATE, (), 400, left_out=frozenset({"system"}))
        rows = [row for table in read_files(listed, reader, facts) for row in table.to_pylist()]
    with_system = [any(turn["role"] == "system" for turn in row["messages"]) for row in rows]
    assert 0 < sum(with_system) < len(rows)
    assert [row["note"] == LEFT_OUT["system"] for row in rows] == with_system
    assert facts.notes[LEFT_OUT["system"]] == sum(with_system)


def test_an_id_is_that_of_what_is_rendered():
    with lines_of(dump(CHATS).splitlines(keepends=True)) as listed:
        rows, facts = read(listed, system="first_user")
    assert [row["id"] for row in rows] == [identify(read_conversation(row)) for row in rows] == facts.ids
    assert all(turn["role"] != "system" for row in rows for turn in row["messages"])


def list_scratch(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "read.arrow" in path.name or ".examples-" in path.name]


def test_the_scratch_file_goes_when_the_examples_are_written(tmp_path, toy):
    write_toy(tmp_path, toy, ROWS)
    assert list_scratch(tmp_path) == []


@pytest.mark.parametrize("where", ["spill", "read_before", "divide", "add_division"])
def test_the_scratch_file_goes_when_something_breaks(tmp_path, toy, monkeypatch, where):
    def breaking(*_, **named):
        raise RuntimeError("out of power")

    monkeypatch.setattr(examples, where, breaking)
    with pytest.raises(RuntimeError, match="out of power"):
        write_toy(tmp_path, toy, ROWS)
    assert list_scratch(tmp_path) == []
    assert not (tmp_path / "out/examples.parquet").exists()


def test_the_scratch_file_goes_when_rows_are_bad(tmp_path, toy):
    with pytest.raises(ExamplesError, match="1 of 25 rows are bad"):
        write_toy(tmp_path, toy, [*ROWS, {"prompt": "a", "response": ""}])
    assert list_scratch(tmp_path) == []


def test_rejects_and_examples_of_an_artifact_are_all_rows(tmp_path, toy):
    lines = [FIRST, *GOOD, *BAD, *dump(CHATS).splitlines(keepends=True)]
    asked = {"on_bad_row": "reject", "on_long_row": "reject", "held_out_every": 2}
    table = write_toy(tmp_path, toy, "".join(lines), **asked)
    rejects = read_table(tmp_path / "out/rejects.parquet", schemas.REJECTS)
    places = [*table["line"].to_pylist(), *rejects["line"].to_pylist()]
    assert sorted(places) == list(range(1, len(lines) + 1))
    found = json.loads((tmp_path / "out/examples.json").read_text())
    assert (found["rows"], found["rejects"]) == (len(lines), rejects.num_rows)
