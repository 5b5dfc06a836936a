"""Stage `scores`: one score per row of the ground set, for the selectors that ask the model about each row by itself.

A row's raw figures are kept in a store of Parquet parts, like embeddings, and turned into a score at the end: another
formula or another budget asks the model nothing. Those of `less` stand beside the warm-up that they depend on
(tasks/scores/less_warmup.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import tamis.language.packing
import tamis.scores.less
import tamis.scores.scoring_prompts
import tamis.training.steps
from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import TemplateError
from tamis.language.encoding import Encoding
from tamis.language.packing import NonFiniteError, score_rows
from tamis.scores.baselines import score_ifd, score_perplexity, score_selectit
from tamis.scores.less import influence
from tamis.scores.scoring_prompts import RATING_PROMPTS, RATINGS, ask_ifd, ask_perplexity, ask_selectit
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.row_sets import read_set
from tasks.artifacts.tables import Provenance, digest_code, digest_inputs, write_json, write_table
from tasks.conversations import WRITERS, open_template, read_conversation
from tasks.folders import Folders
from tasks.scores import less_warmup
from tasks.scores.settings import ScoresSettings
from tasks.scoring_model import model_lock, scoring_model
from tasks.settings import RuntimeSettings

READ = (tamis.language.packing, tamis.scores.scoring_prompts, *WRITERS)
ASKED = digest_code(*READ)  # what a figure depends on, as imported
LEARNT = digest_code(tamis.training.steps, tamis.scores.less, *READ, less_warmup)
STORED = pa.schema([("id", pa.string()), ("figures", pa.list_(pa.float32()))])

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Row:
    """A row of the ground set or of the target task."""

    id: str
    conversation: Conversation
    topic: str
    split: str  # pool | target


@dataclass(frozen=True)
class Shard:
    """A part's worth of rows; small enough to travel to another process."""

    selector: str
    folder: Path  # of the store
    model: models.ModelChoice
    settings: ScoresSettings
    runtime: RuntimeSettings
    rows: Sequence[Row]


@dataclass(frozen=True)
class Method:
    """How a selector scores rows."""

    ask: Callable[[Shard], Encoding]  # what the model reads, as many rows of each; the longest must fit in its context
    measure: Callable[[Shard, Encoding], np.ndarray]  # row x figure: what the store keeps
    score: Callable[[Shard, np.ndarray], np.ndarray]  # all rows, their figures -> a score per row of the ground set
    code: str  # digest of the code that figures depend on
    load: Callable[[Shard], Any] = lambda shard: scoring_model(shard.model)  # what is measured with, once per process


