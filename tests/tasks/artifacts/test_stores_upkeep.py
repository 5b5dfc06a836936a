"""Upkeep of the stores: nothing that a reader sees may change, and nothing at all during a run."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import Provenance, provenance, read_table, write_table
from tasks.embedding import embedding

KEEP = {"model-1", "code-1"}


def score(*rows: tuple[str, str, float], seconds: float = 1.0) -> tuple[pa.Table, float]:
    columns = ("target_id", "demo_id", "distance", "log_likelihood", "tokens")
    made = [dict(zip(columns, (*row, -row[2], 3), strict=True)) for row in rows]
    return pa.Table.from_pylist(made, schema=schemas.PAIRS), seconds


def fill(folder: Path, *parts: tuple[pa.Table, float]) -> Path:
    for table, seconds in parts:
        stores.append(folder, table, stage="utility", seconds=seconds)
    return folder


def fill_overlapping(folder: Path) -> Path:
    """Three parts, six rows, two of which stand in two parts with other figures."""
    return fill(
        folder,
        score(("b", "a", 0.25), ("a", "b", 0.5), seconds=2.0),
        score(("a", "b", 0.75), ("c", "", 0.125), seconds=4.0),
        score(("a", "a", 0.375), ("c", "", 0.25), seconds=0.5),
    )


def wanted() -> pa.Table:
    return pa.table({"target_id": ["a", "b", "a", "c", "x"], "demo_id": ["b", "a", "a", "", "y"]})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_many_parts_become_one_sorted_with_each_row_once_and_their_seconds(tmp_path):
    folder = fill_overlapping(tmp_path / "pairs/one")
    done = stores.compact(folder)
    assert (done.parts, done.rows, done.repeated) == (3, 4, 2)
    (path,) = folder.glob("part-*.parquet")
    table = read_table(path, schemas.PAIRS)
    pairs = list(zip(table["target_id"].to_pylist(), table["demo_id"].to_pylist(), strict=True))
    assert pairs == [("a", "a"), ("a", "b"), ("b", "a"), ("c", "")]
    made = provenance(path)
    assert (made["stage"], made["version"], made["parameters"]["seconds"]) == ("utility", "store", 6.5)


def test_readers_of_pairs_find_the_same_before_and_after(tmp_path):
    folder = fill_overlapping(tmp_path)
    before, lacking = stores.find(folder, wanted()), stores.missing(folder, wanted())
    stores.compact(folder)
    assert stores.find(folder, wanted()).equals(before)
    assert stores.missing(folder, wanted()).equals(lacking)


def test_seconds_of_all_rows_are_the_same_before_and_after(tmp_path):
    folder = fill(tmp_path, score(("a", "b", 0.5), seconds=2.0), score(("b", "a", 0.5), seconds=4.0))
    everything = wanted()[:2]
    before = stores.cost(folder, everything)
    stores.compact(folder)
    assert stores.cost(folder, everything) == before == 6.0


def write_vectors(folder: Path, name: str, vectors: dict[str, list[float]]) -> None:
    part = pa.table([list(vectors), list(vectors.values())], schema=embedding.STORED)
    write_table(part, folder / f"part-{name}.parquet", Provenance("embedding", "store", {"seconds": 0.5}))


def test_readers_of_embeddings_take_repeated_rows_and_find_the_same_before_and_after(tmp_path):
    write_vectors(tmp_path, "0", {"b": [0.0, 1.0], "a": [1.0, 0.0]})
    write_vectors(tmp_path, "1", {"c": [0.5, 0.5], "b": [0.25, 0.75]})
    asked = pa.table({"id": ["a", "b", "c", "x"]})
    before = stores.find(tmp_path, asked)
    assert stores.compact(tmp_path)[:3] == (2, 3, 1)
    assert stores.find(tmp_path, asked).equals(before)
    assert before.to_pydict() == {"id": ["a", "b", "c"], "embedding": [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]}
    (path,) = tmp_path.glob("part-*.parquet")
    assert read_table(path, embedding.STORED)["id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_united_parts_are_what_a_slow_loop_finds(seed):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, 5, (40, 2)).astype(str)
    figures = draw.random(40)
    rows = [(target, demo, float(figure)) for (target, demo), figure in zip(ids.tolist(), figures, strict=True)]
    best: dict[tuple[str, str], float] = {}
    for target, demo, figure in rows:
        best[target, demo] = min(best.get((target, demo), 1.0), figure)
    parts = [score(*rows[start : start + 7])[0] for start in range(0, 40, 7)]
    table = stores.unite(parts, ["target_id", "demo_id"])
    assert table.schema == schemas.PAIRS
    assert list(zip(table["target_id"].to_pylist(), table["demo_id"].to_pylist(), strict=True)) == sorted(best)
    assert table["distance"].to_pylist() == [float(np.float32(best[pair])) for pair in sorted(best)]


def test_texts_and_truths_that_are_values_stay_together_and_are_the_last_parts(tmp_path):
    for name, text, cut in (("first", "zebra", True), ("last", "ape", False)):
        rows = pa.table({"id": ["a", name], "text": [text, name], "cut": [cut, cut]})
        stores.append(tmp_path, rows, stage="evaluation", seconds=1.0, keys=["id"])
    last = read_table(max(tmp_path.glob("part-*.parquet"))).to_pylist()
    before = stores.find(tmp_path, pa.table({"id": ["a", "first", "last"]}))
    assert before.to_pylist()[0] == last[0]
    assert stores.compact(tmp_path)[:3] == (2, 3, 1)
    assert stores.find(tmp_path, pa.table({"id": ["a", "first", "last"]})).equals(before)


def test_one_part_stays_as_it_is(tmp_path):
    fill(tmp_path, score(("a", "b", 0.5)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert stores.compact(tmp_path) == (1, 1, 0, 0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_parts_stays_empty(tmp_path):
    assert stores.compact(tmp_path) == (0, 0, 0, 0)


def test_a_compacted_store_grows_and_is_compacted_again(tmp_path):
    fill_overlapping(tmp_path)
    stores.compact(tmp_path)
    fill(tmp_path, score(("d", "d", 0.5), seconds=1.5))
    assert stores.compact(tmp_path)[:3] == (2, 5, 0)
    (path,) = tmp_path.glob("part-*.parquet")
    assert provenance(path)["parameters"]["seconds"] == 8.0


def test_what_killed_processes_were_writing_is_swept(tmp_path):
    fill(tmp_path, score(("a", "b", 0.5)))
    (tmp_path / ".part-1.parquet.abc.part").write_bytes(b"half a part")
    assert stores.compact(tmp_path).freed == len(b"half a part")
    assert len(names(tmp_path)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.artifacts import stores
left = [int(sys.argv[2])]
def watch(event, arguments):
    if event == sys.argv[3] and str(arguments[0]).endswith(".parquet" if event == "os.remove" else ".part"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
stores.compact(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("event", "after"), [("os.rename", 0), ("os.remove", 0), ("os.remove", 1), ("os.remove", 2)])
def test_a_killed_compaction_loses_no_row_and_counts_no_second_twice(tmp_path, event, after):
    folder = fill_overlapping(tmp_path / "pairs/one")
    before = stores.find(folder, wanted())
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(after), event])
    assert done.returncode == -signal.SIGKILL
    assert stores.find(folder, wanted()).equals(before)
    stores.compact(folder)
    (path,) = folder.iterdir()
    assert stores.find(folder, wanted()).equals(before)
    assert provenance(path)["parameters"]["seconds"] == 6.5


def test_a_damaged_part_stands_aside_of_compaction_and_is_deleted_by_pruning(tmp_path):
    folder = describe(tmp_path / "pairs/one")
    fill_overlapping(folder)
    path = max(folder.glob("part-*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="a part of a store, was damaged and stands aside"):
        stores.compact(folder)
    damaged = path.with_suffix(".damaged")
    size = damaged.stat().st_size
    assert stores.prune(tmp_path, {"model-1", "code-1"}).freed == size
    assert not damaged.exists()


def describe(folder: Path, model: str = "model-1", code: str = "code-1", **more: str) -> Path:
    stores.describe(folder, kind=folder.parent.name, model=f"name of {model}", model_digest=model, code=code, **more)
    return folder


def test_a_folder_says_what_it_holds_from_its_first_use_on(tmp_path):
    folder = describe(tmp_path / "pairs/one", template="chat")
    facts = {"kind": "pairs", "model": "name of model-1", "model_digest": "model-1", "code": "code-1"}
    assert json.loads((folder / "store.json").read_text()) == facts | {"template": "chat"}
    before = (folder / "store.json").stat().st_mtime_ns
    describe(folder, model="model-2")
    assert (folder / "store.json").stat().st_mtime_ns == before


def make_stores(root: Path) -> list[Path]:
    """Stores with a folder named today, one of another model, one of older code, and one that says nothing."""
    folders = [
        describe(root / "pairs/a", template="chat"),
        describe(root / "pairs/b", model="model-0", template="delift"),
        describe(root / "scores/c", code="code-0", selector="ifd"),
        root / "pairs/d",
    ]
    for folder in folders:
        fill(folder, score(("a", "b", 0.5)), score(("b", "a", 0.5), ("b", "b", 0.5)))
    (root / "models/e").mkdir(parents=True)
    return folders


def test_a_survey_tells_what_each_folder_holds(tmp_path):
    folders = make_stores(tmp_path)
    found = stores.survey(tmp_path, KEEP)
    assert [(row.kind, row.key, row.model, row.template, row.selector, row.current) for row in found] == [
        ("pairs", "a", "name of model-1", "chat", None, True),
        ("pairs", "b", "name of model-0", "delift", None, False),
        ("pairs", "d", None, None, None, None),
        ("scores", "c", "name of model-1", None, "ifd", False),
    ]
    assert {(row.parts, row.rows) for row in found} == {(2, 3)}
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    assert found[0].megabytes == round(size / 1e6, 3)


def test_without_stores_there_is_nothing_to_survey_or_prune(tmp_path):
    assert stores.survey(tmp_path / "none", KEEP) == []
    assert stores.prune(tmp_path / "none", KEEP) == ([], [], 0)


def test_pruning_removes_models_and_code_that_are_not_named_and_names_what_it_does_not_know(tmp_path):
    current, other, older, unknown = make_stores(tmp_path)
    size = sum(path.stat().st_size for folder in (other, older) for path in folder.iterdir())
    done = stores.prune(tmp_path, KEEP)
    assert [(row.kind, row.key) for row in done.removed] == [("pairs", "b"), ("scores", "c")]
    assert [row.key for row in done.unknown] == ["d"]
    assert done.freed == size
    assert [folder.exists() for folder in (current, other, older, unknown)] == [True, False, False, True]
    assert stores.find(current, wanted()).num_rows == 2


def test_pruning_removes_what_it_does_not_know_if_asked(tmp_path):
    *_, unknown = make_stores(tmp_path)
    done = stores.prune(tmp_path, KEEP, unknown=True)
    assert [row.key for row in done.removed] == ["b", "d", "c"]
    assert done.unknown == []
    assert not unknown.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m"}'])
def test_an_edited_description_is_refused(tmp_path, text):
    folder = describe(tmp_path / "pairs/a")
    (folder / "store.json").write_text(text)
    with pytest.raises(stores.StoreError, match=r"store.json does not tell model_digest and code .*delete it"):
        stores.prune(tmp_path, KEEP)


HOLDER = """
import sys, time
from pathlib import Path
from tasks.artifacts import stores
with stores.in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_upkeep_is_refused_while_a_run_uses_the_stores_and_free_once_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with (
            stores.in_use(tmp_path),
            pytest.raises(stores.StoreError, match=r"a run uses the stores in .*nothing was ch"),
        ):
            stores.upkeep(tmp_path).__enter__()
        with pytest.raises(stores.StoreError, match="a run uses the stores"), stores.upkeep(tmp_path):
            pass
        child.kill()
    with stores.upkeep(tmp_path):
        pass


def test_a_run_waits_for_upkeep(tmp_path):
    begun = threading.Event()

    def use() -> None:
        with stores.in_use(tmp_path):
            begun.set()

    run = threading.Thread(target=use)
    with stores.upkeep(tmp_path):
        run.start()
        assert not begun.wait(0.5)
    assert begun.wait(60)
    run.join()
