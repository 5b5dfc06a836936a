"""The rows that a run will be about, before it: of each data version, how they are divided, and how long they are.

Rows come from the examples artifact where it is there and of the current inputs, else from the raw files, read and
divided by the code of stage `examples` itself. Lengths are of the tokenizer: at most `SAMPLE` rows are tokenised, the
others' lengths follow from their characters. No model is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import Template, TemplateError
from tamis.language.prefixes import encode_prefix
from tamis.language.rendering import encode_conversations, find_faults
from tamis.submodular.budgets import Budget, BudgetError, draw, resolve
from tamis.training.chance import name_groups
from tasks import models
from tasks.artifacts import schemas
from tasks.artifacts.tables import read_table
from tasks.conversations import read_conversation
from tasks.selection.gates import refuse_whole
from tasks.tokens import open_template

SAMPLE = 200  # rows that are tokenised
KEPT = ("id", "row", "topic", "source", "messages", "tools", "split", "used", "earlier", "duplicate_of")

Lengths = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # as of `measure_lengths`
Where = Callable[[str, str], Path]  # stage and version -> folder of its artifacts


@dataclass(frozen=True)
class Corpus:
    """The rows of a data version, and what is known of them."""

    rows: list[dict[str, Any]]  # with the columns `KEPT`
    chosen: frozenset[str]  # ids that selection chose or, before it ran, as many at random under its budget
    head: int  # tokens that a row begins with whatever its turns, on average
    contexts: np.ndarray  # int64, tokens per row that are neither of its head nor answers
    answers: np.ndarray  # int64, answer tokens per row
    prefixes: np.ndarray  # int64, tokens per row of the prefix that shows it as the demo

    def places(self, split: str) -> np.ndarray:
        """Return the places of the used rows of a split."""
        return np.flatnonzero([row["used"] and row["split"] == split for row in self.rows])

    def texts(self) -> np.ndarray:
        """Return the places of the used rows of the pool, of those with one text the first."""
        places = self.places("pool")
        texts = [
            self.rows[place]["row"] if (first := self.rows[place]["duplicate_of"]) is None else first
            for place in places
        ]
        return places[np.sort(np.unique(texts, return_index=True)[1])]

    def references(self) -> np.ndarray:
        """Return the places of the rows that others are scored beside: of the target task, or those that validate."""
        target = self.places("target")
        return target if len(target) else self.places("validation")

    def groups(self) -> list[str]:
        """Return the group of each used row of the pool, which arm balanced draws from alike."""
        ground = [self.rows[place] for place in self.places("pool")]
        return name_groups([row["topic"] for row in ground], [row["source"] for row in ground])

    def learnt(self) -> np.ndarray:
        """Return the places of the distinct rows of the pool that an earlier version chose."""
        return np.flatnonzero([row["split"] == "pool" and is_learnt(row) for row in self.rows])

    def whole(self, places: Sequence[int] | np.ndarray) -> int:
        """Return the tokens of some rows, each with its own head."""
        return int(len(places) * self.head + (self.contexts + self.answers)[np.asarray(places, int)].sum())


class UnkeptError(BudgetError):
    """A budget that stage selection will refuse, in the words that it will use."""

    def __init__(self, version: str, told: str) -> None:
        """Say of which version it is."""
        super().__init__(told)
        self.version = version


def is_learnt(row: Mapping[str, Any]) -> bool:
    """Return whether an earlier version chose a row; repetitions of it do not count."""
    return row["earlier"] == "learnt" and row["duplicate_of"] is None


def read_corpora(
    versions: Sequence[str], values: Any, model: models.ModelChoice, where: Where, fresh: frozenset[str]
) -> dict[str, Corpus]:
    """Return the rows of versions and of all that they continue from, oldest first.

    Args:
        versions: names of data versions.
        values: params.yaml as `flows.params` reads it.
        model: whose tokenizer counts.
        where: folders of artifacts.
        fresh: addresses of the stages whose artifacts are of the current inputs, `examples@v1`.

    Raises:
        UnkeptError: a budget that stage selection will refuse, too.
        ValueError: raw files that cannot be read or divided; another budget that seems not to be kept.
    """
    line: list[str] = []
    for version in versions:
        ours = []
        while version in values.versions and version not in line:
            ours.append(version)
            version = values.versions[version].previous
        line += reversed(ours)
    found: dict[str, Corpus] = {}
    for version in line:
        before = found.get(values.versions[version].previous)
        known = f"examples@{version}" in fresh
        if known:
            rows = read_artifact(where("examples", version) / "examples.parquet")
        else:
            rows = read_raw(Path(values.versions[version].raw), before, values.examples, version)
        subset = where("selection", version) / "subset.parquet" if f"selection@{version}" in fresh else None
        try:
            found[version] = measure(rows, values, model, subset)
        except BudgetError as error:
            if _is_certain(rows, values.selection, known=known, first=before is None):
                raise UnkeptError(version, str(error)) from error
            raise
    return found


def _is_certain(rows: Sequence[Mapping], settings: Any, *, known: bool, first: bool) -> bool:
    """Return whether a budget that these rows cannot keep cannot be kept by those that stage selection will read.

    Args:
        rows: of a version, as far as they are known.
        settings: of the choice.
        known: stage examples has made them.
        first: the version continues from none. Rows of one that does depend on what the one before will choose.
    """
    if settings.gate is not None:  # pinned rows, of which nothing is known here, do not leave by it
        return False
    pool = sum(row["used"] and row["split"] == "pool" for row in rows)
    return known or (first and settings.budget.get("count", 0) > pool)  # the stage may reject rows, and adds none


def read_artifact(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an examples artifact."""
    return read_table(path, schemas.EXAMPLES).select(KEPT).sort_by("row").to_pylist()


