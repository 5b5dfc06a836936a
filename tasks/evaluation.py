"""Room `evaluation`: the base model and every arm on the held-out rows, one model in memory at a time.

Per run and held-out row: the loss of the reference answer, a greedily generated answer, its ROUGE-L and its similarity
to the reference. Both learners are asked: trained models, and the base model with an arm's nearest rows in context. The
models answer the held-out rows of the version before, too, as does the one that training started from. The base model
is loaded once; adapters are put onto it and taken off.
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

from tamis import evaluation, finetuning, templates
from tamis.embedding import encode_texts, nearest_among
from tamis.language_model import Group, NonFiniteError, score_responses
from tasks import artifacts, models, schemas
from tasks.artifacts import ArtifactError

PACK_TOKENS = 2048  # tokens per forward pass
ANSWER_TOKENS = 8192  # kept in memory while answers are generated: prefix, query, padding and answer of every row
TEXT_ROWS = 64  # texts embedded at once
TRAINED, SHOWN = "finetuning", "in_context"  # how a learner comes to know its rows


class EvaluationError(ValueError):
    """The held-out rows or an arm cannot be evaluated."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How arms are compared."""

    new_tokens: int = 24  # tokens generated per held-out row, at most
    demos: int = 2  # rows shown before each held-out row of the in-context learner; 0 leaves it out
    bootstrap: int = 2000  # resamples of the held-out rows and, in arms with several, of the seeds
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of the resamples


@dataclass(frozen=True)
class Conditions:
    """What every run is evaluated under."""

    model: models.ModelChoice  # the base
    embedding_model: models.ModelChoice
    template: str
    settings: EvaluationSettings


@dataclass(frozen=True)
class HeldOut:
    """The used held-out rows of a version and of the one before, tokenised once."""

    rows: list[dict[str, Any]]  # each id once, this version's first
    encoding: templates.Encoding
    version: str  # this one
    of: Mapping[str, list[int]]  # version -> places of its rows; this version first


@dataclass(frozen=True)
class Run:
    """A model that is evaluated: the base, the one that training started from, or an arm and a seed."""

    arm: str  # base | previous | chosen | random | full
    seed: int | None = None  # None: base, previous
    learner: str = "none"  # none | finetuning | in_context
    rows: int = 0  # of this version that it learns from
    folder: Path | None = None  # of its weights; None: the base's
    encoding: templates.Encoding | None = None  # prompts of its own; None: those of `HeldOut`
    fewer_demos: int = 0  # held-out rows that leave no room for all demos

    @property
    def label(self) -> str:
        """Return its name for people."""
        name = self.arm if self.seed is None else f"{self.arm}-{self.seed}"
        return f"{name} in context" if self.learner == SHOWN else name


Answers = tuple[Run, list[float], list[str]]  # and, per row that it is asked: nats per response token, what it says


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
    template: str,
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
        template: the one that the arms were trained with.

    Raises:
        ArtifactError: an input or an arm's folder is missing, or does not belong to the others.
        EvaluationError: no held-out rows; a loss that is not finite.
        ValueError: a row that is too long.
    """
    conditions = Conditions(model, embedding_model, template, settings)
    held_out = read_held_out({version: examples, previous: previous_examples}, model, template)
    runs = read_runs(arms, previous_arms)
    runs += show_rows(runs, examples, held_out, conditions) if settings.demos else []
    table = measure(list(answer_all(runs, held_out, conditions)), held_out, embedding_model)
    files = [folder / "examples.parquet" for folder in (examples, previous_examples)]
    inputs = artifacts.digest_inputs(*files, arms / "finetuning.json")
    parameters = {**asdict(settings), "template": template, "model": models.model_digest(model)}
    provenance = artifacts.Provenance("evaluation", version, parameters, inputs, settings.seed)
    artifacts.write_table(table, out / "evaluation.parquet", provenance)
    artifacts.write_json(summarise(table, runs, held_out, settings), out / "metrics.json")


def measure_losses(*, examples: Path, arms: Path | None, model: models.ModelChoice, template: str) -> dict[str, Any]:
    """Return the `ids` of the held-out rows and every run's `losses` on them; of the base, where `arms` is None."""
    held_out = read_held_out({"": examples}, model, template)
    runs = [run for run in read_runs(arms, None) if run.learner == TRAINED] if arms else [Run("base")]
    base, losses = models.language_model.__wrapped__(model), {}  # past the cache: adapters go onto it
    for run in runs:
        with loaded(run, base, model) as network:
            losses[run.label] = score(network, held_out.encoding, held_out.rows, run)
    return {"ids": [row["id"] for row in held_out.rows], "losses": losses}


