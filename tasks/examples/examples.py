"""The stage `examples`: raw files in, one table of conversations out, and nothing dropped without a reason."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tamis.examples import splits
from tamis.examples.conversations import identify_question, split_key
from tamis.examples.splits import Before, Rows
from tamis.language.chat_templates import refuse_moving
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.conversations import open_template, read_conversation
from tasks.examples.files import ExamplesError, NotRead, RawFile, is_inside, list_contents, list_files
from tasks.examples.reading import LONG, Facts, Reader, read_files
from tasks.examples.settings import ExamplesSettings
from tasks.folders import Folders

SIDES = (splits.POOL, splits.TARGET, splits.HELD_OUT, splits.GENERAL)
TRAIN = "train"  # the split of a data set that is chosen from
SHOWN = 3  # bad rows that an error names


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


@dataclass(frozen=True)
class Earlier:
    """The distinct examples of the version before, in its order, and what this version must know of each."""

    table: pa.Table
    questions: list[str]  # digest of all but the answers
    keys: list[str]  # what decides on the side
    earlier: list[str | None]  # offered | learnt, that version counted

    def tell(self) -> Before:
        """Return what a version is compared with."""
        offered = [each is not None for each in self.earlier]
        learnt = [each == "learnt" for each in self.earlier]
        return Before(self.table["id"].to_pylist(), self.questions, offered, learnt)


def write_examples(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: ExamplesSettings,
    held_out_share: float,
) -> Mapping[str, Any]:
    """Read a version's raw files and write examples, rejects and withdrawn (.parquet) and examples.json.

    Args:
        folders: `raw` is a file, a folder or a pattern; of the version before, examples and subset are read, which may
            hold no row.
        model: its template writes the conversations, and its tokenizer counts; each must fit its `max_tokens`.
        held_out_share: topics whose held-out share is lower are named.

    Returns:
        How many rows were read and rejected, what was not read, and what was left out of how many rows.

    Raises:
        ExamplesError: no data, an unknown field, bad rows under `stop`, an empty side, a single example.
        SplitError: the target task has no rows, or one with the prompt of a held-out row; a general row has the
            prompt of another row, or of one that an earlier version chose.
        TemplateError: no conversation can be written, or a template whose text moves with the clock.
    """
    raw, out, version = folders.raw, folders.here.examples, folders.here.version
    previous_examples, previous_subset = folders.before.examples, folders.before.selection
    files, ignored = choose_files(raw, settings)
    reader, facts = open_reader(model, settings), Facts()
    folders.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folders.cache, prefix=".examples-") as scratch:
        kept = Path(scratch) / "read.arrow"
        spill(read_files(files, reader, facts), kept)
        refuse_bad_rows(facts, settings)
        before = read_before(previous_examples, previous_subset)
        division = divide(facts, before, settings, Path(raw))
        refuse_empty_sides(division, settings)
        old = previous_examples / "examples.parquet", previous_subset / "subset.parquet"
        made = _trace([*(file.path for file in files), *old], version, model, settings)
        rows = add_division(stream(kept), facts, division)
        tables.write_tables(rows, schemas.EXAMPLES, out / "examples.parquet", made)
    tables.write_table(make_rejects(facts), out / "rejects.parquet", made)
    gone = make_withdrawn(before, facts, division.ids)
    tables.write_table(gone, out / "withdrawn.parquet", made)
    counts = measure(division, facts, held_out_share) | {"ignored_files": [list(each) for each in ignored]}
    tables.write_json(counts | count_changes(division, gone), out / "examples.json")
    told = {"rows_read": facts.count, "rows_rejected": len(facts.rejects), "not_read": [each.name for each in ignored]}
    return told | {"notes": dict(facts.notes), "rows_split": facts.split}


def choose_files(raw: Path, settings: ExamplesSettings) -> tuple[list[RawFile], list[NotRead]]:
    """Return the files that are read, and what is not with the reasons.

    Of a data set with splits only `train` is chosen from; another is measured on where `examples.held_out` names it.
    """
    files, ignored = list_files(raw, name_apart(settings))
    named = (settings.held_out or {}).get("split")
    splits_there = {file.split for file in files}
    if named is not None and named not in splits_there:
        known = ", ".join(sorted(each for each in splits_there if each)) or "none"
        raise ExamplesError(
            f"examples.held_out is split: {named}, and no file of {raw} is of that split; there are {known}"
        )
    if TRAIN not in splits_there and named is None:
        return files, ignored
    apart = name_apart(settings).values()
    read, left = [], list(ignored)
    for file in files:
        inside = any(is_inside(file.name, raw, name) for name in apart)
        if inside or file.split in (None, TRAIN, named):
            read.append(file)
        else:
            reason = f"is the split {file.split}; set examples.held_out: {{split: {file.split}}} to measure on it"
            left.append(NotRead(file.name.partition("/")[2] or file.name, reason))
    return read, left


def open_reader(model: models.ModelChoice, settings: ExamplesSettings) -> Reader:
    """Return how rows are read for a model.

    Raises:
        TemplateError: nothing can be written for it, or a template whose text moves with the clock.
    """
    models.check_context(model)
    template = open_template(model)
    refuse_moving(template)
    return Reader(settings, template, tuple(sorted(set(template.tokenizer.all_special_tokens))), model.max_tokens)


def spill(rows: Iterator[pa.Table], path: Path) -> None:
    """Write tables to a scratch file, one in memory at a time."""
    from tasks.examples.reading import READ

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, READ) as writer:
        for table in rows:
            writer.write_table(table)


def stream(path: Path) -> Iterator[pa.Table]:
    """Yield the tables of a scratch file."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def add_division(rows: Iterator[pa.Table], facts: Facts, division: Division) -> Iterator[pa.Table]:
    """Yield tables of rows with what became of each; `duplicate_of` names rows by their number, not by their place."""
    start = 0
    for table in rows:
        part = slice(start, start + table.num_rows)
        start = part.stop
        links = [None if link is None else facts.rows[link] for link in division.first[part]]
        derived = {
            "id": division.ids[part],
            "split": division.sides[part],
            "change": division.changes[part],
            "earlier": division.earlier[part],
            "duplicate_of": links,
            "used": [reason is None for reason in division.because[part]],
            "unused_because": division.because[part],
        }
        columns = {name: table[name] for name in table.column_names} | derived
        yield pa.table({name: columns[name] for name in schemas.EXAMPLES.names}, schema=schemas.EXAMPLES)


