"""What scoring pairs costs: seconds as they were kept with the scores, operations as counted from tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.evaluation.costs import Passed, count_flops
from tasks import models
from tasks.artifacts import stores
from tasks.utility.pool import Pool

NEEDED = ("kernel", "tried", "help")  # purposes of pairs that a choice needs; the check is for people


def measure_cost(folder: Path, asked: pa.Table, pool: Pool, model: models.ModelChoice) -> tuple[float, int]:
    """Return the seconds that all but the pairs of the check took when they were scored, in this run or an earlier,
    and their floating-point operations."""
    needed = pc.less(asked["demo"], 0)
    for purpose in NEEDED:
        needed = pc.or_(needed, asked[purpose])
    wanted = asked.filter(needed)
    passed = count_pairs(pool, np.column_stack([np.asarray(wanted["target"]), np.asarray(wanted["demo"])]))
    return round(stores.cost(folder, wanted), 3), count_flops(passed, models.count_parameters(model))


def count_pairs(pool: Pool, pairs: np.ndarray) -> Passed:
    """Return what is passed where all pairs of a demo, after the same head, are scored after one copy of it.

    Args:
        pool: the examples.
        pairs: int, pair x (target, demo): places among them; demo -1: nothing shown.
    """
    targets, demos = pairs[:, 0], pairs[:, 1]
    own = np.where(demos < 0, pool.encoding.own_tokens[targets], pool.shown.own_tokens[targets])
    prefixes = np.unique(np.column_stack([pool.heads[targets], demos]), axis=0).tolist()
    shared = sum(len(pool.prefix(head, demo)) for head, demo in prefixes)
    return Passed(int(own.sum()) + shared, int(pool.encoding.answer_tokens[targets].sum()))
