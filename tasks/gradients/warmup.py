"""What stage `gradients` stands on: the rows that it draws, the warm-up on some of them, v_new and v_prior.

Every set is drawn by hashes of seed and id (`tamis.examples.splits.sample`). Tensors are kept in the scratch folder,
one per parameter under its name in `named_parameters`, each file written whole and named by a digest of all that
determines it. Where memory is short, v_new, v_prior and what the stage sums stand in a file per group of parameters,
and are formed by a pass per group; the warm-up trains all weights at once.
"""

import gc
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tamis.examples.conversations import split_key
from tamis.examples.splits import sample
from tamis.gradients import distillation, fisher, interaction, layers, per_example, row_sums
from tamis.gradients.distillation import preservation_gradient
from tamis.gradients.fisher import fisher_information
from tamis.gradients.per_example import GradientError, group_parameters, validation_gradient, verify_coverage
from tamis.language import batches, packing
from tamis.language.batches import Batch, plan_batches
from tamis.language.encoding import Encoding, refuse_long
from tamis.language.packing import packed_attention, verify_packing
from tamis.memory import fitting
from tamis.training import steps as training_steps
from tamis.training.steps import backward, final_loss, optimise, plan_steps
from tasks import models
from tasks.artifacts.locks import locked
from tasks.artifacts.row_sets import read_sets as read_row_sets
from tasks.artifacts.tables import digest_code
from tasks.artifacts.tensors import read, write
from tasks.conversations import read_conversation
from tasks.gradients.settings import GradientsSettings
from tasks.scoring_model import model_lock
from tasks.settings import RuntimeSettings
from tasks.tokens import WRITERS, encode_rows

WARMUP_FRACTION = 0.1  # of the warm-up's steps over which the learning rate rises, as in finetuning
LEAST_MOVED = 0.5  # share of entries that the checkpoint of a warm-up moves; below, a narrow one is told of
SOURCES = (
    batches,
    layers,
    row_sums,
    distillation,
    training_steps,
    fisher,
    per_example,
    interaction,
    packing,
    *WRITERS,
)
READ = ("ground", "target", "validation")  # sets of the examples that the rows are of
DRAWN = {"dualsft": ("pool", "validation", "warmup", "anchors"), "fisher": ("pool", "fisher")}  # sets that each reads
CODE = digest_code(*SOURCES, sys.modules[__name__])  # what figures depend on, as imported


R = TypeVar("R")


@dataclass(frozen=True)
class Sets:
    """The rows that are read, tokenised once; a set holds places among them, ascending."""

    ids: list[str]
    encoding: Encoding
    pool: list[int]  # scored
    validation: list[int]  # steer the choice; never in the pool
    warmup: list[int]  # of the pool
    anchors: list[int]  # of the pool
    fisher: list[int]  # of the pool
    steered_by: str | None  # target | validation: the set that the validation rows are of; None: there are none
    left_out: int  # used rows of the pool that have the prompt of a row of the target task


class Files(NamedTuple):
    """Tensors in the scratch folder; all but the first two of one group of parameters."""

    weights: Path  # of the warm-up
    moments: Path  # exp_avg_sq
    v_new: Path
    v_prior: Path
    total: Path  # G, of the first rows of the pool
    fisher: Path


@dataclass(frozen=True)
class Work:
    """What every shard of a group of parameters shares, and its rows; small enough to travel to another process."""

    source: Path  # the examples
    digest: str  # their sha256, so that a worker never uses an older reading
    files: Files
    folder: Path  # of the store
    model: models.ModelChoice
    settings: GradientsSettings
    runtime: RuntimeSettings
    loss_per: str = "row"  # what counts alike in the training, and so in gradients: row | token
    scores_rows: bool = True  # phi_data is wanted; else the sum of gradients alone
    names: tuple[str, ...] | None = None  # of the group's parameters; None: all
    places: tuple[int, ...] = ()  # of the second pass
    start: int = 0  # of a shard of the first one: how many rows of the pool are before it


