"""`tamis check`, `add` and `export` on the toy project: what they show, what they write, what they refuse."""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from worlds.projects import GRAPHS, ROOT, Project, environment, run_child, run_dvc, run_stages
from worlds.raw_rows import write_saved_splits
from worlds.terminals import run_in_terminal

from flows import cli, params

REAL = GRAPHS["real"]
CHATS = [
    {"messages": [{"role": "user", "content": f"chat {k}?"}, {"role": "assistant", "content": f"yes, {k}"}]}
    for k in range(30)
]


@pytest.fixture
def project(real_copy) -> Project:
    return real_copy


@pytest.fixture
def chats(tmp_path) -> Path:
    """A folder outside of the project with chats, a licence, and what is no data."""
    folder = tmp_path / "chats"
    folder.mkdir()
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (folder / "LICENSE").write_text("CC0")
    return folder


def tamis(*arguments: str | Path):
    return CliRunner().invoke(cli.app, [str(each) for each in arguments])


def versions(project: Project) -> dict:
    return yaml.safe_load((project.root / "params.yaml").read_text())["versions"]


def test_check_shows_formats_examples_counts_and_what_a_run_would_use(project):
    done = tamis("check", "v1")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    assert shown.startswith("v1: data/raw/v1: all 30 rows ")
    for text in (
        "│ v1/toys.jsonl │ prompt_response │ 30 │ 0 │",
        "example 1 of 3, v1/toys.jsonl:",
        "30 rows read, 0 rejected, 0 with the text of an earlier row",
        "a run would use: 20 pool, 4 held out",
        "│ turns │ 2 │ 2 │ 2 │ 60 │",
        "│ greetings │ 10 │",
    ):
        assert text in shown
    assert "<|assistant|>⟦" in done.stdout
    assert "against" not in shown
    assert project.git("status", "--porcelain") == ""


