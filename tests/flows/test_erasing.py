"""A row erased on request: every place is listed, nothing of the row is left, and it does not come back."""

import hashlib
import json
import shutil
from datetime import date
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner
from worlds.erasing import erase, find_bytes, list_kinds, make_whole, pick_row, read_examples, write_rows
from worlds.projects import Project, enter_copy, prepare, run_stages, toy_row

from flows import cli, erasing, erasing_dvc
from flows.erasing_dvc import Entry, ErasingError, find_trained
from flows.graph import dvc_state
from flows.mirror import Mirror
from flows.stage_calls import ERASED, folder
from tasks.artifacts.stores import KINDS as KINDS_OF_STORES
from tasks.erasure import parts, raw_rows
from tasks.erasure.record import list_same, read_erased

KINDS = {
    "raw",
    "artifact",
    "arm",
    "store",
    "warm-up",
    "trial",
    "leftover",
    "cache",
    "remote",
    "revision",
    "git",
}


@pytest.fixture(scope="session")
def made(real_unrun, tmp_path_factory) -> Project:
    return make_whole(real_unrun, tmp_path_factory)


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    """A copy of it, as the current folder."""
    return enter_copy(made, tmp_path / "project", monkeypatch)


@pytest.fixture
def row(project) -> dict:
    return pick_row()


