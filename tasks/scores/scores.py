"""Stage `scores`: one score per row of the ground set, for the selectors that ask the model about each row by itself.

A row's raw figures are kept in a store of Parquet parts, like embeddings, and turned into a score at the end: another
formula or another budget asks the model nothing. Those of `less` and `tov` stand beside the tuning that they depend on
(tasks/scores/tuning.py). An order that is no sort, the round-robin of `rds`, is written as scores that sort so.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

import tamis.language.packing
import tamis.scores.less
import tamis.scores.references
import tamis.scores.scoring_prompts
import tamis.training.steps
from tamis.scores.baselines import measure_ifd, score_ifd, score_perplexity, score_selectit
from tamis.scores.scoring_prompts import RATING_PROMPTS, RATINGS, ask_ifd, ask_perplexity, ask_selectit
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import Provenance, digest_code, digest_inputs, write_json, write_table
from tasks.folders import Folders
from tasks.scores import answers, less_warmup, references, tuning
from tasks.scores.answers import measure_answers
from tasks.scores.settings import ScoresSettings
from tasks.scores.work import Method, Shard, ask_each, read_rows, refuse_long
from tasks.scoring_model import model_lock
from tasks.settings import RuntimeSettings
from tasks.shares import Map, own, refuse_unfinished
from tasks.tokens import WRITERS

READ = (tamis.language.packing, tamis.scores.scoring_prompts, *WRITERS)
ASKED = digest_code(*READ, answers)  # what a figure depends on, as imported
REFERRED = digest_code(*READ, answers, tamis.scores.references, references)
LEARNT = digest_code(tamis.training.steps, tamis.scores.less, *READ, tuning, less_warmup)
TUNED = digest_code(tamis.training.steps, tamis.scores.less, *READ, answers, tuning, references)
STORED = pa.schema([("id", pa.string()), ("figures", pa.list_(pa.float32()))])
TOLD = ("selector", "queries", "reference", "reference_rows")  # of what figures are made with, in `scores.json`


def write_scores(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: ScoresSettings,
    runtime: RuntimeSettings,
    selector: str,
    wanted: bool = True,
    gate: bool = False,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `scores.parquet`, a score per row of the ground set by row, and `scores.json`; return what this run scored.

    Where `wanted` is false (the selector sorts by no score of these) the table is empty and the JSON says so. Beside
    it: `ifd.parquet`, the instruction-following difficulty of each row for the gate of that name, without rows where
    `gate` is false.
    """
    examples, out, version = folders.here.examples, folders.here.scores, folders.here.version
    store = folders.cache / "scores"
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    nothing = Provenance("scores", version, {"wanted": False}, inputs)
    rows = read_rows(source, "ground") if wanted or gate else []
    table, made, did = schemas.SCORES.empty_table(), nothing, {}
    if gate:
        asked = Shard("ifd", store_folder(store, model, "ifd"), model, settings, runtime, rows)
        table, did = measure_difficulty(asked, map)
        made = replace(nothing, parameters=_describe(asked))
    write_table(table, out / "ifd.parquet", made)
    if not wanted:
        return {**_write_nothing(out, nothing, selector), **did}
    work = Shard(selector, store_folder(store, model, selector), model, settings, runtime, rows)
    described, method = _describe(work), METHODS[selector]
    prepared = method.prepare(work, source)
    figures, facts = measure_missing(prepared.work, map)
    score = method.score(prepared.work, figures) if rows else np.empty(0)

    flops = prepared.flops + (method.count(prepared.work, method.ask(prepared.work)) if rows else 0)
    made = Provenance("scores", version, described | dict(prepared.described or {}), inputs)
    _write(out, made, [row.id for row in rows], score, flops=flops)
    facts = {**facts, "scoring_seconds": round(facts["scoring_seconds"] + prepared.seconds, 3), "scoring_flops": flops}
    if selector != "ifd":
        facts = {name: value + did.get(name, 0) for name, value in facts.items()}
    return {**facts, **models.note_products(model)}


