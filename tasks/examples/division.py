"""What becomes of each row: its side, whether it is used, and what is new about it against the version before."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.examples import changes as versions
from tamis.examples import splits
from tamis.examples.changes import Before
from tamis.examples.conversations import identify_folded, identify_question, split_key
from tamis.examples.splits import Rows
from tasks.artifacts import schemas, tables
from tasks.conversations import read_conversation
from tasks.examples.files import is_inside
from tasks.examples.near import Likeness, bar_rows, name_clusters, weigh_rows
from tasks.examples.reading import BATCH, Facts
from tasks.examples.settings import ExamplesSettings

SIDES = {  # parameter that names a file or folder inside the raw folder -> side of its rows
    "examples.target.path": splits.TARGET,
    "examples.held_out.path": splits.HELD_OUT,
    "examples.retention_set": splits.GENERAL,
}
COMPARED = ("id", "topic", "messages", "tools", "earlier", "used", "split", "duplicate_of")  # of the version before
KEPT = ("id", "topic", "used", "split", "duplicate_of")  # of these, what stays in memory


@dataclass(frozen=True)
class Division:
    """What becomes of each row, in the rows' order."""

    ids: list[str]
    first: list[int | None]  # place of the first row with the same text; None at that row itself
    sides: list[str]  # pool | target | validation | held_out | general
    changes: list[str]  # kept | edited | new
    earlier: list[str | None]  # offered | learnt
    because: list[str | None]  # why it is not used; None: it is
    weights: list[float]  # in the objective
    likeness: Likeness | None  # near-duplicates; None: they were not looked for

    def count(self, side: str) -> int:
        """Return how many rows of a side are used."""
        return sum(each == side and why is None for each, why in zip(self.sides, self.because, strict=True))


@dataclass(frozen=True)
class Earlier:
    """The examples of the version before, each id once and in its order, and what this version must know of each."""

    table: pa.Table  # columns KEPT: no texts
    places: list[int]  # where each stands in that version's table
    questions: list[str]  # digest of all but the answers
    keys: list[str]  # what decides on the side
    earlier: list[str | None]  # offered | learnt, that version counted
    lingering: pa.Table  # schema LINGERING: learnt by versions before it, and not among its examples

    def list_keys(self, side: str, *, used: bool = False) -> list[str]:
        """Return the keys of the examples of a side; of those in use alone where that is asked for."""
        rows = zip(self.keys, *(self.table[name].to_pylist() for name in ("split", "used")), strict=True)
        return [key for key, split, in_use in rows if split == side and (in_use or not used)]

    def list_taught(self) -> list[str]:
        """Return the keys of the examples that it or an earlier version chose."""
        own = [key for key, one in zip(self.keys, self.earlier, strict=True) if one == "learnt"]
        return own + self.lingering["asked"].to_pylist()

    def tell(self) -> Before:
        """Return what a version is compared with."""
        offered = [each is not None for each in self.earlier]
        learnt = [each == "learnt" for each in self.earlier]
        gone = self.lingering["id"].to_pylist()
        return Before(self.table["id"].to_pylist(), self.questions, offered, learnt, gone)


def name_apart(settings: ExamplesSettings) -> dict[str, str]:
    """Return the parameters that name a file or folder inside the raw folder, and what they name."""
    named = (settings.target or {}).get("path"), (settings.held_out or {}).get("path"), settings.retention_set
    return {parameter: name for parameter, name in zip(SIDES, named, strict=True) if name is not None}


def read_before(examples: Path, subset: Path, erased: Collection[str] = ()) -> Earlier:
    """Return the examples of the version before, each with what this version must know of it, but for erased ones.

    Raises:
        ArtifactError: an artifact is missing or was edited.
    """
    source = examples / "examples.parquet"
    tables.check_table(source, schemas.EXAMPLES)
    picked = tables.read_table(subset / "subset.parquet", schemas.SUBSET, ["id", "chosen"])
    lingering = tables.read_table(examples / "lingering.parquet", schemas.LINGERING)
    with pq.ParquetFile(source) as opened:
        batches = opened.iter_batches(batch_size=BATCH, columns=list(COMPARED))
        return make_earlier(batches, picked.filter(picked["chosen"])["id"].to_pylist(), erased, lingering)


