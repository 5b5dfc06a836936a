"""The stage `audit`: promises that the artifacts keep, checked in SQL, and what else is worth knowing.

Each check is a file of checks/: a line that says what it promises or shows, and a query for what it finds, one text
per row. Promises fail the stage; the rest is recorded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from tamis.evaluation.summary import limit_spending, spread_caps
from tamis.examples.conversations import split_key
from tasks.artifacts import schemas, tables
from tasks.artifacts.views import opened, stream
from tasks.audit.queries import PROVENANCE, read_queries
from tasks.audit.settings import AuditSettings
from tasks.conversations import read_conversation
from tasks.decisions import Decision, read_decisions
from tasks.examples.files import list_contents, name_inputs
from tasks.folders import Folders
from tasks.masks.settings import MaskSettings
from tasks.selection.settings import SelectionSettings

SHOWN = 3  # of what is found, in an error
BESIDE = ("embedding", "scores", "gradients", "finetuning")  # stages that only the provenance of the others leads to
EXAMPLES = "examples.parquet"
RECORDED = ("*.parquet", "*.safetensors", "finetuning.json")  # files of a folder that say what they were made from
VIEWS = """
    CREATE TEMP VIEW pool AS SELECT * FROM examples WHERE used AND split = 'pool';
    CREATE TEMP VIEW target AS SELECT * FROM examples WHERE used AND split = 'target';
    CREATE TEMP VIEW learnt AS
        SELECT * FROM examples WHERE earlier = 'learnt' AND split = 'pool' AND duplicate_of IS NULL;
    CREATE TEMP VIEW chosen AS SELECT pool.* FROM subset JOIN pool USING (id) WHERE chosen;
    CREATE TEMP VIEW topics AS
        SELECT topic, count(chosen.id) AS rows FROM pool LEFT JOIN chosen USING (topic, id) GROUP BY topic;
    CREATE TEMP VIEW chosen_ids AS SELECT id FROM subset WHERE chosen;
    CREATE TEMP VIEW measured AS SELECT prompt FROM texts WHERE split IN ('held_out', 'general')
        UNION SELECT prompt FROM texts_before WHERE split = 'held_out';
    CREATE TEMP VIEW validating AS SELECT * FROM texts WHERE split = 'validation';
"""

CHANGES = """
    SELECT change, count(*), count(*) FILTER (used) FROM examples WHERE duplicate_of IS NULL GROUP BY change
    UNION ALL SELECT 'withdrawn', count(*), 0 FROM withdrawn WHERE edited_to IS NULL"""


class AuditError(ValueError):
    """A promise is broken."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    promise: bool  # False: information, which never fails
    found: list[str]  # what breaks it
    says: str = ""  # what it promises or shows, in a sentence


def write_audit(
    folders: Folders,
    *,
    selection_settings: SelectionSettings,
    mask: MaskSettings,
    settings: AuditSettings,
    decisions: Path | None = None,
) -> None:
    """Check the promises of a version and write audit.parquet and audit.json.

    Args:
        folders: of this version and the one before, which may hold no row; its held-out rows are measured on again.
        selection_settings, mask: as selection was given them.
        settings: what is named, as information.
        decisions: the list of vetoed and pinned rows; None: there is none.

    Raises:
        AuditError: a promise is broken; nothing is written.
        ArtifactError: an artifact is missing or was edited.
    """
    out, version = folders.here.audit, folders.here.version
    found = _check(folders, selection_settings, mask, settings, decisions)
    refuse_broken(found.checks, version)
    asked = asdict(selection_settings)
    parameters = {name: asked[name] for name in ("budget", "caps", "floors")} | asdict(settings)
    parameters["mask"] = {"selector": mask.selector} | ({"budget": mask.budget} if mask.selector != "none" else {})
    made = tables.Provenance("audit", version, parameters, found.present)
    tables.write_table(tabulate(found.checks), out / "audit.parquet", made)
    tables.write_json(count_kept(found.checks) | {"changes": found.changes}, out / "audit.json")