def measure_difficulty(work: Shard, map: Map) -> tuple[pa.Table, Mapping[str, Any]]:
    """Return the instruction-following difficulty of rows, and what was done to know it; selector `ifd` shares it."""
    losses, did = measure_missing(work, map)
    ratio = measure_ifd(*losses.T) if work.rows else np.empty(0)
    flops = METHODS["ifd"].count(work, METHODS["ifd"].ask(work)) if work.rows else 0
    return pa.table([[row.id for row in work.rows], ratio], schema=schemas.SCORES), {**did, "scoring_flops": flops}


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
    mine = own(map, [row.id for row in lacking])
    lacking = [row for row, is_mine in zip(lacking, mine, strict=True) if is_mine]
    size = work.runtime.shard_rows
    shards = [replace(work, rows=lacking[start : start + size]) for start in range(0, len(lacking), size)]
    refuse_long(shards, METHODS[work.selector].ask)
    if work.rows:
        stores.describe(work.folder, kind="scores", code=METHODS[work.selector].code, **_describe(work))
    measured = sum(map(measure_shard, shards))
    lost = stores.missing(work.folder, asked)["id"].to_pylist()
    refuse_unfinished(map, "rows", len(lost), len(work.rows))
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(work.rows)} rows vanished from {work.folder} during the run, first ids {lost[:3]}; "
            "run again"
        )
    found = stores.find(work.folder, asked)
    figures = np.array(found["figures"].to_pylist() if work.rows else [], np.float64)
    facts = {"rows_scored": measured, "rows_known": len(work.rows) - len(unknown), "shards": len(shards)}
    return figures, facts | {"scoring_seconds": round(stores.cost(work.folder, asked), 3)}


def measure_shard(shard: Shard) -> int:
    """Measure a shard's rows, add them to the store as one part, and return their number.

    The seconds kept with the part are those of asking alone: neither of loading the model nor of waiting for it.
    """
    method = METHODS[shard.selector]
    with model_lock:
        method.load(shard)
        start = perf_counter()
        with models.multiplying(shard.model):
            figures = method.measure(shard, method.ask(shard))
        seconds = perf_counter() - start
    ids = [row.id for row in shard.rows]
    part = pa.table([pa.array(ids), pa.array(list(figures.astype(np.float32)))], schema=STORED)
    stores.append(shard.folder, part, stage="scores", seconds=seconds)
    return len(ids)


def _score_ratings(work: Shard, losses: np.ndarray) -> np.ndarray:
    return score_selectit(-losses.reshape(-1, len(RATING_PROMPTS), len(RATINGS)))


METHODS = {  # selector -> how it scores rows
    "perplexity": Method(
        ask_each(ask_perplexity), measure_answers, lambda _, losses: score_perplexity(losses[:, 0]), ASKED
    ),
    "ifd": Method(ask_each(ask_ifd), measure_answers, lambda _, losses: score_ifd(losses[:, 0], losses[:, 1]), ASKED),
    "selectit": Method(ask_each(ask_selectit), measure_answers, _score_ratings, ASKED),
    "less": Method(
        less_warmup.ask,
        less_warmup.measure,
        less_warmup.score,
        LEARNT,
        less_warmup.load,
        less_warmup.prepare,
        less_warmup.count,
    ),
    "ica": Method(
        references.ask_after_demos,
        measure_answers,
        references.score_after_demos,
        REFERRED,
        prepare=references.prepare_ica,
    ),
    "tov": Method(
        references.ask_alone,
        references.measure_moves,
        references.score_moves,
        TUNED,
        references.load_tuned,
        references.prepare_tov,
        count=references.count_twice,
    ),
    "rds": Method(
        references.ask_alone,
        references.measure_states,
        references.score_round_robin,
        REFERRED,
        prepare=references.prepare_rds,
        count=references.count_headless,
    ),
}


def _describe(work: Shard) -> dict[str, str]:
    """Return what figures are made with, but for the code."""
    made = {"model": work.model.label, "model_digest": models.model_digest(work.model)}
    return {"selector": work.selector, "template": work.model.template, "matmul": work.model.matmul, **made}


def _write(out: Path, provenance: Provenance, ids: list[str], score: np.ndarray, *, flops: int) -> None:
    write_table(pa.table([ids, score], schema=schemas.SCORES), out / "scores.parquet", provenance)
    facts = {"wanted": True, "rows": len(ids), "flops": flops}
    facts |= {name: value for name, value in provenance.parameters.items() if name in TOLD}
    spread = {"min": np.min, "median": np.median, "max": np.max}
    write_json(
        facts | {name: float(of(score)) if len(ids) else None for name, of in spread.items()}, out / "scores.json"
    )


def _write_nothing(out: Path, provenance: Provenance, selector: str) -> Mapping[str, Any]:
    write_table(schemas.SCORES.empty_table(), out / "scores.parquet", provenance)
    why = f"selection.selector: {selector} needs no score of a row by itself"
    facts = {
        "wanted": False,
        "selector": selector,
        "why": why,
        "rows": 0,
        "flops": 0,
        "min": None,
        "median": None,
        "max": None,
    }
    write_json(facts, out / "scores.json")
    return {"rows_scored": 0, "rows_known": 0, "shards": 0, "scoring_seconds": 0.0, "scoring_flops": 0}
