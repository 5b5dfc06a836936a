"""Stage `evaluation`: the base model and every arm on the held-out rows, one model in memory at a time.

Per run and held-out row: the loss of the reference answer and, for rows that are answered in generated text, a greedy
answer, its ROUGE-L and its similarity to the reference and, where a task metric is asked for, whether it is right.
Trained models answer this version's rows, as does the in-context learner: the base model with an arm's nearest rows
before the question, for arm chosen and, to compare, one seed of arm random. Of the version before and of general rows
trained models and the one that training started from have the loss; answers only where a task metric judges them.
Losses, answers and embeddings of texts are kept in stores (tasks/evaluation/answers.py, texts.py): a run that asks for
nothing new loads no model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rouge_score.rouge_scorer import RougeScorer

from tamis.evaluation import bootstrap as evaluation_bootstrap
from tamis.examples.conversations import transcribe
from tamis.examples.splits import GENERAL, sample
from tamis.language.embedding import nearest_among
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.conversations import read_conversation
from tasks.evaluation.answers import Answers, answer_all, open_stores
from tasks.evaluation.inputs import (
    SHOWN,
    TRAINED,
    HeldOut,
    Run,
    read_faults,
    read_held_out,
    read_rows,
    read_runs,
    show_demos,
)
from tasks.evaluation.settings import EvaluationSettings
from tasks.evaluation.task_metrics import Expected, judge, read_expected
from tasks.evaluation.texts import embed_texts
from tasks.folders import Folders
from tasks.tokens import open_template

MEASURES = evaluation_bootstrap.MEASURES
COLUMNS = (*MEASURES, evaluation_bootstrap.CORRECT)
DID = ("losses_computed", "losses_known", "answers_generated", "answers_known", "loss_seconds", "answer_seconds")


@dataclass(frozen=True)
class Conditions:
    """What every run is evaluated under."""

    model: models.ModelChoice  # the base
    embedding_model: models.ModelChoice
    settings: EvaluationSettings
    store: Path  # root of all stores


def write_evaluation(
    folders: Folders,
    *,
    model: models.ModelChoice,
    embedding_model: models.ModelChoice,
    settings: EvaluationSettings,
) -> Mapping[str, float]:
    """Evaluate the base model and every arm, and write `evaluation.parquet` and `metrics.json`; say what this run did.

    Args:
        folders: examples and arms of this version, and those of the version before, which may hold nothing; of the
            stores `losses`, `answers` and `texts` are used.
        model: the base model.
        embedding_model: encodes answers, to compare them, and prompts, to find the nearest.
        settings: lengths, demonstrations and intervals.

    Raises:
        ArtifactError: an input or an arm's folder is missing, or does not belong to the others.
        EvaluationError: no held-out rows; some that the task metric cannot judge; a loss that is not finite.
        SandboxError: the system refuses to run code apart, which `pass_at_1` needs.
        ValueError: a row that is too long.
    """
    here, before, store = folders.here, folders.before, folders.cache
    examples, arms, out, version = here.examples, here.finetuning, here.evaluation, here.version
    previous, previous_examples, previous_arms = before.version, before.examples, before.finetuning
    conditions = Conditions(model, embedding_model, settings, store)
    held_out = read_held_out({version: examples, previous: previous_examples}, model)
    expected = read_expected(held_out, settings.task_metric)
    runs = read_runs(arms, previous_arms)
    runs += show_rows(runs, examples, held_out, conditions) if settings.demos else []
    answered = choose_answered(held_out, expected, settings)
    answers = list(answer_all(runs, held_out, answered, open_stores(store, model, settings.new_tokens)))
    table = measure(answers, expected, held_out, answered, conditions)
    files = [folder / "examples.parquet" for folder in (examples, previous_examples)]
    inputs = tables.digest_inputs(*files, arms / "finetuning.json")
    parameters = {**asdict(settings), "template": model.template, "model": models.model_digest(model)}
    provenance = tables.Provenance("evaluation", version, parameters, inputs, settings.seed)
    tables.write_table(table, out / "evaluation.parquet", provenance)
    found = summarise(table, runs, held_out, settings)
    for arm, faults in read_faults(examples, runs).items():
        found["arms"][arm]["faults"] = faults
    tables.write_json(found, out / "metrics.json")
    return {name: round(sum(each.did[name] for each in answers), 3) for name in DID}


def measure_losses(
    *,
    examples: Path,
    arms: Path | None,
    store: Path,
    model: models.ModelChoice,
    metric: str = "none",
    new_tokens: int,
) -> dict[str, Any]:
    """Return the `ids` of the held-out rows and every run's `losses` on them; of the base, where `arms` is None.

    Likewise `general_ids` and `general_losses`, which are empty where there are no general rows; and whether each
    held-out row is answered right, `correct`, which is empty without a task metric: only then answers are generated.
    """
    held_out = read_held_out({"": examples}, model)
    expected = read_expected(held_out, metric)
    runs = [run for run in read_runs(arms, None) if run.learner == TRAINED] if arms else [Run("base")]
    answered = {held_out.version: held_out.of[held_out.version] if metric != "none" else []}
    answers = list(
        answer_all(runs, held_out, answered, open_stores(store, model, new_tokens if metric != "none" else 0))
    )
    losses, found = {each.run.label: each.losses for each in answers}, {"correct": {}}
    if metric != "none":
        right = judge([each.texts for each in answers], expected)
        own = held_out.of[held_out.version]
        for each in answers:
            found["correct"][each.run.label] = [right[each.texts[place], expected[place]] for place in own]
    for prefix, places in (("", held_out.of[held_out.version]), ("general_", held_out.of.get(GENERAL, []))):
        found[f"{prefix}ids"] = [held_out.rows[place]["id"] for place in places]
        found[f"{prefix}losses"] = {name: [each[place] for place in places] for name, each in losses.items() if places}
    return found


def show_rows(runs: Sequence[Run], examples: Path, held_out: HeldOut, conditions: Conditions) -> list[Run]:
    """Return a run of the in-context learner for arm chosen and for the lowest seed of arm random.

    Of arm chosen there is one for all runs that were trained on the same rows.
    Rows are near by the embeddings of their prompts: the response to a held-out row is not known when it is asked.
    """
    lowest = min((run.seed for run in runs if run.arm == "random"), default=None)
    shown = [run for run in runs if run.arm == "chosen" or (run.arm == "random" and run.seed == lowest)]
    trained = {run: tuple(tables.read_texts(run.folder / "rows.json")) for run in shown}
    pool = read_rows(examples, {name for ids in trained.values() for name in ids})
    asked = [held_out.conversations[place] for place in held_out.of[held_out.version]]
    known = {name: read_conversation(row) for name, row in pool.items()}
    prompts = [transcribe(one)[0] for one in [*asked, *known.values()]]
    vectors = embed_texts(prompts, conditions.embedding_model, conditions.store)
    place = {name: number for number, name in enumerate(pool, start=len(asked))}
    template = open_template(conditions.model)
    limits = {"max_tokens": conditions.model.max_tokens, "new_tokens": conditions.settings.new_tokens}
    found: dict[tuple, Run] = {}
    for run, ids in ((run, ids) for run, ids in trained.items() if (run.arm, ids) not in found):
        near = nearest_among(vectors[: len(asked)], vectors[[place[name] for name in ids]], conditions.settings.demos)
        demos = [[known[ids[one]] for one in ones] for ones in near]
        prompts, fewer = show_demos(template, held_out, demos, **limits)
        found[run.arm, ids] = replace(run, learner=SHOWN, folder=None, prompts=prompts, fewer_demos=fewer)
    return list(found.values())


def choose_answered(
    held_out: HeldOut, expected: Sequence[Expected], settings: EvaluationSettings
) -> dict[str, list[int]]:
    """Return the places of each version's rows that are answered in generated text, not by their loss alone.

    Of this version they are `settings.generated_rows`, drawn so that more of them hold the fewer; of other rows those
    that a task metric judges.
    """
    own, rows = held_out.of[held_out.version], held_out.rows
    drawn = sample({rows[place]["id"]: rows[place]["topic"] for place in own}, settings.generated_rows, settings.seed)
    found = {name: [place for place in places if expected[place] is not None] for name, places in held_out.of.items()}
    return found | {held_out.version: [place for place in own if rows[place]["id"] in drawn]}


def measure(
    answers: Sequence[Answers],
    expected: Sequence[Expected],
    held_out: HeldOut,
    answered: Mapping[str, Collection[int]],
    conditions: Conditions,
) -> pa.Table:
    """Return a row for every run, version and held-out row that it was asked.

    Args:
        answers: of every run.
        expected: of every row: what tells whether an answer is right.
        held_out: the rows.
        answered: version -> places of its rows that are answered in generated text.
        conditions: with what texts are compared, and where their embeddings are kept.
    """
    right = judge([each.texts for each in answers], expected)
    likeness, records = compare_texts(answers, held_out, conditions), []
    told = {version: set(places) for version, places in answered.items()}
    tokens = held_out.prompts.encoding.answer_tokens
    for number, each in enumerate(answers):
        run, asked = each.run, [held_out.version] if each.run.learner == SHOWN else list(held_out.of)
        for version, place in ((name, place) for name in asked for place in held_out.of[name]):
            row, said = held_out.rows[place], {}
            if place in told[version]:
                text, (rouge, similarity) = each.texts[place], likeness[number, place]
                said = {"rouge_l": rouge, "similarity": similarity, "cut": each.cut[place], "generated": text}
                said["correct"] = right[text, expected[place]]
            records.append(
                {
                    "arm": run.arm,
                    "learner": run.learner,
                    "seed": run.seed,
                    "held_out_of": version,
                    "id": row["id"],
                    "topic": row["topic"],
                    "response_tokens": int(tokens[place]),
                    "loss": each.losses[place],
                    **said,
                }
            )
    return pa.Table.from_pylist(records, schema=schemas.EVALUATION)


def compare_texts(
    answers: Sequence[Answers], held_out: HeldOut, conditions: Conditions
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return ROUGE-L and similarity of each generated text to its row's reference, by number of the run and place."""
    said = [
        (number, place, text)
        for number, each in enumerate(answers)
        for place, text in enumerate(each.texts)
        if text is not None
    ]
    if not said:
        return {}
    texts, references = [text for *_, text in said], [held_out.rows[place]["response"] for _, place, _ in said]
    distinct = sorted({*texts, *references})
    vectors = torch.from_numpy(embed_texts(distinct, conditions.embedding_model, conditions.store))
    index = {text: number for number, text in enumerate(distinct)}
    ours, theirs = (vectors[[index[text] for text in side]] for side in (texts, references))
    similar, scorer = evaluation_bootstrap.cosines(ours, theirs, texts), RougeScorer(["rougeL"])
    rouge = (scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, texts, strict=True))
    return {
        (number, place): (like, float(near))
        for (number, place, _), like, near in zip(said, rouge, similar, strict=True)
    }