def write_scores(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: ScoresSettings,
    runtime: RuntimeSettings,
    selector: str,
    wanted: bool = True,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `scores.parquet`, a score per row of the ground set by row, and `scores.json`; return what this run scored.

    Where `wanted` is false (the selector sorts by no score of these) the table is empty and the JSON says so.
    """
    examples, out, version = folders.here.examples, folders.here.scores, folders.here.version
    store = folders.cache / "scores"
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    if not wanted:
        return _write_nothing(out, Provenance("scores", version, {"wanted": False}, inputs), selector)
    rows = read_rows(source, "ground")
    folder, spent = store_folder(store, model, selector), 0.0
    work = Shard(selector, folder, model, settings, runtime, rows)
    described = _describe(work)
    if selector == "less":
        queries = read_rows(source, "target")
        work, spent = prepare_less(work, queries)
        described |= {"queries": "target" if queries else "pool", **asdict(settings)}
    figures, facts = measure_missing(work, map)
    score = METHODS[selector].score(work, figures) if rows else np.empty(0)

    _write(out, Provenance("scores", version, described, inputs), [row.id for row in rows], score)
    return {**facts, "scoring_seconds": round(facts["scoring_seconds"] + spent, 3)}


def read_rows(source: Path, name: str) -> list[Row]:
    """Return the rows of a set, by row."""
    return [
        Row(row["id"], read_conversation(row), row["topic"], row["split"]) for row in read_set(source, name).to_pylist()
    ]


def store_folder(store: Path, model: models.ModelChoice, selector: str) -> Path:
    """Return the folder that holds the figures of one model, template, selector and code."""
    return stores.store_folder(store, models.model_digest(model), model.template, selector, METHODS[selector].code)


def measure_missing(work: Shard, map: Map) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Measure the rows that the store lacks, in shards; return the figures of all, by row, and what this run did.

    `scoring_seconds` is what measuring these rows took, now and earlier.

    Raises:
        ValueError: a row that does not fit in the model's context; parts vanished from the store meanwhile.
    """
    asked = pa.table({"id": [row.id for row in work.rows]}, schema=pa.schema([STORED.field("id")]))
    unknown = set(stores.missing(work.folder, asked)["id"].to_pylist())
    lacking = [row for row in work.rows if row.id in unknown]
    size = work.runtime.shard_rows
    shards = [replace(work, rows=lacking[start : start + size]) for start in range(0, len(lacking), size)]
    _refuse_long(shards, work.model.max_tokens)
    if work.rows:
        stores.describe(work.folder, kind="scores", code=METHODS[work.selector].code, **_describe(work))
    measured = sum(map(measure_shard, shards))
    lost = stores.missing(work.folder, asked)["id"].to_pylist()
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(work.rows)} rows vanished from {work.folder} during the run, first ids {lost[:3]}; "
            "run again"
        )
    found = stores.find(work.folder, asked)
    figures = np.array(found["figures"].to_pylist() if work.rows else [], np.float64)
    facts = {"rows_scored": measured, "rows_known": len(work.rows) - len(lacking), "shards": len(shards)}
    return figures, facts | {"scoring_seconds": round(stores.cost(work.folder, asked), 3)}


def measure_shard(shard: Shard) -> int:
    """Measure a shard's rows, add them to the store as one part, and return their number.

    The seconds kept with the part are those of asking alone: neither of loading the model nor of waiting for it.
    """
    method = METHODS[shard.selector]
    with model_lock:
        method.load(shard)
        start = perf_counter()
        figures = method.measure(shard, method.ask(shard))
        seconds = perf_counter() - start
    ids = [row.id for row in shard.rows]
    part = pa.table([pa.array(ids), pa.array(list(figures.astype(np.float32)))], schema=STORED)
    stores.append(shard.folder, part, stage="scores", seconds=seconds)
    return len(ids)


