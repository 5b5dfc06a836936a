"""Which pairs are scored besides those of a kernel, and all that is asked as one table: each pair once, that fits."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.utility.pairs import Sets, pair_all, pairs_of_help, unite
from tasks.artifacts import schemas
from tasks.utility.pool import Pool
from tasks.utility.settings import UtilitySettings

NOTHING = ""  # the demo id of a target that is scored alone


def draw_check(ground: np.ndarray, settings: UtilitySettings, kernel: str) -> np.ndarray:
    """Return the pairs of a few drawn rows of the pool with all of them; none where no pair is left out of a kernel."""
    count = 0 if kernel in ("exact", "probes", "none") else min(settings.check_targets, len(ground))
    drawn = np.random.default_rng(settings.seed).choice(ground, count, replace=False)
    return unite([pair_all(drawn, ground)])


def draw_help(sets: Sets, pairs: np.ndarray, settings: UtilitySettings, kernel: str) -> np.ndarray:
    """Return the pairs of a few drawn rows with every demo but themselves: of the target task, or else of the pool.

    Demos are those of all sets; of a kernel of landmarks those alone that its pairs have.
    """
    demos = np.unique(pairs[:, 1]) if kernel == "landmarks" else np.unique(np.concatenate([*sets.values()]))
    helped = sets["task"] if len(sets["task"]) else sets["ground"]
    return pairs_of_help(helped, demos, settings.help_targets, settings.seed)


def ask(
    pool: Pool, wanted_for: Mapping[str, np.ndarray], max_tokens: int, targets: np.ndarray | None = None
) -> tuple[pa.Table, pa.Table]:
    """Return what is to be scored, each once, and the pairs that do not fit in the context.

    Args:
        pool: the examples.
        wanted_for: pairs by purpose.
        max_tokens: of the context.
        targets: that are scored alone; None: all.

    Returns:
        By id and by place: each target alone first (demo -1), then the pairs, with a column for each purpose that a
        pair may be wanted for. And a table SKIPPED.

    Raises:
        ValueError: a target that does not fit even alone.
    """
    pairs, skipped = split_by_length(pool, unite(wanted_for.values()), max_tokens)
    targets = pool.targets if targets is None else targets
    alone = np.column_stack([targets, np.full(len(targets), -1)])
    target, demo = (pa.array(column.astype(np.int32)) for column in np.concatenate([alone, pairs]).T)
    names = pa.array([*pool.ids, NOTHING])
    shown = pc.if_else(pc.less(demo, 0), len(pool.ids), demo)
    columns = {"target_id": names.take(target), "demo_id": names.take(shown), "target": target, "demo": demo}
    for purpose, wanted in wanted_for.items():
        member = np.isin(*(places @ [len(pool.ids), 1] for places in (pairs, wanted)))
        columns[purpose] = pa.array(np.concatenate([np.zeros(len(alone), bool), member]))
    return pa.table(columns), skipped


def split_by_length(pool: Pool, pairs: np.ndarray, max_tokens: int) -> tuple[np.ndarray, pa.Table]:
    """Return the pairs that fit in the context and a table of those that do not.

    Raises:
        ValueError: a target that does not fit even alone.
    """
    longest, own = pool.encoding.longest, pool.shown.longest - pool.shown.head_tokens
    long = [place for place in pool.targets.tolist() if longest[place] > max_tokens]
    if long:
        raise ValueError(
            f"{len(long)} of {len(pool.targets)} examples are longer than models.max_tokens = {max_tokens}, "
            f"first ids {[pool.ids[place] for place in long[:3]]}; raise it or take these rows out of the raw data"
        )
    heads = pool.heads
    before = [len(pool.prefix(heads[target], demo)) for target, demo in pairs.tolist()]
    whole = np.array(before, np.int64) + own[pairs[:, 0]] <= max_tokens
    reason = f"demo and target together are longer than {max_tokens} tokens"
    rows = [[pool.ids[target], pool.ids[demo], reason] for target, demo in pairs[~whole]]
    return pairs[whole], pa.table(list(zip(*rows, strict=True)) or [[], [], []], schema=schemas.SKIPPED)
