"""Room `utility`: scores each wanted (target, demo) pair once, in shards that survive a crash."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tamis.embedding import nearest
from tamis.language_model import Group, NonFiniteError, score_responses, verify_packing
from tamis.templates import Encoding, encode, join_instruction
from tamis.utility import KERNELS, fits, gain, measure, pairs_of_all, pairs_of_neighbours
from tasks import models, pairstore, schemas
from tasks.artifacts import Provenance, digest, digest_inputs, read_table, write_json, write_table

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
    pairs: tuple[tuple[int, int], ...]  # (target, demo) places among the pool's examples; demo -1: nothing shown


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
    pool = read_pool(source, digest(source), model, settings.template)
    pairs, skipped = split_by_length(pool, choose_pairs(pool, vectors, settings), model.max_tokens)
    folder = pairstore.place(store, models.model_digest(model), settings.template)
    asked = _asked(pool, pairs)
    lacking = pairstore.missing(asked, pairstore.find(folder, asked))

    shards = cut_shards(Shard(source, digest(source), folder, model, settings, ()), pool, lacking)
    scored = sum(map(score_shard, shards))

    parameters = {**vars(settings), "model": model.name, "model_digest": models.model_digest(model)}
    provenance = Provenance("utility", version, parameters, inputs)
    _write(out, provenance, pairstore.find(folder, asked), skipped, settings)
    return {"pairs_scored": scored, "pairs_known": asked.num_rows - lacking.num_rows, "shards": len(shards)}


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
            f"first ids {[pool.ids[place] for place in long[:3]]}; raise it or set examples.on_bad_row: reject"
        )
    whole = fits([len(prefix) for prefix in encoding.prefixes], targets, pairs, max_tokens)
    reason = f"demo and target together are longer than {max_tokens} tokens"
    rows = [[pool.ids[target], pool.ids[demo], reason] for target, demo in pairs[~whole]]
    return pairs[whole], pa.table(list(zip(*rows, strict=True)) or [[], [], []], schema=schemas.SKIPPED)


def cut_shards(empty: Shard, pool: Pool, lacking: pa.Table) -> list[Shard]:
    """Cut the missing pairs, those of a demo together, into shards of `settings.shard_pairs`."""
    place = {name: row for row, name in enumerate(pool.ids)} | {NOTHING: -1}
    targets, demos = lacking["target_id"].to_pylist(), lacking["demo_id"].to_pylist()
    pairs = sorted(((place[target], place[demo]) for target, demo in zip(targets, demos, strict=True)), key=_by_demo)
    size = empty.settings.shard_pairs
    return [
        Shard(**{**vars(empty), "pairs": tuple(pairs[start : start + size])}) for start in range(0, len(pairs), size)
    ]


def score_shard(shard: Shard) -> int:
    """Score a shard's pairs, append them to the store as one part, and return their number.

    Raises:
        ValueError: a non-finite score, naming the pair.
    """
    pool = read_pool(shard.examples, shard.digest, shard.model, shard.settings.template)
    members: dict[int, list[int]] = {}
    for target, demo in shard.pairs:
        members.setdefault(demo, []).append(target)
    names = [(pool.ids[target], pool.ids[demo] if demo >= 0 else NOTHING) for target, demo in shard.pairs]
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


def _by_demo(pair: tuple[int, int]) -> tuple[int, int]:
    return pair[1], pair[0]


def _asked(pool: Pool, pairs: np.ndarray) -> pa.Table:
    """Return the wanted pairs as ids: each target alone first, then the pairs."""
    ids = pa.array(pool.ids)
    alone = pa.array([NOTHING] * len(pool.ids))
    target, demo = ids.take(pa.array(pairs[:, 0])), ids.take(pa.array(pairs[:, 1]))
    return pa.table({"target_id": pa.concat_arrays([ids, target]), "demo_id": pa.concat_arrays([alone, demo])})


def _write(out: Path, provenance: Provenance, scores: pa.Table, skipped: pa.Table, settings: UtilitySettings) -> None:
    measured = "distance" if settings.distance == "probability" else "log_likelihood"
    single = np.asarray(scores["demo_id"]) == NOTHING
    alone, shown = scores.filter(pa.array(single)), scores.filter(pa.array(~single))
    without = dict(zip(alone["target_id"].to_pylist(), alone[measured].to_pylist(), strict=True))
    before = np.array([without[name] for name in shown["target_id"].to_pylist()], dtype=np.float64)
    utility = gain(np.asarray(shown[measured], dtype=np.float64), before, settings.distance)
    table = pa.table([shown["target_id"], shown["demo_id"], pa.array(utility, pa.float32())], schema=schemas.UTILITY)
    distances = alone.rename_columns({"target_id": "id"}).drop_columns(["demo_id"]).cast(schemas.DISTANCES)
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
