"""Stage `utility`: scores each wanted (target, demo) pair once, in shards that survive a crash."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import tamis.language.packing
import tamis.utility.utility
from tamis.language.packing import Group, NonFiniteError, score_responses
from tamis.utility.pairs import (
    pair_all,
    pairs_of_all,
    pairs_of_landmarks,
    pairs_of_neighbours,
    pairs_of_quality,
    plan_rounds,
    representatives,
    top_demos,
    unite,
)
from tamis.utility.probes import pairs_of_probes
from tamis.utility.utility import Missed, approximation_error, gain, measure
from tasks import models
from tasks.artifacts import schemas, stores
from tasks.artifacts.tables import (
    Provenance,
    digest,
    digest_code,
    digest_inputs,
    read_lists,
    read_table,
    write_json,
    write_table,
)
from tasks.folders import Folders
from tasks.scoring_model import model_lock, scoring_model
from tasks.settings import RuntimeSettings
from tasks.shares import Map, own, refuse_unfinished
from tasks.tokens import WRITERS
from tasks.utility.asking import NOTHING, ask, draw_check, draw_help
from tasks.utility.costs import measure_cost
from tasks.utility.pool import Pool, read_pool
from tasks.utility.settings import UtilitySettings

CODE = digest_code(tamis.language.packing, tamis.utility.utility, *WRITERS)  # what a score depends on, as imported


@dataclass(frozen=True)
class Shard:
    """A part's worth of pairs; small enough to travel to another process."""

    examples: Path  # the examples artifact
    digest: str  # its sha256, so that a worker never uses an older reading
    folder: Path  # of the pair store
    model: models.ModelChoice
    settings: UtilitySettings
    runtime: RuntimeSettings
    pairs: np.ndarray  # int32, pair x (target, demo): places among the examples; demo -1: nothing shown


@dataclass(frozen=True, eq=False)
class ChosenPairs:
    """The pairs that are scored."""

    kernel: np.ndarray  # that the kernel asks for
    tried: np.ndarray  # that were tried to find these
    scored: Counter  # what was scored for that
    recall: float | None = None  # share of the nearest demos that were found; None where none are looked for


