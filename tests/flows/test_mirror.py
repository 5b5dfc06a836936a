"""The stores' mirror: what one machine computed, another one that shares no folder with it finds there."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from worlds.projects import Project, run_stages

from flows import mirror, params, sharing, stage
from flows.drive import bring
from flows.mirror import Mirror, MirrorError, mirrored
from flows.stage_calls import CACHE, name_models
from tasks.artifacts import stores

KINDS = ("pairs",)


@pytest.fixture
def url(tmp_path) -> str:
    """An address of a file system that knows no renaming."""
    fsspec.filesystem("memory").mkdir(f"/{tmp_path.name}")
    return f"memory://{tmp_path.name}/tamis"


@pytest.fixture
def project(real_copy, url) -> Project:
    """A project with that mirror, and what utility reads."""
    return name_mirror(real_copy, url)


def name_mirror(project: Project, url: str) -> Project:
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"mirror": {"url": url}}, sort_keys=False))
    run_stages("v1", until="embedding")
    return project


def list_there(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url)
    return sorted(path.removeprefix(f"{root}/") for path in system.find(root))


def forget_stores() -> None:
    """Let this be another machine: nothing that was computed lies here."""
    for kind in stores.KINDS:
        shutil.rmtree(CACHE / kind, ignore_errors=True)


def run_utility() -> dict:
    stage.run("utility", "v1")
    return json.loads(Path("data/utility/version=v1/run.json").read_text())


def list_parts() -> list[Path]:
    return sorted(CACHE.glob("pairs/*/part-*.parquet"))


def open_mirror(url: str, told: list[str] | None = None) -> Mirror:
    return Mirror(url, say=(told if told is not None else []).append)


def test_another_machine_computes_nothing_of_it(project, url, capsys):
    first = run_utility()
    assert first["pairs_scored"] > 0
    here = {path.relative_to(CACHE).as_posix() for path in CACHE.glob("pairs/*/*")}
    assert here <= set(list_there(url))
    assert [name for name in list_there(url) if name.startswith("embeddings/")]
    forget_stores()
    capsys.readouterr()
    again = run_utility()
    assert again["pairs_scored"] == 0
    assert f"{len(list_parts())} parts of stores came from {url}" in capsys.readouterr().err


def test_without_a_mirror_nothing_is_asked(real_copy, monkeypatch):
    monkeypatch.setattr(mirror, "Mirror", None)
    run_stages("v1", until="utility")


def test_the_address_stands_in_no_record(project, url):
    run_utility()
    assert not [path for path in Path("data").rglob("*.json") if url in path.read_text()]


def test_shares_of_machines_without_a_common_folder_make_a_whole(project, url):
    assert not sharing.run("utility", "v1", "1/2", workers="1")[0]
    forget_stores()
    assert sharing.run("utility", "v1", "2/2", workers="1")[0]
    forget_stores()
    assert run_utility()["pairs_scored"] == 0


def test_what_a_failed_stage_computed_is_sent(project, url):

    def in_part(function, items, **more):
        for item in items[:-1]:
            yield function(item)
        raise RuntimeError("the machine is lost")

    with pytest.raises(RuntimeError, match="is lost"):
        stage.run("utility", "v1", map=in_part)
    parts = [path.relative_to(CACHE).as_posix() for path in list_parts()]
    assert len(parts) > 1
    assert set(parts) <= set(list_there(url))


def test_parts_are_sent_while_shards_run(project, url, monkeypatch):
    monkeypatch.setattr(mirror, "PAUSE", 0)
    seen = []

    def looking(function, items, **more):
        for item in items:
            seen.append(len([name for name in list_there(url) if name.startswith("pairs/")]))
            yield function(item)

    stage.run("utility", "v1", map=looking)
    assert seen[0] == 0
    assert seen[-1] == len(seen)  # all parts but the one in hand, and store.json


def test_a_damaged_part_is_told_of_computed_again_and_mended(project, url, capsys):
    run_utility()
    name, whole_run = list_parts()[0].relative_to(CACHE).as_posix(), len(list_parts())
    system, root = fsspec.core.url_to_fs(url)
    whole = system.cat(f"{root}/{name}")
    system.pipe(f"{root}/{name}", whole[:-40] + bytes(40))
    forget_stores()
    capsys.readouterr()
    assert run_utility()["pairs_scored"] == len(pq.read_table(CACHE / name))
    assert len(list_parts()) == whole_run
    assert f"{url}/{name} is damaged and not taken; what it held is computed again" in capsys.readouterr().err
    assert not [*CACHE.glob("pairs/*/.*")]
    forget_stores()
    assert run_utility()["pairs_scored"] == 0


@pytest.mark.parametrize("how", ["a link that leads nowhere", "a named pipe"])
@pytest.mark.parametrize("what", ["part", "record"])
def test_what_is_no_file_there_is_told_of_and_computed_again(real_copy, tmp_path, capsys, how, what):
    url = str(tmp_path / "there")
    name_mirror(real_copy, url)
    run_utility()
    part = list_parts()[0].relative_to(CACHE)
    name = part if what == "part" else part.with_name("store.json")
    place = tmp_path / "there" / name
    place.unlink()
    if how == "a named pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("gone")
    forget_stores()
    capsys.readouterr()
    assert run_utility()["pairs_scored"] > 0
    said = capsys.readouterr().err
    assert f"{url}/{name} is no file; remove it; what it held is computed again" in said
    place.unlink()
    forget_stores()
    run_utility()
    forget_stores()
    assert run_utility()["pairs_scored"] == 0


def test_a_part_that_is_gone_since_it_was_listed_is_told_of_and_sent_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, url = write_part("pairs", "a", "x"), str(tmp_path / "there")
    open_mirror(url).send(("pairs",), None)
    path.unlink()
    told: list[str] = []
    opened, name = open_mirror(url, told), path.relative_to(CACHE).as_posix()
    with monkeypatch.context() as patched:
        patched.setattr(opened, "_list", lambda kind: [name])
        (tmp_path / "there" / name).unlink()
        assert opened.fetch(("pairs",), None) == []
    assert told == [f"{url}/{name} is gone since it was listed; what it held is computed again"]
    write_part("pairs", "a", "x")
    assert opened.send(("pairs",), None) == 2  # and the folder's record, which was not listed


def test_a_mirror_that_is_gone_is_no_part_that_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, url = write_part("pairs", "a", "x"), str(tmp_path / "there")
    open_mirror(url).send(("pairs",), None)
    path.unlink()
    opened, name = open_mirror(url), path.relative_to(CACHE).as_posix()
    monkeypatch.setattr(opened, "_list", lambda kind: [name])
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(MirrorError, match=r"^mirror\.url is .*, which cannot be read \(FileNotFoundError"):
        opened.fetch(("pairs",), None)


def test_a_damaged_record_of_a_folder_is_told_of_and_mended(project, url, capsys):
    run_utility()
    name = f"pairs/{list_parts()[0].parent.name}/store.json"
    system, root = fsspec.core.url_to_fs(url)
    system.pipe(f"{root}/{name}", system.cat(f"{root}/{name}")[:20])
    forget_stores()
    capsys.readouterr()
    assert run_utility()["pairs_scored"] > 0
    assert f"{url}/{name} is damaged and not taken" in capsys.readouterr().err
    forget_stores()
    assert run_utility()["pairs_scored"] == 0


@pytest.mark.parametrize("system", ["memory", "file"])
@pytest.mark.parametrize("place", ["part", "store.json", "folder", "kind"])
def test_what_stands_in_the_way_of_a_part_is_told_of_and_the_others_are_sent(tmp_path, monkeypatch, system, place):
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").mkdir(f"/{tmp_path.name}")
    url = f"memory://{tmp_path.name}/there" if system == "memory" else str(tmp_path / "there")
    first, second, third = (write_part("pairs", key, rows) for key, rows in (("a", "x"), ("a", "y"), ("b", "z")))
    named = {"part": first, "store.json": first.with_name("store.json"), "folder": first.parent}
    blocking = named.get(place, CACHE / "pairs").relative_to(CACHE).as_posix()
    other = write_part("losses", "c", "w")
    there, root = fsspec.core.url_to_fs(url)
    if "." in blocking:
        there.makedirs(f"{root}/{blocking}")
    else:
        there.makedirs(f"{root}/{blocking}".rpartition("/")[0])
        there.pipe(f"{root}/{blocking}", b"x")
    told: list[str] = []
    opened = open_mirror(url, told)
    opened.fetch(("pairs", "losses"), None)
    for _ in range(2):
        opened.send(("pairs", "losses"), None)
    assert told == [f"{url}/{blocking} is in the way of what is to be sent; remove it, and a later run sends that"]
    parts = [path.relative_to(CACHE).as_posix() for path in (first, second, third, other)]
    blocked = {"part": {parts[0]}, "store.json": set(), "folder": {*parts[:2]}, "kind": {*parts[:3]}}[place]
    assert {name for name in list_there(url) if name in parts} == {*parts} - blocked
    there.rm(f"{root}/{blocking}", recursive=True)
    open_mirror(url, told).send(("pairs", "losses"), None)
    assert {*parts} <= {*list_there(url)}


def write_part(kind: str, key: str, id: str) -> Path:
    """Write a part of a store with one row; returns its path."""
    home = CACHE / kind / (key * 32)
    stores.describe(home, kind=kind, model="any", model_digest="0" * 64, code="1" * 64)
    return stores.append(home, pa.table({"id": [id]}), stage="utility", seconds=1.0)


def test_what_is_no_part_is_left_there(project, url):
    run_utility()
    system, root = fsspec.core.url_to_fs(url)
    folder = list_parts()[0].parent.name
    made = {path.name for path in CACHE.glob("pairs/*/*")}
    names = [f"pairs/{folder}/notes.txt", f"pairs/{folder}/part-../x.parquet", f"pairs/.../part-{'0' * 32}.parquet"]
    for name in names:
        system.pipe(f"{root}/{name}", b"x")
    forget_stores()
    open_mirror(url).fetch(KINDS, None)
    assert {path.name for path in CACHE.rglob("pairs/*/*")} == made


def test_parts_of_other_models_are_neither_fetched_nor_sent(project, url):
    run_utility()
    made = list_parts()
    forget_stores()
    assert open_mirror(url).fetch(KINDS, {"0" * 64}) == []
    assert open_mirror(url).fetch(KINDS, name_models(params.read())) == made
    for path in fsspec.filesystem("memory").find(fsspec.core.url_to_fs(url)[1]):
        fsspec.filesystem("memory").rm_file(path)
    assert open_mirror(url).send(KINDS, {"0" * 64}) == 0
    assert open_mirror(url).send(KINDS, name_models(params.read())) == len(made) + 1


def test_parts_that_were_made_one_do_not_come_back(project, url):
    run_utility()
    before = len(list_parts())
    with stores.upkeep(CACHE):
        stores.compact(list_parts()[0].parent)
    assert open_mirror(url).fetch(KINDS, name_models(params.read())) == []
    assert len(list_parts()) == 1
    assert len(open_mirror(url).fetch(KINDS, None)) == before  # to be looked into, whoever holds them


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nosuch://name:pass-word@bucket/x", r"mirror\.url is nosuch://\*\*\*@bucket/x, which cannot be opened"),
        ("nonsense", r"mirror\.url is nonsense, which cannot be opened .*it is no address such as s3://bucket/stores"),
        ("file:///dev/null/x", r"mirror\.url is file:///dev/null/x, which cannot be (read|written)"),
        (
            "memory://gone/x",
            r"mirror\.url is memory://gone/x, which cannot be opened .* there is no ",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(project, url, address, why):
    project.edit("params.yaml", url, address)
    with pytest.raises(MirrorError, match=why) as found:
        run_utility()
    assert "mend it, or set it to null" in str(found.value)
    assert "pass-word" not in str(found.value)


def test_a_mirror_that_takes_nothing_is_told_of_and_loses_nothing(project, url, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "PAUSE", 0)
    system, _ = fsspec.core.url_to_fs(url)
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", partial(refuse, "no room"))
        with pytest.raises(MirrorError, match=r"cannot be written \(OSError: no room\)"):
            run_utility()
    assert "what was to be sent stands here, and is sent later" in capsys.readouterr().err
    assert run_utility()["pairs_scored"] == 0
    assert [name for name in list_there(url) if name.startswith("pairs/")]


def test_a_mirror_that_cannot_be_written_is_told_of_before_anything_is_computed(url, monkeypatch, real_copy):
    told = []
    with mirrored(url, "utility", set, told.append):
        assert told == []
    assert list_there(url) == []
    system, _ = fsspec.core.url_to_fs(url)
    monkeypatch.setattr(type(system), "pipe_file", partial(refuse, "read-only"))
    with mirrored(url, "utility", set, told.append):
        named = f"mirror.url is {url}, which cannot be written (OSError: read-only); mend it, or set it to null"
        assert told == [f"{named}; what is computed stands here, and cannot be sent"]


def test_a_mirror_from_which_nothing_can_be_removed_is_taken(url, monkeypatch, real_copy):
    told = []
    system, _ = fsspec.core.url_to_fs(url)
    monkeypatch.setattr(type(system), "rm_file", partial(refuse, "no removing"))
    with mirrored(url, "utility", set, told.append):
        assert list_there(url) == [mirror.TRIED]
    assert told == []


def test_the_error_of_a_stage_is_not_hidden_by_the_mirrors(url, monkeypatch, real_copy):
    told = []
    make_part()
    monkeypatch.setattr(Mirror, "send", raise_refused)
    with pytest.raises(ZeroDivisionError), mirrored(url, "utility", set, told.append):
        raise ZeroDivisionError
    assert told == ["no room; what was to be sent stands here, and is sent later"]


def refuse(why: str, *_args, **_more) -> None:
    raise OSError(why)


def raise_refused(*_args) -> None:
    raise MirrorError("no room")


def make_part() -> None:
    (CACHE / "pairs" / ("0" * 32)).mkdir(parents=True)


def test_both_drivers_ask_the_mirror(project, url):
    run_utility()
    forget_stores()
    shutil.rmtree("data/utility/version=v1")
    from flows.graph import dvc_state

    (planned,) = (one for one in dvc_state.plan(["v1"]) if one.address == "utility@v1")
    how, _ = bring(planned, stage.sources([planned.address]), in_order)
    assert how == "computed"
    assert json.loads(Path("data/utility/version=v1/run.json").read_text())["pairs_scored"] == 0


def in_order(function, items, *, label: str):
    return map(function, items)
