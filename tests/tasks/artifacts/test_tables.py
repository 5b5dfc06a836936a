"""Artifacts are whole or absent, equal where their content is equal, and tell when other hands were at them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.artifacts import schemas, tables
from tasks.artifacts.tables import (
    UNSEALED,
    ArtifactError,
    Provenance,
    check_table,
    digest,
    digest_inputs,
    provenance,
    read_lists,
    read_table,
    replacing,
    tell_refused,
    write_json,
    write_table,
    write_tables,
    write_text,
)

MADE = Provenance("utility", "v1", {"kernel": "exact"}, {"examples.parquet": "0" * 64}, seed=3)
TABLE = pa.table(
    {"target_id": ["a", "b"], "demo_id": ["b", "a"], "utility": [0.5, -0.25], "kernel": [True] * 2},
    schema=schemas.UTILITY,
)


@pytest.fixture
def path(tmp_path) -> Path:
    """A written table."""
    path = tmp_path / "utility/version=v1/utility.parquet"
    write_table(TABLE, path, MADE)
    return path


def test_a_table_comes_back_as_it_was(path):
    assert read_table(path, schemas.UTILITY).equals(TABLE)
    assert oct(path.stat().st_mode)[-3:] == "644"


def test_the_record_says_where_a_table_comes_from(path):
    record = provenance(path)
    assert record.pop("code")
    assert record == {
        "stage": "utility",
        "version": "v1",
        "parameters": {"kernel": "exact"},
        "inputs": {"examples.parquet": "0" * 64},
        "seed": 3,
        "rows": 2,
    }


def test_equal_content_gives_equal_bytes(path, tmp_path):
    write_table(TABLE, tmp_path / "again.parquet", MADE)
    assert digest(tmp_path / "again.parquet") == digest(path)


def test_a_table_of_vectors_comes_back(tmp_path):
    table = pa.table({"id": ["a"], "embedding": [[0.6, 0.8, 0.0]]}, schema=schemas.embedding(3))
    write_table(table, tmp_path / "embedding.parquet", MADE)
    assert read_table(tmp_path / "embedding.parquet", schemas.embedding(3)).equals(table)
    with pytest.raises(ArtifactError, match=r"other columns than expected, first \['embedding'\]"):
        read_table(tmp_path / "embedding.parquet", schemas.embedding(4))


def test_vectors_come_back_as_an_array_whatever_the_batches(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    blocks = [pa.table([list("abcde"), list(vectors[k : k + 5])], schema=schemas.embedding(3)) for k in range(0, 25, 5)]
    path = tmp_path / "embedding.parquet"
    write_tables(blocks, schemas.embedding(3), path, MADE)
    for rows in (4, 1000):
        monkeypatch.setattr(tables, "VECTORS", rows)
        assert read_lists(path, "embedding").tolist() == vectors.tolist()
    assert read_table(path, columns=["id"]).column_names == ["id"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"restore it with `dvc checkout"):
        read_lists(path, "embedding")


@given(st.binary(max_size=200), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_what_a_column_holds_does_not_disturb_the_seal(tmp_path_factory, content, copies):
    path = tmp_path_factory.mktemp("seal") / "x.parquet"
    table = pa.table({"x": [content, UNSEALED * copies]})
    write_table(table, path, Provenance("x", "v1", {"text": "0" * 64 * copies}))
    assert read_table(path).equals(table)


def test_every_single_changed_byte_is_seen(path):
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ArtifactError, match=r"utility.parquet .*make it again with `tamis run`"):
            provenance(path)


@pytest.mark.parametrize("kept", [0, 3, 8, 200])
def test_a_table_that_was_cut_short_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"is not a readable Parquet file .*restore it with `dvc checkout"):
        read_table(path)


def test_an_edit_of_the_record_is_seen(path):
    content = path.read_bytes()
    assert content.count(b'"kernel": "exact"') == 1
    path.write_bytes(content.replace(b'"kernel": "exact"', b'"kernel": "wrong"'))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        provenance(path)


def test_a_table_that_was_rewritten_is_refused(path):
    pq.write_table(TABLE.slice(1), path)
    with pytest.raises(ArtifactError, match=r"carries no provenance: it was written or edited by other hands; restore"):
        read_table(path)


def test_a_missing_table_is_named_with_the_way_out(tmp_path):
    with pytest.raises(ArtifactError, match=r"nothing.parquet is missing; run `tamis run`"):
        read_table(tmp_path / "nothing.parquet")


def test_other_columns_are_named(path):
    with pytest.raises(ArtifactError, match=r"other columns than expected, first \['demo_id', 'distance', 'id'\]"):
        read_table(path, schemas.DISTANCES)
    with pytest.raises(ArtifactError, match="in another order"):
        check_table(path, pa.schema(reversed(list(schemas.UTILITY))))


def test_a_null_where_none_may_be_is_refused_and_nothing_is_left(tmp_path):
    table = pa.table(
        {"target_id": [None], "demo_id": ["a"], "utility": [1.0], "kernel": [True]}, schema=schemas.UTILITY
    )
    with pytest.raises(ValueError, match="Column 'target_id' is declared non-nullable but contains nulls"):
        write_table(table, tmp_path / "utility.parquet", MADE)
    assert list(tmp_path.iterdir()) == []


def test_tables_written_one_after_the_other_are_one_artifact(tmp_path):
    parts = [pa.table([[name] * 3, [0.5] * 3], schema=schemas.SCORES) for name in "ab"]
    write_tables(iter(parts), schemas.SCORES, tmp_path / "parts.parquet", Provenance("toy", "v1"))
    assert read_table(tmp_path / "parts.parquet", schemas.SCORES) == pa.concat_tables(parts)
    assert provenance(tmp_path / "parts.parquet")["rows"] == 6
    assert pq.read_metadata(tmp_path / "parts.parquet").num_row_groups == 2


def test_tables_that_end_in_a_failure_leave_nothing(tmp_path):
    def fail():
        yield pa.table([["a"], [0.5]], schema=schemas.SCORES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(fail(), schemas.SCORES, tmp_path / "parts.parquet", Provenance("toy", "v1"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text("old", tmp_path / "file")

    def write_half() -> None:
        with replacing(tmp_path / "file") as part:
            part.write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_json_is_sorted_and_refuses_what_is_no_number(tmp_path):
    write_json({"b": 1, "a": "é"}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json({"a": float("nan")}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_inputs_are_known_wherever_the_project_lies(tmp_path):
    path = tmp_path / "data/examples/version=v1/examples.parquet"
    write_text("x", path)
    assert digest_inputs(path) == {"examples/version=v1/examples.parquet": digest(path)}


WRITE_ON_A_FULL_DISK = """
import json, os, resource, sys
from pathlib import Path
import pyarrow as pa
from tasks.artifacts import tables
path = Path(sys.argv[1])
table = pa.table({"x": [os.urandom(8).hex() for _ in range(20_000)]})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (
    lambda: tables.write_table(table, path, tables.Provenance("x", "v1")),
    lambda: tables.write_json(table["x"].to_pylist(), path),
):
    try:
        write()
    except tables.ArtifactError as error:
        print(error)
