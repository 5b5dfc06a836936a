"""The pairs that stage `utility` will score, and their tokens.

Up to `LARGE` rows of the ground set the pairs are planned as the stage does and laid in packs; of a larger one their
number follows from the sizes of the sets, and tokens per pair from `LARGE` of its rows.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np

from tamis.utility import pairs as planning
from tamis.utility.pairs import (
    pair_all,
    pairs_of_all,
    pairs_of_landmarks,
    pairs_of_neighbours,
    pairs_of_quality,
    unite,
)
from tamis.utility.probes import pairs_of_probes
from tasks.artifacts.tables import read_table, stack
from tasks.estimate.rows import Corpus
from tasks.estimate.work import Case, Work, blank_group, count_packed
from tasks.selection.selectors import list_read, read_only

LARGE = 250  # rows of a ground set whose pairs are planned one by one

Sets = Mapping[str, np.ndarray]  # ground, task, learnt: places in the corpus


def count_utility(case: Case) -> Work:
    """Count the pairs, the targets that are scored alone (`rows`), and the tokens of the packs that they are run in."""
    chosen = case.values.selection
    if "utility" not in list_read(chosen.selector, chosen.gate, chosen.quality):
        return Work()
    sets = read_sets(case.corpus)
    some = {name: places[:LARGE] for name, places in sets.items()}
    found = count_tokens(case, plan_pairs(case, some))
    if len(sets["ground"]) <= LARGE and len(sets["learnt"]) <= LARGE and len(sets["task"]) <= LARGE:
        return found
    sizes = {name: len(places) for name, places in sets.items()}
    quality = read_only(chosen.selector, chosen.gate, chosen.quality)
    whole = count_pairs(sizes, case.utility, case.kernel, quality=quality)
    answered = len(np.union1d(sets["ground"], sets["task"]))
    helped = sizes["task"] if sizes["task"] and quality != "neighbours" else sizes["ground"]
    targets = min(helped, case.utility.help_targets) if case.kernel == "none" else answered
    targets = helped if quality is not None and case.kernel != "none" else targets
    each = found.forward / max(1, found.pairs + found.rows)
    return replace(found, pairs=whole, rows=targets, forward=round(each * (whole + targets)))


def read_sets(corpus: Corpus) -> Sets:
    """Return the sets that pairs are made of."""
    return {"ground": corpus.texts(), "task": corpus.places("target"), "learnt": corpus.learnt()}


def plan_pairs(case: Case, sets: Sets) -> list[np.ndarray]:
    """Return the pairs that are scored at once, a batch after the other; each target alone (demo -1) in the first.

    They are places in the corpus, only those that fit in the context, and each once.
    """
    from tasks.utility.asking import draw_check, draw_help

    settings, corpus = case.utility, case.corpus
    lengths = corpus.contexts + scored_tokens(case)
    chosen = case.values.selection
    quality = read_only(chosen.selector, chosen.gate, chosen.quality)
    *tried, kernel = _of_kernel(case, sets, quality)
    kernel = kernel if quality is None else pairs_of_quality(kernel, sets, quality)
    checked, helped = draw_check(sets["ground"], settings, case.kernel), draw_help(sets, kernel, settings, case.kernel)
    check = np.concatenate([checked, helped])
    few = case.kernel == "none" or quality is not None
    targets = np.unique(np.concatenate([kernel, check])[:, 0]) if few else np.union1d(sets["ground"], sets["task"])
    batches, known = [], np.empty(0, np.int64)
    alone = np.column_stack([targets, np.full(len(targets), -1)])
    for batch in (*tried, unite([kernel, check])):
        shown = batch[corpus.prefixes[batch[:, 1]] + lengths[batch[:, 0]] <= case.model.max_tokens]
        names = shown @ [len(corpus.rows), 1]
        batches.append(np.concatenate([alone, shown[~np.isin(names, known)]]))
        known, alone = np.union1d(known, names), alone[:0]
    return batches


def scored_tokens(case: Case) -> np.ndarray:
    """Return how many answer tokens of each row of the corpus are scored."""
    return np.minimum(case.corpus.answers, case.utility.answer_tokens or sys.maxsize)


def _of_kernel(case: Case, sets: Sets, quality: str | None) -> list[np.ndarray]:
    """Return the pairs of the kernel, last, after those that are tried to find them, a round after the other."""
    settings = case.utility
    if case.kernel == "exact":
        return [pairs_of_all(sets)]
    if case.kernel == "none":
        return [np.empty((0, 2), np.int64)]
    vectors = read_vectors(case)
    if case.kernel == "neighbours":
        return [pairs_of_neighbours(sets, vectors, settings.neighbours, quality)[0]]
    if case.kernel == "probes":
        ground, how = sets["ground"], asdict(settings.probes) | {"seed": settings.seed}
        return [pairs_of_probes(ground, vectors[ground], np.zeros(len(ground)), **how)[0]]
    return _of_landmarks(settings, sets, vectors)


def _of_landmarks(settings: Any, sets: Sets, vectors: np.ndarray) -> list[np.ndarray]:
    """Return what the search for landmarks tries and what it finds; which demos win it is not known before."""
    ground = sets["ground"]
    count = len(ground) if settings.landmark_targets is None else min(settings.landmark_targets, len(ground))
    targets = np.random.default_rng(settings.seed).permutation(ground)[:count]
    rounds = planning.plan_rounds(len(ground), settings.landmarks, count)
    demos, found = ground[planning.representatives(vectors[ground], rounds[0][0])], []
    for (_, answered), (fewer, _) in pairwise(rounds):
        found.append(pair_all(targets[:answered], demos))
        demos = demos[:fewer]
    others = {name: sets[name] for name in ("task", "learnt")}
    shown = {name: some[planning.representatives(vectors[some], settings.landmarks)] for name, some in others.items()}
    return [*found, pairs_of_landmarks(shown | {"ground": demos}, others | {"ground": targets})]


def read_vectors(case: Case) -> np.ndarray:
    """Return a unit vector per row of the corpus: its embedding, where that is known, else one at random."""
    rows = case.corpus.rows
    vectors = np.random.default_rng(0).standard_normal((len(rows), 16)).astype(np.float32)
    if case.vectors is not None:
        table = read_table(case.vectors)
        known = stack(table["embedding"])
        place = {row["id"]: number for number, row in reversed(list(enumerate(rows)))}
        vectors = np.zeros((len(rows), known.shape[1]), np.float32)
        vectors[[place[name] for name in table["id"].to_pylist()]] = known
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def count_pairs(sizes: Mapping[str, int], settings: Any, kernel: str, *, quality: str | None = None) -> int:
    """Return how many pairs large sets have, none of whose rows stands in two of them; an upper bound else, and where
    pairs that tell a demo's help are among those of the kernel.

    Args:
        sizes: rows of ground, task and learnt.
        settings: of stage `utility`.
        kernel: which pairs are scored.
        quality: where it is all that is read of the pairs; then no row is checked.
    """
    ground, task, learnt = (sizes[name] for name in ("ground", "task", "learnt"))
    helped = min(settings.help_targets, task or ground)
    if quality is not None and kernel in ("exact", "neighbours"):
        own = quality == "neighbours" or not task
        others = ground - 1 if own else task
        near = others if kernel == "exact" else min(settings.neighbours, others)
        return ground * near + helped * (ground + task + learnt - 1)
    if kernel == "exact":
        return ground * (ground + 2 * task + learnt)
    if kernel == "none":
        return helped * (ground + task + learnt - 1)
    if kernel == "probes":
        probed = ground * min(settings.probes.probes, settings.probes.nearest, ground - 1)
        return probed + helped * (ground + task + learnt - 1)
    near, checked = settings.neighbours, min(settings.check_targets, ground)
    if kernel == "neighbours":
        own = min(near, ground - 1) + 1
        others = ground * (min(near, learnt) + min(near, task)) + task * min(near, ground)
        return ground * own + others + checked * (ground - own) + helped * (ground + task + learnt - 1)
    answered = ground if settings.landmark_targets is None else min(settings.landmark_targets, ground)
    rounds, tried, before = planning.plan_rounds(ground, settings.landmarks, answered), 0, 0
    for demos, targets in rounds:
        tried, before = tried + demos * (targets - before), targets
    few = rounds[-1][0]
    blocks = answered * (min(few, learnt) + min(few, task)) + task * few
    helped *= few + min(few, task) + min(few, learnt)
    return tried + blocks + checked * max(0, ground - few) + (0 if answered == ground else few) + helped


def count_tokens(case: Case, batches: Sequence[np.ndarray]) -> Work:
    """Return the work of scoring batches of pairs, in the shards and packs that the stage would make of them."""
    runtime, tokens = case.values.runtime, 0
    for batch in batches:
        order = batch[np.lexsort((batch[:, 0], batch[:, 1]))]
        for start in range(0, len(order), runtime.shard_pairs):
            tokens += _count_shard(case, order[start : start + runtime.shard_pairs], runtime.pack_tokens)
    pairs = np.concatenate(batches)
    alone = int((pairs[:, 1] < 0).sum())
    return Work(rows=alone, pairs=len(pairs) - alone, forward=tokens, loads=1 if len(pairs) else 0)


def _count_shard(case: Case, pairs: np.ndarray, pack_tokens: int) -> int:
    members: dict[int, list[int]] = {}
    for target, demo in pairs.tolist():
        members.setdefault(demo, []).append(target)
    groups = [_make_group(case, demo, targets) for demo, targets in members.items()]
    return count_packed(groups, pack_tokens)


def _make_group(case: Case, demo: int, targets: Sequence[int]) -> Any:
    corpus = case.corpus
    prefix = int(corpus.prefixes[demo]) if demo >= 0 else corpus.head
    return blank_group(prefix, corpus.contexts[targets].tolist(), scored_tokens(case)[targets].tolist())


def count_lacking(case: Case) -> Work | None:
    """Return the work that the store of pairs lacks; None where that is not cheap to know.

    It is known where the pairs are: all of them, or each target's nearest by vectors that are there.
    """
    from tasks.artifacts import stores
    from tasks.utility.utility import store_folder

    sets, settings = read_sets(case.corpus), case.utility
    known = case.kernel in ("exact", "none") or (case.kernel == "neighbours" and case.vectors is not None)
    if not known or any(len(places) > LARGE for places in sets.values()):
        return None
    folder = store_folder(case.cache / "pairs", case.model, settings)
    (pairs,) = plan_pairs(case, sets)
    ids = [row["id"] for row in case.corpus.rows]
    asked = name_pairs(ids, pairs)
    lacking = stores.missing(folder, asked)
    left = np.column_stack([np.asarray(lacking[name]) for name in ("target", "demo")]).astype(int)
    return count_tokens(case, [left])


def name_pairs(ids: Sequence[str], pairs: np.ndarray) -> Any:
    """Return pairs as a table, by id and by place."""
    import pyarrow as pa

    named = [*ids, ""]  # nothing is shown: place -1
    columns = {"target_id": [named[place] for place in pairs[:, 0]], "demo_id": [named[place] for place in pairs[:, 1]]}
    return pa.table(columns | {"target": pairs[:, 0], "demo": pairs[:, 1]})
