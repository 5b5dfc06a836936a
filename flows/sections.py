"""The sections of params.yaml, a frozen dataclass each; flows/params.py fills them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Text = str | None
Number = int | float
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Version:
    """A data version."""

    raw: str  # folder of its raw files
    previous: str  # the version that it continues from; `base`: none, the model as it is


@dataclass(frozen=True)
class Models:
    """The models and how they are run."""

    language: str  # package:NAME, a local folder, or a hub name
    language_revision: Text  # commit of a hub name
    embedding: str  # likewise, of the text encoder
    embedding_revision: Text  # commit of a hub name
    device: Literal["auto", "cpu", "cuda"]  # auto takes CUDA where there is one
    dtype: Literal["float32", "bfloat16", "float16"]  # of the weights
    max_tokens: int  # longest sequence scored or trained


@dataclass(frozen=True)
class Examples:
    """How raw rows become examples."""

    fields: Mapping[str, str]  # ours -> theirs; `messages` stands for prompt and response
    on_bad_row: Literal["stop", "reject"]  # name the rows and stop, or write them to rejects.parquet
    held_out_in: int  # one of so many prompts is held out
    distinct: bool  # false leaves duplicates in, each under an id of its own
    ground_set: Literal["new", "all"]  # what may be chosen: new and edited rows, or those of the version before, too
    target: Mapping[str, str | int | None] | None  # the target task's rows, by topic or path
    general: Text  # file or folder inside the raw folder: held-out rows of what must not be forgotten
    seed: int  # of the split and of the samples
    pool_rows: int | None  # rows sampled from the pool; null is all
    held_out_rows: int | None  # rows sampled from the held-out rows; null is all


@dataclass(frozen=True)
class Embedding:
    """How texts are encoded."""

    batch_rows: int  # texts per forward pass
    max_tokens: int  # longest text encoded


@dataclass(frozen=True)
class Utility:
    """How pairs are scored."""

    template: Literal["chat", "delift"]  # earlier turns, or the published wording
    distance: Literal["probability", "log_likelihood"]  # root mean square of 1 - p, or mean log p
    kernel: Literal["exact", "neighbours", "landmarks"]  # all pairs, each target's nearest demos, or a few demos
    neighbours: int  # demos per target, itself not counted
    landmarks: int  # demos that are scored and may be chosen
    landmark_targets: int | None  # targets that landmarks are scored on; null is all
    check_targets: int  # targets scored with every demo, to know the kernel's error
    seed: int  # of the draw of these targets
    shard_pairs: int  # pairs per part of the store
    pack_tokens: int  # tokens per forward pass


@dataclass(frozen=True)
class Scores:
    """How rows are scored one by one, for the selectors that sort by a score."""

    shard_rows: int  # rows per part of the store
    pack_tokens: int  # tokens per forward pass
    less_dimensions: int  # of a projected gradient
    less_warmup_share: Number  # of the ground set
    less_epochs: int  # of the warm-up
    less_batch_rows: int  # rows per optimiser step of it
    less_learning_rate: Number  # its peak
    less_lora_rank: int  # width of its adapters
    seed: int  # of the warm-up and of the projection


@dataclass(frozen=True)
class Gradients:
    """How rows and parameters are scored by gradients."""

    order: Literal["first", "second"]  # without or with the curvature term
    confidence: Literal["max_prob", "entropy_inv", "uniform"]  # how anchors weigh
    tau: Number  # temperature of the distillation
    lambda_new: Number  # weight of the target task in the direction
    lambda_prior: Number  # weight of what is preserved
    eta: Number  # learning rate
    curvature: Literal["raw", "corrected"]  # AdamW's second moments, with or without their bias
    warmup_share: Number  # of the pool's rows
    anchor_share: Number  # of the pool's rows
    validation_share: Number  # of the pool's prompts, where there is no target task
    batch_rows: int  # rows per optimiser step of the warm-up
    shard_rows: int  # rows per part of the store
    pack_tokens: int  # tokens per forward-backward pass
    block_parameters: int | None  # parameters whose sums are in memory at once; null is all
    fisher_rows: int  # rows that Fisher information is averaged over
    seed: int  # of the draws and of the warm-up's order


@dataclass(frozen=True)
class Selection:
    """How rows, and the parameters that they train, are chosen."""

    rows_by: Literal[
        "delift", "random", "longest", "embedding", "perplexity", "ifd", "selectit", "deft_ucs", "less", "dualsft"
    ]  # the selector
    objective: Literal["conditional_gain", "facility_location", "mutual_information"]  # of delift and embedding
    information: Literal["saturated", "additive", "queries"]  # the form of mutual information
    eta: Number  # how much the target task weighs in it
    nu: Number  # how much what was learnt weighs in conditional gain
    scaling: Literal["relu", "minmax", "none"]  # of utilities, before the objective
    budget: Mapping[str, Number]  # one of count, fraction, response_tokens
    caps: Counts  # topic -> at most so many rows; "*" is every topic not named
    floors: Counts  # topic -> at least so many rows
    optimiser: Literal["lazy", "stochastic", "partition"]  # of the objective
    epsilon: Number  # of the stochastic optimiser: smaller looks at more rows
    partitions: int  # of the partition optimiser
    mask_by: Literal["none", "dualsft", "fisher", "magnitude", "random"]  # what scores parameters
    mask_budget: Mapping[str, Number]  # one of count, fraction: of the model's parameters
    mask_signed: bool  # the largest score, or the largest absolute score
    mask_layer_share: Number  # of the mask, divided equally over layers
    mask_module_share: Number  # of the mask, divided equally over module groups
    seed: int  # of selectors random and deft_ucs, of optimisers stochastic and partition, of mask_by random


@dataclass(frozen=True)
class Finetuning:
    """How every arm is trained."""

    method: Literal["lora", "full", "masked"]  # adapters, all weights, or those inside the mask
    arms: Mapping[str, list[int]]  # arm -> seeds
    replay: Literal["none", "subset", "all"]  # rows of earlier versions that every arm trains on, too
    epochs: int  # passes over the arm's rows
    learning_rate: Number  # peak of a linear schedule with warm-up
    warmup_fraction: Number  # of the optimiser steps
    batch_rows: int  # examples per optimiser step
    lora_rank: int  # width of the adapters
    lora_alpha: int  # their scale times their rank
    save_steps: int  # optimiser steps between checkpoints
    whole_model: bool  # write `chosen` as a whole model folder, too
    rescore_every: int | None  # optimiser steps between two cuts of the mask; null keeps the first


@dataclass(frozen=True)
class Evaluation:
    """How arms are compared."""

    new_tokens: int  # tokens generated per held-out row
    demos: int  # demonstrations per held-out row of the in-context learner
    task_metric: Literal["none", "exact_match", "pass_at_1"]  # right or wrong, beside the loss
    bootstrap: int  # resamples of the held-out rows
    confidence: Number  # of the intervals
    seed: int  # of the resamples


@dataclass(frozen=True)
class Audit:
    """Which promises are checked."""

    held_out_share: Number  # topics whose held-out share is lower are named


@dataclass(frozen=True)
class Params:
    """params.yaml, checked, with the profile in force."""

    profile: str  # its name
    versions: Mapping[str, Version]  # oldest first
    models: Models
    examples: Examples
    embedding: Embedding
    utility: Utility
    scores: Scores
    gradients: Gradients
    selection: Selection
    finetuning: Finetuning
    evaluation: Evaluation
    audit: Audit
