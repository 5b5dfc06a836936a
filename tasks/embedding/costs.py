"""What encoding texts costs in floating-point operations, counted from their tokens."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from tamis.evaluation.costs import Passed, count_flops
from tamis.examples.conversations import Conversation
from tasks import models
from tasks.conversations import read_conversation

BLOCK = 1024  # rows whose texts are tokenised at once


def count_encoding(
    rows: pa.Table, model: models.ModelChoice, max_tokens: int, tell: Callable[[Conversation], Sequence[str]]
) -> int:
    """Return the operations of encoding the texts of some rows, whether they were known or not; padding is no token.

    Args:
        rows: of the examples.
        model: the text encoder.
        max_tokens: longest text encoded; longer ones are cut.
        tell: the texts of a row.
    """
    total, tokenizer = 0, models.tokenizer(model)
    for first in range(0, rows.num_rows, BLOCK):
        texts = [text for row in rows.slice(first, BLOCK).to_pylist() for text in tell(read_conversation(row))]
        total += sum(map(len, tokenizer(texts, truncation=True, max_length=max_tokens).input_ids))
    return count_flops(Passed(total), models.count_parameters(model, encoder=True))
