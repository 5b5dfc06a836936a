"""How surely a model gives the answers of rows: losses from one scoring of all that is asked."""

import numpy as np
from torch import nn

from tamis.language.encoding import Encoding
from tamis.language.packing import NonFiniteError, score_rows
from tasks.scores.work import Shard
from tasks.scoring_model import scoring_model


def measure_answers(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return the losses of each row's answers, nats per token, as the language model gives them."""
    return measure_losses(shard, scoring_model(shard.model), asked)


def measure_losses(shard: Shard, model: nn.Module, asked: Encoding) -> np.ndarray:
    """Return the mean negative log-likelihoods of each row's answers, row x what is asked of it, nats per token.

    Raises:
        ValueError: one is not finite, naming the row.
    """
    each = len(asked) // len(shard.rows)  # figures per row
    try:
        scored = score_rows(model, asked, shard.runtime.pack_tokens)
    except NonFiniteError as error:
        raise ValueError(
            f"the {shard.selector} figures of row {shard.rows[error.target // each].id} are not finite; "
            "set models.dtype: float32, or check the model's weights"
        ) from error
    return -np.array([float(row.double().mean()) for row in scored]).reshape(-1, each)
