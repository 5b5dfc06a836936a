"""Text of data is shown as text, long text readably, and every table as JSON or CSV; in a terminal and out of it."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner
from worlds.projects import ROOT, environment
from worlds.terminals import run_in_terminal

from flows.cli import app
from flows.commands.output import show_json
from tasks.artifacts.tables import Provenance, write_table

TAMIS = [sys.executable, "-m", "flows.cli"]
LONG = "word " * 30  # 150 characters
VERY_LONG = "a" * 150 + "b" * 150


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with one artifact, whose texts are what data may be."""
    root = tmp_path_factory.mktemp("shown")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    (root / "deep/down").mkdir(parents=True)
    texts = ["x [/INST] y", "\x1b[31mred\x07", "a\nb\tc", LONG, VERY_LONG, "[bold]:smile:[/bold]", "\x9b2J\u202eabc"]
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": texts})
    path = root / "data/notes/version=v1/notes.parquet"
    write_table(table, path, Provenance("notes", "v1", {}))
    return root


def ask(project: Path, *arguments: str, folder: str = "."):
    """Run `tamis` in a child whose output is no terminal."""
    return subprocess.run([*TAMIS, *arguments], cwd=project / folder, env=environment(), capture_output=True, text=True)


def see(project: Path, *arguments: str, width: int = 100) -> str:
    """Return what `tamis` shows in a terminal."""
    shown = run_in_terminal([*TAMIS, *arguments], project, width=width)
    assert shown.status == 0, shown.text
    return shown.text


def cells(text: str) -> str:
    """Return the words in the boxes of a table's one column, the lines of a cell joined."""
    return "".join(line.strip("│ ") for line in text.splitlines() if line.startswith("│"))


def test_text_in_square_brackets_is_text(project):
    assert "x [/INST] y" in see(project, "sql", "select 'x [/INST] y'")
    assert "[1, 2]" in see(project, "sql", "select [1, 2] as l")
    assert "INTEGER[]" in see(project, "sql", "select typeof([1, 2]) as t")
    assert "[bold]:smile:[/bold]" in see(project, "sql", "select text from notes where id = '5'")
    assert "[/red]" in see(project, "sql", 'select 1 as "[/red]"')


def test_numbers_of_numpy_are_numbers_in_json(capsys):
    values = [np.int64(3), np.float32(0.5), np.bool_(True), np.array([[1, 2]]), np.float64("nan")]
    show_json([dict(zip("abcde", values, strict=True))])
    assert json.loads(capsys.readouterr().out) == [{"a": 3, "b": 0.5, "c": True, "d": [[1, 2]], "e": None}]


def test_escape_sequences_of_data_do_not_reach_the_terminal(project):
    shown = see(project, "sql", "select text from notes where id in ('1', '6')", width=60)
    assert r"\x1b[31mred\x07" in shown
    assert r"\x9b2J\u202eabc" in shown
    for forbidden in ("\x1b[31m", "\x07", "\x9b", "\u202e"):
        assert forbidden not in shown


def test_escape_sequences_in_an_error_do_not_reach_the_terminal(project):
    shown = run_in_terminal([*TAMIS, "sql", 'select * from "\x1b[31mred\x07"'], project)
    assert shown.status == 1
    assert r"\x1b[31mred\x07" in shown.text
    assert "\x1b[31m" not in shown.text
    assert "\x07" not in shown.text


def test_line_breaks_and_tabs_in_a_cell_are_made_visible(project):
    assert r"a↵ b\tc" in see(project, "sql", "select text from notes where id = '2'")


def test_long_text_is_wrapped_in_its_column_and_none_of_it_is_lost(project):
    shown = see(project, "sql", "select id, text from notes where id = '3'", width=60)
    assert shown.count("word") == 30
    assert max(len(re.sub(r"\x1b\[\d*m", "", line)) for line in shown.splitlines()) <= 60
    assert "cut here" not in shown


def test_text_that_is_too_long_to_be_read_is_cut_and_said_to_be(project):
    shown = see(project, "sql", "select text from notes where id = '4'", width=80)
    assert cells(shown) == "a" * 150 + "b" * 49 + "…"
    assert "1 cell is longer than 200 characters and cut here; --json, or CSV (`| cat`), shows all" in shown


def test_table_of_many_columns_becomes_a_list_that_can_be_read(project):
    columns = ", ".join(f"'the text of column {number}' as column_{number}" for number in range(12))
    shown = see(project, "sql", f"select {columns}", width=60)
    for number in range(12):
        assert f"column_{number}" in shown
        assert f"the text of column {number}\n" in " ".join(shown.split(" ")).replace(" \n", "\n")
    assert "row 1 of 1" in shown


def test_csv_holds_the_data_as_they_are(project):
    done = ask(project, "sql", "select id, text from notes order by id")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[0] == ["id", "text"]
    assert rows[2] == ["1", "\x1b[31mred\x07"]
    assert rows[5] == ["4", VERY_LONG]
    assert done.stderr == ""


def test_json_holds_the_data_as_they_are_and_escapes_what_a_terminal_acts_on(project):
    done = ask(project, "sql", "--json", "select text from notes order by id")
    texts = [row["text"] for row in json.loads(done.stdout)]
    assert texts[1:3] == ["\x1b[31mred\x07", "a\nb\tc"]
    assert texts[4] == VERY_LONG
    assert texts[6] == "\x9b2J\u202eabc"
    assert all(one.isprintable() or one == "\n" for one in done.stdout)
    assert see(project, "sql", "--json", "select text from notes order by id") == done.stdout


