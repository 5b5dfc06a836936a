"""Room `utility`: scores each wanted (target, demo) pair once, in shards that survive a crash."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import tamis.language_model
import tamis.templates
import tamis.utility
from tamis.embedding import nearest
from tamis.language_model import Group, NonFiniteError, score_responses, verify_packing
from tamis.templates import Encoding, encode, join_instruction
from tamis.utility import KERNELS, fits, gain, measure, pairs_of_all, pairs_of_neighbours
from tasks import models, pairstore, schemas
from tasks.artifacts import Provenance, digest, digest_code, digest_inputs, read_table, write_json, write_table

CODE = digest_code(tamis.language_model, tamis.templates, tamis.utility)  # what a score depends on, as imported
NOTHING = ""  # the demo id of a target that is scored alone

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
model_lock = threading.Lock()  # one pass at a time: it takes all cores, and packed attention is a state of the model


@dataclass(frozen=True)
class UtilitySettings:
    """How pairs are chosen and scored."""

    template: str = "chat"  # chat | delift
    distance: str = "probability"  # probability | log_likelihood
    kernel: str = "neighbours"  # exact | neighbours
    neighbours: int = 8  # demos per target, itself not counted
    shard_pairs: int = 256  # pairs per part of the store
    pack_tokens: int = 2048  # tokens per forward pass


@dataclass(frozen=True)
class Shard:
    """A part's worth of pairs; small enough to travel to another process."""

    examples: Path  # the examples artifact
    digest: str  # its sha256, so that a worker never uses an older reading
    folder: Path  # of the pair store
    model: models.ModelChoice
    settings: UtilitySettings
    pairs: np.ndarray  # int32, pair x (target, demo): places among the pool's examples; demo -1: nothing shown


@dataclass(frozen=True)
class Pool:
    """The examples of the pool, tokenised once."""

    ids: list[str]
    encoding: Encoding


def write_utility(
    *,
    examples: Path,
    embedding: Path,
    out: Path,
    store: Path,
    version: str,
    model: models.ModelChoice,
    settings: UtilitySettings,
    wanted: bool,
    map: Map = map,
) -> Mapping[str, Any]:
    """Write `utility.parquet`, `distances.parquet`, `skipped.parquet` and `utility.json`; return what this run scored.

    Where `wanted` is false (the rows are chosen without utility) the tables are empty and the JSON says so.
    """
    source, vectors = examples / "examples.parquet", embedding / "embedding.parquet"
    inputs = digest_inputs(source, vectors)
    if not wanted:
        return _write_nothing(out, Provenance("utility", version, {"wanted": False}, inputs))
    known = digest(source)
    pool = read_pool(source, known, model, settings.template)
    pairs, skipped = split_by_length(pool, choose_pairs(pool, vectors, settings), model.max_tokens)

    folder = pairstore.place(store, models.model_digest(model), settings.template, CODE)
    work = Shard(source, known, folder, model, settings, np.empty((0, 2), np.int32))
    scores, facts = score_missing(work, ask(pool, pairs), map)

    _write(out, Provenance("utility", version, _describe(model, settings), inputs), scores, skipped, settings)
    return facts


def score_missing(work: Shard, asked: pa.Table, map: Map) -> tuple[pa.Table, Mapping[str, Any]]:
    """Score what the store lacks, in shards; return the scores of all that was asked and what this run did.

    Raises:
        ValueError: parts vanished from the store meanwhile.
    """
    lacking = pairstore.missing(work.folder, asked)
    shards = cut_shards(work, lacking)
    scored = sum(map(score_shard, shards))
    scores = pairstore.find(work.folder, asked)
    if scores.num_rows != asked.num_rows:
        lost = asked.num_rows - scores.num_rows
        raise ValueError(f"{lost} of {asked.num_rows} pairs vanished from {work.folder} during the run; run again")
    return scores, {"pairs_scored": scored, "pairs_known": asked.num_rows - lacking.num_rows, "shards": len(shards)}


