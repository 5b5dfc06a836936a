"""What every run says on the rows that it is asked: from the stores, where it is known, else from its model.

A loss is known by the weights that a run has beside the base's, the row's id and a digest of the tokens that are read;
a generated answer likewise. Neither depends on intervals, on other runs or on the settings of training but by the
weights, so that a model is loaded only where something of it lacks. Each batch is kept at once: a crash loses one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedModel
from transformers.utils import logging

from tamis.evaluation.bootstrap import plan_batches
from tamis.language.encoding import Encoding, TokenSequence
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.tables import digest
from tasks.evaluation.inputs import SHOWN, HeldOut, Prompts, Run
from tasks.evaluation.networks import CODE, generate, loaded, score

ANSWER_TOKENS = 8192  # kept in memory while answers are generated: prefix, query, padding and answer of every row
LOSS_ROWS = 256  # rows per part of the store of losses
KEYS = ("weights", "id", "prompt")
NAMED = pa.schema([(name, pa.string()) for name in KEYS])
VALUES = pa.schema([("loss", pa.float64()), ("text", pa.string()), ("cut", pa.bool_())])  # of losses, and of answers
OF_RUNS = ("rows.json",)  # beside an arm's weights, of which they are no part


@dataclass(frozen=True)
class Desk:
    """What every run is asked with, and where what it says is kept."""

    model: models.ModelChoice  # the base
    new_tokens: int  # generated per row, at most; 0: nothing is generated
    losses: Path  # folder of the store
    answers: Path


@dataclass(frozen=True)
class Asked:
    """What a run is asked."""

    run: Run
    rows: Sequence[Mapping[str, Any]]
    prompts: Prompts
    losses: pa.Table  # KEYS and `index`, the place among the rows
    texts: pa.Table  # likewise, of the rows that are answered in generated text


@dataclass(frozen=True)
class Answers:
    """What a run says on each row that it is asked."""

    run: Run
    losses: list[float]  # nats per response token
    texts: list[str | None]  # None: not answered in generated text
    cut: list[bool | None]  # ended by new_tokens, not by the model
    did: Mapping[str, float] = field(default_factory=dict)  # rows computed and known; seconds of all, now or earlier


def open_stores(root: Path, model: models.ModelChoice, new_tokens: int) -> Desk:
    """Return where losses and answers of a base model, and of what is trained from it, are kept.

    Args:
        root: of all stores.
        model: the base.
        new_tokens: generated per row, at most; losses do not depend on it.
    """
    made = {"model": model.name, "model_digest": models.model_digest(model), "template": model.template, "code": CODE}
    facts = (made["model_digest"], models.device(model), model.template, CODE)
    losses = stores.store_folder(root / "losses", *facts)
    answers = stores.store_folder(root / "answers", *facts, new_tokens)
    stores.describe(losses, kind="losses", **made)
    if new_tokens:
        stores.describe(answers, kind="answers", new_tokens=new_tokens, **made)
    return Desk(model, new_tokens, losses, answers)


def answer_all(
    runs: Sequence[Run], held_out: HeldOut, answered: Mapping[str, Sequence[int]], desk: Desk
) -> Iterator[Answers]:
    """Yield every run's losses and answers, with a bar on stderr for each run whose model is asked.

    Args:
        runs: models, and the in-context learner, which is asked this version's rows alone.
        held_out: the rows.
        answered: version -> places of its rows that are answered in generated text, too.
        desk: of `open_stores`.

    Raises:
        EvaluationError: a loss that is not finite.
        ValueError: parts vanished from a store meanwhile.
    """
    base = cache(partial(models.language_model.__wrapped__, desk.model))  # loaded where it is asked; adapters go on it
    for run in runs:
        asked = plan(run, held_out, answered)
        unscored = stores.missing(desk.losses, asked.losses)["index"].to_pylist()
        unsaid = stores.missing(desk.answers, asked.texts)["index"].to_pylist()
        if unscored or unsaid:
            compute(asked, unscored, unsaid, base, desk)
        yield read(asked, desk, {"losses_computed": len(unscored), "answers_generated": len(unsaid)})


def plan(run: Run, held_out: HeldOut, answered: Mapping[str, Sequence[int]]) -> Asked:
    """Return what a run is asked, each row by what it is known by."""
    prompts, weights = run.prompts or held_out.prompts, digest_weights(run)
    own = answered[held_out.version]
    said = own if run.learner == SHOWN else {place for places in answered.values() for place in places}

    def name(places: Iterable[int], read: Callable[[int], np.ndarray]) -> pa.Table:
        named = [(weights, held_out.rows[place]["id"], digest_tokens(read(place)), place) for place in places]
        return pa.table(list(zip(*named, strict=True)) or [[]] * 4, schema=NAMED.append(pa.field("index", pa.int64())))

    losses = name(range(len(prompts.encoding)), lambda place: mark_answers(prompts.encoding.row(place)))
    return Asked(run, held_out.rows, prompts, losses, name(sorted(said), lambda place: prompts.questions[place]))


def mark_answers(row: Sequence[TokenSequence]) -> np.ndarray:
    """Return what a model reads of a row and which of it is scored: answer tokens as -2 - token, -1 after sequences.

    >>> from tamis.language.encoding import make_sequence
    >>> mark_answers([make_sequence([5, 6], [7])]).tolist()
    [5, 6, -9, -1]
    """
    parts = [np.append(np.where(each.answers, -2 - each.tokens, each.tokens), -1) for each in row]
    return np.concatenate(parts)


def digest_weights(run: Run) -> str:
    """Return a digest of all that a run has beside the base model, or of its own weights; "" where that is nothing."""
    if run.folder is None:
        return ""
    files = [path for path in sorted(run.folder.iterdir()) if path.is_file() and path.name not in OF_RUNS]
    return hashlib.sha256("\n".join(f"{path.name} {digest(path)}" for path in files).encode()).hexdigest()[:32]


def digest_tokens(tokens: np.ndarray) -> str:
    """Return a digest of what a model reads."""
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest()[:32]


def compute(
    asked: Asked, unscored: Sequence[int], unsaid: Sequence[int], base: Callable[[], PreTrainedModel], desk: Desk
) -> None:
    """Ask a run's model for the losses and the answers at these places, and keep each batch at once."""
    run, encoding, questions = asked.run, asked.prompts.encoding, asked.prompts.questions
    tokenizer, ends = models.tokenizer(desk.model), list_ends(encoding)
    blocks = [unscored[first : first + LOSS_ROWS] for first in range(0, len(unscored), LOSS_ROWS)]
    sizes = [len(questions[place]) for place in unsaid]
    batches = plan_batches(sizes, desk.new_tokens, ANSWER_TOKENS)
    bar = logging.tqdm(total=len(blocks) + len(batches), desc=f"evaluation of {run.label}")
    with bar, loaded(run, base(), desk.model) as network, models.multiplying(desk.model):
        for block in blocks:
            start = perf_counter()
            losses = score(network, encoding.pick(block), [asked.rows[place] for place in block], run)
            keep(desk.losses, asked.losses, block, {"loss": losses}, perf_counter() - start)
            bar.update()
        for batch in batches:
            places, start = [unsaid[number] for number in batch], perf_counter()
            said = generate(network, tokenizer, [questions[place] for place in places], ends, desk.new_tokens)
            texts, cut = zip(*said, strict=True)
            keep(desk.answers, asked.texts, places, {"text": texts, "cut": cut}, perf_counter() - start)
            bar.update()


