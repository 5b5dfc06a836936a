"""The stage `examples`: raw files in, one table of conversations out, and nothing dropped without a reason."""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tamis.examples import splits
from tamis.examples.near_duplicates import join_dialogue
from tamis.language.chat_templates import find_left_out, list_turn_texts, refuse_moving
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.conversations import read_conversation
from tasks.decisions import VETO, list_decided
from tasks.erasure.record import list_same
from tasks.examples.division import Division, divide, make_lingering, make_withdrawn, name_apart, read_before
from tasks.examples.files import ExamplesError, NotRead, RawFile, is_inside, list_contents, list_files, name_inputs
from tasks.examples.near import PLANTED, VETOED, find_likeness
from tasks.examples.reading import LONG, READ, Facts, Reader, read_files, tell_notes
from tasks.examples.settings import ExamplesSettings, list_sources
from tasks.folders import Folders
from tasks.tokens import open_template

SIDES = (splits.POOL, splits.TARGET, splits.VALIDATION, splits.HELD_OUT, splits.GENERAL)
TRAIN = "train"  # the split of a data set that is chosen from
SHOWN = 3  # bad rows that an error names


def write_examples(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: ExamplesSettings,
    held_out_share: float,
    erased: Path | None = None,
    decisions: Path | None = None,
) -> Mapping[str, Any]:
    """Read a version's raw files and write examples, rejects, withdrawn and lingering (.parquet) and examples.json.

    Args:
        folders: `raw` is a file, a folder or a pattern; of the version before, examples, what lingers there and subset
            are read, which may hold no row.
        model: its template writes the conversations, and its tokenizer counts; each must fit its `max_tokens`.
        held_out_share: topics whose held-out share is lower are named.
        erased: the list of erased rows, which are left out, whatever file or version brings them; None: none is.
        decisions: the list of vetoed rows, which are not used; None: none is.

    Returns:
        How many rows were read, rejected and left out as erased, what was not read, and what was left out of how many
        rows.

    Raises:
        ExamplesError: no data, an unknown field, bad rows under `stop`, an empty side, a single example.
        SplitError: the target task has no rows, or one with the prompt of a held-out row; a general row has the
            prompt of another row, or of one that an earlier version chose.
        TemplateError: no conversation can be written, or a template whose text moves with the clock.
    """
    raw, out, version = folders.raw, folders.here.examples, folders.here.version
    previous_examples, previous_subset = folders.before.examples, folders.before.selection
    files, ignored = choose_files(raw, settings)
    same = list_same(erased) if erased else frozenset()
    reader, facts = open_reader(model, settings, version, same), Facts()
    folders.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folders.cache, prefix=".examples-") as scratch:
        kept = Path(scratch) / "read.arrow"
        spill(read_files(files, reader, facts), kept)
        refuse_bad_rows(facts, settings)
        before = read_before(previous_examples, previous_subset, same)
        compare = partial(find_likeness, Texts(kept), settings=settings)
        division = divide(facts, before, settings, Path(raw), compare, vetoed=list_decided(decisions, VETO))
        refuse_empty_sides(division, settings)
        old = [previous_examples / f"{name}.parquet" for name in ("examples", "lingering")]
        old.append(previous_subset / "subset.parquet")
        read = name_inputs(raw, (path for file in files for path in list_contents(file.path)))
        inputs = {name: tables.digest(path) for name, path in read.items()} | tables.digest_inputs(*old)
        made = _trace(inputs, version, model, settings)
        rows = add_division(stream(kept), facts, division)
        tables.write_tables(rows, schemas.EXAMPLES, out / "examples.parquet", made)
    tables.write_table(make_rejects(facts), out / "rejects.parquet", made)
    gone = make_withdrawn(before, facts, previous_examples / "examples.parquet")
    tables.write_table(gone, out / "withdrawn.parquet", made)
    tables.write_table(make_lingering(before, facts, version), out / "lingering.parquet", made)
    counts = measure(division, facts, held_out_share) | {"ignored_files": [list(each) for each in ignored]}
    tables.write_json(counts | count_changes(division, gone), out / "examples.json")
    told = {"rows_read": facts.count, "rows_rejected": len(facts.rejects), "not_read": [each.name for each in ignored]}
    return told | {"notes": tell_notes(facts), "rows_split": facts.split, "rows_erased": facts.erased}


