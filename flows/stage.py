"""One stage, run: the only implementation of every stage, for `dvc repro` and for the flow alike.

    python -m flows.stage NAME VERSION

It imports the one stage that it runs, and neither Prefect nor DVC.
"""

import builtins
import errno
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows import params
from flows.environment import name_libraries, name_machine
from flows.graph.stages import needs, read_stages
from flows.stage_calls import CACHE, SCORING, STAGES, Map, find_folders, folder, name_models, refuse_early
from flows.told import tell_notes

RUN = "run.json"  # of every run: when it was, how long it took, with which libraries
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)  # which have a way out
HARMLESS = "\u00a0\u3000\u200c\u200d"  # spaces and joiners that writing needs, which Python does not call printable

T = TypeVar("T")
R = TypeVar("R")


class InputsChanged(ValueError):  # noqa: N818
    """A stage's inputs were edited while it ran, so its output belongs to no known inputs."""


def run(name: str, version: str, *, map: Map | None = None) -> None:
    """Run one stage for one data version and write its artifacts.

    Args:
        name: the stage, `utility`.
        version: the data version, `v1`.
        map: runs a function over the stage's shards and yields the results in order; one after the other by default.

    Raises:
        ParamsError: unknown stage or version, or parameters that cannot be used.
        InputsChanged: a file or a parameter was edited meanwhile.
        ModelsChanged: a model is not the one that is recorded, before or after.
        BudgetError: the stage scores rows for a choice that the pool cannot keep.
    """
    address = f"{name}@{version}"
    with named(address), recorded(address, folder(name, version)) as notes:
        from flows.mirror import mirrored
        from flows.model_records import refuse_changed
        from tasks.artifacts.stores import in_use

        values = params.read()
        reads, _ = needs(address)
        refuse_changed(vars(values.models), reads)
        take_halvings()  # of a stage that failed before in this process
        with in_use(CACHE), mirrored(values.mirror.url, name, partial(name_models, values), say) as through:
            folders = find_folders(values, version)
            if name in SCORING:
                with named(f"selection@{version}"):
                    refuse_early(values, folders)
            notes.update(STAGES[name](values, folders, through(map or partial(in_order, label=address))) or {})
        refuse_changed(vars(values.models), reads)
        notes |= {"device": _name_device(values.models.device), "dtype": values.models.dtype}
        notes |= {"runtime": vars(values.runtime), "halved": [vars(one) for one in take_halvings()]}
    for line in tell_notes(version, notes):
        say(f"{address:<16} {line}")


@contextmanager
def named(address: str) -> Iterator[None]:
    """Let an error say which stage of which data version it is of, as `format_error` tells it."""
    try:
        yield
    except Exception as error:
        error.stage = getattr(error, "stage", address)
        raise


@contextmanager
def recorded(address: str, out: Path) -> Iterator[dict[str, Any]]:
    """Time what runs inside, write `run.json` into `out`, and refuse inputs that moved meanwhile.

    Yields a dict for what a stage says of this one run (how much it computed, say), which `run.json` keeps, too.
    """
    before, code = fingerprint(address), sources([address])  # before anything of ours is imported

    from tasks.artifacts.tables import write_json

    created, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    notes: dict[str, Any] = {}
    yield notes
    name, _, version = address.partition("@")
    record = {"stage": name, "version": version, "created": created}
    record |= {"code": installed("tamis"), "sources": _summary(code), "machine": name_machine()}
    record["libraries"] = name_libraries()
    write_json({**notes, **record, "seconds": round(time.monotonic() - start, 1)}, out / RUN)
    refuse_moved(address, before, fingerprint(address))


def take_halvings() -> list[Any]:
    """Return the sizes that this process has halved since the last call because memory was short."""
    memory = sys.modules.get("tamis.memory")  # of a stage that runs no model it is not imported
    return memory.take_halvings() if memory else []


