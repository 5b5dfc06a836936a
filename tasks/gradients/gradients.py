"""Stage `gradients`: what each row and each parameter is worth to the target task, by one matrix (DualSFT).

Rows are drawn, the base model is warmed up, v_new and v_prior are taken at that checkpoint (tasks/gradients/warmup.py);
then the pool is passed through once (first order) or twice. `tamis.gradients.per_example` and
`tamis.gradients.interaction` define the symbols; the learning rate eta is factored out of u, and so out of every score.
Where parameters are chosen by Fisher information (`tamis.gradients.fisher`), that of the base model is made instead, or
beside phi_data where rows are chosen by it.

G is one running sum in the scratch folder, whatever the number of shards: a shard reads it, adds its rows and replaces
it whole, with the number of rows that it now holds; a kill at any moment loses one shard and counts none twice. Shards
follow each other in the pool's order, whoever runs them, so the sums are the same. phi_data stands in the store.

Block-wise (`block_parameters`): parameters are taken a group at a time, each with its own v_new, v_prior, u, G, Fisher
information and stored phi_data, which add up over groups. This bounds what a pass sums, u, and the check of a loaded
model against autograd by the group, at the price of as many passes as groups. It bounds neither the warm-up, which
trains all weights, nor the model and its activations.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tamis.gradients.interaction import (
    diagnose,
    measure,
    score_parameters,
)
from tamis.gradients.per_example import TOLERANCE, accumulate, score_second
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.locks import locked
from tasks.artifacts.tables import Provenance, digest, digest_inputs, write_json, write_table
from tasks.artifacts.tensors import read, stream, write
from tasks.folders import Folders
from tasks.gradients import warmup
from tasks.gradients.directions import make_direction, read_direction, read_terms
from tasks.gradients.settings import GradientsSettings
from tasks.gradients.warmup import (
    CODE,
    Files,
    Sets,
    Work,
    compute_fisher,
    describe_sets,
    describe_warmup,
    plan_files,
    prepare,
    read_sets,
    refuse_unsteered,
    sum_seconds,
)
from tasks.scoring_model import model_lock
from tasks.settings import RuntimeSettings

SCORERS = {"dualsft": "total", "fisher": "fisher"}  # of parameters; the file that has their shapes
NO_PART = ("fisher_rows",)  # of what determines phi_data and phi_param
STORED = pa.schema([("id", pa.string()), ("score", pa.float64())])  # the parts of the store

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Scored:
    """What one way of scoring gave."""

    facts: Mapping[str, Any]  # for the JSON
    seconds: Mapping[str, float]  # that it took, when it was computed
    did: Mapping[str, int]  # in this run
    phi_data: np.ndarray | None = None  # by row of the pool


def write_gradients(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: GradientsSettings,
    runtime: RuntimeSettings,
    selector: str,
    mask_selector: str,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `phi_data.parquet`, `phi_param.safetensors` and `gradients.json`; return what this run did.

    phi_data has rows where `selector` or `mask_selector` is dualsft. phi_param has tensors where parameters are scored:
    those of DualSFT or Fisher information, as `mask_selector` says, and its header's `scores` says which. What is kept
    in scratch and store is the same for both.

    Args:
        folders: of the examples held-out rows are not read; what a run has no use for is removed from `warmup`.
        runtime: how the work is cut and run.
        selector: of rows.
        mask_selector: what scores parameters.
        map: runs shards.

    Raises:
        ValueError: settings that cannot be; no validation row; fewer anchors than a batch; a row that is too long;
            a gradient that is not finite, with its row's id; sums over rows and over columns that differ.
    """
    examples, out, version = folders.here.examples, folders.here.gradients, folders.here.version
    store, scratch = folders.cache / "gradients", folders.warmup
    source, kinds = examples / "examples.parquet", {selector, mask_selector} & {*SCORERS}
    made = partial(Provenance, "gradients", version, inputs=digest_inputs(source))
    works, sets = open_work(source, scratch, store, model, settings=settings, runtime=runtime) if kinds else ([], None)
    found: dict[str, Scored] = {}
    try:
        if "dualsft" in kinds:
            found["dualsft"] = score_pool(works, sets, map)
        if "fisher" in kinds:
            found["fisher"] = score_fisher(works, sets)
        _write(out, made, works, sets, found=found, mask_selector=mask_selector)
    finally:
        clear_caches()
    did = dict.fromkeys(("rows_summed", "rows_scored", "rows_squared", "shards"), 0)
    for one in found.values():
        did |= one.did
    return did | {"scoring_seconds": round(sum(sum(one.seconds.values()) for one in found.values()), 3)}


