"""Raw files that are damaged in any way: every row is an example or a reject, or the file is refused by its name."""

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.projects import environment
from worlds.toys import toy_tokenizer

from tamis.language.chat_templates import Template
from tasks.examples.files import ExamplesError, list_files
from tasks.examples.reading import Facts, Reader, read_files
from tasks.examples.settings import ExamplesSettings

TESTS = Path(__file__).parents[2]
TEMPLATE = Template(toy_tokenizer())
PAIRS = [{"prompt": f"what is {place}", "response": f"it is {place}"} for place in range(3)]
CHATS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 2


def write_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(PAIRS), sink)
    return sink.getvalue()


LINES = "".join(f"{json.dumps(row)}\n" for row in [*PAIRS, *CHATS]).encode()
FILES = {  # name -> a good file of it
    "rows.jsonl": LINES,
    "rows.json": json.dumps(PAIRS).encode(),
    "chats.json": json.dumps(CHATS).encode(),
    "rows.csv": "".join(f"{one}\n" for one in ["prompt,response", 'Hi,"Hello, you"', "a,b"]).encode(),
    "rows.tsv": b"prompt\tresponse\nHi\tHello\n",
    "rows.jsonl.gz": gzip.compress(LINES, mtime=0),
    "rows.parquet": write_parquet(),
}
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\n", b'"', b"\\", b"{", b"}", b"[", b",", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"NaN"]
    ),
    st.sampled_from(
        [b'{"messages": []}\n', b'{"prompt": {"a": 1}, "response": 2}\n', b"1e999", b"[" * 2000, b'"\\u0000"']
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a file's name and what is in it: a good one after some edits, or nothing that anybody wrote."""
    name = draw(st.sampled_from([*FILES]))
    if draw(st.integers(0, 5)) == 0:
        return name, draw(st.binary(max_size=200))
    content = FILES[name]
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(PIECES) + content[start + draw(st.integers(0, 8)) :]
    return name, content


def read(name: str, content: bytes) -> tuple[int, Facts] | str:
    """Return how many good rows a file has, and what was noted of all; or with which error it is refused."""
    facts = Facts()
    with tempfile.TemporaryDirectory(prefix="raw") as folder:
        (Path(folder) / name).write_bytes(content)
        reader = Reader(ExamplesSettings(on_bad_row="reject"), TEMPLATE, (), 120)
        try:
            files, _ = list_files(Path(folder), {})
            return sum(table.num_rows for table in read_files(files, reader, facts)), facts
        except ExamplesError as error:
            return str(error)


def check(name: str, content: bytes) -> bool:
    """Return whether a file is read, and not refused by its name."""
    found = read(name, content)
    if isinstance(found, str):
        assert name in found or "raw" in found
        return False
    rows, facts = found
    assert facts.count == rows + len(facts.rejects)
    for _, file, _, reason, text in facts.rejects:
        assert file.endswith(name)
        assert reason
        text.encode()  # it can be written
    return True


@pytest.mark.parametrize("name", FILES)
def test_good_files_are_read(name):
    assert check(name, FILES[name])


@settings(deadline=None, max_examples=300)
@given(damaged())
def test_damaged_files_are_read_or_refused_by_name(file):
    check(*file)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000)
@given(damaged())
def test_many_damaged_files_are_read_or_refused_by_name(file):
    check(*file)


@pytest.mark.slow
def test_guided_by_coverage_no_line_is_found_that_is_neither_read_nor_refused():
    """Needs `pip install atheris`, which has wheels for Linux alone."""
    pytest.importorskip("atheris")
    folders = [TESTS, TESTS / "tasks/examples", TESTS.parent]
    done = subprocess.run(
        [sys.executable, "-m", "worlds.fuzz_lines", "-runs=20000", "-max_len=400", "-seed=1"],
        env=environment(PYTHONPATH=os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 20000 runs" in done.stderr