def summarise(table: pa.Table, runs: Sequence[Run], held_out: HeldOut, settings: EvaluationSettings) -> dict[str, Any]:
    """Return the metrics of both learners, what changed since the version before, and what became of general rows.

    The last two only where there are such rows.
    """
    trained, shown = ([run for run in runs if (run.learner == SHOWN) is so] for so in (False, True))
    found = compare(table, trained, held_out, settings)
    if shown:
        found["in_context"] = {**compare(table, [Run("base"), *shown], held_out, settings), "demos": settings.demos}
    new = gather(table, trained, held_out.version)
    if held_out.of[held_out.previous]:
        start = "previous" if "previous" in new else "base"
        old = gather(table, trained, held_out.previous)
        found["continual"] = {"previous": held_out.previous, **tell_gains(new, old, start, settings)}
    if GENERAL in held_out.of:
        found["general"] = tell_gains(new, gather(table, trained, GENERAL), "base", settings)
    return found


def tell_gains(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], start: str, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return plasticity on new rows, stability on old ones, and of these the row count, losses and right answers."""
    learnt, kept = (evaluation_bootstrap.measure_gains(arms, start, **_intervals(settings)) for arms in (new, old))
    means = {name: values.mean(axis=(0, 1)).tolist() for name, values in old.items()}
    found = {"rows": old[start].shape[1], "losses": {name: loss for name, (loss, *_) in means.items()}}
    shares = {name: share for name, (*_, share) in means.items()}
    if not np.isnan(list(shares.values())).any():  # all of these rows are judged
        found[evaluation_bootstrap.CORRECT] = shares
    return {**found, "plasticity": learnt, "stability": kept}


def compare(table: pa.Table, runs: Sequence[Run], held_out: HeldOut, settings: EvaluationSettings) -> dict[str, Any]:
    """Return per arm its rows, seeds and measures on this version's held-out rows; differences of arms; row count."""
    judged, arms = settings.task_metric != "none", gather(table, runs, held_out.version)
    tokens = held_out.prompts.encoding.answer_tokens[held_out.of[held_out.version]].astype(np.float64)
    answered = ~np.isnan(next(iter(arms.values()))[0, :, MEASURES.index("rouge_l")])
    found = summarise_answered(arms, tokens, answered, settings)
    cut = gather(table, runs, held_out.version, ("cut",))
    for name, values in arms.items():
        ours = [run for run in runs if run.arm == name]
        losses = {str(run.seed): float(loss) for run, loss in zip(ours, values[:, :, 0].mean(axis=1), strict=True)}
        found["arms"][name] |= {"rows": ours[0].rows, "seeds": len(ours), "loss_by_seed": losses}
        found["arms"][name]["cut_answers"] = float(cut[name][:, answered].mean())
        if ours[0].learner == SHOWN:
            found["arms"][name]["fewer_demos"] = sum(run.fewer_demos for run in ours)
    if judged:
        found["task_metric"] = settings.task_metric
        found["floor"] = not any(
            arm[evaluation_bootstrap.CORRECT] for arm in found["arms"].values()
        )  # nothing to tell arms by
    return {**found, "held_out_rows": len(tokens), "generated_rows": int(answered.sum())}


