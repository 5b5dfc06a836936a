"""`tamis sql`: how a question is given, what it may take, and that it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from worlds.commands import tamis
from worlds.projects import Project


@pytest.fixture
def project(two_versions) -> Project:
    """Two versions, as the current folder."""
    return two_versions


def test_a_question_is_read_from_stdin(project):
    assert (
        tamis("sql", "-", typed="SELECT count(*) AS n FROM subset").stdout
        == tamis("sql", "SELECT count(*) AS n FROM subset").stdout
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seconds", "0"], "0.0 seconds is no limit of a question"),
        (["--seconds", "nan"], "nan seconds is no limit of a question"),
        (["--gigabytes", "inf"], "inf gigabytes is no limit of a question"),
        (["--rows", "-1"], "-1 rows is no limit of a question"),
        (["--rows", "1"], "the answer has more than 1 rows"),
        (["--seconds", "0.2"], "no answer within 0.2 s; ask for less"),
    ],
)
def test_limits_of_a_question_are_given_and_kept(project, options, told):
    endless = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"
    done = tamis("sql", "FROM range(2)" if "--rows" in options else endless, *options)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {told}")


@pytest.mark.parametrize(
    "sql", ["SELECT list_sum(range(1000000000))", "SELECT length(repeat('x', 1000000000) || repeat('y', 1000000000))"]
)
def test_memory_that_the_database_does_not_count_is_limited(project, sql):
    asked = [sys.executable, "-m", "flows.cli", "sql", "--seconds", "30", "--gigabytes", "0.2", sql]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the answer takes more than 0.2 GB of memory; ask for less")


def test_a_question_that_hears_no_interruption_ends_with_its_process(project, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "made")
    deaf = "SELECT list_sum(list_transform(range(50000000), lambda x: x * 2 + 1))"
    asked = [sys.executable, "-m", "flows.cli", "sql", "--seconds", "0.2", "--revision", "HEAD", deaf]
    held = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(asked, env=held, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no answer within 0.2 s; ask for less")
    assert list(scratch.iterdir()) == []


def test_a_revision_is_named_where_something_of_it_cannot_be_read(project):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text("versions: [")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "broken")
    Path("params.yaml").unlink()
    project.git("commit", "--quiet", "--all", "--message", "gone")
    Path("params.yaml").write_text(text)
    assert tamis("sql", "--revision", "HEAD~1", "FROM subset").stderr.startswith("error: HEAD~1:params.yaml ")
    assert tamis("sql", "--revision", "HEAD", "SELECT count(*) > 0 AS made FROM subset").stdout == "made\nTrue\n"