@lru_cache(maxsize=1)
def read_sets(source: Path, digest: str, model: models.ModelChoice, settings: GradientsSettings) -> Sets:
    """Read, draw and tokenise the rows, of which held-out ones are none; `digest` keys the cache.

    Raises:
        ValueError: fewer anchors than a batch; a row that does not fit in the context whole.
    """
    used = read_row_sets(source, READ)[0].to_pylist()
    assigned = assign(used, [split_key(read_conversation(row)) for row in used])
    kept = [place for place, side in enumerate(assigned) if side]
    rows, sides = [used[place] for place in kept], [assigned[place] for place in kept]
    pool, validation = ([place for place, side in enumerate(sides) if side == name] for name in ("pool", "validation"))
    drawn = {name: draw(rows, pool, name, settings) for name in ("warmup", "anchors", "fisher")}
    encoding = encode_rows(rows, model)
    refuse_long(encoding, [row["row"] for row in rows], model.max_tokens)
    steered_by = rows[validation[0]]["split"] if validation else None
    left_out = sum(row["split"] == "pool" and side is None for row, side in zip(used, assigned, strict=True))
    ids = [row["id"] for row in rows]
    return Sets(ids, encoding, pool, validation, **drawn, steered_by=steered_by, left_out=left_out)


def assign(rows: Sequence[Mapping], prompts: Sequence[str]) -> list[str | None]:
    """Return for each row of the pool, the target task and the set `validation` what it is here: `validation`, `pool`,
    or None where it is nothing.

    Validation rows are the target task's, and rows of the pool with the prompt of one are nothing; where there is no
    target task, they are those of the set `validation`.
    """
    steers = "target" if any(row["split"] == "target" for row in rows) else "validation"
    steering = {prompt for row, prompt in zip(rows, prompts, strict=True) if row["split"] == steers}
    sides: list[str | None] = []
    for row, prompt in zip(rows, prompts, strict=True):
        left = "pool" if row["split"] == "pool" and prompt not in steering else None
        sides.append("validation" if row["split"] == steers else left)
    return sides


def refuse_unsteered(sets: Sets) -> None:
    """Check that there is a validation row.

    Raises:
        ValueError: there is none, with the ways out.
    """
    if not sets.validation:
        raise ValueError(
            f"0 of {len(sets.ids)} rows validate, so nothing steers the gradients; set rows apart with "
            "examples.validation_every: 10, or name the target task's rows (examples.target)"
        )


def draw(rows: Sequence[Mapping], pool: Sequence[int], name: str, settings: GradientsSettings) -> list[int]:
    """Return the places of the warm-up's rows or of the anchors, a share of the pool and enough for the warm-up's steps
    or a batch at least, or of the rows of Fisher information; all, where the pool has fewer.

    Raises:
        ValueError: the pool has fewer rows than a batch.
    """
    if len(pool) < settings.batch_rows:
        raise ValueError(
            f"anchors fewer than a batch: the pool has {len(pool)} rows, and "
            f"gradients.batch_rows is {settings.batch_rows}; lower it, or give the pool more rows (examples.pool_rows)"
        )
    shares = {"warmup": settings.warmup_share, "anchors": settings.anchor_share}
    least = settings.batch_rows * (settings.warmup_steps if name == "warmup" else 1)
    count = max(least, round(shares[name] * len(pool))) if name in shares else settings.fisher_rows
    topics = {rows[place]["id"]: rows[place]["topic"] for place in pool}
    drawn = sample(topics, count, salt(settings.seed, name))
    return [place for place in pool if rows[place]["id"] in drawn]


