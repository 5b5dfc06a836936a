"""Rows that a person vetoes or pins: recorded for a version and those after it, whose next selection honours it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.approving import name_signer
from flows.checks import refuse_unknown
from flows.params import Params
from tasks.artifacts.locks import locked
from tasks.catalogue.derived import UNUSED
from tasks.decisions import PIN, Decision, find_decisions, read_decisions, write_decisions

ROOT = Path(".")
LOCK = Path(".cache/decisions.lock")
CHOOSABLE = (None, "vetoed")  # why a row of the pool is not used, where a pin in a veto's stead lets it be chosen


class DecisionError(ValueError):
    """A decision cannot be taken as asked."""


@dataclass(frozen=True)
class Decided:
    """What was recorded."""

    id: str  # in full
    versions: tuple[str, ...]  # for which it was
    replaced: str  # what it stands in place of, in words; empty: nothing was decided


def decide(
    kind: str, id: str, values: Params, *, because: str, by: str | None = None, version: str | None = None
) -> Decided:
    """Record that a row is not to be used, or is to be chosen; what stood of it before is replaced.

    Args:
        kind: `veto` or `pin`.
        id: the example's, or how it begins.
        values: the parameters.
        because: why; without the row's own words.
        by: who says so; None: git's user.
        version: from which on it holds, along the chain; None: the newest version that has the row.

    Raises:
        DecisionError: no reason or no name is given, or no version, or not that one, has the row.
        QuestionError: no example, or several, begin like this.
        ParamsError: there is no such version.
    """
    if not because.strip():
        raise DecisionError("no reason is given; say why, for those who read versions/<version>/decisions.json later")
    signer = name_signer(by)
    full, same, start = _find_row(id, values, version, kind)
    decision = Decision(full, same, kind, because.strip(), signer, datetime.now(UTC).isoformat(timespec="seconds"))
    before = [one for one in read_decisions(find_decisions(ROOT, start)) if one.same_as == same]

    def add(found: list[Decision]) -> list[Decision]:
        return [*(one for one in found if one.same_as != same), decision]

    replaced = ", ".join(f"{one.by}'s {one.kind} of {one.when[:10]} ({one.because})" for one in before)
    return Decided(full, tuple(_change(list_after(values, start), add)), replaced)


def release(id: str, values: Params, *, version: str | None = None) -> Decided:
    """Take back what was decided of a row, for a version and those after it; None: for all.

    Args:
        id: the example's, or how it begins.
        values: the parameters.
        version: from which on; None: everywhere.

    Raises:
        DecisionError: nothing is decided of it there, or of several rows that begin so.
        ParamsError: there is no such version.
    """
    if version is not None:
        refuse_unknown(version, values.versions)
    starts = [version] if version else list(values.versions)
    known = {one.id: one.same_as for start in starts for one in read_decisions(find_decisions(ROOT, start))}
    decided = sorted(one for one in known if one.startswith(id)) or _find_alike(id, known)
    if len(decided) != 1:
        told = (
            f"{len(decided)} rows begin so, first {', '.join(decided[:3])}" if decided else "nothing is decided of it"
        )
        raise DecisionError(f"{id!r} cannot be released: {told}; `tamis decisions` lists what is decided")
    (full,) = decided

    def drop(found: list[Decision]) -> list[Decision]:
        return [one for one in found if one.same_as != known[full]]

    return Decided(full, tuple(_change(list_after(values, version) if version else starts, drop)), "")


def _find_row(id: str, values: Params, version: str | None, kind: str) -> tuple[str, str, str]:
    """Return a row's id and `same_as`, and the version from which on something is decided of it."""
    if version is not None:
        refuse_unknown(version, values.versions)
    full, found = _ask_row(id)
    known = {name: told for name, *told in found}
    there = [name for name in values.versions if name in known]
    if not there or (version is not None and version not in there):
        where = version or "no version of params.yaml"
        raise DecisionError(f"{where} has no row {full}; `tamis show {full}` says where it is")
    start = version or there[-1]
    same, split, unused = known[start]
    if kind == PIN and split != "pool":
        raise DecisionError(f"{full} is of the {split.replace('_', '-')} rows of {start}, and is never chosen from")
    if kind == PIN and unused not in CHOOSABLE:
        able = [name for name in there if known[name][1] == "pool" and known[name][2] in CHOOSABLE]
        way = f"; --version {able[-1]} pins it where the pool has it" if able else ""
        raise DecisionError(f"{full} is not chosen from in {start}: {UNUSED[unused]}{way}")
    return full, same, start


def _find_alike(id: str, known: Mapping[str, str]) -> list[str]:
    """Return of decided rows, by their ids, those that have the text of another row."""
    _, found = _ask_row(id)
    texts = {same for _, same, *_ in found}
    return sorted(one for one, same in known.items() if same in texts)


def _ask_row(id: str) -> tuple[str, list[tuple[str, str, str, str | None]]]:
    """Return a row's whole id, and of each version that has it `same_as`, the split, and why it is not used."""
    from tasks.artifacts.views import opened
    from tasks.catalogue import rows, sources

    found = sources.find_artifacts(ROOT, asked="examples")
    rows.need(found, "examples")
    with opened(found.views, derived=found.derived) as connection:
        full = rows.complete(connection, id)
        sql = """SELECT version, any_value(same_as), any_value(split ORDER BY used DESC),
            first(unused_because ORDER BY used DESC) FROM examples WHERE id = $id GROUP BY version"""
        return full, connection.execute(sql, {"id": full}).fetchall()


def _change(versions: Iterable[str], change: Callable[[list[Decision]], list[Decision]]) -> Iterator[str]:
    """Change the decisions of some versions; yields the names of those whose decisions are other ones now."""
    with locked(LOCK, refusal=DecisionError("another process records a decision in this project; try again")):
        for version in versions:
            path = find_decisions(ROOT, version)
            before = read_decisions(path)
            after = change(before)
            if after != before:
                write_decisions(after, path)
                yield version


def list_after(values: Params, start: str) -> list[str]:
    """Return a version and those that continue from it, directly or not, in the order of params.yaml."""
    after = {start}
    while more := {name for name, one in values.versions.items() if one.previous in after} - after:
        after |= more
    return [name for name in values.versions if name in after]