def _describe(model: models.ModelChoice, settings: UtilitySettings) -> dict[str, Any]:
    """Return what determines the table; how the work was cut and run is no part of it."""
    described = {name: value for name, value in vars(settings).items() if name not in ("shard_pairs", "pack_tokens")}
    return described | {"model": model.name, "model_digest": models.model_digest(model)}


@lru_cache(maxsize=1)
def read_pool(source: Path, digest: str, model: models.ModelChoice, template: str) -> Pool:
    """Read the used examples of the pool and tokenise each once; `digest` keys the cache.

    Raises:
        ValueError: fewer than two examples: utility is about pairs.
    """
    table = read_table(source, schemas.EXAMPLES)
    rows = [row for row in table.filter(table["used"]).to_pylist() if row["split"] == "pool"]
    if len(rows) < 2:
        raise ValueError(f"{source}: the pool has {len(rows)} used example; utility needs at least 2, add examples")
    prompts = [join_instruction(row["instruction"], row["prompt"]) for row in rows]
    encoding = encode(models.tokenizer(model), template, prompts, [row["response"] for row in rows])
    return Pool([row["id"] for row in rows], encoding)


def choose_pairs(pool: Pool, vectors: Path, settings: UtilitySettings) -> np.ndarray:
    """Return the pairs that the kernel asks for, as (target, demo) places."""
    if settings.kernel == "exact":
        return pairs_of_all(len(pool.ids))
    if settings.kernel != "neighbours":
        raise ValueError(f"unknown kernel {settings.kernel!r}; known: {', '.join(KERNELS)}")
    table = read_table(vectors)
    place = {name: row for row, name in enumerate(table["id"].to_pylist())}
    flat = np.asarray(table["embedding"].combine_chunks().flatten()).reshape(table.num_rows, -1)
    return pairs_of_neighbours(nearest(flat[[place[name] for name in pool.ids]], settings.neighbours))


def split_by_length(pool: Pool, pairs: np.ndarray, max_tokens: int) -> tuple[np.ndarray, pa.Table]:
    """Return the pairs that fit in the context and a table of those that do not.

    Raises:
        ValueError: a target that does not fit even alone.
    """
    encoding = pool.encoding
    targets = [len(query) + len(answer) for query, answer in zip(encoding.queries, encoding.responses, strict=True)]
    long = [place for place, tokens in enumerate(targets) if len(encoding.base) + tokens > max_tokens]
    if long:
        raise ValueError(
            f"{len(long)} of {len(targets)} examples are longer than models.max_tokens = {max_tokens}, "
            f"first ids {[pool.ids[place] for place in long[:3]]}; raise it or take these rows out of the raw data"
        )
    whole = fits([len(prefix) for prefix in encoding.prefixes], targets, pairs, max_tokens)
    reason = f"demo and target together are longer than {max_tokens} tokens"
    rows = [[pool.ids[target], pool.ids[demo], reason] for target, demo in pairs[~whole]]
    return pairs[whole], pa.table(list(zip(*rows, strict=True)) or [[], [], []], schema=schemas.SKIPPED)


def ask(pool: Pool, pairs: np.ndarray) -> pa.Table:
    """Return what is to be scored, by id and by place: each target alone first (demo -1), then the pairs."""
    alone = np.column_stack([np.arange(len(pool.ids)), np.full(len(pool.ids), -1)])
    target, demo = (pa.array(column.astype(np.int32)) for column in np.concatenate([alone, pairs]).T)
    names = pa.array([*pool.ids, NOTHING])
    shown = pc.if_else(pc.less(demo, 0), len(pool.ids), demo)
    return pa.table({"target_id": names.take(target), "demo_id": names.take(shown), "target": target, "demo": demo})


def cut_shards(empty: Shard, lacking: pa.Table) -> list[Shard]:
    """Cut the missing pairs, those of a demo together, into shards of `settings.shard_pairs`."""
    pairs = np.column_stack([np.asarray(lacking["target"]), np.asarray(lacking["demo"])])
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    size = empty.settings.shard_pairs
    return [replace(empty, pairs=pairs[start : start + size]) for start in range(0, len(pairs), size)]


