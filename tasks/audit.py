"""The room `audit`: promises that the artifacts keep, checked in SQL; and the artifacts opened to people's questions.

DuckDB sees each artifact as a view that Arrow streams from Parquet, and has no way of its own to a file or the network:
a question can read these views and nothing else, and write nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from tamis.audit import Summary, limit_spending, spread_caps
from tamis.audit import summarise as summarise_metrics
from tamis.examples import fold
from tasks import artifacts, schemas

SHOWN = 3  # of what is found, in an error
BEST = 5  # demos and targets that `show` names
BESIDE = ("embedding", "finetuning")  # stages that only the provenance of the others leads to
READING = ("SELECT", "EXPLAIN")  # kinds of statement that are let through
LOCKS = (
    "SET enable_progress_bar = false",
    "SET python_enable_replacements = false",  # no variables of this program as tables
    "SET temp_directory = ''",
    "SET enable_external_access = false",  # no files, no network, no extensions
    "SET lock_configuration = true",
)
VIEWS = """
    CREATE TEMP VIEW pool AS SELECT * FROM examples WHERE used AND split = 'pool';
    CREATE TEMP VIEW chosen AS SELECT pool.* FROM subset JOIN pool USING (id) WHERE chosen;
    CREATE TEMP VIEW topics AS
        SELECT topic, count(chosen.id) AS rows FROM pool LEFT JOIN chosen USING (topic, id) GROUP BY topic;
    CREATE TEMP VIEW chosen_ids AS SELECT id FROM subset WHERE chosen;
"""

# A check is a query for what breaks it, one text per row. Promises fail the stage; the rest is recorded.
PROMISES = {
    "leakage": """
        SELECT DISTINCT id || ' (held out, or its prompt is)' FROM chosen_ids JOIN texts USING (id)
        WHERE prompt IN (SELECT prompt FROM texts WHERE split = 'held_out')""",
    "duplicates": "SELECT id || ' (' || count(*) || ' times)' FROM chosen_ids GROUP BY id HAVING count(*) > 1",
    "pool": "SELECT DISTINCT id FROM subset ANTI JOIN pool USING (id)",
    "pairs": """
        SELECT target_id || ' with demo ' || demo_id FROM utility
        WHERE NOT isfinite(utility) OR target_id NOT IN (SELECT id FROM pool)
        OR demo_id NOT IN (SELECT id FROM pool)""",
    "budget": """
        SELECT format('{} {}, at most {}', spent, unit, most) FROM (
            SELECT *, CASE unit WHEN 'rows' THEN (SELECT count(*) FROM chosen_ids)
                ELSE (SELECT coalesce(sum(response_tokens), 0) FROM chosen)::BIGINT END AS spent FROM budget)
        WHERE spent > most""",
    "caps": """
        SELECT format('{}: {} rows, at most {}', topic, rows, most) FROM topics JOIN caps USING (topic)
        WHERE rows > most""",
    "floors": """
        SELECT format('{}: {} rows, at least {}', topic, coalesce(rows, 0), least) FROM floors LEFT JOIN topics
        USING (topic) WHERE coalesce(rows, 0) < least""",
    "evaluation": """
        WITH rows AS (SELECT arm, coalesce(seed::VARCHAR, '') AS seed, id FROM evaluation),
        found AS (SELECT *, count(*) AS times FROM rows GROUP BY ALL),
        runs AS (SELECT DISTINCT arm, seed FROM rows),
        asked AS (SELECT arm, seed, id, true AS asked FROM runs, examples WHERE used AND split = 'held_out')
        SELECT concat_ws(' ', arm, seed, id, coalesce(times, 0), 'times', if(asked, NULL, '(not held out)'))
        FROM found FULL JOIN asked USING (arm, seed, id) WHERE times IS DISTINCT FROM 1 OR asked IS NULL
        UNION ALL SELECT 'no arm at all' WHERE NOT EXISTS (FROM evaluation)""",
}
INFORMATION = {
    "coverage": "SELECT topic FROM topics WHERE rows = 0",
    "held_out_share": """
        SELECT format('{}: {:.3f}', topic, share) FROM (SELECT topic, avg((split = 'held_out')::INT) AS share
        FROM examples WHERE duplicate_of IS NULL GROUP BY topic) WHERE share < (SELECT share FROM least)""",
}

# What `show` tells of one example: the views that it needs, and the query.
USED = "(SELECT version, id, prompt, response FROM examples WHERE used)"
PARTNERS = f"""
    SELECT u.version, e.id, u.utility, e.prompt, e.response FROM utility u JOIN {USED} e
    ON e.version = u.version AND e.id = u.{{other}} WHERE u.{{self}} = $id AND u.{{other}} <> $id
    QUALIFY row_number() OVER (PARTITION BY u.version ORDER BY u.utility DESC, e.id) <= {BEST}
    ORDER BY u.version, u.utility DESC, e.id"""
FACTS = {
    "examples": ({"examples"}, "SELECT * EXCLUDE (id) FROM examples WHERE id = $id ORDER BY version, row"),
    "selection": (
        {"subset", "examples"},
        f"""SELECT s.* EXCLUDE (id, topic, response_tokens), e.prompt AS covering_prompt,
        e.response AS covering_response FROM subset s
        LEFT JOIN {USED} e ON e.version = s.version AND e.id = s.covered_by WHERE s.id = $id
        ORDER BY s.version""",
    ),
    "distances": ({"distances"}, "SELECT * EXCLUDE (id) FROM distances WHERE id = $id ORDER BY version"),
    "best_demos": ({"utility", "examples"}, PARTNERS.format(self="target_id", other="demo_id")),
    "helps_most": ({"utility", "examples"}, PARTNERS.format(self="demo_id", other="target_id")),
    "evaluation": (
        {"evaluation"},
        "SELECT * EXCLUDE (id, topic, response_tokens) FROM evaluation WHERE id = $id ORDER BY version, arm, seed",
    ),
}


class AuditError(ValueError):
    """A promise is broken, or a question cannot be answered."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    promise: bool  # False: information, which never fails
    found: list[str]  # what breaks it


