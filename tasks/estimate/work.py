"""What a stage will compute, counted before it runs: rows, pairs, tokens; no model is loaded.

Each count is made with the code that the stage itself plans its work by, on lengths in place of tokens, as if nothing
were known yet; `tasks.estimate.stored` then takes off what the stores hold. Exact where all rows are tokenised
(`rows.SAMPLE`) and no pair depends on figures that are still unknown: which demos are a target's nearest plays no part
in how many pairs there are, so vectors at random stand in for those that are not there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np

from tamis.examples.conversations import join_texts, split_key, transcribe
from tamis.examples.splits import GENERAL, HELD_OUT
from tamis.language.encoding import Encoding, TokenSequence, make_sequence
from tamis.language.packing import Group, group_rows, plan_packs
from tamis.training.arms import REPLAYS, pick_epochs, pick_rows
from tamis.training.pilot import ARMS as PILOT_ARMS
from tamis.training.steps import plan_epochs
from tasks import models
from tasks.conversations import read_conversation
from tasks.estimate.rows import SAMPLE, Corpus, is_learnt, make_budget
from tasks.selection.selectors import SELECTORS, leave_unread, reads_vectors
from tasks.utility.settings import name_kernel


@dataclass(frozen=True)
class Work:
    """What a stage computes; what is 0 costs nothing."""

    rows: int = 0  # that it reads, scores, trains on or asks
    pairs: int = 0  # (target, demo)
    texts: int = 0  # encoded
    arms: int = 0  # trained
    encoded: int = 0  # tokens through the text encoder, padding included
    forward: int = 0  # tokens forward through the language model
    backward: int = 0  # tokens forward and backward
    generated: int = 0  # tokens
    loads: int = 0  # of the language model's weights
    at_most: bool = False  # some of it may be known, or end early


@dataclass(frozen=True)
class Case:
    """A data version and all that its stages' work depends on."""

    version: str
    values: Any  # params.yaml as `flows.params` reads it
    corpus: Corpus
    before: Corpus | None  # of the version that it continues from; None: the base
    model: models.ModelChoice
    encoder: models.ModelChoice
    cache: Path  # the root of the stores
    vectors: Path | None  # the embedding artifact, where it is of the current inputs

    @property
    def kernel(self) -> str:
        """Return which pairs stage `utility` scores."""
        return name_kernel(self.values.selection.selector, self.values.utility)

    @property
    def utility(self) -> Any:
        """Return how stage `utility` scores pairs."""
        chosen = self.values.selection
        return leave_unread(self.values.utility, chosen.selector, chosen.gate, chosen.quality)


def add(one: Work, other: Work) -> Work:
    """Return the work of both."""
    counts = {field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(Work)[:-1]}
    return Work(**counts, at_most=one.at_most or other.at_most)


def scale(work: Work, share: float) -> Work:
    """Return a share of some work, in [0, 1]; weights are loaded whole, where anything is left."""
    counts = {field.name: round(share * getattr(work, field.name)) for field in fields(Work)[:-1]}
    return Work(**counts | {"loads": work.loads if share else 0}, at_most=work.at_most)


def count_examples(case: Case) -> Work:
    """Count the raw rows."""
    return Work(rows=len(case.corpus.rows))


def count_embedding(case: Case) -> Work:
    """Count the texts that stage `embedding` encodes; none where nothing reads vectors, and no gate needs them."""
    chosen, texts = case.values.selection, []
    if reads_vectors(chosen.selector, chosen.gate, chosen.quality, case.kernel):
        rows = [row for row in case.corpus.rows if row["used"] or (row["split"] == "pool" and is_learnt(row))]
        texts += [join_texts(read_conversation(row)) for row in rows]
    if is_gated_by(case, "agreement"):
        pool = [case.corpus.rows[place] for place in case.corpus.places("pool")]
        texts += [text for row in pool for text in transcribe(read_conversation(row))]
    return Work(texts=len(texts), encoded=count_encoded(texts, case))


def is_gated_by(case: Case, by: str) -> bool:
    """Return whether rows leave the pool by a score before they are chosen."""
    gate = case.values.selection.gate
    return gate is not None and gate["by"] == by