def make_earlier(
    batches: Iterable[pa.RecordBatch],
    chosen: Sequence[str],
    erased: Collection[str] = (),
    lingering: pa.Table | None = None,
) -> Earlier:
    """Return what a version must know of the examples of the one before, of which some were chosen.

    Repetitions with the same id count once; those that differ in blanks have ids of their own.

    Args:
        batches: of that version's examples, with the columns COMPARED at least.
        chosen: ids.
        erased: `same_as` of rows that are left out.
        lingering: what that version says of rows that versions before it taught; None: there are none.
    """
    schema = pa.schema([schemas.EXAMPLES.field(name) for name in KEPT])
    kept, places, questions, keys, earlier = [schema.empty_table()], [], [], [], []
    taught, seen, start = {text_id(each) for each in chosen}, set(), 0
    for batch in batches:
        rows, firsts = batch.select(list(COMPARED)).to_pylist(), []
        for place, row in enumerate(rows):
            name = text_id(row["id"])
            if name in seen:
                continue
            seen.add(name)
            conversation = read_conversation(row)
            if erased and identify_folded(conversation) in erased:
                continue
            firsts.append(place)
            questions.append(identify_question(conversation, row["topic"]))
            keys.append(splits.shorten(split_key(conversation)))
            learnt = row["earlier"] == "learnt" or name in taught
            offered = row["earlier"] or (row["used"] and row["split"] == splits.POOL)
            earlier.append("learnt" if learnt else "offered" if offered else None)
        kept.append(pa.Table.from_batches([batch.select(list(KEPT)).take(pa.array(firsts, pa.int64()))], schema))
        places += [start + place for place in firsts]
        start += len(rows)
    gone = schemas.LINGERING.empty_table() if lingering is None else lingering
    return Earlier(pa.concat_tables(kept), places, questions, keys, earlier, gone)


def divide(
    facts: Facts,
    earlier: Earlier,
    settings: ExamplesSettings,
    raw: Path,
    compare: Callable[[list[str]], Likeness] | None = None,
    *,
    vetoed: Collection[str] = (),
) -> Division:
    """Give each row its side, what is new about it, and whether later stages use it.

    Prompts that the version before is measured on are kept out of the target task, of the validation rows and of the
    pool, those that earlier versions chose out of the general set, the held-out and the validation rows, and those of
    held-out rows out of the pool. Planted rows are used in the pool alone.

    Args:
        facts: what is known of the rows.
        earlier: of the version before.
        settings: of the stage.
        raw: path of the raw files.
        compare: returns the near-duplicates of the rows, given their sides; None: they are not looked for.
        vetoed: `same_as` of rows that are not to be used.

    Raises:
        SplitError: a row stands where its prompt may not.
    """
    before, ids, first = earlier.tell(), facts.ids, splits.link_duplicates(facts.same)
    sides, barred = assign_sides(facts, earlier, settings, raw)
    changes = versions.label_changes(ids, facts.questions, before)
    rows, target = Rows(ids, first, sides, facts.topics, changes), settings.target or {}
    if "topic" in target:
        kept_out = [asked or word is not None for asked, word in zip(barred, facts.planted, strict=True)]
        sides = splits.set_apart(rows, target["topic"], target.get("rows"), seed=settings.seed, barred=kept_out)
        rows = Rows(ids, first, sides, facts.topics, changes)
    taught = earlier.list_taught()
    splits.refuse_shared(facts.keys, sides, taught)
    splits.refuse_taught(facts.keys, sides, taught)
    likeness = compare(sides) if compare else None
    because = splits.mark_used(
        rows,
        ground_set=settings.ground_set,
        deduplicate=settings.deduplicate,
        seed=settings.seed,
        pool_rows=settings.pool_rows,
        held_out_rows=settings.held_out_rows,
        barred=bar_rows(barred, likeness, settings, planted=mark_planted(facts, sides), vetoed=mark(facts, vetoed)),
        clusters=name_clusters(likeness, settings),
    )
    named = ids if settings.deduplicate else splits.number_repetitions(ids)
    told = versions.share_earlier(first, versions.tell_earlier(ids, before))
    used = [reason is None for reason in because]
    weights = weigh_rows(likeness, sides, used, settings) if likeness else [1.0] * len(ids)
    return Division(named, first, sides, changes, told, because, weights, likeness)


def assign_sides(facts: Facts, earlier: Earlier, settings: ExamplesSettings, raw: Path) -> tuple[list[str], list[bool]]:
    """Return the side of each row by its file and its prompt, and which rows of the pool ask what is measured on.

    Raises:
        SplitError: a target row has the prompt of a held-out row.
    """
    measured = earlier.list_keys(splits.HELD_OUT, used=True)
    drawn = facts.drawn if settings.held_out is None else [False] * len(facts.ids)
    sides = splits.assign_sides(facts.keys, tell_given(facts, raw, settings), drawn, measured)
    barred = splits.find_asked_elsewhere(facts.keys, sides, measured)
    if settings.validation_every is None:
        return sides, barred
    before = earlier.list_keys(splits.VALIDATION)
    known = {*earlier.list_keys(splits.HELD_OUT), *earlier.list_taught()}
    return splits.set_validation_apart(facts.keys, sides, facts.validating, barred=known, before=before), barred