def write_audit(
    *,
    examples: Path,
    utility: Path,
    selection: Path,
    evaluation: Path,
    out: Path,
    version: str,
    budget: Mapping[str, float],
    caps: Mapping[str, int],
    floors: Mapping[str, int],
    held_out_share: float,
    raw: Path | None = None,
) -> None:
    """Check the promises of a version and write audit.parquet and audit.json.

    The artifacts of `embedding` and `finetuning` are found where they lie beside those of `examples`, and traced, too.

    Args:
        raw: file or folder of the raw rows; None: traced only if they lie in `raw/<version>` beside the stages.
        budget, caps, floors: as selection was given them.
        held_out_share: topics with a lower share of held-out examples are named, as information.

    Raises:
        AuditError: a promise is broken; nothing is written.
        ArtifactError: an artifact is missing or was edited.
    """
    files = {
        examples / "examples.parquet": schemas.EXAMPLES,
        utility / "utility.parquet": schemas.UTILITY,
        selection / "subset.parquet": schemas.SUBSET,
        evaluation / "evaluation.parquet": schemas.EVALUATION,
    }
    sources = {path.stem: stream([path], schema) for path, schema in files.items()}
    texts = read_texts(sources["examples"])
    limits = tabulate_limits(texts, budget, caps, floors, held_out_share)
    with opened({**sources, **limits, "texts": texts}) as connection:
        checks = run_checks(connection)
    beside = [examples.parents[1] / stage / examples.name for stage in BESIDE]
    folders = [*beside, examples, utility, selection, evaluation]
    checks.append(Check("provenance", True, trace(folders, version, raw or examples.parents[1] / "raw" / version)))
    refuse_broken(checks, version)
    parameters = {"budget": dict(budget), "caps": dict(caps), "floors": dict(floors), "held_out_share": held_out_share}
    listed = list_artifacts(folders)
    made = artifacts.Provenance("audit", version, parameters, artifacts.digest_inputs(*listed))
    artifacts.write_table(tabulate(checks), out / "audit.parquet", made)
    artifacts.write_json(count_kept(checks), out / "audit.json")