def last_run(address: str) -> dict[str, Any]:
    """Return what `run.json` says of a stage's last run; empty where it never ran, or where that cannot be read."""
    name, _, version = address.partition("@")
    try:
        found = json.loads((folder(name, version) / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no more than talk: no stage reads it, and the next run writes it again
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(address: str, versions: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the digest of every file and the value of every parameter that dvc.yaml lists for a stage.

    Args:
        address: name and version, `utility@v1`.
        versions: data versions; None: those of params.yaml.
    """
    files, values = needs(address, versions=versions)
    return {path: _digest(Path(path)) for path in files} | {key: repr(value) for key, value in values.items()}


def sources(addresses: Iterable[str]) -> dict[str, str]:
    """Return the digest of every module that dvc.yaml lists for some stages, by its path."""
    stages = read_stages()
    named = (stages[address.partition("@")[0]]["do"].get("deps", []) for address in addresses)
    modules = {path for files in named for path in files if path.endswith(".py")}
    return {path: _digest(Path(path)) for path in sorted(modules)}


def refuse_edited(address: str, loaded: Mapping[str, str]) -> None:
    """Raise InputsChanged where a module of a stage is not as it was when the process could first import it.

    Python imports a module once, while DVC takes its digest at each stage: an edit in between would record what the
    old code made as made by the new one.
    """
    edited = [path for path, digest in sources([address]).items() if loaded.get(path) != digest]
    if edited:
        was = "was" if len(edited) == 1 else "were"
        raise InputsChanged(
            f"{', '.join(edited)}, of {address}, {was} edited after this process started; "
            "its output is not recorded: run again"
        )


def format_error(error: BaseException) -> str:
    """Return an error's message and its notes, a line each: with its stage, if any, and its type, if none of ours.

    Control characters, which may come from the data, are made visible.

    >>> format_error(FileNotFoundError("no x"))
    'FileNotFoundError: no x'
    """
    message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
        from tasks.artifacts.tables import tell_refused

        message = tell_refused(error)
    elif isinstance(error, OSError) and error.errno in FULL:  # of whoever does not say which file it was
        from tasks.artifacts.tables import MAKE_ROOM

        message = f"a file could not be written: {error.strerror}. {MAKE_ROOM}"
    address = getattr(error, "stage", "")
    place = f"{address}: " if address not in message else ""
    text = "\n".join([f"{place}{message}", *getattr(error, "__notes__", [])])
    return show_lines(text)


def refuse_moved(address: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise InputsChanged where two fingerprints differ, naming the places."""
    moved = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if moved:
        raise InputsChanged(
            f"{len(moved)} of {len(before)} inputs of {address} changed while it ran: {', '.join(moved[:3])}; "
            "its output is not recorded: run again"
        )


def in_order(function: Callable[[T], R], items: Sequence[T], *, label: str) -> Iterator[R]:
    """Run a function over items one after the other, with progress."""
    return counted(builtins.map(function, items), len(items), label=label)


def counted(results: Iterable[R], total: int, *, label: str) -> Iterator[R]:
    """Yield results while showing on stderr how many there are, how fast they come, and the time left.

    Of no results nothing is shown.
    """
    if not total:
        yield from results
        return
    label_column, rate_column = (
        TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[rate]")
    )
    columns = label_column, BarColumn(), MofNCompleteColumn(), rate_column
    start = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(label, total=total, rate="")
        for done, result in enumerate(results, start=1):
            rate = done / max(time.monotonic() - start, 1e-9)
            progress.update(bar, completed=done, rate=f"{rate:,.1f} per second")
            yield result


def say(text: str) -> None:
    """Print talk on stderr; control characters, which may come from the data, are made visible."""
    sys.stderr.write(show_lines(text) + "\n")  # at once: other processes speak, too
    sys.stderr.flush()


def show_lines(text: str) -> str:
    """Return lines of text, each as `show_plain` shows it."""
    return "\n".join(map(show_plain, text.split("\n")))


def show_plain(text: str) -> str:
    r"""Return a line of text in which nothing can move a terminal's cursor, colour it, or turn the writing around.

    >>> print(show_plain("\x1b[31mred\x1b[0m, a tab: \t, an arrow: →, from right to left: \u202e"))
    \x1b[31mred\x1b[0m, a tab: \t, an arrow: →, from right to left: \u202e
    """
    return "".join(one if one.isprintable() or one in HARMLESS else repr(one)[1:-1] for one in text)


def _summary(digests: Mapping[str, str]) -> str:
    """Return one digest over files' paths and digests."""
    return hashlib.sha256("\n".join(f"{path} {digest}" for path, digest in digests.items()).encode()).hexdigest()


def _digest(path: Path) -> str:
    """Return the digest of a file, or of all files of a folder; "missing" where there is neither."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return _summary({str(file.relative_to(path)): _digest(file) for file in files})
    if not path.exists():
        return "missing"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name_device(asked: str) -> str:
    """Return what kind of device a stage had: cuda where it was to be had and was not refused, else cpu."""
    torch = sys.modules.get("torch")  # of a stage that runs no model it is not imported
    return "cuda" if asked != "cpu" and torch is not None and torch.cuda.is_available() else "cpu"


def speak(address: str, work: Callable[[], None]) -> int:
    """Do what a process is for, and return its exit status; an error is one message on stderr and status 1.

    Args:
        address: of the stage that an error is of.
        work: that is done.
    """
    try:
        with named(address):
            work()
    except Exception as error:
        if not isinstance(error, ValueError | OSError):
            say(traceback.format_exc())
        say(format_error(error))
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run `NAME VERSION`; an error is one message on stderr and exit status 1, a crash has its traceback above that."""
    if len(arguments) != 2:
        print("usage: python -m flows.stage NAME VERSION", file=sys.stderr)
        return 2
    return speak("@".join(arguments), partial(run, *arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
