"""The blocks of README.md and docs/, and how each kind is tested.

A page is a session: its blocks run from top to bottom, in a toy project of its own. What a fenced block is, its
language says; a comment `<!-- test: KIND -->` on the line before it says more, where more must be said:

sh                every line runs in the toy project. `make` lines are only looked up in the Makefile, `export` lines
                  are skipped, and a word `ID` stands for an example's id.
sh, slow          every line runs with the real models in a copy of this project, where slow tests are asked for.
sh, help          the command is long or does not end: its options are looked up in its own help.
sh, network       needs another machine: only its syntax is checked.
yaml              settings: accepted when merged into the committed params.yaml, and into the toy project's for the
                  lines that follow. `versions` is replaced whole.
yaml, accepted    the first alone: one of several ways, or of data that the toy project does not have.
json, file NAME   and yaml, file NAME: the block is written to NAME in the toy project.
python            runs in the toy project.
python, wheel     runs where the built wheel is installed and nothing of this folder is on the path (slow).
text              after a block of `sh` lines: what its last command printed. Columns are compared, no values.
text, as it is    text that nobody prints.
math              a formula.
"""

import csv
import io
import json
import re
from dataclasses import dataclass

from worlds.projects import ROOT

BLOCK = re.compile(r"(?:^<!-- test: ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WRITTEN = "docs/reference/"  # pages that docs/generate.py writes: nothing in them is to be run


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int  # of its first line in the page, from 1
    language: str
    kind: str  # what the comment before it says; "" without one
    text: str

    @property
    def place(self) -> str:
        """Return where it stands, for messages."""
        return f"{self.page}:{self.line}"


def list_pages() -> list[str]:
    """Return README.md and the pages of docs/ that people write, by their paths in the project."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *(page for page in found if not page.startswith(WRITTEN))]


def read_blocks(page: str) -> list[Block]:
    """Return the blocks of a page, from top to bottom."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[1] or "", found[3])
        for found in BLOCK.finditer(text)
    ]


def list_lines(block: Block) -> list[str]:
    """Return the commands of a `sh` block: a line each, without the comment behind it; a backslash joins two.

    >>> list_lines(Block("a.md", 1, "sh", "", "tamis run v1   # one version\\n# or\\ntamis \\\\\\n  run\\n"))
    ['tamis run v1', 'tamis run']
    """
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    return [line for line in (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines) if line]


def read_columns(shown: str) -> list[list[str]]:
    """Return the headings of what a command printed: of each boxed table, of CSV, or the keys of a JSON object.

    >>> read_columns("id,rank\\n7,0\\n"), read_columns('{\\n  "id": "7",\\n  "examples": [\\n')
    ([['id', 'rank']], [['id', 'examples']])
    >>> read_columns("┏━━━━┳━━━━━━┓\\n┃ id ┃ rank ┃\\n┡━━━━╇━━━━━━┩\\n│ 7  │ 0    │\\n")
    [['id', 'rank']]
    """
    boxed = [line for line in shown.splitlines() if line.startswith("┃")]
    if boxed:
        return [[cell.strip() for cell in line.strip("┃").split("┃")] for line in boxed]
    if shown.startswith("{"):
        return [re.findall(r'^  "(\w+)":', shown, re.MULTILINE)]
    return [next(csv.reader(io.StringIO(shown)), [])]


def read_printed(printed: str) -> list[list[str]]:
    """Return the headings of what a command really printed; a JSON object may have more keys than a page shows."""
    return [list(json.loads(printed))] if printed.startswith("{") else read_columns(printed)


def read_targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
