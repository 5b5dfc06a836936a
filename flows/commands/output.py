"""How results are shown: a table for people, CSV or JSON for programs; text of data is text, never markup or control.

Data goes to stdout, talk to stderr. CSV and JSON hold the data as they are; a table in a terminal makes control
characters visible, and cuts what is too long to be read there.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.forms import dump, write_csv
from flows.stage import say, show_lines, show_plain
from flows.told import distinct

LONGEST = 200  # characters of a cell in a terminal
NARROWEST = 12  # characters that a column of longer text has at least; a table with less room becomes a list of rows
PIECE = 4096  # characters that are written at once
CLOSED = 141  # exit status: what shells report of a program that SIGPIPE ended, and what `set -o pipefail` looks for
PADDING = 3  # characters of a column that are its frame
Json = Annotated[bool, typer.Option("--json", help="Print a JSON array of objects, a row each.")]
FORMS = ("table", "json", "csv", "parquet")
Format = Annotated[
    str | None,
    typer.Option("--format", help="table, json, csv or parquet; else a table in a terminal, and CSV for programs."),
]
screen = Console(highlight=False, markup=False, emoji=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on stderr, in a terminal, what a command is at before it has anything to say."""
    with Console(stderr=True).status(plain(what)):
        yield


def show_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool = False) -> None:
    """Print rows on stdout: as JSON where that is asked for, as a table in a terminal, else as CSV."""
    if as_json:
        keys = distinct(names)
        show_json([dict(zip(keys, row, strict=True)) for row in rows])
    elif screen.is_terminal:
        _show_table(names, [[_text(value) for value in row] for row in rows])
    else:
        write(write_csv(names, rows))


def name_form(form: str | None, as_json: bool) -> str | None:
    """Return which of FORMS is asked for, by `--format` or by `--json`; None: by neither.

    Raises:
        ValueError: they ask for two, or for one that is none.
    """
    if form not in (None, *FORMS):
        raise ValueError(f"{form!r} is no format; known: {', '.join(FORMS)}")
    if as_json and form not in (None, "json"):
        raise ValueError(f"--json and --format {form} ask for two forms; give one of them")
    return "json" if as_json else form


def show_as(form: str | None, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows on stdout in the form of `name_form`, or as `show_rows` does."""
    match form:
        case None | "json":
            show_rows(names, rows, as_json=form == "json")
        case "table":
            _show_table(names, [[_text(value) for value in row] for row in rows])
        case "csv":
            write(write_csv(names, rows))
        case "parquet":
            _write_parquet(names, rows)


def _write_parquet(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a Parquet file to stdout, which must lead into a file or a program."""
    if screen.is_terminal:
        raise ValueError("Parquet is not for a terminal; write it to a file: `... --format parquet > rows.parquet`")
    from tasks.catalogue.answers import write_parquet

    sys.stdout.flush()
    sys.stdout.buffer.write(write_parquet(distinct(names), rows))
    sys.stdout.buffer.flush()


def show_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a JSON array of objects, a line each.

    >>> show_json([{"a": Decimal("1.5"), "when": date(2026, 11, 29)}, {"a": float("nan"), "when": b"x"}])
    [{"a": 1.5, "when": "2026-11-29"},
     {"a": null, "when": "eA=="}]
    """
    write("[" + ",\n ".join(dump(row) for row in rows) + "]\n")


def show_object(value: Mapping[str, Any]) -> None:
    """Print one JSON object, a line for each of its values."""
    write(dump(value, indent=2) + "\n")


def show_text(*parts: Table | Text | str) -> None:
    """Print tables and lines of text on stdout; text as it is, never as markup."""
    with screen.capture() as captured:
        for part in parts:
            screen.print(plain(part) if isinstance(part, str) else part, soft_wrap=not isinstance(part, Table))
    write(captured.get())


def write(text: str) -> None:
    """Write to stdout; where nobody reads there any more, end the process quietly, as `yes | head` does."""
    try:
        for start in range(0, len(text), PIECE):  # Python does not notice a closed pipe in one long write
            sys.stdout.write(text[start : start + PIECE])
        sys.stdout.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered is flushed once more at exit
        raise typer.Exit(CLOSED) from error


def plain(text: str) -> Text:
    """Return text for a terminal, without markup and without control characters."""
    return Text(show_plain(text), overflow="fold")


def plain_lines(text: str, style: str = "") -> Text:
    """Return text of several lines for a terminal, likewise, in a style where the terminal has it."""
    return Text(show_lines(text), style, overflow="fold")


def _show_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, or a list of rows where its columns would be too narrow to be read."""
    cut = sum(len(cell) > LONGEST for row in rows for cell in row)
    rows = [[cell if len(cell) <= LONGEST else cell[: LONGEST - 1] + "…" for cell in row] for row in rows]
    columns = [[show_plain(name), *cells] for name, *cells in zip(names, *rows, strict=True)]
    least = [min(NARROWEST, max(map(len, column))) for column in columns]
    if sum(least) + PADDING * len(least) + 1 > screen.width:
        _show_list(names, rows)
    else:
        table = Table()
        for column, width in zip(columns, least, strict=True):
            table.add_column(Text(column[0]), overflow="fold", min_width=width)
        for row in rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        show_text(table)
    if cut:
        cells = "1 cell is" if cut == 1 else f"{cut} cells are"
        say(f"{cells} longer than {LONGEST} characters and cut here; --json, or CSV (`| cat`), shows all")


def _show_list(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as a block, a line for each of its values that is not empty."""
    for number, row in enumerate(rows, start=1):
        block = Table.grid(padding=(0, 2))
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            if cell:
                block.add_row(plain(name), Text(cell, overflow="fold"))
        show_text(f"row {number} of {len(rows)}", block)


def _text(value: Any) -> str:
    """Return a value as text for a table, each line break and control character made visible."""
    return "" if value is None else show_plain(str(value).replace("\r\n", "\n").replace("\n", "↵ "))
