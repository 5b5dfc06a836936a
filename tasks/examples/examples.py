"""The stage `examples`: raw files in, one table of examples out, and nothing dropped without a reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tamis.examples import parsing, splits
from tamis.examples.parsing import PARTS, check_fields, identify
from tamis.examples.splits import Before, Rows
from tamis.language.templates import count_overhead, join_instruction
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.examples.raw_files import READ, SHOWN, ExamplesError, Reading, is_inside, list_files, read_rows, reject, show
from tasks.examples.settings import ExamplesSettings
from tasks.folders import Folders

BATCH = 1024  # rows per call of the tokenizer
SIDES = (splits.POOL, splits.TARGET, splits.HELD_OUT, splits.GENERAL)


@dataclass(frozen=True)
class Division:
    """What becomes of each row, in the rows' order."""

    ids: list[str]
    first: list[int | None]  # place of the first row with the same text; None at that row itself
    sides: list[str]  # pool | target | held_out | general
    changes: list[str]  # kept | edited | new
    earlier: list[str | None]  # offered | learnt
    because: list[str | None]  # why it is not used; None: it is

    def count(self, side: str) -> int:
        """Return how many rows of a side are used."""
        return sum(each == side and why is None for each, why in zip(self.sides, self.because, strict=True))


def write_examples(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: ExamplesSettings,
    held_out_share: float,
) -> None:
    """Read a version's raw files and write examples, rejects and withdrawn (.parquet) and examples.json.

    Args:
        folders: `raw` is one file, or a folder whose data files are read by name; of the version before, examples and
            subset are read, which may hold no row.
        model: its tokenizer counts; prompt and response must fit its `max_tokens`, in its template.
        held_out_share: topics whose held-out share is lower are named.

    Raises:
        ExamplesError: no data, an unknown field, bad rows under `stop`, an empty side, a single example.
        SplitError: the target task has no rows, or one with the prompt of a held-out row; a general row has the
            prompt of another row, or of one that an earlier version chose.
    """
    raw, out, version = folders.raw, folders.here.examples, folders.here.version
    previous_examples, previous_subset = folders.before.examples, folders.before.selection
    check_fields(settings.fields)
    files, ignored = list_files(raw, name_apart(settings))
    reading = read_rows(files, settings.fields)
    tokens = count_tokens(reading, model)
    refuse_bad_rows(reading, settings.on_bad_row)

    before = read_before(previous_examples, previous_subset)
    division = divide(reading.columns, before, settings, Path(raw))
    refuse_empty_sides(division, settings)
    old = previous_examples / "examples.parquet", previous_subset / "subset.parquet"
    made = _trace([*files.values(), *old], version, model, settings)
    tables.write_table(make_table(reading.columns | tokens, division), out / "examples.parquet", made)
    tables.write_table(make_rejects(reading), out / "rejects.parquet", made)
    gone = make_withdrawn(before, reading.columns, division.ids)
    tables.write_table(gone, out / "withdrawn.parquet", made)
    counts = measure(division, reading, held_out_share) | {"ignored_files": ignored}
    tables.write_json(counts | count_changes(division, gone), out / "examples.json")


def name_apart(settings: ExamplesSettings) -> dict[str, str]:
    """Return the parameters that name a file or folder inside the raw folder, and what they name."""
    found = {
        "examples.target.path": (settings.target or {}).get("path"),
        "examples.retention_set": settings.retention_set,
    }
    return {parameter: name for parameter, name in found.items() if name is not None}


def read_before(examples: Path, subset: Path) -> list[dict[str, Any]]:
    """Return the distinct examples of the version before, each with what this version must know of it (`earlier`)."""
    table = tables.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    picked = tables.read_table(subset / "subset.parquet", schemas.SUBSET)
    chosen = {_text_id(each) for each in picked.filter(picked["chosen"])["id"].to_pylist()}
    rows = table.filter(pc.is_null(table["duplicate_of"])).to_pylist()
    for row in rows:
        learnt = row["earlier"] == "learnt" or _text_id(row["id"]) in chosen
        offered = row["earlier"] or (row["used"] and row["split"] == splits.POOL)
        row["earlier"] = "learnt" if learnt else "offered" if offered else None
    return rows


def make_before(rows: list[dict[str, Any]]) -> Before:
    """Return what a version is compared with."""
    keys = [_key(row) for row in rows]
    offered, learnt = [row["earlier"] is not None for row in rows], [row["earlier"] == "learnt" for row in rows]
    return Before([row["id"] for row in rows], keys, offered, learnt)


