"""At which budget each row of a version is chosen: its choice made again, apart, with budgets from a tenth to all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.params import Params
from flows.stage import sources
from flows.trials import attempt

SHARES = tuple(step / 10 for step in range(1, 11))  # of the pool


@dataclass(frozen=True)
class Tried:
    """A choice at another budget."""

    share: float  # of the pool's rows
    rows: int
    objective: float | None  # that it reached; None: the selector has none
    objective_share: float | None  # of what all rows reach
    ids: frozenset[str]


def try_budgets(version: str, values: Params, shares: Sequence[float] = SHARES) -> Iterator[Tried]:
    """Yield a version's choice at other budgets, each made once and kept among the trials; without pilot and mask.

    Args:
        version: the data version; what its choice reads is up to date.
        values: the parameters.
        shares: of the pool's rows.

    Raises:
        ValueError: what is asked for cannot be chosen.
    """
    import json

    from tasks.artifacts.tables import read_table

    loaded = sources([f"selection@{version}"])
    for share in shares:
        asked = replace(
            values,
            selection=replace(values.selection, budget={"fraction": share}, floors={}, pilot=None),
            mask=replace(values.mask, selector="none"),
        )
        made = attempt("selection", version, asked, {}, loaded).folder
        found: dict[str, Any] = json.loads((made / "selection.json").read_text(encoding="utf-8"))
        table = read_table(made / "subset.parquet", columns=["id", "chosen"])
        ids = [id for id, chosen in zip(*(table[name].to_pylist() for name in ("id", "chosen")), strict=True) if chosen]
        yield Tried(share, len(ids), found["objective"], found["objective_share"], frozenset(ids))


def find_entries(tried: Sequence[Tried]) -> dict[str, float]:
    """Return for each row the least share that takes it.

    >>> find_entries([Tried(0.1, 1, None, None, frozenset("a")), Tried(1.0, 2, None, None, frozenset("ab"))])
    {'a': 0.1, 'b': 1.0}
    """
    return {id: one.share for one in sorted(tried, key=lambda one: -one.share) for id in sorted(one.ids)}
