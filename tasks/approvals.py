"""Who accepted which artifacts, and when: `data/approvals.jsonl`, which git tracks, a line for each approval."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.artifacts.locks import locked
from tasks.artifacts.tables import ArtifactError, tell_folder, write_text

APPROVALS = Path("data/approvals.jsonl")  # of a project
LOCK = Path(".cache/approvals.lock")
TABLE = pa.schema([(name, pa.string()) for name in ("version", "by", "when", "note", "despite", "artifacts")])


@dataclass(frozen=True)
class Approval:
    """One person's word on a version as it was made."""

    version: str
    by: str
    when: str  # date and time in ISO 8601, UTC
    note: str
    despite: tuple[str, ...]  # promises that were broken
    artifacts: Mapping[str, str]  # path -> digest, as dvc.lock has them


def read_approvals(root: Path) -> list[Approval]:
    """Return a project's approvals, the oldest first; none where there is no such file.

    Raises:
        ArtifactError: a line is no approval, or the file none.
    """
    path = Path(root) / APPROVALS
    if path.is_dir():
        raise ArtifactError(f"{tell_folder(path)}; `git checkout {APPROVALS}` brings back what git has")
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_read(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{path}:{number} is no approval ({type(error).__name__}: {error}); mend the line, or bring the file "
                f"back with `git checkout {APPROVALS}`"
            ) from error
    return found


def _read(said: Any) -> Approval:
    """Return what a line says.

    Raises:
        ValueError, TypeError, KeyError: it is no approval.
    """
    despite, artifacts = said["despite"], said["artifacts"]
    texts = [*(said[name] for name in ("version", "by", "when", "note")), *despite, *artifacts, *artifacts.values()]
    if not isinstance(despite, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a value is of another type")
    return Approval(**said | {"despite": tuple(despite)})


def add_approval(root: Path, approval: Approval) -> None:
    """Add a line; those that stand there are kept as they are.

    Raises:
        ArtifactError: a line that stands there is no approval; the file cannot be written.
    """
    path = Path(root) / APPROVALS
    with locked(Path(root) / LOCK):
        read_approvals(root)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        line = json.dumps(asdict(approval), ensure_ascii=False, sort_keys=True)
        write_text(f"{before}{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n", path)


def find_last(approvals: Iterable[Approval], version: str) -> Approval | None:
    """Return the last approval of a version; None: there is none."""
    return next((one for one in reversed(list(approvals)) if one.version == version), None)


def list_changed(approval: Approval, artifacts: Mapping[str, str]) -> list[str]:
    """Return the artifacts that are not those that were approved: changed, new and gone ones, by path.

    >>> one = Approval("v1", "ann", "", "", (), {"a": "0", "b": "1"})
    >>> list_changed(one, {"a": "0", "b": "2", "c": "3"}), list_changed(one, {"a": "0", "b": "1"})
    (['b', 'c'], [])
    """
    both = approval.artifacts.keys() | artifacts.keys()
    return sorted(path for path in both if approval.artifacts.get(path) != artifacts.get(path))


def tabulate(approvals: Iterable[Approval]) -> pa.Table:
    """Return approvals as a table of the catalogue; what was broken and the digests as JSON."""
    rows = [
        asdict(one) | {"despite": json.dumps(one.despite), "artifacts": json.dumps(dict(one.artifacts), sort_keys=True)}
        for one in approvals
    ]
    return pa.Table.from_pylist(rows, schema=TABLE)
