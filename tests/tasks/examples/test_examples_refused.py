"""Every bad row is named with file, line and reason, every bad file with its way out; and nothing is half-written."""

import gzip
import json
import re
import resource
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from worlds.raw_rows import (
    FIELDS,
    ROWS,
    dump,
    read_metrics,
    read_rejects,
    write_csv,
    write_parquet,
    write_saved,
    write_toy,
)

from tamis.examples.splits import is_held_out
from tasks.artifacts import schemas
from tasks.artifacts.tables import ArtifactError, read_table
from tasks.examples.files import ExamplesError


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from a text or rows, with the toy model; returns the table."""
    return partial(write_toy, tmp_path, toy)


def test_bad_rows_of_every_kind_are_counted_and_the_first_named(make, tmp_path):
    lines = dump(ROWS).splitlines()
    lines[1] = '{"prompt": "cut off'
    lines[4] = dump([{"prompt": "Hi", "response": " \n"}]).strip()
    lines[6] = '["a list"]'
    lines[8] = dump([{"prompt": "Hi", "respnse": "Hello"}]).strip()
    content = "\n".join(lines).encode() + b'\n{"prompt": "caf\xe9", "response": "a"}\n'
    text = (
        "5 of 25 rows are bad (1 invalid JSON, 1 empty response, 1 not an object, 1 missing field 'response', "
        "1 not UTF-8); "
        "first v1/toy.jsonl:2: invalid JSON: Unterminated string starting at column 12; "
        "v1/toy.jsonl:5: empty response: the field 'response' holds no text; v1/toy.jsonl:7: not an object: list; "
        "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    )
    with pytest.raises(ExamplesError, match=f"^{re.escape(text)}$"):
        make(content)
    assert not (tmp_path / "out").exists()

    table = make(content, on_bad_row="reject")
    assert table["row"].to_pylist() == [row for row in range(24) if row not in (1, 4, 6, 8)]
    assert [(row["file"], row["line"], row["reason"]) for row in read_rejects(tmp_path)] == [
        ("v1/toy.jsonl", 2, "invalid JSON: Unterminated string starting at column 12"),
        ("v1/toy.jsonl", 5, "empty response: the field 'response' holds no text"),
        ("v1/toy.jsonl", 7, "not an object: list"),
        ("v1/toy.jsonl", 9, "missing field 'response': nothing for the response"),
        ("v1/toy.jsonl", 25, "not UTF-8: byte 0xe9 at column 16; set examples.encoding, cp1252 for example"),
    ]
    assert read_rejects(tmp_path)[0]["text"] == '{"prompt": "cut off'
    assert read_rejects(tmp_path)[-1]["text"] == r'{"prompt": "caf\xe9", "response": "a"}'
    assert read_metrics(tmp_path)["rows"] == 25
    assert read_metrics(tmp_path)["rejects"] == 5


BAD = {
    "holds a control token: '<|end|>' would end or open a turn inside the text; set examples.on_special_tokens: "
    "as_text to read it as text": {"response": "x<|end|>y"},
    "empty response: the field 'response' holds no text": {"response": ""},
    "missing field 'response': nothing for the response": {"response": None},
    "not text: the response is dict": {"response": {"text": "a"}},
    "not UTF-8: the response holds bytes or escapes that are no Unicode": {"response": "\ud800"},
    "holds NUL: the response has the character U+0000 at place 2": {"response": "a\0"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_named_or_rejected(make, tmp_path, reason):
    rows = [*ROWS[:5], ROWS[0] | BAD[reason], *ROWS[5:]]
    with pytest.raises(
        ExamplesError, match=rf"1 of 25 rows are bad .*first v1/toy.jsonl:6: {re.escape(reason)}; mend them"
    ):
        make(rows)
    assert make(rows, on_bad_row="reject").num_rows == 24
    (row,) = read_rejects(tmp_path)
    assert (row["line"], row["reason"]) == (6, reason)
    assert row["text"].startswith('{"')
    assert len(row["text"]) <= 500


def test_a_row_that_is_too_long_has_a_setting_of_its_own(make, tmp_path):
    rows = [*ROWS[:5], ROWS[0] | {"response": "a" * 300}, *ROWS[5:]]
    reason = "longer than the context: 319 tokens with the template's, 256 fit (models.max_tokens)"
    text = (
        f"1 of 25 rows are bad (1 longer than the context); first v1/toy.jsonl:6: {reason}; raise models.max_tokens, "
        "or set examples.on_long_row: reject, or drop_turns, which leaves out exchanges"
    )
    with pytest.raises(ExamplesError, match=f"^{re.escape(text)}$"):
        make(rows, on_bad_row="reject")
    assert make(rows, on_long_row="reject").num_rows == 24
    (row,) = read_rejects(tmp_path)
    assert (row["line"], row["reason"]) == (6, reason)


def test_bad_rows_and_long_ones_are_told_together_where_both_stop(make):
    rows = [ROWS[0] | {"response": "a" * 300}, ROWS[0] | {"response": ""}, *ROWS]
    text = r"2 of 26 rows are bad \(1 longer than the context, 1 empty response\); .*drop_turns, which .*; mend them or"
    with pytest.raises(ExamplesError, match=text):
        make(rows)
    text = r"^1 of 26 rows are bad \(1 empty response\); first v1/toy.jsonl:2: empty response: the field .*; mend them"
    with pytest.raises(ExamplesError, match=text):
        make(rows, on_long_row="reject")


def test_a_row_fits_where_its_last_answer_does(make):
    for length, fits in ((250, True), (251, False)):  # <a>\\n<bb..>: the line end after it is not run
        rows = [*ROWS, {"prompt": "a", "response": "b" * length}]
        assert make(rows, on_long_row="reject").num_rows == 24 + fits


def test_rejects_come_in_the_order_of_the_files_whatever_their_reason(make, tmp_path):
    long = {"prompt": "a" * 300, "response": "b"}
    rows = [long, *ROWS, {"prompt": "a", "response": ""}, long]
    make(rows, on_bad_row="reject", on_long_row="reject")
    assert [row["line"] for row in read_rejects(tmp_path)] == [1, 26, 27]


def test_the_context_is_that_of_the_model(make, toy):
    text = r"24 of 24 rows are bad .24 longer than the context.*no example is left, so mend the files; raise models.max"
    with pytest.raises(ExamplesError, match=text):
        make(ROWS, model=replace(toy, max_tokens=10))
    with pytest.raises(ExamplesError, match=r"24 of 24 rows are bad .*no example is left, so mend the files$"):
        make(ROWS, model=replace(toy, max_tokens=10), on_long_row="reject")


def test_an_unknown_field_is_named_with_those_there_are(make):
    text = (
        "0 of 24 rows have the field 'answer' that examples.fields maps to response; there are prompt, response, topic"
    )
    with pytest.raises(ExamplesError, match=f"^{text}$"):
        make(ROWS, fields={"prompt": "prompt", "response": "answer"}, on_bad_row="reject")


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_saved])
def test_an_unknown_column_is_named_with_those_there_are(make, tmp_path, write):
    (tmp_path / "raw/v1").mkdir(parents=True)
    write(tmp_path / "raw/v1")
    with pytest.raises(
        ExamplesError, match=r"have the field 'kind' that examples.fields maps to topic; there are prompt, "
    ):
        make(fields=FIELDS | {"topic": "kind"}, on_bad_row="reject")


def test_a_field_that_only_late_rows_have_is_no_unknown_one(make):
    rows = [{"prompt": f"{k} + {k}", "response": "a"} for k in range(1100)]
    table = make([*rows, {"prompt": "Why?", "response": "So.", "id": 7}], keep=["id"], held_out_every=5)
    assert table["kept"].to_pylist()[-2:] == ['{"id": null}', '{"id": 7}']


def test_a_column_to_keep_that_no_row_has_is_named(make):
    text = "^0 of 24 rows have the field 'key' that examples.keep names; there are prompt, response, topic$"
    with pytest.raises(ExamplesError, match=text):
        make(ROWS, keep=["key"])


def test_rows_that_no_format_fits_are_refused_with_their_file(make):
    text = r"^v1/toy.jsonl: the fields a, b fit no known format; set examples.format to one of messages, .*fields"
    with pytest.raises(ExamplesError, match=text):
        make([{"a": "1", "b": "2"}] * 5)


def test_a_list_of_llama_factory_beside_rows_that_no_format_fits_is_named(make, tmp_path):
    (tmp_path / "raw/v1/deep").mkdir(parents=True)
    listed = {"toy": {"file_name": "toy.jsonl", "columns": {"prompt": "a", "response": "b"}}}
    (tmp_path / "raw/v1/deep/dataset_info.json").write_text(json.dumps(listed))
    text = r"; v1/deep/dataset_info.json is LLaMA-Factory's list of data sets, which is not followed; say what its colu"
    with pytest.raises(ExamplesError, match=text):
        make([{"a": "1", "b": "2"}] * 5, name="deep/toy.jsonl")


def test_objects_without_fields_and_other_values_are_bad_rows(make, tmp_path):
    make(ROWS, name="good.jsonl")
    make("{}\n3\n", name="odd.jsonl", on_bad_row="reject")
    assert [row["reason"] for row in read_rejects(tmp_path)] == ["not an object: it is empty", "not an object: int"]
    assert read_metrics(tmp_path)["formats"] == {"v1/good.jsonl": "prompt_response", "v1/odd.jsonl": "no fields"}


def test_good_rows_after_many_bad_ones_are_read(make, tmp_path):
    assert make("no JSON\n" * 150 + dump(ROWS), on_bad_row="reject").num_rows == 24
    assert len(read_rejects(tmp_path)) == 150


def test_a_csv_of_another_encoding_is_named_by_its_lines(make, tmp_path):
    lines = ["prompt,response"] + [f"{row['prompt']},{row['response']}" for row in ROWS] + ['"two\nlines",café']
    content = "\n".join(lines).encode("latin-1")
    text = r"1 of 25 rows are bad \(1 not UTF-8\); first v1/toy.csv:26: not UTF-8: the response holds bytes"
    with pytest.raises(ExamplesError, match=text):
        make(content, name="toy.csv")
    make(content, name="toy.csv", on_bad_row="reject")
    assert read_rejects(tmp_path)[0]["text"] == r'{"prompt": "two\nlines", "response": "caf\udce9"}'


def test_json_of_another_encoding_is_named_by_its_records_and_read_where_it_is_said(make, tmp_path):
    content = json.dumps([*ROWS, {"prompt": "café", "response": "a"}], ensure_ascii=False).encode("latin-1")
    text = r"1 of 25 rows are bad \(1 not UTF-8\); first v1/toy.json:25: not UTF-8: the prompt holds bytes"
    with pytest.raises(ExamplesError, match=text):
        make(content, name="toy.json")
    assert make(encoding="latin-1")["prompt"][24].as_py() == "café"


def test_a_csv_row_of_another_width_is_a_bad_row(make):
    lines = ["prompt,response"] + [f"{row['prompt']},{row['response']}" for row in ROWS] + ["a,b,c", "a"]
    text = r"2 of 26 rows are bad .*toy.csv:26: wrong number of fields: 3 where the header has 2; v1/toy.csv:27: wrong"
    with pytest.raises(ExamplesError, match=text):
        make("\n".join(lines), name="toy.csv")


def test_a_long_csv_field_is_read(make):
    rows = "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS)
    with pytest.raises(ExamplesError, match=r"1 of 25 rows are bad \(1 longer than the context\)"):
        make(f"prompt,response\n{rows}a,{'b' * 200_000}\n", name="toy.csv")


BROKEN = {
    "open.csv": (b'prompt,response\na,"b\nc,d\n', r"v1/open.csv:3: invalid CSV: unexpected end of data; mend the file"),
    "cut.json": (
        b'[{"prompt": "a",\n "response": ]',
        r"v1/cut.json:2: invalid JSON: Expecting value at column 14; mend",
    ),
    "lines.json": (dump(ROWS).encode(), r"v1/lines.json:2: invalid JSON: Extra data .* is named .jsonl"),
    "one.json": (b'{"prompt": "a"}', r"v1/one.json holds one JSON dict, not an array of objects; put it into \[ \]"),
    "wide.json": (
        json.dumps(ROWS).encode("utf-16"),
        r"v1/wide.json is utf-16 by its first bytes and is read as utf-8; ",
    ),
    "columns.json": (
        b'{"prompt": ["a"], "response": ["b"]}',
        r"v1/columns.json holds columns \(prompt, response\), not",
    ),
    "twice.csv": (
        b"prompt,response,prompt\na,b,c\n",
        r"v1/twice.csv has 2 columns 'prompt'; give each a name of its own",
    ),
    "deep.json": (b"[" * 100_000, r"v1/deep.json cannot be read: maximum recursion depth exceeded"),
    "cut.jsonl.gz": (
        gzip.compress(dump(ROWS).encode())[:-20],
        r"v1/cut.jsonl.gz cannot be read after row \d+: .*mend it or take it out",
    ),
    "plain.jsonl.gz": (dump(ROWS).encode(), r"v1/plain.jsonl.gz cannot be read: Not a gzipped file"),
    "cut.parquet": (b"PAR1 and no more", r"v1/cut.parquet cannot be read: .*mend it or take it out of the raw folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_even_where_bad_rows_are_rejected(make, tmp_path, name):
    content, text = BROKEN[name]
    with pytest.raises(ExamplesError, match=text):
        make(content, name=name, on_bad_row="reject")
    assert not (tmp_path / "out").exists()


def test_a_broken_saved_folder_is_named(make, tmp_path):
    (tmp_path / "raw/v1/toy").mkdir(parents=True)
    (tmp_path / "raw/v1/toy/dataset_info.json").write_text("{}")
    with pytest.raises(ExamplesError, match=r"v1/toy cannot be read: .*mend it or take it out"):
        make()


def test_no_data_is_said(make, tmp_path):
    with pytest.raises(
        ExamplesError, match=r"nowhere does not exist; set versions.<version>.raw to a file or a folder"
    ):
        make(raw=tmp_path / "nowhere")
    with pytest.raises(
        ExamplesError, match=r"raw/v1 holds nothing; read are .jsonl, .ndjson, .json, .csv, .*`datasets`"
    ):
        make()
    with pytest.raises(ExamplesError, match=r"raw/v1 holds only rows.txt; read are"):
        make("a\tb\n", name="rows.txt")
    with pytest.raises(ExamplesError, match=r"rows.txt holds only rows.txt; read are"):
        make(raw=tmp_path / "raw/v1/rows.txt")
    with pytest.raises(
        ExamplesError, match="the raw files hold no rows; an example has at least a question and an answer"
    ):
        make("\n")


def test_a_mistyped_choice_is_refused(make):
    with pytest.raises(ValidationError, match=r"on_bad_row\n.*'stop' or 'reject'.*'skip'"):
        make(ROWS, on_bad_row="skip")


def pick(held_out: bool) -> list[dict]:
    return [row for row in ROWS if is_held_out(row["prompt"], seed=0, held_out_every=3) is held_out]


def test_a_single_example_is_refused(make, tmp_path):
    text = r"the pool has 1 usable example \(1 rows, 1 distinct, 0 used held-out\); choosing needs 2 or more"
    with pytest.raises(ExamplesError, match=text):
        make(pick(held_out=False)[:1])
    with pytest.raises(ExamplesError, match=r"the pool has 1 usable example \(24 rows, 24 distinct"):
        make(ROWS, pool_rows=1)
    with pytest.raises(ExamplesError, match=r"raise examples.held_out_every, examples.validation_every or examples.po"):
        make(ROWS, pool_rows=1, validation_every=2)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_all_identical_are_refused(make):
    with pytest.raises(ExamplesError, match=r"the pool has 1 usable example \(6 rows, 1 distinct, 0 used held-out\)"):
        make(pick(held_out=False)[:1] * 6)


def test_nothing_held_out_is_refused(make):
    with pytest.raises(
        ExamplesError, match=r"no row is held out \(.* distinct\), so nothing could be measured; give more"
    ):
        make(pick(held_out=False))


def test_nothing_but_held_out_rows_is_refused(make):
    with pytest.raises(ExamplesError, match=r"the pool has 0 usable examples .*raise examples.held_out_every"):
        make(pick(held_out=True))


@contextmanager
def full_disk():
    """Let no file grow beyond 2,000 bytes; the operating system refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(make, tmp_path):
    make(ROWS, pool_rows=5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    text = r"read.arrow could not be written: .*File too large; nothing was left behind. Free space on that disk"
    with full_disk(), pytest.raises(ArtifactError, match=text):
        make()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert list(tmp_path.glob(".examples-*")) == []


def test_an_examples_artifact_edited_by_hand_is_refused(make, tmp_path):
    make(ROWS)
    path = tmp_path / "out/examples.parquet"
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(
        ArtifactError, match=r"examples.parquet carries no provenance: it was written or edited by other"
    ):
        read_table(path, schemas.EXAMPLES)