def test_json_has_a_type_for_every_value(project):
    question = """select 1 as whole, 1.5 as fraction, 1e300::double as large, 'nan'::double as none, null as nothing,
        date '2026-11-29' as day, timestamp '2026-11-29 12:00:00' as moment, '\\x00\\xff'::blob as bytes,
        [1.25, 2] as list, {'a': [date '2026-01-01']} as struct, map {'k': 1} as map, true as yes,
        123456789012345678901234567890.123::decimal(38, 3) as exact, 1 as whole"""
    done = ask(project, "sql", "--json", question)
    assert json.loads(done.stdout) == [
        {
            "whole": 1,
            "fraction": 1.5,
            "large": 1e300,
            "none": None,
            "nothing": None,
            "day": "2026-11-29",
            "moment": "2026-11-29T12:00:00",
            "bytes": "AP8=",
            "list": [1.25, 2.0],
            "struct": {"a": ["2026-01-01"]},
            "map": {"k": 1},
            "yes": True,
            "exact": "123456789012345678901234567890.123",
            "whole_2": 1,
        }
    ]


def test_no_rows_are_an_empty_array(project):
    assert json.loads(ask(project, "sql", "--json", "from notes where false").stdout) == []


def test_every_table_has_json():
    tables = (
        "check",
        "add",
        "run",
        "continue",
        "status",
        "stages",
        "sql",
        "show",
        "compare",
        "repeats",
        "store",
        "erase",
    )
    for name in tables:
        assert "--json" in CliRunner(env={"TERM": "dumb", "COLUMNS": "100"}).invoke(app, [name, "--help"]).stdout, name


def test_reader_that_goes_away_ends_the_command_quietly(project):
    question = "select range as number from range(300000)"
    script = f'set -o pipefail; "$@" sql "{question}" | head -n 2; echo status ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *TAMIS], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "number\n0\nstatus 141\n"
    assert done.stderr == ""


def test_summary_of_a_run_shows_topics_as_text(capsys):
    arm = {"arm": "chosen [/x]", "rows": 3, "loss": 1.0, "low": 0.5, "high": 1.5, "seeds": 2}
    from flows.commands.running import show_summary

    notes = ["topic docs [/INST]: \x1b[31m"]
    found = {"version": "v1", "arms": [arm], "notes": notes, "seconds": {"examples": 1.0}, "pairs_scored": 7}
    show_summary(found | {"costs": None})
    shown = capsys.readouterr().out
    assert "chosen [/x] (2 seeds)" in shown
    assert r"topic docs [/INST]: \x1b[31m" in shown
    assert "\x1b" not in shown


def test_commands_work_from_a_folder_inside_the_project(project):
    below = ask(project, "sql", "select count(*) as n from notes", folder="deep/down")
    assert (below.returncode, below.stdout, below.stderr) == (0, "n\n7\n", "")


def test_version_is_told():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, "tamis 0.1.0\n")


def test_label_of_a_progress_bar_is_text(capsys):
    from flows.stage import in_order

    assert list(in_order(str, [1], label="docs [/INST]@v1")) == ["1"]
    assert "docs [/INST]@v1" in capsys.readouterr().err


COMMANDS = (
    ["check"],
    ["add", "rows.jsonl"],
    ["export", "v1", "out"],
    ["estimate"],
    ["recipe"],
    ["run"],
    ["shard", "utility", "v1", "1/2"],
    ["continue"],
    ["serve"],
    ["status"],
    ["stages"],
    ["models"],
    ["verify"],
    ["replay", "v1"],
    ["sql", "select 1"],
    ["show", "1"],
    ["why", "1"],
    ["diff", "v1", "v2"],
    ["audit"],
    ["approve", "v1"],
    ["approvals"],
    ["veto", "1", "--because", "asked"],
    ["pin", "1", "--because", "asked"],
    ["release", "1"],
    ["decisions"],
    ["desk"],
    ["compare"],
    ["study", "small"],
    ["repeats"],
    ["merge", "v1", "out"],
    ["store"],
    ["erase", "0" * 32, "--because", "asked"],
)


def test_every_command_is_asked_with_parameters_that_cannot_be_read():
    assert {words[0] for words in COMMANDS} == {command.name for command in app.registered_commands}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    "text", ["a: [1", "\tscores: {}\n", "", "models: {}\nmodels: {}\n"], ids=["bracket", "tab", "empty", "twice"]
)
def test_parameters_that_cannot_be_read_are_the_same_error_of_every_command(tmp_path, monkeypatch, words, text):
    from flows import params

    (tmp_path / "params.yaml").write_text(text)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(params.ParamsError) as refused:
        params.read()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert done.stderr == f"error: {refused.value}\n"


@pytest.mark.parametrize("command", ["store", "verify"])
def test_a_command_that_is_long_at_work_says_so_in_a_terminal_alone(real_copy, command):
    told = {"store": "looking at what .cache holds", "verify": "reading all that is kept"}[command]
    shown = run_in_terminal([*TAMIS, command], real_copy.root)
    assert (shown.status, told in shown.text) == (0, True), shown.text
    done = CliRunner().invoke(app, [command])
    assert (done.exit_code, told in done.output) == (0, False), done.output