def choose_files(raw: Path, settings: ExamplesSettings) -> tuple[list[RawFile], list[NotRead]]:
    """Return the files that are read, and what is not with the reasons.

    Of a data set with splits only `train` is chosen from, where it has one; another is measured on where
    `examples.held_out` names it. Its rows come first: what repeats one of them is the repetition.

    Raises:
        ExamplesError: as `list_files`; no file is of the split that is to be held out.
    """
    files, ignored = list_files(raw, name_apart(settings))
    named, apart = (settings.held_out or {}).get("split"), name_apart(settings).values()
    there = {file.split for file in files if not any(is_inside(file.name, raw, name) for name in apart)}
    if named is not None and named not in there:
        known = ", ".join(sorted(each for each in there if each)) or "none"
        raise ExamplesError(
            f"examples.held_out is split: {named}, and no file of {raw} is of that split; there are {known}"
        )
    chosen = {None, TRAIN, named} if TRAIN in there and named != TRAIN else there
    read, left = [], list(ignored)
    for file in files:
        if file.split in chosen or any(is_inside(file.name, raw, name) for name in apart):
            read.append(file)
        else:
            reason = f"is the split {file.split}; set examples.held_out: {{split: {file.split}}} to measure on it"
            left.append(NotRead(file.name.partition("/")[2] or file.name, reason))
    return sorted(read, key=lambda file: named is None or file.split != named), left


def open_reader(
    model: models.ModelChoice, settings: ExamplesSettings, version: str, erased: Collection[str] = ()
) -> Reader:
    """Return how rows of a version are read for a model, but for those that were erased, by their `same_as`.

    Raises:
        TemplateError: nothing can be written for it, or a template whose text moves with the clock.
    """
    models.check_context(model)
    template = open_template(model)
    refuse_moving(template)
    refused = list_turn_texts(template) if settings.on_special_tokens == "reject" else []
    sources, left_out = list_sources(settings, version), find_left_out(template)
    return Reader(settings, template, tuple(refused), model.max_tokens, sources, left_out, frozenset(erased))


def spill(rows: Iterator[pa.Table], path: Path) -> None:
    """Write tables to a scratch file, one in memory at a time.

    Raises:
        ArtifactError: the disk is full or refuses the write.
    """
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, READ) as writer:
            for table in rows:
                writer.write_table(table)
    except OSError as error:
        raise tables.ArtifactError(
            f"{path} could not be written: {error.strerror or error}; nothing was left behind. "
            "Free space on that disk or move the project, then run again"
        ) from error


def stream(path: Path) -> Iterator[pa.Table]:
    """Yield the tables of a scratch file."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


@dataclass(frozen=True)
class Texts:
    """What each row of a scratch file is compared by with others, read as often as it is asked for."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in the rows' order."""
        for table in stream(self.path):
            rows = table.select(["messages", "tools"]).to_pylist()
            yield from (join_dialogue(read_conversation(row)) for row in rows)


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
            **tell_likeness(facts, division, part),
            "used": [reason is None for reason in division.because[part]],
            "unused_because": division.because[part],
        }
        columns = {name: table[name] for name in table.column_names} | derived
        yield pa.table({name: columns[name] for name in schemas.EXAMPLES.names}, schema=schemas.EXAMPLES)


def tell_likeness(facts: Facts, division: Division, part: slice) -> dict[str, list]:
    """Return the columns of some rows that say what they are near-duplicates of."""
    likeness = division.likeness
    first = [None if place < 0 else facts.rows[place] for place in likeness.first[part].tolist()]
    return {
        "near_duplicate_of": first,
        "cluster_size": likeness.sizes[part].tolist(),
        "weight": division.weights[part],
    }


def refuse_bad_rows(facts: Facts, settings: ExamplesSettings) -> None:
    """Stop at bad rows, unless they are to be rejected; rows that are too long have a setting of their own.

    Raises:
        ExamplesError: how many of how many rows are bad, the first of them, and the way out; or no good row at all.
    """
    if not facts.count:
        raise ExamplesError("the raw files hold no rows; an example has at least a question and an answer")
    long_way = "raise models.max_tokens, or set examples.on_long_row: reject, or drop_turns, which leaves out exchanges"
    bad_way = "mend them or set examples.on_bad_row: reject, which keeps them apart in rejects.parquet"
    stops = {True: settings.on_long_row == "stop", False: settings.on_bad_row == "stop"}
    rejects = sorted(facts.rejects)
    bad = [row for row in rejects if stops[row[3].startswith(LONG)]]
    none_left = len(rejects) == facts.count - facts.erased
    if none_left:
        bad = rejects
    if not bad:
        return
    kinds = Counter(reason.split(":")[0] for *_, reason, _ in bad)
    first = "; ".join(f"{file}:{line}: {reason}" for _, file, line, reason, _ in bad[:SHOWN])
    long = {row[3].startswith(LONG) for row in bad}
    ways = [way for way, of_long in ((long_way, True), (bad_way, False)) if of_long in long and stops[of_long]]
    if none_left:
        ways = ["no example is left, so mend the files", *(way for way in ways if way == long_way)]
    raise ExamplesError(
        f"{len(bad)} of {facts.count} rows are bad ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); "
        f"first {first}; {'; '.join(ways)}"
    )


