"""Which rows were erased, and why: `data/erased.json`, which git tracks and stage `examples` reads. No text of a row.

Of a row the digests stand there alone: its id, and `same_as`, by which it is known again whatever its blanks are.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.artifacts.tables import write_json
from tasks.decisions import read_entries


@dataclass(frozen=True)
class Erased:
    """A row that was erased."""

    id: str
    same_as: str  # digest of its text whatever the blanks
    because: str  # what the user says
    when: str  # date in ISO 8601


def read_erased(path: Path) -> list[Erased]:
    """Return the rows that were erased; none where there is no such file.

    Raises:
        ArtifactError: the file is no such list.
    """
    return read_entries(path, Erased, "would take erased rows in again")


def list_same(path: Path) -> frozenset[str]:
    """Return `same_as` of the rows that were erased.

    Raises:
        ArtifactError: as `read_erased`.
    """
    return frozenset(one.same_as for one in read_erased(path))


def add_erased(rows: Iterable[Erased], path: Path) -> None:
    """Add rows to those that were erased, sorted by their ids; of one that stands there already nothing changes."""
    known = {one.id: one for one in rows} | {one.id: one for one in read_erased(path)}
    write_json([asdict(known[id]) for id in sorted(known)], path)
