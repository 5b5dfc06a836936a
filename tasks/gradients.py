"""Room `gradients`: what each row and each parameter is worth to the target task, by one matrix of gradients (DualSFT).

Rows are drawn, the base model is warmed up, v_new and v_prior are taken at that checkpoint (tasks/groundwork.py); then
the pool is passed through once (first order) or twice. `tamis.gradients` and `tamis.interaction` define the symbols;
the learning rate eta is factored out of u, and so out of every score.

G is one running sum in the scratch folder, whatever the number of shards: a shard reads it, adds its rows and replaces
it whole, with the number of rows that it now holds; a kill at any moment loses one shard and counts none twice. Shards
follow each other in the pool's order, whoever runs them, so the sums are the same. phi_data stands in the store.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tamis.distillation import CONFIDENCES
from tamis.gradients import TOLERANCE, accumulate, score_second
from tamis.interaction import CURVATURES, Terms, correct_curvature, diagnose, direction, score_parameters
from tasks import groundwork, models
from tasks.artifacts import Provenance, check_part, digest, digest_inputs, provenance, write_json, write_table
from tasks.groundwork import CODE, Files, GradientsSettings, Sets, Work, plan_files, prepare, read_sets
from tasks.scorer import model_lock
from tasks.store import describe

ORDERS = ("first", "second")

PHI_DATA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # a row of the score pool, by row
        pa.field("score", pa.float64(), nullable=False),  # <u / eta, g_n>; above 0: descent on it lowers the losses
        pa.field("order", pa.string(), nullable=False),  # first | second: without | with the curvature term
    ]
)
STORED = pa.schema([("id", pa.string()), ("score", pa.float64())])  # the parts of the store

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def write_gradients(
    *,
    examples: Path,
    out: Path,
    scratch: Path,
    store: Path,
    version: str,
    model: models.ModelChoice,
    settings: GradientsSettings,
    wanted: bool = True,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `phi_data.parquet`, `phi_param.safetensors` and `gradients.json`; return what this run did.

    Args:
        examples: folder of the examples artifact; its held-out rows are not read.
        out: folder of this artifact.
        scratch: folder for tensors, this version's own; what a run has no use for is removed from it.
        store: keeps phi_data.
        wanted: false where nothing is chosen by gradients: both tables are then empty, and the JSON says so.
        map: runs shards.

    Raises:
        ValueError: settings that cannot be; no validation row; fewer anchors than a batch; a row that is too long;
            a gradient that is not finite, with its row's id; sums over rows and over columns that differ.
    """
    source = examples / "examples.parquet"
    inputs = digest_inputs(source)
    if not wanted:
        return _write_nothing(out, Provenance("gradients", version, {"wanted": False}, inputs))
    work, sets = open_work(source, scratch, store, model, settings)
    try:
        prepare(work, sets)
        summed = sum_gradients(work, sets, map)
        scores, spent, scored = score_missing(work, sets, map)
        record = Provenance("gradients", version, _describe(work), inputs, settings.seed)
        seconds = _write(out, record, work, sets, scores=scores, spent=spent)
    finally:
        forget()
    shards = summed["shards"] + scored["shards"]
    return {**summed, **scored, "shards": shards, "scoring_seconds": round(seconds, 3)}


def open_work(
    source: Path, scratch: Path, store: Path, model: models.ModelChoice, settings: GradientsSettings
) -> tuple[Work, Sets]:
    """Draw the rows, name the files and the store's folder, and clear the scratch folder of all others."""
    _refuse(model, settings)
    known = digest(source)
    sets = read_sets(source, known, model, settings)
    files = plan_files(scratch, sets, model, settings)
    for path in Path(scratch).glob("*"):
        if path not in files:
            path.unlink()
    terms = [files.v_new.name, files.v_prior.name, settings.lambda_new, settings.lambda_prior]
    if settings.order == "second":
        terms += [files.total.name, settings.curvature, settings.eta]
    folder = Path(store) / groundwork.digest_facts(terms)
    made = {"model": model.name, "model_digest": models.model_digest(model), "template": settings.template}
    describe(folder, kind="gradients", code=CODE, order=settings.order, **made)
    return Work(source, known, files, folder, model, settings), sets


def _refuse(model: models.ModelChoice, settings: GradientsSettings) -> None:
    if model.dtype == "float16":
        raise ValueError(
            "models.dtype is float16, in which gradients and second moments underflow to 0; set bfloat16 or float32"
        )
    for name, known in (("order", ORDERS), ("confidence", CONFIDENCES), ("curvature", CURVATURES)):
        if getattr(settings, name) not in known:
            raise ValueError(f"gradients.{name} is {getattr(settings, name)!r}; it is one of {', '.join(known)}")
    for name in ("eta", "tau", "batch_rows", "shard_rows"):
        if not getattr(settings, name) > 0:
            raise ValueError(f"gradients.{name} is {getattr(settings, name)}; it is above 0")