def salt(seed: int, purpose: str) -> int:
    """Return the seed of one purpose, so that draws for several are not of the same rows."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:6], "big")


def group(model: models.ModelChoice, block_parameters: int | None) -> list[tuple[str, ...] | None]:
    """Return the groups of parameters whose sums are in memory at once; one, None, where that is all of them."""
    if block_parameters is None:
        return [None]
    return [tuple(names) for names in group_parameters(load(model), block_parameters)]


def plan_files(
    scratch: Path,
    sets: Sets,
    model: models.ModelChoice,
    settings: GradientsSettings,
    *,
    loss_per: str = "row",
    names: Sequence[str] | None = None,
) -> Files:
    """Return where each file of tensors lies; how the rows are cut into shards is no part of its name."""
    made = [models.model_digest(model), str(models.device(model)), model.template, CODE, loss_per]

    def name(kind: str, places: Sequence[int], *facts: Any) -> Path:
        ids = [sets.ids[place] for place in places]
        return Path(scratch) / f"{kind}-{digest_facts([*made, ids, *facts])}.safetensors"

    how = (settings.learning_rate, settings.batch_rows, settings.warmup_steps, settings.seed)
    part = () if names is None else (list(names),)
    start = name("weights", sets.warmup, *how)
    return Files(
        weights=start,
        moments=name("moments", sets.warmup, *how),
        v_new=name("v_new", sets.validation, start.name, *part),
        v_prior=name("v_prior", sets.anchors, start.name, settings.confidence, settings.temperature, *part),
        total=name("G", sets.pool, start.name, *part),
        fisher=name("fisher", sets.fisher, *part),
    )


def digest_facts(facts: Sequence[Any]) -> str:
    """Return the name of what some facts determine."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def prepare(work: Work, sets: Sets) -> None:
    """Make the warm-up, and v_new and v_prior of a group of parameters, those that are not there yet."""
    files = work.files
    with locked(files.v_prior.with_suffix(".lock")), model_lock:  # other processes wait, and find it made
        if not (files.weights.exists() and files.moments.exists()):
            train(work, sets)
        if not files.v_new.exists():
            steered = partial(validation_gradient, keep=work.names, loss_per=work.loss_per)
            v_new, facts = passed(work, sets, sets.validation, steered)
            write(v_new, files.v_new, facts)
        if not files.v_prior.exists():
            teacher = load(work.model)
            how = {"confidence": work.settings.confidence, "tau": work.settings.temperature, "loss_per": work.loss_per}
            preserved = partial(preservation_gradient, keep=work.names, teacher=teacher, **how)
            found, facts = passed(work, sets, sets.anchors, lambda network, rows: preserved(network, batches=rows))
            told = {"preservation_loss": found.loss, "mean_confidence": float(found.weights.mean())}
            write(found.v_prior, files.v_prior, facts | told)


def compute_fisher(work: Work, sets: Sets) -> int:
    """Make Fisher information of a group of parameters, at the base model, where it is not there yet; return the rows
    that were passed."""
    with locked(work.files.fisher.with_suffix(".lock")), model_lock:
        if work.files.fisher.exists():
            return 0
        squared = partial(fisher_information, keep=work.names, loss_per=work.loss_per)
        found, facts = passed(work, sets, sets.fisher, squared, warm=False)
        write(found, work.files.fisher, facts)
    return len(sets.fisher)


def train(work: Work, sets: Sets) -> None:
    """Train all weights of the base model on the warm-up's rows; keep them and the second moments.

    bfloat16 weights are trained, and their moments kept, in float32: in bfloat16 steps and decay are rounded away.

    Raises:
        ValueError: a parameter that cannot be covered; a loss that is not finite.
    """
    network = load(replace(work.model, dtype="float32"))
    verify_coverage(network, largest=work.runtime.block_parameters)  # now, too: a warm-up may take hours
    start = perf_counter()
    with models.multiplying(work.model):
        optimizer, losses = run_steps(network, sets.encoding.pick(sets.warmup), work)
    facts = {"seconds": perf_counter() - start, "steps": len(losses), "loss": final_loss(losses)}
    facts["beta2"] = float(optimizer.param_groups[0]["betas"][1])
    named, dtype = dict(network.named_parameters()), models.DTYPES[work.model.dtype]
    write({name: optimizer.state[weight]["exp_avg_sq"] for name, weight in named.items()}, work.files.moments, facts)
    weights = {name: weight.detach().to(dtype) for name, weight in named.items()}
    del network, optimizer, named
    gc.collect()  # optimiser and schedule hold each other
    write(weights, work.files.weights, facts | {"moved": measure_moved(weights, work.model)})


def measure_moved(weights: Mapping[str, Tensor], model: models.ModelChoice) -> float:
    """Return the share of entries that a checkpoint moved; warn where rounding to bfloat16 has undone most moves."""
    base = dict(models.language_model.__wrapped__(model).named_parameters())
    moved = sum(int((weights[name] != weight).sum()) for name, weight in base.items())
    share = moved / sum(weight.numel() for weight in base.values())
    if model.dtype == "bfloat16" and share < LEAST_MOVED:
        warnings.warn(
            f"the warm-up moved {share:.1%} of all entries, others were rounded back: at bfloat16 its checkpoint is "
            "nearly the base model; raise gradients.learning_rate or set models.dtype: float32",
            stacklevel=2,
        )
    return share


