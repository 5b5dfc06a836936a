"""The published recipes, written well: what our own paths are measured against."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BATCH = 32  # pairs per forward pass


def score_pairs(
    model: nn.Module, sequences: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[list[Tensor], int]:
    """Return log p of each response's tokens, one whole sequence per pair, and the padded tokens run.

    A sequence is (before, response).

    Pairs are sorted by length, padded on the right in batches of 32, and run with logits at every position; the softmax
    is taken at response positions only.
    """
    order = sorted(range(len(sequences)), key=lambda place: sum(map(len, sequences[place])))
    scores: list[Tensor] = [torch.empty(0)] * len(sequences)
    run = 0
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            rows = [torch.tensor(sequences[place][0] + sequences[place][1]) for place in places]
            tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            run += tokens.numel()
            for row, place in enumerate(places):
                before, response = sequences[place]
                wanted = torch.tensor(response)
                picked = logits[row, len(before) - 1 : len(before) + len(response) - 1].log_softmax(-1)
                scores[place] = picked.gather(1, wanted[:, None])[:, 0]
    return scores, run