def read_held_out(examples: Mapping[str, Path], model: models.ModelChoice, template: str) -> HeldOut:
    """Read and tokenise the used held-out rows of these versions; only the first must have some."""
    found = {}
    for version, folder in examples.items():
        table = artifacts.read_table(folder / "examples.parquet", schemas.EXAMPLES)
        found[version] = [row for row in table.to_pylist() if row["used"] and row["split"] == "held_out"]
        if not any(found.values()):
            raise EvaluationError(
                f"0 of {table.num_rows} rows are held out, so nothing can be compared; lower examples.held_out_in, "
                "raise examples.held_out_rows or add raw rows"
            )
    first, *others = found.values()
    known = {row["id"] for row in first}
    rows = first + [row for more in others for row in more if row["id"] not in known]
    place = {row["id"]: number for number, row in enumerate(rows)}
    prompts, responses = [_ask(row) for row in rows], [row["response"] for row in rows]
    encoding = templates.encode(models.tokenizer(model), template, prompts, responses)
    finetuning.refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    of = {version: [place[row["id"]] for row in rows] for version, rows in found.items()}
    return HeldOut(rows, encoding, next(iter(of)), of)


def read_runs(arms: Path, previous_arms: Path | None) -> list[Run]:
    """Return the base, the model that training started from, where it is wanted, and the runs of `finetuning.json`."""
    listing = arms / "finetuning.json"
    if not listing.exists():
        raise ArtifactError(f"{listing} is missing; run `tamis run` (or `dvc repro`) to make it")
    found = json.loads(listing.read_text())
    listed, folders = found["arms"], {label: arms / "arms" / label for label in found["arms"]}
    missing = [label for label, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(listed)} arms have no folder in {arms / 'arms'}, first {missing[:3]}; "
            "restore them with `dvc checkout` or train them again with `tamis run`"
        )
    named = [(*label.rsplit("-", 1), label) for label in listed]
    order = sorted(named, key=lambda one: (evaluation.ORDER.index(one[0]), int(one[1])))
    trained = [Run(arm, int(seed), TRAINED, listed[label]["rows"], folders[label]) for arm, seed, label in order]
    if previous_arms is None or found["continues_from"] is None:
        return [Run("base"), *trained]
    start = previous_arms / "arms" / found["continues_from"]
    if artifacts.digest_inputs(*sorted(start.glob("*.safetensors"))) != found["continues_from_digest"]:
        raise ArtifactError(
            f"{start} does not hold the weights that the arms were trained on from: they were made again since, or "
            "are not there; restore them with `dvc checkout` or train the arms again with `tamis run`"
        )
    return [Run("base"), Run("previous", learner=TRAINED, folder=start), *trained]


def show_rows(runs: Sequence[Run], examples: Path, held_out: HeldOut, conditions: Conditions) -> list[Run]:
    """Return a run of the in-context learner for every arm, one for all runs that were trained on the same rows.

    Rows are near by the embeddings of their prompts: the response to a held-out row is not known when it is asked.
    """
    trained = {run: tuple(json.loads((run.folder / "rows.json").read_text())) for run in runs if run.seed is not None}
    pool = read_rows(examples, {name for ids in trained.values() for name in ids})
    asked = [held_out.rows[place] for place in held_out.of[held_out.version]]
    vectors = _embed([_ask(row) for row in [*asked, *pool.values()]], conditions.embedding_model)
    place = {name: number for number, name in enumerate(pool, start=len(asked))}
    tokenizer = models.tokenizer(conditions.model)
    limits = {"max_tokens": conditions.model.max_tokens, "new_tokens": conditions.settings.new_tokens}
    found: dict[tuple, Run] = {}
    for run, ids in ((run, ids) for run, ids in trained.items() if (run.arm, ids) not in found):
        near = nearest_among(vectors[: len(asked)], vectors[[place[name] for name in ids]], conditions.settings.demos)
        demos = [[(_ask(pool[ids[one]]), pool[ids[one]]["response"]) for one in ones] for ones in near]
        encoding, fewer = templates.write_prompts(tokenizer, conditions.template, held_out.encoding, demos, **limits)
        found[run.arm, ids] = replace(run, learner=SHOWN, folder=None, encoding=encoding, fewer_demos=fewer)
    return list(found.values())