def divide(
    columns: Mapping[str, list], earlier: list[dict[str, Any]], settings: ExamplesSettings, raw: Path
) -> Division:
    """Give each row its id, its side, what is new about it, and whether later stages use it.

    Prompts that the version before is measured on are kept out of the target task, those that `earlier` versions chose
    out of the general set.
    """
    before = make_before(earlier)
    measured = [row["prompt"] for row in earlier if row["used"] and row["split"] == splits.HELD_OUT]
    texts = zip(columns["prompt"], columns["response"], columns["instruction"], strict=True)
    ids = [identify(*text) for text in texts]
    target = settings.target or {}
    given = [tell_given(file, raw, settings) for file in columns["file"]]
    drawn = {"held_out_every": settings.held_out_every, "seed": settings.seed, "measured": measured}
    sides = splits.assign_sides(columns["prompt"], given, **drawn)
    changes = splits.label_changes(ids, list(_keys(columns)), before)
    rows = Rows(ids, splits.link_duplicates(ids), sides, columns["topic"], changes)
    if "topic" in target:
        sides = splits.set_apart(rows, target["topic"], target.get("rows"), settings.seed)
        rows = Rows(ids, rows.first, sides, rows.topics, changes)
    splits.refuse_shared(columns["prompt"], sides, [row["prompt"] for row in earlier if row["earlier"] == "learnt"])
    because = splits.mark_used(
        rows,
        ground_set=settings.ground_set,
        distinct=settings.distinct,
        seed=settings.seed,
        pool_rows=settings.pool_rows,
        held_out_rows=settings.held_out_rows,
    )
    named = ids if settings.distinct else splits.number_repetitions(ids)
    return Division(named, list(rows.first), list(sides), changes, splits.tell_earlier(ids, before), because)


def tell_given(file: str, raw: Path, settings: ExamplesSettings) -> str | None:
    """Return the side that a parameter gives to a file's rows; None: it depends on their prompts."""
    sides = {"examples.target.path": splits.TARGET, "examples.retention_set": splits.GENERAL}
    named = (sides[parameter] for parameter, name in name_apart(settings).items() if is_inside(file, raw, name))
    return next(named, None)


def count_tokens(reading: Reading, model: models.ModelChoice) -> dict[str, list[int]]:
    """Return prompt_tokens (instruction and prompt) and response_tokens (with the end-of-turn token) of the good rows.

    Rows that the model's context cannot hold, or that hold a control token's text, are moved to the rejects first.
    """
    tokenizer, columns = models.tokenizer(model), reading.columns
    queries = [join_instruction(*pair) for pair in zip(columns["instruction"], columns["prompt"], strict=True)]
    prompts = _count(tokenizer, queries)
    responses = [tokens + 1 for tokens in _count(tokenizer, columns["response"])]
    models.check_context(model)
    room = model.max_tokens - count_overhead(tokenizer, model.template)
    texts = (f"{query} {response}" for query, response in zip(queries, columns["response"], strict=True))
    control = sorted(set(tokenizer.all_special_tokens))
    rows = zip(prompts, responses, texts, strict=True)
    reasons = [parsing.find_fault((prompt, response), text, room, control) for prompt, response, text in rows]
    fits = [reason is None for reason in reasons]
    for place in (place for place, fit in enumerate(fits) if not fit):
        row, file, line, *parts = (columns[name][place] for name in READ)
        text = show({part: value for part, value in zip(PARTS, parts, strict=True) if value is not None})
        reject(reading, (row, file, line), str(reasons[place]), text)
    for name in READ:
        columns[name] = list(compress(columns[name], fits))
    return {"prompt_tokens": list(compress(prompts, fits)), "response_tokens": list(compress(responses, fits))}


def refuse_bad_rows(reading: Reading, on_bad_row: str) -> None:
    """Stop at bad rows, unless they are to be rejected.

    Raises:
        ExamplesError: how many of how many rows are bad, the first of them, and the way out; or no good row at all.
    """
    if on_bad_row not in ("stop", "reject"):
        raise ExamplesError(f"examples.on_bad_row is {on_bad_row!r}; give stop or reject")
    bad = sorted(reading.rejects)
    if not reading.rows:
        raise ExamplesError("the raw files hold no rows; an example has at least a prompt and a response")
    if not bad or (on_bad_row == "reject" and len(bad) < reading.rows):
        return
    kinds = Counter(reason.split(":")[0] for _, _, _, reason, _ in bad)
    first = "; ".join(f"{file}:{line}: {reason}" for _, file, line, reason, _ in bad[:SHOWN])
    way_out = "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    raise ExamplesError(
        f"{len(bad)} of {reading.rows} rows are bad ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); "
        f"first {first}; {way_out if len(bad) < reading.rows else 'no example is left, so mend the files'}"
    )


