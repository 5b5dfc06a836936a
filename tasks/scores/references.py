"""Selectors that score rows beside reference rows: `ica`, `tov` and `rds`.

Reference rows are those of the target task or, where there is none, those that validate. What is measured with some of
them (the demos of `ica`, the tuning of `tov`) is kept apart for each such choice; the vectors of `rds` are not.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch.nn.utils import vector_to_parameters
from transformers import PreTrainedModel

from tamis.evaluation.costs import count_flops, count_rows
from tamis.language.chat_templates import TemplateError
from tamis.language.encoding import Encoding
from tamis.scores.less import trained
from tamis.scores.references import (
    ask_ica,
    draw_demos,
    mean_states,
    order_round_robin,
    score_ica,
    score_places,
    score_tov,
)
from tamis.scores.scoring_prompts import ask_perplexity
from tasks import models
from tasks.artifacts import stores
from tasks.artifacts.row_sets import read_references
from tasks.scores import tuning
from tasks.scores.answers import measure_losses
from tasks.scores.work import Prepared, Row, Shard, ask_each, count_forward, list_rows
from tasks.scoring_model import scoring_model
from tasks.tokens import open_template

ask_alone = ask_each(ask_perplexity)


def describe(rows: list[Row]) -> dict[str, str | int]:
    """Return what `scores.json` says of the reference rows."""
    return {"reference": rows[0].split, "reference_rows": len(rows)}


def prepare_ica(work: Shard, source: Path) -> Prepared:
    """Return the work with its demos, in a folder for these demos."""
    rows = list_rows(read_references(source, work.selector))
    demos = [rows[place] for place in draw_demos(len(rows), work.settings.ica.demos, work.settings.seed)]
    ids = [row.id for row in demos]
    folder = stores.store_folder(work.folder.parent, json.dumps([work.folder.name, ids]))
    return Prepared(replace(work, folder=folder, reference=demos), described=describe(rows) | {"demos": ids})


def ask_after_demos(shard: Shard) -> Encoding:
    """Return each row alone and after the demos.

    Raises:
        TemplateError: naming the row by its id, where one is at fault.
    """
    conversations, demos = ([row.conversation for row in rows] for rows in (shard.rows, shard.reference))
    try:
        return ask_ica(open_template(shard.model), conversations, demos)
    except TemplateError as fault:
        if fault.place is None:
            raise
        raise TemplateError(f"row {shard.rows[fault.place].id} of these: {fault}", fault.place) from fault


def score_after_demos(work: Shard, losses: np.ndarray) -> np.ndarray:
    """Return by how much the demos lower each row's loss."""
    return score_ica(losses[:, 0], losses[:, 1])


def prepare_tov(work: Shard, source: Path) -> Prepared:
    """Return the work in the folder of its tuning on the reference rows, made where it is not there."""
    rows, settings = list_rows(read_references(source, work.selector)), work.settings
    how = {"tov": asdict(settings.tov), "seed": settings.seed}
    described = describe(rows) | how
    if not work.rows:
        return Prepared(work, described=described)
    work = replace(work, folder=tuning.store_folder(work.folder, [row.id for row in rows], how))
    return Prepared(work, *tuning.prepare(work, rows, settings.tov, ask_alone), described)


def load_tuned(work: Shard) -> PreTrainedModel:
    """Return the model with the adapters as they are after the tuning, in place of its layers."""
    network = tuning.adapt(work.model, work.settings.tov.lora_rank, work.settings.seed)
    last = tuning.read(work.folder, models.device(work.model))[0][-1]
    vector_to_parameters(last.weights, trained(network))
    return network


def measure_moves(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return each row's loss before the tuning and after it, nats per token."""
    network = load_tuned(shard)
    with network.disable_adapter():
        before = measure_losses(shard, network.get_base_model(), asked)
    return np.column_stack([before, measure_losses(shard, network.get_base_model(), asked)])


def score_moves(work: Shard, losses: np.ndarray) -> np.ndarray:
    """Return how far each row's loss moves."""
    return score_tov(losses[:, 0], losses[:, 1])


def count_twice(work: Shard, asked: Encoding) -> int:
    """Return the operations of a pass before the tuning and one after it."""
    return 2 * count_forward(work, asked)


def prepare_rds(work: Shard, source: Path) -> Prepared:
    """Return the work with the reference rows after the others."""
    rows = list_rows(read_references(source, work.selector))
    return Prepared(replace(work, rows=[*work.rows, *rows], reference=rows), described=describe(rows))


def measure_states(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return each row's mean hidden state.

    Raises:
        ValueError: one is not finite, naming the row.
    """
    found = mean_states(scoring_model(shard.model), asked, shard.runtime.pack_tokens)
    wrong = [row.id for row, vector in zip(shard.rows, found, strict=True) if not np.isfinite(vector).all()]
    if wrong:
        raise ValueError(
            f"the {shard.selector} figures of {len(wrong)} of {len(found)} rows are not finite, first ids {wrong[:3]}; "
            "set models.dtype: float32, or check the model's weights"
        )
    return found


def count_headless(work: Shard, asked: Encoding) -> int:
    """Return the operations of a pass whose hidden states alone are wanted."""
    return count_flops(replace(count_rows(asked), predicted=0), models.count_parameters(work.model))


def score_round_robin(work: Shard, vectors: np.ndarray) -> np.ndarray:
    """Return the order in which the reference rows name those of the ground set, as scores."""
    ground = len(work.rows) - len(work.reference)
    if not ground:
        return np.empty(0)
    return score_places(order_round_robin(vectors[ground:] @ vectors[:ground].T))