"""


@pytest.mark.parametrize("before", [None, "as it was"])
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, before):
    path = tmp_path / "out/x.parquet"
    path.parent.mkdir()
    if before:
        path.write_text(before)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", WRITE_ON_A_FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"{path} could not be written: ")
        assert "File too large; nothing was left behind. Free space on that disk" in line
    assert done.stderr == ""
    assert {path.name: path.read_text() for path in path.parent.iterdir()} == ({"x.parquet": before} if before else {})


def test_a_folder_that_may_not_be_written_is_said_with_the_way_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    text = f"x.json could not be written: Permission denied; nothing was left behind. Allow writing in {tmp_path}, then"
    with pytest.raises(ArtifactError, match=text):
        write_json({}, tmp_path / "x.json")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_device_without_space_is_said(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "x.json"), open("/dev/full", "w") as device:
            json.dump([1], device)

    with pytest.raises(ArtifactError, match=r"x.json could not be written: No space left on device; nothing was left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    text = (
        rf"x.json could not be written: (Not a directory|File exists).* {tmp_path}/data stands where a folder belongs"
    )
    with pytest.raises(ArtifactError, match=text):
        write_json({}, tmp_path / "data/version=v1/x.json")


def test_reading_is_told_from_writing(tmp_path, monkeypatch):
    (tmp_path / "there").touch()
    errors = [PermissionError(13, "Permission denied", str(tmp_path / name)) for name in ("there", "new")]
    assert [" ".join(tell_refused(one).split()[2:5]) for one in errors] == ["not be written:"] * 2
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert tell_refused(errors[0]).endswith(
        "there could not be read: Permission denied. Allow reading it, then run again"
    )
    assert " could not be written: " in tell_refused(errors[1])


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_files_have_the_mode_that_the_user_grants(tmp_path, umask, mode):
    code = (
        "import sys, pathlib\nfrom tasks.artifacts.tables import write_text\nwrite_text('', pathlib.Path(sys.argv[1]))"
    )
    path = tmp_path / "file"
    subprocess.run(["sh", "-c", f'umask {umask} && exec "$0" "$@"', sys.executable, "-c", code, str(path)], check=True)
    assert path.stat().st_mode & 0o777 == mode


def test_file_and_folder_are_on_the_disk_before_and_after_the_renaming(tmp_path, monkeypatch):
    done = []
    real = os.fsync, os.replace

    def note(kind, call):
        def noted(*arguments):
            done.append((kind, Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name if kind == "flush" else ""))
            return call(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", note("flush", real[0]))
    monkeypatch.setattr(os, "replace", note("rename", real[1]))
    write_text("x", tmp_path / "file")
    (first, name), (second, _), (third, folder) = done
    assert (first, second, third) == ("flush", "rename", "flush")
    assert name.startswith(".file.")
    assert folder == tmp_path.name
