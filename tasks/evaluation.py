"""Room `evaluation`: the base model and every arm on the held-out rows, one arm in memory at a time.

Per run (an arm and a seed) and held-out row: the loss of the reference answer, a greedily generated answer, its ROUGE-L
and its embedding similarity to the reference. The base model is loaded once; adapters are put onto it and taken off.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from tamis import evaluation, finetuning, templates
from tamis.embedding import encode_texts
from tamis.language_model import Group, NonFiniteError, score_responses
from tasks import artifacts, models, schemas
from tasks.artifacts import ArtifactError

PACK_TOKENS = 2048  # tokens per forward pass
ANSWER_TOKENS = 8192  # kept in memory while answers are generated: prefix, query, padding and answer of every row
TEXT_ROWS = 64  # texts embedded at once


class EvaluationError(ValueError):
    """The held-out rows or an arm cannot be evaluated."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How arms are compared."""

    new_tokens: int = 24  # tokens generated per held-out row, at most
    bootstrap: int = 2000  # resamples of the held-out rows and, in arms with several, of the seeds
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of the resamples


@dataclass(frozen=True)
class HeldOut:
    """The used held-out rows, tokenised once."""

    rows: list[dict[str, Any]]
    encoding: templates.Encoding


@dataclass(frozen=True)
class Run:
    """A model that is evaluated: an arm and a seed, or the base model."""

    arm: str
    seed: int | None = None  # None: base
    rows: int = 0  # that it was trained on

    @property
    def label(self) -> str:
        """Return the name of its folder."""
        return self.arm if self.seed is None else f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Answers:
    """What a run says on the held-out rows."""

    run: Run
    losses: list[float]  # nats per response token
    texts: list[str]  # generated


def write_evaluation(
    *,
    examples: Path,
    arms: Path,
    out: Path,
    version: str,
    model: models.ModelChoice,
    embedding_model: models.ModelChoice,
    settings: EvaluationSettings,
    template: str,
) -> None:
    """Evaluate the base model and every arm, and write `evaluation.parquet` and `metrics.json`.

    Args:
        examples: folder of the examples artifact.
        arms: folder of the finetuning artifact, with `finetuning.json` and `arms/`.
        out: folder of this artifact.
        version: the data version.
        model: the base model.
        embedding_model: encodes answers, to compare them.
        settings: lengths and intervals.
        template: the one that the arms were trained with.

    Raises:
        ArtifactError: an input or an arm's folder is missing.
        EvaluationError: no held-out rows; a loss that is not finite.
        ValueError: a row that is too long.
    """
    held_out = read_held_out(examples, model, template)
    runs = read_runs(arms)
    answers = list(answer_all(runs, held_out, arms, model, settings))
    table = measure(answers, held_out, embedding_model)
    inputs = artifacts.digest_inputs(examples / "examples.parquet", arms / "finetuning.json")
    parameters = {**asdict(settings), "template": template, "model": models.model_digest(model)}
    provenance = artifacts.Provenance("evaluation", version, parameters, inputs, settings.seed)
    artifacts.write_table(table, out / "evaluation.parquet", provenance)
    artifacts.write_json(summarise(table, runs, settings), out / "metrics.json")


def read_held_out(examples: Path, model: models.ModelChoice, template: str) -> HeldOut:
    """Read and tokenise the used held-out rows."""
    table = artifacts.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    rows = [row for row in table.to_pylist() if row["used"] and row["split"] == "held_out"]
    if not rows:
        raise EvaluationError(
            f"0 of {table.num_rows} rows are held out, so nothing can be compared; lower examples.held_out_in, "
            "raise examples.held_out_rows or add raw rows"
        )
    prompts = [templates.join_instruction(row["instruction"], row["prompt"]) for row in rows]
    encoding = templates.encode(models.tokenizer(model), template, prompts, [row["response"] for row in rows])
    finetuning.refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    return HeldOut(rows, encoding)


def read_runs(arms: Path) -> list[Run]:
    """Return the base and every run that `finetuning.json` lists, after checking that its folder stands there."""
    listing = arms / "finetuning.json"
    if not listing.exists():
        raise ArtifactError(f"{listing} is missing; run `tamis run` (or `dvc repro`) to make it")
    listed = json.loads(listing.read_text())["arms"]
    missing = [label for label in listed if not (arms / "arms" / label).is_dir()]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(listed)} arms have no folder in {arms / 'arms'}, first {missing[:3]}; "
            "restore them with `dvc checkout` or train them again with `tamis run`"
        )
    named = [(*label.rsplit("-", 1), numbers["rows"]) for label, numbers in listed.items()]
    order = sorted(named, key=lambda one: (evaluation.ORDER.index(one[0]), int(one[1])))
    return [Run("base")] + [Run(name, int(seed), rows) for name, seed, rows in order]


def answer_all(
    runs: Sequence[Run], held_out: HeldOut, arms: Path, model: models.ModelChoice, settings: EvaluationSettings
) -> Iterator[Answers]:
    """Yield every run's losses and answers, with a bar per run on stderr: a step for the losses, then one per batch."""
    base = models.language_model.__wrapped__(model)  # past the cache: adapters go onto it
    encoding, tokenizer = held_out.encoding, models.tokenizer(model)
    sizes = [len(encoding.base) + len(query) for query in encoding.queries]
    batches = evaluation.plan_batches(sizes, settings.new_tokens, ANSWER_TOKENS)
    for run in runs:
        bar = logging.tqdm(total=1 + len(batches), desc=f"evaluation of {run.label}")
        with bar, loaded(run, base, arms, model) as network:
            losses, texts = score(network, held_out, run), [""] * len(sizes)
            bar.update()
            for places in batches:
                answers = generate(network, tokenizer, encoding, places, settings.new_tokens)
                for place, text in zip(places, answers, strict=True):
                    texts[place] = text
                bar.update()
        yield Answers(run, losses, texts)


