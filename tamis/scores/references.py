"""Scores of rows beside reference rows: rows of the target task, or of the pool that were set apart to validate.

Symbols: x a prompt, y its response; L(y|x) as in `baselines`, nats per token; D some reference rows that are shown as
earlier turns before x; a *query* is a reference row that the rows of the pool are compared with.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import nn

from tamis.examples.conversations import Conversation
from tamis.language.chat_templates import Template
from tamis.language.encoding import Encoding, join_rows, put_before
from tamis.language.packing import Group, bucket_spans, packed_attention, plan_packs, ready
from tamis.language.prefixes import check_demos, encode_prefix
from tamis.language.rendering import encode_conversations, encode_shown
from tamis.memory import fitting


def draw_demos(rows: int, count: int, seed: int) -> Int64[np.ndarray, " demo"]:
    """Return the places of reference rows that are shown, in the order in which they stand: all where there are fewer.

    >>> len(draw_demos(32, 3, seed=0)), sorted(draw_demos(2, 3, seed=0).tolist())
    (3, [0, 1])
    """
    return np.random.default_rng(seed).permutation(rows)[:count].astype(np.int64)


def ask_ica(template: Template, conversations: Sequence[Conversation], demos: Sequence[Conversation]) -> Encoding:
    """Return two rows per conversation: its answers where they stand, and after the demos.

    The demos take the place of the head, which they begin with; all conversations with one head share it.

    Args:
        template: how they are written.
        conversations: the rows.
        demos: what is shown before each, the last one nearest to it.

    Raises:
        TemplateError: conversations cannot be written, or not after demos.
    """
    plain = encode_conversations(template, conversations)
    check_demos(template, conversations, plain)
    tails = encode_shown(template, conversations, plain)
    rows = [plain.row(place) for place in range(len(plain)) for _ in range(2)]
    heads = np.repeat(plain.head_tokens, 2)
    for _, places in plain.by_head(range(len(plain))):
        prefix = encode_prefix(template, demos, conversations[places[0]])
        for place in places:
            rows[2 * place + 1] = [put_before(prefix, one) for one in tails.row(place, headless=True)]
            heads[2 * place + 1] = len(prefix)
    return join_rows(rows, heads.tolist())


def score_ica(alone: Float[np.ndarray, " row"], shown: Float[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Return by how much the demonstrations lower the loss of each row: the in-context approximation.

    score_i = L(y_i|x_i) - L(y_i|D, x_i)

    Reading D stands for training on it, so that the score stands for the loss that a model which knows the target has
    less on the row than this one: what is left to learn on the way to the target.

    **Source**: arXiv 2510.14459 (in-context approximation). Differs: D is k rows drawn once and the same for every row,
    so that they are run once per head; scores are of the base model, and choose rows. There D is curated, and scores
    are made anew while training and weigh the rows of each step.

    Args:
        alone: L(y|x), nats per token.
        shown: L(y|D, x), nats per token.

    >>> score_ica(np.array([2.0, 1.0]), np.array([1.5, 1.25])).tolist()
    [0.5, -0.25]
    """
    return alone.astype(np.float64) - shown


