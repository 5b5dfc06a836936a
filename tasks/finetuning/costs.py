"""What training costs in floating-point operations, counted from the tokens of every step."""

from collections.abc import Sequence

import numpy as np

from tamis.evaluation.costs import FORWARD, TRAINING, Passed, count_rows, count_steps, sum_flops
from tamis.gradients.per_example import group_parameters
from tamis.language.encoding import Encoding
from tamis.training.steps import plan_epochs
from tasks import models
from tasks.finetuning.mask_updates import Scoring
from tasks.finetuning.trainer import Recipe


def count_training(
    encoding: Encoding, rows: np.ndarray, epochs: Sequence[np.ndarray], seed: int, recipe: Recipe
) -> int:
    """Return the operations of training on some rows, whatever the method: 6 per parameter and token, and those of
    every new cut of a mask.

    Args:
        encoding: of the pool.
        rows: places in it.
        epochs: of these, what each epoch takes: places in `rows`.
        seed: of the order of rows.
        recipe: how they are trained on.
    """
    own = encoding.pick(rows)
    steps = plan_epochs(epochs, recipe.settings.batch_rows, seed)
    parts = [(count_steps(own, steps), TRAINING)]
    scoring = recipe.restriction.scoring if recipe.restriction else None
    if scoring:
        parts += count_cuts(own, scoring) * ((len(steps) - 1) // scoring.every)
    return sum_flops(parts, models.count_parameters(recipe.model))


def count_cuts(own: Encoding, scoring: Scoring) -> list[tuple[Passed, int]]:
    """Return what is passed for one new cut: the arm's rows, those that validate, and the anchors of student and
    teacher, a group of parameters after the other."""
    encoding, sets = scoring.sets.encoding, scoring.sets
    validation, anchors = (encoding.pick(places) for places in (sets.validation, sets.anchors))
    each = [(count_rows(rows, shared=False), TRAINING) for rows in (own, validation, anchors)]
    largest = scoring.runtime.block_parameters
    groups = 1 if largest is None else len(group_parameters(models.skeleton(scoring.model), largest))
    return [*each, (count_rows(anchors, shared=False), FORWARD)] * groups
