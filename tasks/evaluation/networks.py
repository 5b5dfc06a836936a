"""A model that is evaluated, loaded and asked: losses of reference answers, and answers of its own.

What is computed here is kept in stores by `CODE`, the digest of this module and of those that it stands on.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import peft
import torch
from transformers import GenerationConfig, PreTrainedModel

from tamis.language import packing
from tamis.language.encoding import Encoding
from tamis.language.packing import NonFiniteError, score_rows
from tamis.memory import fitting
from tasks import models
from tasks.artifacts.tables import digest_code
from tasks.evaluation.inputs import EvaluationError, Run
from tasks.masks import sparse_deltas
from tasks.model_files import refuse_other_base

PACK_TOKENS = 2048  # tokens per forward pass
CODE = digest_code(packing, sparse_deltas, sys.modules[__name__])  # what losses and answers depend on, as imported


@contextmanager
def loaded(run: Run, base: PreTrainedModel, model: models.ModelChoice) -> Iterator[PreTrainedModel]:
    """Yield a run's model in eval mode: the base, the base with adapters or a delta, or weights of its own."""
    if run.folder is None:
        yield base
        return
    refuse_other_base(run.folder, model.name, model.revision)
    method, _ = sparse_deltas.identify(run.folder)
    if method == "lora":
        sparse_deltas.read_adapter(run.folder)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's use of transformers
            network = peft.PeftModel.from_pretrained(base, run.folder).eval()
        yield network.get_base_model()
        network.unload()
    elif method == "masked":
        with sparse_deltas.patched(base, run.folder, model) as network:
            yield network
    else:
        yield models.language_model.__wrapped__(replace(model, name=str(run.folder), revision=None))


def score(network: PreTrainedModel, encoding: Encoding, rows: Sequence[dict], run: Run) -> list[float]:
    """Return the mean negative log-likelihood of each row's answers, nats per token."""
    try:
        found = score_rows(network, encoding, PACK_TOKENS)
    except NonFiniteError as error:
        row = rows[error.target]
        raise EvaluationError(
            f"run {run.label}: the loss of example {row['id']} (row {row['row']}) is not finite; "
            "check the base model's weights, lower finetuning.learning_rate or set models.dtype: float32"
        ) from error
    return [-float(row.double().mean()) for row in found]


def generate(
    network: PreTrainedModel, tokenizer: Any, questions: Sequence[np.ndarray], ends: Sequence[int], new_tokens: int
) -> list[tuple[str, bool]]:
    """Return the greedy answers to some questions, without special tokens and outer blanks.

    With each: whether it was cut, so that none of the tokens that end a turn (`ends`) is among its own.

    What all questions begin with is run once; they are padded after it, before the rest of each.
    """
    network.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    ids = fitting("questions per batch", len(questions), partial(_continue_parts, network, questions, tokenizer))
    texts = (text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True))
    return list(zip(texts, (not set(row) & set(ends) for row in ids.tolist()), strict=True))


def count_shared(questions: Sequence[np.ndarray]) -> int:
    """Return how many first tokens all questions share, one less than the shortest has at most.

    >>> count_shared([np.array([1, 2, 3]), np.array([1, 2, 4])])
    2
    """
    length = min(map(len, questions)) - 1
    same = np.all([question[:length] == questions[0][:length] for question in questions], axis=0)
    return length if same.all() else int(np.argmin(same))


def _continue_parts(
    network: PreTrainedModel, questions: Sequence[np.ndarray], tokenizer: Any, size: int
) -> torch.Tensor:
    """Return the tokens that follow every question, of at most so many at once, padded at their end."""
    pad = tokenizer.pad_token_id
    parts = [_continue(network, questions[start : start + size], pad) for start in range(0, len(questions), size)]
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts])


@torch.inference_mode()
def _continue(network: PreTrainedModel, questions: Sequence[np.ndarray], pad: int) -> torch.Tensor:
    """Return the tokens that follow every question."""
    shared = count_shared(questions)
    width = max(map(len, questions))
    ids = torch.full((len(questions), width), pad)
    mask = torch.ones((len(questions), width), dtype=torch.long)
    for row, question in enumerate(questions):
        own = torch.from_numpy(question.astype(np.int64))
        ids[row, :shared], ids[row, width - len(own) + shared :] = own[:shared], own[shared:]
        mask[row, shared : width - len(own) + shared] = 0
    kept = {}
    if shared:
        start = ids[:1, :shared].to(network.device)
        kept["cache"] = network(input_ids=start, use_cache=True).cache
        kept["cache"].batch_repeat_interleave(len(questions))
    found = network.generate(input_ids=ids.to(network.device), attention_mask=mask.to(network.device), **kept)
    return found[:, width:].cpu()