def count_encoded(texts: Sequence[str], case: Case) -> int:
    """Return the tokens of texts in the batches in which they are encoded, padding included; from a sample of them."""
    order = sorted(texts, key=len)
    some = order[:: max(1, -(-len(order) // SAMPLE))]
    if not some:
        return 0
    known = models.tokenizer(case.encoder)(some, truncation=True, max_length=case.encoder.max_tokens).input_ids
    lengths = np.repeat([len(ids) for ids in known], max(1, -(-len(order) // SAMPLE)))[: len(order)]
    size = case.values.runtime.embedding_rows
    return sum(int(part.max()) * len(part) for part in np.split(lengths, range(size, len(lengths), size)))


def count_scores(case: Case) -> Work:
    """Count the rows that stage `scores` asks the model about, and the tokens that selector and gate ask with."""
    selector = case.values.selection.selector
    asked = {selector} if SELECTORS[selector].reads == "scores" else set()
    asked |= {"ifd"} if is_gated_by(case, "ifd") else set()
    return reduce(add, (_count_scored(case, one) for one in sorted(asked)), Work())


def _count_scored(case: Case, selector: str) -> Work:
    pool, target = case.corpus.places("pool"), case.corpus.places("target")
    if selector == "less":
        from tasks.scores.less_warmup import draw_rows

        drawn, epochs = len(draw_rows(len(pool), case.values.scores)), case.values.scores.less.epochs
        each = case.corpus.whole(pool) / max(1, len(pool))
        tokens = epochs * (drawn * each + case.corpus.whole(pool) + case.corpus.whole(target))
        return Work(rows=len(pool) + len(target), backward=round(tokens), loads=1)
    some = pool[:SAMPLE] if len(pool) > SAMPLE else pool
    tokens = sum(
        count_packed(group_rows(asked), case.values.runtime.pack_tokens) for asked in _ask(case, some, selector)
    )
    found = Work(rows=len(pool), forward=round(tokens * len(pool) / max(1, len(some))), loads=1)
    return _add_references(found, case, selector)


def _add_references(work: Work, case: Case, selector: str) -> Work:
    """Return the work with what a selector does with the reference rows, and with a second pass after a tuning."""
    reference, epochs = case.corpus.references(), case.values.scores.tov.epochs
    tokens = case.corpus.whole(reference)
    if selector == "tov":
        return replace(work, forward=2 * work.forward, backward=epochs * tokens, loads=2)
    if selector == "rds":
        return replace(work, rows=work.rows + len(reference), forward=work.forward + tokens)
    return work


def _ask(case: Case, places: Sequence[int], selector: str) -> Iterable[Encoding]:
    from tasks.scores.scores import METHODS
    from tasks.scores.work import Row, Shard

    size = case.values.runtime.shard_rows

    def read(some: Sequence[int]) -> list[Row]:
        ours = [case.corpus.rows[place] for place in some]
        return [Row(row["id"], read_conversation(row), row["topic"], row["split"]) for row in ours]

    demos = read(case.corpus.references()[: case.values.scores.ica.demos])
    for start in range(0, len(places), size):
        rows = read(places[start : start + size])
        yield METHODS[selector].ask(
            Shard(selector, Path(), case.model, case.values.scores, case.values.runtime, rows, demos)
        )


def count_gradients(case: Case) -> Work:
    """Count the rows that stage `gradients` passes through, and the tokens, over all groups of parameters."""
    settings, corpus = case.values.gradients, case.corpus
    by_rows = case.values.selection.selector.startswith("dualsft")
    kinds = {case.values.mask.selector, "dualsft" if by_rows else ""} & {"dualsft", "fisher"}
    if not kinds:
        return Work()
    sets, passes = draw_sets(case), 2 if by_rows and settings.order == "second" else 1
    groups = count_groups(case)
    found = Work()
    if "dualsft" in kinds:
        learnt = sets["warmup"]
        steps = -(-len(learnt) // settings.batch_rows)
        epochs = -(-settings.warmup_steps // steps)
        warm = epochs * (corpus.whole(learnt) - (len(learnt) - steps) * corpus.head)
        each = sum(corpus.whole(sets[name]) for name in ("validation", "anchors"))
        tokens = warm + groups * (each + passes * corpus.whole(sets["pool"]))
        rows = groups * passes * len(sets["pool"])
        forward = groups * corpus.whole(sets["anchors"])
        found = Work(rows=rows, forward=forward, backward=round(tokens), loads=4)
    if "fisher" in kinds:
        tokens = groups * corpus.whole(sets["fisher"])
        found = add(found, Work(rows=groups * len(sets["fisher"]), backward=round(tokens), loads=1))
    return found


def draw_sets(case: Case) -> dict[str, list[int]]:
    """Return the places of the rows that stage `gradients` draws, by the name of their set."""
    from tasks.gradients.warmup import assign, draw

    rows, settings = case.corpus.rows, case.values.gradients
    used = [place for place, row in enumerate(rows) if row["used"] and row["split"] in ("pool", "target", "validation")]
    used.sort(key=lambda place: rows[place]["row"])
    ours = [rows[place] for place in used]
    sides = assign(ours, [split_key(read_conversation(row)) for row in ours])
    found = {name: [place for place, side in enumerate(sides) if side == name] for name in ("pool", "validation")}
    found |= {name: draw(ours, found["pool"], name, settings) for name in ("warmup", "anchors", "fisher")}
    return {name: [used[place] for place in places] for name, places in found.items()}


def count_groups(case: Case) -> int:
    """Return how many groups of parameters gradients are summed by."""
    largest = case.values.runtime.block_parameters
    if largest is None:
        return 1
    from tamis.gradients.per_example import group_parameters

    return len(group_parameters(models.skeleton(case.model), largest))


def count_rows(case: Case) -> Work:
    """Count the used rows, which a stage reads that asks no model."""
    return Work(rows=sum(row["used"] for row in case.corpus.rows))


@dataclass(frozen=True)
class PlannedArm:
    """An arm that is trained."""

    name: str
    seed: int
    epochs: list[np.ndarray]  # rows that each epoch takes, replayed ones among them: places in the corpus

    @property
    def rows(self) -> np.ndarray:
        """Return all rows that it sees."""
        return np.unique(np.concatenate(self.epochs))


def count_selection(case: Case) -> Work:
    """Count the used rows and, of a pilot, the tokens of brief trainings and of the rows that they are measured on."""
    asked, corpus, found = case.values.selection.pilot, case.corpus, count_rows(case)
    if asked is None:
        return found
    pool, trainings = corpus.places("pool"), len(PILOT_ARMS) * asked["seeds"]
    rows = min(asked["steps"] * case.values.finetuning.batch_rows, asked["steps"] * len(corpus.chosen))
    each = rows * corpus.whole(pool) / max(1, len(pool))
    measured = trainings * corpus.whole(corpus.references())
    return replace(found, forward=measured, backward=round(trainings * each), loads=trainings)


def plan_arms(case: Case) -> list[PlannedArm]:
    """Return every arm that is trained."""
    corpus, settings = case.corpus, case.values.finetuning
    ground = corpus.places("pool")
    used = set(ground.tolist())
    known = [place for place, row in enumerate(corpus.rows) if row["split"] == "pool" and row["duplicate_of"] is None]
    again = {place for place in known if corpus.rows[place]["earlier"] in REPLAYS[settings.replay]}
    rows = np.array([*ground, *(place for place in sorted(again) if place not in used)], int)
    replayed = np.flatnonzero([place in again for place in rows])
    chosen = np.array([corpus.rows[place]["id"] in corpus.chosen for place in ground])
    budget = make_budget(corpus.rows, ground, corpus.answers, case.values.selection)
    anew = {"fresh", *(["chosen"] if case.values.selection.selector == "fresh" else [])}
    arms = []
    for name, seed in ((name, seed) for name, seeds in settings.arms.items() for seed in seeds):
        asked = {"budget": budget, "replayed": replayed, "seed": seed}
        first = pick_rows(name, chosen, groups=corpus.groups(), **asked)
        taken = pick_epochs(first, chosen, epochs=settings.epochs, **asked) if name in anew else []
        taken = taken or [first] * settings.epochs
        arms.append(PlannedArm(name, seed, [rows[np.union1d(each, replayed)] for each in taken]))
    return arms


def count_finetuning(case: Case) -> Work:
    """Count the rows, over all epochs, and tokens that every arm is trained on; new cuts of a mask are among them."""
    settings, corpus, found = case.values.finetuning, case.corpus, Work()
    for arm in plan_arms(case):
        steps = len(plan_epochs(arm.epochs, settings.batch_rows, arm.seed))
        every = np.concatenate(arm.epochs)
        tokens = corpus.whole(every) - len(every) * corpus.head + steps * corpus.head
        cuts = count_cuts(case, steps)
        if cuts:
            sets = draw_sets(case)
            each = [*arm.rows.tolist(), *sets["validation"], *sets["anchors"]]
            tokens += cuts * count_groups(case) * corpus.whole(each)
        loads = 1 if settings.method != "masked" else 2
        found = add(found, Work(rows=len(every), arms=1, backward=tokens, loads=loads))
    return found


def count_cuts(case: Case, steps: int) -> int:
    """Return how often an arm's mask is cut anew in so many optimiser steps."""
    every = case.values.mask.update_steps
    return 0 if every is None or case.values.finetuning.method != "masked" else (steps - 1) // every


def count_evaluation(case: Case) -> Work:
    """Count what every run is asked and may say: rows, tokens scored, tokens generated at most, texts compared."""
    settings, arms = case.values.evaluation, plan_arms(case)
    own = case.corpus.places(HELD_OUT)
    others = [(case.corpus, case.corpus.places(GENERAL))]
    if case.before:
        ids = {case.corpus.rows[place]["id"] for place in own}
        places = case.before.places(HELD_OUT)
        others.append((case.before, np.array([p for p in places if case.before.rows[p]["id"] not in ids], int)))
    sides = [(case.corpus, own), *others]
    asked = [(int(c.contexts[place]), int(c.answers[place])) for c, places in sides for place in places]
    said = asked[: len(own)][: settings.generated_rows]  # which are drawn plays no part
    judged = said if settings.task_metric == "none" else said + asked[len(own) :]
    runs = 1 + len(arms) + (case.before is not None)
    found = scale_runs(_answer(asked, judged, case.corpus.head, settings.new_tokens), runs)
    compared = list_shown(arms) if settings.demos else []
    for demos in (count_shown(case, rows) for _, rows in compared):
        prompts, shown = ([(query + demos, response) for query, response in rows] for rows in (asked[: len(own)], said))
        found = add(found, _answer(prompts, shown, 0, settings.new_tokens))
    texts = len(judged) * (1 + runs) + len(said) * len(compared)
    encoded = sum(response for _, response in judged) + found.generated
    if compared:
        shown = np.unique(np.concatenate([rows for _, rows in compared]))
        texts += len(own) + len(shown)
        encoded += int(case.corpus.contexts[own].sum() + case.corpus.contexts[shown].sum())
    return add(found, Work(texts=texts, encoded=encoded, loads=1))


def list_shown(arms: Sequence[PlannedArm]) -> list[tuple[str, np.ndarray]]:
    """Return the arms whose rows the in-context learner is shown, once for the same rows, and these rows."""
    lowest = min((arm.seed for arm in arms if arm.name == "random"), default=None)
    shown = [arm for arm in arms if arm.name == "chosen" or (arm.name, arm.seed) == ("random", lowest)]
    return list({(arm.name, tuple(arm.rows.tolist())): (arm.name, arm.rows) for arm in shown}.values())


def count_shown(case: Case, rows: np.ndarray) -> int:
    """Return the tokens of demonstrations drawn from some rows before a query, on average."""
    each = case.corpus.prefixes[rows].mean() - case.corpus.head
    return round(case.corpus.head + case.values.evaluation.demos * each)


def _answer(asked: Sequence[tuple[int, int]], said: Sequence[tuple[int, int]], base: int, new_tokens: int) -> Work:
    """Return the work of one run: lengths of queries and reference answers, after a prefix of so many tokens.

    Args:
        asked: of the rows whose loss is measured.
        said: of those that are answered in generated text.
        base: tokens of the prefix.
        new_tokens: generated per row, at most.
    """
    from tamis.evaluation.bootstrap import plan_batches
    from tasks.evaluation.answers import ANSWER_TOKENS
    from tasks.evaluation.networks import PACK_TOKENS

    queries, responses = ([lengths[side] for lengths in asked] for side in (0, 1))
    scored = count_packed([blank_group(base, queries, responses)], PACK_TOKENS)
    batches = plan_batches([base + query for query, _ in said], new_tokens, ANSWER_TOKENS)
    padded = sum(base + len(batch) * max(said[place][0] for place in batch) for batch in batches)
    return Work(rows=len(asked), forward=scored + padded, generated=len(said) * new_tokens, at_most=True)


def scale_runs(work: Work, runs: int) -> Work:
    """Return the work of several runs that are asked the same."""
    return Work(
        rows=runs * work.rows, forward=runs * work.forward, generated=runs * work.generated, at_most=work.at_most
    )


def count_packed(groups: Sequence[Group], pack_tokens: int) -> int:
    """Return the tokens of the packs that groups are run in, a prefix once per pack that needs it."""
    return sum(len(pack.tokens) for pack in plan_packs(groups, pack_tokens))


def blank_group(prefix: int, queries: Sequence[int], responses: Sequence[int]) -> Group:
    """Return a group of these lengths."""
    return Group([0] * prefix, [[_blank(*lengths)] for lengths in zip(queries, responses, strict=True)])


@lru_cache(maxsize=4096)
def _blank(context: int, answer: int) -> TokenSequence:
    return make_sequence([0] * context, [0] * answer)


def count_stage(name: str, case: Case) -> Work:
    """Return the work of a stage, as if nothing of it were known."""
    from tasks.estimate.pairs import count_utility

    counts: Mapping[str, Callable[[Case], Work]] = {
        "examples": count_examples,
        "embedding": count_embedding,
        "utility": count_utility,
        "scores": count_scores,
        "gradients": count_gradients,
        "selection": count_selection,
        "finetuning": count_finetuning,
        "evaluation": count_evaluation,
        "audit": count_rows,
    }
    return counts[name](case)
