"""A version's choice made again, apart from its artifacts: with other budgets, or by another selector.

The other settings of the section `selection` are those that the version's own choice records, whatever params.yaml says
since; all other sections are params.yaml's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flows import params
from flows.compare import find_quality
from flows.params import Params, check_section
from flows.stage import sources
from flows.stage_calls import SCORING, folder
from flows.trials import attempt, find, read_choice
from tasks.selection.selectors import SELECTORS
from tasks.selection.settings import SelectionSettings
from tasks.settings import hint

SHARES = tuple(step / 10 for step in range(1, 11))  # of the pool


@dataclass(frozen=True)
class Tried:
    """A choice at another budget."""

    share: float  # of the pool's rows
    rows: int
    objective: float | None  # that it reached; None: the selector has none
    objective_share: float | None  # of what all rows reach
    ids: frozenset[str]


def restore_selection(version: str, values: Params) -> Params:
    """Return the parameters with the section `selection` that a version's choice was made by.

    Args:
        version: the data version.
        values: the parameters as params.yaml has them now.

    Raises:
        ArtifactError: the version has no choice yet.
        ParamsError: what its choice records cannot be used by this code.
    """
    from tasks.artifacts.tables import provenance

    path, known = folder("selection", version) / "subset.parquet", {one.name for one in fields(SelectionSettings)}
    recorded = provenance(path)["parameters"]  # among them settings of what it read
    own = {name: value for name, value in recorded.items() if name in known}
    return replace(values, selection=check_section(SelectionSettings, own, f"{path}: selection"))


def try_budgets(version: str, values: Params, shares: Sequence[float] = SHARES) -> Iterator[Tried]:
    """Yield a version's choice at other budgets, each made once and kept among the trials; without pilot and mask.

    A budget of more rows than gate and caps leave takes these; it is the last one. One of fewer rows than the floors
    ask for is none.

    Args:
        version: the data version; what its choice reads is up to date.
        values: the parameters; those of the choice itself are the version's own.
        shares: of the pool's rows, ascending.

    Raises:
        ValueError: not even the smallest can be chosen.
    """
    loaded, values = sources([f"selection@{version}"]), restore_selection(version, values)
    most = count_room(version, values)
    pool = most.pool
    for share in shares:
        rows = min(max(1, int(share * pool + 1e-9)), most.room)
        if rows < sum(values.selection.floors.values()):
            continue
        found, ids = _choose_again(version, values, {"count": rows}, loaded)
        last = rows == most.room
        yield Tried(rows / pool if last else share, len(ids), found["objective"], found["objective_share"], ids)
        if last:
            return


def _choose_again(
    version: str, values: Params, budget: Mapping[str, float], loaded: Mapping[str, Any]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what is said of a choice by a budget, without pilot and mask, and the rows that it chose."""
    asked = replace(
        values,
        selection=replace(values.selection, budget=budget, pilot=None),
        mask=replace(values.mask, selector="none"),
    )
    made = attempt("selection", version, asked, {}, loaded)
    return read_choice(made), frozenset(_read_chosen(made.folder))


def _read_chosen(folder: Path) -> list[str]:
    """Return the ids of the rows that a choice took."""
    from tasks.artifacts.tables import read_table

    table = read_table(folder / "subset.parquet", columns=["id", "chosen"])
    return table.filter(table["chosen"])["id"].to_pylist()


@dataclass(frozen=True)
class Room:
    """How many rows a version may choose."""

    pool: int
    room: int  # those that the gate let pass, within the caps
    tokens: int  # of the responses of all that the gate let pass


def count_room(version: str, values: Params) -> Room:
    """Return how many rows of a version's pool can be chosen at most, as its choice was made.

    Raises:
        ArtifactError: the version has no choice yet.
    """
    from tasks.artifacts.tables import read_table

    columns = ["topic", "gated", "response_tokens"]
    table = read_table(folder("selection", version) / "subset.parquet", columns=columns)
    left, tokens = dict[str, int](), 0
    for topic, gated, many in zip(*(table[name].to_pylist() for name in columns), strict=True):
        left[topic] = left.get(topic, 0) + (not gated)
        tokens += 0 if gated else many
    caps = values.selection.caps
    allowed = [min(count, caps.get(topic, caps.get("*", count))) for topic, count in left.items()]
    return Room(table.num_rows, sum(allowed), tokens)