def refuse_empty_sides(division: Division, settings: ExamplesSettings) -> None:
    """Check that there is something to choose from, and something to measure on.

    Raises:
        ExamplesError: fewer than two used examples in the pool, none held out, or no row of a target task or a general
            set asked for.
    """
    held_out, pool = division.count(splits.HELD_OUT), division.count(splits.POOL)
    found = f"{len(division.ids)} rows, {division.first.count(None)} distinct"
    kept = division.because.count("kept")
    if pool < 2:
        why = (
            f", and {kept} kept from the version before: set examples.ground_set: all to choose among them"
            if kept
            else ""
        )
        raise ExamplesError(
            f"the pool has {pool} usable example{'' if pool == 1 else 's'} ({found}, {held_out} used held-out{why}); "
            "choosing needs 2 or more: give more rows, or raise examples.held_out_every or examples.pool_rows"
        )
    if not held_out:
        raise ExamplesError(
            f"no row is held out ({found}), so nothing could be measured; "
            "give more rows, lower examples.held_out_every, or raise examples.held_out_rows"
        )
    if settings.target is not None and not division.count(splits.TARGET):
        raise ExamplesError(
            f"examples.target is {dict(settings.target)} and gives no row ({found}); name other rows, or set it to null"
        )
    if settings.retention_set is not None and not division.count(splits.GENERAL):
        raise ExamplesError(
            f"examples.retention_set is {settings.retention_set!r} and gives no row ({found}); name other rows, or "
            "set it to null"
        )


def measure(division: Division, reading: Reading, held_out_share: float) -> dict[str, Any]:
    """Return the counts that examples.json holds; shares are of distinct examples but general ones, before sampling."""
    distinct = [link is None for link in division.first]
    topics = list(compress(reading.columns["topic"], distinct))
    placed = zip(topics, compress(division.sides, distinct), strict=True)
    shares = splits.share_held_out((topic, side == splits.HELD_OUT) for topic, side in placed if side != splits.GENERAL)
    return {
        "rows": reading.rows,
        "rejects": len(reading.rejects),
        "distinct": len(topics),
        "duplicates": len(division.ids) - len(topics),
        "used": {side: division.count(side) for side in SIDES},
        "topics": dict(sorted(Counter(topics).items())),
        "held_out_share": shares,
        "topics_below": [topic for topic, share in shares.items() if share < held_out_share],
    }


def count_changes(division: Division, gone: pa.Table) -> dict[str, Any]:
    """Return how many distinct examples are kept, edited, new and withdrawn, and how many earlier versions taught."""
    distinct = [link is None for link in division.first]
    changes = Counter(compress(division.changes, distinct))
    return {
        "changes": {name: changes[name] for name in ("kept", "edited", "new")}
        | {"withdrawn": gone["edited_to"].null_count},
        "learnt": Counter(compress(division.earlier, distinct))["learnt"],
        "learnt_withdrawn": pc.sum(pc.equal(gone["earlier"], "learnt")).as_py() or 0,
    }


def make_table(columns: Mapping[str, list], division: Division) -> pa.Table:
    """Return the examples as a table; `duplicate_of` names rows by their number, not by their place in the table."""
    rows = columns["row"]
    derived = {
        "id": division.ids,
        "split": division.sides,
        "change": division.changes,
        "earlier": division.earlier,
        "duplicate_of": [None if link is None else rows[link] for link in division.first],
        "used": [reason is None for reason in division.because],
        "unused_because": division.because,
    }
    return pa.table(dict(columns) | derived, schema=schemas.EXAMPLES)


def make_withdrawn(before: list[dict[str, Any]], columns: Mapping[str, list], ids: list[str]) -> pa.Table:
    """Return the examples of the version before that are here no more, as a table."""
    names = [_text_id(each) for each in ids]
    gone = splits.find_withdrawn(names, list(_keys(columns)), make_before(before))
    rows = [before[place] | {"edited_to": instead} for place, instead in gone]
    columns = {name: [row[name] for row in rows] for name in schemas.WITHDRAWN.names}
    return pa.table(columns, schema=schemas.WITHDRAWN)


def make_rejects(reading: Reading) -> pa.Table:
    """Return the bad rows as a table, in the order of the files."""
    rows = [dict(zip(schemas.REJECTS.names, place, strict=True)) for _, *place in sorted(reading.rejects)]
    return pa.Table.from_pylist(rows, schema=schemas.REJECTS)


def _trace(files: list[Path], version: str, model: models.ModelChoice, settings: ExamplesSettings) -> tables.Provenance:
    asked = {name: value for name, value in vars(settings).items() if name not in ("on_bad_row", "seed")}
    asked |= {"template": model.template, "model": Path(model.name).name, "max_tokens": model.max_tokens}
    inputs = tables.digest_inputs(*(path for file in files for path in _contents(file)))
    return tables.Provenance("examples", version, asked, inputs, settings.seed)


def _keys(columns: Mapping[str, list]) -> Iterator[tuple]:
    return zip(columns["topic"], columns["instruction"], columns["prompt"], strict=True)


def _key(row: Mapping[str, Any]) -> tuple:
    return row["topic"], row["instruction"], row["prompt"]


def _text_id(each: str) -> str:
    """Return the digest of an example's text, whichever repetition of it the id is of."""
    return each.partition("-")[0]


def _count(tokenizer: Any, texts: list[str]) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(texts), BATCH):
        ids = tokenizer(texts[start : start + BATCH], add_special_tokens=False, verbose=False).input_ids
        counts += [len(each) for each in ids]
    return counts


def _contents(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(inside for inside in path.rglob("*") if inside.is_file())