def mark(facts: Facts, vetoed: Collection[str]) -> list[bool]:
    """Return whether each row says what a vetoed one does."""
    return [same in vetoed for same in facts.same]


def mark_planted(facts: Facts, sides: Sequence[str]) -> list[bool]:
    """Return whether each row is planted and outside the pool, where nothing wrong may steer or measure."""
    return [word is not None and side != splits.POOL for word, side in zip(facts.planted, sides, strict=True)]


def tell_given(facts: Facts, raw: Path, settings: ExamplesSettings) -> list[str | None]:
    """Return the side that a parameter gives to each row's file; None: it depends on the row's prompt."""
    apart, split = name_apart(settings), (settings.held_out or {}).get("split")
    known: dict[str, str | None] = {}
    for file in set(facts.files):
        named = (SIDES[parameter] for parameter, name in apart.items() if is_inside(file, raw, name))
        measured = split is not None and facts.splits[file] == split
        known[file] = next(named, splits.HELD_OUT if measured else None)
    return [known[file] for file in facts.files]


def make_withdrawn(before: Earlier, facts: Facts, source: Path) -> pa.Table:
    """Return the distinct examples of the version before that are here no more, as a table.

    Repetitions that were not used there are none of them: the text that they repeat stands for them.

    Args:
        before: what is known of that version.
        facts: what is known of the rows of this one.
        source: the examples of that version, of which the texts are read.
    """
    gone = find_gone(before, facts)
    names = ["id", "topic", "prompt", "response", "split"]
    table = pick_rows(source, [before.places[place] for place, _ in gone], names)
    derived = {
        "edited_to": [instead for _, instead in gone],
        "earlier": [before.earlier[place] for place, _ in gone],
    }
    columns = {name: table[name] for name in names} | derived
    return pa.table({name: columns[name] for name in schemas.WITHDRAWN.names}, schema=schemas.WITHDRAWN)


def find_gone(before: Earlier, facts: Facts) -> list[tuple[int, str | None]]:
    """Return the places of what `make_withdrawn` returns among the version before, each with the id in its place."""
    found = versions.find_withdrawn(facts.ids, facts.questions, before.tell())
    columns = before.table.select(["duplicate_of", "used"]).to_pydict()
    own = [link is None or used for link, used in zip(*columns.values(), strict=True)]
    return [(place, instead) for place, instead in found if own[place]]


def make_lingering(before: Earlier, facts: Facts, version: str) -> pa.Table:
    """Return the distinct rows that earlier versions taught and that are here no more, as a table, the oldest first.

    A row that comes back is one that was learnt (`tell_earlier`), and is listed again once it goes again.

    Args:
        before, facts: as of `make_withdrawn`.
        version: of the rows.
    """
    ids, topics = before.table["id"].to_pylist(), before.table["topic"].to_pylist()
    here, old = set(facts.ids), before.lingering.to_pylist()
    new = [
        (ids[place], topics[place], before.keys[place], version, instead)
        for place, instead in find_gone(before, facts)
        if before.earlier[place] == "learnt"
    ]
    rows = [one for one in old if one["id"] not in here]
    rows += [dict(zip(schemas.LINGERING.names, one, strict=True)) for one in new]
    return pa.Table.from_pylist(rows, schema=schemas.LINGERING)


def pick_rows(source: Path, places: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Return some rows of the examples, by ascending places, with a batch of the others in memory at a time."""
    wanted, start = np.asarray(places, np.int64), 0
    found = [pa.schema([schemas.EXAMPLES.field(name) for name in columns]).empty_table()]
    with pq.ParquetFile(source) as opened:
        for batch in opened.iter_batches(batch_size=BATCH, columns=list(columns)):
            stop = start + batch.num_rows
            some = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            found.append(pa.Table.from_batches([batch.take(pa.array(some))], found[0].schema))
            start = stop
    return pa.concat_tables(found).combine_chunks()


def text_id(each: str) -> str:
    """Return the digest of an example's text, whichever repetition of it the id is of.

    >>> text_id("ab-1")
    'ab'
    """
    return each.partition("-")[0]