def plan_warmup(rows: int, settings: GradientsSettings) -> list[np.ndarray]:
    """Return the places of the rows that each step of the warm-up takes, of so many, as often as the steps ask for."""
    epochs = -(-settings.warmup_steps // -(-rows // settings.batch_rows))
    return plan_steps(rows, settings.batch_rows, epochs, settings.seed)


def run_steps(network: PreTrainedModel, rows: Encoding, work: Work) -> tuple[torch.optim.Optimizer, list[float]]:
    """Train on the rows as often as the steps ask for, with the order, loss and schedule of finetuning; return the
    loss of every step."""
    settings, steps = work.settings, plan_warmup(len(rows), work.settings)
    optimizer, schedule = optimise(network, len(steps), settings.learning_rate, WARMUP_FRACTION)
    losses = []
    with packed_attention(network):
        for number, places in enumerate(steps, start=1):
            loss = backward(network, rows.pick(places), work.loss_per)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the warm-up's loss is {float(loss)} at step {number} of {len(steps)}; lower "
                    "gradients.learning_rate, or check the model's weights"
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    return optimizer, losses


def passed(
    work: Work, sets: Sets, places: Sequence[int], run: Callable[[PreTrainedModel, list[Batch]], R], warm: bool = True
) -> tuple[R, dict[str, float]]:
    """Return what `run` makes of rows and the model, at the checkpoint (`warm`) or the base model, and the seconds.

    It is given the rows in batches; and again, in smaller ones, where memory was short.

    Raises:
        ValueError: a gradient is not finite, with the ids of its rows.
    """
    weights = work.files.weights if warm else None
    network, rows = load_trained(work.model, weights, work.runtime.block_parameters), sets.encoding.pick(places)
    start = perf_counter()
    try:
        with models.multiplying(work.model):
            found = fitting("pack_tokens", work.runtime.pack_tokens, lambda size: run(network, lay_out(rows, size)))
    except GradientError as error:
        ids = [sets.ids[places[example]] for example in error.examples]
        raise ValueError(
            f"{len(ids)} of {len(places)} rows have a gradient that is not finite, first ids {ids[:3]}; take them out "
            "of the raw data, lower gradients.learning_rate, or check the model's weights"
        ) from error
    return found, {"seconds": perf_counter() - start}


def lay_out(rows: Encoding, pack_tokens: int) -> list[Batch]:
    """Return the batches in which rows are passed; heads are not shared in a pack."""
    return plan_batches([rows.row(place) for place in range(len(rows))], pack_tokens)


def load(choice: models.ModelChoice) -> PreTrainedModel:
    """Return the language model, of its own: who changes or drops it touches nobody else's."""
    network = models.language_model.__wrapped__(choice)  # past the cache
    verify_packing(network)
    return network


@models.kept
def load_trained(choice: models.ModelChoice, weights: Path | None, largest: int | None) -> PreTrainedModel:
    """Return the model with a warm-up's weights, or its own, checked once to give the gradients that autograd gives."""
    network = load(choice)
    if weights is not None:
        kept = read(weights)[0]
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.copy_(kept[name])
    verify_coverage(network, largest=largest)
    return network


def describe_warmup(works: Sequence[Work]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what is known of the warm-up and of v_prior, and the seconds that they and v_new took."""
    files = works[0].files
    warmup, prior = ({**read(path, ())[1]} for path in (files.weights, files.v_prior))
    seconds = {"warmup": round(warmup.pop("seconds"), 3)}
    seconds |= {name: sum_seconds(works, name) for name in ("v_new", "v_prior")}
    del prior["seconds"]
    return {"warmup": warmup, **prior}, seconds


def sum_seconds(works: Sequence[Work], kind: str) -> float:
    """Return what a kind of file took, over all groups of parameters."""
    return round(sum(read(getattr(work.files, kind), ())[1]["seconds"] for work in works), 3)


def describe_sets(sets: Sets, kinds: Iterable[str]) -> dict[str, Any]:
    """Return how many rows each set has that some kinds of scores read, and how many two of them share."""
    names = list(dict.fromkeys(name for kind in kinds for name in DRAWN[kind]))
    members = {name: set(getattr(sets, name)) for name in names}
    pairs = [(one, "pool") for one in ("warmup", "anchors", "validation", "fisher")]
    pairs += [("warmup", "anchors"), ("validation", "warmup"), ("validation", "anchors")]
    shared = {f"{one}_{other}": len(members[one] & members[other]) for one, other in pairs if {one, other} <= {*names}}
    rows = {name: len(places) for name, places in members.items()} | {"left_out": sets.left_out}
    return {"rows": rows, "overlaps": shared, "validation_from": sets.steered_by}