def check_version(
    folders: Folders,
    *,
    selection_settings: SelectionSettings,
    mask: MaskSettings,
    settings: AuditSettings,
    decisions: Path | None = None,
) -> list[Check]:
    """Return what every check finds in a version's artifacts, promises first; nothing is written.

    Args:
        folders, selection_settings, mask, settings, decisions: as of `write_audit`.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    return _check(folders, selection_settings, mask, settings, decisions).checks


@dataclass(frozen=True)
class Checked:
    """What became of all checks of a version."""

    checks: list[Check]
    changes: dict[str, dict[str, int]]
    present: dict[str, str]  # digests of all that there is


def _check(
    folders: Folders, asked: SelectionSettings, mask: MaskSettings, settings: AuditSettings, decisions: Path | None
) -> Checked:
    here, previous_examples, raw = folders.here, folders.before.examples, folders.raw
    examples, utility, selection, evaluation = here.examples, here.utility, here.selection, here.evaluation
    sources = read_sources(examples, previous_examples, utility, selection, evaluation)
    limits = tabulate_limits(sources["texts"], asked, settings.held_out_share)
    limits |= limit_mask(sources["tensors"], mask) | tabulate_people(decisions) | tabulate_law(here.gradients)
    compared = pa.table({"version": [here.version], "previous": [previous_examples.name.removeprefix("version=")]})
    with opened({**sources, **limits, "compared": compared}) as connection:
        checks, changes = run_checks(connection), count_changes(connection)
    beside = [getattr(here, stage) for stage in BESIDE]
    records = read_records([*beside, examples, utility, selection, evaluation])
    present = digest_files(records, raw, previous_examples)
    faults = trace(records, present, here.version, None if raw.exists() else previous_examples.name)
    promises = [one for one in checks if one.promise]
    ordered = [*promises, Check("provenance", True, faults, PROVENANCE), *checks[len(promises) :]]
    return Checked(ordered, changes, present)


def read_sources(
    examples: Path, previous_examples: Path, utility: Path, selection: Path, evaluation: Path
) -> dict[str, pa.Table | pads.Dataset]:
    """Return what the checks ask: the artifacts by their names, and the texts of this version and the one before.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    files = {
        examples / EXAMPLES: schemas.EXAMPLES,
        examples / "withdrawn.parquet": schemas.WITHDRAWN,
        examples / "lingering.parquet": schemas.LINGERING,
        utility / "utility.parquet": schemas.UTILITY,
        selection / "subset.parquet": schemas.SUBSET,
        selection / "mask.parquet": schemas.MASK,
        selection / "tensors.parquet": schemas.TENSORS,
        evaluation / "evaluation.parquet": schemas.EVALUATION,
    }
    sources = {path.stem: stream([path], schema) for path, schema in files.items()}
    before = stream([previous_examples / EXAMPLES], schemas.EXAMPLES)
    return sources | {"texts": read_texts(sources["examples"]), "texts_before": read_texts(before)}


def read_texts(examples: pads.Dataset) -> pa.Table:
    """Return id, topic, split, earlier role, use and folded first question of every example."""
    names = ["id", "topic", "split", "earlier", "used"]
    table, asked = examples.to_table(columns=names), []
    for batch in examples.to_batches(columns=["messages", "tools"]):
        asked += [split_key(read_conversation(row)) for row in batch.to_pylist()]
    return table.append_column("prompt", pa.array(asked, pa.string()))


def tabulate_limits(texts: pa.Table, asked: SelectionSettings, held_out_share: float) -> dict[str, pa.Table]:
    """Return what the parameters allow, as tables; a fraction is of the used pool, rounded down to whole rows."""
    pool = texts.filter(pc.and_(texts["used"], pc.equal(texts["split"], "pool")))
    unit, most = limit_spending(asked.budget, pool.num_rows)
    highest = spread_caps(asked.caps, sorted(set(pool["topic"].to_pylist())))
    text, number = pa.string(), pa.int64()
    return {
        "budget": pa.table({"unit": [unit], "most": [most]}),
        "caps": pa.table([pa.array(highest, text), pa.array(highest.values(), number)], ["topic", "most"]),
        "floors": pa.table([pa.array(asked.floors, text), pa.array(asked.floors.values(), number)], ["topic", "least"]),
        "least": pa.table({"share": [held_out_share]}),
    }


def limit_mask(tensors: pads.Dataset, mask: MaskSettings) -> dict[str, pa.Table]:
    """Return how many parameters the mask must hold, none without one, and the shares of it that are quotas."""
    most, shares = 0, [0.0, 0.0]
    if mask.selector != "none":
        entries = pc.sum(tensors.to_table(columns=["entries"])["entries"]).as_py()
        most, shares = max(1, limit_spending(mask.budget, entries or 0)[1]), [mask.layer_share, mask.module_share]
    quotas = pa.table({"kind": ["layer", "module"], "share": pa.array(shares, pa.float64())})
    return {"mask_budget": pa.table({"most": [most]}), "quotas": quotas}


def tabulate_people(decisions: Path | None) -> dict[str, pa.Table]:
    """Return which rows people vetoed and pinned."""
    found = [vars(one) for one in read_decisions(decisions)] if decisions else []
    names = [field.name for field in fields(Decision)]
    return {"decisions": pa.Table.from_pylist(found, schema=pa.schema([(name, pa.string()) for name in names]))}


def tabulate_law(gradients: Path) -> dict[str, pa.Table]:
    """Return the sum of the rows' scores, with both sums that were recorded; no row where rows were not scored."""
    facts = gradients / "gradients.json"
    known = tables.read_json(facts)
    names, row = ["rows", "recorded", "parameters", "size"], []
    if known.get("sum_phi_data") is not None:
        scores = tables.read_table(gradients / "phi_data.parquet", columns=["score"])["score"].to_numpy()
        recorded, parameters = known["sum_phi_data"], known["sum_phi_param"]
        row = [float(scores.sum()), recorded, parameters, max(float(abs(scores).sum()), abs(recorded), abs(parameters))]
    columns = [pa.array([value], pa.float64()) for value in row] or [pa.array([], pa.float64())] * len(names)
    return {"law": pa.table(columns, names)}


