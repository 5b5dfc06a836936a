"""Stage `gradients`: what each row and each parameter is worth to the target task, by one matrix (DualSFT).

Rows are drawn, the base model is warmed up, v_new and v_prior are taken at that checkpoint (tasks/gradients/warmup.py);
then the pool is passed through once (first order) or twice. `tamis.gradients.per_example` and
`tamis.gradients.interaction` define the symbols; the learning rate eta is factored out of u, and so out of every score.
Where parameters are chosen by Fisher information (`tamis.gradients.fisher`), that of the base model is made instead, or
beside phi_data where rows are chosen by it.

G stands in the scratch folder (tasks/gradients/sums.py): shards are added in the pool's order, whoever runs them, so
that the sum is the same on one worker and on many. phi_data stands in the store.

Block-wise (`block_parameters`): parameters are taken a group at a time, each with its own v_new, v_prior, u, G, Fisher
information and stored phi_data, which add up over groups. This bounds what a pass sums, u, and the check of a loaded
model against autograd by the group, at the price of as many passes as groups. It bounds neither the warm-up, which
trains all weights, nor the model and its activations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tamis.gradients.interaction import diagnose, measure, score_parameters
from tamis.gradients.layers import cover
from tamis.gradients.per_example import TOLERANCE, Interaction, accumulate, score_second
from tamis.gradients.row_sums import RowSums
from tamis.language.batches import Batch
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.tables import Provenance, digest, digest_inputs, write_json, write_table
from tasks.artifacts.tensors import read, stream
from tasks.folders import Folders
from tasks.gradients import sums, warmup
from tasks.gradients.costs import count_passes
from tasks.gradients.directions import make_direction, read_direction, read_terms
from tasks.gradients.row_scores import (
    RowScores,
    add_up,
    collect,
    correlate,
    keep_rows,
    name_rows,
    tabulate_scores,
    tabulate_sketches,
)
from tasks.gradients.scratch import at_work, clear_others
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
from tasks.shares import Map, own, refuse_unfinished

SCORERS = {"dualsft": "total", "fisher": "fisher"}  # of parameters; the file that has their shapes
BY_ROWS = ("dualsft", "dualsft_cover")  # selectors of rows that read phi_data, the second one sketches, too
NO_PART = ("fisher_rows",)  # of what determines phi_data and phi_param


@dataclass(frozen=True)
class Scored:
    """What one way of scoring gave."""

    facts: Mapping[str, Any]  # for the JSON
    seconds: Mapping[str, float]  # that it took, when it was computed
    did: Mapping[str, int]  # in this run
    rows: RowScores | None = None  # None: rows were not scored


def write_gradients(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: GradientsSettings,
    runtime: RuntimeSettings,
    loss_per: str,
    selector: str,
    mask_selector: str,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `phi_data.parquet`, `sketches.parquet`, `phi_param.safetensors` and `gradients.json`; return what this run
    did.

    phi_data has rows where `selector` is one of DualSFT's, sketches where it is dualsft_cover. phi_param has tensors
    where parameters are scored: those of DualSFT or Fisher information, as `mask_selector` says, and its header's
    `scores` says which. Where parameters alone are scored, the pass over the pool forms no score of a row.

    Args:
        folders: of the examples held-out rows are not read; what a run has no use for is removed from `warmup`.
        settings: with the learning rate, which they have from finetuning where they give none.
        runtime: how the work is cut and run.
        loss_per: of the training, `row` or `token`.
        selector: of rows.
        mask_selector: what scores parameters.
        map: runs shards.

    Raises:
        ValueError: settings that cannot be; no validation row; fewer anchors than a batch; a row that is too long;
            a gradient that is not finite, with its row's id; sums over rows and over columns that differ.
    """
    examples, out, version = folders.here.examples, folders.here.gradients, folders.here.version
    store, scratch = folders.cache / "gradients", folders.warmup
    source, scores_rows = examples / "examples.parquet", selector in BY_ROWS
    kinds = ({mask_selector} | ({"dualsft"} if scores_rows else set())) & {*SCORERS}
    made = partial(Provenance, "gradients", version, inputs=digest_inputs(source))
    works, sets = [], None
    if kinds:
        how = {"settings": settings, "runtime": runtime, "loss_per": loss_per, "scores_rows": scores_rows}
        works, sets = open_work(source, scratch, store, model, **how)
    found: dict[str, Scored] = {}
    with at_work(scratch, ends=clear_caches) if works else nullcontext():
        if "dualsft" in kinds:
            found["dualsft"] = score_pool(works, sets, selector, map)
        if "fisher" in kinds:
            found["fisher"] = score_fisher(works, sets)
        counted = {"kinds": kinds, "groups": len(works), "again": scores_rows and settings.order == "second"}
        flops = count_passes(sets, settings, model, **counted) if sets else {}
        told = {"selector": selector, "mask_selector": mask_selector, "flops": flops}
        _write(out, made, works, sets, found=found, **told)
    did = dict.fromkeys(("rows_summed", "rows_scored", "rows_squared", "shards"), 0)
    for one in found.values():
        did |= one.did
    did["scoring_flops"] = sum(flops.values())
    did |= models.note_products(model) if found else {}
    return did | {"scoring_seconds": round(sum(sum(one.seconds.values()) for one in found.values()), 3)}