def test_check_shows_the_rows_that_validate_and_those_that_are_planted(project):
    path = project.root / "params.yaml"
    path.write_text(path.read_text().replace("validation_every: null", "validation_every: 5"))
    rows = [json.loads(line) for line in (project.root / "data/raw/v1/toys.jsonl").read_text().splitlines()]
    wrong = [row | ({"planted": "cut"} if place % 2 else {}) for place, row in enumerate(rows)]
    (project.root / "data/raw/v1/toys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    shown = " ".join(tamis("check", "v1").stdout.split())
    assert re.search(r"a run would use: \d+ pool, \d validation, \d held out", shown)
    assert re.search(r"planted in the pool: \d+ cut", shown)


def test_check_shows_rejects_by_kind_with_first_lines_and_whether_a_run_would_stop(project):
    with open(project.root / "data/raw/v1/toys.jsonl", "a") as file:
        file.write('{"prompt": "x", "response": "", "topic": "t"}\n{bad\n')
    (project.root / "data/raw/v1/notes.txt").write_text("x")
    shown = " ".join(tamis("check").stdout.split())
    assert "not read: notes.txt (no data file)" in shown
    assert "32 rows read, 2 rejected" in shown
    assert "│ empty response │ 1 │ v1/toys.jsonl:31: " in shown
    assert "│ invalid JSON │ 1 │ v1/toys.jsonl:32: " in shown
    assert "a run would stop: 2 of 32 rows are bad" in shown


def test_check_is_json_where_that_is_asked_for(project):
    (found,) = json.loads(tamis("check", "--json").stdout)
    assert (found["version"], found["rows"], found["sample"], found["moved"]) == ("v1", 30, None, [])
    assert found["topics"][0] == {"topic": "greetings", "rows": 10}
    assert found["tokens"]["longest"] >= found["tokens"]["p95"] >= found["tokens"]["median"]
    text = "".join(piece["text"] for piece in found["examples"][0]["sequences"][0])
    assert text.startswith("<|user|>")
    assert found["foreseen"] == {
        "used": {"pool": 20, "held_out": 4},
        "changes": found["foreseen"]["changes"],
        "stops": None,
    }


def test_check_of_an_unknown_version_is_refused(project):
    done = tamis("check", "v9")
    assert (done.exit_code, done.stderr) == (1, "error: there is no data version 'v9'; params.yaml has v1\n")


def test_a_sample_is_shown_first_and_marked_as_such(project, monkeypatch):
    from tasks.first_look import look

    monkeypatch.setattr(look, "SAMPLE", 5)
    shown = tamis("check").stdout
    first, _, then = shown.partition("v1: data/raw/v1: all 30 rows")
    assert first.startswith("v1: data/raw/v1: a sample of 5 of 30 rows; exact figures follow\n")
    assert "rows in the sample" in first
    assert "5 rows read in the sample" in first
    assert "with the text of an earlier row" not in first
    assert first.count("example ") == 3
    assert "30 rows read, 0 rejected, 0 with the text" in then
    assert "in the sample" not in then
    assert "example " not in then


def test_in_a_terminal_what_is_learnt_has_a_style_and_text_of_data_is_text(project):
    row = {"prompt": "\x1b[31mred\x07 [bold]?", "response": "a\tb", "topic": "[/red]"}
    (project.root / "data/raw/v1/toys.jsonl").write_text(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "flows.cli", "check"]
    shown = run_in_terminal(command, project.root).text
    assert r"<|user|>\x1b[31mred\x07 [bold]?<|end|>" in shown
    assert "\x1b[1;32ma\\tb<|end|>\x1b[0m" in shown
    assert "⟦" not in shown
    assert "[/red]" in shown
    assert "\x07" not in shown
    assert "\x1b[31m" not in shown


def test_dry_run_shows_the_same_and_writes_nothing(project, chats):
    before = (project.root / "params.yaml").read_text()
    done = tamis("add", chats, "--external", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "│ chats/talk.jsonl │ messages" in done.stdout
    assert "not read: LICENSE (no data file)" in done.stdout
    raw = f"v2: {{raw: {chats}, previous: v1}}"
    assert done.stderr == f"nothing is written; without --dry-run, params.yaml would have {raw}\n"
    assert (project.root / "params.yaml").read_text() == before
    assert project.git("status", "--porcelain") == ""


def test_files_of_the_project_are_read_where_they_are(project, chats, monkeypatch):
    shutil.copytree(chats, project.root / "own/chats")
    monkeypatch.chdir(project.root / "own")
    done = tamis("add", "chats")
    assert done.exit_code == 0, done.output
    assert versions(project)["v2"] == {"raw": "own/chats", "previous": "v1"}
    assert done.stderr == (
        "params.yaml has v2: {raw: own/chats, previous: v1}; next: tamis run v2\n"
        "to keep it: git add ../params.yaml ../versions/v2/dvc.yaml ../versions/v2/decisions.json "
        "../data/raw/v2.files.json chats\n"
    )
    record = json.loads((project.root / "data/raw/v2.files.json").read_text())
    assert record["raw"] == "own/chats"
    assert set(record["files"]) == {"talk.jsonl"}


def test_files_that_the_settings_do_not_fit_are_said_to_be_read_otherwise(project, chats):
    (chats / "rows.csv").write_text("prompt,response,topic\na,b,c\n")
    project.edit("params.yaml", "fields: {}", "fields: {prompt: prompt, response: response}")
    (found,) = json.loads(tamis("add", chats, "--external", "--json").stdout)
    formats = {one["file"]: one["format"] for one in found["files"]}
    assert formats == {"chats/rows.csv": "examples.fields", "chats/talk.jsonl": "messages"}
    assert found["sources"] == [{"path": "talk.jsonl", "fields": {}}]
    assert found["not_read"] == [{"name": "LICENSE", "reason": "no data file"}]
    assert params.read().examples.sources == {"v2": found["sources"]}
    assert (found["rows"], found["rejected"], found["foreseen"]["stops"]) == (31, 0, None)


def test_the_other_lines_of_params_stay_as_they_are(project, chats):
    path = project.root / "params.yaml"
    (chats / "talk.jsonl").write_text((project.root / "data/raw/v1/toys.jsonl").read_text())
    path.write_text(
        path.read_text().replace("    previous: base\n", "    previous: base  # the first\n\n# the models\n")
    )
    before = path.read_text()
    assert tamis("add", chats, "--copy", "--version", "talk", "--previous", "base").exit_code == 0
    entry = "  talk:\n    raw: data/raw/talk\n    previous: base\n"
    assert path.read_text().replace(entry, "") == before
    assert list(params.read().versions) == ["v1", "talk"]


def test_a_copy_goes_into_dvc_and_git_keeps_the_pointer(project, chats):
    done = tamis("add", chats, "--copy", "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    made = ["versions/v2/dvc.yaml", "versions/v2/decisions.json"]
    held = ["params.yaml", *made, "data/raw/v2.files.json", "data/raw/v2.dvc", "data/raw/.gitignore"]
    assert (found["version"], found["raw"], found["written"], found["commit"]) == ("v2", "data/raw/v2", True, held)
    changed = project.git("status", "--porcelain", "--untracked-files=all").split("\n")[:-1]
    assert sorted(line[3:] for line in changed) == sorted(held)
    copied = project.root / "data/raw/v2"
    assert sorted(path.name for path in copied.iterdir()) == ["LICENSE", "talk.jsonl"]
    project.git("add", *held)
    project.git("commit", "--quiet", "--message", "v2")
    shutil.rmtree(copied)
    assert run_dvc(project, "checkout", "data/raw/v2").returncode == 0
    assert (copied / "talk.jsonl").read_bytes() == (chats / "talk.jsonl").read_bytes()


def test_what_a_pattern_matches_is_copied(project, chats):
    (chats / "other.csv").write_text("prompt,response\na,b\n")
    assert tamis("add", f"{chats}/*.jsonl", "--copy").exit_code == 0
    assert [path.name for path in (project.root / "data/raw/v2").glob("*.*")] == ["talk.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["CHATS"], "lies outside of the project, where neither git nor DVC keeps it; --copy copies it to data/raw/<"),
        (
            ["CHATS"],
            "and into DVC, so that others have it, too; --external reads it where it is, on this machine alone",
        ),
        (["CHATS", "--version", "v1"], "error: there is a data version 'v1' already (data/raw/v1); give another name"),
        (["CHATS", "--copy", "--version", "a b"], "versions names 'a b'; a version's name has letters, digits, and"),
        (["CHATS", "--copy", "--previous", "v0"], "there is no data version 'v0'; there are v1, base"),
        (["CHATS/none"], "none; give a file or a folder with data files, or a pattern with --copy"),
        (["CHATS/*.jsonl", "--external"], "*.jsonl is a pattern, and DVC follows files and folders; give the folder"),
        (["data/raw/v1"], "error: data/raw/v1 is what v1 reads; `tamis check v1` shows it"),
        (["CHATS/LICENSE", "--external"], "LICENSE holds only LICENSE; read are .jsonl"),
        (["CHATS", "--copy", "--external"], "error: --copy and --external are given; --copy copies the files, --ext"),
        (["", "--copy"], "error: the path is empty; give a file or a folder with data files"),
        (["."], "is the project's folder, or holds it; give the file or folder with the data alone"),
        (["CHATS/..", "--copy"], "is the project's folder, or holds it; give the file or folder with the data"),
        (["CHATS", "--copy", "--version", ""], "versions names ''; a version's name has letters, digits, and"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_is_written(project, chats, arguments, text):
    done = tamis("add", *(each.replace("CHATS", str(chats)) for each in arguments))
    assert done.exit_code == 1
    assert text in done.stderr
    assert project.git("status", "--porcelain") == ""


def test_a_link_out_of_the_project_leads_outside(project, chats):
    (project.root / "linked").symlink_to(chats)
    assert "linked lies outside of the project" in tamis("add", "linked").stderr
    assert tamis("add", "linked", "--external").exit_code == 0
    assert versions(project)["v2"]["raw"] == "linked"


def test_files_without_a_row_that_can_be_used_are_not_added(project, chats):
    (chats / "talk.jsonl").write_text('{"messages": []}\n')
    done = tamis("add", chats, "--external")
    assert done.exit_code == 1
    reason = "chats/talk.jsonl:1: no learnt turn: no message is the assistant's; the roles are none"
    first = f"first of the commonest kind (1 of 1 row): {reason}"
    assert done.stderr == f"error: no row of {chats} can be used, so nothing is added; {first}\n"


@pytest.mark.parametrize("step", ["flows.graph.dvc_state.add", "flows.adding.find_record", "flows.params.write"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "there"), RuntimeError("out of power")])
def test_an_addition_that_fails_midway_leaves_nothing_behind(project, chats, monkeypatch, step, error):
    def fail(*_):
        raise error

    before = (project.root / "params.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        done = tamis("add", chats, "--copy")
    assert done.exit_code == 1
    told = "there cannot be written: Permission denied; allow it, and add again; what was written is taken back"
    assert (told if isinstance(error, OSError) else "out of power") in done.stderr
    assert project.git("status", "--porcelain", "--ignored", "data") == ""
    assert (project.root / "params.yaml").read_bytes() == before
    assert not (project.root / "data/raw/v2").exists()
    assert tamis("add", chats, "--copy").exit_code == 0


def test_a_split_of_a_saved_data_set_is_copied_alone(project, tmp_path):
    (tmp_path / "saved").mkdir()
    write_saved_splits(tmp_path / "saved")
    (whole,) = (tmp_path / "saved").iterdir()
    done = tamis("add", whole / "first", "--copy")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (project.root / "data/raw/v2").iterdir()] == ["first"]
    assert tamis("check", "v2").exit_code == 0


def test_a_project_without_versions_gains_its_first(project, chats):
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"versions": {}}))
    assert "versions is empty; add one with `tamis add`" in tamis("run", "v1").stderr
    done = tamis("add", chats, "--copy", "--version", "first")
    assert done.exit_code == 0, done.output
    assert versions(project) == {"first": {"raw": "data/raw/first", "previous": "base"}}


def test_a_cache_that_cannot_be_written_hinders_no_look(project):
    shutil.rmtree(project.root / ".cache", ignore_errors=True)  # it holds the models' digests, where they were kept
    os.symlink("/sys", project.root / ".cache")  # a folder in which nobody may write, root neither
    before = len(list(Path(tempfile.gettempdir()).glob("tamis-*")))
    done = tamis("check")
    assert done.exit_code == 0, done.output
    assert len(list(Path(tempfile.gettempdir()).glob("tamis-*"))) == before
    (project.root / ".cache").unlink()


def test_long_reasons_are_cut_with_a_sign_and_short_ones_name_the_field(project):
    rows = [{"prompt": "x", "response": ""}, {"prompt": "x", "response": "y", "p" * 300: 1}]
    text = json.dumps(rows[0] | {"topic": "t"}) + "\n" + json.dumps(rows[1])[:-1] + f', "{"p" * 300}": 1}}'
    (project.root / "data/raw/v1/toys.jsonl").write_text(text)
    shown = " ".join(tamis("check").stdout.split())
    assert "v1/toys.jsonl:1: the field 'response' holds no text" in shown
    assert "p… │" in shown


def test_raw_files_that_are_not_as_they_were_added_are_named_by_check_and_by_every_run(project, chats, capfd):
    assert tamis("add", chats, "--external", "--previous", "base").exit_code == 0
    (chats / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS[:-1]))
    (chats / "more.jsonl").write_text(json.dumps(CHATS[-1]) + "\n")
    told = "2 raw files of v2 are not as they were when v2 was added: more.jsonl is new, talk.jsonl has changed"
    assert tamis("check", "v2").stderr.endswith(f"{told}\n")
    capfd.readouterr()
    run_stages("v2", until="examples")
    assert capfd.readouterr().err == (
        f"examples@v2      30 rows read, 0 rejected, 1 file not read: LICENSE\nexamples@v2      {told}\n"
    )
    assert json.loads((project.root / "data/examples/version=v2/run.json").read_text())["files_moved"]