def open_work(
    source: Path,
    scratch: Path,
    store: Path,
    model: models.ModelChoice,
    *,
    settings: GradientsSettings,
    runtime: RuntimeSettings,
) -> tuple[list[Work], Sets]:
    """Draw the rows, name the files and stored parts of each group, and clear the scratch folder of all other files."""
    _refuse(model)
    known = digest(source)
    sets, works = read_sets(source, known, model, settings), []
    for names in warmup.group(model, runtime.block_parameters):
        files = plan_files(scratch, sets, model, settings, names=names)
        folder = stores.store_folder(store, *_name_terms(files, settings))
        works.append(Work(source, known, files, folder, model, settings, runtime, names))
    kept = {path for work in works for path in work.files}
    for path in Path(scratch).glob("*"):
        if path not in kept:
            path.unlink()
    return works, sets


def _name_terms(files: Files, settings: GradientsSettings) -> list[Any]:
    """Return what determines phi_data of a row."""
    terms = [files.v_new.name, files.v_prior.name, settings.lambda_new, settings.lambda_prior]
    if settings.order == "second":
        terms += [files.total.name, settings.curvature, settings.learning_rate]
    return terms


def _refuse(model: models.ModelChoice) -> None:
    if model.dtype == "float16":
        raise ValueError(
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32"
        )


def score_pool(works: Sequence[Work], sets: Sets, map: Map) -> Scored:
    """Return phi_data of the pool, a group of parameters after the other, and what is recorded of DualSFT.

    Raises:
        ValueError: no validation row; the law of rows and columns is broken.
    """
    refuse_unsteered(sets)
    phi_data, spent, did = np.zeros(len(sets.pool)), 0.0, dict.fromkeys(("rows_summed", "rows_scored", "shards"), 0)
    for work in works:
        made = {"model": work.model.name, "model_digest": models.model_digest(work.model)}
        told = {"template": work.model.template, "order": work.settings.order}
        stores.describe(work.folder, kind="gradients", code=CODE, **made, **told)
        prepare(work, sets)
        for each in (sum_gradients(work, sets, map), score_missing(work, sets, map)):
            did = {name: count + each.get(name, 0) for name, count in did.items()}
        scores, seconds = collect(work, sets)
        phi_data, spent = phi_data + scores, spent + seconds
        read_direction.cache_clear()  # that of the next group takes its place
    warmup.load_trained.cache_clear()  # what follows needs memory and no model
    facts, seconds = describe_warmup(works)
    seconds |= {"first_pass": sum_seconds(works, "total"), "second_pass": round(spent, 3)}
    return Scored(check_row_column_law(works, phi_data) | facts, seconds, did, phi_data)


def score_fisher(works: Sequence[Work], sets: Sets) -> Scored:
    """Make Fisher information, a group of parameters after the other; return what is recorded of it."""
    did, largest, zeros, entries = {"rows_squared": 0}, 0.0, 0, 0
    for work in works:
        did["rows_squared"] += compute_fisher(work, sets)
        for tensor in read(work.files.fisher)[0].values():
            largest = max(largest, float(tensor.max()))
            zeros, entries = zeros + int((tensor == 0).sum()), entries + tensor.numel()
    facts = {"largest_fisher": largest, "zeros_fisher": zeros / entries, "parameters": entries}
    return Scored(facts, {"fisher": sum_seconds(works, "fisher")}, did)


