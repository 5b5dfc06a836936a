"""A stage's artifacts, set aside while it is made anew, and put back unless that comes to its end.

DVC removes what a stage wrote before it runs the stage again; a mistake in a parameter would cost the artifacts that
were good. They are renamed instead, beside a list of where they stood, which is written first and deleted first: after
a kill in between, what the list names and what lies beside it is put back, and everything else stands where it stood.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flows.interrupts import cleaning
from tasks.artifacts.tables import ArtifactError, read_texts, write_json

ASIDE = Path(".cache/aside")
PLACES = "places.json"


@contextmanager
def set_aside(address: str, paths: Sequence[str]) -> Iterator[None]:
    """Set a stage's artifacts aside, and put them back at the end, unless `discard` was called in between.

    Args:
        address: name and version, `utility@v1`.
        paths: of its artifacts, files and folders; those that are not there are left out.
    """
    home = (ASIDE / address).absolute()
    found = [os.path.abspath(path) for path in paths if os.path.lexists(path)]
    with cleaning(partial(put_back, address)):
        try:
            if found:
                write_json(found, home / PLACES)
            for index, path in enumerate(found):
                shutil.move(path, home / str(index))
            yield
        finally:
            put_back(address)


def put_back(address: str) -> bool:
    """Put back what was set aside of a stage, in the place of what stands there now; returns whether there was any.

    Raises:
        ArtifactError: the list of where it stood is damaged.
    """
    home = ASIDE / address
    if not (home / PLACES).exists():
        shutil.rmtree(home, ignore_errors=True)
        return False
    for index, path in enumerate(read_places(address)):
        kept = home / str(index)
        if os.path.lexists(kept):
            _remove(Path(path))
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(kept, path)
    discard(address)
    return True


def read_places(address: str) -> list[str]:
    """Return where the artifacts of a stage stood that are set aside.

    Raises:
        ArtifactError: the list is damaged.
    """
    try:
        return read_texts(ASIDE / address / PLACES)
    except ArtifactError as error:
        raise ArtifactError(
            f"{ASIDE / address / PLACES} does not tell where the artifacts of {address} stood that lie beside it; "
            f"delete {ASIDE / address}, then run again: what DVC's cache has of them is restored, the rest made again"
        ) from error


def discard(address: str) -> None:
    """Delete what was set aside of a stage: it was made anew."""
    (ASIDE / address / PLACES).unlink(missing_ok=True)
    shutil.rmtree(ASIDE / address, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