def read_rows(examples: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return the examples that arms were trained on, by id, in their order."""
    table = artifacts.read_table(examples / "examples.parquet", schemas.EXAMPLES)
    found = {row["id"]: row for row in table.to_pylist() if row["id"] in ids}
    if strangers := sorted(ids - found.keys()):
        raise ArtifactError(
            f"{len(strangers)} of {len(ids)} rows that arms were trained on are not among the examples, first "
            f"{strangers[:3]}; these artifacts belong to different runs: make them again with `tamis run`"
        )
    return found


def answer_all(runs: Sequence[Run], held_out: HeldOut, conditions: Conditions) -> Iterator[Answers]:
    """Yield every run's losses and answers, with a bar per run on stderr: a step for the losses, then one per batch."""
    base = models.language_model.__wrapped__(conditions.model)  # past the cache: adapters go onto it
    tokenizer, new_tokens = models.tokenizer(conditions.model), conditions.settings.new_tokens
    for run in runs:
        encoding = run.encoding or held_out.encoding
        sizes = [len(encoding.base) + len(query) for query in encoding.queries]
        batches = evaluation.plan_batches(sizes, new_tokens, ANSWER_TOKENS)
        bar = logging.tqdm(total=1 + len(batches), desc=f"evaluation of {run.label}")
        with bar, loaded(run, base, conditions.model) as network:
            losses, texts = score(network, encoding, held_out.rows, run), [""] * len(sizes)
            bar.update()
            for places in batches:
                answers = generate(network, tokenizer, encoding, places, new_tokens)
                for place, text in zip(places, answers, strict=True):
                    texts[place] = text
                bar.update()
        yield run, losses, texts


@contextmanager
def loaded(run: Run, base: PreTrainedModel, model: models.ModelChoice) -> Iterator[PreTrainedModel]:
    """Yield a run's model in eval mode: the base, the base with adapters, or weights of its own."""
    if run.folder is None:
        yield base
    elif (run.folder / "adapter_config.json").exists():
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
            network = peft.PeftModel.from_pretrained(base, run.folder).eval()
        yield network.get_base_model()
        network.unload()
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
    """Return the evaluation table: one row per run, version and held-out row that it was asked."""
    references = [row["response"] for row in held_out.rows]
    said = sorted({text for _, _, texts in answers for text in texts} | set(references))
    vectors = torch.from_numpy(_embed(said, model))
    place = {text: number for number, text in enumerate(said)}
    reference = vectors[[place[text] for text in references]]
    scorer, records = RougeScorer(["rougeL"]), []
    for run, losses, texts in answers:
        vector = vectors[[place[text] for text in texts]]
        similar = evaluation.cosines(vector, reference[: len(vector)], texts)
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
                    "generated": texts[number],
                }
            )
    return pa.Table.from_pylist(records, schema=schemas.EVALUATION)


def summarise(table: pa.Table, runs: Sequence[Run], held_out: HeldOut, settings: EvaluationSettings) -> dict[str, Any]:
    """Return the metrics of both learners and, where the version before has held-out rows, what changed since."""
    trained, shown = ([run for run in runs if (run.learner == SHOWN) is so] for so in (False, True))
    found = compare(table, trained, held_out, settings)
    if shown:
        found["in_context"] = {**compare(table, [Run("base"), *shown], held_out, settings), "demos": settings.demos}
    *_, previous = held_out.of
    if held_out.of[previous]:
        new, old = (gather(table, trained, version) for version in held_out.of)
        losses = {name: float(values[:, :, 0].mean()) for name, values in old.items()}
        learnt, kept = (evaluation.measure_gains(arms, **_intervals(settings)) for arms in (new, old))
        facts = {"previous": previous, "rows": len(held_out.of[previous]), "losses": losses}
        found["continual"] = {**facts, "plasticity": learnt, "stability": kept}
    return found


def compare(table: pa.Table, runs: Sequence[Run], held_out: HeldOut, settings: EvaluationSettings) -> dict[str, Any]:
    """Return per arm its rows, seeds and measures on this version's held-out rows; differences of arms; row count."""
    arms = gather(table, runs, held_out.version)
    tokens = np.array([float(len(held_out.encoding.responses[place])) for place in held_out.of[held_out.version]])
    found = evaluation.summarise(arms, tokens, **_intervals(settings))
    for name, values in arms.items():
        ours = [run for run in runs if run.arm == name]
        losses = {str(run.seed): float(loss) for run, loss in zip(ours, values[:, :, 0].mean(axis=1), strict=True)}
        found["arms"][name] |= {"rows": ours[0].rows, "seeds": len(ours), "loss_by_seed": losses}
        if ours[0].learner == SHOWN:
            found["arms"][name]["fewer_demos"] = sum(run.fewer_demos for run in ours)
    return {**found, "held_out_rows": len(tokens)}


def gather(table: pa.Table, runs: Sequence[Run], version: str) -> dict[str, np.ndarray]:
    """Return the measures on a version's held-out rows, an array [seed, row, measure] per arm."""
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        part = table.filter((pc.field("held_out_of") == version) & (pc.field("learner") == run.learner))
        seed = pc.field("seed").is_null() if run.seed is None else pc.field("seed") == run.seed
        part = part.filter((pc.field("arm") == run.arm) & seed)
        values = [part[name].to_numpy().astype(float) for name in evaluation.MEASURES]
        found.setdefault(run.arm, []).append(np.stack(values, axis=1))
    return {name: np.stack(values) for name, values in found.items()}


def _intervals(settings: EvaluationSettings) -> dict[str, Any]:
    generator = np.random.default_rng(settings.seed)
    return {"resamples": settings.bootstrap, "confidence": settings.confidence, "generator": generator}


def _ask(row: Mapping[str, Any]) -> str:
    return templates.join_instruction(row["instruction"], row["prompt"])


def _embed(texts: Sequence[str], model: models.ModelChoice) -> np.ndarray:
    """Return the unit embeddings of texts, float32."""
    return encode_texts(models.embedder(model), models.tokenizer(model), texts, TEXT_ROWS, model.max_tokens).numpy()