def measure_answers(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return the mean log-likelihoods of each row's answers, nats per token, from one scoring of all that is asked.

    Raises:
        ValueError: one is not finite, naming the row.
    """
    each = len(asked) // len(shard.rows)  # figures per row
    try:
        scored = score_rows(scoring_model(shard.model), asked, shard.runtime.pack_tokens)
    except NonFiniteError as error:
        raise ValueError(
            f"the {shard.selector} figures of row {shard.rows[error.target // each].id} are not finite; "
            "set models.dtype: float32, or check the model's weights"
        ) from error
    return np.array([float(row.double().mean()) for row in scored]).reshape(-1, each)


def _ask(question: Callable[..., Encoding]) -> Callable[[Shard], Encoding]:
    """Return what asks the model one of `tamis.scores.scoring_prompts` about a shard's rows.

    That raises a TemplateError which names a row by its id.
    """

    def ask(shard: Shard) -> Encoding:
        try:
            return question(open_template(shard.model), [row.conversation for row in shard.rows])
        except TemplateError as fault:
            if fault.place is None:
                raise
            raise TemplateError(f"row {shard.rows[fault.place].id} of these: {fault}", fault.place) from fault

    return ask


def prepare_less(work: Shard, queries: list[Row]) -> tuple[Shard, float]:
    """Return the work with its queries and the folder of its warm-up, trained where it is not there, and its seconds.

    The warm-up depends on the rows drawn for it and the settings alone: another target task finds it again.
    """
    if not work.rows:
        return work, 0.0
    how = work.settings
    drawn = [work.rows[place] for place in less_warmup.draw_rows(len(work.rows), how)]
    folder = less_warmup.store_folder(work.folder, [row.id for row in drawn], how)
    work = replace(work, folder=folder, rows=[*work.rows, *queries])
    if not (folder / less_warmup.FILE).exists():
        _refuse_long([work], work.model.max_tokens)
        rows = METHODS["less"].ask(replace(work, rows=drawn))
        with model_lock:
            less_warmup.train(work.model, rows, folder, how)
    return work, less_warmup.read(folder)[1]


def measure_gradients(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return each row's features, per checkpoint: as a training example, then as a query."""
    names = [row.id for row in shard.rows]
    return less_warmup.measure(shard.model, asked, names, shard.folder, shard.settings)


def score_less(work: Shard, figures: np.ndarray) -> np.ndarray:
    """Return the influence of the ground set on the target task, or on itself where there is none."""
    pool = np.array([row.split == "pool" for row in work.rows])
    asked = pool if pool.all() else ~pool
    topics = [row.topic for row, query in zip(work.rows, asked, strict=True) if query]
    rates = [checkpoint.rate for checkpoint in less_warmup.read(work.folder)[0]]
    each = torch.from_numpy(figures).view(len(figures), len(rates), 2, -1)
    return influence(each[pool, :, 0].unbind(1), each[asked, :, 1].unbind(1), topics, rates).numpy()


def _score_ratings(work: Shard, figures: np.ndarray) -> np.ndarray:
    return score_selectit(figures.reshape(-1, len(RATING_PROMPTS), len(RATINGS)))


def _adapted(work: Shard) -> torch.nn.Module:
    return less_warmup.adapt(work.model, work.settings)


METHODS = {  # selector -> how it scores rows
    "perplexity": Method(_ask(ask_perplexity), measure_answers, lambda _, found: score_perplexity(-found[:, 0]), ASKED),
    "ifd": Method(_ask(ask_ifd), measure_answers, lambda _, found: score_ifd(-found[:, 0], -found[:, 1]), ASKED),
    "selectit": Method(_ask(ask_selectit), measure_answers, _score_ratings, ASKED),
    "less": Method(_ask(ask_perplexity), measure_gradients, score_less, LEARNT, _adapted),
}


def _describe(work: Shard) -> dict[str, str]:
    """Return what figures are made with, but for the code."""
    made = {"model": work.model.name, "model_digest": models.model_digest(work.model)}
    return {"selector": work.selector, "template": work.model.template, **made}


def _refuse_long(shards: Sequence[Shard], max_tokens: int) -> None:
    long = [name for shard in shards for name in _too_long(shard, max_tokens)]
    if long:
        rows = sum(len(shard.rows) for shard in shards)
        raise ValueError(
            f"{len(long)} of {rows} rows to be scored are longer than models.max_tokens = {max_tokens} as "
            f"{shards[0].selector} shows them, first ids {long[:3]}; raise it, take these rows out of the raw data, or "
            "choose by another selector"
        )


def _too_long(shard: Shard, max_tokens: int) -> list[str]:
    """Return the ids of rows of which something that is asked does not fit in the context whole."""
    longest = METHODS[shard.selector].ask(shard).longest.reshape(len(shard.rows), -1).max(axis=1)
    return [row.id for row, tokens in zip(shard.rows, longest, strict=True) if tokens > max_tokens]


def _write(out: Path, provenance: Provenance, ids: list[str], score: np.ndarray) -> None:
    write_table(pa.table([ids, score], schema=schemas.SCORES), out / "scores.parquet", provenance)
    facts = {"wanted": True, "rows": len(ids)}
    facts |= {name: value for name, value in provenance.parameters.items() if name in ("selector", "queries")}
    spread = {"min": np.min, "median": np.median, "max": np.max}
    write_json(
        facts | {name: float(of(score)) if len(ids) else None for name, of in spread.items()}, out / "scores.json"
    )


def _write_nothing(out: Path, provenance: Provenance, selector: str) -> Mapping[str, Any]:
    write_table(schemas.SCORES.empty_table(), out / "scores.parquet", provenance)
    why = f"selection.selector: {selector} needs no score of a row by itself"
    facts = {"wanted": False, "selector": selector, "why": why, "rows": 0, "min": None, "median": None, "max": None}
    write_json(facts, out / "scores.json")
    return {"rows_scored": 0, "rows_known": 0, "shards": 0, "scoring_seconds": 0.0}