def write_utility(
    folders: Folders,
    *,
    model: models.ModelChoice,
    settings: UtilitySettings,
    runtime: RuntimeSettings,
    wanted: bool,
    kernel: str | None = None,
    quality: str | None = None,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `utility.parquet` and what belongs to it; return what this run scored.

    The pairs are those of `kernel`: `probes`, or that of the settings, where it is None; only those that tell the
    quality of demos, by the word of `selection.quality`, where one is given.

    Beside it: `distances.parquet` (each target alone), `checked.parquet` (some targets with every demo of the pool),
    `skipped.parquet` (pairs too long for the context) and `utility.json`. Where `wanted` is false (the rows are chosen
    without utility) the tables are empty and the JSON says so.
    """
    examples, embedding, out = folders.here.examples, folders.here.embedding, folders.here.utility
    store, version = folders.cache / "pairs", folders.here.version
    source, vectors = examples / "examples.parquet", embedding / "embedding.parquet"
    inputs = digest_inputs(source, vectors)
    if not wanted:
        return _write_nothing(out, Provenance("utility", version, {"wanted": False}, inputs))
    known = digest(source)
    pool = read_pool(source, known, model, settings.answer_tokens)
    folder = open_store(store, model, settings)
    work = Shard(source, known, folder, model, settings, runtime, np.empty((0, 2), np.int32))

    kernel = kernel or settings.kernel
    chosen, ground = choose_pairs(work, pool, vectors, kernel, quality, map=map), pool.sets["ground"]
    pairs = chosen.kernel if quality is None else pairs_of_quality(chosen.kernel, pool.sets, quality)
    wanted_for = {"kernel": pairs, "tried": chosen.tried, "check": draw_check(ground, settings, kernel)}
    wanted_for["help"] = draw_help(pool.sets, pairs, settings, kernel)
    few = kernel == "none" or quality is not None
    targets = np.unique(unite(wanted_for.values())[:, 0]) if few else pool.targets
    asked, skipped = ask(pool, wanted_for, model.max_tokens, targets)
    scores, done = score_missing(work, asked, map)

    described = _describe(model, settings, kernel) | {"quality": quality}
    record = Provenance("utility", version, described, inputs, settings.seed)
    seconds, flops = measure_cost(folder, asked, pool, model)
    _write(out, record, scores, skipped, settings, more={"neighbour_recall": chosen.recall, "flops": flops})
    counts = count_pairs(asked, chosen.scored + done) | models.note_products(model)
    return counts | {"kernel": kernel, "scoring_seconds": seconds, "scoring_flops": flops}


def store_folder(store: Path, model: models.ModelChoice, settings: UtilitySettings) -> Path:
    """Return the folder that keeps the scores of a model under its template, of so many answer tokens."""
    cut = () if settings.answer_tokens is None else (settings.answer_tokens,)
    return stores.store_folder(store, models.model_digest(model), model.template, CODE, *cut)


def open_store(store: Path, model: models.ModelChoice, settings: UtilitySettings) -> Path:
    """Return the folder that keeps the scores, after it says so itself."""
    folder, digest = store_folder(store, model, settings), models.model_digest(model)
    stores.describe(folder, kind="pairs", model=model.name, model_digest=digest, code=CODE, template=model.template)
    return folder


def score_missing(work: Shard, asked: pa.Table, map: Map) -> tuple[pa.Table, Counter]:
    """Score what the store lacks, in shards; return the scores of all that was asked and what this run did.

    Raises:
        ValueError: parts vanished from the store meanwhile.
        Unfinished: this is a share of the work, and others have not done theirs.
    """
    lacking = stores.missing(work.folder, asked)
    lacking = lacking.filter(pa.array(own(map, name_owners(lacking))))
    shards = cut_shards(work, lacking)
    scored = sum(map(score_shard, shards))
    scores = stores.find(work.folder, asked)
    lost = asked.num_rows - scores.num_rows
    refuse_unfinished(map, "pairs", lost, asked.num_rows)
    if lost:
        raise ValueError(f"{lost} of {asked.num_rows} pairs vanished from {work.folder} during the run; run again")
    alone = _count_alone(lacking)
    return scores, Counter(pairs=scored - alone, alone=alone, shards=len(shards))


def name_owners(pairs: pa.Table) -> list[str]:
    """Return by which name a pair falls to a share: by its demo, whose targets are scored together, or alone by its
    target."""
    shown = pc.greater_equal(pairs["demo"], 0)
    return pc.if_else(shown, pairs["demo_id"], pairs["target_id"]).to_pylist()


def count_pairs(asked: pa.Table, scored: Counter) -> dict[str, int]:
    """Return how many of all pairs, and of all targets alone, this run scored, and how many it knew before."""
    alone = _count_alone(asked)
    return {
        "pairs_scored": scored["pairs"],
        "pairs_known": asked.num_rows - alone - scored["pairs"],
        "alone_scored": scored["alone"],
        "alone_known": alone - scored["alone"],
        "shards": scored["shards"],
    }


def _count_alone(table: pa.Table) -> int:
    return int((np.asarray(table["demo"]) < 0).sum())


def _describe(model: models.ModelChoice, settings: UtilitySettings, kernel: str) -> dict[str, Any]:
    """Return what determines the table; how the work was cut and run is no part of it."""
    described = asdict(settings) | {"template": model.template, "matmul": model.matmul, "kernel": kernel}
    return described | {"model": model.label, "model_digest": models.model_digest(model)}


def choose_pairs(work: Shard, pool: Pool, vectors: Path, kernel: str, quality: str | None, *, map: Map) -> ChosenPairs:
    """Return the pairs that the kernel asks for; to find landmarks, pairs are scored, to find probes, targets alone."""
    settings, none = work.settings, np.empty((0, 2), np.int64)
    if kernel == "none":
        return ChosenPairs(none, none, Counter())
    if kernel == "exact":
        return ChosenPairs(pairs_of_all(pool.sets), none, Counter())
    place = {name: row for row, name in enumerate(read_table(vectors, columns=["id"])["id"].to_pylist())}
    found = read_lists(vectors, "embedding")[[place[name] for name in pool.ids]]
    if kernel == "neighbours":
        pairs, recall = pairs_of_neighbours(pool.sets, found, settings.neighbours, quality)
        return ChosenPairs(pairs, none, Counter(), recall)
    return (find_probes if kernel == "probes" else find_landmarks)(work, pool, found, map)


def find_probes(work: Shard, pool: Pool, vectors: np.ndarray, map: Map) -> ChosenPairs:
    """Score every target alone, which tells the hard ones; return each row of the pool as demo of its probes."""
    settings, ground, none = work.settings, pool.sets["ground"], np.empty((0, 2), np.int64)
    scores, done = score_missing(work, ask(pool, {"tried": none}, work.model.max_tokens)[0], map)
    far = {"probability": scores["distance"], "log_likelihood": pc.negate(scores["log_likelihood"])}[settings.distance]
    difficulty = np.full(len(pool.ids), np.nan)
    difficulty[np.asarray(scores["target"])] = np.asarray(far)
    how = asdict(settings.probes) | {"seed": settings.seed}
    pairs, recall = pairs_of_probes(ground, vectors[ground], difficulty[ground], **how)
    return ChosenPairs(pairs, none, done, recall)


def find_landmarks(work: Shard, pool: Pool, vectors: np.ndarray, map: Map) -> ChosenPairs:
    """Try many demos on a few targets, half of them on twice as many, and so on; return the pairs of the best."""
    settings, ground = work.settings, pool.sets["ground"]
    count = len(ground) if settings.landmark_targets is None else min(settings.landmark_targets, len(ground))
    targets = np.random.default_rng(settings.seed).permutation(ground)[:count]
    rounds, tried, scored = plan_rounds(len(ground), settings.landmarks, count), [], Counter()
    demos = ground[representatives(vectors[ground], rounds[0][0])]
    for (_, answered), (fewer, _) in pairwise(rounds):
        tried.append(pair_all(targets[:answered], demos))
        asked, _ = ask(pool, {"tried": tried[-1]}, work.model.max_tokens)
        scores, done = score_missing(work, asked, map)
        demos, scored = demos[top_demos(_similar(scores, demos, settings), fewer)], scored + done
    others = {name: pool.sets[name] for name in ("task", "learnt")}
    shown = {name: some[representatives(vectors[some], settings.landmarks)] for name, some in others.items()}
    kernel = pairs_of_landmarks(shown | {"ground": demos}, others | {"ground": targets})
    return ChosenPairs(kernel, unite([np.empty((0, 2), np.int64), *tried]), scored)


def _similar(scores: pa.Table, demos: np.ndarray, settings: UtilitySettings) -> np.ndarray:
    """Return max(U, 0) of scored pairs, targets by demos; NaN where there is none or an example answers itself."""
    pairs = compute_utility(scores, settings)
    target, demo = (np.asarray(pairs[name]) for name in ("target", "demo"))
    column = np.zeros(demos.max() + 1, np.int64)
    column[demos] = np.arange(len(demos))
    answered, row = np.unique(target, return_inverse=True)
    table = np.full((len(answered), len(demos)), np.nan)
    table[row, column[demo]] = np.where(target == demo, np.nan, np.maximum(np.asarray(pairs["utility"]), 0))
    return table


def cut_shards(empty: Shard, lacking: pa.Table) -> list[Shard]:
    """Cut the missing pairs, those of a demo together, into shards of `runtime.shard_pairs`."""
    pairs = np.column_stack([np.asarray(lacking["target"]), np.asarray(lacking["demo"])])
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    size = empty.runtime.shard_pairs
    return [replace(empty, pairs=pairs[start : start + size]) for start in range(0, len(pairs), size)]


def score_shard(shard: Shard) -> int:
    """Score a shard's pairs, append them to the store as one part, and return their number.

    Raises:
        ValueError: a non-finite score, naming the pair.
    """
    pool = read_pool(shard.examples, shard.digest, shard.model, shard.settings.answer_tokens)
    pairs = shard.pairs.tolist()
    members: dict[tuple[int, int], list[int]] = {}
    for target, demo in pairs:
        members.setdefault((int(pool.heads[target]), demo), []).append(target)
    places = [(target, demo) for (_, demo), targets in members.items() for target in targets]
    names = [(pool.ids[target], pool.ids[demo] if demo >= 0 else NOTHING) for target, demo in places]
    try:
        with model_lock:
            model, start = scoring_model(shard.model), time.perf_counter()
            with models.multiplying(shard.model):
                rows = score_responses(model, _groups(pool, members), shard.runtime.pack_tokens)
            seconds = time.perf_counter() - start
    except NonFiniteError as error:
        (_, demo), targets = list(members.items())[error.group]
        shown = pool.ids[demo] if demo >= 0 else "nothing"
        raise ValueError(
            f"the score of target {pool.ids[targets[error.target]]} with demo {shown} is not finite; "
            "set models.dtype: float32, or check the model's weights"
        ) from error
    answers = [measure(row) for group in rows for row in group]
    columns = [[target for target, _ in names], [demo for _, demo in names]]
    columns += [[getattr(answer, name) for answer in answers] for name in ("tokens", "distance", "log_likelihood")]
    stores.append(shard.folder, pa.table(columns, schema=schemas.PAIRS), stage="utility", seconds=seconds)
    return len(names)


def _groups(pool: Pool, members: Mapping[tuple[int, int], list[int]]) -> list[Group]:
    return [
        Group(pool.prefix(head, demo), [pool.answered(target, demo) for target in targets])
        for (head, demo), targets in members.items()
    ]


def _write(
    out: Path,
    provenance: Provenance,
    scores: pa.Table,
    skipped: pa.Table,
    settings: UtilitySettings,
    *,
    more: Mapping[str, Any],
) -> None:
    alone, shown = scores.filter(pc.less(scores["demo"], 0)), compute_utility(scores, settings)
    kernel, check = shown.filter(pc.or_(shown["kernel"], shown["help"])), shown.filter(shown["check"])
    columns = [alone[name] for name in ("target_id", "tokens", "distance", "log_likelihood")]
    write_table(kernel.select(schemas.UTILITY.names).cast(schemas.UTILITY), out / "utility.parquet", provenance)
    write_table(check.select(schemas.UTILITY.names).cast(schemas.UTILITY), out / "checked.parquet", provenance)
    write_table(pa.table(columns, schema=schemas.DISTANCES), out / "distances.parquet", provenance)
    write_table(skipped, out / "skipped.parquet", provenance)
    utility = np.asarray(kernel["utility"])
    facts = {
        "wanted": True,
        "kernel": provenance.parameters["kernel"],
        **more,
        "targets": alone.num_rows,
        "pairs_scored": kernel.num_rows,
        "pairs_of_help": pc.sum(pc.invert(kernel["kernel"])).as_py() or 0,
        "answer_tokens": settings.answer_tokens,
        "pairs_skipped": skipped.num_rows,
        "share_helped": float((utility > 0).mean()) if len(utility) else 0.0,
        "utility_median": float(np.median(utility)) if len(utility) else 0.0,
        "error": describe_error(check),
    }
    write_json(facts, out / "utility.json")


def compute_utility(scores: pa.Table, settings: UtilitySettings) -> pa.Table:
    """Return the scored pairs with their utility."""
    measured = "distance" if settings.distance == "probability" else "log_likelihood"
    single = pc.less(scores["demo"], 0)
    alone, shown = scores.filter(single), scores.filter(pc.invert(single))
    before = np.full(int(np.asarray(alone["target"]).max(initial=-1)) + 1, np.nan)
    before[np.asarray(alone["target"])] = np.asarray(alone[measured])
    after = np.asarray(shown[measured], dtype=np.float64)
    utility = gain(after, before[np.asarray(shown["target"])], settings.distance)
    return shown.append_column(schemas.UTILITY.field("utility"), pa.array(utility, pa.float32()))


def describe_error(check: pa.Table) -> dict[str, Any]:
    """Return what the kernel lacks of the pairs that were scored to check it; figures are null where there are none."""
    found = {"targets": pc.count_distinct(check["target"]).as_py(), "pairs": check.num_rows}
    if not check.num_rows:
        return found | {field.name: None for field in fields(Missed)}
    return found | asdict(approximation_error(np.asarray(check["utility"]), np.asarray(check["kernel"])))


def _write_nothing(out: Path, provenance: Provenance) -> Mapping[str, Any]:
    for name, schema in (
        ("utility", schemas.UTILITY),
        ("checked", schemas.UTILITY),
        ("distances", schemas.DISTANCES),
        ("skipped", schemas.SKIPPED),
    ):
        write_table(schema.empty_table(), out / f"{name}.parquet", provenance)
    why = "the rows are chosen without utility (selection.selector)"
    write_json({"wanted": False, "why": why, "pairs_scored": 0, "pairs_skipped": 0, "flops": 0}, out / "utility.json")
    return dict.fromkeys(("pairs_scored", "pairs_known", "alone_scored", "alone_known", "shards"), 0) | {
        "scoring_seconds": 0.0,
        "scoring_flops": 0,
    }