@contextmanager
def loaded(run: Run, base: PreTrainedModel, arms: Path, model: models.ModelChoice) -> Iterator[PreTrainedModel]:
    """Yield a run's model in eval mode: the base, the base with adapters, or weights of its own."""
    folder = arms / "arms" / run.label
    if run.seed is None:
        yield base
    elif (folder / "adapter_config.json").exists():
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
            network = peft.PeftModel.from_pretrained(base, folder).eval()
        yield network.get_base_model()
        network.unload()
    else:
        yield models.language_model.__wrapped__(replace(model, name=str(folder), revision=None))


def score(network: PreTrainedModel, held_out: HeldOut, run: Run) -> list[float]:
    """Return the mean negative log-likelihood of each row's reference answer, nats per token."""
    encoding = held_out.encoding
    try:
        group = Group(encoding.base, encoding.queries, encoding.responses)
        (found,) = score_responses(network, [group], PACK_TOKENS)
    except NonFiniteError as error:
        row = held_out.rows[error.target]
        raise EvaluationError(
            f"run {run.label}: the loss of example {row['id']} (row {row['row']}) is not finite; "
            "check the base model's weights, lower finetuning.learning_rate or set models.dtype: float32"
        ) from error
    return [-float(row.double().mean()) for row in found]


def generate(
    network: PreTrainedModel, tokenizer: Any, encoding: templates.Encoding, places: Sequence[int], new_tokens: int
) -> list[str]:
    """Return the greedy answers to the queries at these places, without special tokens and outer blanks.

    Rows are padded at the left, between the template's prefix and the query; the prefix is run once.
    """
    ends = sorted({response[-1] for response in encoding.responses})
    network.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    ids = _continue(network, encoding.base, [encoding.queries[place] for place in places], tokenizer.pad_token_id)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def _continue(network: PreTrainedModel, base: list[int], queries: list[list[int]], pad: int) -> torch.Tensor:
    """Return the tokens that follow base + query in every row."""
    width = max(map(len, queries))
    ids = torch.tensor([base + [pad] * (width - len(query)) + query for query in queries])
    mask = torch.tensor([[1] * len(base) + [0] * (width - len(query)) + [1] * len(query) for query in queries])
    shared = {}
    if base:
        start = torch.tensor([base], device=network.device)
        shared["past_key_values"] = network(input_ids=start, use_cache=True).past_key_values
        shared["past_key_values"].batch_repeat_interleave(len(queries))
    found = network.generate(input_ids=ids.to(network.device), attention_mask=mask.to(network.device), **shared)
    return found[:, ids.shape[1] :].cpu()


def measure(answers: Sequence[Answers], held_out: HeldOut, model: models.ModelChoice) -> pa.Table:
    """Return the evaluation table: one row per run and held-out row."""
    references = [row["response"] for row in held_out.rows]
    said = sorted({text for one in answers for text in one.texts} | set(references))
    vectors = encode_texts(models.embedder(model), models.tokenizer(model), said, TEXT_ROWS, model.max_tokens)
    place = {text: number for number, text in enumerate(said)}
    reference = vectors[[place[text] for text in references]]
    scorer = RougeScorer(["rougeL"])
    records = []
    for one in answers:
        similar = evaluation.cosines(vectors[[place[text] for text in one.texts]], reference, one.texts)
        for number, (row, text) in enumerate(zip(held_out.rows, one.texts, strict=True)):
            records.append(
                {
                    "arm": one.run.arm,
                    "seed": one.run.seed,
                    "id": row["id"],
                    "topic": row["topic"],
                    "response_tokens": len(held_out.encoding.responses[number]),
                    "loss": one.losses[number],
                    "rouge_l": scorer.score(row["response"], text)["rougeL"].fmeasure,
                    "similarity": float(similar[number]),
                    "generated": text,
                }
            )
    return pa.Table.from_pylist(records, schema=schemas.EVALUATION)


def summarise(table: pa.Table, runs: Sequence[Run], settings: EvaluationSettings) -> dict[str, Any]:
    """Return the metrics: per arm its training rows, seeds and measures; differences of arms; held-out rows."""
    count = table.num_rows // len(runs)
    values = np.stack([table[name].to_numpy().astype(float) for name in evaluation.MEASURES], axis=1)
    per_run = values.reshape(len(runs), count, -1)
    members = {name: [place for place, run in enumerate(runs) if run.arm == name] for name in (run.arm for run in runs)}
    found = evaluation.summarise(
        {name: per_run[places] for name, places in members.items()},
        table["response_tokens"].to_numpy()[:count].astype(float),
        resamples=settings.bootstrap,
        confidence=settings.confidence,
        generator=np.random.default_rng(settings.seed),
    )
    for name, places in members.items():
        by_seed = {str(runs[place].seed): float(per_run[place, :, 0].mean()) for place in places}
        found["arms"][name] |= {"rows": runs[places[0]].rows, "seeds": len(places), "loss_by_seed": by_seed}
    return {**found, "held_out_rows": count}