def name_apart(settings: ExamplesSettings) -> dict[str, str]:
    """Return the parameters that name a file or folder inside the raw folder, and what they name."""
    found = {
        "examples.target.path": (settings.target or {}).get("path"),
        "examples.held_out.path": (settings.held_out or {}).get("path"),
        "examples.retention_set": settings.retention_set,
    }
    return {parameter: name for parameter, name in found.items() if name is not None}


def read_before(examples: Path, subset: Path) -> Earlier:
    """Return the distinct examples of the version before, each with what this version must know of it."""
    table = tables.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    table = table.filter(pc.is_null(table["duplicate_of"]))
    picked = tables.read_table(subset / "subset.parquet", schemas.SUBSET)
    chosen = {_text_id(each) for each in picked.filter(picked["chosen"])["id"].to_pylist()}
    return make_earlier(table, chosen)


def make_earlier(table: pa.Table, chosen: set[str]) -> Earlier:
    """Return what a version must know of distinct examples of the one before, of which some were chosen."""
    questions, keys, earlier = [], [], []
    for batch in table.select(["id", "topic", "messages", "tools", "earlier", "used", "split"]).to_batches():
        for row in batch.to_pylist():
            conversation = read_conversation(row)
            questions.append(identify_question(conversation, row["topic"]))
            keys.append(splits.shorten(split_key(conversation)))
            learnt = row["earlier"] == "learnt" or _text_id(row["id"]) in chosen
            offered = row["earlier"] or (row["used"] and row["split"] == splits.POOL)
            earlier.append("learnt" if learnt else "offered" if offered else None)
    return Earlier(table, questions, keys, earlier)


def divide(facts: Facts, earlier: Earlier, settings: ExamplesSettings, raw: Path) -> Division:
    """Give each row its side, what is new about it, and whether later stages use it.

    Prompts that the version before is measured on are kept out of the target task, those that earlier versions chose
    out of the general set, and those of the user's own held-out rows out of the pool.
    """
    before, ids = earlier.tell(), facts.ids
    used = earlier.table["used"].to_pylist()
    side = earlier.table["split"].to_pylist()
    measured = [key for key, *two in zip(earlier.keys, used, side, strict=True) if two == [True, splits.HELD_OUT]]
    target = settings.target or {}
    given = tell_given(facts.files, raw, settings)
    drawn = facts.drawn if settings.held_out is None else [False] * len(ids)
    sides = splits.assign_sides(facts.keys, given, drawn, measured)
    changes = splits.label_changes(ids, facts.questions, before)
    rows = Rows(ids, splits.link_duplicates(facts.same), sides, facts.topics, changes)
    if "topic" in target:
        sides = splits.set_apart(rows, target["topic"], target.get("rows"), settings.seed)
        rows = Rows(ids, rows.first, sides, rows.topics, changes)
    taught = [key for key, one in zip(earlier.keys, earlier.earlier, strict=True) if one == "learnt"]
    splits.refuse_shared(facts.keys, sides, taught)
    because = splits.mark_used(
        rows,
        ground_set=settings.ground_set,
        distinct=settings.distinct,
        seed=settings.seed,
        pool_rows=settings.pool_rows,
        held_out_rows=settings.held_out_rows,
        barred=splits.find_asked_elsewhere(facts.keys, sides),
    )
    named = ids if settings.distinct else splits.number_repetitions(ids)
    return Division(named, list(rows.first), list(sides), changes, splits.tell_earlier(ids, before), because)