@pytest.mark.slow
def test_dvc_repro_tells_of_rejects_files_that_are_not_read_and_what_was_left_out(project):
    with open(project.root / "data/raw/v1/toys.jsonl", "a") as file:
        ends = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "and?"}]
        file.write("{bad\n" + json.dumps({"prompt": "a?", "response": ends, "topic": "t"}) + "\n")
    (project.root / "data/raw/v1/notes.txt").write_text("x")
    project.edit("params.yaml", "on_bad_row: stop", "on_bad_row: reject")
    done = run_dvc(project, "repro", "versions/v1/dvc.yaml:examples@v1", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("examples@v1")]
    assert lines == [
        "examples@v1      32 rows read, 1 rejected (tamis sql 'FROM rejects'), 1 file not read: notes.txt",
        "examples@v1      of these rows: ends with a user turn, which is left out (1 row)",
    ]


@pytest.mark.slow
def test_after_add_the_next_run_works(fresh, chats, tmp_path, monkeypatch):
    root = Path(shutil.copytree(fresh(REAL, "flow")[0].root, tmp_path / "ran", symlinks=True))
    monkeypatch.chdir(root)
    (chats / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    assert tamis("add", chats, "--copy").exit_code == 0
    assert list(versions(Project(root))) == ["v1", "v3"]
    done = tamis("run", "v3")
    assert done.exit_code == 0, done.output
    assert "examples@v3      30 rows read, 0 rejected, 1 file not read: LICENSE\n" in done.stderr
    shown = " ".join(done.stdout.split())
    assert "v3: held-out loss, nats per response token" in shown


def test_chosen_rows_are_exported_to_where_the_user_stands(project, monkeypatch):
    root = project.root
    run_stages("v1", until="selection")
    monkeypatch.chdir(root / "data/raw")
    done = tamis("export", "v1", "out")
    assert done.exit_code == 0, done.output
    lines = (root / "data/raw/out/rows.jsonl").read_text().splitlines()
    told = f"{len(lines)} chosen rows of v1 stand in out/rows.jsonl (jsonl), the data card beside them\n"
    assert (done.stdout, done.stderr) == ("", told)
    raw = (root / "data/raw/v1/toys.jsonl").read_text().splitlines()
    assert lines
    assert set(lines) <= set(raw)
    again = tamis("export", "v1", "out").stderr
    assert again.endswith("out is there and is not empty; give another folder, or remove it\n")
    assert tamis("export", "v9", "other").stderr == "error: there is no data version 'v9'; params.yaml has v1\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_leaves_nothing_half_written(project, chats):
    script = '"$@" | head -n 1'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "flows.cli", "add", str(chats), "--copy"]
    done = run_child(command, project, **environment(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0
    kept = "v2" in versions(project)
    assert kept == (project.root / "data/raw/v2.dvc").exists() == (project.root / "data/raw/v2.files.json").exists()
