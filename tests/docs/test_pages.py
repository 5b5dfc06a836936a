"""Every block of README.md and docs/ does what it says; worlds/documents.py tells how each kind is tested."""

import csv
import io
import shlex
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner
from worlds.documents import Block, list_lines, list_pages, read_blocks, read_columns, read_printed, read_targets
from worlds.projects import ROOT, Project, environment

from flows import cli, params

PAGES = list_pages()
LONG = {
    f"docs/how-to/{name}.md"
    for name in (
        *("compare", "erase", "forgetting", "insurance", "less-memory", "mask", "new-version", "own-data", "own-model"),
        *("right-or-wrong", "target-task", "unattended", "wrong-rows"),
    )
}
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
KINDS = {
    "sh": {"", "slow", "help", "network"},
    "yaml": {"", "accepted", "file"},
    "json": {"file"},
    "python": {"", "wheel"},
    "text": {"", "as it is"},
    "math": {""},
}


@dataclass
class Session:
    """A page's session in the toy project."""

    project: Project
    printed: str  # by the last command
    before: str = ""  # the language of the block before; "" where it is of a kind of its own


def place_of(block: Block) -> str:
    return block.place


def test_there_are_blocks_of_every_kind():
    assert len(BLOCKS) > 30
    found = {(block.language, block.kind.partition(" ")[0]) for block in BLOCKS}
    assert {("sh", ""), ("yaml", ""), ("text", ""), ("python", "wheel")} <= found


@pytest.mark.parametrize("block", BLOCKS, ids=place_of)
def test_a_block_is_of_a_known_kind(block):
    assert block.language in KINDS, f"{block.place} is {block.language or 'of no language'}; known: {', '.join(KINDS)}"
    kind = block.kind.partition(" ")[0] if block.kind.startswith("file ") else block.kind
    assert kind in KINDS[block.language], f"{block.place} is of kind {kind!r}; see worlds/documents.py"


@pytest.mark.parametrize("page", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in PAGES])
def test_the_blocks_of_a_page_run_from_top_to_bottom(page, world, project):
    session = Session(project, world.printed)
    for block in read_blocks(page):
        do = DOING.get((block.language, block.kind.partition(" ")[0]))
        if do is not None and (block.language != "text" or (session.before, block.kind) == ("sh", "")):
            do(block, session)
        session.before = "" if block.kind else block.language


@pytest.mark.parametrize("page", PAGES)
def test_settings_are_accepted_in_the_committed_params(page):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for block in read_blocks(page):
        if block.language == "yaml" and not block.kind.startswith("file "):
            merged = put(block.text, text, block.place)
            text = merged if not block.kind else text


def put(addition: str, text: str, place: str) -> str:
    """Return params.yaml's text with a page's settings in it, checked; `versions` is replaced whole."""
    editor = YAML()
    given, whole = editor.load(addition), editor.load(text)
    versions = given.pop("versions", None)
    if versions is not None:
        whole["versions"] = versions
    streams = StringIO(), StringIO()
    editor.dump(whole, streams[0])
    editor.dump(given, streams[1])
    return params.merge(streams[0].getvalue(), streams[1].getvalue() if given else "{}", place)


def set_params(block: Block, session: Session) -> None:
    path = session.project.root / "params.yaml"
    path.write_text(put(block.text, path.read_text(), block.place))


def write_file(block: Block, session: Session) -> None:
    path = session.project.root / block.kind.split()[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)


def run_python(block: Block, session: Session) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages' deprecations, which a reader sees and is not stopped by
        exec(compile(block.text, block.place, "exec"), {"__name__": "page"})


def run_lines(block: Block, session: Session) -> None:
    for line in list_lines(block):
        session.printed = run_line(line, block.place, session)


def run_line(line: str, place: str, session: Session) -> str:
    """Run a line as a person would; returns what it printed."""
    program, *words = shlex.split(line, posix=True)
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert set(targets) <= read_targets(), f"{place}: the Makefile has no {line!r}"
        return session.printed
    if program == "export":
        return session.printed
    if program == "tamis" and not set("|;&<") & set(words):
        return run_tamis(words, f"{place}: {line}")
    done = subprocess.run(
        ["bash", "-ec", line], cwd=session.project.root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{place}: {line}: {done.stdout}{done.stderr}"
    return done.stdout


def run_tamis(words: list[str], place: str) -> str:
    """Run the `tamis` command in this process; `> NAME` at the end keeps what it prints."""
    target = words[-1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    done = CliRunner().invoke(cli.app, [an_id() if word == "ID" else word for word in words])
    assert done.exit_code == 0, f"{place}: {done.output}"
    if target:
        Path(target).write_text(done.stdout)
    return done.stdout


def an_id() -> str:
    """Return the id of an example that was not chosen."""
    done = CliRunner().invoke(cli.app, ["sql", "SELECT id FROM subset WHERE NOT chosen ORDER BY id LIMIT 1"])
    return list(csv.reader(io.StringIO(done.stdout)))[1][0]


def compare_columns(block: Block, session: Session) -> None:
    shown, printed = read_columns(block.text), read_printed(session.printed)
    if block.text.startswith("{"):
        assert [name for name in printed[0] if name in shown[0]] == shown[0], block.place
    else:
        assert shown == printed[: len(shown)], block.place


def look_up_help(block: Block, session: Session) -> None:
    """Find the options of long commands in what these say of themselves: the help of `tamis`, a script's source."""
    for line in list_lines(block):
        program, *words = shlex.split(line)
        told = ""
        if program == "tamis":
            plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
            told = CliRunner(env=plain).invoke(cli.app, [words[0], "--help"]).output
        elif program.endswith("python"):
            told = (ROOT / words[0]).read_text(encoding="utf-8")
        else:
            assert program == "export" or shutil.which(program, path=environment()["PATH"]), f"{block.place}: {line}"
        for option in (word for word in words if word.startswith("--")):
            assert option in told or f"    {option[2:]}: Annotated[" in told, f"{block.place}: {line} has no {option}"


def check_syntax(block: Block, session: Session) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"


DOING = {
    ("sh", ""): run_lines,
    ("sh", "help"): look_up_help,
    ("sh", "network"): check_syntax,
    ("yaml", ""): set_params,
    ("yaml", "file"): write_file,
    ("json", "file"): write_file,
    ("python", ""): run_python,
    ("text", ""): compare_columns,
}
