"""What the catalogue is made of: every table of a project, and what its records, approvals and settings say."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tasks.approvals import read_approvals, tabulate
from tasks.artifacts import tables
from tasks.artifacts.remembered import remember
from tasks.artifacts.views import open_checked
from tasks.catalogue.derived import ASKS_RUNS, derive
from tasks.decisions import FOLDER, NAME, tabulate_decisions

BASE = "base"  # stands for no version
CHECKED = Path(".cache/checked.json")  # of a project: tables whose digests were found right
RENAMED = {"scores": "selector_scores"}  # whose name the view of every score has
RUNS = pa.schema(
    [
        ("version", pa.string()),
        ("stage", pa.string()),
        ("artifact", pa.string()),
        ("created", pa.string()),
        ("code", pa.string()),
        ("rows", pa.int64()),
        ("seed", pa.int64()),
        ("parameters", pa.string()),
        ("inputs", pa.string()),
        ("digest", pa.string()),
        ("seconds", pa.float64()),
        ("machine", pa.string()),
    ]
)


@dataclass(frozen=True)
class Artifacts:
    """A project's tables."""

    views: Mapping[str, pads.Dataset | pa.Table]  # by name, all versions together
    derived: Mapping[str, str]  # name of a view that is made of these -> its query
    broken: Mapping[str, str]  # name of a view that cannot be read -> why


def find_artifacts(
    root: Path, versions: Mapping[str, Mapping[str, str]] | None = None, *, asked: str | None = None
) -> Artifacts:
    """Return every table under a project's data folder, and the views of the catalogue.

    A file that is damaged costs its own view. What was checked once is not read again for it while it stays the same.

    Args:
        root: the project's folder.
        versions: the data versions of params.yaml and their settings; None: view `versions` is left out.
        asked: a question; records of runs are read where it names them. None: they are.

    Raises:
        ArtifactError: there is none.
    """
    paths: dict[str, list[Path]] = {}
    for path in sorted(Path(root).glob("data/*/version=*/*.parquet")):
        paths.setdefault(RENAMED.get(path.stem, path.stem), []).append(path)
    if not paths:
        raise tables.ArtifactError(f"there are no artifacts in {Path(root) / 'data'} yet; make them: `tamis run`")
    views, broken = {}, {}
    for name, several in paths.items():
        try:
            remember(Path(root) / CHECKED, several, _check)
            views[name] = open_checked(several)
        except tables.ArtifactError as error:
            broken[name] = str(error)
    every = [path for name, several in paths.items() if name in views for path in several]
    wanted = asked is None or any(name in asked.lower() for name in ASKS_RUNS)
    views["runs"] = tabulate_runs(every) if wanted else RUNS.empty_table()
    for name, read in {"approvals": _tabulate_approvals, "decisions": _tabulate_decisions}.items():
        try:
            views[name] = read(root)
        except tables.ArtifactError as error:
            broken[name] = str(error)
    if versions is not None:
        views["versions"] = _tabulate_versions({path.parent.name for path in every}, versions)
    return Artifacts(views, derive(views), broken)


def _tabulate_approvals(root: Path) -> pa.Table:
    return tabulate(read_approvals(root))


def _tabulate_decisions(root: Path) -> pa.Table:
    return tabulate_decisions(root, sorted(path.parent.name for path in Path(root).glob(f"{FOLDER}/*/{NAME}")))


def tabulate_runs(paths: Iterable[Path]) -> pa.Table:
    """Return what the records of artifacts say, and, of those that ran here, in what time and on which machine.

    Args:
        paths: of Parquet artifacts, `<stage>/version=<v>/<name>.parquet`.
    """
    rows = []
    for path in paths:
        facts = pq.read_metadata(path).metadata
        record = json.loads(facts[b"tamis"])
        ran = _read_run(path.with_name("run.json"))
        rows.append(
            {
                "version": record["version"],
                "stage": record["stage"],
                "artifact": path.stem,
                "created": ran.get("created"),
                "code": record.get("code"),
                "rows": record.get("rows"),
                "seed": record.get("seed"),
                "parameters": json.dumps(record["parameters"], sort_keys=True),
                "inputs": json.dumps(record["inputs"], sort_keys=True),
                "digest": facts[b"tamis_digest"].decode(),
                "seconds": ran.get("seconds"),
                "machine": json.dumps(ran["machine"]) if "machine" in ran else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=RUNS)


def _read_run(path: Path) -> Mapping[str, Any]:
    return tables.read_json(path)


def _tabulate_versions(folders: Iterable[str], versions: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """Return the versions that have artifacts or are configured, the configured ones first, in their order."""
    there = {folder.removeprefix("version=") for folder in folders} - {BASE}
    names = [*versions, *sorted(there - versions.keys())]
    return pa.table(
        {
            "version": pa.array(names, pa.string()),
            "configured": pa.array([name in versions for name in names], pa.bool_()),
            "made": pa.array([name in there for name in names], pa.bool_()),
            "previous": pa.array([versions.get(name, {}).get("previous") for name in names], pa.string()),
            "raw": pa.array([versions.get(name, {}).get("raw") for name in names], pa.string()),
        }
    )


def _check(path: Path) -> bool:
    tables.check_table(path)
    return True
