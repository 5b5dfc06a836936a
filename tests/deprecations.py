"""A pytest plugin: a deprecation fails where a line of ours caused it; of foreign ones, with --latest, only unlisted.

pyproject.toml lets deprecations pass as `always`, so that all of them arrive here, those of the warnings module as well
as those that a package only logs. Whose they are says the stack, not `stacklevel`, which packages set at will:
the *source* is the package that warns, the *cause* the nearest caller outside it. What the standard library and the
wrappers of decorators do on the way is passed over.
"""

import logging
import re
import sys
import tomllib
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

LIST = Path(__file__).with_name("foreign_deprecations.toml")
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
OURS = "ours"
PYTHON = "python"
MACHINERY = {"warnings", "logging", __name__}
FOUND: list[str] = []  # what is still to be told, by any thread
WRAPPERS = {"torch.utils._contextlib", "jaxtyping._decorator"}  # they stand between a caller and whom it calls


@dataclass(frozen=True)
class Blame:
    """Who warned, who caused it, and where the cause stands."""

    source: str
    cause: str
    place: str


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --latest."""
    parser.addoption("--latest", action="store_true", help=f"fail on foreign deprecations that are not in {LIST.name}")


def pytest_configure(config: pytest.Config) -> None:
    """See every record of every logger, from now on."""
    make = logging.getLogRecordFactory()

    def make_record(*arguments, **more) -> logging.LogRecord:
        record = make(*arguments, **more)
        if record.levelno >= logging.WARNING and re.search("deprecat", record.getMessage(), re.IGNORECASE):
            judge(record.getMessage(), sys._getframe(1), config.getoption("latest"))
        return record

    logging.setLogRecordFactory(make_record)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Judge what imports warn of."""
    watch(session.config)
    result = yield
    if found := take_found():
        raise pytest.UsageError(found)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Judge what a test warns of, with its fixtures."""
    watch(item.config)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test for what it and its fixtures warned of."""
    result = yield
    fail_found()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test for what its end warned of."""
    result = yield
    fail_found()
    return result


def watch(config: pytest.Config) -> None:
    """Judge the warnings that are shown from now on, until pytest puts its own way of showing them back."""
    shown = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, CATEGORIES):
            judge(str(message), sys._getframe(1), config.getoption("latest"))
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def judge(message: str, frame: FrameType, latest: bool) -> None:
    """Note a deprecation that is ours or, with the latest packages, foreign and not listed.

    It is noted, not raised: once raised in a thread of Prefect's, the main thread waited for an answer for ever.
    """
    blame = find_blame(frame)
    if blame.cause == OURS:
        FOUND.append(f"{message} [warned by {blame.source}, caused at {blame.place}; mend this line]")
    elif latest and not is_listed(blame, message):
        FOUND.append(
            f"{message} [warned by {blame.source}, caused by {blame.cause} at {blame.place}; list it in {LIST.name}]"
        )


def take_found() -> str:
    """Return what was noted since the last time, each once."""
    texts = list(dict.fromkeys(FOUND))
    FOUND.clear()
    return "\n".join(texts)


def fail_found() -> None:
    """Fail where a deprecation was noted."""
    if found := take_found():
        pytest.fail(found, pytrace=False)


def find_blame(frame: FrameType) -> Blame:
    """Return who warned and who caused it, from the stack at the warning."""
    frames = [each for each, _ in traceback.walk_stack(frame) if module_of(each) not in MACHINERY]
    warner = frames[0]
    code = warner.f_code
    # Compiled code has no frame of its own: where nothing warns by name, the line called something that did.
    by_name = any("warn" in name for name in (*code.co_names, *code.co_varnames, *code.co_freevars))
    source = owner(warner) if by_name else PYTHON
    if source == OURS:
        return Blame(OURS, OURS, place_of(warner))
    outside = (each for each in frames if owner(each) not in {source, PYTHON} and module_of(each) not in WRAPPERS)
    cause = next(outside, warner)
    return Blame(source, owner(cause), place_of(cause))


def module_of(frame: FrameType) -> str:
    """Return the dotted name of the module that a frame runs."""
    return frame.f_globals.get("__name__", "")


def owner(frame: FrameType) -> str:
    """Return the package whose line a frame runs; one name for all of ours and one for Python's own."""
    package = module_of(frame).partition(".")[0]
    file = frame.f_code.co_filename
    if "site-packages" in Path(file).parts:
        return package
    made = file.startswith("<") and not file.startswith("<doctest ")
    return PYTHON if made or package in sys.stdlib_module_names else OURS


def place_of(frame: FrameType) -> str:
    """Return a frame's file and line."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@cache
def read_list() -> list[dict[str, str]]:
    """Return the foreign deprecations that we know of and cannot mend."""
    return tomllib.loads(LIST.read_text(encoding="utf-8")).get("deprecation", [])


def is_listed(blame: Blame, message: str) -> bool:
    """Tell whether the list has a foreign deprecation: who warned, who caused it, and a part of the message."""
    return any(
        (each["source"], each["cause"]) == (blame.source, blame.cause) and each["message"] in message
        for each in read_list()
    )