def choose_by(selector: str, version: str, values: Params) -> Path:
    """Return the folder of a version's choice by another selector, made once and kept among the trials.

    Args:
        selector: a word of selection.selector; what it reads is computed, too.
        version: the data version, whose examples are up to date.
        values: the parameters; those of the choice itself, its budget too, are the version's own.

    Raises:
        ValueError: there is no such selector, or it cannot be used as the parameters are.
    """
    asked = ask_selector(selector, restore_selection(version, values))
    loaded, done = sources(f"{name}@{version}" for name in (*SCORING, "selection")), {}
    for name in (*SCORING, "selection"):
        done[name] = attempt(name, version, asked, done, loaded)
    return done["selection"].folder


def find_choice(selector: str, version: str, values: Params) -> Path | None:
    """Return the folder of such a choice where it is kept among the trials, as things are now; None: it is not.

    Raises:
        ValueError: as `choose_by`.
    """
    return _find_choice(selector, version, restore_selection(version, values))


def list_kept(version: str, values: Params) -> list[str]:
    """Return the selectors whose choice of a version is kept, sorted; one that cannot be used has none.

    Args:
        version, values: as of `find_choice`.
    """
    made, kept = restore_selection(version, values), []
    for selector in sorted(SELECTORS):
        with suppress(params.ParamsError):
            kept += [selector] if _find_choice(selector, version, made) else []
    return kept


def _find_choice(selector: str, version: str, made: Params) -> Path | None:
    asked, done = ask_selector(selector, made), {}
    for name in (*SCORING, "selection"):
        found = find(name, version, asked, done)
        if found is None:
            return None
        done[name] = found
    return done["selection"].folder


def ask_selector(selector: str, values: Params) -> Params:
    """Return the parameters with another selector, and without pilot and mask.

    Raises:
        ValueError: there is no such selector, or it cannot be used as the parameters are.
    """
    if selector not in SELECTORS:
        raise params.ParamsError(f"{selector!r} is no selector{hint(selector, SELECTORS)}; {', '.join(SELECTORS)} are")
    choice = {"selector": selector, "quality": find_quality(selector, values), "pilot": None}
    asked = replace(
        values,
        selection=replace(values.selection, **choice),
        mask=replace(values.mask, selector="none"),
    )
    params.refuse_contradictions(asked)
    return asked


def find_entries(tried: Sequence[Tried]) -> dict[str, float]:
    """Return for each row the least share that takes it.

    >>> find_entries([Tried(0.1, 1, None, None, frozenset("a")), Tried(1.0, 2, None, None, frozenset("ab"))])
    {'a': 0.1, 'b': 1.0}
    """
    return {id: one.share for one in sorted(tried, key=lambda one: -one.share) for id in sorted(one.ids)}


@dataclass(frozen=True)
class Added:
    """What another budget would change."""

    before: int  # rows that are chosen
    rows: int  # that it chooses
    ids: list[str]  # of these, those that are not chosen now, sorted
    left: int  # rows that are chosen now and would not be


def add_to_budget(version: str, values: Params, times: float) -> Added:
    """Return what a budget so many times as large would change: of as many tokens, or of rows, at least one row more.

    The version's floors and caps hold for it, too. It is compared with what the version's own budget takes; where a
    pilot decided on that, with what it would take without one. There is no budget of more than gate and caps leave.

    Args:
        version: the data version; what its choice reads is up to date.
        values: the parameters.
        times: above 1.

    Raises:
        ValueError: it cannot be chosen.
    """
    loaded, values = sources([f"selection@{version}"]), restore_selection(version, values)
    ((kind, amount),) = values.selection.budget.items()
    if values.selection.pilot is None:
        chosen = frozenset(_read_chosen(folder("selection", version)))
    else:
        _, chosen = _choose_again(version, values, values.selection.budget, loaded)
    most = count_room(version, values)
    if kind == "response_tokens":
        budget = {kind: min(math.ceil(amount * times), most.tokens)}
    else:
        budget = {"count": min(max(len(chosen) + 1, round(len(chosen) * times)), most.room)}
    _, found = _choose_again(version, values, budget, loaded)
    return Added(len(chosen), len(found), sorted(found - chosen), len(chosen - found))
