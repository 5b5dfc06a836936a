"""Every bad row is named with file, line and reason, every bad file with its way out; and nothing is half-written."""

import gzip
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
from tasks.examples.examples import ExamplesError


@pytest.fixture
def make(tmp_path, toy):
    """Write examples from a text or rows, with the toy model; returns the table."""
    return partial(write_toy, tmp_path, toy)


def test_bad_rows_of_every_kind_are_counted_and_the_first_named(make, tmp_path):
    lines = dump(ROWS).splitlines()
    lines[1] = '{"prompt": "cut off'
    lines[4] = dump([{"prompt": "Hi", "response": " "}]).strip()
    lines[6] = '["a list"]'
    lines[8] = dump([{"prompt": "Hi", "respnse": "Hello"}]).strip()
    content = "\n".join(lines).encode() + b'\n{"prompt": "caf\xe9", "response": "a"}\n'
    text = (
        "5 of 25 rows are bad (1 invalid JSON, 1 empty response, 1 not an object, 1 missing field 'response', "
        "1 not UTF-8); "
        "first v1/toy.jsonl:2: invalid JSON: Unterminated string starting at column 12; "
        "v1/toy.jsonl:5: empty response; v1/toy.jsonl:7: not an object: list; "
        "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    )
    with pytest.raises(ExamplesError, match=f"^{re.escape(text)}$"):
        make(content)
    assert not (tmp_path / "out").exists()

    table = make(content, on_bad_row="reject")
    assert table["row"].to_pylist() == [row for row in range(24) if row not in (1, 4, 6, 8)]
    assert [(row["file"], row["line"], row["reason"]) for row in read_rejects(tmp_path)] == [
        ("v1/toy.jsonl", 2, "invalid JSON: Unterminated string starting at column 12"),
        ("v1/toy.jsonl", 5, "empty response"),
        ("v1/toy.jsonl", 7, "not an object: list"),
        ("v1/toy.jsonl", 9, "missing field 'response': nothing for the response"),
        ("v1/toy.jsonl", 25, "not UTF-8: byte 0xe9 at column 16"),
    ]
    assert read_rejects(tmp_path)[0]["text"] == '{"prompt": "cut off'
    assert read_rejects(tmp_path)[-1]["text"] == r'{"prompt": "caf\xe9", "response": "a"}'
    assert read_metrics(tmp_path)["rows"] == 25
    assert read_metrics(tmp_path)["rejects"] == 5


FIT = "252 fit (models.max_tokens less the template's)"
BAD = {
    "holds a control token: '<|end|>' would end or open a turn inside the text; set examples.on_special_tokens: "
    "as_text to read it as text": {"response": "x<|end|>y"},
    "empty response": {"response": ""},
    "missing field 'response': nothing for the response": {"response": None},
    "not text: the response is int": {"response": 3},
    "not UTF-8: the response holds bytes or escapes that are no Unicode": {"response": "\ud800"},
    f"longer than the context: 14 + 301 tokens of prompt and response, {FIT}": {"response": "a" * 300},
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


def test_rejects_come_in_the_order_of_the_files_whatever_their_reason(make, tmp_path):
    long = {"prompt": "a" * 300, "response": "b"}
    make([long, *ROWS, {"prompt": "a", "response": ""}, long], on_bad_row="reject")
    assert [row["line"] for row in read_rejects(tmp_path)] == [1, 26, 27]


def test_the_context_is_that_of_the_model(make, toy):
    with pytest.raises(ExamplesError, match=r"24 of 24 rows are bad .24 longer than the context.*no example is left"):
        make(ROWS, model=replace(toy, max_tokens=10), on_bad_row="reject")


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
        make(fields=FIELDS | {"topic": "kind"})


def test_a_csv_of_another_encoding_is_named_by_its_lines(make, tmp_path):
    lines = ["prompt,response"] + [f"{row['prompt']},{row['response']}" for row in ROWS] + ['"two\nlines",café']
    content = "\n".join(lines).encode("latin-1")
    text = r"1 of 25 rows are bad \(1 not UTF-8\); first v1/toy.csv:26: not UTF-8: the response holds bytes"
    with pytest.raises(ExamplesError, match=text):
        make(content, name="toy.csv")
    make(content, name="toy.csv", on_bad_row="reject")
    assert read_rejects(tmp_path)[0]["text"] == r'{"prompt": "two\nlines", "response": "caf\udce9"}'


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
    "latin.json": (
        '[{"prompt": "é"}]'.encode("latin-1"),
        r"v1/latin.json cannot be read: 'utf-8' codec can't decode byte",
    ),
    "deep.json": (b"[" * 100_000, r"v1/deep.json cannot be read: maximum recursion depth exceeded"),
    "cut.jsonl.gz": (
        gzip.compress(dump(ROWS).encode())[:-20],
        r"v1/cut.jsonl.gz cannot be read: .*mend it or take it out",
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
        ExamplesError, match=r"raw/v1 holds nothing; read are .jsonl, .json, .csv, .jsonl.gz, .*`datasets`"
    ):
        make()
    with pytest.raises(ExamplesError, match=r"raw/v1 holds only rows.tsv; read are"):
        make("a\tb\n", name="rows.tsv")
    with pytest.raises(ExamplesError, match=r"rows.tsv holds only rows.tsv; read are"):
        make(raw=tmp_path / "raw/v1/rows.tsv")
    with pytest.raises(
        ExamplesError, match="the raw files hold no rows; an example has at least a prompt and a response"
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
    text = r"out/examples.parquet could not be written: .*File too large; nothing was left behind"
    make(ROWS, pool_rows=5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with full_disk(), pytest.raises(ArtifactError, match=text):
        make()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_examples_artifact_edited_by_hand_is_refused(make, tmp_path):
    make(ROWS)
    path = tmp_path / "out/examples.parquet"
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(
        ArtifactError, match=r"examples.parquet carries no provenance: it was written or edited by other"
    ):
        read_table(path, schemas.EXAMPLES)