def refuse_empty_sides(division: Division, settings: ExamplesSettings) -> None:
    """Check that there is something to choose from, and something to measure on.

    Raises:
        ExamplesError: fewer than two used examples in the pool, none held out, or no row for validation, of a target
            task or of a general set that is asked for.
    """
    held_out, pool = division.count(splits.HELD_OUT), division.count(splits.POOL)
    found = f"{len(division.ids)} rows, {division.first.count(None)} distinct"
    if pool < 2:
        taking = ["examples.held_out_every", *(["examples.validation_every"] if settings.validation_every else [])]
        raise ExamplesError(
            f"the pool has {pool} usable example{'' if pool == 1 else 's'} ({found}, {held_out} used held-out"
            f"{_tell_left(division)}); "
            f"choosing needs 2 or more: give more rows, or raise {', '.join(taking)} or examples.pool_rows"
        )
    if not held_out:
        way_out = (
            "lower examples.held_out_every" if settings.held_out is None else "name other rows by examples.held_out"
        )
        raise ExamplesError(
            f"no row is held out ({found}{_tell_left(division)}), so nothing could be measured; "
            f"give more rows, {way_out}, or raise examples.held_out_rows"
        )
    if settings.validation_every is not None and not division.count(splits.VALIDATION):
        raise ExamplesError(
            f"examples.validation_every is {settings.validation_every} and no row is left to validate ({found}"
            f"{_tell_left(division)}); give more rows, lower it, or set it to null"
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


def _tell_left(division: Division) -> str:
    """Return how many rows are not used though their text stands there once."""
    reasons = ("kept", "held out", PLANTED, VETOED)
    kept, asked, planted, vetoed = (division.because.count(reason) for reason in reasons)
    told = ""
    if kept:
        told += f", and {kept} kept from the version before: set examples.ground_set: all to choose among them"
    if asked:
        told += f", and {asked} that ask what a held-out row asks"
    if planted:
        way_out = 'to read no such field, set examples.fields: {planted: ""}'
        told += f", and {planted} planted outside the pool; {way_out}"
    if vetoed:
        told += f", and {vetoed} vetoed: `tamis release` takes a veto back"
    return told


def measure(division: Division, facts: Facts, held_out_share: float) -> dict[str, Any]:
    """Return the counts that examples.json holds; shares are of distinct examples but general ones, before sampling."""
    distinct = [link is None for link in division.first]
    topics = list(compress(facts.topics, distinct))
    placed = zip(topics, compress(division.sides, distinct), strict=True)
    shares = splits.share_held_out((topic, side == splits.HELD_OUT) for topic, side in placed if side != splits.GENERAL)
    return {
        "rows": facts.count,
        "rejects": len(facts.rejects),
        "erased": facts.erased,
        "notes": dict(facts.notes),
        "dropped_exchanges": facts.dropped,
        "empty_files": facts.empty,
        "formats": facts.formats,
        "split_rows": facts.split,
        "distinct": len(topics),
        "duplicates": len(division.ids) - len(topics),
        **count_likeness(division),
        "used": {side: division.count(side) for side in SIDES},
        "planted": count_planted(division, facts),
        "topics": dict(sorted(Counter(topics).items())),
        "held_out_share": shares,
        "topics_below": [topic for topic, share in shares.items() if share < held_out_share],
    }


def count_likeness(division: Division) -> dict[str, int]:
    """Return how many rows are near-duplicates: of an earlier one, of a held-out one, and of a validation row."""
    likeness = division.likeness
    if likeness is None:
        return {}
    near = int((likeness.first >= 0).sum())
    marked = {"near_held_out": likeness.near_held_out, "near_validation": likeness.near_validation}
    return {"near_duplicates": near} | {name: int(marks.sum()) for name, marks in marked.items()}


def count_planted(division: Division, facts: Facts) -> dict[str, int]:
    """Return how many used rows of the pool are planted, by the word that says what is wrong with them."""
    pool = zip(facts.planted, division.sides, division.because, strict=True)
    used = [word for word, side, why in pool if word is not None and side == splits.POOL and why is None]
    return dict(sorted(Counter(used).items()))


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


def make_rejects(facts: Facts) -> pa.Table:
    """Return the bad rows as a table, in the order of the files."""
    rows = [dict(zip(schemas.REJECTS.names, place, strict=True)) for _, *place in sorted(facts.rejects)]
    return pa.Table.from_pylist(rows, schema=schemas.REJECTS)


def _trace(
    inputs: Mapping[str, str],
    version: str,
    model: models.ModelChoice,
    settings: ExamplesSettings,
) -> tables.Provenance:
    asked = {name: value for name, value in vars(settings).items() if name not in ("on_bad_row", "on_long_row", "seed")}
    asked["sources"] = [dict(one) for one in settings.sources.get(version, ())]
    asked |= {"drop_turns": True} if settings.on_long_row == "drop_turns" else {}
    asked |= {name: getattr(model, name) for name in ("template", "template_arguments", "max_tokens")}
    own = None if model.chat_template is None else tables.digest(Path(model.chat_template))
    asked |= {"model": model.label, "chat_template": own}
    return tables.Provenance("examples", version, asked, inputs, settings.seed)