def sum_gradients(work: Work, sets: Sets, map: Map) -> dict[str, int]:
    """Add to G the rows of the pool that it lacks, in shards; return how many rows and shards these were."""
    path = work.files.total
    known = read(path, ())[1]["rows"] if path.exists() else 0
    shards = -(-(len(sets.pool) - known) // work.runtime.shard_rows)
    return {"rows_summed": sum(map(add_shard, [work] * shards)), "shards": shards}


def add_shard(work: Work) -> int:
    """Add the next rows of the pool to G and return their number; at first order phi_data is of the same pass.

    One at a time, in any process: who has the lock takes the shard that is next. Cost, beside the pass: G, as large as
    the group in float32, is read and written whole, so that small `shard_rows` are slow for large models.
    """
    sets, path = read_sets(work.source, work.digest, work.model, work.settings), work.files.total
    with locked(path.with_suffix(".lock")), model_lock:
        kept, known = read(path) if path.exists() else ({}, {"rows": 0, "seconds": 0.0})
        places = sets.pool[known["rows"] :][: work.runtime.shard_rows]
        u = read_direction(work) if work.settings.order == "first" else None
        G = {name: tensor.to(models.device(work.model), copy=True) for name, tensor in kept.items()}
        del kept  # one G is in memory during the pass
        with warmup.timed(work, sets, places) as (network, batches, facts):
            found = accumulate(network, batches, u, keep=work.names, G=G or None)
        if u is not None:
            _keep(work, [sets.ids[place] for place in places], found.phi_data, seconds=0.0)  # those of G
        now = {"rows": known["rows"] + len(places), "seconds": known["seconds"] + facts["seconds"]}
        write(found.G, path, now)
    return len(places)


def score_missing(work: Work, sets: Sets, map: Map) -> dict[str, int]:
    """Pass again through the rows whose phi_data the store lacks; return how many rows and shards these were.

    At first order there are none, but where another direction is asked for when G is known.
    """
    unknown = set(stores.missing(work.folder, name_rows(sets))["id"].to_pylist())
    lacking, size = [place for place in sets.pool if sets.ids[place] in unknown], work.runtime.shard_rows
    shards = [replace(work, places=tuple(lacking[start : start + size])) for start in range(0, len(lacking), size)]
    return {"rows_scored": sum(map(score_shard, shards)), "shards": len(shards)}


def collect(work: Work, sets: Sets) -> tuple[np.ndarray, float]:
    """Return phi_data of the pool by a group's parameters, and the seconds that it took.

    Raises:
        ValueError: parts vanished from the store meanwhile.
    """
    asked = name_rows(sets)
    lost = stores.missing(work.folder, asked)["id"].to_pylist()
    if lost:
        raise ValueError(
            f"{len(lost)} of {asked.num_rows} rows vanished from {work.folder} during the run, first ids {lost[:3]}; "
            "run again"
        )
    return np.asarray(stores.find(work.folder, asked)["score"]), stores.cost(work.folder, asked)


def name_rows(sets: Sets) -> pa.Table:
    """Return the ids of the pool's rows, as the store is asked for them."""
    return pa.table({"id": [sets.ids[place] for place in sets.pool]}, schema=pa.schema([STORED.field("id")]))


def score_shard(shard: Work) -> int:
    """Score a shard's rows by a pass without gradients of weights, add them to the store, return their number."""
    sets = read_sets(shard.source, shard.digest, shard.model, shard.settings)
    with model_lock:
        u = read_direction(replace(shard, places=()))
        with warmup.timed(shard, sets, shard.places) as (network, batches, facts):
            phi_data = score_second(network, batches, u)
    _keep(shard, [sets.ids[place] for place in shard.places], phi_data, seconds=facts["seconds"])
    return len(shard.places)


def _keep(work: Work, ids: list[str], phi_data: Tensor, *, seconds: float) -> None:
    part = pa.table([ids, phi_data.cpu().numpy()], schema=STORED)
    stores.append(work.folder, part, stage="gradients", seconds=seconds)


def clear_caches() -> None:
    """Drop the model, the direction and the rows that this process keeps between shards."""
    for kept in (read_direction, read_sets, warmup.load_trained):
        kept.cache_clear()


def check_row_column_law(works: Sequence[Work], phi_data: np.ndarray) -> dict[str, Any]:
    """Return the law of rows and columns and the other diagnostics, a group of parameters after the other.

    Raises:
        ValueError: the law is broken.
    """
    parts = [
        measure(read_terms(work.files, work.settings), make_direction(work), read(work.files.total)[0])
        for work in works
    ]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    found = diagnose(sums, torch.from_numpy(phi_data))
    allowed = TOLERANCE[models.DTYPES[works[0].model.dtype]]
    if not found["law_residual"] <= allowed:
        raise ValueError(
            f"sums over rows ({found['sum_phi_data']:g}) and over parameters ({found['sum_phi_param']:g}) differ by "
            f"{found['law_residual']:.2g} of the scores' size, allowed are {allowed:g}: a part of {works[0].folder} or "
            f"of {works[0].files.total.parent} is not of this run; delete both and run again"
        )
    spread = {name: float(of(phi_data)) for name, of in (("min", np.min), ("median", np.median), ("max", np.max))}
    return found | {"phi_data": spread, "parameters": int(sums["entries"]), "order": works[0].settings.order}


def _describe(kind: str, work: Work) -> dict[str, Any]:
    """Return what determines the scores; how the work was cut and run is no part of it."""
    settings = asdict(work.settings) | {"template": work.model.template}
    known = [name for name in settings if name not in NO_PART] if kind == "dualsft" else ["fisher_rows", "template"]
    if kind == "dualsft" and work.settings.order == "first":
        known.remove("curvature")
    made = {"model": work.model.name, "model_digest": models.model_digest(work.model)}
    return {"scores": kind, **{name: settings[name] for name in known}, **made}


def _write(
    out: Path,
    made: Callable[..., Provenance],
    works: Sequence[Work],
    sets: Sets | None,
    *,
    found: Mapping[str, Scored],
    mask_selector: str,
) -> None:
    """Write the artifact."""
    records = {None: made({"scores": None})}
    records |= {kind: made(_describe(kind, works[0]), seed=works[0].settings.seed) for kind in found}
    of_rows, of_parameters = (kind if kind in found else None for kind in ("dualsft", mask_selector))
    sources = [getattr(work.files, SCORERS[of_parameters]) for work in works] if of_parameters else []
    stream(read_scores(of_parameters, works), sources, out / "phi_param.safetensors", asdict(records[of_parameters]))
    table = schemas.PHI_DATA.empty_table()
    if of_rows:
        scores, ids = found["dualsft"].phi_data, [sets.ids[place] for place in sets.pool]
        table = pa.table([ids, scores, [works[0].settings.order] * len(ids)], schemas.PHI_DATA)
    write_table(table, out / "phi_data.parquet", records[of_rows])
    facts: dict[str, Any] = {"scores": {"rows": of_rows, "parameters": of_parameters}}
    if found:
        facts |= describe_sets(sets, found) | {"groups": len(works), "seconds": {}}
    else:
        facts["why"] = "neither rows nor parameters are chosen by gradients (selection.selector, mask.selector)"
    for one in found.values():
        facts |= one.facts | {"seconds": facts["seconds"] | one.seconds}
    write_json(facts, out / "gradients.json")


def read_scores(kind: str | None, works: Sequence[Work]) -> Iterator[tuple[str, Tensor]]:
    """Yield the scores of parameters, a tensor at a time, in the order of the files that they are made of."""
    for work in works if kind else ():
        yield from read(work.files.fisher)[0].items() if kind == "fisher" else _multiply(work)


def _multiply(work: Work) -> Iterator[tuple[str, Tensor]]:
    u = make_direction(work)
    for name, G in read(work.files.total)[0].items():
        yield from score_parameters({name: u[name]}, {name: G}).items()
