"""The two sides of a difference: versions, a version at revisions of git, or its choices by selectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import params

ROOT = Path(".")


@contextmanager
def open_version(version: str) -> Iterator[Any]:
    """Yield a version as it is now, as a `Side` of tasks.catalogue.diffs.

    Raises:
        ParamsError: nothing was chosen in it yet.
        ArtifactError: an artifact is missing or was edited.
    """
    from flows.stage_calls import folder
    from tasks.catalogue.diffs import read_side

    if not folder("selection", version).exists():
        raise params.ParamsError(f"nothing was chosen in {version} yet; make it: `tamis run {version}`")
    yield read_side(version, ROOT, version)


@contextmanager
def open_revision(revision: str, version: str) -> Iterator[Any]:
    """Yield a version as a revision of git records it.

    Raises:
        ParamsError: it records no choice of that version.
        StateError: git knows no such revision.
    """
    from flows.graph import revisions
    from tasks.catalogue.diffs import read_side

    with revisions.at_revision(revision) as root:
        if not (root / f"data/selection/version={version}").exists():
            raise params.ParamsError(f"{revision} records no choice of {version}; name another revision, or version")
        yield read_side(f"{version} at {revision}", root, version)


@contextmanager
def open_kept_choice(selector: str, version: str) -> Iterator[Any]:
    """Yield a version's choice by a selector where that is kept.

    Raises:
        ParamsError: there is no such selector, or its choice is not kept.
    """
    from flows.entering import find_choice
    from flows.stage_calls import folder
    from tasks.catalogue.diffs import read_choice

    found = find_choice(selector, version, params.read())
    if found is None:
        raise params.ParamsError(
            f"no choice of {version} by {selector} is kept; make it: `tamis diff {selector} OTHER --of {version} "
            "--selectors`"
        )
    yield read_choice(selector, folder("examples", version), found)


@contextmanager
def open_choice(selector: str, version: str) -> Iterator[Any]:
    """Yield a version's choice by a selector at the version's budget, made where it is not kept.

    Raises:
        ParamsError: there is no such selector.
    """
    from flows.entering import choose_by
    from flows.stage_calls import folder
    from tasks.catalogue.diffs import read_choice

    yield read_choice(selector, folder("examples", version), choose_by(selector, version, params.read()))
