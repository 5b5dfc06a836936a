"""Stage `evaluation`: the base model and every arm on the held-out rows, one model in memory at a time.

Per run and held-out row: the loss of the reference answer, a greedily generated answer, its ROUGE-L and its similarity
to the reference and, where a task metric is asked for, whether it is right. Both learners are asked: trained models,
and the base model with an arm's nearest rows in context. The models answer the held-out rows of the version before and
the general rows, too, as does the one that training started from. The base model is loaded once; adapters and sparse
deltas are put onto it and taken off.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from tamis.evaluation import bootstrap as evaluation_bootstrap
from tamis.examples.splits import GENERAL
from tamis.language import templates
from tamis.language.embedding import encode_texts, nearest_among
from tamis.language.packing import Group, NonFiniteError, score_responses
from tasks import models
from tasks.artifacts import schemas, tables
from tasks.evaluation.inputs import (
    SHOWN,
    TRAINED,
    EvaluationError,
    HeldOut,
    Run,
    ask,
    read_held_out,
    read_rows,
    read_runs,
)
from tasks.evaluation.settings import EvaluationSettings
from tasks.evaluation.task_metrics import Expected, judge, read_expected
from tasks.masks import sparse_deltas

PACK_TOKENS = 2048  # tokens per forward pass
ANSWER_TOKENS = 8192  # kept in memory while answers are generated: prefix, query, padding and answer of every row
TEXT_ROWS = 64  # texts embedded at once
COLUMNS = (*evaluation_bootstrap.MEASURES, evaluation_bootstrap.CORRECT)


@dataclass(frozen=True)
class Conditions:
    """What every run is evaluated under."""

    model: models.ModelChoice  # the base
    embedding_model: models.ModelChoice
    settings: EvaluationSettings


@dataclass(frozen=True)
class Answers:
    """What a run says on each row that it is asked."""

    run: Run
    losses: list[float]  # nats per response token
    texts: list[str]
    cut: list[bool]  # ended by new_tokens, not by the model


def write_evaluation(
    *,
    examples: Path,
    arms: Path,
    previous_examples: Path,
    previous_arms: Path,
    out: Path,
    version: str,
    previous: str,
    model: models.ModelChoice,
    embedding_model: models.ModelChoice,
    settings: EvaluationSettings,
) -> None:
    """Evaluate the base model and every arm, and write `evaluation.parquet` and `metrics.json`.

    Args:
        examples: folder of the examples artifact.
        arms: folder of the finetuning artifact, with `finetuning.json` and `arms/`.
        previous_examples, previous_arms: folders of the same artifacts of the version before; they may hold nothing.
        out: folder of this artifact.
        version, previous: the data version, and the one before.
        model: the base model.
        embedding_model: encodes answers, to compare them, and prompts, to find the nearest.
        settings: lengths, demonstrations and intervals.

    Raises:
        ArtifactError: an input or an arm's folder is missing, or does not belong to the others.
        EvaluationError: no held-out rows; some that the task metric cannot judge; a loss that is not finite.
        SandboxError: the system refuses to run code apart, which `pass_at_1` needs.
        ValueError: a row that is too long.
    """
    conditions = Conditions(model, embedding_model, settings)
    held_out = read_held_out({version: examples, previous: previous_examples}, model)
    expected = read_expected(held_out, settings.task_metric)
    runs = read_runs(arms, previous_arms)
    runs += show_rows(runs, examples, held_out, conditions) if settings.demos else []
    table = measure(list(answer_all(runs, held_out, model, settings.new_tokens)), expected, held_out, embedding_model)
    files = [folder / "examples.parquet" for folder in (examples, previous_examples)]
    inputs = tables.digest_inputs(*files, arms / "finetuning.json")
    parameters = {**asdict(settings), "template": model.template, "model": models.model_digest(model)}
    provenance = tables.Provenance("evaluation", version, parameters, inputs, settings.seed)
    tables.write_table(table, out / "evaluation.parquet", provenance)
    tables.write_json(summarise(table, runs, held_out, settings), out / "metrics.json")


def measure_losses(
    *,
    examples: Path,
    arms: Path | None,
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
    answers = list(answer_all(runs, held_out, model, new_tokens if metric != "none" else 0))
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
    """Return a run of the in-context learner for every arm, one for all runs that were trained on the same rows.

    Rows are near by the embeddings of their prompts: the response to a held-out row is not known when it is asked.
    """
    trained = {run: tuple(json.loads((run.folder / "rows.json").read_text())) for run in runs if run.seed is not None}
    pool = read_rows(examples, {name for ids in trained.values() for name in ids})
    asked = [held_out.rows[place] for place in held_out.of[held_out.version]]
    vectors = _embed([ask(row) for row in [*asked, *pool.values()]], conditions.embedding_model)
    place = {name: number for number, name in enumerate(pool, start=len(asked))}
    tokenizer = models.tokenizer(conditions.model)
    limits = {"max_tokens": conditions.model.max_tokens, "new_tokens": conditions.settings.new_tokens}
    found: dict[tuple, Run] = {}
    for run, ids in ((run, ids) for run, ids in trained.items() if (run.arm, ids) not in found):
        near = nearest_among(vectors[: len(asked)], vectors[[place[name] for name in ids]], conditions.settings.demos)
        demos = [[(ask(pool[ids[one]]), pool[ids[one]]["response"]) for one in ones] for ones in near]
        encoding, fewer = templates.write_prompts(
            tokenizer, conditions.model.template, held_out.encoding, demos, **limits
        )
        found[run.arm, ids] = replace(run, learner=SHOWN, folder=None, encoding=encoding, fewer_demos=fewer)
    return list(found.values())


def answer_all(runs: Sequence[Run], held_out: HeldOut, model: models.ModelChoice, new_tokens: int) -> Iterator[Answers]:
    """Yield every run's losses and answers, with a bar per run on stderr: a step for the losses, then one per batch.

    With `new_tokens` 0 nothing is generated, and every answer is empty.
    """
    base = models.language_model.__wrapped__(model)  # past the cache: adapters go onto it
    tokenizer = models.tokenizer(model)
    for run in runs:
        encoding = run.encoding or held_out.encoding
        sizes = [len(encoding.base) + len(query) for query in encoding.queries]
        batches = evaluation_bootstrap.plan_batches(sizes, new_tokens, ANSWER_TOKENS) if new_tokens else []
        bar = logging.tqdm(total=1 + len(batches), desc=f"evaluation of {run.label}")
        with bar, loaded(run, base, model) as network:
            losses = score(network, encoding, held_out.rows, run)
            said = {} if new_tokens else dict.fromkeys(range(len(sizes)), ("", False))
            bar.update()
            for places in batches:
                said |= zip(places, generate(network, tokenizer, encoding, places, new_tokens), strict=True)
                bar.update()
        texts, cut = zip(*(said[place] for place in range(len(sizes))), strict=True)
        yield Answers(run, losses, list(texts), list(cut))


@contextmanager
def loaded(run: Run, base: PreTrainedModel, model: models.ModelChoice) -> Iterator[PreTrainedModel]:
    """Yield a run's model in eval mode: the base, the base with adapters or a delta, or weights of its own."""
    if run.folder is None:
        yield base
    elif (run.folder / "adapter_config.json").exists():
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
            network = peft.PeftModel.from_pretrained(base, run.folder).eval()
        yield network.get_base_model()
        network.unload()
    elif (run.folder / sparse_deltas.DELTA).exists():
        with sparse_deltas.patched(base, run.folder, model) as network:
            yield network
    else:
        yield models.language_model.__wrapped__(replace(model, name=str(run.folder), revision=None))


