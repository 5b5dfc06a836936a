"""What differs between two choices: rows that enter and leave with the reason, masks, and what was measured."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.artifacts.tables import digest, provenance, read_json, read_metrics, read_table
from tasks.artifacts.views import ask, opened, stream
from tasks.catalogue.derived import FULL, count_first, find_room, list_bounds, name_score, tell_not_taken, tell_unused
from tasks.selection.selectors import SELECTORS, name_chooser

# One side is a version of a project's catalogue, as tables `a_examples`, `a_subset`, `b_examples` ...
MASKED = ("tensors", "mask")  # tables that a choice without a mask may lack
EXAMPLES = "/examples.parquet"  # how the record of rows that were withdrawn names what they were withdrawn from
BOUNDS = pa.schema([("topic", pa.string()), ("most", pa.int64())])
FACTS = pa.schema([("selector", pa.string()), ("first", pa.int64()), ("room", pa.int64())])
NO_SCORES = "SELECT ''::VARCHAR AS id, 0.0 AS value WHERE false"
# What a selector reads (else its name) -> the file of what it sorts by, None where the choice has it, and its query.
SCORES = {
    "longest": (None, "SELECT id, response_tokens::DOUBLE AS value FROM {side}_subset"),
    "scores": ("scores/scores.parquet", "SELECT id, score AS value FROM {side}_sorted"),
    "gradients": ("gradients/phi_data.parquet", "SELECT id, score AS value FROM {side}_sorted"),
    "utility": (
        "utility/utility.parquet",
        "SELECT demo_id AS id, avg(utility) AS value FROM {side}_sorted WHERE demo_id <> target_id GROUP BY ALL",
    ),
}
GONE = pa.schema([("id", pa.string()), ("edited_to", pa.string()), ("step", pa.int64())])
CHANGED = """(
    SELECT 'enters' AS change, b.id, b.rank, a.gated, a.covered_by, a.cover
    FROM b_subset b LEFT JOIN a_subset a USING (id)
    WHERE b.chosen AND NOT coalesce(a.chosen, false)
    UNION ALL SELECT 'leaves', a.id, a.rank, b.gated, b.covered_by, b.cover
    FROM a_subset a LEFT JOIN b_subset b USING (id)
    WHERE a.chosen AND NOT coalesce(b.chosen, false))"""
KNOWN = """
    SELECT id, any_value(change ORDER BY used DESC) AS became, any_value(topic) AS topic, any_value(prompt) AS prompt,
        any_value(unused_because ORDER BY used DESC) AS because, bool_or(used AND split = 'pool') AS pool,
        any_value(split ORDER BY used DESC) AS split
    FROM {side}_examples WHERE id IN (SELECT id FROM listed) GROUP BY id"""
EDITED = """
    SELECT '{change}' AS change, id AS old, edited_to, step FROM {side}_withdrawn
    WHERE id IN (SELECT id FROM listed WHERE change = '{change}')"""
# What is known of a side's choice, as views: each row's score, the lowest that was chosen by it, the topics that had no
# room before the choice ended, and whether the choice is how the other side's begins.
SIDE = {
    "{side}_lowest": """
        SELECT min(value) AS lowest FROM {side}_subset JOIN {side}_scored USING (id)
        WHERE chosen AND rank > (SELECT first FROM {side}_facts)""",
    "{side}_full": FULL.format(subset="{side}_subset", bounds="{side}_bounds"),
    "{side}_begins": """
        SELECT count(*) AS taken, (SELECT selector FROM a_facts) = (SELECT selector FROM b_facts)
            AND count(*) = count(*) FILTER (other.rank = own.rank) AS begins
        FROM {side}_subset own LEFT JOIN {other}_subset other USING (id) WHERE own.chosen""",
}
KEPT_OUT = """
    SELECT '{change}' AS change, l.id, o.value AS now, s.value, lowest, most, taken, begins, response_tokens, room
    FROM listed l JOIN {side}_subset USING (id) LEFT JOIN {side}_scored s USING (id)
    LEFT JOIN {other}_scored o USING (id) LEFT JOIN {side}_full USING (topic), {side}_lowest, {side}_begins,
        {side}_facts
    WHERE l.change = '{change}'"""
WAS = "if(l.change = 'enters', 'was ', 'is ')"
# In the order in which they count; {{was}} is the row's "is" or "was", {{by}} the selector that did not take it.
TOLD = """
        WHEN begins THEN {was} || format('beyond the budget: number {{}}, and {{}} were chosen', rank, taken)
        WHEN value < lowest AND most IS DISTINCT FROM 0 THEN {was}
            || format('below the lowest chosen by {{}}: {{:.6g}} < {{:.6g}}', {by}, value, lowest)
            || CASE WHEN $same AND now <> value THEN format(if(l.change = 'enters', '; moved to {{:.6g}}',
            '; moved from {{:.6g}}'), now) ELSE '' END
        {not_taken}
        WHEN value = lowest THEN {was} || format('behind others that tie with it, by {{}}: {{:.6g}}', {by}, value)
        ELSE {was} || 'not taken by ' || {by}""".format(
    was=WAS, by="if(l.change = 'enters', $was, $is)", not_taken=tell_not_taken(WAS)
)
ROWS = f"""
    WITH RECURSIVE listed AS (FROM {CHANGED}
        QUALIFY row_number() OVER (PARTITION BY change ORDER BY rank, id) <= $most),
    known AS (SELECT 'leaves' AS of, * FROM ({KNOWN.format(side="a")})
        UNION ALL SELECT 'enters', * FROM ({KNOWN.format(side="b")})),
    followed AS ({EDITED.format(change="leaves", side="b")} UNION ALL {EDITED.format(change="enters", side="a")}
        UNION SELECT f.change, f.old, w.edited_to, w.step FROM followed f
        JOIN (SELECT 'leaves' AS change, * FROM b_withdrawn UNION ALL SELECT 'enters', * FROM a_withdrawn) w
        ON w.change = f.change AND w.id = f.edited_to AND w.step > f.step),
    gone AS (SELECT change, old AS id, first(edited_to ORDER BY step DESC) AS edited_to FROM followed GROUP BY ALL),
    kept_out AS ({KEPT_OUT.format(change="leaves", side="b", other="a")}
        UNION ALL {KEPT_OUT.format(change="enters", side="a", other="b")})
    SELECT l.change, l.id, own.topic, CASE
        WHEN other.id IS NULL AND gone.id IS NOT NULL THEN if(l.change = 'enters', 'was ', 'is ')
            || coalesce('edited to ' || gone.edited_to, 'withdrawn')
        WHEN other.id IS NULL AND l.change = 'enters' THEN if(own.became = 'edited'
            OR l.id IN (SELECT edited_to FROM b_withdrawn), 'edited row', 'new row')
        WHEN other.id IS NULL THEN 'is no row of ' || $after
        WHEN NOT other.pool THEN if(l.change = 'enters', 'was', 'is') || ' not chosen from: '
            || {tell_unused("other.because", "other.split")}
        WHEN gated THEN if(l.change = 'enters', 'was kept out by the gate', 'kept out by the gate')
        {TOLD}
        END AS reason, rank, own.prompt
    FROM listed l JOIN known own ON own.id = l.id AND own.of = l.change
    LEFT JOIN known other ON other.id = l.id AND other.of <> l.change
    LEFT JOIN gone ON gone.id = l.id AND gone.change = l.change
    LEFT JOIN kept_out ON kept_out.id = l.id AND kept_out.change = l.change
    ORDER BY l.change, rank, l.id"""
COUNTS = f"SELECT count(*) FILTER (change = 'enters'), count(*) FILTER (change = 'leaves') FROM {CHANGED}"
BOTH = "SELECT count(*) FROM a_subset JOIN b_subset USING (id) WHERE a_subset.chosen AND b_subset.chosen"
HELD_OUT = """
    WITH a AS (SELECT DISTINCT id FROM a_examples WHERE split = 'held_out' AND used),
    b AS (SELECT DISTINCT id FROM b_examples WHERE split = 'held_out' AND used)
    SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT count(*) FROM a JOIN b USING (id))"""
MASKS = """
    WITH a AS (SELECT tensor, "row", unnest(columns) AS entry FROM a_mask),
    b AS (SELECT tensor, "row", unnest(columns) AS entry FROM b_mask),
    shared AS (SELECT tensor, count(*) AS shared FROM a JOIN b USING (tensor, "row", entry) GROUP BY tensor)
    SELECT a_tensors.layer, a_tensors.module, sum(a_tensors.chosen)::BIGINT AS before,
        sum(b_tensors.chosen)::BIGINT AS after, coalesce(sum(shared), 0)::BIGINT AS shared,
        (sum(a_tensors.chosen) + sum(b_tensors.chosen) - coalesce(sum(shared), 0))::BIGINT AS "union",
        coalesce(sum(shared), 0) / (sum(a_tensors.chosen) + sum(b_tensors.chosen) - coalesce(sum(shared), 0)) AS jaccard
    FROM a_tensors JOIN b_tensors USING (tensor) LEFT JOIN shared USING (tensor)
    WHERE a_tensors.chosen + b_tensors.chosen > 0 GROUP BY ALL ORDER BY ALL"""


@dataclass(frozen=True)
class Side:
    """One of two choices."""

    name: str  # what it is called in what is told
    tables: Mapping[str, Any]  # by name, Arrow datasets
    metrics: Mapping[str, Any]  # metrics.json; empty where nothing was measured
    selector: str  # by which it was chosen
    scored: str  # the query of what it was sorted by: id, value


@dataclass(frozen=True)
class Diff:
    """What differs between two choices."""

    before: str
    after: str
    rows: tuple[dict[str, Any], ...]  # change, id, topic, reason, rank, prompt; of each change the first by rank
    enter: int  # rows that the second chose alone
    leave: int  # rows that the first chose alone
    both: int  # rows that both chose
    masks: tuple[dict[str, Any], ...]  # layer, module, before, after, shared, union, jaccard
    metrics: tuple[dict[str, Any], ...]  # arm, before, after, each with low and high
    held_out: tuple[int, int, int]  # rows that the first one's losses are of, the second one's, and both

    @property
    def measured_on(self) -> str | None:
        """Return in words which rows the losses are of, where they are not the same ones; None where they are."""
        before, after, both = self.held_out
        if not self.metrics or before == after == both:
            return None
        return (
            f"the losses are of other held-out rows: {before:,} then {after:,}, of which {both:,} are the same; "
            "compare each with chance on its own rows, not one with the other"
        )


def read_side(name: str, root: Path, version: str) -> Side:
    """Return a version of a project as one side.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    folders = {stage: Path(root) / f"data/{stage}/version={version}" for stage in ("examples", "selection")}
    measured = Path(root) / f"data/evaluation/version={version}/metrics.json"
    return read_choice(name, folders["examples"], folders["selection"], read_metrics(measured))