def score_tov(before: Float[np.ndarray, " row"], after: Float[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Return how far the loss of each row moves, up or down, when the model is tuned on the reference rows.

    score_i = | L(y_i|x_i) before - L(y_i|x_i) after |

    **Source**: Jain, Montanari and Sasoglu 2025, arXiv 2510.00386 (train on validation): rows whose predictions change
    most. Differs: the change of a row's mean loss; adapters are tuned, from the base model.

    Args:
        before: of the base model, nats per token.
        after: of the tuned one.

    Returns:
        At least 0; 0 where tuning changes nothing.

    >>> score_tov(np.array([2.0, 1.0]), np.array([1.5, 1.25])).tolist()
    [0.5, 0.25]
    """
    return np.abs(before.astype(np.float64) - after)


def mean_states(model: nn.Module, rows: Encoding, pack_tokens: int) -> Float32[np.ndarray, "row width"]:
    """Return the mean of each row's last hidden states, weighted by their position, at length 1.

    v_i = sum_t t * h_it / sum_t t,  h_it the last hidden state (after the final norm) of token t = 1, 2, ... of row i,
    whose prompt and response count alike; a row of several sequences is its last one

    A later state has seen more of the row, and weighs more.

    **Source**: RDS+, Ivison et al. 2025, arXiv 2503.01807 (weights as in SGPT, arXiv 2202.08904), code
    hamishivi/automated-instruction-selection. Differs: no padding enters the mean, as none is run.

    Args:
        model: a causal language model in eval mode, with transformers' attention interface.
        rows: what is read, up to the last answer of each.
        pack_tokens: tokens per forward pass, fewer where memory is short; a single longer row is still run whole.

    Cost: a forward pass over all rows, without the head.
    """
    return fitting("pack_tokens", pack_tokens, partial(_mean_states, model, rows))


def _mean_states(model: nn.Module, rows: Encoding, pack_tokens: int) -> Float32[np.ndarray, "row width"]:
    found = np.empty((len(rows), model.get_input_embeddings().embedding_dim), np.float32)
    whole = Group([], [rows.row(place)[-1:] for place in range(len(rows))])
    device = next(model.parameters()).device
    with packed_attention(model), torch.inference_mode():
        for pack in plan_packs([whole], pack_tokens):
            states = model.base_model(
                input_ids=torch.from_numpy(pack.tokens).long().to(device)[None],
                position_ids=torch.from_numpy(pack.positions).long().to(device)[None],
                use_cache=False,
                pack=[ready(bucket, model) for bucket in bucket_spans(pack.spans, device)],
            ).last_hidden_state[0]
            for (_, place, _), span in zip(pack.members, pack.spans, strict=True):
                own = states[span.start : span.start + span.length].double()
                weight = torch.arange(1, span.length + 1, dtype=torch.float64, device=device)
                mean = weight @ own / weight.sum()
                found[place] = (mean / torch.linalg.vector_norm(mean)).cpu().numpy()
    return found


def order_round_robin(similar: Float[np.ndarray, "query row"]) -> Int64[np.ndarray, " row"]:
    """Return all rows in the order in which the queries name them, each its most similar one, then its next, in turn.

    A row counts where it is named first; a query whose next row was named already loses that turn. So a row's place
    follows from the best rank that any query gives it, equal ones by query. Every prefix holds about as many rows of
    each query, whatever the scale of its similarities.

    **Source**: RDS+, Ivison et al. 2025, arXiv 2503.01807, section 3; code hamishivi/automated-instruction-selection
    (get_top_influences.py, selection method `max`).

    Args:
        similar: of each query and each row, larger is nearer, finite; equal ones are named by row.

    Raises:
        ValueError: no query, or a similarity that is not finite.

    Cost: queries x rows x log rows.

    >>> order_round_robin(np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6]])).tolist()
    [0, 1, 2]
    """
    if not len(similar) or not np.isfinite(similar).all():
        wrong = int((~np.isfinite(similar)).sum())
        raise ValueError(
            f"{len(similar)} queries with {wrong} similarities that are not finite give no order; give at least 1 "
            "query, and finite similarities"
        )
    count = similar.shape[1]
    best, asked = np.full(count, count), np.zeros(count, np.int64)
    for query, row in enumerate(similar):
        rank = np.empty(count, np.int64)
        rank[np.argsort(-row, kind="stable")] = np.arange(count)
        asked = np.where(rank < best, query, asked)
        best = np.minimum(rank, best)
    return np.lexsort((asked, best)).astype(np.int64)


def score_places(order: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Return an order as scores, the first row's the largest: score_i = 1 - place_i / n, in (0, 1], no two alike.

    >>> score_places(np.array([1, 0])).tolist()
    [0.5, 1.0]
    """
    scores = np.empty(len(order))
    scores[order] = 1 - np.arange(len(order)) / max(1, len(order))
    return scores
