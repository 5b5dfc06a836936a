"""Which rows people vetoed or pinned, and why: `versions/<v>/decisions.json`, which git tracks and three stages read.

Stage `examples` uses no vetoed row, stage `selection` chooses pinned ones first, and `audit` checks both. A version
begins with what stands for the one that it continues from. Of a row the digests stand there alone, and why: no text of
it.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from tasks.artifacts.tables import ArtifactError, tell_folder, write_json

FOLDER, NAME = Path("versions"), "decisions.json"
VETO, PIN = "veto", "pin"
KINDS = (VETO, PIN)
TABLE = pa.schema([(name, pa.string()) for name in ("version", "id", "kind", "because", "by", "when")])
T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """A person's word on a row."""

    id: str
    same_as: str  # digest of its text whatever the blanks
    kind: str  # veto | pin
    because: str  # what they say
    by: str
    when: str  # date and time in ISO 8601, UTC

    def __post_init__(self) -> None:
        """Refuse what is no decision."""
        others = [name for name, value in vars(self).items() if not isinstance(value, str)]
        if others:
            raise TypeError(f"{', '.join(others)} must be text")
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of decision; known: {', '.join(KINDS)}")


def find_decisions(root: Path, version: str) -> Path:
    """Return the file of a version's decisions.

    >>> find_decisions(Path("."), "v1").as_posix()
    'versions/v1/decisions.json'
    """
    return Path(root) / FOLDER / version / NAME


def read_entries(path: Path, kind: type[T], lacking: str) -> list[T]:
    """Return the entries of a JSON list that git tracks; none where there is no such file.

    Args:
        path: of the file.
        kind: a dataclass, whose fields each entry has.
        lacking: what a run without the list would do, for the error.

    Raises:
        ArtifactError: the file is no such list.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise TypeError(f"it holds a {type(found).__name__}")
        known = {field.name for field in fields(kind)}
        odd = [place for place, one in enumerate(found) if not isinstance(one, dict) or one.keys() != known]
        if odd:
            raise TypeError(f"entry {odd[0] + 1} has not the fields {', '.join(sorted(known))} and no others")
        return [kind(**one) for one in found]
    except IsADirectoryError as error:
        raise ArtifactError(f"{tell_folder(path)}; `git checkout {path}` brings back what git has") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is no list of {kind.__name__.lower()} rows ({error}); bring it back with `git checkout {path}`, "
            f"since a run without it {lacking}"
        ) from error


def read_decisions(path: Path) -> list[Decision]:
    """Return what was decided of rows, in the order of their ids.

    Raises:
        ArtifactError: the file is no such list.
    """
    return read_entries(path, Decision, "would choose vetoed rows")


def write_decisions(found: Iterable[Decision], path: Path) -> None:
    """Write what was decided of rows, one decision for each, sorted by their ids."""
    write_json([asdict(one) for one in sorted(found, key=lambda one: one.id)], path)


def list_decided(path: Path | None, kind: str) -> frozenset[str]:
    """Return `same_as` of the rows of which a kind of decision was taken.

    Args:
        path: of the file, which may be missing; None: nothing was decided.
        kind: `veto` or `pin`.

    Raises:
        ArtifactError: as `read_decisions`.
    """
    return frozenset(one.same_as for one in read_decisions(path) if one.kind == kind) if path else frozenset()


def tabulate_decisions(root: Path, versions: Iterable[str]) -> pa.Table:
    """Return the decisions of some versions as a table.

    Raises:
        ArtifactError: as `read_decisions`.
    """
    rows: list[dict[str, Any]] = [
        {"version": version} | asdict(one)
        for version in versions
        for one in read_decisions(find_decisions(root, version))
    ]
    return pa.Table.from_pylist([{name: row[name] for name in TABLE.names} for row in rows], schema=TABLE)