def stream(paths: Sequence[Path], schema: pa.Schema | None = None) -> pads.Dataset:
    """Return an artifact in one or more versions, checked but not read yet; the column `version` is that of the path.

    Raises:
        ArtifactError: one of them is missing, was edited, or has other columns.
    """
    for path in paths:
        artifacts.check_table(path, schema)
    by_folder = pads.partitioning(pa.schema([("version", pa.string())]), flavor="hive")
    return pads.dataset([str(path) for path in paths], format="parquet", partitioning=by_folder)


@contextmanager
def opened(sources: Mapping[str, pa.Table | pads.Dataset]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory with these views and nothing else, and lock it."""
    with duckdb.connect(":memory:") as connection:
        for name, source in sources.items():
            connection.register(name, source)
        for lock in LOCKS:
            connection.execute(lock)
        yield connection


def read_texts(examples: pads.Dataset) -> pa.Table:
    """Return id, topic, split, use and folded prompt of every example."""
    table = examples.to_table(columns=["id", "topic", "split", "used", "prompt"])
    return table.set_column(4, "prompt", pa.array(map(fold, table["prompt"].to_pylist()), pa.string()))


def tabulate_limits(
    texts: pa.Table,
    budget: Mapping[str, float],
    caps: Mapping[str, int],
    floors: Mapping[str, int],
    held_out_share: float,
) -> dict[str, pa.Table]:
    """Return what the parameters allow, as tables; a fraction is of the used pool, rounded down to whole rows."""
    pool = texts.filter(pc.and_(texts["used"], pc.equal(texts["split"], "pool")))
    unit, most = limit_spending(budget, pool.num_rows)
    highest = spread_caps(caps, sorted(set(pool["topic"].to_pylist())))
    text, number = pa.string(), pa.int64()
    return {
        "budget": pa.table({"unit": [unit], "most": [most]}),
        "caps": pa.table([pa.array(highest, text), pa.array(highest.values(), number)], ["topic", "most"]),
        "floors": pa.table([pa.array(floors, text), pa.array(floors.values(), number)], ["topic", "least"]),
        "least": pa.table({"share": [float(held_out_share)]}),
    }


def run_checks(connection: duckdb.DuckDBPyConnection) -> list[Check]:
    """Run every query, promises first."""
    connection.execute(VIEWS)
    return [
        Check(name, queries is PROMISES, sorted(text for (text,) in connection.execute(sql).fetchall()))
        for queries in (PROMISES, INFORMATION)
        for name, sql in queries.items()
    ]


def list_artifacts(folders: Sequence[Path]) -> list[Path]:
    """Return the files in these folders that carry provenance: tables, and the listing of arms."""
    return sorted(path for folder in folders for path in [*folder.glob("*.parquet"), *folder.glob("finetuning.json")])


def trace(folders: Sequence[Path], version: str, raw: Path) -> list[str]:
    """Return what is wrong with the provenance of the artifacts in these folders.

    Each must say what it was made from, and each file that it names must lie among these stages' folders, or in `raw`,
    with the content that it had. Raw rows are left out where there is nothing at `raw`.
    """
    paths = list_artifacts(folders)
    files = [*paths, *([raw] if raw.is_file() else (path for path in raw.rglob("*") if path.is_file()))]
    present = {_shorten(path): digest for path in files for digest in artifacts.digest_inputs(path).values()}
    return [
        f"{path.name} {fault}"
        for path in paths
        for fault in _find_faults(_read_record(path), present, version, raw.exists())
    ]


def _read_record(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".parquet":
        return artifacts.provenance(path)
    return {"stage": path.stem, "version": None, "inputs": {}} | json.loads(path.read_text(encoding="utf-8"))


def _find_faults(record: Mapping[str, Any], present: Mapping[str, str], version: str, raw: bool) -> Iterator[str]:
    inputs = {_shorten(name): digest for name, digest in record["inputs"].items()}
    if record["version"] != version:
        yield f"is of version {record['version']}, not {version}"
    if not inputs:
        yield "does not say what it was made from"
    if record["stage"] == "examples" and not raw:
        return
    for name, digest in sorted(inputs.items()):
        if name not in present:
            yield f"was made from {name}, which is not there"
        elif present[name] != digest:
            yield f"was made from another {PurePath(name).name} than the one there is"


def _shorten(path: PurePath | str) -> str:
    """Return the last three parts of a path, by which provenance knows a file."""
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


def find_artifacts(root: Path) -> dict[str, pads.Dataset]:
    """Return every table under a project's data folder by its name, all versions together.

    Raises:
        ArtifactError: there is none, or one was edited.
    """
    paths: dict[str, list[Path]] = {}
    for path in sorted(Path(root).glob("data/*/version=*/*.parquet")):
        paths.setdefault(path.stem, []).append(path)
    if not paths:
        raise artifacts.ArtifactError(f"there are no artifacts in {Path(root) / 'data'} yet; make them: `tamis run`")
    return {name: stream(versions) for name, versions in paths.items()}


def query(root: Path, sql: str) -> tuple[list[str], list[tuple]]:
    """Answer a question in SQL about the artifacts of a project; returns the columns' names and the rows.

    Raises:
        AuditError: not one reading statement, a mistake in it, or a way to something else than the artifacts.
        ArtifactError: there are no artifacts, or one was edited.
    """
    sources = find_artifacts(root)
    with opened(sources) as connection:
        try:
            statements = connection.extract_statements(sql)
            kinds = [statement.type.name for statement in statements]
            if len(kinds) != 1 or kinds[0] not in READING:
                raise AuditError(
                    f"{', '.join(kinds) or 'nothing'} is not answered: `tamis sql` takes one statement that reads, "
                    "such as SELECT, FROM, WITH, DESCRIBE, SUMMARIZE or SHOW TABLES"
                )
            answer = connection.execute(statements[0])
            return [column[0] for column in answer.description], answer.fetchall()
        except duckdb.Error as error:
            views = ", ".join(sorted(sources))
            raise AuditError(f"{error}\n`tamis sql` reads these views and nothing else: {views}") from None


def show(root: Path, id: str) -> dict[str, Any]:
    """Return everything that is known about one example, by its id or how that begins.

    Raises:
        AuditError: no example, or several, begin like this; with suggestions.
    """
    sources = find_artifacts(root)
    with opened(sources) as connection:
        full = _complete(connection, id)
        found = {"id": full}
        for name, (needed, sql) in FACTS.items():
            if needed <= sources.keys():
                answer = connection.execute(sql, {"id": full})
                names = [column[0] for column in answer.description]
                found[name] = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
    return found


def summarise(root: Path, version: str) -> Summary:
    """Return the held-out losses of a version's arms, how many pairs were scored, and what is worth a note.

    Raises:
        ArtifactError: the version was not evaluated yet.
    """
    names = {"evaluation": "metrics", "utility": "utility", "audit": "audit"}
    paths = {stage: Path(root) / f"data/{stage}/version={version}/{name}.json" for stage, name in names.items()}
    for stage in ("evaluation", "utility"):
        if not paths[stage].exists():
            raise artifacts.ArtifactError(f"{paths[stage]} is missing; run `tamis run` (or `dvc repro`) to make it")
    found = [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths.values()]
    return summarise_metrics(*found)


def _complete(connection: duckdb.DuckDBPyConnection, start: str) -> str:
    """Return the one id that begins like this."""
    like = "SELECT id, any_value(prompt) FROM examples WHERE {} GROUP BY id ORDER BY {}, id LIMIT 4"
    found = dict(
        connection.execute(like.format("starts_with(id, $start)", "id <> $start"), {"start": start}).fetchall()
    )
    if start in found or len(found) == 1:
        return next(iter(found))
    if found:
        raise AuditError(f"several examples begin with {start!r}: {_list(found)}; give more digits")
    near = like.format("true", "NOT contains(lower(id || any_value(prompt)), lower($start)), levenshtein(id, $start)")
    found = dict(connection.execute(near, {"start": start}).fetchall())
    raise AuditError(f"no example's id begins with {start!r}; the nearest: {_list(found)}")


def _list(found: Mapping[str, str]) -> str:
    return ", ".join(f"{id} ({prompt[:40]!r})" for id, prompt in list(found.items())[:SHOWN])