def read_raw(raw: Path, before: Corpus | None, settings: Any, version: str) -> list[dict[str, Any]]:
    """Return the rows of raw files, divided as stage `examples` will; rows that only it can refuse are among them.

    Those are the ones that the template refuses, that the model's context cannot hold, or that may not hold the text of
    a control token.
    """
    from tamis.examples.near_duplicates import join_dialogue
    from tasks.examples.division import divide
    from tasks.examples.examples import choose_files
    from tasks.examples.near import find_likeness
    from tasks.examples.reading import Facts, Reader, read_files
    from tasks.examples.settings import list_sources

    facts, rows = Facts(), []
    files, _ = choose_files(raw, settings)
    for table in read_files(files, Reader(settings, None, (), 0, list_sources(settings, version)), facts):
        rows += table.select([name for name in KEPT if name in table.column_names]).to_pylist()
    compare = None
    if settings.near_duplicates != "keep" or settings.drop_near_held_out:
        compare = partial(find_likeness, [join_dialogue(read_conversation(row)) for row in rows], settings=settings)
    division = divide(facts, tell_before(before), settings, raw, compare)
    parts = {"id": division.ids, "split": division.sides, "earlier": division.earlier}
    parts |= {"duplicate_of": division.first, "used": [why is None for why in division.because]}
    return [row | dict(zip(parts, found, strict=True)) for row, *found in zip(rows, *parts.values(), strict=True)]


def tell_before(before: Corpus | None) -> Any:
    """Return the rows of the version before, each id once, with what this version must know of each."""
    from tasks.examples.division import make_earlier

    schema = pa.schema([schemas.EXAMPLES.field(name) for name in KEPT])
    table = pa.Table.from_pylist(before.rows if before else [], schema=schema)
    return make_earlier(table.to_batches(), sorted(before.chosen) if before else [])


def measure(rows: list[dict[str, Any]], values: Any, model: models.ModelChoice, subset: Path | None) -> Corpus:
    """Return rows with their lengths, and which of them are chosen, or as many drawn where that is not known yet."""
    return mark_chosen(rows, measure_lengths(rows, model), values, subset)


def mark_chosen(rows: list[dict[str, Any]], lengths: Lengths, values: Any, subset: Path | None) -> Corpus:
    """Return rows of known lengths, and which of them are chosen; as `measure`."""
    head, contexts, answers, prefixes = lengths
    if subset is not None:
        picked = read_table(subset, schemas.SUBSET)
        chosen = frozenset(picked.filter(picked["chosen"])["id"].to_pylist())
    else:
        ground = np.flatnonzero([row["used"] and row["split"] == "pool" for row in rows])
        drawn = draw(make_budget(rows, ground, answers, values.selection), seed=values.selection.seed)
        chosen = frozenset(rows[place]["id"] for place in ground[drawn])
    return Corpus(rows, chosen, head, contexts, answers, prefixes)


def make_budget(rows: Sequence[Mapping], ground: np.ndarray, answers: np.ndarray, settings: Any) -> Budget:
    """Return what selection may spend on the ground set.

    Raises:
        BudgetError: it cannot be kept.
    """
    topics, tokens = [rows[place]["topic"] for place in ground], answers[ground].astype(np.int64)
    budget = resolve(settings.budget, topics=topics, response_tokens=tokens, caps=settings.caps, floors=settings.floors)
    refuse_whole(budget, settings.gate)
    return budget


def measure_lengths(rows: Sequence[Mapping], model: models.ModelChoice) -> Lengths:
    """Return the tokens of a head and, per row, of its context, its answers and the prefix that shows it.

    Those of rows beyond the sample are their characters times the sample's tokens per character. Rows that the template
    refuses, which the stage will reject, are none of it.
    """
    wanted = np.flatnonzero([row["used"] or row["earlier"] is not None for row in rows])
    drawn = wanted
    if len(wanted) > SAMPLE:
        drawn = np.sort(np.random.default_rng(0).choice(wanted, SAMPLE, replace=False))
    conversations, template = [read_conversation(row) for row in rows], open_template(model)
    faults = find_faults(template, [conversations[place] for place in drawn])
    drawn = drawn[[fault is None for fault in faults]] if len(drawn) else drawn
    some = [conversations[place] for place in drawn]
    coded = encode_conversations(template, some)
    shown = np.array([count_shown(template, one) for one in some], np.int64)
    asked, said = np.array([count_letters(one) for one in conversations], np.int64).reshape(-1, 2).T
    own = coded.own_tokens - coded.answer_tokens
    found = []
    for tokens, letters in ((own, asked), (coded.answer_tokens, said), (shown, asked + said)):
        each = tokens.sum() / max(1, letters[drawn].sum())
        lengths = np.maximum(1, np.rint(letters * each)).astype(np.int64)
        lengths[drawn] = tokens
        found.append(lengths)
    return round(coded.head_tokens.mean()) if some else 0, *found


def count_shown(template: Template, conversation: Conversation) -> int:
    """Return the tokens of the prefix that shows a conversation before its like.

    Where the template has no place for demos, which only stages with demos refuse, they are those of the whole.
    """
    try:
        return len(encode_prefix(template, [conversation], conversation))
    except TemplateError:
        return int(encode_conversations(template, [conversation]).longest[0])


def count_letters(conversation: Conversation) -> tuple[int, int]:
    """Return the characters of what is not learnt and of what is."""
    asked = sum(len(one.content) for one in conversation.messages if not one.learnt)
    return asked, sum(len(one.content) for one in conversation.messages if one.learnt)
