"""A model that is evaluated, loaded and asked: losses of reference answers, and answers of its own.

What is computed here is kept in stores by `CODE`, the digest of this module and of those that it stands on.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import peft
import torch
from transformers import GenerationConfig, PreTrainedModel

from tamis.language import packing, templates
from tamis.language.packing import Group, NonFiniteError, score_responses
from tasks import models
from tasks.artifacts.tables import digest_code
from tasks.evaluation.inputs import EvaluationError, Run
from tasks.masks import sparse_deltas

PACK_TOKENS = 2048  # tokens per forward pass
CODE = digest_code(packing, sparse_deltas, sys.modules[__name__])  # what losses and answers depend on, as imported


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
