"""Continual tuning: every data version that is not recorded yet, in order, through its gates.

what has landed becomes a version
for each version without a git tag, what it continues from before it:
    refuse what the tag could not name -> run the version's stages, the gates before its evaluation
    -> commit what they made, tag it as recorded or as refused -> report -> push
"""

from collections.abc import Callable, Iterable
from typing import Any

from flows import drive, engines, params
from flows.graph.versions import (
    RecordError,
    list_refused,
    push,
    refusal_of,
    refuse_rewritten,
    refuse_uncommitted,
    tag_of,
    unrecorded,
    write,
)
from flows.stage import format_error, say
from flows.unattended import acceptance, landing, reports
from flows.unattended.acceptance import RefusedError
from flows.unattended.memory import give_back
from flows.undoing import take_back_killed

Tell = Callable[[dict[str, Any]], None]
WAITS = "waits"  # for somebody's approval


def advance(
    *, engine: str = "prefect", runner: str = "threads", workers: str = "auto", tell: Tell | None = None
) -> list[str]:
    """Run and record every data version that is not recorded yet, in order; returns those that are recorded now.

    Interrupted anywhere, the next call goes on: stages that were made are fresh, and what is left is done. A version
    that does not pass its gates, or whose run fails, is kept and reported, and keeps none out that does not continue
    from it.

    Args:
        engine: `prefect` or `local`.
        runner: of prefect, what runs the shards: `threads`, `dask`, or the address of a Dask cluster's scheduler.
        workers: how many shards run at once, `auto` or a number (flows/workers.py).
        tell: is given what became of each version, too, and of each landed folder that could not be added, or of the
            landing folder itself: `version`, `state` (recorded, refused, failed or not added), `why`, and what its
            `gates` said.

    Raises:
        StateError: the project is not under git.
        RecordError: the raw data of a recorded version have changed; a tracked file has changes that are not committed;
            or DVC's remote did not take the artifacts, after all versions were recorded.
        RefusedError, or what failed first: a version was not recorded, after all others were.
    """
    take_back_killed()
    unrecorded(params.read_versions())  # refuses what cannot be recorded before anything lands
    refused = list_refused()
    failures = _take_landed(refused, tell)
    versions = params.read_versions()
    waiting = unrecorded(versions)
    refuse_rewritten(versions)
    if not waiting:
        say(_tell_nothing(versions, refused))
    errors: list[Exception] = [*failures]
    unpushed = _push()
    made: list[str] = []
    closed = dict.fromkeys(refused, "was not accepted")  # version -> why nothing continues from it

    def run(version: str, before: drive.Before) -> None:
        engines.run(engine, [version], runner=runner, workers=workers, before=before)

    for version in waiting:
        previous = versions[version].previous
        obstacle = _find_obstacle(version, previous, closed)
        if obstacle is not None:
            errors += obstacle
            continue
        outcome, error = _try(version, run)
        give_back()
        reports.send(acceptance.read_settings().report, outcome)
        if tell:
            tell(outcome)
        if error is None:
            made.append(version)
        else:
            errors.append(error)
            closed[version] = "was not accepted" if isinstance(error, RefusedError) else "failed"
        if outcome["state"] != "failed":
            unpushed = _push()
    _raise_first(errors if unpushed is None else [*errors, unpushed])
    return made


def _take_landed(refused: set[str], tell: Callable[[dict[str, Any]], None] | None) -> list[landing.LandingError]:
    """Add what has landed; returns why something is not added, which keeps no other version from being made."""
    try:
        return landing.take_landed(refused, tell)[1]
    except landing.LandingError as error:  # the landing folder itself
        say(str(error))
        return [error]


def _raise_first(errors: list[Exception]) -> None:
    """Raise the first of some errors, all of which were told of; where there are more, a line says how many."""
    if len(errors) > 1:
        say(f"{len(errors)} troubles are told above; the first ends this call")
    if errors:
        raise errors[0]


def _find_obstacle(version: str, previous: str, closed: dict[str, str]) -> list[Exception] | None:
    """Return why a version is not run, errors, of which there are none where it waits for an approval; None: it is run.

    Args:
        version: the data version.
        previous: the one that it continues from.
        closed: why nothing continues from some versions; takes this one.
    """
    why = closed.get(previous)
    told = acceptance.tell_waiting(version, previous) if why is None else None
    if why == WAITS:
        told = f"{version} waits: it continues from {previous}, which waits"
    if told is not None:
        say(told)
        closed[version] = WAITS
        return []
    if why is None:
        return None
    closed[version] = "was not run"
    error = RefusedError(_tell_closed(version, previous, why))
    say(str(error))
    return [error]


def _try(version: str, run: Callable[[str, drive.Before], None]) -> tuple[dict[str, Any], Exception | None]:
    """Run and record a version; returns what became of it, and why it is not recorded, where it is not."""
    refuse_uncommitted(version)
    asked: list[dict[str, Any]] = []

    def ask() -> None:
        asked.append(acceptance.decide(version))

    try:
        run(version, {f"evaluation@{version}": ask})
        if not asked:  # its evaluation stood already
            ask()
        found = asked[0]
        with drive.alone():
            write(version, accepted=found["accepted"])
    except Exception as error:
        why = format_error(error)
        say(f"{version} failed: {why}")
        return {"version": version, "state": "failed", "why": why, "gates": []}, error
    if found["accepted"]:
        say(f"{version} is recorded: tag {tag_of(version)}")
        return {**found, "state": "recorded", "why": ""}, None
    why = acceptance.tell(found)
    say(f"{why}; it is kept under the tag {refusal_of(version)}")
    return {**found, "state": "refused", "why": why}, RefusedError(why)


def _tell_nothing(versions: Iterable[str], refused: Iterable[str]) -> str:
    """Return that no version waits to be recorded.

    >>> _tell_nothing(["v1", "v2"], {"v2"})
    'nothing is new: every data version is recorded, or refused (v2): v1, v2'
    """
    aside = f", or refused ({', '.join(sorted(refused))})" if refused else ""
    return f"nothing is new: every data version is recorded{aside}: {', '.join(versions)}"


def _tell_closed(version: str, previous: str, why: str) -> str:
    """Return why a version is not run that continues from one that is not recorded.

    >>> _tell_closed("v3", "v2", "failed")
    'v3 is not run: it continues from v2, which failed; set versions.v3.previous to one that is recorded'
    """
    said = f"{version} is not run: it continues from {previous}, which {why}"
    way = f"set versions.{version}.previous to one that is recorded"
    if why == "was not accepted":
        way += f", or take {previous} nevertheless: `git tag {tag_of(previous)} {refusal_of(previous)}^{{}}`"
    return f"{said}; {way}"


def _push() -> RecordError | None:
    """Push, and say what came of it; returns the failure, which must not keep later versions from being made."""
    try:
        came = push()
    except RecordError as error:
        say(f"not pushed: {error}")
        return error
    if came:
        say(came)
    return None
