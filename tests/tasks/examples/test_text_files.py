"""What a file of text is that is none of rows: said with the way out, and one bad row refuses no others."""

import json
from pathlib import Path

import pytest

from tasks.examples.files import ExamplesError, list_files
from tasks.examples.text_files import read_text_file

ROW = {"prompt": "a", "response": "b"}
DEEP = "[" * 100_000 + "]" * 100_000
ROWS = f"[{json.dumps(ROW)}]"


def read(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> list:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_text_file(list_files(folder / name, {})[0][0], encoding))


@pytest.mark.parametrize("content", [ROWS, f"\n{ROWS}\n \n", json.dumps([ROW, ROW], indent=1), "[\n]", "[{},\n{}]"])
def test_an_array_under_the_name_of_lines_is_told(tmp_path, content):
    text = r"^a.jsonl is a JSON array and has not one object per line; name it .json$"
    with pytest.raises(ExamplesError, match=text):
        read(tmp_path, "a.jsonl", content)


@pytest.mark.parametrize("content", ["[1]", f"{ROWS}\n{ROWS}", f"{json.dumps(ROW)}\n["])
def test_lists_in_lines_are_rows_that_are_bad_by_themselves(tmp_path, content):
    assert len(read(tmp_path, "a.jsonl", content)) == 1 + content.count("\n")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("1" * 6000, "digits"),
        (json.dumps({"prompt": "]}"})[:-1] + f', "n": {"1" * 6000}' + "}", "digits"),
        (DEEP, "recursion"),
        (f'{{"prompt": "\\"]}}", "deep": {DEEP}}}', "recursion"),
        (f'{{"a": 1, "a": {"1" * 6000}}}', "digits|stands 2 times"),
    ],
)
def test_a_row_that_cannot_be_decoded_refuses_no_other(tmp_path, bad, kind):
    found = read(tmp_path, "a.json", f"[{json.dumps(ROW)}, {bad}, {json.dumps(ROW)}]")
    assert [found[0].value, found[2].value] == [ROW, ROW]
    with pytest.raises(ValueError, match=f"^(invalid JSON|duplicate key): .*({kind})"):
        raise found[1].value
    assert (found[1].line, found[1].text) == (2, bad)


def test_splits_in_one_object_are_told_from_columns(tmp_path):
    text = r"^a.json holds lists of rows \(train, test\), such as splits .*; write each .*: train.json, test.json$"
    for content in ({"train": [ROW], "test": [ROW, ROW]}, {"version": 1, "train": [ROW], "test": [ROW]}):
        with pytest.raises(ExamplesError, match=text):
            read(tmp_path, "a.json", json.dumps(content))
    columns = {"prompt": ["a"], "messages": [{"role": "user"}], **{f"c{k}": [k] for k in range(5)}}
    with pytest.raises(ExamplesError, match=r"holds columns \(prompt, messages, c0, c1, c2 and 2 more\), not rows"):
        read(tmp_path, "a.json", json.dumps(columns))
    with pytest.raises(ExamplesError, match="holds one JSON object whose field 'train' has the rows"):
        read(tmp_path, "a.json", json.dumps({"train": [ROW], "test": []}))


def test_a_column_of_another_encoding_is_named_with_the_way_out(tmp_path):
    text = r"^a.csv has a column caf\\xe9 that is of another encoding; set examples.encoding, cp1252 for example$"
    with pytest.raises(ExamplesError, match=text):
        read(tmp_path, "a.csv", b"caf\xe9,b\n1,2\n")
    assert read(tmp_path, "a.csv", b"caf\xe9,b\n1,2\n", "cp1252")[0].value == {"caf\xe9": "1", "b": "2"}
