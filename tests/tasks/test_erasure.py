"""An erased row is found in tables, stores and raw files of any kind, and taken out of those that can lose a row."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.examples.conversations import identify, identify_folded, make_exchange
from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import ArtifactError, Provenance, provenance, write_table
from tasks.erasure.parts import clear_part, find_parts
from tasks.erasure.raw_rows import drop_lines, find_in_file, list_raw_rows
from tasks.erasure.record import Erased, add_erased, list_same, read_erased
from tasks.erasure.search import Wanted, holds
from tasks.examples.files import list_files
from tasks.examples.reading import Facts, Reader, read_files
from tasks.examples.settings import ExamplesSettings

ROW = make_exchange('What is "it"?', "a\ntree")
WANTED = Wanted(frozenset({identify_folded(ROW)}), frozenset({identify(ROW)}), (ROW,))
RECORD = {"prompt": 'What is "it"?', "response": "a\ntree"}
OTHER_RECORD = {"prompt": "What else?", "response": "a house"}
VARIANT = {"prompt": 'What  is "it"?', "response": " a tree "}
SETTINGS = ExamplesSettings()


def write_raw(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def list_lines(raw: Path, **asked) -> list[tuple[str, int, bool]]:
    found = list_raw_rows(raw, "v1", SETTINGS, same=WANTED.same, **asked)
    return [(one.path.name, one.line, one.lines) for one in found]


def test_raw_rows_are_found_in_every_format_whatever_their_blanks(tmp_path):
    rows = [{"prompt": "What else?", "response": "a house"}, RECORD, VARIANT]
    for name in ("a.jsonl", "b.json", "c.parquet"):
        write_raw(tmp_path / "raw" / name, *rows)
    assert list_lines(tmp_path / "raw") == [
        ("a.jsonl", 2, True),
        ("a.jsonl", 3, True),
        ("b.json", 2, False),
        ("b.json", 3, False),
        ("c.parquet", 2, False),
        ("c.parquet", 3, False),
    ]
    found = list_raw_rows(tmp_path / "raw/a.jsonl", "v1", SETTINGS, id=identify(ROW))
    assert [one.line for one in found] == [2]


def test_row_that_the_stage_cut_is_found_where_it_was_read_from_and_nowhere_else(tmp_path):
    turns = [("user", 'What is "it"?'), ("assistant", "a\ntree"), ("user", "And?"), ("assistant", "no")]
    long = {"messages": [{"role": role, "content": text} for role, text in turns]}
    write_raw(tmp_path / "raw/a.jsonl", long, long)
    assert list_lines(tmp_path / "raw") == []
    assert list_lines(tmp_path / "raw", cut={("raw/a.jsonl", 2)}) == [("a.jsonl", 2, True)]


def test_raw_file_of_another_time_is_searched_for_what_the_row_is_the_beginning_of_where_that_is_asked(tmp_path):
    turns = [("user", 'What is "it"?'), ("assistant", "a\ntree"), ("user", "And?"), ("assistant", "no")]
    write_raw(tmp_path / "a.jsonl", {"messages": [{"role": role, "content": text} for role, text in turns]})
    assert find_in_file(tmp_path / "a.jsonl", "a.jsonl", SETTINGS, WANTED, cut=True)
    assert not find_in_file(tmp_path / "a.jsonl", "a.jsonl", SETTINGS, WANTED)


def test_erased_row_is_left_out_before_anything_could_make_a_reject_of_it_with_its_text(tmp_path):
    bad = make_exchange("What is <x>?", "a tree")
    raw = write_raw(tmp_path / "raw/a.jsonl", {"prompt": "What is  <x>?", "response": "a tree"}, OTHER_RECORD)
    files, _ = list_files(raw, {})
    for erased, counts in (((), (0, 1)), ({identify_folded(bad)}, (1, 0))):
        facts = Facts()
        (table,) = read_files(files, Reader(SETTINGS, None, ("<x>",), 0, erased=erased), facts)
        assert (facts.erased, len(facts.rejects), facts.count, table.num_rows) == (*counts, 2, 1)


def test_lines_are_dropped_and_every_other_byte_stays(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n{"a": 2}\n{"a": "\xc3\xa9"}')
    drop_lines(path, [3], tmp_path / "drafts")
    assert path.read_bytes() == b'{"a": 1}\r\n\n{"a": "\xc3\xa9"}'


def test_a_raw_file_on_another_file_system_than_its_drafts_is_written_beside_itself(tmp_path, monkeypatch):
    path, real, homes = write_raw(tmp_path / "a.jsonl", OTHER_RECORD, RECORD), os.replace, []

    def replace(source: Path, target: Path) -> None:
        homes.append(source.parent)
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    drop_lines(path, [2], tmp_path / "drafts")
    assert homes == [tmp_path / "drafts", tmp_path]
    assert path.read_text() == json.dumps(OTHER_RECORD) + "\n"
    assert list((tmp_path / "drafts").iterdir()) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_raw_file_of_another_time_is_searched_also_where_todays_settings_do_not_fit_it(tmp_path, name):
    there = write_raw(tmp_path / "there" / name, OTHER_RECORD, RECORD)
    gone = write_raw(tmp_path / "gone" / name, OTHER_RECORD)
    odd = write_raw(
        tmp_path / "odd" / name, {"x": OTHER_RECORD["prompt"], "y": "z"}, {"x": 'What is "it"?', "y": "a\ntree"}
    )
    assert find_in_file(there, name, SETTINGS, WANTED)
    assert not find_in_file(gone, name, SETTINGS, WANTED)
    assert find_in_file(odd, name, SETTINGS, WANTED)
    assert not find_in_file(odd, "notes.txt", SETTINGS, WANTED)


def test_table_holds_a_row_by_its_id_in_any_column_of_text(tmp_path):
    id, made = identify(ROW), Provenance("x", "v1")
    tables = {
        "demo": {"demo_id": ["x", f"{id}-1"], "value": [1, 2]},
        "none": {"demo_id": ["x", None], "value": [1, 2]},
        "listed": {"text": [f"see {id}"], "value": [1]},
    }
    for name, columns in tables.items():
        write_table(pa.table(columns), tmp_path / f"{name}.parquet", made)
    assert [name for name in tables if holds(tmp_path / f"{name}.parquet", WANTED)] == ["demo", "listed"]
    (tmp_path / "rows.json").write_text(json.dumps([id]))
    (tmp_path / "empty").write_text("")
    assert holds(tmp_path / "rows.json", WANTED)
    assert not holds(tmp_path / "empty", WANTED)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + id.encode())
    assert holds(tmp_path / "broken.parquet", WANTED)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps(RECORD, ensure_ascii=False), True),
        (json.dumps(OTHER_RECORD), False),
        (json.dumps({"prompt": RECORD["prompt"], "response": "another"}), False),
    ],
)
def test_table_of_rejects_holds_a_row_by_its_text(tmp_path, text, found):
    reject = {"file": "a.jsonl", "line": 1, "reason": "bad", "text": text}
    table = pa.Table.from_pylist([reject], schema=schemas.REJECTS)
    write_table(table, tmp_path / "rejects.parquet", Provenance("examples", "v1"))
    assert holds(tmp_path / "rejects.parquet", WANTED) == found


def test_parts_of_stores_lose_the_row_alone_and_keep_who_made_them(tmp_path):
    id, home = identify(ROW), tmp_path / "pairs/key"
    rows = [("a", "b"), ("a", id), (id, "b"), ("c", "")]
    table = pa.Table.from_pylist(
        [{"target_id": x, "demo_id": y, "tokens": 3, "distance": 0.5, "log_likelihood": -1.0} for x, y in rows],
        schema=schemas.PAIRS,
    )
    stores.append(home, table, stage="utility", seconds=4.0)
    stores.append(home, table.slice(1, 1), stage="utility", seconds=1.0)
    other = stores.append(home, table.slice(3), stage="utility", seconds=1.0)
    (home / "part-x.damaged").write_bytes(b"x")
    parts = list(find_parts(tmp_path, WANTED))
    assert sorted(part.rows for part in parts) == [0, 1, 2]
    for part in parts:
        clear_part(part, WANTED)
    assert list(find_parts(tmp_path, WANTED)) == []
    assert sorted(home.iterdir())[0].name.startswith("part-")
    (made,) = set(home.iterdir()) - {other}
    record = provenance(made)
    assert (record["stage"], record["parameters"]["seconds"], record["rows"]) == ("utility", 2.0, 2)
    assert stores.find(home, table.select(["target_id", "demo_id"])).num_rows == 2


def test_texts_are_known_by_their_digests(tmp_path):
    ids = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in ("a\ntree", "a house")]
    table = pa.table({"id": ids, "embedding": [[0.0], [1.0]]})
    stores.append(tmp_path / "texts/key", table, stage="evaluation", seconds=1.0)
    (part,) = find_parts(tmp_path, WANTED)
    assert part.rows == 1


def test_record_is_sorted_keeps_what_stands_there_and_is_empty_where_it_is_not(tmp_path):
    path = tmp_path / "erased.json"
    assert read_erased(path) == []
    add_erased([Erased("b", "s", "asked", "2026-12-01")], path)
    add_erased([Erased("a", "t", "asked", "2026-12-02"), Erased("b", "s", "again", "2026-12-02")], path)
    assert [(one.id, one.because) for one in read_erased(path)] == [("a", "asked"), ("b", "asked")]
    assert list_same(path) == {"s", "t"}
    path.write_text('{"a": 1}')
    with pytest.raises(ArtifactError, match="is no list of erased rows"):
        read_erased(path)