def list_ends(encoding: Encoding) -> list[int]:
    """Return the tokens that end the answers of some rows."""
    return np.unique([encoding.row(place)[-1].last_answer for place in range(len(encoding))]).tolist()


def keep(folder: Path, named: pa.Table, places: Sequence[int], values: Mapping[str, Sequence], seconds: float) -> None:
    """Append what a model said at some places to a store."""
    at = pc.index_in(pa.array(places, pa.int64()), value_set=named["index"].combine_chunks())
    part = named.take(at).drop_columns(["index"])
    for name, column in values.items():
        part = part.append_column(VALUES.field(name), pa.array(column, VALUES.field(name).type))
    stores.append(folder, part, stage="evaluation", seconds=seconds, keys=KEYS)


def read(asked: Asked, desk: Desk, did: Mapping[str, int]) -> Answers:
    """Return what a run says, from the stores.

    Raises:
        ValueError: parts vanished from a store meanwhile.
    """
    count, told = len(asked.prompts.encoding), dict(did)
    columns = {"loss": [None] * count, "text": [None] * count, "cut": [None] * count}
    for kind, folder, wanted in (("loss", desk.losses, asked.losses), ("answer", desk.answers, asked.texts)):
        found = stores.find(folder, wanted)
        if found.num_rows != wanted.num_rows:
            lost = wanted.num_rows - found.num_rows
            raise ValueError(f"{lost} of {wanted.num_rows} rows vanished from {folder} during the run; run again")
        for name in set(found.column_names) & columns.keys():
            for place, value in zip(found["index"].to_pylist(), found[name].to_pylist(), strict=True):
                columns[name][place] = value
        told[f"{kind}_seconds"] = stores.cost(folder, wanted)
    told["losses_known"] = asked.losses.num_rows - did["losses_computed"]
    told["answers_known"] = asked.texts.num_rows - did["answers_generated"]
    return Answers(asked.run, columns["loss"], columns["text"], columns["cut"], told)