def digest_files(root: Path) -> dict[str, str]:
    """Return the digests of all files but those that DVC's locks are and git's own."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / ".dvc/tmp")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if ".git" not in path.relative_to(root).parts
    }


def test_every_kind_of_place_is_listed_and_nothing_is_changed(project, row):
    before = digest_files(project.root)
    done = erase(row["id"], "--json")
    found = list_kinds(done)
    assert digest_files(project.root) == before
    assert set(found) == KINDS
    assert found["raw"][0]["path"] == f"data/raw/v1/toys.jsonl:{row['line']}"
    paths = {one["path"] for one in found["artifact"]}
    assert "data/examples/version=v1/examples.parquet" in paths
    assert "data/selection/version=v1/subset.parquet" in paths
    arms = {one["path"]: one["what"] for one in found["arm"]}
    assert arms["data/finetuning/version=v1/arms/chosen-0"] == "trained on the row"
    later = [path for path, what in arms.items() if what == "trained on from an arm that was trained on the row"]
    assert {path for path in later if path.startswith("data")} == {
        f"data/finetuning/version=v2/arms/{arm}" for arm in ("chosen-0", "full-0", "random-0")
    }
    assert any("adapter_model.safetensors" in one["what"] and "version=v2" in one["what"] for one in found["cache"])
    assert {one["path"] for one in found["revision"]} == {"HEAD", "data-v1"}
    assert "folders that only you know" in done.stderr
    assert "; now nothing was changed" in done.stderr
    assert row["prompt"] not in done.output


def test_nothing_of_an_erased_row_is_left(project, row):
    assert find_bytes(project.root, row["id"], row["prompt"])
    remote = project.root / ".dvc-remote"
    assert any(line.startswith(".dvc-remote") for line in find_bytes(project.root, row["id"]))
    done = erase(row["id"], "--yes")
    assert done.exit_code == 0, done.output
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert remote.exists()
    (record,) = json.loads(ERASED.read_text())
    today = date.today().isoformat()
    assert record == {"id": row["id"], "same_as": row["same_as"], "because": "asked by its author", "when": today}
    assert row["prompt"] not in done.output
    assert "HEAD, data-v1: their dvc.lock files name objects that hold the row; these cannot be restored" in done.stderr
    assert "git's history still holds data/raw/v1/toys.jsonl with the row" in done.stderr
    assert "`git tag --delete data-v1`" in done.stderr
    assert "git add data/erased.json data/raw/v1/toys.jsonl" in done.stderr


def test_arms_that_the_row_had_no_part_in_stay(project, row):
    home = folder("finetuning", "v1") / "arms"
    arms = {path.parent.name: json.loads(path.read_text()) for path in home.glob("*/rows.json")}
    erase(row["id"], "--yes")
    left = {path.name for path in home.iterdir()}
    assert left == {arm for arm, ids in arms.items() if row["id"] not in ids}
    assert not list((folder("finetuning", "v2") / "arms").iterdir())


def test_second_call_says_so_and_clears_what_is_found_again(project, row):
    shutil.copy(folder("examples", "v1") / "examples.parquet", project.root.parent)
    assert erase(row["id"], "--yes").exit_code == 0
    done = erase(row["id"], "--yes")
    assert f"{row['id']} is erased already, on {date.today().isoformat()}: asked by its author" in done.stderr
    assert "removed: nothing" in done.stderr
    (folder("examples", "v1")).mkdir(parents=True, exist_ok=True)
    shutil.copy(project.root.parent / "examples.parquet", folder("examples", "v1"))
    found = list_kinds(erase(row["id"], "--yes", "--json"))
    assert [one["path"] for one in found["artifact"]] == ["data/examples/version=v1/examples.parquet"]
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert len(json.loads(ERASED.read_text())) == 1


def test_variants_in_blanks_go_with_the_row_and_are_left_out_by_ids_of_their_own(project, row):
    path = project.root / "data/raw/v1/toys.jsonl"
    spaced = {"prompt": row["prompt"], "response": f" {row['response']}", "topic": row["topic"]}
    path.write_text(path.read_text() + json.dumps(spaced) + "\n")
    found = list_kinds(erase(row["id"], "--json"))
    assert [one["path"] for one in found["raw"] if "v1" in one["path"]] == [
        f"data/raw/v1/toys.jsonl:{line}" for line in (row["line"], 31)
    ]
    assert erase(row["id"], "--yes").exit_code == 0
    assert {one.same_as for one in read_erased(ERASED)} == {row["same_as"]}
    assert len(read_erased(ERASED)) == 2
    assert find_bytes(project.root, row["prompt"]) == []


STEPS = {  # what is done once or several times, and after which time a call is interrupted
    "_remove_there": (erasing_dvc, 3),
    "remove_objects": (erasing, 1),
    "clear_part": (parts, 1),
    "remove_place": (erasing, 2),
    "drop_lines": (raw_rows, 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_call_that_was_interrupted_is_finished_by_the_next(project, row, monkeypatch, step):
    module, last = STEPS[step]
    real, calls = getattr(module, step), []

    def stop(*arguments: object) -> None:
        real(*arguments)
        calls.append(arguments)
        if len(calls) == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, stop)
        with pytest.raises(KeyboardInterrupt):
            erasing.erase(row["id"], "asked")
    assert row["same_as"] in list_same(ERASED)
    assert erase(row["id"], "--yes").exit_code == 0
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert not list((folder("finetuning", "v2") / "arms").iterdir())


def test_next_run_makes_the_version_without_the_row(project, row):
    before = {one["id"] for one in read_examples("v1")}
    erase(row["id"], "--yes")
    run_stages("v1")
    assert {one["id"] for one in read_examples("v1")} == before - {row["id"]}
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert [state for _, state, _ in dvc_state.standings(dvc_state.plan(["v1"]))] == ["fresh"] * 9


def test_later_version_that_brings_the_row_again_leaves_it_out_and_says_so(project, row, capsys):
    erase(row["id"], "--yes")
    place = int(row["prompt"].split()[1].rstrip("?"))
    write_rows(project, "v3", range(60, 90))
    write_rows(project, "v3", range(place, place + 1), "again", response=f"  {row['response']} \n")
    project.edit("params.yaml", "previous: v1\n", "previous: v1\n  v3:\n    raw: data/raw/v3\n    previous: v1\n")
    run_stages("v3", until="examples")
    assert "31 rows read, 0 rejected, 1 erased (data/erased.json)" in capsys.readouterr().err
    counts = json.loads((folder("examples", "v3") / "examples.json").read_text())
    assert (counts["rows"], counts["rejects"], counts["erased"]) == (31, 0, 1)
    assert row["same_as"] not in {one["same_as"] for one in read_examples("v3")}
    tables = folder("examples", "v3").glob("*.parquet")
    assert not [path for path in tables if row["prompt"] in repr(pq.read_table(path).to_pydict())]
    assert erase(row["id"]).stderr.count("is erased already") == 1


def test_check_tells_of_erased_rows(project, row):
    before = (project.root / "data/raw/v1/toys.jsonl").read_text()
    erase(row["id"], "--yes")
    (project.root / "data/raw/v1/toys.jsonl").write_text(before)
    done = CliRunner().invoke(cli.app, ["check", "v1"])
    assert "30 rows read, 0 rejected, 1 erased (data/erased.json)" in " ".join(done.stdout.split())


def test_row_of_the_version_before_that_was_erased_is_not_taken_for_one_that_was_withdrawn(project, row):
    from tasks.examples.division import read_before

    examples, subset = folder("examples", "v1"), folder("selection", "v1")
    assert row["id"] in read_before(examples, subset).table["id"].to_pylist()
    assert row["id"] not in read_before(examples, subset, [row["same_as"]]).table["id"].to_pylist()


def test_raw_file_that_is_not_json_lines_is_refused_by_name_and_nothing_is_changed(project, row):
    rows = [toy_row(place) for place in range(30)]
    (project.root / "data/raw/v1/toys.jsonl").unlink()
    (project.root / "data/raw/v1/toys.json").write_text(json.dumps(rows))
    before = digest_files(project.root)
    done = erase(row["id"], "--yes")
    assert done.exit_code == 1
    assert f"data/raw/v1/toys.json:{row['line']}: only files of JSON lines" in done.stderr
    assert "take the row out of that file by hand, then call again" in done.stderr
    after = digest_files(project.root)
    assert {path for path in after if before.get(path) != after[path]} <= {
        f".cache/{one}.lock" for one in ("adding", "flow", "store")
    }
    assert list_same(ERASED) == frozenset()


def test_raw_files_that_dvc_holds_are_rewritten_and_held_again(project, row):
    write_rows(project, "v4", range(30))
    held = dvc_state.add("data/raw/v4")
    assert "data/raw/v4.dvc" in held
    project.edit("params.yaml", "previous: v1\n", "previous: v1\n  v4:\n    raw: data/raw/v4\n    previous: base\n")
    prepare(project.root)
    lock = Path("versions/v4/dvc.lock")
    lock.write_text(Path("versions/v1/dvc.lock").read_text().replace("@v1", "@v4").replace("raw/v1", "raw/v4"))
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "held by DVC")
    for tag in ("refused-v4", "data-v4"):
        project.git("tag", tag)
    lock.unlink()  # it tells of artifacts of v1
    found = list_kinds(erase(row["id"], "--json"))
    assert any(one["what"] == "data/raw/v4/toys.jsonl" for one in found["cache"])
    named = [one["what"] for one in found["revision"] if one["path"] == "refused-v4"]
    assert "data/raw/v4.dvc names 1 of these objects" in named
    done = erase(row["id"], "--yes")
    assert find_bytes(project.root, row["id"], row["prompt"]) == []
    assert "data/raw/v4.dvc" in done.stderr
    assert "`git tag --delete data-v1 data-v4`" in done.stderr
    assert "`git tag --delete data-v1 data-v4`" in erase(row["id"], "--yes").stderr  # whose objects are gone by now
    assert len((project.root / "data/raw/v4/toys.jsonl").read_text().splitlines()) == 29
    assert "data/raw/v4.dvc" not in project.status()


@pytest.mark.parametrize("id", ["0" * 31, "x", "0" * 32])
def test_id_of_no_row_is_refused(project, id):
    with pytest.raises(ErasingError, match="is no id of an example" if id != "0" * 32 else "no row with the id"):
        erasing.find(id)


def test_remote_that_cannot_be_asked_is_named_and_nothing_is_changed(project, row, monkeypatch):
    from dvc.data_cloud import DataCloud

    def fail(*arguments: object, **named: object) -> None:
        raise ConnectionError("no way")

    monkeypatch.setattr(DataCloud, "get_remote_odb", fail)
    done = erase(row["id"], "--yes")
    assert done.exit_code == 1
    assert "the DVC remote 'local' cannot be asked, so nothing was changed (ConnectionError: no way)" in done.stderr
    assert list_same(ERASED) == frozenset()
    assert (folder("examples", "v1") / "examples.parquet").exists()


def test_arms_of_versions_that_go_on_from_a_trained_one_are_found_by_the_records(project):
    arms = {name: {arm: {"rows.json": f"{name}-{arm}"} for arm in ("chosen-0", "full-0")} for name in "abc"}
    steps = [("b", "c"), ("a", "b")]
    entries = [Entry(None, "", "finetuning", made, {"x/arms": read}, {"y/arms": made}) for read, made in steps]
    assert find_trained(arms, {"a-chosen-0"}, entries) == {
        "a": {"chosen-0"},
        "b": {"chosen-0", "full-0"},
        "c": {"chosen-0", "full-0"},
    }
    assert find_trained(arms, {"a-full-0"}, entries) == {"a": {"full-0"}, "b": set(), "c": set()}


def test_what_a_mirror_of_the_stores_holds_is_listed_and_removed(project, row):
    url = f"memory://{project.root.parent.name}/mirror"
    fsspec.filesystem("memory").mkdir(f"/{project.root.parent.name}")
    path = project.root / "params.yaml"
    settings = yaml.safe_load(path.read_text()) | {"mirror": {"url": url}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    mirror = Mirror(url, say=print)
    mirror.send(KINDS_OF_STORES, None)
    system, root = fsspec.core.url_to_fs(url)
    for kind in ("pairs", "embeddings", "losses"):  # another machine's parts alone hold the row: here there is nothing
        shutil.rmtree(project.root / ".cache" / kind)
    damaged = next(name for name in system.find(f"{root}/losses") if name.endswith(".parquet"))
    system.pipe(damaged, b"PAR1")
    found = list_kinds(erase(row["id"], "--json"))["mirror"]
    assert {place["path"].removeprefix(f"{url}/").split("/")[0] for place in found} >= {"pairs", "embeddings", "losses"}
    done = erase(row["id"], "--yes", "--json")
    assert done.exit_code == 0, done.output
    copy = project.root.parent / "copy"
    system.get(root, str(copy), recursive=True)
    assert [*copy.rglob("part-*.parquet")]
    assert not find_bytes(copy, row["id"])
    assert damaged not in system.find(root)