def summarise_answered(
    arms: Mapping[str, np.ndarray], tokens: np.ndarray, answered: np.ndarray, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return the measures of arms and their differences: losses of all rows, all else of those that are answered.

    Args:
        arms: COLUMNS per seed and row, NaN where a row is not answered.
        tokens: response tokens of each row.
        answered: whether each row is answered in generated text.
        settings: of the intervals.
    """
    measures = MEASURES if settings.task_metric == "none" else COLUMNS
    known = {name: values[:, answered, : len(measures)] for name, values in arms.items()}
    found = evaluation_bootstrap.summarise(known, tokens[answered], measures, **_intervals(settings))
    if answered.all():
        return found
    losses = {name: values[:, :, :1] for name, values in arms.items()}
    whole = evaluation_bootstrap.summarise(losses, tokens, MEASURES[:1], **_intervals(settings))
    return {kind: {name: numbers | whole[kind][name] for name, numbers in found[kind].items()} for kind in found}


def gather(
    table: pa.Table, runs: Sequence[Run], version: str, columns: Sequence[str] = COLUMNS
) -> dict[str, np.ndarray]:
    """Return columns of a version's held-out rows, an array [seed, row, column] per arm; NaN where a value is null."""
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        part = table.filter((pc.field("held_out_of") == version) & (pc.field("learner") == run.learner))
        seed = pc.field("seed").is_null() if run.seed is None else pc.field("seed") == run.seed
        part = part.filter((pc.field("arm") == run.arm) & seed)
        values = [part[name].cast(pa.float64()).to_numpy() for name in columns]
        found.setdefault(run.arm, []).append(np.stack(values, axis=1))
    return {name: np.stack(values) for name, values in found.items()}


def _intervals(settings: EvaluationSettings) -> dict[str, Any]:
    generator = np.random.default_rng(settings.seed)
    return {"resamples": settings.bootstrap, "confidence": settings.confidence, "generator": generator}