def open_work(
    source: Path,
    scratch: Path,
    store: Path,
    model: models.ModelChoice,
    *,
    settings: GradientsSettings,
    runtime: RuntimeSettings,
    loss_per: str,
    scores_rows: bool,
) -> tuple[list[Work], Sets]:
    """Draw the rows, name the files and stored parts of each group, and clear the scratch folder of all other files."""
    _refuse(model)
    known = digest(source)
    sets, works = read_sets(source, known, model, settings), []
    for names in warmup.group(model, runtime.block_parameters):
        files = plan_files(scratch, sets, model, settings, loss_per=loss_per, names=names)
        folder = stores.store_folder(store, *_name_terms(files, settings))
        works.append(Work(source, known, files, folder, model, settings, runtime, loss_per, scores_rows, names))
    clear_others(Path(scratch), [path.stem for work in works for path in work.files])
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


def score_pool(works: Sequence[Work], sets: Sets, selector: str, map: Map) -> Scored:
    """Return the scores of the pool's rows, where they are wanted, and what is recorded of DualSFT, a group of
    parameters after the other.

    Raises:
        ValueError: no validation row; the law of rows and columns is broken.
    """
    refuse_unsteered(sets)
    groups, spent, did = [], 0.0, dict.fromkeys(("rows_summed", "rows_scored", "shards"), 0)
    for work in works:
        made = {"model": work.model.label, "model_digest": models.model_digest(work.model)}
        told = {"template": work.model.template, "order": work.settings.order}
        stores.describe(work.folder, kind="gradients", code=CODE, **made, **told)
        prepare(work, sets)
        steps = [sum_gradients, score_missing] if work.scores_rows else [sum_gradients]
        for each in (step(work, sets, map) for step in steps):
            did = {name: count + each.get(name, 0) for name, count in did.items()}
        if work.scores_rows:
            scores, seconds = collect(work, sets)
            groups, spent = [*groups, scores], spent + seconds
        read_direction.cache_clear()  # that of the next group takes its place
    warmup.load_trained.cache_clear()  # what follows needs memory and no model
    facts, seconds = describe_warmup(works)
    seconds |= {"first_pass": sum_seconds(works, "total"), "second_pass": round(spent, 3)}
    rows = add_up(groups) if groups else None
    facts = check_row_column_law(works, rows.phi_data if rows else None) | facts
    if rows:
        facts |= correlate(rows, sets.encoding.answer_tokens[sets.pool], selector)
    return Scored(facts, seconds, did, rows)


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
    """Add to G the rows of the pool that it lacks, in shards; return how many rows and shards these were.

    Raises:
        Unfinished: this is a share of the work, and others have not done theirs.
    """
    path, size, rows = work.files.total, work.runtime.shard_rows, len(sets.pool)
    summed, done = 0, 0
    while (known := sums.settle(path)) < rows:
        starts = np.arange(known, rows, size)
        mine = starts[own(map, [f"{start}" for start in starts // size])]
        waiting = sums.list_waiting(path)
        shards = [replace(work, start=start) for start in mine.tolist() if start not in waiting]
        summed, done = summed + sum(map(add_shard, shards)), done + len(shards)
        refuse_unfinished(map, "rows of the sum of gradients", rows - sums.count_rows(path), rows)
    return {"rows_summed": summed, "shards": done}


def add_shard(shard: Work) -> int:
    """Add a shard's rows to G and return their number; at first order phi_data is of the same pass."""
    sets = read_sets(shard.source, shard.digest, shard.model, shard.settings)
    places = sets.pool[shard.start :][: shard.runtime.shard_rows]
    with model_lock:
        first = shard.scores_rows and shard.settings.order == "first"
        u = read_direction(replace(shard, start=0)) if first else None
        (found, rows), facts = warmup.passed(shard, sets, places, partial(sum_rows, shard, u=u, count=len(places)))
    if rows is not None:
        keep_rows(shard, [sets.ids[place] for place in places], found, rows, seconds=0.0)  # those of G
    sums.add(shard.files.total, shard.start, found.G, {"rows": len(places), **facts})
    return len(places)


def sum_rows(
    shard: Work,
    network: PreTrainedModel,
    batches: list[Batch],
    *,
    u: Mapping[str, Tensor] | None,
    count: int,
    again: bool = False,
) -> tuple[Interaction, RowSums | None]:
    """Return what a pass, or the second one, over so many rows gives, and their norms and sketches where u scores."""
    rows = None if u is None else watch_rows(shard, network, count)
    how = {"loss_per": shard.loss_per, "rows": rows}
    if again:
        return score_second(network, batches, u, **how), rows
    return accumulate(network, batches, u, keep=shard.names, **how), rows


def watch_rows(work: Work, network: PreTrainedModel, rows: int) -> RowSums:
    """Return what gets the norms and the sketches of so many rows, by the parameters of a group."""
    return RowSums(network, cover(network), rows, seed=work.settings.seed, names=work.names)


def score_missing(work: Work, sets: Sets, map: Map) -> dict[str, int]:
    """Pass again through the rows whose phi_data the store lacks; return how many rows and shards these were.

    At first order there are none, but where another direction is asked for when G is known.
    """
    asked, size = name_rows(sets), work.runtime.shard_rows
    unknown = set(stores.missing(work.folder, asked)["id"].to_pylist())
    lacking = np.array([place for place in sets.pool if sets.ids[place] in unknown], int)
    lacking = lacking[own(map, [sets.ids[place] for place in lacking])].tolist()
    shards = [replace(work, places=tuple(lacking[start : start + size])) for start in range(0, len(lacking), size)]
    scored = sum(map(score_shard, shards))
    refuse_unfinished(map, "rows", stores.missing(work.folder, asked).num_rows, asked.num_rows)
    return {"rows_scored": scored, "shards": len(shards)}


def score_shard(shard: Work) -> int:
    """Score a shard's rows by a pass without gradients of weights, add them to the store, return their number."""
    sets = read_sets(shard.source, shard.digest, shard.model, shard.settings)
    with model_lock:
        u = read_direction(replace(shard, places=()))
        (found, rows), facts = warmup.passed(
            shard, sets, shard.places, partial(sum_rows, shard, u=u, count=len(shard.places), again=True)
        )
    keep_rows(shard, [sets.ids[place] for place in shard.places], found, rows, seconds=facts["seconds"])
    return len(shard.places)


def clear_caches() -> None:
    """Drop the model, the direction and the rows that this process keeps between shards."""
    for kept in (read_direction, read_sets, warmup.load_trained):
        kept.cache_clear()


def check_row_column_law(works: Sequence[Work], phi_data: np.ndarray | None) -> dict[str, Any]:
    """Return the law of rows and columns and the other diagnostics, a group of parameters after the other.

    Raises:
        ValueError: the law is broken.
    """
    parts = [
        measure(read_terms(work.files, work.settings), make_direction(work), read(work.files.total)[0])
        for work in works
    ]
    whole = {name: sum(part[name] for part in parts) for name in parts[0]}
    found = diagnose(whole, None if phi_data is None else torch.from_numpy(phi_data))
    allowed = TOLERANCE[models.DTYPES[works[0].model.dtype]]
    if not found["law_residual"] <= allowed:
        raise ValueError(
            f"sums over rows ({found['sum_phi_data']}) and over parameters ({found['sum_phi_param']:g}) differ by "
            f"{found['law_residual']:.2g} of the scores' size, allowed are {allowed:g}: a part of {works[0].folder} or "
            f"of {works[0].files.total.parent} is not of this run; delete both and run again"
        )
    spread = None
    if phi_data is not None:
        spread = {name: float(of(phi_data)) for name, of in (("min", np.min), ("median", np.median), ("max", np.max))}
    return found | {"phi_data": spread, "parameters": int(whole["entries"]), "order": works[0].settings.order}


def _describe(kind: str, work: Work) -> dict[str, Any]:
    """Return what determines the scores; how the work was cut and run is no part of it."""
    settings = asdict(work.settings) | {"template": work.model.template, "loss_per": work.loss_per}
    settings["matmul"] = work.model.matmul
    of_fisher = ["fisher_rows", "template", "loss_per", "matmul"]
    known = [name for name in settings if name not in NO_PART] if kind == "dualsft" else of_fisher
    if kind == "dualsft" and work.settings.order == "first":
        known.remove("curvature")
    made = {"model": work.model.label, "model_digest": models.model_digest(work.model)}
    return {"scores": kind, **{name: settings[name] for name in known}, **made}


def _write(
    out: Path,
    made: Callable[..., Provenance],
    works: Sequence[Work],
    sets: Sets | None,
    *,
    found: Mapping[str, Scored],
    selector: str,
    mask_selector: str,
    flops: Mapping[str, int],
) -> None:
    """Write the artifact."""
    records = {None: made({"scores": None})}
    records |= {kind: made(_describe(kind, works[0]), seed=works[0].settings.seed) for kind in found}
    rows = found["dualsft"].rows if "dualsft" in found else None
    of_rows, of_parameters = ("dualsft" if rows else None), (mask_selector if mask_selector in found else None)
    sources = [getattr(work.files, SCORERS[of_parameters]) for work in works] if of_parameters else []
    stream(read_scores(of_parameters, works), sources, out / "phi_param.safetensors", asdict(records[of_parameters]))
    covering = rows if selector == "dualsft_cover" else None
    order = works[0].settings.order if works else "first"
    write_table(tabulate_scores(rows, sets, order), out / "phi_data.parquet", records[of_rows])
    write_table(tabulate_sketches(covering, sets), out / "sketches.parquet", records[of_rows if covering else None])
    facts: dict[str, Any] = {"scores": {"rows": selector if rows else None, "parameters": of_parameters}}
    if found:
        facts |= describe_sets(sets, found) | {"groups": len(works), "flops": flops, "seconds": {}}
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
