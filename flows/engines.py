"""The two ways to run the stages: as a Prefect flow, or in this process alone, without a server."""

from collections.abc import Sequence

from flows import drive
from flows.drive import Before, Outcome, Tell
from flows.graph import dvc_state
from flows.graph.stages import end_versions
from flows.late import tell_edited
from flows.stage import say
from flows.told import tell_outdated


def run(
    engine: str,
    versions: Sequence[str],
    *,
    runner: str = "threads",
    workers: str = "auto",
    tell: Tell | None = None,
    before: Before | None = None,
) -> list[Outcome]:
    """Bring some data versions up to date. Where they are, neither engine is started.

    Args:
        engine: `prefect`, or `local`, which needs no server and shows nothing on Prefect's page.
        versions: names from params.yaml; all, where none is named.
        runner: of prefect, what runs the shards: `threads`, `dask`, or the address of a Dask cluster's scheduler.
        workers: how many shards run at once, `auto` or a number (flows/workers.py).
        tell: is given each version with its stages once all of these are up to date.
        before: what is done before some stages, where any is to be brought up to date.
    """
    fresh = find_fresh(versions, tell)
    if fresh:
        return fresh
    if engine == "local":
        return drive.run(versions, workers=workers, tell=tell, before=before)
    from flows import pipeline  # and Prefect with it, which takes seconds to start

    return pipeline.run(versions, runner=runner, workers=workers, tell=tell, before=before)


def find_fresh(versions: Sequence[str], tell: Tell | None) -> list[Outcome]:
    """Return the outcomes of a run that has nothing to do, and say so; none, where it has."""
    planned = dvc_state.plan(versions)
    if any(state != "fresh" for _, state, _ in dvc_state.standings(planned)):
        return []
    for line in tell_outdated(dvc_state.list_outdated(planned)):
        say(line)
    dvc_state.record_whole()
    say(f"{len(planned)} of {len(planned)} stages are up to date")
    for line in tell_edited(dict.fromkeys(one.version for one in planned)):
        say(line)
    for version, stages in end_versions(planned).values():
        if tell:
            tell(version, stages)
    files = dvc_state.list_files([one.address for one in planned])
    return [Outcome(one.address, "fresh", 0.0, tuple(files[one.address])) for one in planned]
