"""Every layout of raw folders is listed, what is not read is named, and nothing ends in a traceback."""

import json
import os
import re
from pathlib import Path

import pytest

from tasks.examples import files
from tasks.examples.files import ExamplesError, find_kind, find_split, is_inside, list_files

SAVED = {"description": "", "features": {"file_name": {"dtype": "string"}}}  # a column may have any name


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw/v1"
    folder.mkdir(parents=True)
    return folder


def put(folder: Path, *names: str, content: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def save(folder: Path) -> None:
    """Write what `datasets` writes beside its columns."""
    put(folder, "dataset_info.json", content=json.dumps(SAVED))
    put(folder, "state.json", content=json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    put(folder, "data-00000-of-00001.arrow")


def save_splits(folder: Path, *splits: str) -> None:
    put(folder, "dataset_dict.json", content=json.dumps({"splits": splits}))
    for split in splits:
        save(folder / split)


def listed(raw: Path, apart: dict | None = None) -> list[str]:
    return [file.name for file in list_files(raw, apart or {})[0]]


def ignored(raw: Path) -> dict[str, str]:
    return dict(list_files(raw, {})[1])


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_kind_is_found_in_any_case_and_packed(kind, packed):
    expected = "jsonl" if kind == "ndjson" else kind
    assert find_kind(f"rows.{kind}{packed}") == find_kind(f"ROWS.{kind}{packed}".upper()) == expected


@pytest.mark.parametrize("name", ["rows.txt", "rows.gz", "README", "jsonl", "rows.jsonl.xz"])
def test_other_files_have_no_kind(name):
    assert find_kind(name) is None


def test_sub_folders_are_read_by_name_and_hidden_files_are_not(raw):
    put(raw, "b/c/d.jsonl", "b/a.csv", "a.parquet", ".hidden/a.jsonl", "b/.a.jsonl")
    assert listed(raw) == ["v1/a.parquet", "v1/b/a.csv", "v1/b/c/d.jsonl"]
    file = list_files(raw, {})[0][2]
    assert (file.path, file.kind, file.split, file.stem) == (raw / "b/c/d.jsonl", "jsonl", None, "d")


def test_what_is_not_read_is_named_with_its_reason(raw):
    put(raw, "a.jsonl", "README.md", "b/LICENSE", "c/.gitkeep")
    others = {"README.md": "no data file", "b/LICENSE": "no data file"}
    assert ignored(raw) == {**others, "c/.gitkeep": "hidden"}
    put(raw, ".git/a/b.jsonl", ".rows.jsonl")
    assert ignored(raw) == {**others, "c/.gitkeep": "hidden", ".git": "hidden", ".rows.jsonl": "hidden"}


def test_one_file_is_enough(raw):
    put(raw, "a.jsonl", "b.jsonl")
    assert listed(raw / "a.jsonl") == ["a.jsonl"]


def test_a_pattern_picks_files_whose_names_begin_with_its_folder(raw, monkeypatch):
    put(raw, "a.jsonl", "b.csv", "c/d.jsonl", "c/e.txt")
    assert listed(raw / "*.jsonl") == ["v1/a.jsonl"]
    assert listed(raw / "**/*.jsonl") == ["v1/a.jsonl", "v1/c/d.jsonl"]
    assert listed(raw / "**") == listed(raw)
    assert listed(raw / "?") == ["v1/c/d.jsonl"]
    monkeypatch.chdir(raw)
    assert listed(Path("*.csv")) == ["v1/b.csv"]
    assert listed(Path(".")) == listed(raw)


def test_a_name_with_the_signs_of_a_pattern_is_a_name(raw):
    put(raw, "a[1].jsonl", "a1.jsonl")
    assert listed(raw / "a[1].jsonl") == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("name", "split", "stem"),
    [
        ("train.jsonl", "train", "train"),
        ("gsm8k/test.jsonl.gz", "test", "gsm8k"),
        ("gsm8k/data/train-00000-of-00002.parquet", "train", "gsm8k"),
        ("data/validation-00001-of-00002-a1b2.parquet", "validation", "validation"),
        ("data/train_sft-00000-of-00003.parquet", "train_sft", "train_sft"),
        ("data/extra-00000-of-00003.parquet", "extra", "extra"),
        ("sums-00000-of-00003.jsonl", None, "sums"),
        ("sums_dev.csv", "validation", "sums_dev"),
        ("sums.test.tsv", "test", "sums"),
        ("test/sums.jsonl", "test", "sums"),
        ("testimony.jsonl", None, "testimony"),
        ("health.2024.jsonl", None, "health"),
    ],
)
def test_the_split_and_the_topic_come_from_the_name(raw, name, split, stem):
    put(raw, name)
    ((file,), _) = list_files(raw, {})
    assert (file.name, file.split, file.stem) == (f"v1/{name}", split, stem)
    assert find_split(f"v1/{name}") == split


def test_the_raw_folders_own_name_is_no_split(tmp_path):
    put(tmp_path / "test", "a.jsonl")
    assert list_files(tmp_path / "test", {})[0][0].split is None


def test_folders_that_datasets_saved_are_read_split_by_split(raw):
    save(raw / "one")
    save_splits(raw / "two", "train", "extra")
    found = [(file.name, file.path, file.kind, file.split, file.stem) for file in list_files(raw, {})[0]]
    assert found == [
        ("v1/one", raw / "one", "datasets", None, "one"),
        ("v1/two/train", raw / "two/train", "datasets", "train", "two"),
        ("v1/two/extra", raw / "two/extra", "datasets", "extra", "two"),
    ]
    assert ignored(raw) == {}
    assert listed(raw / "two") == ["two/train", "two/extra"]
    assert listed(raw / "one") == ["one"]


def test_a_saved_folder_that_lacks_a_split_is_refused(raw):
    save_splits(raw / "two", "train")
    put(raw / "two", "dataset_dict.json", content='{"splits": ["train", "test"]}')
    with pytest.raises(ExamplesError, match=r"^v1/two lacks 1 of its 2 splits, first 'test'; save it again, or take"):
        list_files(raw, {})


def test_a_description_alone_is_a_saved_folder_that_is_broken_and_beside_data_it_is_none(raw):
    put(raw, "toy/dataset_info.json", content="{}")
    assert listed(raw) == ["v1/toy"]
    put(raw, "toy/a.jsonl")
    assert listed(raw) == ["v1/toy/a.jsonl"]
    assert ignored(raw) == {"toy/dataset_info.json": "describes a data set and holds no rows"}


def test_the_list_of_llama_factory_is_told_from_a_saved_folder(raw):
    put(raw, "a.json", "b/c.json")
    for folder in (raw, raw / "b"):
        put(folder, "dataset_info.json", content=json.dumps({"toy": {"file_name": "a.json", "formatting": "sharegpt"}}))
    assert listed(raw) == ["v1/a.json", "v1/b/c.json"]
    assert list(ignored(raw)) == ["b/dataset_info.json", "dataset_info.json"]
    assert ignored(raw)["dataset_info.json"].startswith("LLaMA-Factory's list of data sets, which is not followed; say")


def test_a_list_of_llama_factory_alone_is_named_with_what_it_is(raw):
    put(raw, "dataset_info.json", content='{"toy": {"hf_hub_url": "me/toy"}}')
    text = r"v1 holds only dataset_info.json \(LLaMA-Factory's list of data sets, which is not followed; .*\); read are"
    with pytest.raises(ExamplesError, match=text):
        list_files(raw, {})


def test_rows_under_a_describing_name_are_read(raw):
    put(raw, "state.json", "v1.files.json", content='[{"prompt": "a", "response": "b"}]')
    assert listed(raw) == ["v1/state.json", "v1/v1.files.json"]


def test_a_record_of_raw_files_is_no_data(raw):
    put(raw, "v1/a.jsonl")
    put(raw, "v1.files.json", content='{"raw": "data/raw/v1", "files": {}}')
    assert listed(raw) == ["v1/v1/a.jsonl"]
    assert ignored(raw) == {"v1.files.json": "the record of a version's raw files"}


@pytest.mark.parametrize("name", [b"\xff\xfe.jsonl", b"caf\xe9/a.jsonl", b"caf\xe9/.task/a.jsonl"])
def test_a_name_that_is_not_utf8_is_refused_with_the_way_out(raw, name):
    put(raw, "a.jsonl", os.fsdecode(name))
    shown = re.escape(name.decode(errors="backslashreplace"))
    apart = {"examples.target.path": os.fsdecode(name)} if b".task" in name else {}
    with pytest.raises(ExamplesError, match=rf"^1 of 2 files have a name .* not UTF-8, first v1/{shown}; rename it$"):
        list_files(raw, apart)


def test_what_is_not_read_may_have_any_name(raw):
    put(raw, "a.jsonl", os.fsdecode(b"caf\xe9.txt"))
    assert ignored(raw) == {r"caf\xe9.txt": "no data file"}


def test_a_link_to_a_folder_that_holds_it_is_not_followed(raw):
    put(raw, "a/b.jsonl")
    os.symlink(raw, raw / "a/loop", target_is_directory=True)
    assert listed(raw) == ["v1/a/b.jsonl"]
    assert ignored(raw) == {"a/loop": "a link to a folder that holds it"}
    assert listed(raw / "**/*.jsonl") == ["v1/a/b.jsonl"]


def test_a_link_to_another_folder_is_followed(raw, tmp_path):
    put(tmp_path / "elsewhere", "b.jsonl")
    os.symlink(tmp_path / "elsewhere", raw / "a", target_is_directory=True)
    assert listed(raw) == ["v1/a/b.jsonl"]


def test_a_link_to_itself_or_to_nothing_is_named(raw):
    put(raw, "a.jsonl")
    os.symlink(raw / "loop", raw / "loop")
    os.symlink(raw / "nowhere", raw / "gone")
    assert ignored(raw) == {"gone": "a link to nothing", "loop": "a link to nothing"}


def test_a_link_to_data_that_is_not_there_is_refused(raw):
    put(raw, "a.jsonl")
    os.symlink(raw / "nowhere", raw / "b.jsonl")
    with pytest.raises(
        ExamplesError, match=r"^v1/b.jsonl is a link to nothing; fetch what it names, or take it out of"
    ):
        list_files(raw, {})


def test_a_pipe_is_not_read(raw):
    put(raw, "a.jsonl")
    os.mkfifo(raw / "b.jsonl")
    assert ignored(raw) == {"b.jsonl": "neither a file nor a folder"}


def test_a_folder_that_cannot_be_read_is_refused(raw, monkeypatch):
    put(raw, "a.jsonl", "b/c.jsonl")
    walk = Path.iterdir

    def refuse(folder: Path):
        if folder == raw / "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return walk(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(files, "_load", lambda path: pytest.fail(f"{path} is looked for where nothing can be seen"))
    with pytest.raises(ExamplesError, match=r"raw/v1/b cannot be read: Permission denied; allow it, or take it out of"):
        list_files(raw, {})


def test_no_data_is_said(raw):
    with pytest.raises(
        ExamplesError, match=r"nowhere does not exist; set versions.<version>.raw to a file or a folder with data files"
    ):
        list_files(raw / "nowhere", {})
    with pytest.raises(
        ExamplesError, match=r"v1/\*.csv matches no file; set versions.<version>.raw to a file, a folder"
    ):
        list_files(raw / "*.csv", {})
    text = r"raw/v1 holds nothing; read are .jsonl, .ndjson, .json, .csv, .tsv, .parquet \(.* .bz2\) and .* `datasets`$"
    with pytest.raises(ExamplesError, match=text):
        list_files(raw, {})
    put(raw, "notes.txt", "b/README.md")
    with pytest.raises(ExamplesError, match=r"raw/v1 holds only b/README.md, notes.txt; read are"):
        list_files(raw, {})
    with pytest.raises(ExamplesError, match=r"notes.txt holds only notes.txt; read are"):
        list_files(raw / "notes.txt", {})
    put(raw, "x.txt", "y.txt", ".z")
    with pytest.raises(ExamplesError, match=r"raw/v1 holds only .z, b/README.md, notes.txt and 2 more; read are"):
        list_files(raw, {})


def test_files_named_by_parameters_come_first(raw):
    put(raw, "a.jsonl", "b.jsonl", "task/c.jsonl", "task/d/e.csv", "z.jsonl")
    named = {"examples.target.path": "task", "examples.retention_set": "./b.jsonl"}
    assert listed(raw, named) == ["v1/task/c.jsonl", "v1/task/d/e.csv", "v1/b.jsonl", "v1/a.jsonl", "v1/z.jsonl"]
    assert is_inside("v1/b.jsonl", raw, "./b.jsonl")
    assert is_inside("v1/task/d/e.csv", raw, "task/")
    assert not is_inside("v1/tasks/c.jsonl", raw, "task")


def test_a_split_may_be_named_by_a_parameter(raw):
    save_splits(raw / "two", "train", "extra")
    files, _ = list_files(raw, {"examples.retention_set": "two/extra"})
    assert [(file.name, file.split) for file in files] == [("v1/two/extra", "extra"), ("v1/two/train", "train")]
    assert listed(raw / "two", {"examples.retention_set": "extra"}) == ["two/extra", "two/train"]


def test_a_parameter_may_name_a_hidden_folder_and_what_a_pattern_does_not_match(raw):
    put(raw, "a.jsonl", "b.csv", ".task/c.jsonl")
    assert listed(raw, {"examples.target.path": ".task"})[0] == "v1/.task/c.jsonl"
    assert list_files(raw, {"examples.target.path": ".task"})[1] == []
    assert listed(raw / "*.jsonl", {"examples.target.path": "b.csv"}) == ["v1/b.csv", "v1/a.jsonl"]
    assert is_inside("v1/b.csv", raw / "*.jsonl", "b.csv")


@pytest.mark.parametrize("name", ["nowhere", "../other", "/etc"])
def test_a_parameter_that_names_nothing_inside_is_refused(raw, name):
    put(raw, "a.jsonl")
    with pytest.raises(
        ExamplesError, match=r"^examples.target.path is '.*' and .*raw/v1 has no such file or folder; put"
    ):
        list_files(raw, {"examples.target.path": name})


def test_a_parameter_that_names_no_rows_or_those_of_another_is_refused(raw):
    put(raw, "a.jsonl", "task/notes.txt", "b/c.jsonl")
    with pytest.raises(ExamplesError, match=r"raw/v1/task holds no rows for examples.target.path; read are .jsonl"):
        list_files(raw, {"examples.target.path": "task"})
    both = {"examples.target.path": "b", "examples.retention_set": "b/c.jsonl"}
    text = (
        r"^1 of 1 files are named by examples.target.path and examples.retention_set, first v1/b/c.jsonl; a row is of"
    )
    with pytest.raises(ExamplesError, match=text):
        list_files(raw, both)
    with pytest.raises(ExamplesError, match=r"raw/v1/b holds nothing beside what examples.target.path names; read are"):
        list_files(raw / "b", {"examples.target.path": "c.jsonl"})