def score_shard(shard: Shard) -> int:
    """Score a shard's pairs, append them to the store as one part, and return their number.

    Raises:
        ValueError: a non-finite score, naming the pair.
    """
    pool = read_pool(shard.examples, shard.digest, shard.model, shard.settings.template)
    members: dict[int, list[int]] = {}
    pairs = shard.pairs.tolist()
    for target, demo in pairs:
        members.setdefault(demo, []).append(target)
    names = [(pool.ids[target], pool.ids[demo] if demo >= 0 else NOTHING) for target, demo in pairs]
    try:
        with model_lock:
            rows = score_responses(_model(shard.model), _groups(pool, members), shard.settings.pack_tokens)
    except NonFiniteError as error:
        demo = list(members)[error.group]
        target = pool.ids[members[demo][error.target]]
        shown = pool.ids[demo] if demo >= 0 else "nothing"
        raise ValueError(
            f"the score of target {target} with demo {shown} is not finite; "
            "set models.dtype: float32, or check the model's weights"
        ) from error
    answers = [measure(row) for group in rows for row in group]
    columns = [[target for target, _ in names], [demo for _, demo in names]]
    columns += [[getattr(answer, name) for answer in answers] for name in ("tokens", "distance", "log_likelihood")]
    pairstore.append(shard.folder, pa.table(columns, schema=schemas.PAIRS))
    return len(names)


def _groups(pool: Pool, members: Mapping[int, list[int]]) -> list[Group]:
    encoding = pool.encoding
    return [
        Group(
            encoding.prefixes[demo] if demo >= 0 else encoding.base,
            [encoding.queries[target] for target in targets],
            [encoding.responses[target] for target in targets],
        )
        for demo, targets in members.items()
    ]


@lru_cache(maxsize=1)
def _model(choice: models.ModelChoice) -> Any:
    model = models.language_model(choice)
    verify_packing(model)
    return model


def _write(out: Path, provenance: Provenance, scores: pa.Table, skipped: pa.Table, settings: UtilitySettings) -> None:
    measured = "distance" if settings.distance == "probability" else "log_likelihood"
    single = pc.less(scores["demo"], 0)
    alone, shown = scores.filter(single), scores.filter(pc.invert(single))
    before = np.asarray(alone[measured], dtype=np.float64)[np.asarray(shown["target"])]
    utility = gain(np.asarray(shown[measured], dtype=np.float64), before, settings.distance)
    table = pa.table([shown["target_id"], shown["demo_id"], pa.array(utility, pa.float32())], schema=schemas.UTILITY)
    columns = [alone[name] for name in ("target_id", "tokens", "distance", "log_likelihood")]
    distances = pa.table(columns, schema=schemas.DISTANCES)
    write_table(table, out / "utility.parquet", provenance)
    write_table(distances, out / "distances.parquet", provenance)
    write_table(skipped, out / "skipped.parquet", provenance)
    facts = {
        "wanted": True,
        "kernel": settings.kernel,
        "targets": alone.num_rows,
        "pairs_scored": shown.num_rows,
        "pairs_skipped": skipped.num_rows,
        "share_helped": float((utility > 0).mean()) if len(utility) else 0.0,
        "utility_median": float(np.median(utility)) if len(utility) else 0.0,
    }
    write_json(facts, out / "utility.json")


def _write_nothing(out: Path, provenance: Provenance) -> Mapping[str, Any]:
    for name, schema in (
        ("utility", schemas.UTILITY),
        ("distances", schemas.DISTANCES),
        ("skipped", schemas.SKIPPED),
    ):
        write_table(schema.empty_table(), out / f"{name}.parquet", provenance)
    why = "the rows are chosen without utility (selection.rows_by)"
    write_json({"wanted": False, "why": why, "pairs_scored": 0, "pairs_skipped": 0}, out / "utility.json")
    return {"pairs_scored": 0, "pairs_known": 0, "shards": 0}
