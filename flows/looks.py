"""First looks at raw files, taken and shown to people: a sample's within seconds, then what all rows say."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from flows import params
from flows.commands.output import plain, plain_lines, screen, show_text
from flows.interrupts import cleaning
from flows.stage_calls import CACHE, ERASED, find_artifacts, language
from flows.told import SPLIT, count, tell_erased
from tasks.examples.settings import ExamplesSettings

FILES, UNREAD, TOPICS = 20, 10, 10  # lines that are shown of each
TEXT = 160  # characters of a reason that are shown
LEARNT, LEFT_OUT = "bold green", "dim"  # styles
QUIET, PAUSE = 1, 0.2  # seconds before the first line of progress, and between two


def take_looks(version: str, raw: Path, previous: str, settings: ExamplesSettings) -> Iterator[Any]:
    """Yield a look at a sample of raw rows, where there are many, and then one at all of them.

    Rows lie meanwhile in the project's cache, or in a temporary folder where the cache cannot be written.

    Args:
        version: the version whose rows they are.
        raw: a file, a folder or a pattern.
        previous: the version that it continues from.
        settings: how they are read.
    """
    from tasks.erasure.record import list_same
    from tasks.first_look import look

    model = language(params.read(bare=True))
    source = look.open_source(raw, version, model=model, settings=settings, erased=list_same(ERASED))
    first = look.look_at_sample(source)
    if first is not None:
        yield first
    shown = first.examples if first is not None else ()
    scratch = open_scratch(CACHE / f"look-{os.getpid()}")
    remove = partial(shutil.rmtree, scratch, ignore_errors=True)
    with cleaning(remove), counting("rows read") as tell:
        try:
            exact = look.look_at_all(source, find_artifacts(previous), scratch, shown=shown, tell=tell)
        finally:
            remove()
    yield exact


def tell_commonest(look: Any) -> str:
    """Return the commonest reason for which rows are rejected, and the first of these rows; "" where none is."""
    if not look.rejects:
        return ""
    kind = look.rejects[0]
    return f"; first of the commonest kind ({kind.rows:,} of {count(look.rejected, 'row')}): {kind.first[0].tell()}"


def open_scratch(place: Path) -> Path:
    """Return a folder for files that are read back: at a place, or a temporary one where that cannot be written.

    Raises:
        ParamsError: neither can be.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        try:
            return Path(tempfile.mkdtemp(prefix="tamis-"))
        except OSError as error:
            raise params.ParamsError(
                f"{place.parent} cannot be written ({refused.strerror}), nor can a temporary folder; allow one of "
                "them, or set TMPDIR to a folder that can be"
            ) from error
    return place