def score(network: PreTrainedModel, encoding: templates.Encoding, rows: Sequence[dict], run: Run) -> list[float]:
    """Return the mean negative log-likelihood of each row's reference answer, nats per token."""
    try:
        group = Group(encoding.base, encoding.queries, encoding.responses)
        (found,) = score_responses(network, [group], PACK_TOKENS)
    except NonFiniteError as error:
        row = rows[error.target]
        raise EvaluationError(
            f"run {run.label}: the loss of example {row['id']} (row {row['row']}) is not finite; "
            "check the base model's weights, lower finetuning.learning_rate or set models.dtype: float32"
        ) from error
    return [-float(row.double().mean()) for row in found]


def generate(
    network: PreTrainedModel, tokenizer: Any, encoding: templates.Encoding, places: Sequence[int], new_tokens: int
) -> list[tuple[str, bool]]:
    """Return the greedy answers to the queries at these places, without special tokens and outer blanks.

    With each: whether it was cut, so that no end of turn is among its tokens.

    Rows are padded at the left, between the template's prefix and the query; the prefix is run once.
    """
    ends = sorted({response[-1] for response in encoding.responses})
    network.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    ids = _continue(network, encoding.base, [encoding.queries[place] for place in places], tokenizer.pad_token_id)
    texts = (text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True))
    return list(zip(texts, (not set(row) & set(ends) for row in ids.tolist()), strict=True))


