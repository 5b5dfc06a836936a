"""Raw files cut into batches, each of which is read by itself; the whole is the sum of its batches."""

from pathlib import Path

import pytest
from worlds.raw_rows import ROWS, dump

from tasks.examples.examples import choose_files, open_reader
from tasks.examples.files import ExamplesError
from tasks.examples.reading import Facts, cut_files, read_batch, read_files
from tasks.examples.settings import ExamplesSettings

FIELDS = {"prompt": "question", "response": "answer"}
ASKED = [{"question": f"what is {k}?", "answer": str(k)} for k in range(3)]


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw folder with two files and an empty one."""
    folder = tmp_path / "v1"
    folder.mkdir()
    for name, rows in (("a", ROWS[:5]), ("b", ROWS[5:7]), ("empty", [])):
        (folder / f"{name}.jsonl").write_text(dump(rows))
    return folder


def test_batches_of_the_first_rows_of_each_file_are_read_as_the_whole_is(raw, toy):
    settings = ExamplesSettings()
    reader, facts = open_reader(toy, settings, "v1"), Facts()
    batches = list(cut_files(choose_files(raw, settings)[0], reader, facts, most=3))
    assert [len(batch.records) for batch in batches] == [3, 2]
    assert facts.empty == ["v1/empty.jsonl"]
    rows = [row for batch in batches for table in read_batch(batch, reader, facts) for row in table.to_pylist()]
    assert [row["line"] for row in rows] == [1, 2, 3, 1, 2]
    assert facts.count == 5


def test_fields_are_asked_only_of_files_that_no_source_says_otherwise_of(raw, toy):
    for name in ("a", "b", "empty"):
        (raw / f"{name}.jsonl").write_text(dump(ASKED))
    said = {
        "fields": {"prompt": "prompt", "response": "response"},
        "sources": {"v1": [{"path": "*", "fields": FIELDS}]},
    }
    settings, facts = ExamplesSettings(**said), Facts()
    files, reader = choose_files(raw, settings)[0], open_reader(toy, settings, "v1")
    assert sum(table.num_rows for table in read_files(files, reader, facts)) == 9
    (raw / "a.jsonl").write_text(dump(ROWS))
    said["sources"]["v1"][0] = {"path": "b.jsonl", "fields": FIELDS | {"tests": "checks"}}
    settings = ExamplesSettings(**said)
    with pytest.raises(ExamplesError, match=r"have the field 'checks' that a source maps to tests; there are "):
        list(read_files(choose_files(raw, settings)[0], open_reader(toy, settings, "v1"), Facts()))