def sum_gradients(work: Work, sets: Sets, map: Map) -> dict[str, int]:
    """Add to G the rows of the pool that it lacks, in shards; return how many rows and shards these were."""
    path = work.files.total
    known = groundwork.read(path)[1]["rows"] if path.exists() else 0
    shards = -(-(len(sets.pool) - known) // work.settings.shard_rows)
    return {"rows_summed": sum(map(add_shard, [work] * shards)), "shards": shards}


def add_shard(work: Work) -> int:
    """Add the next rows of the pool to G and return their number; at first order phi_data is of the same pass.

    One at a time, in any process: who has the lock takes the shard that is next.
    """
    sets, path = read_sets(work.source, work.digest, work.model, work.settings), work.files.total
    with alone(path), model_lock:
        kept, known = groundwork.read(path) if path.exists() else ({}, {"rows": 0, "seconds": 0.0})
        places = sets.pool[known["rows"] :][: work.settings.shard_rows]
        u = read_direction(work) if work.settings.order == "first" else None
        G = {name: tensor.to(models.device(work.model), copy=True) for name, tensor in kept.items()}
        with groundwork.timed(work, sets, places) as (network, batches, facts):
            found = accumulate(network, batches, u, G=G or None)
        if u is not None:
            _keep(work, [sets.ids[place] for place in places], found.phi_data, seconds=0.0)  # those of G
        now = {"rows": known["rows"] + len(places), "seconds": known["seconds"] + facts["seconds"]}
        groundwork.write(found.G, path, now)
    return len(places)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file against other threads and processes; the kernel frees it when the process ends, however it ends."""
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def score_missing(work: Work, sets: Sets, map: Map) -> tuple[np.ndarray, float, dict[str, int]]:
    """Pass again through the rows whose phi_data the store lacks; return all, by row, its seconds, what this run did.

    At first order there are none, but where another direction is asked for when G is known.

    Raises:
        ValueError: parts vanished from the store meanwhile.
    """
    known, size = _load(work.folder), work.settings.shard_rows
    lacking = [place for place in sets.pool if sets.ids[place] not in known]
    shards = [replace(work, places=tuple(lacking[start : start + size])) for start in range(0, len(lacking), size)]
    scored, found, ids = sum(map(score_shard, shards)), _load(work.folder), [sets.ids[place] for place in sets.pool]
    lost = [name for name in ids if name not in found]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(ids)} rows vanished from {work.folder} during the run, first ids {lost[:3]}; "
            "run again"
        )
    scores, seconds = np.array([found[name] for name in ids]).T
    return scores, float(seconds.sum()), {"rows_scored": scored, "shards": len(shards)}


def score_shard(shard: Work) -> int:
    """Score a shard's rows by a pass without gradients of weights, add them to the store, return their number."""
    sets = read_sets(shard.source, shard.digest, shard.model, shard.settings)
    with model_lock:
        u = read_direction(replace(shard, places=()))
        with groundwork.timed(shard, sets, shard.places) as (network, batches, facts):
            phi_data = score_second(network, batches, u)
    _keep(shard, [sets.ids[place] for place in shard.places], phi_data, seconds=facts["seconds"])
    return len(shard.places)


def _keep(work: Work, ids: list[str], phi_data: Tensor, *, seconds: float) -> None:
    part = pa.table([ids, phi_data.cpu().numpy()], schema=STORED)
    name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
    write_table(part, work.folder / f"part-{name}.parquet", Provenance("gradients", "store", {"seconds": seconds}))


def _load(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the stored phi_data by id, each with the seconds that it took; of two figures the smaller."""
    known: dict[str, tuple[float, float]] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        part = pq.read_table(check_part(path))
        each = provenance(path)["parameters"]["seconds"] / part.num_rows
        for name, score in zip(part["id"].to_pylist(), part["score"].to_pylist(), strict=True):
            known[name] = min(known.get(name, (score, each)), (score, each))
    return known


@lru_cache(maxsize=1)
def read_direction(work: Work) -> dict[str, Tensor]:
    """Return u / eta on the model's device; at second order G must be whole."""
    G = groundwork.read(work.files.total)[0] if work.settings.order == "second" else None
    found = direction(read_terms(work.files, work.settings), G)
    return {name: tensor.to(models.device(work.model)) for name, tensor in found.items()}


def read_terms(files: Files, settings: GradientsSettings) -> Terms:
    """Return what the direction is made of, on the CPU."""
    parts = {"v_new": groundwork.read(files.v_new)[0], "v_prior": groundwork.read(files.v_prior)[0]}
    weights = {"lambda_new": settings.lambda_new, "lambda_prior": settings.lambda_prior}
    if settings.order == "first":
        return Terms(**parts, **weights)
    moments, facts = groundwork.read(files.moments)
    c = correct_curvature(moments, settings.curvature, beta2=facts["beta2"], steps=facts["steps"])
    return Terms(**parts, **weights, c=c, eta=settings.eta)


def forget() -> None:
    """Drop the model, the direction and the rows that this process keeps between shards."""
    for kept in (read_direction, read_sets, groundwork.load_trained):
        kept.cache_clear()


def _describe(work: Work) -> dict[str, Any]:
    """Return what determines the scores; how the work was cut and run is no part of it."""
    described = {
        name: value for name, value in vars(work.settings).items() if name not in ("shard_rows", "pack_tokens")
    }
    return described | {"model": work.model.name, "model_digest": models.model_digest(work.model)}


def _write(out: Path, record: Provenance, work: Work, sets: Sets, *, scores: np.ndarray, spent: float) -> float:
    """Write the artifact; return the seconds that all of it took, when it was computed.

    Raises:
        ValueError: the law of rows and columns is broken.
    """
    groundwork.load_trained.cache_clear()  # what follows needs memory and no model
    terms, (G, first) = read_terms(work.files, work.settings), groundwork.read(work.files.total)
    u = {name: tensor.cpu() for name, tensor in read_direction(work).items()}
    phi_param = score_parameters(u, G)
    found = diagnose(terms, u, G, torch.from_numpy(scores), phi_param)
    allowed = TOLERANCE[models.DTYPES[work.model.dtype]]
    if not found["law_residual"] <= allowed:
        raise ValueError(
            f"sums over rows ({found['sum_phi_data']:g}) and over parameters ({found['sum_phi_param']:g}) differ by "
            f"{found['law_residual']:.2g} of the scores' size, allowed are {allowed:g}: a part of {work.folder} or of "
            f"{work.files.total.parent} is not of this run; delete both and run again"
        )
    groundwork.write(phi_param, out / "phi_param.safetensors", asdict(record))
    table = pa.table([[sets.ids[place] for place in sets.pool], scores, [work.settings.order] * len(scores)], PHI_DATA)
    write_table(table, out / "phi_data.parquet", record)
    facts, seconds = describe_groundwork(work.files)
    seconds |= {"first_pass": round(first["seconds"], 3), "second_pass": round(spent, 3)}
    spread = {name: float(of(scores)) for name, of in (("min", np.min), ("median", np.median), ("max", np.max))}
    facts |= {"wanted": True, "order": work.settings.order, "phi_data": spread, "seconds": seconds}
    facts["parameters"] = sum(tensor.numel() for tensor in phi_param.values())
    write_json(found | facts | describe_sets(sets), out / "gradients.json")
    return sum(seconds.values())


def describe_groundwork(files: Files) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what is known of the warm-up and of v_prior, and the seconds that they and v_new took."""
    kept = {"warmup": files.weights, "v_new": files.v_new, "v_prior": files.v_prior}
    told = {name: groundwork.read(path)[1] for name, path in kept.items()}
    seconds = {name: round(facts.pop("seconds"), 3) for name, facts in told.items()}
    return {"warmup": told["warmup"], **told["v_prior"]}, seconds


def describe_sets(sets: Sets) -> dict[str, Any]:
    """Return how many rows each set has, and how many two of them share."""
    members = {name: set(getattr(sets, name)) for name in ("pool", "validation", "warmup", "anchors")}
    pairs = [("warmup", "pool"), ("anchors", "pool"), ("warmup", "anchors")]
    pairs += [("validation", name) for name in ("pool", "warmup", "anchors")]
    return {
        "rows": {name: len(places) for name, places in members.items()} | {"left_out": sets.left_out},
        "overlaps": {f"{one}_{other}": len(members[one] & members[other]) for one, other in pairs},
        "validation_from": sets.steered_by,
    }


def _write_nothing(out: Path, record: Provenance) -> Mapping[str, Any]:
    write_table(PHI_DATA.empty_table(), out / "phi_data.parquet", record)
    groundwork.write({}, out / "phi_param.safetensors", asdict(record))
    why = "neither rows nor parameters are chosen by gradients (selection.rows_by, selection.mask_by)"
    write_json({"wanted": False, "why": why}, out / "gradients.json")
    return {"rows_summed": 0, "rows_scored": 0, "shards": 0, "scoring_seconds": 0.0}
