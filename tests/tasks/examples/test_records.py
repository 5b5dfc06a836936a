"""Files of every kind give the same records, and what cannot be read says where, why and what to do."""

import bz2
import csv
import gzip
import io
import json
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.examples.conversations import identify
from tamis.examples.formats import make_reading, parse_row
from tamis.examples.values import RowError
from tasks.examples import records
from tasks.examples.files import PACKED, ExamplesError, RawFile, list_files
from tasks.examples.records import pick_kept, read_records, sample_fields

ROWS = [{"prompt": f"what is {k} + {k}?", "response": 2 * k, "topic": k % 2 == 0, "system": None} for k in range(20)]
ROWS[3]["prompt"] = 'two\nlines, "quoted"\tand\ttabs'
ROWS[4]["prompt"] = "مرحبا \u200fשלם\u202e"
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def file_of(folder: Path, name: str, content: bytes | str) -> RawFile:
    """Write a file and return it as it is listed."""
    path = folder / "v1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list_files(path, {})[0][0]


def read(folder: Path, name: str, content: bytes | str, **how) -> list:
    return list(read_records(file_of(folder, name, content), **how))


def values(found: list) -> list:
    return [record.value for record in found]


def as_csv(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(ROWS[0])
    writer.writerows([row["prompt"], row["response"], str(row["topic"]).lower(), ""] for row in ROWS)
    return text.getvalue().encode()


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def pack(ending: str, content: bytes) -> bytes:
    if ending == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[ending](content)


CONTENTS = {
    "toy.jsonl": LINES.encode(),
    "toy.ndjson": LINES.replace("\n", "\r\n\r\n").encode("utf-8-sig"),
    "toy.json": json.dumps(ROWS, indent=1).encode(),
    "toy.csv": as_csv(","),
    "toy.tsv": as_csv("\t"),
    "toy.parquet": as_parquet(TABLE),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_same_table_gives_the_same_examples_and_ids_in_every_kind(tmp_path, name):
    expected = [parse_row(row, make_reading([*row], row), "toy") for row in ROWS]
    file = file_of(tmp_path, name, CONTENTS[name])
    names, row = sample_fields(file)
    found = [parse_row(value, make_reading(names, row), file.stem) for value in values(list(read_records(file)))]
    assert found == expected
    assert [identify(one.conversation) for one in found] == [identify(one.conversation) for one in expected]
    assert found[3].conversation.messages[0].content == ROWS[3]["prompt"]
    assert names == ["prompt", "response", "topic", "system"]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("name", ["toy.jsonl", "toy.json", "toy.csv", "toy.tsv", "toy.parquet"])
def test_packed_files_are_read_as_the_plain_ones(tmp_path, name, ending):
    packed = read(tmp_path, name + ending, pack(ending, CONTENTS[name]))
    plain = read(tmp_path, name, CONTENTS[name])
    assert [record[1:] for record in packed] == [record[1:] for record in plain]
    assert {record.file for record in packed} == {name + ending}
    assert sample_fields(file_of(tmp_path, name + ending, pack(ending, CONTENTS[name])))[0] == TABLE.column_names


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2"])
def test_a_packed_file_that_is_cut_off_is_named_with_its_place(tmp_path, ending):
    rows = "".join(json.dumps({"prompt": f"{k * 7919 % 10007}", "response": str(k**3)}) + "\n" for k in range(20_000))
    file = file_of(tmp_path, f"cut.jsonl{ending}", pack(ending, rows.encode())[:-20])
    text = (
        rf"^cut.jsonl{ending} cannot be read( after row \d+)?: .*([Tt]runcated|ended before).*; mend it or take it out"
    )
    with pytest.raises(ExamplesError, match=text):
        list(read_records(file))


@pytest.mark.parametrize(
    ("ending", "reason"), [(".gz", "Not a gzipped file"), (".zst", "ZSTD"), (".bz2", "Invalid data")]
)
def test_a_file_that_is_not_packed_as_it_is_named_is_refused(tmp_path, ending, reason):
    with pytest.raises(
        ExamplesError, match=rf"^plain.jsonl{ending} cannot be read: .*{reason}.*; mend it or take it out"
    ):
        read(tmp_path, f"plain.jsonl{ending}", LINES)


def test_records_are_made_one_after_another(tmp_path):
    file = file_of(tmp_path, "toy.jsonl", LINES + "no JSON\n" * 100_000)
    assert [record.line for record in islice(read_records(file), 2)] == [1, 2]
    array = file_of(tmp_path, "toy.json", json.dumps(ROWS)[:-1])
    assert values(list(islice(read_records(array), 20))) == ROWS


def test_lines_have_their_numbers_and_their_text(tmp_path):
    found = read(tmp_path, "toy.jsonl", '\n{"a": 1}\n \n{"a": 2}')
    assert [(record.file, record.line, record.text) for record in found] == [
        ("toy.jsonl", 2, '{"a": 1}'),
        ("toy.jsonl", 4, '{"a": 2}'),
    ]
    table = read(tmp_path, "toy.csv", '\na,b\n"1\n2",3\n\n4,5\n')
    assert [(record.line, record.value, record.text) for record in table] == [
        (3, {"a": "1\n2", "b": "3"}, None),
        (6, {"a": "4", "b": "5"}, None),
    ]


def test_a_line_that_is_no_json_is_a_record_with_its_reason(tmp_path):
    content = b'{"prompt": "cut off\n{"prompt": "caf\xe9"}\n{"a": 1, "a": 2}\n'
    found = read(tmp_path, "toy.jsonl", content)
    assert [str(record.value) for record in found] == [
        "invalid JSON: Unterminated string starting at column 12",
        "not UTF-8: byte 0xe9 at column 16; set examples.encoding, cp1252 for example",
        "duplicate key: 'a' stands 2 times in one object",
    ]
    assert all(isinstance(record.value, RowError) for record in found)
    assert [record.text for record in found] == ['{"prompt": "cut off', r'{"prompt": "caf\xe9"}', '{"a": 1, "a": 2}']


def test_a_duplicate_key_in_an_array_rejects_its_row_alone(tmp_path):
    found = read(tmp_path, "toy.json", '[{"a": 1}, {"b": [{"c": 1, "c": 2}]}, {"a": 3}]')
    assert found[0].value == {"a": 1}
    assert str(found[1].value) == "duplicate key: 'c' stands 2 times in one object"
    assert found[1].text == '{"b": [{"c": 1, "c": 2}]}'
    assert found[2] == ("toy.json", 3, {"a": 3}, None)


def test_a_long_line_is_read(tmp_path):
    long = "a" * 3_000_000
    assert read(tmp_path, "toy.jsonl", json.dumps({"prompt": long}))[0].value == {"prompt": long}
    assert read(tmp_path, "toy.csv", f"prompt\n{long}\n")[0].value == {"prompt": long}


def test_a_row_of_another_width_is_a_record_with_its_reason(tmp_path):
    found = read(tmp_path, "toy.tsv", "a\tb\n1\t2\t3\n1\n")
    assert [(str(record.value), record.text) for record in found] == [
        ("wrong number of fields: 3 where the header has 2", "1\t2\t3"),
        ("wrong number of fields: 1 where the header has 2", "1"),
    ]


EMPTY: dict[str, bytes | str] = dict.fromkeys(("a.jsonl", "a.json", "a.csv", "a.tsv"), "")
EMPTY |= {f"a.jsonl{ending}": pack(ending, b"") for ending in PACKED}
EMPTY |= {"b.jsonl": "\n \n", "b.json": " [ ] ", "c.json": "\n", "b.csv": "prompt,response\n"}
EMPTY |= {"b.parquet": as_parquet(TABLE.slice(0, 0))}


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_rows_has_no_records(tmp_path, name):
    file = file_of(tmp_path, name, EMPTY[name])
    assert list(read_records(file)) == []
    names = {"b.csv": ["prompt", "response"], "b.parquet": TABLE.column_names}
    assert sample_fields(file)[0] == names.get(name, [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("name", ["toy.jsonl", "toy.json", "toy.csv", "toy.csv.gz"])
def test_the_stated_encoding_is_honoured(tmp_path, name, encoding):
    content = {"jsonl": '{"prompt": "café"}\n', "json": '[{"prompt": "café"}]', "csv": 'prompt\n"café"\n'}
    packed = pack(".gz" if name.endswith(".gz") else "", content[name.split(".")[1]].encode(encoding))
    assert values(read(tmp_path, name, packed, encoding=encoding)) == [{"prompt": "café"}]


@pytest.mark.parametrize("name", ["toy.jsonl", "toy.json", "toy.csv"])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-16", "utf-16"), ("utf-32", "utf-32"), ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")],
)
def test_another_encoding_is_told_by_the_first_bytes(tmp_path, name, encoding, said):
    text = (
        rf"^{name} is {said} by its first bytes and is read as utf-8; set examples.encoding: {said}, or save the file"
    )
    with pytest.raises(ExamplesError, match=text):
        read(tmp_path, name, LINES.encode(encoding))


def test_an_encoding_with_a_mark_of_its_own_may_be_stated_exactly(tmp_path):
    content = "\ufeff{}\n".encode("utf-16-be")
    assert values(read(tmp_path, "toy.jsonl", content, encoding="utf-16-be")) == [{}]


def test_bytes_of_another_encoding_are_named(tmp_path):
    (record,) = read(tmp_path, "toy.jsonl", b'{"a": "\x81"}\n', encoding="cp1252")
    assert str(record.value) == "not CP1252: byte 0x81 at column 8; set examples.encoding to that of the file"
    (record,) = read(tmp_path, "toy.csv", b"a\n\xe9\n")
    assert record.value == {"a": "\udce9"}
    with pytest.raises(
        ExamplesError, match=r"^toy.jsonl cannot be read: it is not utf-16, which examples.encoding is: "
    ):
        read(tmp_path, "toy.jsonl", b"\xff\xfea", encoding="utf-16")


@pytest.mark.parametrize("encoding", ["utf-9", "hex"])
def test_an_unknown_encoding_is_refused(tmp_path, encoding):
    text = (
        rf"^examples.encoding is '{encoding}', which Python does not know as one of text; set utf-8, utf-16 or cp1252$"
    )
    with pytest.raises(ExamplesError, match=text):
        read(tmp_path, "toy.jsonl", LINES, encoding=encoding)


BROKEN = {
    "twice.csv": ("a,b,a\n1,2,3\n", "^twice.csv has 2 columns 'a'; give each a name of its own$"),
    "twice.tsv": ("a\ta\n1\t2\n", "^twice.tsv has 2 columns 'a'; give each"),
    "twice.parquet": (
        as_parquet(pa.table([[1], [2]], names=["a", "a"])),
        "^twice.parquet has 2 columns 'a'; give each",
    ),
    "other.csv": (
        "prompt;response\na;b\n",
        "^other.csv has one column 'prompt;response'; columns are separated by comm",
    ),
    "open.csv": ('prompt,response\na,"b\nc,d\n', "^open.csv:3: invalid CSV: unexpected end of data; mend the file$"),
    "head.csv": ('"prompt,response\n', "^head.csv:1: invalid CSV: unexpected end of data; mend the file$"),
    "cut.json": (
        '[{"prompt": "a",\n "response": ]',
        r"^cut.json:2: invalid JSON: Expecting value at column 14; mend the file$",
    ),
    "open.json": ('[{"a": 1}\n', "^open.json:2: invalid JSON: Expecting ',' delimiter at column 1; mend the file$"),
    "more.json": ("[{}] []", "^more.json:1: invalid JSON: Extra data at column 6; a file with one object per line is"),
    "lines.json": (
        LINES,
        "^lines.json:2: invalid JSON: Extra data at column 1; a file with one object per line is nam",
    ),
    "deep.json": ("[" * 100_000, "^deep.json cannot be read: .*recursion.*; mend it or take it out of the raw folder$"),
    "one.json": (
        '{"a": "b"}',
        r"^one.json holds one JSON dict, not an array of objects; put it into \[ \], or take it",
    ),
    "columns.json": (
        '{"prompt": ["a"], "response": ["b"]}',
        r"^columns.json holds columns \(prompt, response\), not rows; write an array with one object per row, in",
    ),
    "pandas.json": (
        '{"prompt": {"0": "a"}, "response": {"0": "b"}}',
        r"^pandas.json holds columns \(prompt, response\)",
    ),
    "field.json": (
        '{"version": 1, "data": [{"prompt": "a"}]}',
        "^field.json holds one JSON object whose field 'data' has the rows; write that array alone$",
    ),
    "cut.parquet": (b"PAR1 and no more", "^cut.parquet cannot be read: .*; mend it or take it out of the raw folder$"),
    "empty.parquet": (b"", "^empty.parquet cannot be read: .*; mend it or take it out of the raw folder$"),
}
BROKEN |= {
    f"empty.jsonl{ending}": (b"", rf"^empty.jsonl{ending} cannot be read: it has no bytes, and a packed file has some")
    for ending in PACKED
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
BROKEN |= {
    f"pointer.{kind}": (
        POINTER,
        rf"^pointer.{kind} is a pointer of Git LFS and not the data; fetch it with `git lfs pull`$",
    )
    for kind in ("jsonl", "csv", "jsonl.gz", "parquet", "parquet.zst")
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_way_out(tmp_path, name):
    content, text = BROKEN[name]
    file = file_of(tmp_path, name, content)
    with pytest.raises(ExamplesError, match=text):
        list(read_records(file))
    with pytest.raises(ExamplesError, match=text):
        sample_fields(file)


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    file = file_of(tmp_path, "toy.jsonl", LINES)
    file.path.unlink()
    with pytest.raises(
        ExamplesError, match=r"^toy.jsonl cannot be read: No such file or directory; mend it or take it"
    ):
        list(read_records(file))


def test_columnar_files_are_read_in_batches_and_by_column(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BATCH", 3)
    found = read(tmp_path, "toy.parquet", as_parquet(TABLE), columns=["topic", "prompt", "other"])
    assert [record.line for record in found] == list(range(1, 21))
    assert values(found) == [{"prompt": row["prompt"], "topic": row["topic"]} for row in ROWS]


def test_saved_data_sets_are_read_split_by_split(tmp_path):
    from datasets import Dataset, DatasetDict

    saved = DatasetDict({"first": Dataset.from_list(ROWS[:5]), "second": Dataset.from_list(ROWS[5:])})
    saved.save_to_disk(tmp_path / "v1/toy")
    files, _ = list_files(tmp_path / "v1", {})
    found = [record for file in files for record in read_records(file, columns=["prompt", "response"])]
    assert values(found) == [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS]
    assert [(record.file, record.line) for record in found[4:6]] == [("v1/toy/first", 5), ("v1/toy/second", 1)]
    assert sample_fields(files[0])[0] == TABLE.column_names
    assert {file.stem for file in files} == {"toy"}


@pytest.mark.parametrize("state", [None, '{"_data_files": [{"filename": "gone.arrow"}]}', '{"_data_files": 3}'])
def test_a_broken_saved_data_set_is_named(tmp_path, state):
    (tmp_path / "v1/toy").mkdir(parents=True)
    (tmp_path / "v1/toy/dataset_info.json").write_text("{}")
    if state is not None:
        (tmp_path / "v1/toy/state.json").write_text(state)
    (file,), _ = list_files(tmp_path / "v1", {})
    with pytest.raises(ExamplesError, match=r"^v1/toy cannot be read: .*; mend it or take it out of the raw folder$"):
        list(read_records(file))


def test_messages_are_one_conversation_in_every_kind(tmp_path):
    entries = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
        {"role": "assistant", "content": "It is 2.", "weight": 1},
    ]
    rows = [{"messages": entries, "id": 1}]
    table = io.StringIO()
    csv.writer(table).writerows([["messages", "id"], [json.dumps(entries), 1]])
    contents = {
        "a.jsonl": json.dumps(rows[0]),
        "a.csv": table.getvalue(),
        "a.parquet": as_parquet(pa.Table.from_pylist(rows)),
    }
    found = set()
    for name, content in contents.items():
        file = file_of(tmp_path, name, content)
        reading = make_reading(*sample_fields(file))
        found |= {parse_row(value, reading, "a").conversation for value in values(list(read_records(file)))}
    assert len(found) == 1


def test_fields_are_those_of_the_first_records_and_their_first_values(tmp_path):
    file = file_of(tmp_path, "toy.jsonl", '{"a": null}\nno JSON\n[]\n{"b": 1, "a": [2]}\n{"a": 3, "c": null}\n')
    assert sample_fields(file) == (["a", "b", "c"], {"a": [2], "b": 1, "c": None})


def test_kept_columns_are_plain_json():
    value = {
        "id": 3,
        "score": 0.5,
        "gone": float("nan"),
        "day": date(2024, 1, 31),
        "at": datetime(2024, 1, 31, 12, 30),
        "price": Decimal("1.50"),
        "raw": b"\x00\xff",
        "nested": {"tags": ("a", None), 1: True},
        "text": "a\udce9",
        "prompt": "Hi",
    }
    keep = [name for name in value if name != "prompt"] + ["absent"]
    found = pick_kept(value, keep)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == {
        "id": 3,
        "score": 0.5,
        "gone": None,
        "day": "2024-01-31",
        "at": "2024-01-31T12:30:00",
        "price": "1.50",
        "raw": "00ff",
        "nested": {"tags": ["a", None], "1": True},
        "text": r"a\udce9",
        "absent": None,
    }
