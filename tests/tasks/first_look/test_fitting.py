"""What must be said of new files that the settings of all versions do not fit."""

from pathlib import Path

import pytest
from worlds.raw_rows import ROWS, dump

from tasks.examples.settings import ExamplesSettings
from tasks.first_look.fitting import find_sources

FIELDS = {"prompt": "prompt", "response": "response", "topic": "topic"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
ALPACA = {"instruction": "Say hi.", "input": "", "output": "hi"}


@pytest.fixture
def raw(tmp_path) -> Path:
    """An empty raw folder."""
    (tmp_path / "v2").mkdir()
    return tmp_path / "v2"


def write(raw: Path, **files: dict) -> None:
    for name, row in files.items():
        (raw / f"{name}.jsonl").write_text(dump([row]))


def test_nothing_is_said_of_files_that_the_settings_fit(raw):
    write(raw, rows=ROWS[0])
    (raw / "empty.jsonl").write_text("")
    assert find_sources(raw, ExamplesSettings(fields=FIELDS)) == []
    write(raw, chat=CHAT, alpaca=ALPACA)
    assert find_sources(raw, ExamplesSettings()) == []


def test_files_without_any_of_the_fields_are_recognised_by_themselves(raw):
    write(raw, chat=CHAT, alpaca=ALPACA)
    assert find_sources(raw, ExamplesSettings(fields=FIELDS)) == [{"path": "*", "fields": {}}]


def test_of_the_fields_those_hold_that_a_file_has(raw):
    write(raw, chat=CHAT | {"topic": "talk"}, rows=ROWS[0], plain={"prompt": "a", "response": "b"})
    assert find_sources(raw, ExamplesSettings(fields=FIELDS)) == [
        {"path": "chat.jsonl", "fields": {"topic": "topic"}},
        {"path": "plain.jsonl", "fields": {"prompt": "prompt", "response": "response"}},
    ]


def test_a_format_that_does_not_fit_is_recognised(raw):
    write(raw, chat=CHAT)
    assert find_sources(raw, ExamplesSettings(format="alpaca")) == [{"path": "*", "fields": {}, "format": "auto"}]


def test_a_file_that_cannot_be_recognised_is_left_to_the_settings(raw):
    write(raw, odd={"a": "b"}, chat=CHAT)
    assert find_sources(raw, ExamplesSettings(fields=FIELDS)) == [{"path": "chat.jsonl", "fields": {}}]


def test_a_raw_path_that_is_a_file_is_named_by_a_pattern(raw):
    write(raw, chat=CHAT)
    assert find_sources(raw / "chat.jsonl", ExamplesSettings(fields=FIELDS)) == [{"path": "*", "fields": {}}]