def run_checks(connection: duckdb.DuckDBPyConnection) -> list[Check]:
    """Run every query, promises first."""
    connection.execute(VIEWS)
    return [
        Check(one.name, one.promise, sorted(text for (text,) in connection.execute(one.sql).fetchall()), one.says)
        for one in read_queries()
    ]


def count_changes(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """Return how many distinct rows are kept, edited, new and withdrawn against the version before, and are used."""
    found = {change: {"rows": rows, "used": used} for change, rows, used in connection.execute(CHANGES).fetchall()}
    return {change: found.get(change, {"rows": 0, "used": 0}) for change in ("kept", "edited", "new", "withdrawn")}


def read_records(folders: Sequence[Path]) -> dict[Path, Mapping[str, Any]]:
    """Return the provenance record of each file in these folders that has one: tables, tensors, the arms' listing."""
    paths = sorted(path for folder in folders for pattern in RECORDED for path in folder.glob(pattern))
    return {path: _read_record(path) for path in paths}


def _read_record(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".json":
        record = tables.read_json(path)
    else:
        record = tables.provenance(path) if path.suffix == ".parquet" else tables.read_facts(path)
    record = {"stage": path.stem, "version": None, "inputs": {}} | record
    inputs = {_shorten(name) if PurePath(name).is_absolute() else name: now for name, now in record["inputs"].items()}
    return record | {"inputs": inputs}


def digest_files(records: Mapping[Path, Mapping[str, Any]], raw: Path, before: Path) -> dict[str, str]:
    """Return the digests of all that there is: these artifacts, the raw rows, and what they name of an earlier version.

    Args:
        records: of the artifacts (`read_records`).
        raw: file or folder of the raw rows.
        before: folder of the examples that this version continues from; its other artifacts lie beside it.
    """
    files = [*records, before / EXAMPLES]
    earlier = {_shorten(path): path for path in _list_files(before.parents[1].glob(f"*/{before.name}/**/*"))}
    named = {name for record in records.values() for name in record["inputs"]}
    files += [earlier[name] for name in sorted(named & earlier.keys())]
    rows = name_inputs(raw, list_contents(raw) if raw.exists() else [])
    return {name: tables.digest(path) for name, path in rows.items()} | tables.digest_inputs(*files)


def _list_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file())


def trace(
    records: Mapping[Path, Mapping[str, Any]], present: Mapping[str, str], version: str, without_raw: str | None = None
) -> list[str]:
    """Return what is wrong with the provenance of artifacts.

    Each must say what it was made from, and each file that it names must be there with the content that it had.

    Args:
        records: of the artifacts (`read_records`).
        present: digests of the files that there are (`digest_files`).
        version: of all the artifacts.
        without_raw: where the raw rows are elsewhere, what examples were made from is traced in folders of this name
            only.
    """
    return [
        f"{path.name} {fault}"
        for path, record in records.items()
        for fault in _find_faults(record, present, version, without_raw)
    ]


def _find_faults(
    record: Mapping[str, Any], present: Mapping[str, str], version: str, without_raw: str | None
) -> Iterator[str]:
    if record["version"] != version:
        yield f"is of version {record['version']}, not {version}"
    if not record["inputs"]:
        yield "does not say what it was made from"
    for name, digest in sorted(record["inputs"].items()):
        if without_raw and record["stage"] == "examples" and PurePath(name).parent.name != without_raw:
            continue
        if name not in present:
            yield f"was made from {name}, which is not there"
        elif present[name] != digest:
            yield f"was made from another {name} than the one there is"


def _shorten(path: PurePath | str) -> str:
    """Return the last three parts of a path, by which provenance knows an artifact."""
    return "/".join(PurePath(path).parts[-3:])


def refuse_broken(checks: Sequence[Check], version: str) -> None:
    """Stop where a promise is broken.

    Raises:
        AuditError: naming each broken promise, how many rows break it, and the first of them.
    """
    broken = [check for check in checks if check.promise and check.found]
    if broken:
        found = "; ".join(
            f"{check.name}: {len(check.found)}, first {', '.join(check.found[:SHOWN])}" for check in broken
        )
        raise AuditError(
            f"{len(broken)} of {sum(check.promise for check in checks)} promises of {version} are broken: {found}; "
            "mend the parameters or rows that this names, and make the artifacts again: `tamis run`"
        )


def tabulate(checks: Sequence[Check]) -> pa.Table:
    """Return the checks as the artifact's table."""
    rows = [
        {
            "check": check.name,
            "passed": not (check.promise and check.found),
            "rows": len(check.found),
            "detail": ", ".join(check.found) or "none",
        }
        for check in checks
    ]
    return pa.Table.from_pylist(rows, schema=schemas.AUDIT)


def count_kept(checks: Sequence[Check]) -> dict[str, Any]:
    """Return what audit.json holds: how many promises are kept, and what else was found."""
    information = {check.name: check.found for check in checks if not check.promise}
    return {"promises_kept": sum(check.promise for check in checks), **information}