@torch.inference_mode()
def _continue(network: PreTrainedModel, base: list[int], queries: list[list[int]], pad: int) -> torch.Tensor:
    """Return the tokens that follow base + query in every row."""
    width = max(map(len, queries))
    ids = torch.tensor([base + [pad] * (width - len(query)) + query for query in queries])
    mask = torch.tensor([[1] * len(base) + [0] * (width - len(query)) + [1] * len(query) for query in queries])
    shared = {}
    if base:
        start = torch.tensor([base], device=network.device)
        shared["cache"] = network(input_ids=start, use_cache=True).cache
        shared["cache"].batch_repeat_interleave(len(queries))
    found = network.generate(input_ids=ids.to(network.device), attention_mask=mask.to(network.device), **shared)
    return found[:, ids.shape[1] :].cpu()


def measure(
    answers: Sequence[Answers],
    expected: Sequence[Expected],
    held_out: HeldOut,
    model: models.ModelChoice,
) -> pa.Table:
    """Return the evaluation table: one row per run, version and held-out row that it was asked."""
    references = [row["response"] for row in held_out.rows]
    said = sorted({text for each in answers for text in each.texts} | set(references))
    vectors = torch.from_numpy(_embed(said, model))
    place = {text: number for number, text in enumerate(said)}
    reference = vectors[[place[text] for text in references]]
    scorer, records, right = RougeScorer(["rougeL"]), [], judge([each.texts for each in answers], expected)
    for run, losses, texts, cut in ((each.run, each.losses, each.texts, each.cut) for each in answers):
        vector = vectors[[place[text] for text in texts]]
        similar = evaluation_bootstrap.cosines(vector, reference[: len(vector)], texts)
        rouge = [scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, texts, strict=False)]
        asked = [held_out.version] if run.learner == SHOWN else list(held_out.of)
        for version, number in ((name, number) for name in asked for number in held_out.of[name]):
            row = held_out.rows[number]
            records.append(
                {
                    "arm": run.arm,
                    "learner": run.learner,
                    "seed": run.seed,
                    "held_out_of": version,
                    "id": row["id"],
                    "topic": row["topic"],
                    "response_tokens": len(held_out.encoding.responses[number]),
                    "loss": losses[number],
                    "rouge_l": rouge[number],
                    "similarity": float(similar[number]),
                    "correct": right[texts[number], expected[number]],
                    "cut": cut[number],
                    "generated": texts[number],
                }
            )
    return pa.Table.from_pylist(records, schema=schemas.EVALUATION)


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
    measures = COLUMNS if judged else evaluation_bootstrap.MEASURES
    tokens = np.array([float(len(held_out.encoding.responses[place])) for place in held_out.of[held_out.version]])
    known = {name: values[:, :, : len(measures)] for name, values in arms.items()}
    found = evaluation_bootstrap.summarise(known, tokens, measures, **_intervals(settings))
    cut = gather(table, runs, held_out.version, ("cut",))
    for name, values in arms.items():
        ours = [run for run in runs if run.arm == name]
        losses = {str(run.seed): float(loss) for run, loss in zip(ours, values[:, :, 0].mean(axis=1), strict=True)}
        found["arms"][name] |= {"rows": ours[0].rows, "seeds": len(ours), "loss_by_seed": losses}
        found["arms"][name]["cut_answers"] = float(cut[name].mean())
        if ours[0].learner == SHOWN:
            found["arms"][name]["fewer_demos"] = sum(run.fewer_demos for run in ours)
    if judged:
        found["task_metric"] = settings.task_metric
        found["floor"] = not any(
            arm[evaluation_bootstrap.CORRECT] for arm in found["arms"].values()
        )  # nothing to tell arms by
    return {**found, "held_out_rows": len(tokens)}


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


def _embed(texts: Sequence[str], model: models.ModelChoice) -> np.ndarray:
    """Return the unit embeddings of texts, float32."""
    return encode_texts(models.embedder(model), models.tokenizer(model), texts, TEXT_ROWS, model.max_tokens).numpy()