def read_choice(name: str, examples: Path, selection: Path, metrics: Mapping[str, Any] | None = None) -> Side:
    """Return a choice that lies anywhere as one side.

    Args:
        name: what it is called.
        examples, selection: folders of the two stages' artifacts.
        metrics: metrics.json; None: nothing was measured.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    paths = {"examples": examples / "examples.parquet", "subset": selection / "subset.parquet"}
    paths |= {name: selection / f"{name}.parquet" for name in MASKED if (selection / f"{name}.parquet").exists()}
    record = read_json(selection / "selection.json")
    selector, scored = record.get("selector", "its selector"), NO_SCORES
    by = SCORES.get(name_score(record) and (SELECTORS[selector].reads or selector))
    if by is not None and (by[0] is None or (path := find_read(selection, by[0])) is not None):
        scored = by[1]
        paths |= {"sorted": path} if by[0] else {}
    tables = {table: stream([path]) for table, path in paths.items()} | {"withdrawn": read_gone(examples)}
    bounds = [{"topic": topic, "most": most} for topic, (most, _) in list_bounds(record).items()]
    facts = [{"selector": name_chooser(record), "first": count_first(record), "room": find_room(record)}]
    tables |= {"bounds": pa.Table.from_pylist(bounds, schema=BOUNDS), "facts": pa.Table.from_pylist(facts, FACTS)}
    return Side(name, tables, metrics or {}, selector, scored)


def find_read(selection: Path, stage_file: str) -> Path | None:
    """Return a file that a choice was made of, beside it in its project or among the trials; None: it is another now.

    Args:
        selection: the choice's folder.
        stage_file: the stage that wrote it and the file's name, parted by a slash.
    """
    stage, file = stage_file.split("/")
    for name, known in provenance(selection / "subset.parquet")["inputs"].items():
        path = selection.parents[1] / name
        if name.startswith(f"{stage}/") and path.name == file and path.exists() and digest(path) == known:
            return path
    return None


def read_gone(examples: Path) -> pa.Table:
    """Return the rows that each version withdrew or edited, of all that examples continue from, the oldest first.

    A version is followed as far as its artifacts are there.

    Args:
        examples: folder of the examples of the last one.

    Raises:
        ArtifactError: an artifact was edited.
    """
    found, folder, seen = [], examples, set()
    while folder not in seen and (path := folder / "withdrawn.parquet").exists():
        seen.add(folder)
        found.append(read_table(path, columns=["id", "edited_to"]))
        made_from = [Path(name).parent.name for name in provenance(path)["inputs"] if name.endswith(EXAMPLES)]
        folder = examples.parent / made_from[0] if made_from else folder
    steps = [table.append_column("step", pa.array([-step] * len(table))) for step, table in enumerate(found)]
    return pa.concat_tables([GONE.empty_table(), *(table.cast(GONE) for table in steps)])


def compare(before: Side, after: Side, *, most: int | None = None, gigabytes: float | None = None) -> Diff:
    """Return what differs between two choices.

    Args:
        before, after: the choices.
        most: rows that are listed of those that enter, and of those that leave; None: all.
        gigabytes: of memory that this may take; None: what DuckDB takes.
    """
    sources = {
        f"{end}_{name}": table
        for end, side in zip("ab", (before, after), strict=True)
        for name, table in side.tables.items()
    }
    ends = (("a", "b", before), ("b", "a", after))
    derived = {f"{side}_scored": one.scored.format(side=side) for side, _, one in ends}
    for side, other, _ in ends:
        derived |= {name.format(side=side): sql.format(side=side, other=other) for name, sql in SIDE.items()}
    with opened(sources, derived=derived, gigabytes=gigabytes) as connection:
        said = {"was": before.selector, "is": after.selector, "after": after.name}
        said["same"] = before.selector == after.selector
        said["most"] = sys.maxsize if most is None else most
        rows = ask(connection, ROWS, said)
        ((enter, leave),) = connection.execute(COUNTS).fetchall()
        ((both,),) = connection.execute(BOTH).fetchall()
        ((*held_out,),) = connection.execute(HELD_OUT).fetchall()
        masked = {"mask", "tensors"} <= before.tables.keys() & after.tables.keys()
        masks = ask(connection, MASKS) if masked else []
    metrics = _compare_metrics(before.metrics, after.metrics)
    listed = tuple(rows), enter, leave, both, tuple(masks), tuple(metrics)
    return Diff(before.name, after.name, *listed, tuple(held_out))


def _compare_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the losses of arms that both sides measured, each with its interval."""
    one, two = before.get("arms", {}), after.get("arms", {})
    return [
        {"arm": arm}
        | {
            f"{end}{part}": side[arm].get(f"loss{part}")
            for end, side in (("before", one), ("after", two))
            for part in ("", "_low", "_high")
        }
        for arm in one
        if arm in two
    ]