def tell_given(files: Sequence[str], raw: Path, settings: ExamplesSettings) -> list[str | None]:
    """Return the side that a parameter gives to each row's file; None: it depends on the row's prompt."""
    sides = {
        "examples.target.path": splits.TARGET,
        "examples.held_out.path": splits.HELD_OUT,
        "examples.retention_set": splits.GENERAL,
    }
    apart, named = name_apart(settings), (settings.held_out or {}).get("split")
    held_out = {file.name for file in list_files(raw, apart)[0] if named is not None and file.split == named}
    known: dict[str, str | None] = {}
    for file in set(files):
        found = (sides[parameter] for parameter, name in apart.items() if is_inside(file, raw, name))
        known[file] = next(found, splits.HELD_OUT if file in held_out else None)
    return [known[file] for file in files]


def refuse_bad_rows(facts: Facts, settings: ExamplesSettings) -> None:
    """Stop at bad rows, unless they are to be rejected; rows that are too long have a setting of their own.

    Raises:
        ExamplesError: how many of how many rows are bad, the first of them, and the way out; or no good row at all.
    """
    if not facts.count:
        raise ExamplesError("the raw files hold no rows; an example has at least a question and an answer")
    long_way = "raise it, or set examples.on_long_row: reject, or drop_turns, which leaves out whole exchanges"
    bad_way = "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    stops = {True: settings.on_long_row == "stop", False: settings.on_bad_row == "stop"}
    rejects = sorted(facts.rejects)
    bad = [row for row in rejects if stops[row[3].startswith(LONG)]]
    if len(rejects) == facts.count:
        bad = rejects
    if not bad:
        return
    kinds = Counter(reason.split(":")[0] for *_, reason, _ in bad)
    first = "; ".join(f"{file}:{line}: {reason}" for _, file, line, reason, _ in bad[:SHOWN])
    long = {row[3].startswith(LONG) for row in bad}
    ways = [way for way, of_long in ((long_way, True), (bad_way, False)) if of_long in long]
    way_out = "; ".join(ways) if len(rejects) < facts.count else "no example is left, so mend the files"
    raise ExamplesError(
        f"{len(bad)} of {facts.count} rows are bad ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); "
        f"first {first}; {way_out}"
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


def measure(division: Division, facts: Facts, held_out_share: float) -> dict[str, Any]:
    """Return the counts that examples.json holds; shares are of distinct examples but general ones, before sampling."""
    distinct = [link is None for link in division.first]
    topics = list(compress(facts.topics, distinct))
    placed = zip(topics, compress(division.sides, distinct), strict=True)
    shares = splits.share_held_out((topic, side == splits.HELD_OUT) for topic, side in placed if side != splits.GENERAL)
    return {
        "rows": facts.count,
        "rejects": len(facts.rejects),
        "notes": dict(facts.notes),
        "empty_files": facts.empty,
        "formats": facts.formats,
        "split_rows": facts.split,
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


def make_withdrawn(before: Earlier, facts: Facts, ids: list[str]) -> pa.Table:
    """Return the examples of the version before that are here no more, as a table."""
    gone = splits.find_withdrawn([_text_id(each) for each in ids], facts.questions, before.tell())
    places = [place for place, _ in gone]
    found = before.table.take(pa.array(places, pa.int64()))
    derived = {"edited_to": [instead for _, instead in gone], "earlier": [before.earlier[place] for place in places]}
    columns = {name: found[name] for name in ("id", "topic", "prompt", "response", "split")} | derived
    return pa.table({name: columns[name] for name in schemas.WITHDRAWN.names}, schema=schemas.WITHDRAWN)


def make_rejects(facts: Facts) -> pa.Table:
    """Return the bad rows as a table, in the order of the files."""
    rows = [dict(zip(schemas.REJECTS.names, place, strict=True)) for _, *place in sorted(facts.rejects)]
    return pa.Table.from_pylist(rows, schema=schemas.REJECTS)


def _trace(files: list[Path], version: str, model: models.ModelChoice, settings: ExamplesSettings) -> tables.Provenance:
    asked = {name: value for name, value in vars(settings).items() if name not in ("on_bad_row", "on_long_row", "seed")}
    asked |= {"template": model.template, "model": Path(model.name).name, "max_tokens": model.max_tokens}
    inputs = tables.digest_inputs(*(path for file in files for path in list_contents(file)))
    return tables.Provenance("examples", version, asked, inputs, settings.seed)


def _text_id(each: str) -> str:
    """Return the digest of an example's text, whichever repetition of it the id is of."""
    return each.partition("-")[0]
