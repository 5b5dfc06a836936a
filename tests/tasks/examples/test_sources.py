"""A version whose files are read in several ways."""

import json
from functools import partial

import pytest
from pydantic import ValidationError
from worlds.raw_rows import ROWS, dump, write_toy

from tasks.examples.files import ExamplesError
from tasks.examples.settings import ExamplesSettings

ASKED = [{"q": f"name {place} rivers", "a": f"river {place}"} for place in range(8)]
CHATS = [
    {"talk": [{"from": "human", "value": f"hello {place}"}, {"from": "gpt", "value": f"hi {place}"}]}
    for place in range(8)
]
SOURCES = [
    {"path": "asked", "fields": {"prompt": "q", "response": "a"}, "topic": "rivers", "source": "atlas"},
    {"path": "*.json", "format": "sharegpt", "fields": {"messages": "talk"}},
]


@pytest.fixture
def make(tmp_path, toy):
    """Write three kinds of files and make examples of them."""
    raw = tmp_path / "raw/v1"
    (raw / "asked").mkdir(parents=True)
    (raw / "asked/rivers.jsonl").write_text(dump(ASKED))
    (raw / "chats.json").write_text(json.dumps(CHATS))
    return partial(write_toy, tmp_path, toy, ROWS, fields={})


def test_each_file_is_read_as_its_source_says_and_others_as_the_settings_say(make):
    table = make(sources={"v1": SOURCES}).to_pylist()
    by_file = {row["file"]: row for row in table}
    assert len(table) == len(ROWS) + len(ASKED) + len(CHATS)
    rivers, chats, plain = (by_file[f"v1/{name}"] for name in ("asked/rivers.jsonl", "chats.json", "toy.jsonl"))
    assert (rivers["topic"], rivers["source"], rivers["response"]) == ("rivers", "atlas", "river 7")
    assert (chats["topic"], chats["source"], chats["prompt"]) == ("chats", None, "hello 7")
    assert (plain["topic"], plain["response"]) == (ROWS[-1]["topic"], ROWS[-1]["response"])


def test_a_source_that_names_no_file_is_refused(make):
    text = r"1 of 3 sources name no file that is read, first 'nothing'; there are asked/rivers.jsonl, chats.json, toy"
    with pytest.raises(ExamplesError, match=text):
        make(sources={"v1": [*SOURCES, {"path": "nothing"}]})


def test_a_field_of_a_source_that_no_row_has_is_refused(make):
    wrong = [SOURCES[0] | {"fields": {"prompt": "q", "response": "a", "tests": "checks"}}, SOURCES[1]]
    with pytest.raises(ExamplesError, match=r"0 of .* rows have the field 'checks' that a source maps to tests"):
        make(sources={"v1": wrong})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"format": "alpaca"}, "of v1, number 1, is .*give path: a file, folder or pattern inside raw"),
        ({"path": "a", "formt": "alpaca"}, "of v1, number 1, has an unknown 'formt' .did you mean 'format'"),
        ({"path": "a", "fields": "q"}, "of v1, number 1, is .*fields: {part: field}"),
    ],
)
def test_a_source_that_cannot_be_followed_is_refused_by_the_settings(source, text):
    with pytest.raises(ValidationError, match=text):
        ExamplesSettings(sources={"v1": [source]})
