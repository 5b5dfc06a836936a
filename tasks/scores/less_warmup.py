"""Selector `less`: adapters tuned on a few rows of the ground set, and gradients at their checkpoints."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from tamis.evaluation.costs import TRAINING, count_flops, count_rows
from tamis.language.encoding import Encoding
from tamis.scores.less import features, influence, pick_warmup
from tamis.scores.scoring_prompts import ask_perplexity
from tasks import models
from tasks.scores import tuning
from tasks.scores.settings import ScoresSettings
from tasks.scores.work import Prepared, Shard, ask_each, read_rows

LEAST_ROWS = 8

ask = ask_each(ask_perplexity)


def draw_rows(rows: int, settings: ScoresSettings) -> list[int]:
    """Return the places of the rows that are trained on, of so many."""
    return pick_warmup(rows, settings.less.warmup_share, LEAST_ROWS, settings.seed).tolist()


def prepare(work: Shard, source: Path) -> Prepared:
    """Return the work with its queries and the folder of its warm-up, trained where it is not there.

    The warm-up depends on the rows drawn for it and the settings alone: another target task finds it again.
    """
    settings, queries = work.settings, read_rows(source, "target")
    how = {"less": asdict(settings.less), "seed": settings.seed}
    described = {"queries": "target" if queries else "pool", **how}
    if not work.rows:
        return Prepared(work, described=described)
    drawn = [work.rows[place] for place in draw_rows(len(work.rows), settings)]
    folder = tuning.store_folder(work.folder, [row.id for row in drawn], how)
    work = replace(work, folder=folder, rows=[*work.rows, *queries])
    return Prepared(work, *tuning.prepare(work, drawn, settings.less, ask), described)


def load(work: Shard) -> torch.nn.Module:
    """Return the model with its adapters."""
    return tuning.adapt(work.model, work.settings.less.lora_rank, work.settings.seed)


def measure(shard: Shard, asked: Encoding) -> np.ndarray:
    """Return each row's features, per checkpoint: as a training example, then as a query."""
    found, network, names = [], load(shard), [row.id for row in shard.rows]
    how = {"dimensions": shard.settings.less.dimensions, "seed": shard.settings.seed}
    for checkpoint in tuning.read(shard.folder, models.device(shard.model))[0]:
        found += features(network, checkpoint, asked, names, **how)
    return torch.cat(found, dim=1).numpy()


def count(work: Shard, asked: Encoding) -> int:
    """Return the operations of a gradient of each row at each checkpoint."""
    size, passed = models.count_parameters(work.model), count_rows(asked, shared=False)
    return work.settings.less.epochs * count_flops(passed, size, TRAINING)


def score(work: Shard, figures: np.ndarray) -> np.ndarray:
    """Return the influence of the ground set on the target task, or on itself where there is none."""
    pool = np.array([row.split == "pool" for row in work.rows])
    asked = pool if pool.all() else ~pool
    topics = [row.topic for row, query in zip(work.rows, asked, strict=True) if query]
    rates = [checkpoint.rate for checkpoint in tuning.read(work.folder)[0]]
    each = torch.from_numpy(figures).view(len(figures), len(rates), 2, -1)
    return influence(each[pool, :, 0].unbind(1), each[asked, :, 1].unbind(1), topics, rates).numpy()