@contextmanager
def counting(label: str) -> Iterator[Callable[[int], None]]:
    """Show on stderr how many there are so far, and how fast they come."""
    start = time.monotonic()
    shown = start + QUIET
    columns = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    options = {"auto_refresh": False, "transient": True, "disable": not console.is_terminal}
    with Progress(columns, console=console, **options) as progress:
        bar = progress.add_task("", total=None)

        def tell(rows: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown > PAUSE:
                shown = now
                rate = rows / max(now - start, 1e-9)
                progress.update(bar, description=f"{rows:,} {label}, {rate:,.0f} per second", refresh=True)

        yield tell


def show_look(look: Any, title: str, previous: str, *, examples: bool) -> None:
    """Print what raw files hold; where that is known of a sample alone, the headings say so.

    Args:
        look: what was found.
        title: the version and its files.
        previous: the version that it continues from.
        examples: show these, too.
    """
    of = "" if look.sample is None else " in the sample"
    show_text(f"{title}: {tell_extent(look)}", *_list_files(look, of), *_list_unread(look))
    for number, one in enumerate(look.examples if examples else (), start=1):
        heading = f"example {number} of {len(look.examples)}, {one.file}:{one.line}"
        tokens = f"{one.tokens:,} tokens, {one.learnt_tokens:,} of them learnt"
        show_text("", f"{heading} ({tokens}):", *(_mark(pieces) for pieces in one.sequences))
    show_text("", *_tell_rows(look, previous, of), _list_spreads(look, of), *_list_topics(look, of))
    if look.rejects:
        show_text(_list_rejects(look, of))
    if look.foreseen is not None and look.foreseen.stops is not None:
        show_text(f"a run would stop: {look.foreseen.stops}")


def tell_extent(look: Any) -> str:
    """Return in words what the figures of a look are of."""
    if look.sample is None:
        return f"all {count(look.rows, 'row')}"
    of = f"{look.sample.of:,} rows" if look.sample.whole else f"the first {look.sample.of:,} rows"
    return f"a sample of {look.sample.rows:,} of {of}; exact figures follow"


def _list_files(look: Any, of: str) -> Iterator[Table | str]:
    table = Table("file", "format", _right(f"rows{of}"), _right("rejected"))
    for one in look.files[:FILES]:
        table.add_row(plain(one.file), one.format, f"{one.rows:,}", f"{one.rejected:,}")
    yield table
    if len(look.files) > FILES:
        yield f"and {len(look.files) - FILES:,} more files"


def _list_unread(look: Any) -> Iterator[str]:
    for one in [one for one in look.files if one.unread][:UNREAD]:
        yield f"fields of {one.file} that are not read: {', '.join(one.unread)} (examples.fields, examples.keep)"
    for one in look.not_read[:UNREAD]:
        yield f"not read: {one.name} ({one.reason})"
    if len(look.not_read) > UNREAD:
        yield f"and {len(look.not_read) - UNREAD:,} more files are not read"


def _mark(pieces: Sequence[Any]) -> Text | str:
    """Return an example whose learnt parts have a style, or marks around them where there are no styles."""
    if not screen.is_terminal:
        from tasks.first_look.marked import write_plain

        return plain_lines(write_plain(pieces))
    styles = ((plain_lines(f"\n{one.text}\n", LEFT_OUT) if one.left_out else one) for one in pieces)
    return Text("").join(
        one if isinstance(one, Text) else plain_lines(one.text, LEARNT if one.learnt else "") for one in styles
    )


def _tell_rows(look: Any, previous: str, of: str) -> Iterator[str]:
    """Yield lines of counts: how many rows are good, and what becomes of them."""
    told = [f"{count(look.rows, 'row')} read{of}", f"{look.rejected:,} rejected"]
    if look.erased:
        told.append(tell_erased(look.erased))
    if look.duplicates is not None:
        told.append(f"{look.duplicates:,} with the text of an earlier row")
    if look.near_duplicates is not None:
        told.append(f"{look.near_duplicates:,} others similar to an earlier row")
    yield ", ".join(told)
    if look.near_held_out:
        yield f"{count(look.near_held_out, 'row')} similar to a held-out row (examples.drop_near_held_out)"
    if look.near_validation:
        yield f"{count(look.near_validation, 'row')} similar to a validation row (examples.drop_near_held_out)"
    if look.planted:
        yield f"planted in the pool: {_list_counts(look.planted)}"
    for note, rows in look.notes.items():
        yield f"{count(rows, 'row')}: {note}"
    if look.split_rows:
        yield f"{count(look.split_rows, 'row')}: {SPLIT}"
    if look.foreseen is None:
        return
    if look.foreseen.changes is None:
        yield f"{previous} is not made yet, so what is new against it is not known"
    elif previous != params.BASE:
        yield f"against {previous}: {_list_counts(look.foreseen.changes)}"
    if look.foreseen.used is not None:
        yield f"a run would use: {_list_counts(look.foreseen.used)}"


def _list_counts(counts: Any) -> str:
    """Return named counts in words.

    >>> _list_counts({"pool": 1200, "held_out": 40})
    '1,200 pool, 40 held out'
    """
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()) or "no row"


def _list_spreads(look: Any, of: str) -> Table:
    table = Table(f"per row{of}", *map(_right, ("median", "95% have at most", "longest", "in all")))
    for name in ("turns", "tokens", "learnt_tokens"):
        one = getattr(look, name)
        numbers = (one.median, one.p95, one.longest, one.total)
        table.add_row(name.replace("_", " "), *(f"{number:,}" for number in numbers))
    return table


def _list_topics(look: Any, of: str) -> Iterator[Table | str]:
    table = Table("topic", _right(f"rows{of}"))
    for one in look.topics[:TOPICS]:
        table.add_row(plain(one.topic), f"{one.rows:,}")
    yield table
    if len(look.topics) > TOPICS:
        yield f"and {len(look.topics) - TOPICS:,} more topics"


def _list_rejects(look: Any, of: str) -> Table:
    table = Table("rejected as", _right(f"rows{of}"), "first")
    for kind in look.rejects:
        first = "\n".join(f"{one.file}:{one.line}: {shorten(one.detail)}" for one in kind.first)
        table.add_row(plain(kind.kind), f"{kind.rows:,}", plain_lines(first))
    return table


def shorten(text: str, longest: int = TEXT) -> str:
    """Return a text that is cut where it is long, with a sign that it is.

    >>> shorten("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _right(heading: str) -> Column:
    return Column(heading, justify="right")
